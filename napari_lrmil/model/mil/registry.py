"""Which aggregators there are, by the name in their spec. A new head is one file and one name in `AnyMILSpec`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from napari_lrmil.model.mil.abmil import ABMILSpec
from napari_lrmil.model.mil.base import MILModel, MILSpec
from napari_lrmil.model.mil.max import MaxSpec
from napari_lrmil.model.mil.mean import MeanSpec


def _named(raw: object) -> object:
    """Specs without a name are ABMIL's: it was the only head."""
    return {"name": "abmil"} | raw if isinstance(raw, dict) and "name" not in raw else raw


AnyMILSpec = Annotated[
    Annotated[ABMILSpec | MeanSpec | MaxSpec, Field(discriminator="name")], BeforeValidator(_named)
]
"""The spec of any head, as JSON and TOML say it: ``name`` says which."""


def build_mil(spec: MILSpec) -> MILModel:
    """Return the aggregator that `spec` names, with fresh weights."""
    return spec.build()

"""Which aggregators there are, by the name in their spec. A new head is one file and one name in `AnySpec`."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from napari_lrmil.model.mil.abmil import ABMILSpec
from napari_lrmil.model.mil.base import MILModel, MILSpec
from napari_lrmil.model.mil.clam import CLAMMBSpec, CLAMSBSpec
from napari_lrmil.model.mil.dsmil import DSMILSpec
from napari_lrmil.model.mil.dtfd import DTFDSpec
from napari_lrmil.model.mil.focus import FOCUSSpec
from napari_lrmil.model.mil.hdmil import HDMILSpec
from napari_lrmil.model.mil.max import MaxSpec
from napari_lrmil.model.mil.mean import MeanSpec
from napari_lrmil.model.mil.transmil import TransMILSpec
from napari_lrmil.model.mil.zoommil import ZoomMILSpec

AnySpec = (
    ABMILSpec
    | MaxSpec
    | MeanSpec
    | CLAMSBSpec
    | CLAMMBSpec
    | DSMILSpec
    | TransMILSpec
    | DTFDSpec
    | FOCUSSpec
    | ZoomMILSpec
    | HDMILSpec
)
HEADS: dict[str, type[MILSpec]] = {spec.model_fields["name"].default: spec for spec in get_args(AnySpec)}
"""Spec of each head by its name."""


def _named(raw: object) -> object:
    """Specs without a name are ABMIL's: it was the only head."""
    return {"name": "abmil"} | raw if isinstance(raw, dict) and "name" not in raw else raw


AnyMILSpec = Annotated[Annotated[AnySpec, Field(discriminator="name")], BeforeValidator(_named)]
"""The spec of any head, as JSON says it: ``name`` says which."""


def build_mil(spec: MILSpec) -> MILModel:
    """Return the aggregator that `spec` names, with fresh weights."""
    return spec.build()

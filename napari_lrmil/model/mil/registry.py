"""Which aggregator a spec names."""

from __future__ import annotations

from napari_lrmil.model.mil.abmil import ABMIL
from napari_lrmil.model.mil.base import MILModel, MILSpec


def build_mil(spec: MILSpec) -> MILModel:
    """Return the aggregator that `spec` names, with fresh weights."""
    return ABMIL(
        embed_dim=spec.embed_dim,
        n_classes=spec.n_classes,
        hidden_dim=spec.hidden_dim,
        gated=spec.gated,
        dropout=spec.dropout,
        projection=spec.projection,
    )

"""MIL aggregators: one a module with its spec and loss, all taking a `Bag` and returning `MILOutput`."""

from napari_lrmil.model.mil.abmil import ABMIL, ABMILSpec
from napari_lrmil.model.mil.base import AnyBag, Bag, MILModel, MILOutput, MILSpec
from napari_lrmil.model.mil.registry import HEADS, AnyMILSpec, build_mil

__all__ = [
    "ABMIL",
    "HEADS",
    "ABMILSpec",
    "AnyBag",
    "AnyMILSpec",
    "Bag",
    "MILModel",
    "MILOutput",
    "MILSpec",
    "build_mil",
]

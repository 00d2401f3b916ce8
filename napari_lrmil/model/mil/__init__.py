"""MIL aggregators: one a module, all returning `MILOutput`."""

from napari_lrmil.model.mil.abmil import ABMIL
from napari_lrmil.model.mil.base import MILModel, MILOutput, MILSpec
from napari_lrmil.model.mil.registry import build_mil

__all__ = ["ABMIL", "MILModel", "MILOutput", "MILSpec", "build_mil"]

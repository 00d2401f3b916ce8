"""Distillation objectives, a file each: of tiles for stage 1, of bags for stage 2."""

from training.objectives.base import (
    BagObjective,
    BagObjectiveSpec,
    SeenBag,
    TeacherBag,
    TileObjective,
    TileObjectiveSpec,
)
from training.objectives.registry import AnyBagObjective, AnyTileObjective

__all__ = [
    "AnyBagObjective",
    "AnyTileObjective",
    "BagObjective",
    "BagObjectiveSpec",
    "SeenBag",
    "TeacherBag",
    "TileObjective",
    "TileObjectiveSpec",
]

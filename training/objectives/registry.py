"""Which objectives a config can name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from training.objectives.class_and_tokens import ClassAndTokensSpec
from training.objectives.hinton import KDSpec
from training.objectives.hints import HintsBagSpec, HintsTileSpec
from training.objectives.lrmil import LRMILBagSpec, LRMILTileSpec
from training.objectives.nkd import NKDSpec
from training.objectives.review_kd import ReviewKDSpec
from training.objectives.tat import TaTSpec
from training.objectives.uskd import USKDSpec
from training.objectives.vitkd import ViTKDSpec

AnyTileObjective = Annotated[
    LRMILTileSpec | HintsTileSpec | ReviewKDSpec | TaTSpec | ViTKDSpec | ClassAndTokensSpec,
    Field(discriminator="name"),
]
"""Of ``[[stage1.objectives]]``."""

AnyBagObjective = Annotated[
    LRMILBagSpec | KDSpec | HintsBagSpec | NKDSpec | USKDSpec, Field(discriminator="name")
]
"""Of ``[[stage2.objectives]]``."""

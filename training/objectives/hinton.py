"""Hinton's distillation of a bag's logits (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

    L = weight T^2 KL(softmax(teacher / T) || softmax(student / T))

The paper weights two terms without giving numbers; T = 4 and weight 0.5 are those of the comparisons that followed. Here
the weight is of this term alone: the cross-entropy with the label keeps ``stage2.l_ce``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from training.losses import bag_kl
from training.objectives.base import BagObjective, BagObjectiveSpec, BagShapes, Need, SeenBag


class KDSpec(BagObjectiveSpec):
    """Bag logits, softened."""

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    name: Literal["kd"]
    weight: float = Field(default=0.5, ge=0, description="of the KL")
    temperature: float = Field(default=4.0, gt=0, description="T, of both sides' bag logits")

    def build(self, shapes: BagShapes) -> BagObjective:
        """Return its module."""
        return KD(self)


class KD(BagObjective):
    """See the module."""

    def __init__(self, spec: KDSpec) -> None:
        super().__init__()
        self._spec = spec

    def forward(self, seen: SeenBag) -> dict[str, Tensor]:
        """Return the term ``kd``."""
        spec = self._spec
        return {"kd": spec.weight * bag_kl(seen.output.bag_logits, seen.teacher.logits, spec.temperature)}

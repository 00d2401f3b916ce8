"""NKD, normalised knowledge distillation (Yang et al. 2023, arXiv 2303.13005), of a bag's logits.

    L_target     = -t_y log s_y
    L_non_target = -gamma T^2 sum over c != y of t'_c log s'_c

t and s are the softmax of teacher and student, t' and s' the softmax at temperature T over the classes other than the label
y alone. The paper has gamma = 1.5 and T = 1 for CNNs and gamma = 1, T = 1 for ViTs; the latter are the defaults.

With two classes there is one class other than y, t' = s' = 1 and L_non_target = 0: what remains is a cross-entropy with the
label, weighted by how sure the teacher is of it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from training.objectives.base import BagObjective, BagObjectiveSpec, BagShapes, Need, SeenBag


def nkd_target(student_logits: Tensor, teacher_logits: Tensor, label: int) -> Tensor:
    """Return -t_y log s_y, both (C,)."""
    teacher = torch.softmax(teacher_logits, dim=0)[label]
    return -teacher * torch.log_softmax(student_logits, dim=0)[label]


def nkd_non_target(student_logits: Tensor, teacher_logits: Tensor, label: int, temperature: float) -> Tensor:
    """Return -T^2 sum of t'_c log s'_c over the classes other than the label, both (C,); 0 for two classes."""
    others = torch.arange(len(student_logits), device=student_logits.device) != label
    teacher = torch.softmax(teacher_logits[others] / temperature, dim=0)
    student = torch.log_softmax(student_logits[others] / temperature, dim=0)
    return -(temperature**2) * (teacher * student).sum()


class NKDSpec(BagObjectiveSpec):
    """Target and non-target classes, each by itself."""

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    name: Literal["nkd"]
    gamma: float = Field(default=1.0, ge=0, description="of the other classes; 1.5 in the paper for CNNs")
    temperature: float = Field(default=1.0, gt=0, description="T, of the other classes")

    def build(self, shapes: BagShapes) -> BagObjective:
        """Return its module."""
        return NKD(self)


class NKD(BagObjective):
    """See the module."""

    def __init__(self, spec: NKDSpec) -> None:
        super().__init__()
        self._spec = spec

    def forward(self, seen: SeenBag) -> dict[str, Tensor]:
        """Return the terms ``nkd_target`` and ``nkd_non_target``."""
        spec, student, teacher = self._spec, seen.output.bag_logits, seen.teacher.logits
        other = nkd_non_target(student, teacher, seen.label, spec.temperature)
        return {
            "nkd_target": spec.weight * nkd_target(student, teacher, seen.label),
            "nkd_non_target": spec.weight * spec.gamma * other,
        }

"""USKD, universal self-knowledge distillation (Yang et al. 2023, arXiv 2303.13005), of a bag's logits: there is no teacher.

    L_target     = -p log s_y,  p = 1 + s_y^2 - mean of s_y^2
    L_non_target = -sum over c != y of z_c log s'_c
    L_weak       = cross-entropy of the weak logits with the smoothed label
    L = alpha L_target + beta L_non_target + mu L_weak

s is the softmax of the student, s' over the classes other than the label y alone. z is Zipf's law, 1 / rank normalised, where
the other classes are ranked by the sum of s' and of w', the same of a weak classifier, a linear layer on an intermediate
feature. p and z carry no gradient. Defaults are the paper's: alpha 1, beta 0.1, mu 0.005, labels smoothed by 0.1.

Choices. The mean of s_y^2 is one over the batch in the paper; a bag is a batch of one here, over which p would be 1 always, so
it is a running mean. The intermediate feature is the class token of a middle block in the paper; a bag's is the mean of its
tiles' embeddings, each normalised (without trained parameters). Ranks count the other classes only.

With two classes L_non_target is 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.objectives.base import BagObjective, BagObjectiveSpec, BagShapes, SeenBag

_SMOOTHING = 0.1


def soft_target(student_logits: Tensor, label: int, mean_square: Tensor | float) -> Tensor:
    """Return p = 1 + s_y^2 - mean, a scalar without gradient."""
    return 1 + torch.softmax(student_logits.detach(), dim=0)[label].square() - mean_square


def uskd_target(student_logits: Tensor, label: int, target: Tensor) -> Tensor:
    """Return -p log s_y of logits (C,)."""
    return -target * torch.log_softmax(student_logits, dim=0)[label]


def zipf_labels(student_logits: Tensor, weak_logits: Tensor, label: int) -> Tensor:
    """Return z, (C - 1,) labels of the classes other than `label`, in their order, that sum to 1 and carry no gradient."""
    others = torch.arange(len(student_logits), device=student_logits.device) != label
    likely = sum(torch.softmax(logits.detach()[others], dim=0) for logits in (student_logits, weak_logits))
    assert isinstance(likely, Tensor)
    rank = likely.argsort(descending=True, stable=True).argsort() + 1
    return (1 / rank) / (1 / rank).sum()


def uskd_non_target(student_logits: Tensor, weak_logits: Tensor, label: int) -> Tensor:
    """Return -sum of z_c log s'_c over the classes other than the label, both (C,); 0 for two classes."""
    others = torch.arange(len(student_logits), device=student_logits.device) != label
    student = torch.log_softmax(student_logits[others], dim=0)
    return -(zipf_labels(student_logits, weak_logits, label) * student).sum()


class USKDSpec(BagObjectiveSpec):
    """The student's own words as labels; no teacher."""

    name: Literal["uskd"]
    alpha: float = Field(default=1.0, ge=0, description="of the target class")
    beta: float = Field(default=0.1, ge=0, description="of the other classes")
    mu: float = Field(default=0.005, ge=0, description="of the weak classifier")
    momentum: float = Field(default=0.99, ge=0, lt=1, description="of the running mean of s_y^2, a bag")

    def build(self, shapes: BagShapes) -> BagObjective:
        """Return its module with fresh weights."""
        return USKD(self, shapes)


class USKD(BagObjective):
    """See the module."""

    mean_square: Tensor

    def __init__(self, spec: USKDSpec, shapes: BagShapes) -> None:
        super().__init__()
        self._spec = spec
        self.weak = nn.Linear(shapes.embed_dim, shapes.n_classes)
        self.register_buffer("mean_square", torch.tensor(-1.0))  # below 0: of no bag yet

    def forward(self, seen: SeenBag) -> dict[str, Tensor]:
        """Return the terms ``uskd_target``, ``uskd_non_target`` and ``uskd_weak``."""
        spec, logits, label = self._spec, seen.output.bag_logits, seen.label
        square = torch.softmax(logits.detach(), dim=0)[label].square()
        before = torch.where(self.mean_square < 0, square, self.mean_square)
        mean = spec.momentum * before + (1 - spec.momentum) * square
        if self.training:
            self.mean_square.copy_(mean)
        feature = F.layer_norm(seen.embeddings, seen.embeddings.shape[-1:]).mean(dim=0)
        weak = self.weak(feature)
        terms = {
            "uskd_target": spec.alpha * uskd_target(logits, label, soft_target(logits, label, mean)),
            "uskd_non_target": spec.beta * uskd_non_target(logits, weak, label),
            "uskd_weak": spec.mu
            * F.cross_entropy(
                weak[None], torch.tensor([label], device=weak.device), label_smoothing=_SMOOTHING
            ),
        }
        return {name: spec.weight * term for name, term in terms.items()}

"""Hints (FitNets, Romero et al. 2015, arXiv 1412.6550) in the form of Chen et al., NIPS 2017 (Learning efficient object
detection models with knowledge distillation).

Of tiles:  L_hint = MSE(regressor(f'_l), f_l) at a middle layer l.
Of bags:   L_hint = MSE(regressor(student's bag embedding), teacher's bag embedding)
           L_soft = -sum over c of w_c t_c log s_c, the weighted cross-entropy with the teacher's softmax t
           L_bounded = ||s - y||^2 where ||s - y||^2 + margin > ||t - y||^2, else 0
           L = 0.5 L_hint + 0.5 L_soft + 0.5 L_bounded, the paper's gamma, 1 - mu and nu

The regressor is the paper's adaptation layer, a 1 x 1 convolution (for a bag a linear layer), also where both widths are equal.

Choices. The paper's L_bounded bounds the regression of boxes, which slides haven't got: s and t are the class probabilities
here and y is the label, one-hot. Its w_c is 1.5 for the background and 1 for objects; here it is n / (C n_c) over the training
slides, 1 for each where classes are of equal size. No margin is given: 0. The hinted layer of tiles is the middle block. Where
a head has a bag embedding a class, the label's is taken.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.errors import ConfigError
from training.objectives.base import (
    BagObjective,
    BagObjectiveSpec,
    BagShapes,
    BlockObjectiveSpec,
    Need,
    SeenBag,
    StudentTiles,
    Taps,
    TeacherTiles,
    TileObjective,
    TileShapes,
    masked_mse,
    pooled_to,
)


def weighted_soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, weights: Tensor) -> Tensor:
    """Return -sum of w_c t_c log s_c, all (C,)."""
    teacher = torch.softmax(teacher_logits, dim=0)
    return -(weights * teacher * torch.log_softmax(student_logits, dim=0)).sum()


def bounded_regression(student: Tensor, teacher: Tensor, truth: Tensor, margin: float) -> Tensor:
    """Return ||student - truth||^2 where it is more than the teacher's less a margin, else 0; all (C,)."""
    of_student = (student - truth).square().sum()
    of_teacher = (teacher - truth).square().sum()
    return torch.where(of_student + margin > of_teacher, of_student, of_student * 0)


def of_class(bag_embedding: Tensor, label: int) -> Tensor:
    """Return the bag embedding (H,): the label's, where each class has its own (C, H)."""
    return bag_embedding if bag_embedding.ndim == 1 else bag_embedding[label]


# --- tiles


class HintsTileSpec(BlockObjectiveSpec):
    """A regressor from a layer of f' to one of f."""

    name: Literal["hints"]
    layer: int | None = Field(
        default=None,
        description="block of f that hints, negative from the last; default the middle one. The student's is at the same "
        "relative depth",
    )

    def tap(self, *, depth: int, student_depth: int) -> Taps:
        """Return the one block of each."""
        wanted = (depth // 2 if self.layer is None else self.layer,)
        return self.taps_at(wanted, "layer", depth=depth, student_depth=student_depth)

    def build(self, taps: Taps, shapes: TileShapes) -> TileObjective:
        """Return its module with fresh weights."""
        return HintsTile(self, taps, shapes)


class HintsTile(TileObjective):
    """See the module."""

    def __init__(self, spec: HintsTileSpec, taps: Taps, shapes: TileShapes) -> None:
        super().__init__()
        self._spec, self.taps = spec, taps
        self.regressor = nn.Conv2d(shapes.student_dim, shapes.teacher_dim, 1)

    def forward(self, student: StudentTiles, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the term ``hints``."""
        target = self.target(teacher, self.taps.layers[0])
        maps = student.layer_maps[self.taps.student_layers[0]]
        predicted = self.regressor(pooled_to(maps, target.values.shape[-1])).float()
        return {"hints": masked_mse(predicted, target.standardised, target.valid)}

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the config's."""
        return {"hints": self._spec.weight}


# --- bags


class HintsBagSpec(BagObjectiveSpec):
    """Hint on the bag embedding, weighted soft cross-entropy, bounded regression."""

    needs: ClassVar[frozenset[Need]] = frozenset({"logits", "embedding"})

    name: Literal["hints"]
    hint: float = Field(default=0.5, ge=0, description="weight of the hint on the bag embedding")
    soft: float = Field(default=0.5, ge=0, description="weight of the weighted soft cross-entropy")
    bounded: float = Field(default=0.5, ge=0, description="weight of the bounded regression")
    margin: float = Field(
        default=0.0, ge=0, description="by which the student must be nearer than the teacher"
    )
    class_weights: tuple[float, ...] | None = Field(
        default=None, description="of the classes in the soft cross-entropy; default n / (C n_c)"
    )

    def build(self, shapes: BagShapes) -> BagObjective:
        """Return its module with fresh weights."""
        return HintsBag(self, shapes)


class HintsBag(BagObjective):
    """See the module."""

    class_weights: Tensor

    def __init__(self, spec: HintsBagSpec, shapes: BagShapes) -> None:
        super().__init__()
        self._spec = spec
        if spec.hint and (shapes.bag_dim is None or shapes.teacher_bag_dim is None):
            whose = "student" if shapes.bag_dim is None else "teacher"
            raise ConfigError(
                f"stage2.objectives: hints needs a bag embedding, and the {whose}'s head has none: set hint = 0 for its other "
                "two terms, or take another head"
            )
        self.regressor = nn.Linear(shapes.bag_dim or 1, shapes.teacher_bag_dim or 1) if spec.hint else None
        given = spec.class_weights
        if given is not None and len(given) != shapes.n_classes:
            raise ConfigError(
                f"stage2.objectives: hints.class_weights has {len(given)} numbers for {shapes.n_classes} classes"
            )
        shares = shapes.class_shares or (1 / shapes.n_classes,) * shapes.n_classes
        weights = given or tuple(1 / (shapes.n_classes * share) if share else 0.0 for share in shares)
        self.register_buffer("class_weights", torch.tensor(weights), persistent=False)

    def forward(self, seen: SeenBag) -> dict[str, Tensor]:
        """Return the terms ``hints``, ``hints_soft`` and ``hints_bounded``."""
        spec, logits, teacher = self._spec, seen.output.bag_logits, seen.teacher
        truth = F.one_hot(torch.tensor(seen.label, device=logits.device), len(logits)).to(logits.dtype)
        terms = {
            "hints_soft": spec.soft * weighted_soft_cross_entropy(logits, teacher.logits, self.class_weights),
            "hints_bounded": spec.bounded
            * bounded_regression(
                torch.softmax(logits, dim=0), torch.softmax(teacher.logits, dim=0), truth, spec.margin
            ),
        }
        if self.regressor is not None:
            assert seen.output.bag_embedding is not None
            assert teacher.embedding is not None
            predicted = self.regressor(of_class(seen.output.bag_embedding, seen.label))
            hint = F.mse_loss(predicted, of_class(teacher.embedding, seen.label))
            terms = {"hints": spec.hint * hint} | terms
        return {name: spec.weight * term for name, term in terms.items()}

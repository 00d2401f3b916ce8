"""Class token and tokens of a larger teacher, as in H0-mini (Filiot et al. 2025, arXiv 2501.16239).

    L = class_weight d(f' class token, f class token) + token_weight mean over places of d(f' token, f token)

both after the final norm, brought to f's width by a linear layer each where f' is narrower.

Choices. The paper distils with the losses of DINOv2, cross-entropies over the scores of the teacher's own prototypes for class
tokens and tokens, at equal weights; published encoders come without those prototypes, so the embeddings themselves are matched:
d is the mean squared error in units of the target's standard deviation, or 1 - cosine. f reads the LR tile by default (``lr``),
as teacher and student of the paper read one image; with ``children`` tokens are matched with the HR children's class tokens
and the class token with their mean over those with tissue.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from training.objectives.base import (
    Projection,
    Source,
    StudentTiles,
    Taps,
    TeacherTiles,
    TileObjective,
    TileObjectiveSpec,
    TileShapes,
    masked_mean,
    masked_mse,
    masked_pool,
    pooled_to,
    standardised_map,
)


def masked_cosine(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of 1 - cosine of each tile over valid places.

    Parameters
    ----------
    prediction, target : (B, D, h, w) tensors
    valid : (B, h, w) bool tensor

    Returns
    -------
    (B,) tensor
        0 where no place is valid.
    """
    return masked_mean(1 - F.cosine_similarity(prediction, target, dim=1), valid)


class ClassAndTokensSpec(TileObjectiveSpec):
    """Final class token and final tokens."""

    name: Literal["class_and_tokens"]
    source: Source = Field(
        default="lr",
        description="lr: f's words on the LR tile; children: its stored class tokens of HR children",
    )
    distance: Literal["mse", "cosine"] = Field(default="mse", description="between two tokens")
    class_weight: float = Field(default=1.0, ge=0, description="of the class token")
    token_weight: float = Field(default=1.0, ge=0, description="of the tokens")

    def tap(self, *, depth: int, student_depth: int) -> Taps:
        """Return no blocks: what comes after the last is enough."""
        return Taps(source=self.source)

    def build(self, taps: Taps, shapes: TileShapes) -> TileObjective:
        """Return its module with fresh weights."""
        return ClassAndTokens(self, taps, shapes)


class ClassAndTokens(TileObjective):
    """See the module."""

    def __init__(self, spec: ClassAndTokensSpec, taps: Taps, shapes: TileShapes) -> None:
        super().__init__()
        self._spec, self.taps = spec, taps
        self.class_projection = Projection(shapes.student_dim, shapes.teacher_dim)
        self.token_projection = Projection(shapes.student_dim, shapes.teacher_dim)

    def forward(self, student: StudentTiles, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the terms ``class_token`` and ``tokens``."""
        apart = {"mse": masked_mse, "cosine": masked_cosine}[self._spec.distance]
        target = self.target(teacher, None)
        maps = self.token_projection(pooled_to(student.token_map, target.values.shape[-1]), target.scale)
        if self.taps.source == "lr":
            assert teacher.lr is not None
            scale = teacher.scales.lr_embedding
            wanted = standardised_map(teacher.lr.embedding[:, :, None, None], scale)
            valid = torch.ones_like(target.valid[:, :1, :1])
        else:
            scale = target.scale
            wanted, valid = masked_pool(target.standardised, target.valid, 1)
        own = self.class_projection(student.embedding[:, :, None, None], scale)  # (B, D, 1, 1)
        return {
            "class_token": apart(own, wanted, valid),
            "tokens": apart(maps, target.standardised, target.valid),
        }

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the config's."""
        spec = self._spec
        return {"class_token": spec.weight * spec.class_weight, "tokens": spec.weight * spec.token_weight}

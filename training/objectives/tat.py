"""TaT, the target-aware transformer (Lin et al. 2022, arXiv 2205.10793): each place of the teacher may learn from all of the
student's.

    L = weight MSE(softmax(q_t k_s^T) v_s, f_t)

q_t are linear in the teacher's tokens f_t (M, D), k_s and v_s in the student's (N, D'). Weight 0.1, as the paper has it on
ImageNet, beside a task loss; the task here is the tile's only one.

Choices. The paper writes sigma(gamma(f_s) theta(f_t)^T) phi(f_s), whose product fits only read the other way round, and says in
words that a teacher's place weighs all of the student's: so the softmax is over the student's places. It doesn't divide by the
square root of the width, nor does this. Its maps are 3 x 3 convolutions with batch norm on CNNs; linear maps here, of tokens
that attention has mixed already. Queries read standardised targets. The layer is the last by default. The patch-group and
anchor-point variants, for maps of thousands of places, aren't needed for tiles.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.objectives.base import (
    BlockObjectiveSpec,
    StudentTiles,
    Taps,
    TeacherTiles,
    TileObjective,
    TileShapes,
    masked_mse,
)


def reconfigured(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(q k^T) v: for each place of the teacher the student's values, weighted by likeness.

    Parameters
    ----------
    queries : (B, M, P) tensor
    keys : (B, N, P) tensor
    values : (B, N, D) tensor

    Returns
    -------
    (B, M, D) tensor
    """
    return torch.softmax(queries @ keys.transpose(1, 2), dim=-1) @ values


class TaTSpec(BlockObjectiveSpec):
    """Attention of the teacher's places over the student's."""

    name: Literal["tat"]
    weight: float = Field(default=0.1, ge=0, description="of the squared error")
    layer: int = Field(default=-1, description="block of f, negative from the last")
    dim: int | None = Field(default=None, ge=1, le=8192, description="width of queries and keys; default f's")

    def tap(self, *, depth: int, student_depth: int) -> Taps:
        """Return the one block of each."""
        return self.taps_at((self.layer,), "layer", depth=depth, student_depth=student_depth)

    def build(self, taps: Taps, shapes: TileShapes) -> TileObjective:
        """Return its module with fresh weights."""
        return TaT(self, taps, shapes)


class TaT(TileObjective):
    """See the module."""

    def __init__(self, spec: TaTSpec, taps: Taps, shapes: TileShapes) -> None:
        super().__init__()
        self._spec, self.taps = spec, taps
        dim = spec.dim or shapes.teacher_dim
        self.query = nn.Linear(shapes.teacher_dim, dim)
        self.key = nn.Linear(shapes.student_dim, dim)
        self.value = nn.Linear(shapes.student_dim, shapes.teacher_dim)

    def forward(self, student: StudentTiles, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the term ``tat``."""
        target = self.target(teacher, self.taps.layers[0])
        theirs = target.standardised.flatten(2).transpose(1, 2)  # (B, M, D)
        ours = student.layer_maps[self.taps.student_layers[0]].flatten(2).transpose(1, 2)  # (B, N, D')
        found = reconfigured(self.query(theirs), self.key(ours), self.value(ours)).float()
        predicted = found.transpose(1, 2).reshape(target.values.shape)
        return {"tat": masked_mse(predicted, target.standardised, target.valid)}

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the config's."""
        return {"tat": self._spec.weight}

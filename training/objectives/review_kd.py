"""ReviewKD, distillation by review (Chen et al. 2021, arXiv 2104.09044): a layer of the teacher teaches all of the student's up
to it.

From the deepest matched layer to the shallowest, the student's map x (1 x 1 convolution to `mid_dim`) is fused with what came
from deeper, y: two 1 x 1 convolutions of [x, y] with a sigmoid give the maps a and b, and a x + b y goes on to the next layer
and, by a 3 x 3 convolution, to the teacher's width. Each result is compared with the teacher's map by `pyramid_loss`, and the
layers' losses are summed. The weight rises linearly over the first 20 epochs.

Choices. Blocks of a ViT give maps of one size, so nothing is enlarged between layers; with targets of children the fused map
is pooled to r x r at the end. A ViT has no stages: the default layers are the last of each quarter of f's blocks. Stage 1
trains few epochs (5 by default): the weight is then below its full value to the end, which AdamW, that takes no notice of a
loss's scale, makes up for where ReviewKD is the only objective; the validation loss, by which an epoch is chosen, is always at
full weight.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    masked_pool,
    pooled_to,
)

LEVELS = (4, 2, 1)
"""Edges of the pooled maps."""


def pyramid_loss(prediction: Tensor, target: Tensor, valid: Tensor, levels: Sequence[int] = LEVELS) -> Tensor:
    """Return the mean squared errors of maps and of their pooled versions, weighted 1, 1/2, 1/4, ... and normalised.

    Parameters
    ----------
    prediction, target : (B, D, h, w) tensors
    valid : (B, h, w) bool tensor
        Places that count; a block is the mean of those of it.
    levels : sequence of int
        Edges of the pooled maps; those that aren't smaller than h are left out, and the weights go to the rest in order.

    Returns
    -------
    (B,) tensor
    """
    loss, total, weight = masked_mse(prediction, target, valid), 1.0, 1.0
    for edge in levels:
        if edge >= prediction.shape[-2]:
            continue
        weight /= 2
        pooled, _ = masked_pool(prediction, valid, edge)
        loss = loss + weight * masked_mse(pooled, *masked_pool(target, valid, edge))
        total += weight
    return loss / total


class Fusion(nn.Module):
    """A student's map fused with what came from deeper.

    Parameters
    ----------
    student_dim, mid_dim, teacher_dim : int
    deepest : bool
        Whether nothing came from deeper.
    """

    def __init__(self, student_dim: int, mid_dim: int, teacher_dim: int, *, deepest: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(student_dim, mid_dim, 1, bias=False), nn.BatchNorm2d(mid_dim))
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * mid_dim, 2, 1), nn.Sigmoid())
        self.outer = nn.Sequential(
            nn.Conv2d(mid_dim, teacher_dim, 3, padding=1, bias=False), nn.BatchNorm2d(teacher_dim)
        )

    def forward(self, student: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the map in the teacher's width (B, D, g, g), and the fused one (B, mid, g, g)."""
        fused = self.inner(student)
        if self.attention is not None and deeper is not None:
            shares = self.attention(torch.cat([fused, deeper], dim=1))  # (B, 2, g, g)
            fused = shares[:, :1] * fused + shares[:, 1:] * deeper
        return self.outer(fused), fused


class ReviewKDSpec(BlockObjectiveSpec):
    """Fusion from deep to shallow."""

    name: Literal["review_kd"]
    layers: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="blocks of f, negative from the last; default the last of each quarter, 2, 5, 8 and 11 of 12",
    )
    mid_dim: int = Field(default=256, ge=1, le=8192, description="width in which layers are fused")
    warmup_epochs: int = Field(default=20, ge=0, description="over which its weight rises from near 0")

    def tap(self, *, depth: int, student_depth: int) -> Taps:
        """Return the layers and the student's at the same relative depth."""
        if self.layers is None:
            parts = min(4, depth, student_depth)
            return Taps(_ends(depth, parts), _ends(student_depth, parts), self.source)
        return self.taps_at(self.layers, "layers", depth=depth, student_depth=student_depth)

    def build(self, taps: Taps, shapes: TileShapes) -> TileObjective:
        """Return its module with fresh weights."""
        return ReviewKD(self, taps, shapes)


def _ends(depth: int, parts: int) -> tuple[int, ...]:
    """Return the last block of each of so many parts of an encoder."""
    return tuple(round(depth * part / parts) - 1 for part in range(1, parts + 1))


class ReviewKD(TileObjective):
    """See the module."""

    def __init__(self, spec: ReviewKDSpec, taps: Taps, shapes: TileShapes) -> None:
        super().__init__()
        self._spec, self.taps = spec, taps
        last = len(taps.layers) - 1
        self.fusions = nn.ModuleList(
            Fusion(shapes.student_dim, spec.mid_dim, shapes.teacher_dim, deepest=place == last)
            for place in range(len(taps.layers))
        )

    def forward(self, student: StudentTiles, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the term ``review_kd``."""
        taps, deeper = self.taps, None
        losses = []
        for place in reversed(range(len(taps.layers))):
            target = self.target(teacher, taps.layers[place])
            maps = student.layer_maps[taps.student_layers[place]]
            predicted, deeper = self.fusions[place](maps, deeper)
            predicted = pooled_to(predicted, target.values.shape[-1]).float()
            losses.append(pyramid_loss(predicted, target.standardised, target.valid))
        return {"review_kd": torch.stack(losses).sum(dim=0)}

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the config's, less at first."""
        rising = self._spec.warmup_epochs
        share = 1.0 if epoch is None or not rising else min(1.0, (epoch + 1) / rising)
        return {"review_kd": share * self._spec.weight}

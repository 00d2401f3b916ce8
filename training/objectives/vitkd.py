"""ViTKD (Yang et al. 2024, arXiv 2209.02432): shallow layers are mimicked, the last one is generated.

    L_mimic    = alpha sum over two shallow layers of ||f'_l - f_l||^2
    L_generate = beta / ratio ||G(masked f'_last) - f_last||^2 over the masked places

Squares are summed over places and dimensions and averaged over tiles, with alpha 3e-5, beta 3e-6 and half of the places masked
by a trained token; G is two 3 x 3 convolutions with a ReLU between. Defaults are the paper's, blocks 0, 1 and the last.

Choices. The mean over tiles is the batch's. In units of their standard deviation (``stage1.standardise``) the squares aren't
the paper's, nor is a sum over 16 children one over 196 tokens: the two weights keep their ratio. A linear layer brings f' to
f's width where they differ. In validation the same places are masked each time.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.objectives.base import (
    BlockObjectiveSpec,
    Projection,
    StudentTiles,
    Taps,
    TeacherTiles,
    TileObjective,
    TileShapes,
    pooled_to,
)


def summed_squares(prediction: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Return the sum of squared errors of each tile over dimensions and some places.

    Parameters
    ----------
    prediction, target : (B, D, h, w) tensors
    where : (B, h, w) bool tensor

    Returns
    -------
    (B,) tensor
    """
    squared = (prediction - target).square().sum(dim=1)  # (B, h, w)
    return (squared * where).sum(dim=(1, 2))


def random_mask(n: int, edge: int, ratio: float) -> Tensor:
    """Return (n, edge, edge) bool: in each row the same number of places, `ratio` of them rounded, drawn at random."""
    places = edge**2
    order = torch.rand(n, places).argsort(dim=1)  # on the CPU: the same on every device
    return (order.argsort(dim=1) < round(ratio * places)).reshape(n, edge, edge)


class ViTKDSpec(BlockObjectiveSpec):
    """Mimicking and masked generation."""

    name: Literal["vitkd"]
    mimic: tuple[int, ...] = Field(default=(0, 1), min_length=1, description="shallow blocks of f")
    generate: int = Field(default=-1, description="deep block of f, negative from the last")
    alpha: float = Field(default=3e-5, ge=0, description="of the mimicking")
    beta: float = Field(default=3e-6, ge=0, description="of the generation")
    mask: float = Field(default=0.5, gt=0, lt=1, description="share of places that are masked")

    def tap(self, *, depth: int, student_depth: int) -> Taps:
        """Return the shallow blocks and the deep one."""
        wanted = (*self.mimic, self.generate)
        return self.taps_at(wanted, "mimic, generate", depth=depth, student_depth=student_depth)

    def build(self, taps: Taps, shapes: TileShapes) -> TileObjective:
        """Return its module with fresh weights."""
        return ViTKD(self, taps, shapes)


class ViTKD(TileObjective):
    """See the module."""

    def __init__(self, spec: ViTKDSpec, taps: Taps, shapes: TileShapes) -> None:
        super().__init__()
        self._spec, self.taps = spec, taps
        dim = shapes.teacher_dim
        self.projections = nn.ModuleList(Projection(shapes.student_dim, dim) for _ in taps.layers)
        self.mask_token = nn.Parameter(torch.zeros(dim, 1, 1))
        self.generator = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1)
        )

    def forward(self, student: StudentTiles, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the terms ``vitkd_mimic`` and ``vitkd_generate``."""
        targets = [self.target(teacher, layer) for layer in self.taps.layers]
        maps = [
            project(pooled_to(student.layer_maps[layer], target.values.shape[-1]), target.scale)
            for project, layer, target in zip(
                self.projections, self.taps.student_layers, targets, strict=True
            )
        ]
        mimicked = [
            summed_squares(one, target.standardised, target.valid)
            for one, target in zip(maps[:-1], targets[:-1], strict=True)
        ]
        deep, target = maps[-1], targets[-1]
        masked = random_mask(len(deep), deep.shape[-1], self._spec.mask).to(deep.device)
        generated = self.generator(torch.where(masked[:, None], self.mask_token, deep)).float()
        squares = summed_squares(generated, target.standardised, masked & target.valid)
        return {
            "vitkd_mimic": torch.stack(mimicked).sum(dim=0),
            "vitkd_generate": squares / self._spec.mask,
        }

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the config's."""
        spec = self._spec
        return {"vitkd_mimic": spec.weight * spec.alpha, "vitkd_generate": spec.weight * spec.beta}

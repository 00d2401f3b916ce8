"""LRMIL's own terms, as objectives: what a run has whose config names none. Their numbers stand in ``[stage1]`` and ``[stage2]``.

Stage 1: lambda_layer L_layer + lambda_last L_last + lambda_attn L_attn; stage 2: l_bag KL + l_soft KL + l_hard (cross-entropy of
instances + ranking of the attention). The losses are those of `training.losses`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from napari_lrmil.model.encoder import child_means
from training.losses import (
    attention_kl,
    bag_kl,
    child_attention_loss,
    hard_attention_loss,
    hard_instance_loss,
    last_layer_loss,
    layer_loss,
    renormalised_weights,
    standardised,
)
from training.objectives.base import (
    BagObjective,
    BagObjectiveSpec,
    Need,
    SeenBag,
    StudentTiles,
    Taps,
    TeacherTiles,
    TileObjective,
    TileObjectiveSpec,
    TileShapes,
)


class TileNumbers(Protocol):
    """What ``[stage1]`` says of the terms."""

    @property
    def lambda_layer(self) -> float:
        """Of L_layer."""

    @property
    def lambda_last(self) -> float:
        """Of L_last."""

    @property
    def lambda_attn(self) -> float:
        """Of L_attn."""


class BagNumbers(Protocol):
    """What ``[stage2]`` says of the terms."""

    @property
    def l_bag(self) -> float:
        """Of the KL to the teacher's bag logits."""

    @property
    def l_soft(self) -> float:
        """Of the KL to its attention."""

    @property
    def l_hard(self) -> float:
        """Of the loss on the tiles that it attends to most and least."""

    @property
    def hard(self) -> Literal["instances", "attention", "both"]:
        """What l_hard trains."""

    @property
    def temperature_bag(self) -> float:
        """T_b."""

    @property
    def temperature_attention(self) -> float:
        """T_a."""

    @property
    def k(self) -> int:
        """Tiles at each end in the hard losses."""


# --- tiles


class LRMILTileSpec(TileObjectiveSpec):
    """LRMIL's terms of stage 1, by the keys of ``[stage1]``."""

    name: Literal["lrmil"]


class LRMILTile(TileObjective):
    """L_layer, L_last and L_attn, with a projection each where the widths differ.

    Parameters
    ----------
    numbers : TileNumbers
    taps : Taps
    shapes : TileShapes
    weight : float
        Of all of them.
    """

    def __init__(self, numbers: TileNumbers, taps: Taps, shapes: TileShapes, weight: float = 1.0) -> None:
        super().__init__()
        self.taps, self._ratio = taps, shapes.ratio
        self._weights = {
            "layer": weight * numbers.lambda_layer if taps.layers else 0.0,
            "last": weight * numbers.lambda_last,
            "attention": weight * numbers.lambda_attn,
        }
        same = shapes.student_dim == shapes.teacher_dim

        def projection() -> nn.Module:
            return nn.Identity() if same else nn.Linear(shapes.student_dim, shapes.teacher_dim)

        self.layer_projections = nn.ModuleList(projection() for _ in taps.layers)
        self.last_projection = projection()
        self.projection = projection()

    def forward(self, student: StudentTiles, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the terms ``layer``, ``last`` and ``attention``."""
        scales, valid = teacher.scales, teacher.valid
        of_final = scales.embedding.spread
        embedding = self.projection(student.embedding).float()
        last = self.last_projection(child_means(student.token_map[None], self._ratio)[0]).float()
        child_tokens, their_tokens = last.new_empty((0, *last.shape)), last.new_empty((0, *last.shape))
        spread = torch.ones_like(of_final)
        if self.taps.layers:
            maps = torch.stack([student.layer_maps[layer] for layer in self.taps.student_layers])
            means = child_means(maps, self._ratio)  # (L, B, K, D of the student)
            child_tokens = torch.stack(
                [project(layer) for project, layer in zip(self.layer_projections, means, strict=True)]
            ).float()
            their_tokens = torch.stack([teacher.child_layers[layer] for layer in self.taps.layers])
            spread = torch.stack([scales.layers[layer].spread for layer in self.taps.layers])[:, None, None]
        final = standardised(teacher.child_embeddings, of_final)
        return {
            "layer": layer_loss(
                standardised(child_tokens, spread), standardised(their_tokens, spread), valid
            ),
            "last": last_layer_loss(standardised(last, of_final), final, valid),
            "attention": child_attention_loss(
                standardised(embedding, of_final),
                final,
                renormalised_weights(teacher.child_scores, valid),
            ),
        }

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the config's."""
        return self._weights


# --- bags


class LRMILBagSpec(BagObjectiveSpec):
    """LRMIL's terms of stage 2, by the keys of ``[stage2]``."""

    needs: ClassVar[frozenset[Need]] = frozenset({"logits", "attention"})

    name: Literal["lrmil"]


class LRMILBag(BagObjective):
    """Bag logits, attention, and the tiles at its two ends.

    Parameters
    ----------
    numbers : BagNumbers
    weight : float
        Of all of them.
    instances : bool
        Whether the head classifies tiles as deciding or not; the instance logits of another say something else.
    """

    def __init__(self, numbers: BagNumbers, weight: float = 1.0, *, instances: bool = True) -> None:
        super().__init__()
        self._numbers, self._weight, self._instances = numbers, weight, instances

    def forward(self, seen: SeenBag) -> dict[str, Tensor]:
        """Return the terms ``bag``, ``soft`` and ``hard``; without those of an attention that a head lacks."""
        numbers, output, teacher = self._numbers, seen.output, seen.teacher
        terms = {"bag": numbers.l_bag * bag_kl(output.bag_logits, teacher.logits, numbers.temperature_bag)}
        guided, has_children = teacher.guided, teacher.has_children
        attention = output.attention_logits_for(seen.label)
        if guided is not None and has_children is not None:
            if attention is not None:
                soft = attention_kl(attention, guided, has_children, numbers.temperature_attention)
                terms["soft"] = numbers.l_soft * soft
            hard = self._hard(
                attention, output.instance_logits if self._instances else None, guided, has_children
            )
            if hard is not None:
                terms["hard"] = numbers.l_hard * hard
        return terms if self._weight == 1 else {name: self._weight * one for name, one in terms.items()}

    def _hard(
        self,
        attention_logits: Tensor | None,
        instance_logits: Tensor | None,
        guided: Tensor,
        has_children: Tensor,
    ) -> Tensor | None:
        hard, k = self._numbers.hard, self._numbers.k
        losses = []
        if hard != "attention" and instance_logits is not None:
            losses.append(hard_instance_loss(instance_logits, guided, has_children, k))
        if hard != "instances" and attention_logits is not None:
            losses.append(hard_attention_loss(attention_logits, guided, has_children, k))
        return torch.stack(losses).sum() if losses else None

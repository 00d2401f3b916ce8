"""LRMIL's own terms, as objectives: what a run has whose config names none. Their numbers stand in ``[stage1]`` and ``[stage2]``.

Stage 1: lambda_layer L_layer + lambda_last L_last + lambda_attn L_attn; stage 2: l_bag KL + l_soft KL + l_hard (cross-entropy of
instances + ranking of the attention). The losses are those of `training.losses`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from napari_lrmil.errors import ConfigError
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
        spreads, valid = teacher.spreads, teacher.valid
        embedding = self.projection(student.embedding).float()
        last = self.last_projection(child_means(student.token_map[None], self._ratio)[0]).float()
        child_tokens, their_tokens = last.new_empty((0, *last.shape)), last.new_empty((0, *last.shape))
        spread = torch.ones_like(spreads.embedding)
        if self.taps.layers:
            maps = torch.stack([student.layer_maps[layer] for layer in self.taps.student_layers])
            means = child_means(maps, self._ratio)  # (L, B, K, D of the student)
            child_tokens = torch.stack(
                [project(layer) for project, layer in zip(self.layer_projections, means, strict=True)]
            ).float()
            their_tokens = torch.stack([teacher.child_layers[layer] for layer in self.taps.layers])
            spread = torch.stack([spreads.layers[layer] for layer in self.taps.layers])[:, None, None]
        final = standardised(teacher.child_embeddings, spreads.embedding)
        return {
            "layer": layer_loss(
                standardised(child_tokens, spread), standardised(their_tokens, spread), valid
            ),
            "last": last_layer_loss(standardised(last, spreads.embedding), final, valid),
            "attention": child_attention_loss(
                standardised(embedding, spreads.embedding),
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
    """

    def __init__(self, numbers: BagNumbers, weight: float = 1.0) -> None:
        super().__init__()
        self._numbers, self._weight = numbers, weight

    def forward(self, seen: SeenBag) -> dict[str, Tensor]:
        """Return the terms ``bag``, ``soft`` and ``hard``; a head without attention has the first alone."""
        numbers, output, teacher = self._numbers, seen.output, seen.teacher
        terms = {"bag": numbers.l_bag * bag_kl(output.bag_logits, teacher.logits, numbers.temperature_bag)}
        attention = attention_of(output.attention_logits, seen.label)
        if attention is not None:
            if teacher.guided is None or teacher.has_children is None:
                raise ConfigError(
                    "stage2.objectives: lrmil needs the teacher's attention, gathered onto LR tiles, and these instances "
                    "aren't LR tiles"
                )
            soft = attention_kl(
                attention, teacher.guided, teacher.has_children, numbers.temperature_attention
            )
            terms["soft"] = numbers.l_soft * soft
            terms["hard"] = numbers.l_hard * self._hard(seen, attention)
        return terms if self._weight == 1 else {name: self._weight * one for name, one in terms.items()}

    def _hard(self, seen: SeenBag, attention: Tensor) -> Tensor:
        hard, k, instances = self._numbers.hard, self._numbers.k, seen.output.instance_logits
        guided, has_children = seen.teacher.guided, seen.teacher.has_children
        assert guided is not None
        assert has_children is not None
        loss = torch.zeros((), device=guided.device)
        if hard != "attention" and instances is not None and instances.shape[-1] == 2:
            loss = loss + hard_instance_loss(instances, guided, has_children, k)
        if hard != "instances":
            loss = loss + hard_attention_loss(attention, guided, has_children, k)
        return loss


def attention_of(attention_logits: Tensor | None, label: int) -> Tensor | None:
    """Return one attention logit a tile (N,): the only one, or that of the label where a head has one a class (A, N)."""
    if attention_logits is None or attention_logits.ndim == 1:
        return attention_logits
    return attention_logits[label if len(attention_logits) > 1 else 0]

"""What every distillation objective takes and returns: of tiles in stage 1, of bags in stage 2.

An objective is a spec (its name and numbers, in the config) and a module that the spec builds (its trained parameters, its
loss). What it needs of teacher and student it declares: `Taps` in stage 1, `needs` in stage 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import child_means
from napari_lrmil.model.mil import MILModel, MILOutput
from training.section import Section

Source = Literal["children", "lr"]
"""Whose words the student's tokens are compared with: f's class tokens of the HR children, as they are stored, or f's tokens of
the LR tile itself, which it reads beside the student."""

# --- tiles


@dataclass(frozen=True)
class Taps:
    """What an objective of tiles needs of f and f'.

    Attributes
    ----------
    layers : tuple of int
        Blocks of f, ascending.
    student_layers : tuple of int
        Blocks of f', one for each of `layers`.
    source : {"children", "lr"}
        Of f's words at these blocks.
    """

    layers: tuple[int, ...] = ()
    student_layers: tuple[int, ...] = ()
    source: Source = "children"

    @property
    def stored_layers(self) -> tuple[int, ...]:
        """Blocks of f whose class tokens of HR tiles must be stored."""
        return self.layers if self.source == "children" else ()


class StudentTiles(NamedTuple):
    """What f' says of B LR tiles, D dimensions, g x g tokens."""

    embedding: Tensor
    """(B, D) final class token"""
    token_map: Tensor
    """(B, D, g, g) tokens after the final norm"""
    layer_maps: Mapping[int, Tensor]
    """Block -> (B, D, g, g) tokens after it"""


class LRTeacher(NamedTuple):
    """What f says of the LR tiles themselves, D dimensions, g x g tokens."""

    embedding: Tensor
    """(B, D) final class token"""
    token_map: Tensor
    """(B, D, g, g) tokens after the final norm"""
    layer_maps: Mapping[int, Tensor]
    """Block -> (B, D, g, g) tokens after it"""


class Scale(NamedTuple):
    """Mean and standard deviation of a target over training tiles, (D,) each; zeros and ones where nothing is standardised."""

    mean: Tensor
    spread: Tensor


class Scales(NamedTuple):
    """Of all targets."""

    embedding: Scale
    """Of the children's final class tokens"""
    layers: Mapping[int, Scale]
    """Block -> of the children's class tokens after it"""
    lr_embedding: Scale
    """Of f's final class tokens of LR tiles"""
    lr_token_map: Scale
    """Of f's tokens of LR tiles after the final norm"""
    lr_layers: Mapping[int, Scale]
    """Block -> of f's tokens of LR tiles after it"""


class TeacherTiles(NamedTuple):
    """What f says of B LR tiles with K = ratio^2 children each, D dimensions."""

    child_embeddings: Tensor
    """(B, K, D) final class tokens"""
    child_layers: Mapping[int, Tensor]
    """Block -> (B, K, D) class tokens after it"""
    child_scores: Tensor
    """(B, K) the teacher head's attention scores, zeros where weighting is uniform"""
    valid: Tensor
    """(B, K) bool: children with tissue"""
    lr: LRTeacher | None
    """None where no objective reads it"""
    scales: Scales


class Target(NamedTuple):
    """A map of targets."""

    values: Tensor
    """(B, D, h, w) as f says them"""
    scale: Scale
    valid: Tensor
    """(B, h, w) bool"""

    @property
    def standardised(self) -> Tensor:
        """Less their mean, in units of their standard deviation, (B, D, h, w).

        What a trained layer predicts: it would take a bias of many standard deviations to reach the mean of early layers,
        which vary little around it, and a bias moves by the learning rate a step.
        """
        return standardised_map(self.values, self.scale)


class TileObjective(nn.Module):
    """A loss of stage 1 with its trained parameters.

    Attributes
    ----------
    taps : Taps
    """

    taps: Taps

    def forward(self, student: StudentTiles, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the terms of each tile by name, (B,) each, not weighted yet."""
        raise NotImplementedError

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the weight of each term in an epoch, from 0; None: at the end of any warm-up."""
        raise NotImplementedError

    def target(self, teacher: TeacherTiles, layer: int | None) -> Target:
        """Return the map that the student's tokens are compared with.

        Parameters
        ----------
        teacher : TeacherTiles
        layer : int, optional
            Block of f; None for the end of it, after the norm.

        Returns
        -------
        Target
            r x r of the children, or g x g of the LR tile.
        """
        if self.taps.source == "children":
            tokens = teacher.child_embeddings if layer is None else teacher.child_layers[layer]
            scale = teacher.scales.embedding if layer is None else teacher.scales.layers[layer]
            n, n_children, dim = tokens.shape
            edge = round(n_children**0.5)
            return Target(
                tokens.transpose(1, 2).reshape(n, dim, edge, edge),  # children row by row
                scale,
                teacher.valid.reshape(n, edge, edge),
            )
        assert teacher.lr is not None
        values = teacher.lr.token_map if layer is None else teacher.lr.layer_maps[layer]
        scale = teacher.scales.lr_token_map if layer is None else teacher.scales.lr_layers[layer]
        everywhere = torch.ones(values.shape[0], *values.shape[2:], dtype=torch.bool, device=values.device)
        return Target(values, scale, everywhere)


class TileShapes(NamedTuple):
    """What the module of an objective of tiles is built for."""

    student_dim: int
    teacher_dim: int
    ratio: int
    """Children along the edge of a tile"""


class TileObjectiveSpec(Section):
    """A term of ``[[stage1.objectives]]``; a subclass has ``name: Literal["..."]``."""

    name: str
    weight: float = Field(default=1.0, ge=0, description="of all its terms")

    def tap(self, *, depth: int, student_depth: int) -> Taps:
        """Return what it needs of f and f', which have so many blocks.

        Raises
        ------
        ConfigError
            Where an encoder has no such blocks.
        """
        raise NotImplementedError

    def build(self, taps: Taps, shapes: TileShapes) -> TileObjective:
        """Return its module with fresh weights."""
        raise NotImplementedError


class BlockObjectiveSpec(TileObjectiveSpec):
    """A term that compares blocks of f' with blocks of f."""

    source: Source = Field(
        default="children",
        description="children: f's class tokens of HR children, stored; lr: f's tokens of the LR tile",
    )

    def taps_at(self, wanted: tuple[int, ...], keys: str, *, depth: int, student_depth: int) -> Taps:
        """Return blocks of f as the config names them, and those of f' at the same relative depth; `keys` for errors."""
        layers = blocks_named(wanted, depth, f"stage1.objectives: {self.name}.{keys}")
        student = matched_blocks(layers, depth, student_depth, f"{self.name}.{keys}")
        return Taps(layers, student, self.source)


def blocks_named(wanted: tuple[int, ...], depth: int, key: str) -> tuple[int, ...]:
    """Return blocks of an encoder as 0, 1, ...; a negative one counts from the last.

    Parameters
    ----------
    wanted : tuple of int
    depth : int
        Blocks of the encoder.
    key : str
        Of the config, for the error.

    Raises
    ------
    ConfigError
        Where there is no such block, or they don't ascend.
    """
    found = tuple(block + depth if block < 0 else block for block in wanted)
    if list(found) != sorted(set(found)) or not all(0 <= block < depth for block in found):
        raise ConfigError(
            f"{key} {list(wanted)}: name blocks of 0..{depth - 1} in ascending order, each once (-1 is the last); this "
            f"encoder has {depth}"
        )
    return found


def matched_blocks(layers: tuple[int, ...], depth: int, student_depth: int, key: str) -> tuple[int, ...]:
    """Return the student's blocks at the same relative depth as the teacher's `layers`.

    Raises
    ------
    ConfigError
        Where a shallow student has too few for as many.
    """
    found = tuple(round(layer * (student_depth - 1) / max(1, depth - 1)) for layer in layers)
    if len(set(found)) < len(found):
        raise ConfigError(
            f"{key} {list(layers)} of f's {depth} blocks would fall on {list(found)} of the student's {student_depth}: name "
            "fewer layers"
        )
    return found


def standardised_map(maps: Tensor, scale: Scale) -> Tensor:
    """Return maps (B, D, h, w) less a mean, in units of a standard deviation."""
    return (maps - scale.mean[:, None, None]) / scale.spread[:, None, None]


class Projection(nn.Module):
    """Brings the student's tokens to the teacher's standardised ones: as they are where widths are equal, else linearly."""

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.linear = None if student_dim == teacher_dim else nn.Conv2d(student_dim, teacher_dim, 1)

    def forward(self, maps: Tensor, scale: Scale) -> Tensor:
        """Return (B, D, h, w) in the units of `Target.standardised`, float32."""
        if self.linear is None:
            return standardised_map(maps.float(), scale)
        projected: Tensor = self.linear(maps)
        return projected.float()


def pooled_to(maps: Tensor, edge: int) -> Tensor:
    """Return maps (B, D, g, g) as (B, D, edge, edge): the mean of each block, where g is larger.

    Raises
    ------
    EncoderError
        Where g is smaller.
    """
    if maps.shape[-1] == edge:
        return maps
    means = child_means(maps[None], edge)[0]  # (B, edge^2, D)
    return means.transpose(1, 2).reshape(len(maps), -1, edge, edge)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of each tile's values (B, h, w) over valid places, (B,); 0 where there is none."""
    mask = valid.to(values.dtype)
    return (values * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp_min(1)


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error of each tile over dimensions and valid places.

    Parameters
    ----------
    prediction, target : (B, D, h, w) tensors
    valid : (B, h, w) bool tensor

    Returns
    -------
    (B,) tensor
        0 where no place is valid.
    """
    return masked_mean((prediction - target).square().mean(dim=1), valid)


def masked_pool(maps: Tensor, valid: Tensor, edge: int) -> tuple[Tensor, Tensor]:
    """Return the mean of each block over its valid places, and which blocks have one.

    Parameters
    ----------
    maps : (B, D, h, w) tensor
    valid : (B, h, w) bool tensor
    edge : int
        At most h.

    Returns
    -------
    pooled : (B, D, edge, edge) tensor
        0 in a block without a valid place.
    any_valid : (B, edge, edge) bool tensor
    """
    mask = valid[:, None].to(maps.dtype)
    share = F.adaptive_avg_pool2d(mask, edge)
    pooled = F.adaptive_avg_pool2d(maps * mask, edge) / share.clamp_min(torch.finfo(maps.dtype).tiny)
    return pooled, share[:, 0] > 0


# --- bags


Need = Literal["logits", "attention", "embedding", "instances"]
"""Of the teacher: its bag's logits, its attention gathered onto the student's tiles, its bag embedding; of the student's head:
"instances", an instance classifier."""


class TeacherBag(NamedTuple):
    """What the teacher's head says of a training slide, C classes, the student's N tiles."""

    logits: Tensor
    """(C,) of the bag"""
    guided: Tensor | None = None
    """(N,) its attention on the student's tiles, see `guided_attention`; None where these aren't LR tiles"""
    has_children: Tensor | None = None
    """(N,) bool"""
    embedding: Tensor | None = None
    """(H,) of the bag; None where no objective asks for it"""


class SeenBag(NamedTuple):
    """One step of a student's head."""

    output: MILOutput
    embeddings: Tensor
    """(N, D) of the student's tiles"""
    label: int
    teacher: TeacherBag


class BagObjective(nn.Module):
    """A loss of stage 2 with its trained parameters, beside the cross-entropy with the label."""

    def forward(self, seen: SeenBag) -> dict[str, Tensor]:
        """Return the weighted terms by name, scalars."""
        raise NotImplementedError


@dataclass(frozen=True)
class BagShapes:
    """What the module of an objective of bags is built for.

    Attributes
    ----------
    embed_dim : int
        D of the student's tiles.
    n_classes : int
    bag_dim : int, optional
        H of the student's bag embedding; None where its head has none.
    teacher_bag_dim : int, optional
        Of the teacher's; None where its head has none, or no objective asks for it.
    class_shares : tuple of float
        Share of each class among the training slides.
    """

    embed_dim: int
    n_classes: int
    bag_dim: int | None = None
    teacher_bag_dim: int | None = None
    class_shares: tuple[float, ...] = field(default=())

    @classmethod
    def of_head(
        cls,
        head: MILModel,
        *,
        embed_dim: int,
        n_classes: int,
        teacher_bag_dim: int | None,
        class_shares: tuple[float, ...],
    ) -> BagShapes:
        """Return them as a head has them, which is asked about a bag of one empty tile; not one of several magnifications."""
        if head.magnifications != 1:
            return cls(embed_dim, n_classes, None, teacher_bag_dim, class_shares)
        training = head.training
        head.eval()
        with torch.no_grad():
            embedding = head(next(head.parameters()).new_zeros((1, embed_dim))).bag_embedding
        head.train(training)
        return cls(
            embed_dim,
            n_classes,
            None if embedding is None else embedding.shape[-1],
            teacher_bag_dim,
            class_shares,
        )


class BagObjectiveSpec(Section):
    """A term of ``[[stage2.objectives]]``."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    weight: float = Field(default=1.0, ge=0, description="of all its terms")

    def build(self, shapes: BagShapes) -> BagObjective:
        """Return its module with fresh weights.

        Raises
        ------
        ConfigError
            Where the heads haven't got what it needs.
        """
        raise NotImplementedError

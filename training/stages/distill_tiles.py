"""Step 3, stage 1: the student encoder learns the teacher's view of an LR tile's children."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.bundle import stored_weights
from napari_lrmil.model.encoder import Encoder, EncoderOutput
from training.data.pairs import PairBatch, PairLoader, SlidePairs
from training.data.store import EmbeddingStore
from training.data.tile_index import SlideTiles, TileGeometry
from training.encoders import train_last_blocks
from training.loop import Recipe, Session, Task, fit
from training.objectives import AnyTileObjective, TileObjective
from training.objectives.base import (
    LRTeacher,
    Scale,
    Scales,
    StudentTiles,
    Taps,
    TeacherTiles,
    TileShapes,
)
from training.objectives.lrmil import LRMILTile, LRMILTileSpec
from training.section import Section
from training.seeds import Seeds

PAIRS_PER_EPOCH = 300_000
"""At most, where the config doesn't say: five such epochs of a ViT-L are hours on a GPU, every pair of 1,000 slides days."""


class Stage1Section(Section):
    """Tile-level distillation: L1 = lambda_layer L_layer + lambda_last L_last + lambda_attn L_attn, or other objectives."""

    objectives: tuple[AnyTileObjective, ...] = Field(
        default=(),
        max_length=20,
        exclude_if=lambda value: not value,  # what is made without them keeps its key
        description="what f' learns, [[stage1.objectives]] with name = lrmil, hints, review_kd, tat, vitkd or "
        "class_and_tokens (docs/objectives.md), their terms added; default: lrmil, by the lambdas here",
    )
    layers: tuple[int, ...] = Field(
        default=(),
        description="early blocks of f whose tokens are matched, the paper's [0, 1, 10] of 12; none by default: beside "
        "L_last they took away from what a pretrained f' learned",
    )
    lambda_layer: float = Field(
        default=1.0, ge=0, description="of L_layer: token blocks against the children's class tokens"
    )
    lambda_last: float = Field(
        default=1.0,
        ge=0,
        description="of L_last: token blocks after the final norm against the children's final class tokens",
    )
    lambda_attn: float = Field(
        default=1.0, ge=0, description="of L_attn: final class token against the children's, weighted"
    )
    standardise: bool = Field(
        default=True,
        description="errors in units of the targets' standard deviation, of each dimension and layer, on training tiles: "
        "else a few dimensions, and the layers of the largest numbers, are all that is learned",
    )
    weighting: Literal["uniform", "attention"] = Field(
        default="uniform",
        description="of the children in L_attn; uniform needs no labels, so one encoder serves all folds",
    )
    scope: Literal["auto", "shared", "fold"] = Field(
        default="auto",
        description="one f' for all folds, or one a fold; auto: one a fold, but for slides that serve all folds alike "
        "(unlabelled, all)",
    )
    slides: Literal["train", "unlabelled", "all"] = Field(
        default="train",
        description="whose pixels f' learns from. train: the fold's training slides and unlabelled slides of other "
        "patients; unlabelled: these alone; all: every slide of the table, which is transductive (no label is used, but "
        "f' has read the pixels of validation and test slides, which no baseline has) and is called so in table, card "
        "and report",
    )
    seeds: Seeds | None = Field(
        default=None, description="of encoders f', as run.seeds are of heads: each is trained once with each"
    )
    blocks: int | None = Field(
        default=None,
        ge=1,
        description="of f' that are trained: the last so many and the norm after them, those below stay as in f and need no "
        "graph; default all, and the stem",
    )
    epochs: int = Field(default=5, ge=1, description="the one with the least validation loss is kept")
    pairs_per_epoch: int | None = Field(
        default=None,
        ge=0,
        description=f"drawn anew each time, over all slides; default: {PAIRS_PER_EPOCH:,} or all, where there are fewer; 0: all",
    )
    val_pairs: int = Field(default=512, ge=1, description="of validation slides, to choose the epoch")
    shifted: bool = Field(default=True, description="LR tiles start at every HR grid position")
    turned: bool = Field(
        default=False,
        description="tiles are turned and flipped, their children permuted, and the targets are f's mean over the 8 turns "
        "of a child: embedding HR tiles takes 8 times as long. What f says of a turned tile can be as far from what it "
        "says of the tile as another tile is",
    )
    min_children: float = Field(
        default=0.25, gt=0, le=1, description="share of a pair's children with tissue"
    )
    batch_size: int = Field(default=32, ge=1, description="tiles a pass, over all processes together")
    accumulate: int = Field(default=1, ge=1, description="passes a step")
    checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, a third slower"
    )
    window_gib: float = Field(
        default=1.0,
        gt=0,
        description="of earlier versions, which held so much of the teacher's embeddings in memory; rows are read where they lie",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="peak, after a warm-up of 5 % of the steps")
    weight_decay: float = Field(default=0.02, ge=0, description="of AdamW")
    clip: float = Field(
        default=5.0,
        gt=0,
        description="longest gradient; inf: any. The curves say which share of steps it shortens",
    )

    @property
    def pair_limit(self) -> int | None:
        """Pairs of an epoch at most; None for all."""
        return PAIRS_PER_EPOCH if self.pairs_per_epoch is None else self.pairs_per_epoch or None

    @property
    def is_transductive(self) -> bool:
        """Whether f' learns from the pixels of validation and test slides."""
        return self.slides == "all"

    def serves_all_folds(self, n_folds: int) -> bool:
        """Whether one f' is trained for all folds of a run."""
        alike = self.slides == "all" or (self.slides == "unlabelled" and n_folds > 1)
        return self.scope == "shared" or (self.scope == "auto" and alike)

    @property
    def learns_lrmil(self) -> bool:
        """Whether LRMIL's own terms are among the objectives."""
        return not self.objectives or any(one.name == "lrmil" for one in self.objectives)

    def recipe(self, seed: int) -> Recipe:
        """Return how the weights of f' are fitted."""
        return Recipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            seed=seed,
            accumulate=self.accumulate,
            warmup=True,
            clip=self.clip,
        )


TRANSDUCTIVE_NOTE = (
    'Stage 1 is transductive (stage1.slides = "all"): without their labels, the encoder has read the pixels of validation '
    "and test slides, which on new slides it has not."
)


class Spread(NamedTuple):
    """Standard deviations of the targets over training tiles, and their means, D dimensions; ones and zeros where nothing is
    standardised."""

    layers: Tensor
    """(L, 1, 1, D)"""
    embedding: Tensor
    """(D,)"""
    layer_means: Tensor
    """(L, D)"""
    mean: Tensor
    """(D,) of the embeddings"""


class Distiller(nn.Module):
    """The student, with the objectives that it learns from and their trained parameters.

    Parameters
    ----------
    student : Encoder
    objectives : mapping of str to TileObjective
        By name.
    blocks : int, optional
        Of the student, the last ones, that are trained; all of it by default.
    """

    def __init__(
        self, student: Encoder, objectives: Mapping[str, TileObjective], *, blocks: int | None = None
    ) -> None:
        super().__init__()
        student.requires_grad_(True)
        if blocks is not None:
            train_last_blocks(student, blocks)
        self.student = student
        self.objectives = nn.ModuleDict(objectives)
        self._layers = _tapped(one.taps.student_layers for one in objectives.values())

    def forward(self, tiles: Tensor, teacher: TeacherTiles) -> dict[str, Tensor]:
        """Return the terms of all objectives of each tile, (B,) each, not weighted yet.

        Parameters
        ----------
        tiles : (B, T, T, 3) uint8 tensor
        teacher : TeacherTiles
        """
        output = self.student(self.student.preprocess(tiles), self._layers)
        maps = dict(zip(self._layers, output.layer_token_maps.unbind(), strict=True))
        seen = StudentTiles(output.embedding, output.token_map, maps)
        terms: dict[str, Tensor] = {}
        for objective in self.objectives.values():
            terms |= objective(seen, teacher)
        return terms

    def weights(self, epoch: int | None) -> dict[str, float]:
        """Return the weight of each term in an epoch; None: at the end of any warm-up."""
        found: dict[str, float] = {}
        for objective in self.objectives.values():
            assert isinstance(objective, TileObjective)
            found |= objective.weights(epoch)
        return found


def _tapped(parts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({layer for part in parts for layer in part}))


def tile_taps(
    section: Stage1Section, own_layers: tuple[int, ...] | None, *, depth: int, student_depth: int
) -> dict[str, Taps]:
    """Return what each objective of stage 1 needs of f and f', by its name.

    Parameters
    ----------
    section : Stage1Section
    own_layers : tuple of int, optional
        ``student.layers``.
    depth, student_depth : int
        Blocks of f and of f'.

    Raises
    ------
    ConfigError
        Where an encoder has no such blocks.
    """
    taps: dict[str, Taps] = {}
    for spec in _specs(section):
        if isinstance(spec, LRMILTileSpec):
            own = student_layers(own_layers, section.layers, depth=student_depth, teacher_depth=depth)
            taps[spec.name] = Taps(section.layers, own)
        else:
            taps[spec.name] = spec.tap(depth=depth, student_depth=student_depth)
    return taps


def target_layers(taps: Mapping[str, Taps]) -> tuple[int, ...]:
    """Return the blocks of f whose class tokens of HR tiles are targets of stage 1."""
    return _tapped(one.stored_layers for one in taps.values())


def reads_lr(taps: Mapping[str, Taps]) -> bool:
    """Whether f reads LR tiles beside f' in stage 1."""
    return any(one.source == "lr" for one in taps.values())


def tile_objectives(
    section: Stage1Section, taps: Mapping[str, Taps], shapes: TileShapes
) -> dict[str, TileObjective]:
    """Return the objectives of stage 1 with fresh weights, by name; `taps` as `tile_taps` gives them."""
    return {
        spec.name: LRMILTile(section, taps[spec.name], shapes, spec.weight)
        if isinstance(spec, LRMILTileSpec)
        else spec.build(taps[spec.name], shapes)
        for spec in _specs(section)
    }


def _specs(section: Stage1Section) -> tuple[AnyTileObjective, ...]:
    return section.objectives or (LRMILTileSpec(name="lrmil"),)


def student_layers(
    wanted: tuple[int, ...] | None, layers: tuple[int, ...], *, depth: int, teacher_depth: int
) -> tuple[int, ...]:
    """Return the student's blocks that are matched with the teacher's `layers`.

    Parameters
    ----------
    wanted : tuple of int, optional
        As the config names them; None takes those at the same relative depth.
    layers : tuple of int
        The teacher's.
    depth, teacher_depth : int
        Numbers of blocks.

    Raises
    ------
    ConfigError
        Where a shallow student has too few blocks for as many layers.
    """
    if wanted is not None:
        return wanted
    if depth == teacher_depth:
        return layers
    found = tuple(round(layer * (depth - 1) / max(1, teacher_depth - 1)) for layer in layers)
    if len(set(found)) < len(found):
        raise ConfigError(
            f"the student has {depth} blocks and the teacher {teacher_depth}: stage1.layers {list(layers)} would fall on "
            f"{list(found)}. Name the student's blocks in student.layers, or fewer of the teacher's in stage1.layers."
        )
    return found


_MOST_SLIDES, _MOST_TILES = 200, 2000
"""Of which the spread of the targets is taken, and the tiles of each."""
_LEAST_SPREAD = 1e-2
"""Of a dimension, as a share of the mean spread of all: one that never changes isn't blown up."""
_MEASURED, _LEAST_APART = 4, 20
"""Batches of an epoch of which each term's gradient is measured alone, and how far apart they are at the least: a measured
batch takes three times as long. A short epoch has its first one measured."""
_LR_BATCHES, _LR_SEED = 8, 2**31
"""Of which the spread of f's words on LR tiles is taken, and what makes their order another one than an epoch's."""


def spread_of_targets(
    section: Stage1Section,
    slides: Sequence[SlideTiles],
    store: EmbeddingStore,
    layers: tuple[int, ...] | None = None,
) -> Spread:
    """Return the standard deviations of the teacher's targets over the tiles of some slides, float32.

    Of many slides 200, evenly spaced, and of each 2,000 tiles at most.

    Parameters
    ----------
    section : Stage1Section
    slides : sequence of SlideTiles
        The training slides.
    store : EmbeddingStore
        Of their HR tiles.
    layers : tuple of int, optional
        See `target_layers`; by default ``stage1.layers``.
    """
    # Where nothing is standardised one slide tells the shapes.
    chosen = [slides[place] for place in _evenly(len(slides), _MOST_SLIDES if section.standardise else 1)]
    wanted = section.layers if layers is None else layers
    places = layer_places(wanted, store)

    def spread(name: str) -> tuple[Tensor, Tensor]:
        n, total, squares = 0, np.zeros(1), np.zeros(1)
        for tiles in chosen:
            # Whether the files are as they were written is looked at when a slide is trained on.
            of_layers = places if name == target_array("layer_class_tokens", section) else None
            with store.rows(tiles.row.slide_id, name, check=False) as rows:
                values = rows.take(_evenly(rows.n_rows, _MOST_TILES), of_layers).astype(np.float64)
            n += values.shape[-2]
            total = total + values.sum(axis=-2)
            squares = squares + np.square(values).sum(axis=-2)
        deviation = _not_too_small(np.sqrt(np.maximum(squares / n - np.square(total / n), 0)))  # ([L,] D)
        return deviation, torch.from_numpy((total / n).astype(np.float32))

    embedding, mean = spread(target_array("embedding", section))
    of_layers, means = torch.ones(0, len(embedding)), torch.zeros(0, len(embedding))
    if wanted:
        of_layers, means = spread(target_array("layer_class_tokens", section))
    found = Spread(of_layers[:, None, None], embedding, means, mean)
    if section.standardise:
        return found
    ones = (torch.ones_like(one) for one in found[:2])
    return Spread(*ones, *(torch.zeros_like(one) for one in found[2:]))


def _not_too_small(deviation: NDArray[np.float64]) -> Tensor:
    least = np.maximum(_LEAST_SPREAD * deviation.mean(axis=-1, keepdims=True), np.finfo(np.float16).tiny)
    return torch.from_numpy(np.maximum(deviation, least).astype(np.float32))


class _LRTargets:
    """What f says of the LR tiles that f' reads, and how much that varies.

    Parameters
    ----------
    teacher : Encoder
        f, frozen, in eval mode.
    layers : tuple of int
        Its blocks whose tokens are targets.
    fabric : Fabric
    """

    def __init__(self, teacher: Encoder, layers: tuple[int, ...], fabric: Fabric) -> None:
        self._teacher, self._layers, self._fabric = teacher, layers, fabric

    def __call__(self, tiles: Tensor) -> LRTeacher:
        """Read tiles (B, T, T, 3), uint8."""
        with torch.no_grad(), self._fabric.autocast():
            output: EncoderOutput = self._teacher(self._teacher.preprocess(tiles), self._layers)
        maps = output.layer_token_maps.float().unbind()
        of_layers = dict(zip(self._layers, maps, strict=True))
        return LRTeacher(output.embedding.float(), output.token_map.float(), of_layers)

    def scales(self, batches: Iterable[PairBatch]) -> tuple[Scale, Scale, dict[int, Scale]]:
        """Return mean and spread of embedding, tokens and each block's tokens over the tiles of some batches."""
        moments: dict[object, tuple[Tensor, Tensor, Tensor]] = {}

        def add(key: object, values: Tensor) -> None:
            values = values.double() if values.device.type != "mps" else values
            rows = values if values.ndim == 2 else values.transpose(0, 1).flatten(1).T  # (n, D)
            found = (rows.new_tensor(len(rows)), rows.sum(dim=0), rows.square().sum(dim=0))
            before = moments.get(key)
            moments[key] = (
                found if before is None else tuple(a + b for a, b in zip(before, found, strict=True))  # type: ignore[assignment]  # three each
            )

        for batch in batches:
            said = self(batch.tiles.to(self._fabric.device))
            add("embedding", said.embedding)
            add("token_map", said.token_map)
            for layer, maps in said.layer_maps.items():
                add(layer, maps)

        def scale(key: object) -> Scale:
            n, total, squares = (self._fabric.all_reduce(one, reduce_op="sum") for one in moments[key])
            assert isinstance(n, Tensor)
            assert isinstance(total, Tensor)
            assert isinstance(squares, Tensor)
            variance = (squares / n - (total / n).square()).clamp_min(0)
            spread = _not_too_small(variance.sqrt().cpu().numpy()).to(self._fabric.device)
            return Scale((total / n).to(spread), spread)

        return scale("embedding"), scale("token_map"), {layer: scale(layer) for layer in self._layers}


def target_array(name: str, section: Stage1Section) -> str:
    """Return the array of the store that holds a target: with turned tiles the mean over the turns."""
    return f"turned_{name}" if section.turned else name


def layer_places(layers: tuple[int, ...], store: EmbeddingStore) -> tuple[int, ...] | None:
    """Return where some layers are among those that a store holds; None where it holds these alone."""
    stored = store.spec.get("layers")
    if not isinstance(stored, list) or tuple(stored) == layers:
        return None
    return tuple(stored.index(layer) for layer in layers)


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def distill_encoder(
    student: Encoder,
    train: PairLoader,
    val: PairLoader,
    section: Stage1Section,
    session: Session,
    *,
    spread: Spread,
    teacher: Encoder,
    taps: Mapping[str, Taps],
    ratio: int,
    seed: int,
) -> None:
    """Train f' in place; no label is used.

    Parameters
    ----------
    student : Encoder
        f' before stage 1, on the session's device.
    train, val : PairLoader
        `val` only chooses the epoch.
    section : Stage1Section
    session : Session
    spread : Spread
        See `spread_of_targets`.
    teacher : Encoder
        f, frozen, in eval mode; it reads LR tiles where an objective wants that.
    taps : mapping of str to Taps
        See `tile_taps`.
    ratio : int
        Children along the edge of a tile.
    seed : int
    """
    fabric = session.fabric
    device = fabric.device
    shapes = TileShapes(student.embed_dim, teacher.embed_dim, ratio)
    model = Distiller(student, tile_objectives(section, taps, shapes), blocks=section.blocks).to(device)
    if section.checkpointing:
        student.set_grad_checkpointing(True)
    spread = Spread(*(value.to(device) for value in spread))
    layers = target_layers(taps)
    on_lr: _LRTargets | None = None
    as_it_is = Scale(torch.zeros_like(spread.mean), torch.ones_like(spread.embedding))
    lr_layers = _tapped(one.layers for one in taps.values() if one.source == "lr")
    of_lr = as_it_is, as_it_is, dict.fromkeys(lr_layers, as_it_is)
    if reads_lr(taps):
        on_lr = _LRTargets(teacher, lr_layers, fabric)
        if section.standardise:
            limit = _LR_BATCHES * section.batch_size
            rng = np.random.default_rng((seed, _LR_SEED))
            of_lr = on_lr.scales(train.batches(rng, limit=limit, turned=section.turned))
    of_layers = map(Scale, spread.layer_means, spread.layers[:, 0, 0])
    scales = Scales(Scale(spread.mean, spread.embedding), dict(zip(layers, of_layers, strict=True)), *of_lr)
    weights_of_terms = model.weights(None)
    steps = train.steps(section.pair_limit)
    notes: dict[str, list[Tensor]] = {}
    """Of each weighted term, the lengths of its own gradient"""

    def terms_of(wrapped: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        """The terms of each tile (B,), not weighted yet."""
        said = TeacherTiles(
            batch.child_embeddings,
            dict(zip(layers, batch.child_layer_tokens, strict=True)),
            batch.child_scores,
            batch.valid,
            None if on_lr is None else on_lr(batch.tiles),
            scales,
        )
        terms: dict[str, Tensor] = wrapped(batch.tiles, said)
        return terms

    def losses(wrapped: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        batch = batch.to(device)
        terms = terms_of(wrapped, batch)
        per_tile = torch.stack([weights_of_terms[name] * term for name, term in terms.items()]).sum(dim=0)
        logged = {name: batch.weight * term.detach().mean() for name, term in terms.items()}
        return {"loss": batch.weight * per_tile.mean(), "per_tile": per_tile.detach()} | logged

    def measure(batch: PairBatch) -> None:
        """Note the length of each weighted term's own gradient, on the whole of a batch."""
        batch = batch.to(device)
        kept = {name: value.clone() for name, value in model.named_buffers()}  # running means of a batch norm
        with fabric.autocast():
            terms = terms_of(model, batch)
        parameters = [one for one in model.parameters() if one.requires_grad]
        for name, term in terms.items():
            if weights_of_terms[name]:
                loss = batch.weight * weights_of_terms[name] * term.mean()
                found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                # The length of the mean over processes, not the mean of their parts' lengths.
                means = [fabric.all_reduce(one.float(), reduce_op="mean") for one in found if one is not None]
                squares = [one.square().sum() for one in means if isinstance(one, Tensor)]
                notes.setdefault(name, []).append(torch.stack(squares).sum().sqrt())
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(kept[name])

    def batches(epoch: int, start: int = 0) -> Iterator[PairBatch]:
        rng = np.random.default_rng((seed, epoch))
        weights_of_terms.update(model.weights(epoch))
        every = max(_LEAST_APART, steps // _MEASURED)
        loaded = train.batches(rng, limit=section.pair_limit, turned=section.turned, start=start)
        for place, batch in enumerate(loaded, start=start):
            if place % every == 0 and place < _MEASURED * every:
                measure(batch)
            yield batch

    def validate() -> dict[str, float]:
        sums = torch.zeros(2, dtype=torch.float32, device=device)
        rng = np.random.default_rng(seed)
        weights_of_terms.update(model.weights(None))  # epochs of a warm-up are compared by one measure
        with torch.random.fork_rng(devices=()), torch.inference_mode(), fabric.autocast():
            torch.manual_seed(seed)  # what an objective draws at random: the same each time
            for batch in val.batches(rng, limit=section.val_pairs, turned=False):
                if batch.weight:  # else it is there for a training step's sake only
                    loss = losses(model, batch)["per_tile"]
                    sums += torch.stack([loss.sum(), loss.new_tensor(len(loss))])
        everywhere = fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(everywhere, Tensor)
        total, count = everywhere.tolist()
        metrics = {"val_loss": total / count}
        for name, values in notes.items():
            metrics[f"train_gradient_{name}"] = float(torch.stack(values).mean())
        return metrics

    task = Task(
        batches=batches,
        steps_per_epoch=steps,
        losses=losses,
        validate=validate,
        score=lambda metrics: (-metrics["val_loss"],),
        names=slides_of_broken_tiles,
        size=lambda batch: batch.n_pairs,
        rest=batches,
        notes=notes,
    )
    fit(model, task, section.recipe(seed), session)
    # Rounded: what is evaluated is what a bundle serves.
    student.vit.load_state_dict(stored_weights(student.vit.state_dict()))


def pair_loader(
    slides: Sequence[SlideTiles],
    section: Stage1Section,
    geometry: TileGeometry,
    store: EmbeddingStore,
    *,
    scores: Callable[[str], NDArray[np.float32]] | None,
    threads: int,
    layers: tuple[int, ...] | None = None,
    rank: int = 0,
    world: int = 1,
) -> PairLoader:
    """Return the pairs of some slides as stage 1 takes them.

    Parameters
    ----------
    slides : sequence of SlideTiles
    section : Stage1Section
    geometry : TileGeometry
    store : EmbeddingStore
        Of f on the HR tiles, with the class token after each of `layers`.
    scores : callable, optional
        Slide id -> (M,) attention scores of its HR tiles; None for uniform weights.
    threads : int
        Tiles decoded at once.
    layers : tuple of int, optional
        See `target_layers`; by default ``stage1.layers``.
    rank, world : int
        Of this process.

    Raises
    ------
    ConfigError
        Where there is no pair at all.
    """
    layers = section.layers if layers is None else layers
    pairs = [
        SlidePairs(tiles, ratio=geometry.ratio, shifted=section.shifted, min_children=section.min_children)
        for tiles in slides
    ]
    if not any(len(item) for item in pairs):
        raise ConfigError(
            f"stage 1: none of {len(pairs)} slides has an LR tile of which {section.min_children:.0%} of the children "
            "hold tissue (stage1.min_children)"
        )
    return PairLoader(
        pairs,
        geometry,
        store,
        scores=scores,
        embeddings=target_array("embedding", section),
        layer_tokens=target_array("layer_class_tokens", section) if layers else None,
        layer_places=layer_places(layers, store),
        batch_size=section.batch_size,
        threads=threads,
        rank=rank,
        world=world,
    )


def slides_of_broken_tiles(batch: PairBatch, losses: dict[str, Tensor]) -> str:
    """Return the slides whose loss isn't a number; all of the batch where none stands out."""
    finite = torch.isfinite(losses["per_tile"]).tolist()
    bad = sorted({name for name, fine in zip(batch.slide_ids, finite, strict=True) if not fine})
    names = bad or sorted(set(batch.slide_ids))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

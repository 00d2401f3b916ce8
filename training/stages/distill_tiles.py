"""Step 3, stage 1: the student encoder learns the teacher's view of an LR tile's children."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.bundle import stored_weights
from napari_lrmil.model.encoder import Encoder, child_means
from training.data.pairs import PairBatch, PairLoader, SlidePairs
from training.data.store import EmbeddingStore
from training.data.tile_index import SlideTiles, TileGeometry
from training.loop import Recipe, Session, Task, fit
from training.losses import child_attention_loss, layer_loss, renormalised_weights
from training.section import Section
from training.seeds import Seeds


class Stage1Section(Section):
    """Tile-level distillation: L1 = lambda_layer L_layer + lambda_attn L_attn."""

    layers: tuple[int, ...] = Field(
        default=(0, 1, 10), description="blocks of f whose tokens are matched; none: L_attn alone"
    )
    lambda_layer: float = Field(
        default=1.0, ge=0, description="of L_layer: token blocks against the children's class tokens"
    )
    lambda_attn: float = Field(
        default=1.0, ge=0, description="of L_attn: final class token against the children's, weighted"
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
    epochs: int = Field(default=5, ge=1, description="the one with the least validation loss is kept")
    pairs_per_epoch: int | None = Field(default=None, ge=1, description="sampled; default every pair")
    val_pairs: int = Field(default=512, ge=1, description="of validation slides, to choose the epoch")
    shifted: bool = Field(default=True, description="LR tiles start at every HR grid position")
    turned: bool = Field(default=True, description="tiles are turned and flipped, their children permuted")
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
        description="teacher embeddings held in memory; pairs are shuffled within such a window",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="peak, after a warm-up of 5 % of the steps")
    weight_decay: float = Field(default=0.02, ge=0, description="of AdamW")

    @property
    def is_transductive(self) -> bool:
        """Whether f' learns from the pixels of validation and test slides."""
        return self.slides == "all"

    def recipe(self, seed: int) -> Recipe:
        """Return how the weights of f' are fitted."""
        return Recipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            seed=seed,
            accumulate=self.accumulate,
            warmup=True,
        )


TRANSDUCTIVE_NOTE = (
    'Stage 1 is transductive (stage1.slides = "all"): without their labels, the encoder has read the pixels of validation '
    "and test slides, which on new slides it has not."
)


class DistillerOutput(NamedTuple):
    """What the student says of B tiles, in the teacher's dimensions."""

    child_tokens: Tensor
    """(L, B, K, D) means of the token blocks"""
    embedding: Tensor
    """(B, D)"""


class Distiller(nn.Module):
    """The student, with a projection per matched layer where its width isn't the teacher's.

    Parameters
    ----------
    student : Encoder
    teacher_dim : int
        D of the teacher.
    layers : tuple of int
        The student's blocks to match.
    ratio : int
        Children along the edge of a tile.
    """

    def __init__(self, student: Encoder, *, teacher_dim: int, layers: tuple[int, ...], ratio: int) -> None:
        super().__init__()
        self.student, self._layers, self._ratio = student, layers, ratio
        same = student.embed_dim == teacher_dim

        def projection() -> nn.Module:
            return nn.Identity() if same else nn.Linear(student.embed_dim, teacher_dim)

        self.layer_projections = nn.ModuleList(projection() for _ in layers)
        self.projection = projection()

    def forward(self, tiles: Tensor) -> DistillerOutput:
        """Embed tiles (B, T, T, 3), uint8."""
        output = self.student(self.student.preprocess(tiles), self._layers)
        embedding = self.projection(output.embedding).float()
        if not self._layers:
            return DistillerOutput(
                embedding.new_empty((0, len(tiles), self._ratio**2, embedding.shape[1])), embedding
            )
        means = child_means(output.layer_token_maps, self._ratio)  # (L, B, K, D of the student)
        projected = [project(layer) for project, layer in zip(self.layer_projections, means, strict=True)]
        return DistillerOutput(torch.stack(projected).float(), embedding)


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


def distill_encoder(
    student: Encoder,
    train: PairLoader,
    val: PairLoader,
    section: Stage1Section,
    session: Session,
    *,
    teacher_dim: int,
    layers: tuple[int, ...],
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
    teacher_dim : int
        D of f.
    layers : tuple of int
        The student's blocks that are matched with ``section.layers``; see `student_layers`.
    ratio : int
        Children along the edge of a tile.
    seed : int
    """
    fabric = session.fabric
    device = fabric.device
    model = Distiller(student, teacher_dim=teacher_dim, layers=layers, ratio=ratio).to(device)
    if section.checkpointing:
        student.set_grad_checkpointing(True)

    def losses(wrapped: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        batch = batch.to(device)
        output = DistillerOutput(*wrapped(batch.tiles))
        layer = layer_loss(output.child_tokens, batch.child_layer_tokens, batch.valid)
        weights = renormalised_weights(batch.child_scores, batch.valid)
        attention = child_attention_loss(output.embedding, batch.child_embeddings, weights)
        per_tile = section.lambda_layer * layer + section.lambda_attn * attention  # (B,)
        return {
            "loss": batch.weight * per_tile.mean(),
            "layer": batch.weight * layer.detach().mean(),
            "attention": batch.weight * attention.detach().mean(),
            "per_tile": per_tile.detach(),
        }

    def batches(epoch: int) -> Iterator[PairBatch]:
        rng = np.random.default_rng((seed, epoch))
        return train.batches(rng, limit=section.pairs_per_epoch, turned=section.turned)

    def validate() -> dict[str, float]:
        sums = torch.zeros(2, dtype=torch.float32, device=device)
        rng = np.random.default_rng(seed)
        with torch.inference_mode(), fabric.autocast():
            for batch in val.batches(rng, limit=section.val_pairs, turned=False):
                if batch.weight:  # else it is there for a training step's sake only
                    loss = losses(model, batch)["per_tile"]
                    sums += torch.stack([loss.sum(), loss.new_tensor(len(loss))])
        everywhere = fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(everywhere, Tensor)
        total, count = everywhere.tolist()
        return {"val_loss": total / count}

    task = Task(
        batches=batches,
        steps_per_epoch=train.steps(section.pairs_per_epoch),
        losses=losses,
        validate=validate,
        score=lambda metrics: (-metrics["val_loss"],),
        names=slides_of_broken_tiles,
        size=lambda batch: batch.n_pairs,
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
    teacher_dim: int,
    scores: Callable[[str], NDArray[np.float32]] | None,
    threads: int,
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
        Of f on the HR tiles, with the class token after each of ``section.layers``.
    teacher_dim : int
        D of f.
    scores : callable, optional
        Slide id -> (M,) attention scores of its HR tiles; None for uniform weights.
    threads : int
        Tiles decoded at once.
    rank, world : int
        Of this process.

    Raises
    ------
    ConfigError
        Where there is no pair at all.
    """
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
        with_layers=bool(section.layers),
        batch_size=section.batch_size,
        threads=threads,
        window_bytes=section.window_gib * 2**30,
        bytes_per_tile=2 * teacher_dim * (1 + len(section.layers)),
        rank=rank,
        world=world,
    )


def slides_of_broken_tiles(batch: PairBatch, losses: dict[str, Tensor]) -> str:
    """Return the slides whose loss isn't a number; all of the batch where none stands out."""
    finite = torch.isfinite(losses["per_tile"]).tolist()
    bad = sorted({name for name, fine in zip(batch.slide_ids, finite, strict=True) if not fine})
    names = bad or sorted(set(batch.slide_ids))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

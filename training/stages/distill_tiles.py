"""Step 3, stage 1: the student encoder learns the teacher's view of an LR tile's children."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import Encoder, child_means
from training.checkpoint import Files
from training.data.pairs import PairBatch, PairLoader, SlidePairs
from training.data.tile_index import SlideTiles
from training.loop import fit
from training.losses import child_attention_loss, layer_loss, renormalised_weights
from training.run_dir import load_tensors, save_tensors
from training.stages.context import Context


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
        """(B, T, T, 3) uint8 tiles -> `DistillerOutput`."""
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
    """The student's blocks that are matched with the teacher's `layers`.

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
    context: Context,
    train: Sequence[SlideTiles],
    val: Sequence[SlideTiles],
    teacher: Encoder,
    *,
    out: Path,
    files: Files,
    teacher_outputs: Path | None,
) -> None:
    """Train f' and write its weights.

    Parameters
    ----------
    context : Context
    train, val : sequences of SlideTiles
        `val` only chooses the epoch; no label is used.
    teacher : Encoder
        f, frozen.
    out : Path
        For the weights.
    files : Files
    teacher_outputs : Path, optional
        The fold's teacher outputs where children are weighted by attention; None for uniform weights.
    """
    config, runtime = context.config.stage1, context.runtime
    student = context.new_student(teacher)
    model = Distiller(
        student,
        teacher_dim=teacher.embed_dim,
        layers=student_layers(
            context.config.student.layers, config.layers, depth=student.depth, teacher_depth=teacher.depth
        ),
        ratio=context.geometry.ratio,
    ).to(context.device)
    if config.checkpointing:
        student.set_grad_checkpointing(True)
    train_loader = _loader(context, train, teacher_outputs, teacher.embed_dim)
    val_loader = _loader(context, val, None, teacher.embed_dim)

    def losses_of(wrapped: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        batch = batch.to(context.device)
        output = DistillerOutput(*wrapped(batch.tiles))
        layer = layer_loss(output.child_tokens, batch.child_layer_tokens, batch.valid)
        weights = renormalised_weights(batch.child_scores, batch.valid)
        attention = child_attention_loss(output.embedding, batch.child_embeddings, weights)
        per_tile = config.lambda_layer * layer + config.lambda_attn * attention  # (B,)
        return {
            "loss": batch.weight * per_tile.mean(),
            "layer": batch.weight * layer.detach().mean(),
            "attention": batch.weight * attention.detach().mean(),
            "per_tile": per_tile.detach(),
        }

    def batches(epoch: int) -> Iterator[PairBatch]:
        rng = np.random.default_rng((context.config.run.seed, epoch))
        return train_loader.batches(rng, limit=config.pairs_per_epoch, turned=config.turned)

    def validate() -> dict[str, float]:
        sums = torch.zeros(2, dtype=torch.float32, device=context.device)
        rng = np.random.default_rng(context.config.run.seed)
        with torch.inference_mode(), runtime.fabric.autocast():
            for batch in val_loader.batches(rng, limit=config.val_pairs, turned=False):
                if batch.weight:  # else it is there for a training step's sake only
                    loss = losses_of(model, batch)["per_tile"]
                    sums += torch.stack([loss.sum(), loss.new_tensor(len(loss))])
        total, count = runtime.fabric.all_reduce(sums, reduce_op="sum").tolist()
        return {"val_loss": total / count}

    fit(
        model,
        fabric=runtime.fabric,
        epochs=config.epochs,
        batches=batches,
        steps_per_epoch=train_loader.steps(config.pairs_per_epoch),
        loss_of=losses_of,
        names_of=_names_of,
        validate=validate,
        score=lambda metrics: (-metrics["val_loss"],),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=context.config.run.seed,
        accumulate=config.accumulate,
        size_of=lambda batch: batch.n_pairs,
        warmup=True,
        files=files,
        reporter=context.reporter,
        description="Stage 1: tiles",
    )
    if runtime.is_main:
        save_tensors(out, student.vit.state_dict())
    runtime.wait()


def _names_of(batch: PairBatch, losses: dict[str, Tensor]) -> str:
    """The slides whose loss isn't a number; all of the batch where none stands out."""
    finite = torch.isfinite(losses["per_tile"]).tolist()
    bad = sorted({name for name, fine in zip(batch.slide_ids, finite, strict=True) if not fine})
    names = bad or sorted(set(batch.slide_ids))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _loader(
    context: Context, slides: Sequence[SlideTiles], teacher_outputs: Path | None, teacher_dim: int
) -> PairLoader:
    config = context.config.stage1
    outputs = None if teacher_outputs is None else load_tensors(teacher_outputs)

    def scores(slide_id: str) -> NDArray[np.float32]:
        assert outputs is not None
        return np.asarray(outputs[f"{slide_id}/attention_scores"].numpy(), np.float32)

    pairs = [
        SlidePairs(
            tiles, ratio=context.geometry.ratio, shifted=config.shifted, min_children=config.min_children
        )
        for tiles in slides
    ]
    if not any(len(item) for item in pairs):
        raise ConfigError(
            f"stage 1: none of {len(pairs)} slides has an LR tile of which {config.min_children:.0%} of the children "
            "hold tissue (stage1.min_children)"
        )
    return PairLoader(
        pairs,
        context.geometry,
        context.hr_store(),
        scores=None if outputs is None else scores,
        with_layers=bool(config.layers),
        batch_size=config.batch_size,
        threads=context.config.run.threads,
        window_bytes=config.window_gib * 2**30,
        bytes_per_tile=2 * teacher_dim * (1 + len(config.layers)),
        rank=context.runtime.rank,
        world=context.runtime.world,
    )

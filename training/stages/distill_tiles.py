"""Step 3, stage 1: the student encoder learns the teacher's view of an LR tile's children."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import Encoder, child_means
from training.data.pairs import PairBatch, PairLoader, SlidePairs
from training.data.tile_index import SlideTiles
from training.loop import fit
from training.losses import child_attention_loss, layer_loss, renormalised_weights
from training.run_dir import load_tensors, save_tensors
from training.stages.context import Context


def distill_encoder(
    context: Context,
    train: Sequence[SlideTiles],
    val: Sequence[SlideTiles],
    teacher: Encoder,
    *,
    out: str,
    teacher_outputs: str | None,
) -> Encoder:
    """Train f' from f and write its weights.

    Parameters
    ----------
    context : Context
    train, val : sequences of SlideTiles
        `val` only chooses the epoch; no label is used.
    teacher : Encoder
        f, frozen.
    out : str
        File in the run directory.
    teacher_outputs : str, optional
        The fold's teacher outputs where children are weighted by attention; None for uniform weights.
    """
    config = context.config.stage1
    geometry = context.geometry
    # A fresh copy each time: a student carried over from another fold would have seen this fold's test slides.
    student = copy.deepcopy(teacher).requires_grad_(True)
    torch.manual_seed(context.config.run.seed)
    train_loader = _loader(context, train, teacher_outputs)
    val_loader = _loader(context, val, None)

    def losses_of(batch: PairBatch) -> dict[str, Tensor]:
        batch = PairBatch(*(value.to(context.device) for value in batch))
        output = student(student.preprocess(batch.tiles), config.layers)
        layer = layer_loss(
            child_means(output.layer_token_maps, geometry.ratio), batch.child_layer_tokens, batch.valid
        )
        weights = renormalised_weights(batch.child_scores, batch.valid)
        attention = child_attention_loss(output.embedding, batch.child_embeddings, weights)
        total = config.lambda_layer * layer + config.lambda_attn * attention
        return {"loss": total, "layer": layer, "attention": attention}

    def batches(epoch: int) -> Iterator[PairBatch]:
        rng = np.random.default_rng((context.config.run.seed, epoch))
        return train_loader.batches(rng, limit=config.pairs_per_epoch, turned=config.turned)

    def validate() -> dict[str, float]:
        sums, count = 0.0, 0
        rng = np.random.default_rng(context.config.run.seed)
        with torch.inference_mode():
            for batch in val_loader.batches(rng, limit=config.val_pairs, turned=False):
                sums += float(losses_of(batch)["loss"]) * len(batch.tiles)
                count += len(batch.tiles)
        return {"val_loss": sums / count}

    fit(
        student,
        epochs=config.epochs,
        batches=batches,
        steps_per_epoch=train_loader.steps(config.pairs_per_epoch),
        loss_of=losses_of,
        validate=validate,
        score=lambda metrics: (-metrics["val_loss"],),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=True,
        metrics_csv=context.run_dir.path(out).with_suffix(".csv"),
        reporter=context.reporter,
        description="Stage 1: tiles",
    )
    save_tensors(context.run_dir.path(out), student.vit.state_dict())
    return student


def _loader(context: Context, slides: Sequence[SlideTiles], teacher_outputs: str | None) -> PairLoader:
    config = context.config.stage1
    outputs = None if teacher_outputs is None else load_tensors(context.run_dir.path(teacher_outputs))

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
        context.store("hr"),
        scores=None if outputs is None else scores,
        batch_size=config.batch_size,
        threads=context.config.run.threads,
    )

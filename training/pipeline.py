"""The order of the steps (method.md section 3): what all folds share, then one fold."""

from __future__ import annotations

import shutil
from pathlib import Path

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import MILModel, build_mil
from training.config import content_hash
from training.data.table import SlideRow, Split
from training.metrics import slide_metrics
from training.mil_fit import mil_spec
from training.run_dir import load_tensors
from training.stages.context import Context
from training.stages.distill_slides import train_student
from training.stages.distill_tiles import distill_encoder
from training.stages.embed_tiles import embed_hr, embed_lr
from training.stages.evaluate import FoldPredictions, predict_test
from training.stages.export import export_bundle
from training.stages.teacher_mil import train_teacher

# Method -> whether its encoder went through stage 1, whether its head goes through stage 2.
STUDENTS = {
    "lr_scratch": (False, False),
    "stage2_only": (False, True),
    "stage1_only": (True, False),
    "lrmil": (True, True),
}


def run_shared(context: Context, splits: list[Split], data_key: str) -> Encoder:
    """What no label touches: teacher embeddings of both resolutions. Returns the teacher encoder."""
    teacher = context.teacher_encoder()
    tiles = context.config.tiles
    grid = teacher.tokens_per_edge(tiles.tile_px)
    if grid < tiles.ratio:  # stage 1 would find out, after hours of embedding
        raise EncoderError(
            f"{grid} x {grid} tokens a tile can't tell {tiles.ratio} x {tiles.ratio} children apart: take larger "
            "tiles (tiles.tile_px), smaller tokens or a smaller tiles.ratio"
        )
    rows = _all_rows(splits)
    _fresh(context, "hr", content_hash(data_key, context.config.stage1.layers))
    embed_hr(context, context.tiles_of(rows), teacher, layers=context.config.stage1.layers)
    _fresh(context, "lr-teacher", data_key)
    labelled = [row for row in rows if row.label is not None]
    embed_lr(context, context.tiles_of(labelled), teacher, kind="lr-teacher")
    return teacher


def run_fold(
    context: Context, split: Split, teacher: Encoder, data_key: str
) -> tuple[dict[str, FoldPredictions], Path]:
    """All steps of one fold. Returns its test predictions by method, and its bundle."""
    config = context.config
    fold = f"fold{split.fold}"
    parts = [tuple(row.slide_id for row in part) for part in split[1:]]
    labels = [tuple(row.label for row in part) for part in split[1:]]
    mil_key = content_hash(data_key, parts, labels, config.mil)
    if not _done(context, f"{fold}/teacher_mil", mil_key):
        train_teacher(context, split)
        context.run_dir.mark_done(f"{fold}/teacher_mil", mil_key)

    weighted = config.stage1.weighting == "attention"
    stage1_key = content_hash(data_key, parts, config.stage1, mil_key if weighted else None)
    encoder_file = f"{fold}/student_encoder.safetensors"
    if not _done(context, f"{fold}/stage1", stage1_key):
        # Unlabelled slides have no teacher attention: they serve only where the weights are uniform.
        train_rows = split.train if weighted else (*split.train, *split.extra)
        distill_encoder(
            context,
            context.tiles_of(train_rows),
            context.tiles_of(split.val),
            teacher,
            out=encoder_file,
            teacher_outputs=f"{fold}/teacher_outputs.safetensors" if weighted else None,
        )
        context.run_dir.mark_done(f"{fold}/stage1", stage1_key)
    student = context.student_encoder(encoder_file)
    student_kind = f"{fold}/lr-student"
    _fresh(context, student_kind, stage1_key)
    embed_lr(context, context.tiles_of((*split.train, *split.val, *split.test)), student, kind=student_kind)

    predictions: dict[str, FoldPredictions] = {}
    if "teacher_hr" in config.evaluate.methods:
        predictions["teacher_hr"] = predict_test(
            context, split, "teacher_hr", _load_mil(context, teacher, fold, "teacher_hr"), "hr"
        )
    for method, (stage1, distil) in STUDENTS.items():
        if method not in config.evaluate.methods and method != "lrmil":
            continue
        kind = student_kind if stage1 else "lr-teacher"
        key = content_hash(mil_key, stage1_key if stage1 else None, config.stage2 if distil else None)
        if not _done(context, f"{fold}/{method}", key):
            train_student(context, split, method=method, store_kind=kind, distil=distil)
            context.run_dir.mark_done(f"{fold}/{method}", key)
        mil = _load_mil(context, teacher, fold, method)
        predictions[method] = predict_test(context, split, method, mil, kind)
    ours = predictions["lrmil"]
    bundle = export_bundle(
        context,
        student,
        _load_mil(context, teacher, fold, "lrmil"),
        fold=split.fold,
        temperature=ours.temperature,
        metrics=_metrics(ours),
    )
    return predictions, bundle


def _metrics(predictions: FoldPredictions) -> dict[str, float]:
    return {
        f"test_{name}": value
        for name, value in slide_metrics(predictions.labels, predictions.probabilities).items()
    }


def _load_mil(context: Context, encoder: Encoder, fold: str, method: str) -> MILModel:
    model = build_mil(mil_spec(encoder.embed_dim, len(context.class_names), context.config.mil))
    model.load_state_dict(load_tensors(context.run_dir.path(fold, "mil", f"{method}.safetensors")))
    return model.to(context.device).eval()


def _all_rows(splits: list[Split]) -> list[SlideRow]:
    rows = {row.slide_id: row for split in splits for part in split[1:] for row in part}
    return list(rows.values())


def _done(context: Context, step: str, key: str) -> bool:
    done = context.run_dir.is_done(step, key)
    if done:
        context.reporter.say(f"[dim]{step}: done before[/]")
    else:
        context.run_dir.forget(step)
    return done


def _fresh(context: Context, kind: str, key: str) -> None:
    """Empty a store whose embeddings come from other inputs, so that two encoders never mix."""
    step = f"{kind}-store"
    if not context.run_dir.is_done(step, key):
        context.run_dir.forget(step)
        if context.store(kind).root.exists():
            shutil.rmtree(context.store(kind).root)
        context.run_dir.mark_done(step, key)

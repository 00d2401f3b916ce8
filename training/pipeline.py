"""The order of the steps (method.md section 3), over all folds, and over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.bundle import JSON_NAME, WEIGHTS_NAME
from napari_lrmil.model.encoder import Encoder, weights_file
from napari_lrmil.model.mil import MILModel, build_mil
from training.data.store import EmbeddingStore
from training.data.table import SlideRow, Split
from training.keys import Keys, Stage1Plan
from training.metrics import slide_metrics
from training.mil_fit import mil_spec
from training.run_dir import load_tensors, save_tensors
from training.scale_out import embed_on_cluster
from training.stages.context import Context
from training.stages.distill_slides import train_student
from training.stages.distill_tiles import distill_encoder
from training.stages.embed_tiles import EncoderSource, embed_slides, jobs_for
from training.stages.evaluate import FoldPredictions, predict_shortcut, predict_test, sweep
from training.stages.export import bundle_dir, export_bundle
from training.stages.teacher_mil import train_teacher

# Method -> whether its encoder went through stage 1, whether its head goes through stage 2.
STUDENTS = {
    "lr_scratch": (False, False),
    "stage2_only": (False, True),
    "stage1_only": (True, False),
    "lrmil": (True, True),
}


@dataclass(frozen=True)
class Head:
    """A student's MIL head to train on some embeddings."""

    split: Split
    method: str
    store: EmbeddingStore
    embed_dim: int
    distil: bool


def run_steps(
    context: Context, splits: Sequence[Split], keys: Keys
) -> tuple[dict[str, list[FoldPredictions]], list[Path]]:
    """All steps of all folds.

    Returns
    -------
    predictions : dict
        Method -> its test predictions, fold by fold; empty on all processes but the main one.
    bundles : list of Path
        The student of each fold.
    """
    teacher = context.teacher_encoder()
    check_tokens(context, teacher)
    rows = [item.row for item in context.tiles.values()]
    labelled = [row for row in rows if row.label is not None]
    _embed(context, rows, context.hr_store(), teacher, context.config.encoder.weights, hr=True)
    lr_teacher = context.lr_store(context.encoder_hash)
    _embed(context, labelled, lr_teacher, teacher, context.config.encoder.weights, hr=False)
    _deal(
        context,
        [
            (
                f"fold{split.fold}/teacher_mil",
                keys.teacher(split),
                [_mil_file(context, split, "teacher_hr"), teacher_outputs(context, split)],
            )
            for split in splits
        ],
        lambda index, key: train_teacher(context, splits[index], embed_dim=teacher.embed_dim, key=key),
    )
    heads: list[Head] = []
    students: dict[str, tuple[Encoder, EmbeddingStore]] = {}
    for split in splits:
        plan = keys.stage1_plan(split)
        if plan.folder not in students:
            _stage1(context, plan, keys, teacher)
            students[plan.folder] = context.student_encoder(keys.student_file(plan)), keys.student_store(plan)
        student, lr_student = students[plan.folder]
        _embed(context, labelled_of(split), lr_student, student, keys.student_file(plan), hr=False)
        for method, (stage1, distil) in STUDENTS.items():
            if method in context.config.evaluate.methods or method == "lrmil":
                encoder, store = (student, lr_student) if stage1 else (teacher, lr_teacher)
                heads.append(Head(split, method, store, encoder.embed_dim, distil))
    if "random_init" in context.config.evaluate.shortcuts:
        heads += _random_heads(context, splits, labelled)
    _deal(
        context,
        [
            (
                f"fold{head.split.fold}/{head.method}",
                keys.head(head.split, head.store, distil=head.distil),
                [_mil_file(context, head.split, head.method)],
            )
            for head in heads
        ],
        lambda index, key: train_student(
            context,
            heads[index].split,
            method=heads[index].method,
            store=heads[index].store,
            embed_dim=heads[index].embed_dim,
            distil=heads[index].distil,
            key=key,
        ),
    )
    if not context.runtime.is_main:
        return {}, []
    return _evaluate(context, splits, keys, heads, teacher)


def check_tokens(context: Context, teacher: Encoder) -> None:
    """Stage 1 would find out, after hours of embedding.

    Raises
    ------
    EncoderError
        Where an encoder has fewer tokens along a tile than a tile has children.
    """
    tiles = context.config.tiles
    for encoder in (teacher, context.new_student(teacher) if context.config.student.spec else teacher):
        grid = encoder.tokens_per_edge(tiles.tile_px)
        if grid < tiles.ratio:
            raise EncoderError(
                f"{grid} x {grid} tokens a tile can't tell {tiles.ratio} x {tiles.ratio} children apart: take larger "
                "tiles (tiles.tile_px), smaller tokens or a smaller tiles.ratio"
            )


def labelled_of(split: Split) -> list[SlideRow]:
    """Train, validation and test slides."""
    return [row for part in (split.train, split.val, split.test) for row in part]


def _embed(
    context: Context,
    rows: Sequence[SlideRow],
    store: EmbeddingStore,
    encoder: Encoder,
    weights: Path | str | None,
    *,
    hr: bool,
) -> None:
    jobs = jobs_for(context, context.tiles_of(rows), store, hr=hr)
    description = f"Embedding {'HR' if hr else 'LR'} tiles"
    if context.cluster is None:
        embed_slides(context, jobs, encoder, description)
        return
    place = (
        weights_file(weights)
        if weights is not None
        else context.run_dir.path("shared", "random_encoder.safetensors")
    )
    if weights is None and context.runtime.is_main:
        save_tensors(place, encoder.vit.state_dict())
    context.runtime.wait()
    if context.runtime.is_main:
        source = EncoderSource(
            encoder.spec.model_dump_json(), place.resolve(), store.root.name, context.config.run.device
        )
        embed_on_cluster(context, jobs, source, description)
    context.runtime.wait()


def _stage1(context: Context, plan: Stage1Plan, keys: Keys, teacher: Encoder) -> None:
    step, key = f"{plan.folder}/stage1", keys.stage1(plan)
    if _done(context, step, key, keys.student_file(plan)):
        return
    outputs = teacher_outputs(context, plan.split) if plan.split is not None else None
    files = context.files(plan.folder, "stage1", key)
    distill_encoder(
        context,
        context.tiles_of(plan.train),
        context.tiles_of(plan.val),
        teacher,
        out=keys.student_file(plan),
        files=files,
        teacher_outputs=outputs,
    )
    _finish(context, step, key)
    context.runtime.wait()


def _random_heads(context: Context, splits: Sequence[Split], labelled: list[SlideRow]) -> list[Head]:
    encoder, store = context.random_lr_encoder()
    # In this process: what is random here must be random there in the same way.
    jobs = jobs_for(context, context.tiles_of(labelled), store, hr=False)
    embed_slides(context, jobs, encoder, "Embedding LR, random")
    return [Head(split, "random_init", store, encoder.embed_dim, False) for split in splits]


def _deal(
    context: Context, steps: list[tuple[str, str, list[Path]]], train: Callable[[int, str], None]
) -> None:
    """Independent steps (name, key, files that they make), each done by one process."""
    for index in context.runtime.share(range(len(steps))):
        step, key, made = steps[index]
        if not _done(context, step, key, *made):
            train(index, key)
            _finish(context, step, key, main_only=False)
    context.runtime.wait()


def _evaluate(
    context: Context, splits: Sequence[Split], keys: Keys, heads: list[Head], teacher: Encoder
) -> tuple[dict[str, list[FoldPredictions]], list[Path]]:
    predictions: dict[str, list[FoldPredictions]] = {}
    bundles = []
    wanted = (*context.config.evaluate.methods, *context.config.evaluate.shortcuts)
    for split in splits:
        of_fold = {head.method: head for head in heads if head.split.fold == split.fold}
        for method in sorted({*wanted, "lrmil"}, key=[*wanted, "lrmil"].index):
            if method in ("tissue_fraction", "rgb"):
                found = predict_shortcut(context, split, method, key=keys.shortcut(split, method))
            elif method == "teacher_hr":
                mil = load_mil(context, teacher.embed_dim, split, method)
                key = keys.test(split, keys.teacher(split), hr=True)
                found = predict_test(context, split, method, mil, context.hr_store(), hr=True, key=key)
            else:
                head = of_fold[method]
                mil = load_mil(context, head.embed_dim, split, method)
                key = keys.test(split, keys.head(split, head.store, distil=head.distil), hr=False)
                found = predict_test(context, split, method, mil, head.store, hr=False, key=key)
            predictions.setdefault(method, []).append(found)
        bundles.append(_export(context, split, keys, of_fold["lrmil"], predictions["lrmil"][-1]))
    sweep(context, {(f"fold{split.fold}", method) for split in splits for method in predictions})
    return predictions, bundles


def _export(context: Context, split: Split, keys: Keys, head: Head, test: FoldPredictions) -> Path:
    step, out = f"fold{split.fold}/export", bundle_dir(context, split)
    key = keys.bundle(keys.test(split, keys.head(split, head.store, distil=head.distil), hr=False))
    if not _done(context, step, key, out / JSON_NAME, out / WEIGHTS_NAME):
        student = context.student_encoder(keys.student_file(keys.stage1_plan(split)))
        export_bundle(
            context,
            student,
            load_mil(context, student.embed_dim, split, "lrmil"),
            split=split,
            store=head.store,
            test=test,
            metrics=_metrics(test),
        )
        _finish(context, step, key)
    return out


def _metrics(predictions: FoldPredictions) -> dict[str, float]:
    return {
        f"test_{name}": value
        for name, value in slide_metrics(predictions.labels, predictions.probabilities).items()
    }


def load_mil(context: Context, embed_dim: int, split: Split, method: str) -> MILModel:
    """A head of a fold, in eval mode."""
    model = build_mil(mil_spec(embed_dim, len(context.class_names), context.config.mil))
    model.load_state_dict(load_tensors(_mil_file(context, split, method)))
    return model.to(context.device).eval()


def teacher_outputs(context: Context, split: Split) -> Path:
    """Where a fold's teacher MIL keeps what it says of its training slides."""
    return context.run_dir.path(f"fold{split.fold}", "teacher_outputs.safetensors")


def _mil_file(context: Context, split: Split, method: str) -> Path:
    return context.run_dir.path(f"fold{split.fold}", "mil", f"{method}.safetensors")


def _done(context: Context, step: str, key: str, *files: Path) -> bool:
    done = context.run_dir.is_done(step, key) and all(file.is_file() for file in files)
    if done:
        context.reporter.say(f"[dim]{step}: done before[/]")
    else:
        context.run_dir.forget(step)
    return done


def _finish(context: Context, step: str, key: str, *, main_only: bool = True) -> None:
    if context.runtime.is_main or not main_only:
        context.run_dir.mark_done(step, key)
        # The stage is whole: where it might have gone on is of no use any more.
        folder, stage = step.split("/")
        name = "teacher_hr" if stage == "teacher_mil" else stage
        context.run_dir.path(folder, "checkpoints", f"{name}.safetensors").unlink(missing_ok=True)

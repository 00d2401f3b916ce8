"""``--dry-run``: what a run would do, how much of it, and about how long it would take on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import build_mil
from training.data.pairs import SlidePairs
from training.data.store import EmbeddingStore
from training.data.table import SlideRow, Split
from training.keys import Keys
from training.mil_fit import mil_spec
from training.pipeline import STUDENTS, check_tokens, labelled_of
from training.stages.context import Context
from training.stages.distill_tiles import Distiller, student_layers
from training.stages.embed_tiles import jobs_for


class Step(NamedTuple):
    """One line of the plan."""

    name: str
    work: str
    n_bytes: int
    seconds: float
    """0 where it is done."""


def print_plan(context: Context, splits: Sequence[Split], keys: Keys) -> list[Step]:
    """Print the steps with sizes and times; returns them.

    The times are those of the encoder and heads of this config on random tiles, measured now on this device; reading
    is not in them, and early stopping makes heads faster.
    """
    steps = plan(context, splits, keys)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("work")
    table.add_column("disk", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for step in steps:
        done = step.seconds == 0
        table.add_row(
            step.name,
            step.work,
            "" if done or not step.n_bytes else decimal(step.n_bytes),
            "[dim]done[/]" if done else duration(step.seconds),
        )
    todo = [step for step in steps if step.seconds]
    table.add_section()
    table.add_row(
        "in all",
        f"{len(todo)} of {len(steps)} steps to do",
        decimal(sum(step.n_bytes for step in todo)),
        duration(sum(step.seconds for step in todo)),
    )
    context.reporter.say(
        f"{len(context.tiles)} slides, {len(splits)} folds, classes {', '.join(context.class_names)}; "
        f"device {context.device}, {context.runtime.world} process(es). Nothing is written."
    )
    context.reporter.console.print(table)
    context.reporter.say(
        "[dim]Time at most: measured on random tiles; reading slides comes on top, early stopping makes heads shorter.[/]"
    )
    return steps


def plan(context: Context, splits: Sequence[Split], keys: Keys) -> list[Step]:
    """The steps of a run, in order."""
    config = context.config
    teacher = context.teacher_encoder()
    check_tokens(context, teacher)
    student = context.new_student(teacher).eval()
    rows = [item.row for item in context.tiles.values()]
    labelled = [row for row in rows if row.label is not None]
    rate = _tiles_per_second(context, teacher)
    student_rate = rate if config.student.spec is None else _tiles_per_second(context, student)
    lr_teacher = context.lr_store(context.encoder_hash)
    steps = [
        _embedding(context, "embed HR", rows, context.hr_store(), teacher, rate, hr=True),
        _embedding(context, "embed LR, undistilled", labelled, lr_teacher, teacher, rate, hr=False),
    ]
    hr_step = _head_seconds(context, teacher.embed_dim, hr=True)
    for split in splits:
        key, name = keys.teacher(split), f"fold{split.fold}/teacher_mil"
        done = context.run_dir.is_done(name, key)
        seconds = 0.0 if done else config.mil.epochs * len(split.train) * hr_step
        steps.append(Step(name, f"{len(split.train)} bags x {config.mil.epochs} epochs", 0, seconds))
    lr_step = _head_seconds(context, student.embed_dim, hr=False)
    pair_seconds: float | None = None
    planned: set[str] = set()
    for split in splits:
        stage1 = keys.stage1_plan(split)
        done = context.run_dir.is_done(f"{stage1.folder}/stage1", keys.stage1(stage1))
        if stage1.folder not in planned:
            planned.add(stage1.folder)
            n_pairs = sum(
                len(
                    SlidePairs(
                        tiles,
                        ratio=context.geometry.ratio,
                        shifted=config.stage1.shifted,
                        min_children=config.stage1.min_children,
                    )
                )
                for tiles in context.tiles_of(stage1.train)
            )
            n_pairs = min(n_pairs, config.stage1.pairs_per_epoch or n_pairs)
            if not done:
                pair_seconds = pair_seconds or _pair_seconds(context, teacher, student)
            seconds = 0.0 if done else config.stage1.epochs * n_pairs * (pair_seconds or 0.0)
            steps.append(
                Step(
                    f"{stage1.folder}/stage1",
                    f"{n_pairs:,} pairs x {config.stage1.epochs} epochs",
                    0,
                    seconds,
                )
            )
        store = keys.student_store(stage1) if done and keys.student_file(stage1).is_file() else None
        name = f"embed LR, fold {split.fold}"
        if store is not None or not keys.shares_encoder or split is splits[0]:
            steps.append(
                _embedding(context, name, labelled_of(split), store, student, student_rate, hr=False)
            )
        for method, (uses_stage1, distil) in STUDENTS.items():
            if method == "lrmil" or method in config.evaluate.methods:
                head_store = store if uses_stage1 else lr_teacher
                steps.append(_head(context, keys, split, method, head_store, lr_step, distil=distil))
    if "random_init" in config.evaluate.shortcuts:
        _, random_store = context.random_lr_encoder()
        steps.append(_embedding(context, "embed LR, random", labelled, random_store, teacher, rate, hr=False))
        teacher_step = _head_seconds(context, teacher.embed_dim, hr=False)
        for split in splits:
            steps.append(_head(context, keys, split, "random_init", random_store, teacher_step, distil=False))
    return steps


def _head(
    context: Context,
    keys: Keys,
    split: Split,
    method: str,
    store: EmbeddingStore | None,
    bag_seconds: float,
    *,
    distil: bool,
) -> Step:
    step, epochs = f"fold{split.fold}/{method}", context.config.mil.epochs
    done = store is not None and context.run_dir.is_done(step, keys.head(split, store, distil=distil))
    seconds = 0.0 if done else epochs * len(split.train) * bag_seconds
    return Step(step, f"{len(split.train)} bags x {epochs} epochs", 0, seconds)


def duration(seconds: float) -> str:
    """3 s, 4 min, 2 h 5 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _embedding(
    context: Context,
    name: str,
    rows: Sequence[SlideRow],
    store: EmbeddingStore | None,
    encoder: Encoder,
    rate: float,
    *,
    hr: bool,
) -> Step:
    jobs = jobs_for(context, context.tiles_of(rows), store or context.lr_store(""), hr=hr)
    todo = jobs if store is None else [job for job in jobs if not job.is_done]
    n_tiles = sum(len(job.places) for job in todo)
    arrays = 1 + (len(context.config.stage1.layers) if hr else 0)
    work = f"{n_tiles:,} tiles of {len(todo)} slides" if todo else f"{len(jobs)} slides"
    return Step(name, work, 2 * n_tiles * encoder.embed_dim * arrays, n_tiles / rate)


def _tiles_per_second(context: Context, encoder: Encoder) -> float:
    config = context.config
    tiles = _random_tiles(context, config.encoder.batch_size)
    with torch.inference_mode():
        seconds = _seconds_of(
            lambda: encoder(encoder.preprocess(tiles), config.stage1.layers[:0]), context.device
        )
    return len(tiles) / seconds * context.runtime.world


def _pair_seconds(context: Context, teacher: Encoder, student: Encoder) -> float:
    """Of one pair in training."""
    config = context.config
    layers = student_layers(
        config.student.layers, config.stage1.layers, depth=student.depth, teacher_depth=teacher.depth
    )
    model = Distiller(
        copy.deepcopy(student).requires_grad_(True),
        teacher_dim=teacher.embed_dim,
        layers=layers,
        ratio=context.geometry.ratio,
    ).to(context.device)
    optimizer = torch.optim.AdamW(model.parameters())
    tiles = _random_tiles(context, config.stage1.batch_size)

    def step() -> None:
        output = model(tiles)
        (output.child_tokens.square().sum() + output.embedding.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return _seconds_of(step, context.device) / len(tiles) / context.runtime.world


def _head_seconds(context: Context, embed_dim: int, *, hr: bool) -> float:
    """Of one bag of mean size."""
    sizes = [len(item.hr_places if hr else item.lr_places) for item in context.tiles.values()]
    model = build_mil(mil_spec(embed_dim, len(context.class_names), context.config.mil)).to(context.device)
    bag = torch.randn(max(1, sum(sizes) // len(sizes)), embed_dim, device=context.device)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(bag).bag_logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return _seconds_of(step, context.device)


def _random_tiles(context: Context, n: int) -> torch.Tensor:
    edge = context.config.tiles.tile_px
    return torch.randint(0, 256, (n, edge, edge, 3), dtype=torch.uint8, device=context.device)


def _seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The faster of two, after one to warm up."""
    best = float("inf")
    for turn in range(3):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:
            best = min(best, time.perf_counter() - started)
    return best

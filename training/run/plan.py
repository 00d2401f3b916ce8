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
from training.data.splits import Split
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.methods import Embedding
from training.run.context import Context
from training.run.pipeline import check_tokens, trained_methods
from training.run.steps import Stage1Plan, Step, Steps, is_done
from training.runtime import Precision, autocast
from training.stages.distill_tiles import Distiller, student_layers


class PlannedStep(NamedTuple):
    """One line of the plan."""

    name: str
    work: str
    n_bytes: int
    seconds: float
    """0 where it is done."""


def print_plan(context: Context, splits: Sequence[Split], steps: Steps) -> list[PlannedStep]:
    """Print the steps with sizes and times; returns them.

    The times are those of the encoder and heads of this config on random tiles, measured now on this device; reading
    is not in them, and early stopping makes heads faster.
    """
    planned = plan(context, splits, steps)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("work")
    table.add_column("disk", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for step in planned:
        done = step.seconds == 0
        table.add_row(
            step.name,
            step.work,
            "" if done or not step.n_bytes else decimal(step.n_bytes),
            "[dim]done[/]" if done else duration(step.seconds),
        )
    todo = [step for step in planned if step.seconds]
    table.add_section()
    table.add_row(
        "in all",
        f"{len(todo)} of {len(planned)} steps to do",
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
    return planned


def plan(context: Context, splits: Sequence[Split], steps: Steps) -> list[PlannedStep]:
    """Return the steps of a run, in order."""
    config = context.config
    teacher = context.teacher_encoder()
    check_tokens(context, teacher)
    student = context.new_student(teacher, context.encoder_seeds[0]).eval()
    labelled = context.labelled
    # As they are embedded: HR tiles at the run's precision, LR tiles at 32 bits, as at inference.
    hr_rate = _tiles_per_second(context, teacher, config.run.precision)
    rate = hr_rate if config.run.precision == "32-true" else _tiles_per_second(context, teacher, "32-true")
    student_rate = (
        rate if context.student_spec == teacher.spec else _tiles_per_second(context, student, "32-true")
    )
    lr_teacher = context.lr_store(context.encoder_hash)
    planned = [
        _embedding(context, "embed HR", context.rows, context.hr_store(), teacher, hr_rate, hr=True),
        _embedding(context, "embed LR, undistilled", labelled, lr_teacher, teacher, rate, hr=False),
    ]
    seconds_a_bag = _head_seconds(context, teacher.embed_dim, hr=True)
    seeds, encoder_seeds = context.head_seeds, context.encoder_seeds
    planned += [
        _head(context, split, steps.teacher(split, seed), seconds_a_bag) for split in splits for seed in seeds
    ]
    seconds_a_bag = _head_seconds(context, student.embed_dim, hr=False)
    plans = {(split.fold, seed): steps.stage1_plan(split, seed) for split in splits for seed in encoder_seeds}
    todo = [one for one in plans.values() if not is_done(context.run_dir, steps.stage1(one))]
    seconds_a_pair = _pair_seconds(context, teacher, student) if todo else 0.0
    folders: set[str] = set()
    for split in splits:
        for method in trained_methods(context):
            if method.embedding == Embedding("teacher", "lr"):
                planned += [
                    _head(context, split, steps.head(split, method, lr_teacher, seed=seed), seconds_a_bag)
                    for seed in seeds
                ]
        for encoder_seed in encoder_seeds:
            stage1 = plans[split.fold, encoder_seed]
            trained = is_done(context.run_dir, steps.stage1(stage1))
            if stage1.folder not in folders:
                folders.add(stage1.folder)
                planned.append(
                    _stage1(context, stage1, steps.stage1(stage1), 0.0 if trained else seconds_a_pair)
                )
            lr_student = steps.student_store(stage1) if trained else None
            if lr_student is not None or not steps.shares_encoder or split is splits[0]:
                name = f"embed LR, fold {split.fold}"
                planned.append(
                    _embedding(context, name, split.labelled, lr_student, student, student_rate, hr=False)
                )
            # Where f' isn't trained yet, neither is its head, whatever lies there.
            store = lr_student or context.lr_store("")
            planned += [
                _head(
                    context,
                    split,
                    steps.head(split, method, store, seed=seed, encoder_seed=encoder_seed),
                    seconds_a_bag,
                )
                for method in trained_methods(context)
                if method.is_of_student
                for seed in seeds
            ]
    random = [method for method in trained_methods(context) if method.embedding == Embedding("random", "lr")]
    for method in random:
        _, random_store = context.random_lr_encoder()
        planned.append(
            _embedding(context, "embed LR, random", labelled, random_store, teacher, rate, hr=False)
        )
        seconds_a_bag = _head_seconds(context, teacher.embed_dim, hr=False)
        planned += [
            _head(context, split, steps.head(split, method, random_store, seed=seed), seconds_a_bag)
            for split in splits
            for seed in seeds
        ]
    return planned


def _head(context: Context, split: Split, step: Step, seconds_a_bag: float) -> PlannedStep:
    epochs, n_bags = context.config.mil.epochs, len(split.train)
    seconds = 0.0 if is_done(context.run_dir, step) else epochs * n_bags * seconds_a_bag
    return PlannedStep(step.name, f"{n_bags} bags x {epochs} epochs", 0, seconds)


def _stage1(context: Context, stage1: Stage1Plan, step: Step, seconds_a_pair: float) -> PlannedStep:
    section = context.config.stage1
    n_pairs = sum(
        len(
            SlidePairs(
                tiles,
                ratio=context.geometry.ratio,
                shifted=section.shifted,
                min_children=section.min_children,
            )
        )
        for tiles in context.tiles_of(stage1.train)
    )
    n_pairs = min(n_pairs, section.pairs_per_epoch or n_pairs)
    seconds = section.epochs * n_pairs * seconds_a_pair
    return PlannedStep(step.name, f"{n_pairs:,} pairs x {section.epochs} epochs", 0, seconds)


def duration(seconds: float) -> str:
    """Return a time as a reader takes it in: 3 s, 4 min, 2 h 5 min."""
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
) -> PlannedStep:
    jobs = context.jobs(rows, store or context.lr_store(""), hr=hr)
    todo = jobs if store is None else [job for job in jobs if not job.is_done]
    n_tiles = sum(len(job.places) for job in todo)
    stage1 = context.config.stage1
    arrays = 1 + (len(stage1.layers) + stage1.turned if hr else 0)
    rate = rate / 8 if hr and stage1.turned else rate
    work = f"{n_tiles:,} tiles of {len(todo)} slides" if todo else f"{len(jobs)} slides"
    return PlannedStep(name, work, 2 * n_tiles * encoder.embed_dim * arrays, n_tiles / rate)


def _tiles_per_second(context: Context, encoder: Encoder, precision: Precision) -> float:
    config = context.config
    tiles = _random_tiles(context, config.encoder.batch_size)
    with torch.inference_mode(), autocast(context.device, precision):
        seconds = _seconds_of(
            lambda: encoder(encoder.preprocess(tiles), config.stage1.layers[:0]), context.device
        )
    return len(tiles) / seconds * context.runtime.world


def _pair_seconds(context: Context, teacher: Encoder, student: Encoder) -> float:
    """Measure one pair in training."""
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
        with autocast(context.device, config.run.precision):
            output = model(tiles)
        torch.autograd.backward(sum(value.square().sum() for value in output))
        optimizer.step()
        optimizer.zero_grad()

    return _seconds_of(step, context.device) / len(tiles) / context.runtime.world


def _head_seconds(context: Context, embed_dim: int, *, hr: bool) -> float:
    """Measure a step on one bag of mean size."""
    sizes = [len(item.hr_places if hr else item.lr_places) for item in context.tiles.values()]
    model = build_mil(context.head_spec(embed_dim)).to(context.device)
    bag = torch.randn(max(1, sum(sizes) // len(sizes)), embed_dim, device=context.device)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        torch.autograd.backward(model(bag).bag_logits.sum())
        optimizer.step()
        optimizer.zero_grad()

    return _seconds_of(step, context.device)


def _random_tiles(context: Context, n: int) -> torch.Tensor:
    edge = context.config.tiles.tile_px
    return torch.randint(0, 256, (n, edge, edge, 3), dtype=torch.uint8, device=context.device)


def _seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the faster time of two, after one to warm up."""
    best = float("inf")
    for turn in range(3):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:
            best = min(best, time.perf_counter() - started)
    return best

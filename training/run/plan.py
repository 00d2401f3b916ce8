"""``--dry-run``: what a run would do, how much of it, and about how long it would take on this machine."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import AnyBag
from training.data.bags import Instances
from training.data.pairs import SlidePairs
from training.data.splits import Split
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import Reading
from training.hashing import content_hash
from training.methods import RANDOM, TEACHER, Method
from training.objectives.base import LRTeacher, Scale, Scales, TeacherTiles, TileShapes
from training.run.context import Context
from training.run.pipeline import (
    Embedded,
    bags_of,
    check_tokens,
    reading_name,
    readings,
    rows_of_front,
    rows_read,
    tiles_read,
    trained_methods,
)
from training.run.steps import Stage1Plan, Step, Steps, is_done
from training.runtime import Precision, autocast
from training.stages.distill_tiles import Distiller, reads_lr, tile_objectives, tile_taps
from training.stages.end_to_end import EndToEnd
from training.stages.front import planned_text


class PlannedStep(NamedTuple):
    """One line of the plan."""

    name: str
    work: str
    n_bytes: int
    seconds: float
    """0 where it is done."""
    rows: tuple[str, ...] = ()
    """Keys of the rows of the comparison that it serves."""


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
    if context.config.compare:
        context.reporter.say(f"Rows: {', '.join(row.key for row in context.config.rows)}.")
        shared = {step.name: step.rows for step in planned if len(step.rows) > 1}
        for name, rows in shared.items():
            context.reporter.say(f"{name}: once for {', '.join(rows)}.")
    candidates = [row for row in rows_of_front(context) if row != TEACHER]
    if candidates:
        patients = {
            name: len({row.patient_id for split in splits for row in split.val if row.label == name})
            for name in context.class_names
        }
        ways = {
            (
                context.of_row(row).student_spec.model_dump_json()
                if row.is_of_student
                else context.config.encoder.spec.model_dump_json(),
                tiles_read(context, row),
                # Which tiles a head of several magnifications reads is its own choice.
                None if context.magnifications(row) is None else row.key,
            )
            for row in (TEACHER, *candidates)
        }
        names = [row.name for row in candidates]
        context.reporter.say(planned_text(names, patients, context.config.front, len(ways)))
    context.reporter.say(
        "[dim]Time at most: measured on random tiles; "
        "reading slides comes on top, early stopping makes heads shorter, one that must be trained again takes longer.[/]"
    )
    return planned


def plan(context: Context, splits: Sequence[Split], steps: Steps) -> list[PlannedStep]:
    """Return the steps of a run, in order."""
    config = context.config
    teacher = context.teacher_encoder()
    check_tokens(context, teacher)
    labelled = context.labelled
    # As they are embedded: HR tiles at the run's precision, LR tiles at 32 bits, as at inference.
    hr_rate = _tiles_per_second(context, teacher, config.run.precision)
    rate = hr_rate if config.run.precision == "32-true" else _tiles_per_second(context, teacher, "32-true")
    methods = trained_methods(context)
    ratio = context.geometry.ratio
    planned = []
    for reading in readings(context):
        name = "LR, undistilled" if reading == context.lr_tiles else reading_name(reading, ratio)
        step = _embedding(
            context,
            f"embed {name}",
            rows_read(context, reading),
            context.read_store(reading),
            teacher,
            hr_rate if reading == context.hr_tiles else rate,
            reading=reading,
        )
        planned.append(step._replace(rows=_served(context, reading, methods)))

    # A head is measured once for all rows that have it, on bags alike.
    measured: dict[str, float] = {}

    def a_bag(method: Method, embed_dim: int) -> float:
        mine = steps.of(method).context
        key = content_hash(mine.head_section(method), context.readings(method), embed_dim)
        if key not in measured:
            measured[key] = _head_seconds(mine, method, embed_dim)
        return measured[key]

    seeds = context.head_seeds
    planned += [
        _head(context, split, steps.teacher(split, seed), a_bag(TEACHER, teacher.embed_dim))._replace(
            rows=(TEACHER.key,)
        )
        for split in splits
        for seed in seeds
    ]
    read = {one: Embedded(teacher, context.read_store(one)) for one in readings(context)}

    # Rows may have an f' of their own; each is measured once, and only where something is to do.
    @functools.cache
    def tile_rate(spec_json: str) -> float:
        one = students[spec_json]
        return rate if one.spec == teacher.spec else _tiles_per_second(context, one, "32-true")

    @functools.cache
    def a_pair(spec_json: str) -> float:
        return _pair_seconds(context, teacher, students[spec_json])

    students: dict[str, Encoder] = {}
    embedded: dict[str, int] = {}
    for split in splits:
        for method in methods:
            assert method.embedding is not None
            if method.embedding.encoder == "teacher":
                store = _planned_bags(context, method, split, read, steps)
                seconds = a_bag(method, teacher.embed_dim)
                planned += [
                    _head(context, split, steps.of(method).head(split, method, store, seed=seed), seconds)
                    for seed in seeds
                ]
        for method in methods:
            assert method.embedding is not None
            if not method.embedding.is_of_student:
                continue
            mine = steps.of(method)
            spec_json = mine.context.student_spec.model_dump_json()
            if spec_json not in students:
                seed = context.encoder_seeds[0]
                students[spec_json] = mine.context.new_student(teacher, seed).eval()
            for encoder_seed in mine.context.encoder_seeds:
                stage1 = mine.stage1_plan(split, encoder_seed, method.embedding.encoder)
                trained = is_done(context.run_dir, mine.stage1(stage1))
                student_hash = mine.student_hash(stage1) if trained else ""
                several = context.several(method, student_hash)
                stores: dict[Reading, Instances] = {context.lr_tiles: context.lr_store(student_hash)}
                stores |= {} if several is None else several.stores
                names: dict[str, Reading | None] = {f"{stage1.folder}/stage1": None}
                for reading in stores:
                    what = reading_name(reading, ratio)
                    names[f"embed {what}, fold {split.fold}, {stage1.folder}"] = reading
                for name, read_by_f in names.items():
                    if name in embedded:
                        place = embedded[name]
                        rows = dict.fromkeys((*planned[place].rows, method.key))  # not once a fold
                        planned[place] = planned[place]._replace(rows=tuple(rows))
                        continue
                    if read_by_f is None:
                        seconds = 0.0 if trained else a_pair(spec_json)
                        step = _stage1(mine.context, stage1, mine.stage1(stage1), seconds)
                    elif not trained and mine.shares_encoder and split is not splits[0]:
                        continue  # counted with the first fold
                    else:
                        store = stores[read_by_f]
                        assert isinstance(store, EmbeddingStore)
                        step = _embedding(
                            context,
                            f"embed {reading_name(read_by_f, ratio)}, {stage1.folder}",
                            split.labelled,
                            store if trained else None,
                            students[spec_json],
                            tile_rate(spec_json),
                            reading=read_by_f,
                        )
                    embedded[name] = len(planned)
                    planned.append(step._replace(rows=(method.key,)))
                # Where f' isn't trained yet, neither is its head, whatever lies there.
                bags = several or stores[context.lr_tiles]
                seconds = a_bag(method, students[spec_json].embed_dim)
                planned += [
                    _head(
                        context,
                        split,
                        mine.head(split, method, bags, seed=seed, encoder_seed=encoder_seed),
                        seconds,
                    )
                    for seed in seeds
                ]
    for method in methods:
        if not method.is_end_to_end:
            continue
        mine = steps.of(method)
        spec_json = mine.context.student_spec.model_dump_json()
        if spec_json not in students:
            students[spec_json] = mine.context.new_student(teacher, mine.context.encoder_seeds[0]).eval()
        own, own_rate = students[spec_json], tile_rate(spec_json)
        seconds_a_tile = _end_to_end_seconds(mine.context, own)
        for split in splits:
            for seed in seeds:
                training = mine.end_to_end(split, method, seed)
                planned.append(_end_to_end(mine.context, split, training, seconds_a_tile, own_rate))
                name = f"embed LR, {training.name}"
                embedding = _embedding(
                    mine.context, name, split.labelled, None, own, own_rate, reading=context.lr_tiles
                )
                done = is_done(context.run_dir, training)
                planned.append(embedding._replace(seconds=0.0) if done else embedding)
    for method in methods:
        if method.embedding == RANDOM:
            several = context.several(method, context.random_hash)
            random_bags: Instances = several or context.lr_store(context.random_hash)
            stores = {context.lr_tiles: context.lr_store(context.random_hash)}
            stores |= {} if several is None else several.stores
            for reading, store in stores.items():
                assert isinstance(store, EmbeddingStore)
                name = f"embed {reading_name(reading, ratio)}, random"
                planned.append(_embedding(context, name, labelled, store, teacher, rate, reading=reading))
            seconds = a_bag(method, teacher.embed_dim)
            planned += [
                _head(context, split, steps.of(method).head(split, method, random_bags, seed=seed), seconds)
                for split in splits
                for seed in seeds
            ]
    return planned


def _served(context: Context, reading: Reading, methods: Sequence[Method]) -> tuple[str, ...]:
    """Return the rows whose bags or targets are made of what f says of some tiles."""
    ratio = context.geometry.ratio
    found = [TEACHER.key] if reading in context.readings(TEACHER) else []
    for method in methods:
        one = method.embedding
        assert one is not None
        if one.encoder == "teacher":
            reads = set(context.readings(method)) | ({context.hr_tiles} if one.derived == "ridge" else set())
        elif one.is_of_student:  # its targets
            reads = {Reading(ratio, enlarged=one.encoder == "student_enlarged")}
        else:
            continue
        if reading in reads:
            found.append(method.key)
    return tuple(found)


def _planned_bags(
    context: Context, method: Method, split: Split, read: Mapping[Reading, Embedded], steps: Steps
) -> Instances:
    """Return the bags of a method by f, or where a regression isn't fitted yet, some that no head was trained on."""
    if method.embedding is not None and method.embedding.derived == "ridge":
        hr, lr = (read[one].store for one in (context.hr_tiles, context.lr_tiles))
        if not is_done(context.run_dir, steps.ridge_fit(split, lr, hr)):
            return context.lr_store("")
    return bags_of(context, method, split, read, steps).bags


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
    n_pairs = min(n_pairs, section.pair_limit or n_pairs)
    seconds = section.epochs * n_pairs * seconds_a_pair
    return PlannedStep(step.name, f"{n_pairs:,} pairs x {section.epochs} epochs", 0, seconds)


def _end_to_end(
    context: Context, split: Split, step: Step, seconds_a_tile: float, rate: float
) -> PlannedStep:
    section = context.config.end_to_end
    of_train, of_val = (
        [len(item.lr_places) for item in context.tiles_of(rows)] for rows in (split.train, split.val)
    )
    n_tiles = sum(min(n, section.max_tiles) for n in of_train)
    seconds = section.epochs * (n_tiles * seconds_a_tile + sum(of_val) / rate) + sum(of_train) / rate
    work = f"{n_tiles:,} tiles of {len(of_train)} slides x {section.epochs} epochs"
    return PlannedStep(step.name, work, 0, 0.0 if is_done(context.run_dir, step) else seconds)


def _end_to_end_seconds(context: Context, student: Encoder) -> float:
    """Measure one tile in training together with the head."""
    section, config = context.config.end_to_end, context.config
    encoder = copy.deepcopy(student)
    head = config.student_mil.build(encoder.embed_dim, context.class_names).to(context.device)
    model = EndToEnd(encoder, head, section)
    optimizer = torch.optim.AdamW(model.parameters())
    tiles = _random_tiles(context, min(section.max_tiles, 2 * section.chunk_tiles))

    def step() -> None:
        with autocast(context.device, config.run.precision):
            logits = model(tiles).bag_logits
        torch.autograd.backward(logits.sum())
        optimizer.step()
        optimizer.zero_grad()

    return _seconds_of(step, context.device) / len(tiles)


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
    reading: Reading,
) -> PlannedStep:
    jobs = context.jobs(rows, store or context.lr_store(""), reading=reading)
    todo = jobs if store is None else [job for job in jobs if not job.is_done]
    n_tiles = sum(len(job.places) for job in todo)
    n_new = sum(int((job.places_alike() < 0).sum()) for job in todo)
    stage1 = context.config.stage1
    target = context.holds_targets(reading)
    arrays = 1 + (len(jobs[0].layers) + stage1.turned if target and jobs else 0)
    rate = rate / 8 if target and stage1.turned else rate
    work = f"{n_tiles:,} tiles of {len(todo)} slides" if todo else f"{len(jobs)} slides"
    if n_new < n_tiles:
        work += f", {n_new:,} new"
    seconds = max(n_new, min(n_tiles, 1)) / rate  # 0 says that it is done
    return PlannedStep(name, work, 2 * n_tiles * encoder.embed_dim * arrays, seconds)


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
    config, ratio, device = context.config, context.geometry.ratio, context.device
    taps = tile_taps(config.stage1, config.student.layers, depth=teacher.depth, student_depth=student.depth)
    shapes = TileShapes(student.embed_dim, teacher.embed_dim, ratio)
    model = Distiller(
        copy.deepcopy(student), tile_objectives(config.stage1, taps, shapes), blocks=config.stage1.blocks
    ).to(device)
    weights = model.weights(None)
    optimizer = torch.optim.AdamW(model.parameters())
    tiles = _random_tiles(context, config.stage1.batch_size)
    n, dim = len(tiles), teacher.embed_dim
    children, ones = torch.randn(n, ratio**2, dim, device=device), torch.ones(dim, device=device)
    layers = {layer: children for one in taps.values() for layer in one.layers}
    scale = Scale(torch.zeros_like(ones), ones)
    of_layers = dict.fromkeys(layers, scale)

    def step() -> None:
        with autocast(device, config.run.precision):
            on_lr = None
            if reads_lr(taps):
                with torch.no_grad():
                    output = teacher(teacher.preprocess(tiles), sorted(layers))
                maps = dict(zip(sorted(layers), output.layer_token_maps, strict=True))
                on_lr = LRTeacher(output.embedding, output.token_map, maps)
            said = TeacherTiles(
                children,
                layers,
                torch.zeros_like(children[..., 0]),
                torch.ones_like(children[..., 0], dtype=torch.bool),
                on_lr,
                Scales(scale, of_layers, scale, scale, of_layers),
            )
            terms = model(tiles, said)
        torch.autograd.backward(sum(weights[name] * term.sum() for name, term in terms.items()))
        optimizer.step()
        optimizer.zero_grad()

    return _seconds_of(step, context.device) / len(tiles) / context.runtime.world


def _head_seconds(context: Context, method: Method, embed_dim: int) -> float:
    """Measure a step on one bag of mean size; of several magnifications, on the bag of a slide of the middle size."""
    assert method.embedding is not None
    several, ratio = context.several(method, ""), context.geometry.ratio
    reading = context.readings(method)[-1]
    if several is None and method.embedding.on_lr_tiles:
        reading = context.lr_tiles
    sizes = {name: len(item.places_of(reading, ratio)) for name, item in context.tiles.items()}
    model = context.head_section(method).build(embed_dim, context.class_names).to(context.device)
    bag: AnyBag = torch.randn(max(1, sum(sizes.values()) // len(sizes)), embed_dim, device=context.device)
    if several is not None:
        name = sorted(sizes, key=lambda one: (sizes[one], one))[len(sizes) // 2]
        counts = [len(context.tiles[name].several[one].places) for one in several.readings]
        bag = several.bags(name, [torch.randn(count, embed_dim, device=context.device) for count in counts])
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

"""The order of the steps (numbered in `training.stages`), over all folds, and over all processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from scipy.special import softmax
from torch import Tensor

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder import Encoder, weights_file
from napari_lrmil.model.mil import MILModel
from napari_lrmil.slide.identity import stamp_of
from training.data.bags import Instances, Several, SlideBag
from training.data.derived import ChildrenMean, Ridged, Subset, fit_ridge, write_shuffled
from training.data.predictions import Predictions
from training.data.splits import Split
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import Reading, SlideTiles
from training.files import Json, remembered, save_tensors
from training.hashing import content_hash, file_hash
from training.intervals import FoldScores
from training.loop import Session
from training.methods import BY_KEY, OURS, RANDOM, TEACHER, Method, in_table_order
from training.metrics import slide_metrics
from training.run.context import Context
from training.run.layout import Folder
from training.run.markers import RunDirError
from training.run.steps import Stage1Plan, Step, Steps, each_once, once
from training.stages.calibrate import served_outputs
from training.stages.distill_slides import (
    SlideDistillation,
    Stage2Section,
    TeacherOutput,
    bag_specs,
    left_out_note,
)
from training.stages.distill_tiles import (
    TRANSDUCTIVE_NOTE,
    distill_encoder,
    pair_loader,
    spread_of_targets,
    target_array,
    tile_taps,
)
from training.stages.embed_on_cluster import embed_on_cluster
from training.stages.embed_tiles import EmbedJob, EncoderSource, embed_slides
from training.stages.end_to_end import SlidePixels, fit_end_to_end
from training.stages.evaluate import (
    called_metrics,
    fold_scores,
    predict_shortcut,
    predict_test,
    sensitivities,
)
from training.stages.export import export_bundle
from training.stages.fit_trust import fit_trust, honest_probabilities, trust_metrics
from training.stages.front import (
    Costs,
    Counted,
    Front,
    Served,
    Tiles,
    Timed,
    choice_text,
    count_read,
    find_front,
    measure_costs,
    slides_to_time,
    tile_costs,
)
from training.stages.gate import judge
from training.stages.heads import Fit, bag_logits, bag_outputs, fit_head, lacks
from training.stages.shortcuts import ShortcutFeatures, slide_shortcuts

_TRAIN_SHARE, _VAL_SHARE = 0.75, 0.25
"""Of the memory for bags, while a head trains."""


@dataclass(frozen=True)
class Embedded:
    """An encoder, the store of what it says of some tiles, and the bags that are made of that.

    Attributes
    ----------
    encoder : Encoder
    store : EmbeddingStore
    derived : Instances, optional
        The bags, where they aren't what is stored.
    """

    encoder: Encoder
    store: EmbeddingStore
    derived: Instances | None = None

    @property
    def bags(self) -> Instances:
        """Where the bags come from."""
        return self.derived or self.store


@dataclass(frozen=True)
class Head:
    """A head to train: a method on a fold, on some bags.

    Attributes
    ----------
    split : Split
    method : Method
    embedded : Embedded
    seed : int
        Of this training.
    encoder_seed : int, optional
        Of f'; None for methods that aren't of the student.
    """

    split: Split
    method: Method
    embedded: Embedded
    seed: int
    encoder_seed: int | None = None

    def folder(self, context: Context) -> Folder:
        """Return where it lies."""
        return context.folder_of(f"fold{self.split.fold}", encoder_seed=self.encoder_seed, seed=self.seed)

    def step(self, steps: Steps) -> Step:
        """Return the step that trains it; `steps` are the run's."""
        if self.method == TEACHER:
            return steps.teacher(self.split, self.seed)
        if self.method.is_end_to_end:
            return steps.of(self.method).end_to_end(self.split, self.method, self.seed)
        return steps.of(self.method).head(
            self.split, self.method, self.embedded.bags, seed=self.seed, encoder_seed=self.encoder_seed
        )


class Tested(NamedTuple):
    """What a run has found; empty on all processes but the main one."""

    scores: dict[str, list[FoldScores]]
    """Method -> what its trainings say of the test slides, fold by fold."""
    fits: dict[str, list[Fit]]
    """Method -> how well each of its trainings learned its own slides, fold by fold."""
    bundles: list[Path]
    """The student of each fold, of the first seed."""
    front: Front | None
    """The rows by what they cost; None where the teacher isn't compared, and on all processes but the main one."""


Part = Literal["embed", "stage1", "heads", "collect"]
"""Of a run, that can be done in a process of its own: what f says of all tiles; f' of a fold, and what it says; all heads of a
fold, and what they say of its test slides; the comparison, bundles and report. Each does before what it needs."""


def run_steps(
    context: Context, splits: Sequence[Split], steps: Steps, part: Part | None = None
) -> Tested | None:
    """Do all steps of all folds and seeds, or those of a part; None where that isn't the comparison.

    Parameters
    ----------
    context : Context
    splits : sequence of Split
        The folds.
    steps : Steps
    part : {"embed", "stage1", "heads", "collect"}, optional
        By default all.
    """
    teacher = context.teacher_encoder()
    check_tokens(context, teacher)
    read = _embed_by_f(context, steps, teacher)
    if part == "embed":
        return None
    teachers = _heads_by_f(context, splits, TEACHER, steps, read)
    students: dict[str, Embedded] = {}
    if part == "stage1":
        if any(steps.of(method).weights_by_attention for method in trained_methods(context)):
            _train_all(context, [head for head in teachers if head.seed == context.head_seeds[0]], steps)
        for split in splits:
            _student_heads(context, split, steps, teacher, students)
        return None
    _train_all(context, teachers, steps)
    _ask_gates(context, splits, read, steps, teachers)
    heads = []
    for split in splits:
        for method in trained_methods(context):
            assert method.embedding is not None
            if method.embedding.encoder == "teacher":
                heads += _heads_by_f(context, [split], method, steps, read)
        heads += _student_heads(context, split, steps, teacher, students)
    heads += _random_heads(context, splits)
    _train_all(context, heads, steps)
    heads += train_end_to_end(context, splits, steps, teacher)
    if not context.runtime.is_main:
        return None if part == "heads" else Tested({}, {}, [], None)
    if part == "heads":
        for head in (*heads, *teachers):
            evaluate_head(context, steps, head)
        return None
    return _evaluate(context, splits, steps, [*heads, *teachers])


def _embed_by_f(context: Context, steps: Steps, teacher: Encoder) -> dict[Reading, Embedded]:
    """Embed all that f reads."""
    weights = context.config.encoder.weights
    read = {reading: Embedded(teacher, context.read_store(reading)) for reading in readings(context)}
    for reading, embedded in read.items():
        embed(context, rows_read(context, reading), embedded, weights, reading=reading)
    _embed_turned_rows(context, steps, teacher)
    return read


def _heads_by_f(
    context: Context,
    splits: Sequence[Split],
    method: Method,
    steps: Steps,
    read: Mapping[Reading, Embedded],
) -> list[Head]:
    """Return a method's heads on bags by f, of all seeds, fold by fold."""
    heads = []
    for split in splits:
        embedded = bags_of(context, method, split, read, steps)
        heads += [Head(split, method, embedded, seed) for seed in context.head_seeds]
    return heads


def _train_all(context: Context, heads: Sequence[Head], steps: Steps) -> None:
    def training(head: Head) -> Callable[[], None]:
        return partial(train_teacher if head.method == TEACHER else train_head, context, head, steps)

    each_once(context, [(head.step(steps), training(head)) for head in heads])


def _student_heads(
    context: Context, split: Split, steps: Steps, teacher: Encoder, students: dict[str, Embedded]
) -> list[Head]:
    """Train each f' of a fold and embed the LR tiles with it; return the heads that are to be trained on that.

    Parameters
    ----------
    context : Context
    split : Split
    steps : Steps
    teacher : Encoder
    students : dict
        Folder -> f' and what it says; those that are trained are added.
    """
    heads = []
    for method in trained_methods(context):
        assert method.embedding is not None
        if not method.embedding.is_of_student:
            continue
        mine = steps.of(method)
        for encoder_seed in mine.context.encoder_seeds:
            plan = mine.stage1_plan(split, encoder_seed, method.embedding.encoder)
            if plan.folder not in students:
                train_encoder(mine.context, plan, mine, teacher)
                students[plan.folder] = Embedded(
                    mine.context.student_encoder(mine.context.run_dir.folder(plan.folder).read_student()),
                    mine.student_store(plan),
                )
            student = students[plan.folder]
            embed(mine.context, split.labelled, student, mine.student_file(plan))
            several = mine.context.several(method, mine.student_hash(plan))
            if several is not None:
                embed_several(mine.context, split.labelled, student.encoder, several, mine.student_file(plan))
                student = replace(student, derived=several)
            heads += [Head(split, method, student, seed, encoder_seed) for seed in context.head_seeds]
    return heads


def _ask_gates(
    context: Context,
    splits: Sequence[Split],
    read: Mapping[Reading, Embedded],
    steps: Steps,
    teachers: Sequence[Head],
) -> None:
    """Ask in each fold whether its teacher has anything to give, where a head would listen to it; see `Gate`."""
    distilled = [method for method in trained_methods(context) if method.is_distilled]
    if all(steps.of(method).context.config.stage2.gate == "off" for method in distilled):
        return
    heads = _heads_by_f(context, splits, BY_KEY["lr_scratch"], steps, read)
    _train_all(context, heads, steps)

    def ask(split: Split) -> None:
        of_teacher, of_scratch = (
            _said_of_val(context, [head for head in all_heads if head.split == split])
            for all_heads in (teachers, heads)
        )
        gate = judge(
            of_teacher,
            of_scratch,
            n_resamples=context.config.evaluate.bootstrap,
            seed=context.config.run.seed,
        )
        context.run_dir.fold(split.fold).write_gate(gate)

    each_once(
        context,
        [
            (
                steps.gate(split, [head.step(steps) for head in heads if head.split == split]),
                partial(ask, split),
            )
            for split in splits
        ],
    )


def _said_of_val(context: Context, heads: Sequence[Head]) -> FoldScores:
    """Return what trained heads of one fold say of its validation slides, before any calibration."""
    rows = heads[0].split.val
    bags = context.bags(heads[0].embedded.bags, rows, share=_VAL_SHARE)
    models = [
        load_head(context, head.folder(context), head.method, head.embedded.encoder.embed_dim)
        for head in heads
    ]
    return FoldScores(
        np.array([context.class_names.index(row.label) for row in rows], np.int64),
        tuple(row.patient_id for row in rows),
        np.stack([softmax(bag_logits(model, bags, context.device), axis=-1) for model in models])[None],
    )


def trained_methods(context: Context) -> list[Method]:
    """Return the wanted methods that have a head but the teacher, in the order of the table."""
    wanted = {row.key: row for row in context.config.rows if row.embedding and row != TEACHER}
    return [wanted[key] for key in in_table_order(list(wanted))]


def readings(context: Context) -> list[Reading]:
    """Return the tiles that f embeds, each once for all methods: HR and LR in every run."""
    ratio = context.geometry.ratio
    found = dict.fromkeys([context.hr_tiles, context.lr_tiles, *context.readings(TEACHER)])
    for method in trained_methods(context):
        assert method.embedding is not None
        if method.embedding.encoder == "teacher":
            found |= dict.fromkeys(context.readings(method))
        elif method.embedding.encoder == "student_enlarged":
            found[Reading(ratio, enlarged=True)] = None
    return list(found)


def rows_read(context: Context, reading: Reading) -> list[SlideRow]:
    """Return the slides of which f embeds some tiles: unlabelled ones too where an f' learns from what f says there."""
    targets = {context.hr_tiles} | {
        Reading(context.geometry.ratio, enlarged=True)
        for method in trained_methods(context)
        if method.embedding is not None and method.embedding.encoder == "student_enlarged"
    }
    return context.rows if reading in targets else context.labelled


def bags_of(
    context: Context,
    method: Method,
    split: Split,
    read: Mapping[Reading, Embedded],
    steps: Steps,
) -> Embedded:
    """Return the bags of a method by f; what is derived of stored embeddings is so slide by slide, when it is read.

    Parameters
    ----------
    context : Context
    method : Method
    split : Split
        Whose training slides a regression is fitted on.
    read : mapping
        See `readings`; embedded.
    steps : Steps
    """
    ratio, seed, embedding = context.geometry.ratio, context.config.run.seed, method.embedding
    assert embedding is not None
    embedded = read[context.readings(method)[-1]]
    derived: Instances | None = context.several(method, context.encoder_hash)
    if embedding.derived == "subset":
        derived = Subset(embedded.store, context.tiles, ratio, seed)
    elif embedding.derived == "children_mean":
        derived = ChildrenMean(embedded.store, context.tiles, ratio)
    elif embedding.derived == "ridge":
        hr = read[context.hr_tiles].store
        step, folder = steps.ridge_fit(split, embedded.store, hr), context.run_dir.fold(split.fold)

        def fit() -> None:
            targets = ChildrenMean(hr, context.tiles, ratio)
            folder.write_ridge(fit_ridge(embedded.store, targets, [row.slide_id for row in split.train]))

        each_once(context, [(step, fit)])
        derived = Ridged(embedded.store, folder.read_ridge(), step.key)
    return replace(embedded, derived=derived)


def places_of(context: Context, head: Head, rows: Sequence[SlideRow]) -> list[NDArray[np.int64]]:
    """Return the places (N, 2) of the instances of a head's bags, in the grid of its tiles: of several, the finest."""
    embedding, ratio = head.method.embedding, context.geometry.ratio
    assert embedding is not None
    reading = context.readings(head.method)[-1]
    if embedding.derived == "children_mean":
        reading = context.lr_tiles
    found = [tiles.places_of(reading, ratio) for tiles in context.tiles_of(rows)]
    if isinstance(head.embedded.derived, Subset):
        chosen = [head.embedded.derived.chosen(row.slide_id) for row in rows]
        found = [places[index] for places, index in zip(found, chosen, strict=True)]
    return found


def check_tokens(context: Context, teacher: Encoder) -> None:
    """Check what stage 1 would find out after hours of embedding.

    Raises
    ------
    EncoderError
        Where an encoder has fewer tokens along a tile than a tile has children.
    """
    tiles = context.config.tiles
    seed = context.encoder_seeds[0]
    for encoder in (
        teacher,
        context.new_student(teacher, seed) if context.student_spec != teacher.spec else teacher,
    ):
        grid = encoder.tokens_per_edge(tiles.tile_px)
        if grid < tiles.ratio:
            raise EncoderError(
                f"{grid} x {grid} tokens a tile can't tell {tiles.ratio} x {tiles.ratio} children apart: take larger "
                "tiles (tiles.tile_px), smaller tokens or a smaller tiles.ratio"
            )


# --- embedding


def embed(
    context: Context,
    rows: Sequence[SlideRow],
    embedded: Embedded,
    weights: Path | str | None,
    *,
    hr: bool = False,
    reading: Reading | None = None,
) -> None:
    """Embed (steps 1 and 4) in these processes, or on the cluster, what isn't done.

    Parameters
    ----------
    context : Context
    rows : sequence of SlideRow
    embedded : Embedded
    weights : Path or str, optional
        Where the encoder's weights come from; None where they are random.
    hr : bool
        HR tiles, or LR tiles ...
    reading : Reading, optional
        ... unless others are named.
    """
    encoder, store = embedded.encoder, embedded.store
    reading = reading or (context.hr_tiles if hr else context.lr_tiles)
    jobs = context.jobs(rows, store, reading=reading)
    _refuse_where_only_collected(context, jobs)
    description = f"Embedding {reading_name(reading, context.geometry.ratio)} tiles"
    if context.cluster is None:
        embed_slides(jobs, encoder, context.runtime, context.reporter, description)
        return
    place = context.run_dir.shared.random_encoder if weights is None else weights_file(weights)
    if weights is None and context.runtime.is_main:
        save_tensors(place, encoder.vit.state_dict())
    context.runtime.wait()
    if context.runtime.is_main:
        source = EncoderSource(
            encoder.spec.model_dump_json(), place.resolve(), store.root.name, context.config.run.device
        )
        embed_on_cluster(jobs, source, context.cluster, context.reporter, description)
    context.runtime.wait()


def _refuse_where_only_collected(context: Context, jobs: Sequence[EmbedJob]) -> None:
    """Stop a run that only collects where slides aren't embedded.

    Raises
    ------
    RunDirError
    """
    if context.only_collects:
        n_left = sum(not job.is_done for job in jobs)
        if n_left:
            raise RunDirError(
                f"{n_left} of {len(jobs)} slides aren't embedded, so there is nothing to collect. Do it first: embed, then "
                "stage1 and heads of the same command."
            )


def embed_several(
    context: Context, rows: Sequence[SlideRow], encoder: Encoder, several: Several, weights: Path | None
) -> None:
    """Embed all magnifications of a head as `embed` does; of random weights, `weights` None, in this process."""
    for reading, store in several.stores.items():
        assert isinstance(store, EmbeddingStore)
        if weights is not None:
            embed(context, rows, Embedded(encoder, store), weights, reading=reading)
            continue
        jobs = context.jobs(rows, store, reading=reading)
        _refuse_where_only_collected(context, jobs)
        name = reading_name(reading, context.geometry.ratio)
        embed_slides(jobs, encoder, context.runtime, context.reporter, f"Embedding {name}, random")


def reading_name(reading: Reading, ratio: int) -> str:
    """Return what some tiles are called: LR, HR, enlarged LR, or by their edge in HR tiles.

    Those of a head of several magnifications by how many times as wide as its finest they are, and the coarsest.
    """
    if reading.is_of_several:
        name = reading_name(Reading(reading.factor), ratio)
        return f"{name} x {reading.times} (grid x {reading.coarsest})"
    if reading.enlarged:
        return f"LR x {reading.factor}"
    return {1: "LR", ratio: "HR"}.get(reading.factor, f"LR / {reading.factor}")


def _embed_turned_rows(context: Context, steps: Steps, teacher: Encoder) -> None:
    """Embed the HR tiles of rows whose targets are means over turned tiles where the run's aren't, or the reverse."""
    done = {context.hr_store().key}
    for method in trained_methods(context):
        mine = steps.of(method).context
        assert method.embedding is not None
        if not method.embedding.is_of_student or mine.config.stage1.turned == context.config.stage1.turned:
            continue
        enlarged = method.embedding.encoder == "student_enlarged"
        reading = Reading(context.geometry.ratio, enlarged=enlarged)
        embedded = Embedded(teacher, mine.read_store(reading))
        if embedded.store.key not in done:
            done.add(embedded.store.key)
            embed(mine, context.rows, embedded, mine.config.encoder.weights, reading=reading)


def _random_heads(context: Context, splits: Sequence[Split]) -> list[Head]:
    methods = [method for method in trained_methods(context) if method.embedding == RANDOM]
    if not methods:
        return []
    embedded = Embedded(*context.random_lr_encoder())
    # In this process, also where there is a cluster: what is random here must be random there in the same way.
    jobs = context.jobs(context.labelled, embedded.store, hr=False)
    _refuse_where_only_collected(context, jobs)
    embed_slides(jobs, embedded.encoder, context.runtime, context.reporter, "Embedding LR, random")
    heads = []
    for method in methods:
        several = context.several(method, context.random_hash)
        if several is not None:
            embed_several(context, context.labelled, embedded.encoder, several, None)
        mine = replace(embedded, derived=several)
        heads += [Head(split, method, mine, seed) for split in splits for seed in context.head_seeds]
    return heads


# --- training


def train_teacher(context: Context, head: Head, steps: Steps) -> None:
    """Train (step 2) the teacher's head on a fold's HR bags, and keep what it says of every training slide."""
    split, store = head.split, head.embedded.bags
    train = context.bags(store, split.train, share=_TRAIN_SHARE)
    fitted = fit_head(
        train,
        context.bags(store, split.val, share=_VAL_SHARE),
        context.config.teacher_mil,
        _head_session(context, head, steps),
        embed_dim=head.embedded.encoder.embed_dim,
        n_classes=len(context.class_names),
        class_names=context.class_names,
        seed=head.seed,
    )
    folder = head.folder(context)
    folder.write_head(TEACHER.key, fitted)
    outputs = bag_outputs(fitted.model, train, context.device)
    folder.write_teacher_outputs(
        {
            row.slide_id: TeacherOutput.of(output, int(label))
            for row, output, label in zip(split.train, outputs, train.labels, strict=True)
        }
    )


def train_encoder(context: Context, plan: Stage1Plan, steps: Steps, teacher: Encoder) -> None:
    """Train (step 3, stage 1) f' on pairs of tiles, unless it is done."""
    step = steps.stage1(plan)

    def train() -> None:
        config = context.config
        scores = _teacher_attention(context, plan, teacher) if plan.split is not None else None
        layers = config.target_layers
        if plan.encoder == "student_shuffled":
            _shuffle_targets(context, plan, steps)
        train_loader, val_loader = (
            pair_loader(
                context.tiles_of(rows),
                config.stage1,
                context.geometry,
                steps.target_store(plan, rows),
                scores=scores,
                threads=config.run.threads,
                layers=layers,
                rank=context.runtime.rank,
                world=context.runtime.world,
            )
            for rows in (plan.train, plan.val)
        )
        spread = spread_of_targets(
            config.stage1, context.tiles_of(plan.train), steps.target_store(plan, plan.train), layers
        )
        student = context.new_student(teacher, plan.seed)
        # Not the step's key alone: earlier versions named the weights and drew the pairs otherwise.
        key = f"{step.key} objectives, pairs over all slides"
        files = context.run_dir.folder(plan.folder).files("stage1", key, config.run)
        distill_encoder(
            student,
            train_loader,
            val_loader,
            config.stage1,
            Session(context.runtime.fabric, files, context.reporter, "Stage 1: tiles"),
            spread=spread,
            teacher=teacher,
            taps=tile_taps(
                config.stage1, config.student.layers, depth=teacher.depth, student_depth=student.depth
            ),
            ratio=context.geometry.ratio,
            seed=plan.seed,
        )
        if context.runtime.is_main:
            save_tensors(steps.student_file(plan), student.vit.state_dict())
        context.runtime.wait()

    once(context, step, train, together=True)


def _shuffle_targets(context: Context, plan: Stage1Plan, steps: Steps) -> None:
    section = context.config.stage1
    names = [target_array("embedding", section)]
    if context.config.target_layers:
        names.append(target_array("layer_class_tokens", section))
    if context.runtime.is_main:
        for part in (plan.train, plan.val):
            write_shuffled(
                steps.target_store(plan, part),
                context.hr_store(),
                [row.slide_id for row in part],
                names,
                stamp=content_hash(
                    [job.stamp for job in context.jobs(part, context.hr_store(), hr=True)], names
                ),
                seed=plan.seed,
            )
    context.runtime.wait()


def _teacher_attention(
    context: Context, plan: Stage1Plan, teacher: Encoder
) -> Callable[[str], NDArray[np.float32]]:
    """Return the scores of HR tiles by the fold's teacher: of training slides as kept, of validation slides asked anew.

    The teacher of the first seed, whichever seed the encoder has.
    """
    assert plan.split is not None
    folder = context.run_dir.fold(plan.split.fold)
    kept = folder.read_teacher_outputs()
    of_slide = {
        name: output.attention_scores for name, output in kept.items() if output.attention_scores is not None
    }
    head = load_head(context, folder, TEACHER, teacher.embed_dim)
    outputs = bag_outputs(head, context.bags(context.hr_store(), plan.val), context.device)
    for row, output in zip(plan.val, outputs, strict=True):
        scores = output.attention_for(context.class_names.index(row.label))
        assert scores is not None
        of_slide[row.slide_id] = scores
    return lambda slide_id: np.asarray(of_slide[slide_id].numpy(), np.float32)


def train_head(context: Context, head: Head, steps: Steps) -> None:
    """Train (step 5, stage 2) a head on LR bags, with or without the teacher's words."""
    split, method = head.split, head.method
    config, folder, store = steps.of(method).context.config, head.folder(context), head.embedded.bags
    extra_loss = None
    train = context.bags(store, split.train, share=_TRAIN_SHARE)
    if method.is_distilled and not steps.of(method).leaves_teacher_aside(split, method):
        assert method.embedding is not None
        teacher = context.folder_of(f"fold{split.fold}", seed=head.seed)
        extra_loss = SlideDistillation(
            config.stage2,
            [tiles_of_both(context, method, tiles) for tiles in context.tiles_of(split.train)],
            teacher.read_teacher_outputs(),
            ratio=context.geometry.ratio,
            device=context.device,
            student=lacks(config.student_mil),
            on_lr_tiles=method.embedding.on_lr_tiles,
            embeddings=_teacher_bag_embeddings(context, split, teacher, config.stage2),
            class_shares=_class_shares(train.labels, len(context.class_names)),
        )
        note = left_out_note(config.stage2, config.teacher_mil, config.student_mil)
        if note:
            context.reporter.say(f"[yellow]Note:[/] {escape(method.name)}: {escape(note)}")
    fitted = fit_head(
        train,
        context.bags(store, split.val, share=_VAL_SHARE),
        config.student_mil,
        _head_session(context, head, steps),
        embed_dim=head.embedded.encoder.embed_dim,
        n_classes=len(context.class_names),
        class_names=context.class_names,
        seed=head.seed,
        ce_weight=1.0 if extra_loss is None else config.stage2.l_ce,
        extra_loss=extra_loss,
    )
    folder.write_head(method.key, fitted)


def tiles_of_both(context: Context, method: Method, tiles: SlideTiles) -> SlideTiles:
    """Return a slide's tiles, the LR ones those of a method's bags and the HR ones the teacher's: their finest.

    They are others than the run's where the heads read several magnifications.
    """
    ratio = context.geometry.ratio
    mine, teachers = (context.readings(one)[-1] for one in (method, TEACHER))
    if not mine.is_of_several and not teachers.is_of_several:
        return tiles
    lr, hr = tiles.lr_places, tiles.places_of(teachers, ratio)
    if mine.is_of_several:
        lr = tiles.places_of(mine, ratio)
    rows, cols = (np.concatenate([lr, hr // ratio]).max(axis=0) + 1).tolist()
    return replace(tiles, lr_shape_yx=(rows, cols), lr_places=lr, hr_places=hr)


def _class_shares(labels: NDArray[np.int64], n_classes: int) -> list[float]:
    return [float(np.mean(labels == label)) for label in range(n_classes)]


def _teacher_bag_embeddings(
    context: Context, split: Split, folder: Folder, section: Stage2Section
) -> dict[str, Tensor] | None:
    """Return what the teacher's head makes of each training slide's HR bag, asked anew; None where no objective reads it."""
    if not any("embedding" in spec.needs for spec in bag_specs(section)):
        return None
    several = context.several(TEACHER, context.encoder_hash)
    bags = context.bags(several or context.hr_store(), split.train, share=0.0)
    head = load_head(context, folder, TEACHER, bags[0].instance_embeddings.shape[1])
    outputs = bag_outputs(head, bags, context.device)
    found = {row.slide_id: one.bag_embedding for row, one in zip(split.train, outputs, strict=True)}
    return {name: one for name, one in found.items() if one is not None} or None


def train_end_to_end(context: Context, splits: Sequence[Split], steps: Steps, teacher: Encoder) -> list[Head]:
    """Train encoders together with their heads, and embed the folds' LR tiles with them; returns the heads.

    Those that start from f' take that of the first seed.
    """
    wanted = [
        (split, method, seed)
        for method in trained_methods(context)
        if method.is_end_to_end
        for split in splits
        for seed in context.head_seeds
    ]

    def train(split: Split, method: Method, seed: int) -> None:
        mine = steps.of(method)
        config, folder = mine.context.config, context.folder_of(f"fold{split.fold}", seed=seed)
        assert method.embedding is not None
        if method.embedding.encoder == "end_to_end":
            student = mine.context.run_dir.folder(mine.stage1_plan(split).folder)
            encoder = mine.context.student_encoder(student.read_student())
        else:
            encoder = mine.context.new_student(teacher, context.encoder_seeds[0])
        key = mine.end_to_end(split, method, seed).key
        bar = method.bar if len(context.head_seeds) == 1 else f"{method.bar}, seed {seed}"
        files = folder.files(method.key, key, config.run)
        train_pixels, val_pixels = (
            SlidePixels(
                context.tiles_of(rows), context.geometry, context.class_names, threads=config.run.threads
            )
            for rows in (split.train, split.val)
        )
        fitted = fit_end_to_end(
            encoder,
            train_pixels,
            val_pixels,
            config.end_to_end,
            config.student_mil,
            Session(context.runtime.end_to_end_fabric, files, context.reporter, bar),
            n_classes=len(context.class_names),
            class_names=context.class_names,
            seed=seed,
        )
        folder.write_head(method.key, fitted)
        save_tensors(folder.encoder(method.key), encoder.vit.state_dict())

    each_once(
        context,
        [(steps.of(one[1]).end_to_end(*one), partial(train, *one)) for one in wanted],
    )
    heads = []
    for split, method, seed in wanted:
        mine = steps.of(method).context
        folder = context.folder_of(f"fold{split.fold}", seed=seed)
        encoder, file = mine.student_encoder(folder.read_encoder(method.key)), folder.encoder(method.key)
        embedded = Embedded(encoder, mine.lr_store(content_hash(mine.student_spec, file_hash(file))))
        embed(mine, split.labelled, embedded, file)
        encoder.cpu()  # there may be one a fold and seed
        heads.append(Head(split, method, embedded, seed))
    return heads


def _head_session(context: Context, head: Head, steps: Steps) -> Session:
    key, method = head.step(steps).key, head.method
    files = head.folder(context).files(method.key, key, context.config.run)
    bar = method.bar if len(context.head_seeds) == 1 else f"{method.bar}, seed {head.seed}"
    return Session(context.runtime.head_fabric, files, context.reporter, bar)


def load_head(context: Context, folder: Folder, method: Method, embed_dim: int) -> MILModel:
    """Return the head of a method that lies in a folder, in eval mode."""
    spec = context.of_row(method).head_spec(method, embed_dim)
    return folder.read_head(method.key, spec).to(context.device)


# --- test slides and bundles


def _evaluate(context: Context, splits: Sequence[Split], steps: Steps, heads: Sequence[Head]) -> Tested:
    config = context.config
    rows = {row.key for row in rows_of_front(context)}
    tested: dict[str, list[FoldScores]] = {}
    fits: dict[str, list[Fit]] = {}
    validated: dict[str, list[FoldScores]] = {}
    made: set[tuple[str, str]] = set()
    first: dict[tuple[int, str], Head] = {}
    for split in splits:
        for method in config.rows:
            mine = [head for head in heads if head.split.fold == split.fold and head.method == method]
            if method.embedding is None:
                found = [evaluate_shortcut(context, split, steps, method)]
                folders = [context.run_dir.fold(split.fold)]
            else:
                found = [evaluate_head(context, steps, head) for head in mine]  # encoder by encoder
                folders = [head.folder(context) for head in mine]
            made |= {(folder.name, method.key) for folder in folders}
            fits.setdefault(method.key, []).extend(folder.read_fit(method.key) for folder in folders)
            n_heads = len(context.head_seeds) if mine else 1
            tested.setdefault(method.key, []).append(fold_scores(found, n_heads))
            if mine and method.key in rows:
                of_val = [folder.read_val_predictions(method.key) for folder in folders]
                validated.setdefault(method.key, []).append(fold_scores(of_val, n_heads))
            if mine:
                first[split.fold, method.key] = mine[0]
    context.run_dir.keep_only(made)
    front = None
    if TEACHER.key in validated:
        of_first = {method: first[splits[0].fold, method] for method in validated}
        front = find_runs_front(context, steps, splits, of_first, validated, tested)
    else:
        context.run_dir.forget_front()
    choice, bundles = OURS.key if front is None else front.chosen, []
    why = "" if front is None else choice_text(front)
    for split in splits:
        folder = context.run_dir.fold(split.fold)
        student = first[split.fold, OURS.key]
        bundles.append(_export(context, steps, student, folder.bundle, why if choice == OURS.key else ""))
        if choice != OURS.key and context.config.export.cheapest:
            _export(context, steps, first[split.fold, choice], folder.cheapest_bundle, why)
        else:
            shutil.rmtree(folder.cheapest_bundle, ignore_errors=True)  # of another config
    return Tested(tested, fits, bundles, front)


def rows_of_front(context: Context) -> list[Method]:
    """Return the rows that are compared with the teacher by what they cost, and the teacher; none where it isn't compared."""
    config = context.config
    wanted = [row for row in config.rows if row.may_be_chosen]
    if config.front.rows is not None:
        wanted = [row for row in wanted if row == TEACHER or row.key in config.front.rows]
    return wanted if TEACHER in wanted else []


def tiles_read(context: Context, method: Method) -> Tiles:
    """Return which tiles of a slide a method with an encoder reads."""
    assert method.embedding is not None
    ratio = context.geometry.ratio
    within = method.embedding.reading(ratio).factor
    return Tiles(within, ratio**2, context.config.run.seed) if method.embedding.derived else Tiles(within)


def find_runs_front(
    context: Context,
    steps: Steps,
    splits: Sequence[Split],
    heads: Mapping[str, Head],
    val: Mapping[str, Sequence[FoldScores]],
    test: Mapping[str, Sequence[FoldScores]],
) -> Front:
    """Return what each row costs, and the cheapest that is good enough; measured once, and kept.

    Parameters
    ----------
    context : Context
    steps : Steps
    splits : sequence of Split
    heads : mapping
        Of each row of the front, any of its heads: all cost the same.
    val, test : mappings
        Row -> folds.
    """
    config, geometry = context.config, context.geometry
    reads = {key: tiles_read(context, head.method) for key, head in heads.items()}
    names = {key: context.of_row(head.method).head_section(head.method).name for key, head in heads.items()}
    specs = {
        key: content_hash(
            head.embedded.encoder.spec,
            head.embedded.encoder.token_px,
            tuple(reads[key]),
            *([] if names[key] == "abmil" else [names[key]]),
            *_chooses(context, head),
        )
        for key, head in heads.items()
    }
    readings: dict[str, Served] = {}
    choosing: dict[str, Head] = {}
    for key, head in heads.items():
        encoder = head.embedded.encoder
        mil = load_head(context, head.folder(context), head.method, encoder.embed_dim)
        several = context.magnifications(head.method)
        times = (1,) if several is None else several.times
        readings.setdefault(specs[key], Served(encoder, mil, reads[key], times))
        if several is not None:
            choosing.setdefault(specs[key], head)
    slides = {row.slide_id: row for split in splits for row in split.test}
    every = context.tiles_of(slides.values())
    timed = slides_to_time(every, config.front.slides)
    kinds = sorted({one.tiles for one in readings.values() if len(one.times) == 1})

    def bytes_of(tiles: SlideTiles) -> dict[Tiles, int]:
        key = content_hash(stamp_of(tiles.row.path), tiles.row.mpp, geometry, tiles.hr_places.tobytes().hex())
        found = remembered(
            context.run_dir.reads(tiles.row.slide_id),
            key + content_hash([tuple(kind) for kind in kinds]),
            lambda: {str(tuple(kind)): n for kind, n in tile_costs(tiles, geometry, kinds).items()},
        )
        return {kind: int(str(found[str(tuple(kind))])) for kind in kinds}

    def counted_by(name: str) -> list[Counted]:
        head, mil = choosing[name], readings[name].mil
        return [_read_by(context, head, mil, tiles) for tiles in every]

    def measure() -> dict[str, Json]:
        costs, how = measure_costs(
            readings,
            timed,
            every,
            geometry,
            bytes_of=bytes_of,
            counted={name: counted_by(name) for name in choosing},
            device=context.device,
            batch_size=config.encoder.batch_size,
            threads=config.run.threads,
        )
        return {"costs": {name: one.model_dump() for name, one in costs.items()}, "timed": how.model_dump()}

    key = content_hash(
        "with bytes of the file",
        sorted(readings),
        [one.row.slide_id for one in timed],
        [(stamp_of(one.row.path), one.hr_places.tobytes().hex()) for one in every],
        geometry,
        config.mil,
        str(context.device),
        config.encoder.batch_size,
        config.run.threads,
    )
    kept = remembered(context.run_dir.costs_json, key, measure)
    assert isinstance(kept["costs"], dict)
    costs = {name: Costs.model_validate(one) for name, one in kept["costs"].items()}
    test, timed_how = {method: test[method] for method in val}, Timed.model_validate(kept["timed"])
    about = {
        method: (heads[method].method.name, geometry.mpp_lr / reads[method].within, costs[specs[method]])
        for method in val
    }

    def choose() -> None:
        front = find_front(
            val,
            test,
            {method: cost for method, (_, _, cost) in about.items()},
            {method: mpp for method, (_, mpp, _) in about.items()},
            {method: name for method, (name, _, _) in about.items()},
            timed_how,
            context.class_names,
            config.front,
            n_resamples=config.evaluate.bootstrap,
            seed=config.run.seed,
            shared=steps.sharing,
        )
        context.run_dir.write_front(front)

    once(context, steps.front(val, test, about, timed_how), choose, quiet=True)
    front = context.run_dir.read_front()
    assert front is not None  # the step has just been done
    return front


def _chooses(context: Context, head: Head) -> list[str]:
    """Return what the choice of tiles follows from, of a head of several magnifications; nothing of others."""
    several = context.magnifications(head.method)
    if several is None:
        return []
    return [str(tuple(several)), file_hash(head.folder(context).head(head.method.key))]


@torch.no_grad()
def _read_by(context: Context, head: Head, mil: MILModel, tiles: SlideTiles) -> Counted:
    """Return what a head of several magnifications reads of a slide, whose tiles are all embedded."""
    (bag,) = context.bags(head.embedded.bags, [tiles.row], share=0.0)
    part = mil.part_to_read(bag.on(context.device))
    assert isinstance(part, tuple)
    read: dict[Reading, NDArray[np.int64]] = {}
    for reading, one in zip(context.readings(head.method), part, strict=True):
        assert one.places is not None
        read[reading] = one.places.flip(1).cpu().numpy()  # x, y
    return count_read(tiles, context.geometry, read)


def evaluate_head(context: Context, steps: Steps, head: Head) -> Predictions:
    """Ask (step 6) a head about the fold's test slides, unless that was done, and read its answer."""
    split, method, store = head.split, head.method, head.embedded.bags
    folder = head.folder(context)

    def ask() -> None:
        predictions, val_predictions, attention, calibration = predict_test(
            load_head(context, folder, method, head.embedded.encoder.embed_dim),
            context.bags(store, split.val),
            split.val,
            context.bags(store, split.test, share=0.0),
            split.test,
            places_of(context, head, split.test),
            context.class_names,
            context.config.calibrate,
        )
        folder.write_attention(method.key, attention)
        folder.write_val_predictions(method.key, val_predictions)
        folder.write_calibration(method.key, calibration)
        folder.write_predictions(method.key, predictions)

    once(context, steps.of(method).test(split, method, head.step(steps), folder), ask, quiet=True)
    return folder.read_predictions(method.key)


def evaluate_shortcut(context: Context, split: Split, steps: Steps, method: Method) -> Predictions:
    """Ask (step 6) a baseline about the fold's test slides."""
    folder = context.run_dir.fold(split.fold)

    def ask() -> None:
        features = {row.slide_id: shortcut_features(context, row) for row in split.labelled}
        predictions, fit = predict_shortcut(
            method.slide_features,
            features,
            split.train,
            split.val,
            split.test,
            context.class_names,
            context.config.calibrate,
            fitted_auc=context.config.mil.fitted_auc,
        )
        folder.write_fit(method.key, fit)
        folder.write_predictions(method.key, predictions)

    once(context, steps.test_shortcut(split, method), ask, quiet=True)
    return folder.read_predictions(method.key)


def shortcut_features(context: Context, row: SlideRow) -> ShortcutFeatures:
    """Return what the baselines see of one slide, which is read once a run."""
    tiles = context.tiles[row.slide_id]

    def measure() -> dict[str, Json]:
        with context.geometry.open(row) as slide:
            return slide_shortcuts(
                slide, tiles, context.geometry, threads=context.config.run.threads
            ).as_json()

    key = content_hash(stamp_of(row.path), row.mpp, context.geometry, tiles.lr_places.tobytes().hex())
    return ShortcutFeatures.from_json(
        remembered(context.run_dir.shortcut_features(row.slide_id), key, measure)
    )


def _export(context: Context, steps: Steps, head: Head, bundle: Path, choice: str) -> Path:
    split, method = head.split, head.method
    mine = context.of_row(method)
    config = mine.config
    encoder, store = head.embedded.encoder, head.embedded.bags
    folder = context.run_dir.fold(split.fold)

    def export() -> None:
        test = folder.read_predictions(method.key)
        mil = load_head(context, folder, method, encoder.embed_dim)
        calibration = folder.read_calibration(method.key)
        own = split.calibration

        @torch.no_grad()
        def as_read(bag: SlideBag) -> SlideBag:  # prediction measures the distance of the tiles that it reads
            return bag.part_for(mil.cpu().part_to_read)

        held_out = context.bags(store, own or split.val).seen_by(as_read)
        logits = np.stack([output.bag_logits.numpy() for output in served_outputs(mil, held_out)])
        patients = [row.patient_id for row in own or split.val]
        trust = fit_trust(
            context.bags(store, split.train, share=0.0).seen_by(as_read),
            held_out,
            probabilities=calibration.probabilities(logits)
            if own
            else honest_probabilities(logits, held_out.labels, patients, seed=config.run.seed),
            chose_nothing=bool(own),
            seed=config.run.seed,
        )
        measured = slide_metrics(test.labels, test.probabilities, test.called)
        metrics = {f"test_{name}": value for name, value in measured.items()}
        found = sensitivities([fold_scores([test], 1)], context.class_names)
        metrics |= called_metrics(found, calibration.operating_point.positive)
        test_bags = context.bags(store, split.test, share=0.0).seen_by(as_read)
        export_bundle(
            bundle,
            encoder,
            mil,
            mine.head_spec(method, encoder.embed_dim),
            trust,
            config.export,
            geometry=context.geometry,
            class_names=context.class_names,
            calibration=calibration,
            config_sha256=content_hash(config),
            metrics=metrics | trust_metrics(trust, test, test_bags),
            note=" ".join(
                filter(
                    None,
                    (
                        TRANSDUCTIVE_NOTE if config.stage1.is_transductive and method.is_of_student else "",
                        mine.head_section(method).files_note,
                    ),
                )
            ),
            method="" if method == OURS else method.name,
            tiles=tiles_read(context, method),
            distilled=method.is_distilled or method.is_of_student,
            choice=choice,
        )

    own = steps.of(method)
    tested = own.test(split, method, head.step(steps), folder)
    once(context, own.export(split, method, tested, bundle, choice), export)
    return bundle

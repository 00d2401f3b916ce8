"""The steps of a run: what each is called, what it is made from, which files it leaves; and how one is done once.

A step is finished when its marker holds the hash of its inputs, and the files that it read and wrote are as the marker
says: a second run with the same config skips it, one with another config, or with a damaged file, does it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.markup import escape

from napari_lrmil.model.bundle import WEIGHTS_NAME
from napari_lrmil.model.encoder import weights_file
from napari_lrmil.model.naming import BUNDLE_FILE
from napari_lrmil.outside import refuse_endless
from napari_lrmil.slide.identity import stamp_of
from training.checkpoint import remove_checkpoints
from training.data.bags import Instances
from training.data.splits import Split
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import Reading
from training.hashing import content_hash, file_hash
from training.intervals import FoldScores
from training.methods import BY_KEY, TEACHER, Encoding, Method
from training.run.context import Context
from training.run.layout import Folder, RunDir
from training.run.markers import FRONT, RESULTS, RunDirError, unreadable
from training.stages.front import Costs, Front, Timed
from training.stages.heads import Fit

_AFTER_ALL = (FRONT, RESULTS, "report")
_ASKED = re.compile(r"/(test_[^/]*|export(_[^/]*)?)$")
"""Names of steps that ask what was trained."""
_PARTS_OF_TRAINING = ("stage1 --fold F", "heads --fold F")
_REPORT_CODE = Path(__file__).resolve().parents[1] / "report"


class Step(NamedTuple):
    """One step."""

    name: str
    """``<folder>/<what>``, or alone what is of the whole run."""
    key: str
    """Hash of all that it is made from."""
    makes: tuple[Path, ...]
    """The files that are there once it is finished."""
    reads: tuple[Path, ...] = ()
    """Files of earlier steps: where one is made anew and has become another, so is this step."""
    shows: tuple[Path, ...] = ()
    """Files that it writes for the report alone: it isn't done again for them."""
    checkpoint: Path | None = None
    """Where it goes on after it was killed; of no use any more once it is finished."""

    @property
    def is_training(self) -> bool:
        """Whether something is trained or fitted by it."""
        return not (self.name in _AFTER_ALL or _ASKED.search(self.name))


def is_done(run_dir: RunDir, step: Step) -> bool:
    """Whether a step was finished with the same inputs, and its files are as they were."""
    return run_dir.markers.is_done(step.name, step.key, step.makes, step.reads)


def once(
    context: Context,
    step: Step,
    make: Callable[[], None],
    *,
    together: bool = False,
    quiet: bool = False,
) -> None:
    """Do a step unless it is done; where another process is at it, wait for that.

    Parameters
    ----------
    context : Context
    step : Step
    make : callable
        Writes the files of the step.
    together : bool
        Whether all processes do it, each a part, and the main one writes; else this process does it alone.
    quiet : bool
        Don't say so where it was done before.

    Raises
    ------
    RunDirError
        Where it is a training, and this run only collects.
    """
    run_dir, runtime = context.run_dir, context.runtime
    looks = runtime.is_main or not together  # the others hear from the main process

    def finished() -> bool:
        done = looks and is_done(run_dir, step)
        return runtime.of_main(done) if together else done

    if finished():
        if looks:
            _say_done(context, step, quiet=quiet)
        return
    if context.only_collects and step.is_training:
        if context.locks.is_held(step.name):
            raise RunDirError(
                f"{step.name} is still being done by {context.locks.who(step.name)}. Collect when it is."
            )
        raise RunDirError(
            f"{step.name} isn't done, so there is nothing to collect of it. Do it first: {' or '.join(_PARTS_OF_TRAINING)} "
            "of the same command."
        )
    with context.locks.step(step.name) if looks else nullcontext():
        if finished():  # by another process meanwhile
            return
        if looks:
            _say_anew(context, step)
            run_dir.markers.forget(step.name)
            if step.name not in _AFTER_ALL:
                run_dir.results_json.unlink(missing_ok=True)  # it is of what was before
        make()
        if looks:
            shown = [path for path in step.shows if path.is_file()]
            run_dir.markers.write(step.name, step.key, [*step.reads, *step.makes, *shown])
            if step.checkpoint is not None:
                remove_checkpoints(step.checkpoint)
        if together:
            runtime.wait()


def _say_done(context: Context, step: Step, *, quiet: bool) -> None:
    if quiet:
        return
    markers = context.run_dir.markers
    marker = markers.find(step.name)
    before = "" if marker is None or marker.files else ", by a version that kept no hashes of its files"
    context.reporter.say(f"[dim]{step.name}: done before{before}[/]")
    for path in step.shows:
        known = path.is_file() and markers.has_written(path, step.name)
        if known and marker is not None and markers.first_changed(marker, [path]) is not None:
            context.reporter.say(
                f"[yellow]Note:[/] {escape(str(path.relative_to(markers.root)))} isn't as {step.name} wrote it. "
                "No result depends on it, but a report that shows it refuses it. Delete it: it then does without."
            )


def _say_anew(context: Context, step: Step) -> None:
    """Say why a step is done again that was done with the same inputs."""
    markers = context.run_dir.markers
    marker = markers.find(step.name)
    if marker is None or marker.key != step.key:
        return
    changed = markers.first_changed(marker, step.makes, step.reads)
    if changed is not None:
        what = "isn't as it was" if changed.exists() else "is missing"
        context.reporter.say(
            f"[yellow]Note:[/] {step.name} is done anew: {escape(str(changed.relative_to(markers.root)))} {what}"
        )


def each_once(context: Context, steps: Sequence[tuple[Step, Callable[[], None]]]) -> None:
    """Do independent steps, each unless it is done, each in one of the processes."""
    for step, make in context.runtime.share(steps):
        once(context, step, make)
    context.runtime.wait()


@dataclass(frozen=True)
class Stage1Plan:
    """One training of f': for one fold, or for all.

    Attributes
    ----------
    folder : str
        ``shared`` or ``foldN``, or a part of it for another seed than the first.
    seed : int
        Of this training.
    train, val : tuple of SlideRow
        Whose pixels are learned from; those of `val` only choose the epoch.
    split : Split, optional
        Whose teacher weights the children; None for uniform weights.
    encoder : Encoding
        student, or the control in its place, whose targets are others.
    """

    folder: str
    seed: int
    train: tuple[SlideRow, ...]
    val: tuple[SlideRow, ...]
    split: Split | None
    encoder: Encoding = "student"


class Steps:
    """The steps of a run, by name.

    Parameters
    ----------
    context : Context
    splits : sequence of Split
        Of the table, also where only some of them are run.
    base : Steps, optional
        Those of the whole run, where these are of one row with options of its own.
    """

    def __init__(self, context: Context, splits: Sequence[Split], base: Steps | None = None) -> None:
        self._context = context
        self._splits, self._base = splits, base or self
        self._of_row: dict[str, Steps] = {}
        # An encoder that serves all folds must not see what any of them holds out.
        self._held_out_by_none = set.intersection(
            *({row.slide_id for row in split.extra} for split in splits)
        )
        stage1 = context.config.stage1
        self.shares_encoder = stage1.serves_all_folds(len(splits))
        self._stamps: dict[Reading, dict[str, str]] = {} if base is None else base._stamps

    @property
    def context(self) -> Context:
        """The run as these steps see it: with the options of their row."""
        return self._context

    @property
    def sharing(self) -> set[str]:
        """Rows whose f' serves all folds."""
        return self._context.config.sharing(len(self._splits))

    def of(self, row: Method) -> Steps:
        """Return the steps of a row, whose options make them others."""
        if row.key not in self._of_row:
            context = self._context.of_row(row)
            own = self if context is self._context else Steps(context, self._splits, self._base)
            self._of_row[row.key] = own
        return self._of_row[row.key]

    @property
    def weights_by_attention(self) -> bool:
        """Whether f' learns by the attention of a fold's teacher head, which is trained before."""
        return self._context.config.stage1.weighting == "attention"

    # --- training

    def teacher(self, split: Split, seed: int | None = None) -> Step:
        """Return the step that trains a fold's teacher head, by default of the first seed; it sees no layers' tokens.

        One teacher serves all rows, whatever their options.
        """
        if self._base is not self:
            return self._base.teacher(split, seed)
        seed = self._context.head_seeds[0] if seed is None else seed
        spec = self._context.hr_store().spec
        key = content_hash(
            sorted((name, value) for name, value in spec.items() if name not in ("layers", "turned")),
            self._labelled(split.train, hr=True),
            self._labelled(split.val, hr=True),
            self._context.class_names,
            self._context.config.teacher_mil,
            seed,
            *self._context.config.teacher_mil.file_hashes.items(),
            *self._several_of_teacher(split),
        )
        folder = self._context.folder_of(f"fold{split.fold}", seed=seed)
        return Step(
            folder.training_step(TEACHER.key),
            key,
            (folder.head(TEACHER.key), folder.fit(TEACHER.key), folder.teacher_outputs),
            shows=(folder.metrics(TEACHER.key),),
            checkpoint=folder.checkpoint(TEACHER.key),
        )

    def _several_of_teacher(self, split: Split) -> list[object]:
        """Return what a teacher's head of several magnifications is trained on beside; nothing of other heads."""
        several = self._context.several(TEACHER, self._context.encoder_hash)
        if several is None:
            return []
        return [several.key, *(self._labelled_of(TEACHER, part) for part in (split.train, split.val))]

    def stage1_plan(self, split: Split, seed: int | None = None, encoder: Encoding = "student") -> Stage1Plan:
        """Return whose tiles the f' of this fold learns from, by default that of the first seed."""
        config = self._context.config.stage1
        seed = self._context.encoder_seeds[0] if seed is None else seed
        if not self.shares_encoder:
            weighted = config.weighting == "attention"
            # Unlabelled slides have no teacher attention: they serve only where the weights are uniform.
            train = () if config.slides == "unlabelled" else split.train
            if not weighted:
                train = (*train, *split.extra)
            folder = self._context.folder_of(f"fold{split.fold}{self._variant(encoder)}", encoder_seed=seed)
            return Stage1Plan(folder.name, seed, train, split.val, split if weighted else None, encoder)
        rows = self._context.rows
        if config.slides == "unlabelled":
            rows = [row for row in rows if row.slide_id in self._held_out_by_none]
        patients = sorted({row.patient_id for row in rows})
        rng = np.random.default_rng(self._context.config.run.seed)
        held_out = set(rng.permutation(patients)[: max(1, len(patients) // 10)].tolist())
        return Stage1Plan(
            self._context.folder_of(f"shared{self._variant(encoder)}", encoder_seed=seed).name,
            seed,
            tuple(row for row in rows if row.patient_id not in held_out),
            tuple(row for row in rows if row.patient_id in held_out),
            None,
            encoder,
        )

    def _variant(self, encoder: Encoding) -> str:
        """Return the part of a folder's name that says which f' it is; none for that of the run's own config."""
        mine, base = ((one.config.student, one.config.stage1) for one in (self._context, self._base._context))
        parts: list[str] = [] if encoder == "student" else [encoder]
        if mine != base:
            parts.append(f"stage1-{content_hash(*mine)[:12]}")
        return f"/{'-'.join(parts)}" if parts else ""

    def target_store(self, plan: Stage1Plan, part: tuple[SlideRow, ...]) -> EmbeddingStore:
        """Return the embeddings that f' learns to give of some slides' tiles."""
        context = self._context
        if plan.encoder == "student_enlarged":
            return context.read_store(Reading(context.geometry.ratio, enlarged=True))
        store = context.hr_store()
        if plan.encoder == "student_shuffled":
            return context.shuffled_store(store, content_hash(self._ids(part, context.hr_tiles), plan.seed))
        return store

    def stage1(self, plan: Stage1Plan) -> Step:
        """Return the step that trains f'."""
        config = self._context.config
        start = config.student.weights
        key = content_hash(
            self._context.hr_store(config.target_layers).key,  # whatever other rows need beside
            self._ids(plan.train, self._context.hr_tiles),
            self._ids(plan.val, self._context.hr_tiles),
            config.stage1.model_dump_json(exclude={"seeds"}),
            config.student,
            file_hash(weights_file(start)) if start is not None else None,
            plan.seed,
            config.run.precision,
            (self.teacher(plan.split).key, "validated by attention") if plan.split is not None else None,
            *([] if plan.encoder == "student" else [plan.encoder]),
        )
        folder = self._context.run_dir.folder(plan.folder)
        teacher = None if plan.split is None else self._context.run_dir.fold(plan.split.fold)
        return Step(
            folder.stage1_step,
            key,
            (folder.student_encoder,),
            reads=() if teacher is None else (teacher.head(TEACHER.key), teacher.teacher_outputs),
            shows=(folder.metrics("stage1"),),
            checkpoint=folder.checkpoint("stage1"),
        )

    def student_file(self, plan: Stage1Plan) -> Path:
        """Return where the weights of f' are."""
        return self._context.run_dir.folder(plan.folder).student_encoder

    def student_store(self, plan: Stage1Plan) -> EmbeddingStore:
        """Return the LR embeddings by f', which has been trained."""
        return self._context.lr_store(self.student_hash(plan))

    def student_hash(self, plan: Stage1Plan) -> str:
        """Return what f', which has been trained, is known by."""
        return content_hash(self._context.student_spec, file_hash(self.student_file(plan)))

    def head(
        self,
        split: Split,
        method: Method,
        store: Instances,
        *,
        seed: int | None = None,
        encoder_seed: int | None = None,
    ) -> Step:
        """Return the step that trains a student's head on some embeddings of a fold; seeds are by default the first."""
        config = self._context.config
        seed = self._context.head_seeds[0] if seed is None else seed
        key = content_hash(
            store.key,
            self._labelled_of(method, split.train),
            self._labelled_of(method, split.val),
            self._context.class_names,
            config.student_mil,
            seed,
            (self.teacher(split, seed).key, config.stage2.model_dump_json()) if method.is_distilled else None,
            *config.student_mil.file_hashes.items(),
            *(["teacher left aside"] if self.leaves_teacher_aside(split, method) else []),
        )
        folder = self._context.folder_of(f"fold{split.fold}", encoder_seed=encoder_seed, seed=seed)
        teacher = self._context.folder_of(f"fold{split.fold}", seed=seed)
        return Step(
            folder.training_step(method.key),
            key,
            (folder.head(method.key), folder.fit(method.key)),
            reads=(teacher.teacher_outputs,) if method.is_distilled else (),
            shows=(folder.metrics(method.key),),
            checkpoint=folder.checkpoint(method.key),
        )

    def gate(self, split: Split, scratch: Sequence[Step]) -> Step:
        """Return the step that asks whether a fold's teacher is better than LR from scratch, of which `scratch` are the heads."""
        context = self._context
        teachers = [self.teacher(split, seed) for seed in context.head_seeds]
        key = content_hash(
            [step.key for step in (*teachers, *scratch)],
            [row.patient_id for row in split.val],
            context.config.evaluate.bootstrap,
            context.config.run.seed,
        )
        folder = context.run_dir.fold(split.fold)
        reads = tuple(step.makes[0] for step in (*teachers, *scratch))
        return Step(folder.gate_step, key, (folder.gate,), reads=reads)

    def leaves_teacher_aside(self, split: Split, method: Method) -> bool:
        """Whether a method's heads learn without the teacher in a fold, after its gate was asked; no before."""
        if not method.is_distilled or self._context.config.stage2.gate == "off":
            return False
        gate = self._context.run_dir.fold(split.fold).read_gate()
        return gate is not None and not gate.is_open

    def end_to_end(self, split: Split, method: Method, seed: int) -> Step:
        """Return the step that trains an encoder together with its head, from f' of the first seed or from f."""
        context, config = self._context, self._context.config
        assert method.embedding is not None
        if method.embedding.encoder == "end_to_end":
            start = self.stage1(self.stage1_plan(split)).key
        else:
            weights = config.student.weights
            start = content_hash(
                context.encoder_hash,
                config.student,
                file_hash(weights_file(weights)) if weights is not None else None,
                context.encoder_seeds[0],
            )
        key = content_hash(
            start,
            context.geometry,
            self._labelled_of(method, split.train),
            self._labelled_of(method, split.val),
            context.class_names,
            config.student_mil,
            config.end_to_end,
            config.run.precision,
            seed,
            *config.student_mil.file_hashes.items(),
        )
        folder = context.folder_of(f"fold{split.fold}", seed=seed)
        student = self._context.run_dir.folder(self.stage1_plan(split).folder)
        return Step(
            folder.training_step(method.key),
            key,
            (folder.head(method.key), folder.fit(method.key), folder.encoder(method.key)),
            reads=(student.student_encoder,) if method.embedding.encoder == "end_to_end" else (),
            shows=(folder.metrics(method.key),),
            checkpoint=folder.checkpoint(method.key),
        )

    # --- test slides

    def test(self, split: Split, method: Method, head: Step, folder: Folder) -> Step:
        """Return the step that asks a head about a fold's test slides; `folder` is the head's."""
        patients = [row.patient_id for row in split.test]  # they stand in the table of predictions
        val_patients = [row.patient_id for row in split.val]  # the thresholds count by patient
        config = self._context.config
        key = content_hash(
            head.key, self._labelled_of(method, split.test), patients, val_patients, config.calibrate
        )
        makes = (
            folder.predictions(method.key),
            folder.val_predictions(method.key),
            folder.attention(method.key),
            folder.calibration(method.key),
        )
        return Step(folder.test_step(method.key), key, makes, reads=(folder.head(method.key),))

    def test_shortcut(self, split: Split, method: Method) -> Step:
        """Return the step that asks a baseline without an encoder about a fold's test slides."""
        key = content_hash(
            method.key,
            self._context.geometry,
            self._context.class_names,
            [self._labelled(part, hr=False) for part in (split.train, split.val, split.test)],
            [row.patient_id for row in (*split.val, *split.test)],
            self._context.config.calibrate,
            self._context.config.mil.fitted_auc,
        )
        folder = self._context.run_dir.fold(split.fold)
        makes = (folder.predictions(method.key), folder.fit(method.key))
        return Step(folder.test_step(method.key), key, makes)

    def export(self, split: Split, method: Method, test: Step, bundle: Path, choice: str) -> Step:
        """Return the step that exports a bundle of a fold, which names its config.

        Parameters
        ----------
        split : Split
        method : Method
        test : Step
            That made its test predictions.
        bundle : Path
            Its folder.
        choice : str
            Why this of several rows; empty where nothing chose.
        """
        folder = self._context.run_dir.fold(split.fold)
        held_out = self._labelled_of(method, split.calibration)
        key = content_hash(
            test.key, held_out, [row.patient_id for row in split.calibration], self._context.config, choice
        )
        reads = (folder.head(method.key), folder.calibration(method.key), folder.predictions(method.key))
        name = folder.export_step if bundle == folder.bundle else f"{folder.export_step}_{bundle.name}"
        return Step(name, key, (bundle / BUNDLE_FILE, bundle / WEIGHTS_NAME), reads=reads)

    def front(
        self,
        val: Mapping[str, Sequence[FoldScores]],
        test: Mapping[str, Sequence[FoldScores]],
        about: Mapping[str, tuple[str, float, Costs]],
        timed: Timed,
    ) -> Step:
        """Return the step that chooses the cheapest row that is good enough; `about`: name, µm/px and costs of each."""
        config = self._context.config
        key = content_hash(
            config.front,
            config.evaluate.bootstrap,
            config.run.seed,
            self._context.head_seeds,
            self._context.encoder_seeds,
            self._context.class_names,
            _said(val),
            _said(test),
            sorted(self.sharing),
            [(method, name, mpp, costs.model_dump()) for method, (name, mpp, costs) in about.items()],
            timed,
        )
        return Step(FRONT, key, (self._context.run_dir.front_json,))

    def results(
        self,
        tested: Mapping[str, Sequence[FoldScores]],
        set_quantiles: Sequence[float | None],
        fits: Mapping[str, Sequence[Fit]],
        front: Front | None,
        left_out: Mapping[str, str],
    ) -> Step:
        """Return the step that compares all methods: thousands of resamples, not to be taken twice.

        `left_out` says which terms of stage 2 which methods go without.
        """
        config = self._context.config
        key = content_hash(
            config.evaluate.bootstrap,
            config.run.seed,
            self._context.head_seeds,
            self._context.encoder_seeds,
            list(set_quantiles),
            [(row.key, row.name) for row in config.rows if row.key not in BY_KEY],
            _said(tested),
            [(method, [fit.model_dump_json() for fit in found]) for method, found in fits.items()],
            front,
            *([sorted(left_out.items())] if left_out else []),
        )
        # Not results.json itself: that one is absent while a run is at work.
        return Step(RESULTS, key, (self._context.run_dir.kept_results_json,))

    def report(self) -> Step:
        """Return the step that writes the report, from all that it shows and the code that draws it."""
        run_dir = self._context.run_dir
        code = sorted(path for kind in ("py", "j2", "css") for path in _REPORT_CODE.rglob(f"*.{kind}"))
        shown = [*run_dir.reported_files(), self._context.config.data.slides, *code]
        key = content_hash(
            [(path.name, _hash_of(path)) for path in shown],
            [stamp_of(item.row.path) for item in self._context.tiles.values()],
        )
        return Step("report", key, (run_dir.report_html,))

    def ridge_fit(self, split: Split, lr: Instances, hr: Instances) -> Step:
        """Return the step that fits f(LR) to the mean of the HR children on a fold's training slides."""
        rows = split.train
        key = content_hash(
            lr.key, hr.key, self._ids(rows, self._context.lr_tiles), self._ids(rows, self._context.hr_tiles)
        )
        folder = self._context.run_dir.fold(split.fold)
        return Step(folder.ridge_step, key, (folder.ridge_fit,))

    # --- what keys are made of

    def _labelled_of(self, method: Method, rows: Iterable[SlideRow]) -> object:
        """Return slides with labels, and all tiles that a method's bags are made of."""
        assert method.embedding is not None
        rows, context = tuple(rows), self._context
        if context.magnifications(method) is not None:
            return [self._labelled(rows, reading=reading) for reading in context.readings(method)]
        found = self._labelled(rows, reading=method.embedding.reading(context.geometry.ratio))
        if method.embedding.derived == "children_mean":
            return found, self._ids(rows, context.lr_tiles)
        return (found, self._ids(rows, context.hr_tiles)) if method.embedding.derived == "ridge" else found

    def _labelled(
        self, rows: Iterable[SlideRow], *, hr: bool = False, reading: Reading | None = None
    ) -> list[tuple[str, str | None]]:
        rows = tuple(rows)
        reading = reading or (self._context.hr_tiles if hr else self._context.lr_tiles)
        return [(name, row.label) for row, name in zip(rows, self._ids(rows, reading), strict=True)]

    def _ids(self, rows: Iterable[SlideRow], reading: Reading) -> list[str]:
        known, rows = self._stamps.setdefault(reading, {}), tuple(rows)
        new = [row for row in rows if row.slide_id not in known]
        jobs = self._context.jobs(new, self._context.hr_store(), reading=reading)
        for row, job in zip(new, jobs, strict=True):
            known[row.slide_id] = f"{row.slide_id} {job.stamp}"
        return [known[row.slide_id] for row in rows]


def _said(scores: Mapping[str, Sequence[FoldScores]]) -> list[object]:
    """Return what methods say of slides, as values of which each has one text."""
    return [
        (
            method,
            [
                (one.patients, one.labels.tolist(), one.probabilities.tolist(), one.calls.tolist())
                for one in folds
            ],
        )
        for method, folds in scores.items()
    ]


def _hash_of(path: Path) -> str:
    """Return the SHA-256 of a file that the report shows."""
    try:
        refuse_endless(path)
        return file_hash(path)
    except OSError as error:
        raise unreadable(path, error) from error

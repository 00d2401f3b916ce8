"""The configuration of a run: frozen, strict, one TOML file an experiment.

Each section stands beside the code that it configures, with defaults and meanings; here they are put together. A key
that isn't there is an error that names the nearest one.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from napari_lrmil.errors import ConfigError, EncoderError
from training.config.compare import CompareRow
from training.data.table import DataSection
from training.data.tile_index import Magnifications, TilesSection
from training.encoders import EncoderSection, StudentSection, encoder_depth
from training.methods import BY_KEY, DECISIVE, OURS, TEACHER, Method, rows_of_set
from training.objectives.base import Taps
from training.runtime import Precision
from training.section import Section, explained
from training.seeds import Seeds
from training.stages.calibrate import CalibrateSection
from training.stages.distill_slides import Stage2Section
from training.stages.distill_tiles import Stage1Section, reads_lr, target_layers, tile_taps
from training.stages.end_to_end import EndToEndSection
from training.stages.evaluate import EvaluateSection
from training.stages.export import ExportSection
from training.stages.front import FrontSection
from training.stages.heads import MILSection, lacks


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    out_dir: Path = Field(description="run directory; made where missing")
    seed: int = Field(default=0, ge=0, description="of splits, initial weights, sampling and bootstrap")
    seeds: Seeds | None = Field(
        default=None,
        description="of the heads, 0..9 or a list (also --seeds 0..9): each head is trained once with each, all else is done "
        "once, and the table is over all of them; the first one's student is exported. Default: run.seed alone",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: int = Field(default=2, ge=1, description="tiles decoded at once")
    precision: Precision = Field(
        default="32-true",
        description="of the encoders, training and embedding; MIL heads are small and stay at 32 bits",
    )
    embeddings: Path | None = Field(
        default=None, description="embedding store; default in out_dir; runs of one encoder may share it"
    )
    checkpoint_seconds: float = Field(
        default=30.0,
        ge=0,
        description="least time between checkpoints, which are written after an epoch, and within a long one",
    )
    checkpoint_minutes: float = Field(
        default=10.0,
        gt=0,
        exclude_if=lambda value: value == 10.0,  # what is made without it keeps its key
        description="within an epoch, a checkpoint after so long: what a training loses at most that is killed. One that is "
        "asked to end (SIGTERM, SIGUSR1) writes one after its step, and loses nothing",
    )
    checkpoint_steps: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="within an epoch, a checkpoint after so many steps, where that is sooner; default: by time alone",
    )


class RunConfig(Section):
    """The whole configuration."""

    run: RunSection
    data: DataSection
    tiles: TilesSection = TilesSection()
    encoder: EncoderSection = EncoderSection()
    student: StudentSection = StudentSection()
    mil: MILSection = MILSection()
    stage1: Stage1Section = Stage1Section()
    stage2: Stage2Section = Stage2Section()
    end_to_end: EndToEndSection = EndToEndSection()
    calibrate: CalibrateSection = CalibrateSection()
    evaluate: EvaluateSection = EvaluateSection()
    front: FrontSection = FrontSection()
    export: ExportSection = ExportSection()
    compare: tuple[CompareRow, ...] = Field(
        default=(), max_length=200, description="rows of the table; none: set decisive (docs/comparison.md)"
    )

    @property
    def rows(self) -> tuple[Method, ...]:
        """What is compared, in the order of the config, shortcut baselines after the rest; `OURS` always among it."""
        shortcuts = tuple(BY_KEY[key] for key in self.evaluate.shortcuts)
        rows: tuple[Method, ...] = ()
        if not self.compare:
            methods = self.evaluate.methods
            rows = DECISIVE if methods is None else tuple(BY_KEY[key] for key in methods)
        ratio = self.tiles.ratio
        for one in self.compare:
            if one.set is None:
                rows += (one.row(ratio),)
            else:
                depth = encoder_depth(self.encoder.spec) if one.set in ("paper", "all") else None
                rows += rows_of_set(one.set, ratio=ratio, depth=depth)
        return tuple({row.key: row for row in (*rows, *shortcuts, OURS)}.values())

    @property
    def layers_of_rows(self) -> tuple[int, ...]:
        """Blocks of f that stage 1 of any row matches."""
        students = [self, *(self.of_row(row) for row in self.rows if row.is_of_student)]
        return tuple(sorted({layer for config in students for layer in config.target_layers}))

    @property
    def taps(self) -> dict[str, Taps]:
        """What each objective of stage 1 needs of f and f', by its name.

        Raises
        ------
        ConfigError
            Where an encoder has no such blocks.
        """
        depth = encoder_depth(self.encoder.spec)
        student_depth = encoder_depth(self.student.spec_for(self.encoder.spec))
        return tile_taps(self.stage1, self.student.layers, depth=depth, student_depth=student_depth)

    @property
    def target_layers(self) -> tuple[int, ...]:
        """Blocks of f whose class tokens of HR tiles are targets of stage 1."""
        return target_layers(self.taps) if self.stage1.objectives else self.stage1.layers

    def sharing(self, n_folds: int) -> set[str]:
        """Return the rows whose f' serves all folds of a run."""
        return {
            row.key
            for row in self.rows
            if row.is_of_student and self.of_row(row).stage1.serves_all_folds(n_folds)
        }

    @property
    def teacher_mil(self) -> MILSection:
        """Of the teacher's head."""
        return self.mil.of("teacher")

    @property
    def student_mil(self) -> MILSection:
        """Of all other heads."""
        return self.mil.of("student")

    def of_row(self, row: Method) -> RunConfig:
        """Return the config of a row, with its options.

        Raises
        ------
        ValueError
            Where one of them is wrong.
        """
        if not row.options:
            return self
        sections: dict[str, Section] = {}
        for name, values in row.options.items():
            section: Section = getattr(self, name)
            try:
                if isinstance(section, MILSection):
                    sections[name] = section.with_student(values)
                    continue
                sections[name] = type(section).model_validate(
                    section.model_dump(exclude_unset=True) | dict(values)
                )
            except ValidationError as error:
                told = explained(error.errors()[0], type(section))
                raise ValueError(f"compare row {row.key!r}, {name}: {told}") from error
        config = self.model_copy(update=sections)
        try:
            config._check_stage1()
        except ValueError as error:
            raise ValueError(f"compare row {row.key!r}: {error}") from error
        return config

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        self._check_stage1()
        if self.compare and self.evaluate.methods is not None:
            raise ValueError(
                "evaluate.methods and [[compare]] both say what is compared: leave out evaluate.methods"
            )
        keys = [one.key for one in self.compare if one.set is None]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"compare: two rows have the key {key!r}; give each its own")
        for row in self.rows:
            self._check_magnifications(row)
        known = [row.key for row in self.rows if row.may_be_chosen and row != TEACHER]
        odd = next((key for key in self.front.rows or () if key not in known), None)
        if odd is not None:
            raise ValueError(
                f"front.rows: {odd!r} is no row of this run that a bundle can be made of, other than the teacher; these are: "
                f"{', '.join(known)}"
            )
        return self

    def section_of(self, row: Method) -> MILSection:
        """Return what the head of a row is, and how it is trained.

        Raises
        ------
        ValueError
            As `of_row`.
        """
        config = self.of_row(row)
        return config.teacher_mil if row == TEACHER else config.student_mil

    def magnifications_of(self, row: Method) -> Magnifications | None:
        """Return what the head of a row reads, where it reads several magnifications."""
        if row.embedding is None:
            return None
        factors = self.section_of(row).factors
        if len(factors) == 1:
            return None
        return Magnifications(row.embedding.reading(self.tiles.ratio).factor, factors)

    @property
    def magnifications(self) -> tuple[Magnifications, ...]:
        """What heads of several magnifications of any row read, and the teacher's."""
        found = dict.fromkeys(self.magnifications_of(row) for row in (TEACHER, *self.rows))
        return tuple(one for one in found if one is not None)

    def _check_magnifications(self, row: Method) -> None:
        section = self.section_of(row)
        if row.embedding is None or row.embedding.has_magnifications or len(section.factors) == 1:
            return
        raise ValueError(
            f"compare row {row.key!r}: head {section.name!r} reads {len(section.factors)} magnifications, and "
            f"{row.embedding.key!r} ({row.embedding.name}) has one: take a head of one for this row, or another embedding"
        )

    def _check_stage1(self) -> None:
        self._check_tokens()
        if (
            list(self.stage1.layers) != sorted(set(self.stage1.layers))
            or min(self.stage1.layers, default=0) < 0
        ):
            raise ValueError("stage1.layers must ascend and not be negative")
        layers = self.student.layers
        if layers is not None and (
            len(layers) != len(self.stage1.layers)
            or list(layers) != sorted(set(layers))
            or min(layers, default=0) < 0
        ):
            raise ValueError("student.layers must ascend and name one block for each of stage1.layers")
        self._check_stage1_slides()
        if self.stage1.weighting == "attention" and lacks(self.teacher_mil).attention:
            raise ValueError(
                f"stage1.weighting 'attention' needs a teacher whose head has attention; {self.teacher_mil.name!r} has none: "
                "take stage1.weighting 'uniform', or another head in [mil.teacher]"
            )
        if self.stage1.weighting == "attention" and len(self.teacher_mil.factors) > 1:
            raise ValueError(
                f"stage1.weighting 'attention' needs the teacher's attention to all HR tiles; {self.teacher_mil.name!r} looks at "
                "those that it chose: take stage1.weighting 'uniform', or another head in [mil.teacher]"
            )
        self._check_objectives()
        stage1 = self.stage1
        if stage1.learns_lrmil and not (
            stage1.lambda_attn or stage1.lambda_last or (stage1.layers and stage1.lambda_layer)
        ):
            raise ValueError(
                "of stage1.lambda_attn, stage1.lambda_last and, with stage1.layers, stage1.lambda_layer, one must be "
                "above 0: there is nothing to learn from"
            )

    def _check_objectives(self) -> None:
        stage1 = self.stage1
        for section, objectives in (("stage1", stage1.objectives), ("stage2", self.stage2.objectives)):
            names = [one.name for one in objectives]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{section}.objectives: {twice!r} is named twice; each can be once")
        if not stage1.objectives:
            return
        if stage1.layers and not stage1.learns_lrmil:
            raise ValueError(
                "stage1.layers are those of the objective lrmil, which stage1.objectives doesn't name: leave out "
                "stage1.layers, or name it too"
            )
        if not any(one.weight for one in stage1.objectives):
            raise ValueError("stage1.objectives: all weights are 0, there is nothing to learn from")
        try:
            taps = self.taps
        except (ConfigError, EncoderError) as error:
            raise ValueError(str(error)) from error
        controls = {
            row.embedding.encoder
            for row in self.rows
            if row.embedding is not None and row.embedding.encoder in ("student_shuffled", "student_enlarged")
        }
        if reads_lr(taps) and controls:
            odd = ", ".join(name for name, tap in taps.items() if tap.source == "lr")
            raise ValueError(
                f"stage1.objectives: {odd} has f read the LR tile itself (source = 'lr'), which the controls of other targets "
                f"({', '.join(sorted(controls))}) can't replace: take source = 'children', or leave out these rows"
            )

    def _check_tokens(self) -> None:
        token_px, tiles = self.student.token_px, self.tiles
        if token_px is None:
            return
        try:
            self.student.spec_for(self.encoder.spec)
        except EncoderError as error:
            raise ValueError(f"student.token_px {token_px}: {error}") from error
        if tiles.tile_px % token_px:
            raise ValueError(
                f"student.token_px {token_px} doesn't divide tiles.tile_px {tiles.tile_px}: a tile is a whole number of tokens"
            )
        if tiles.tile_px // token_px < tiles.ratio:
            grid = tiles.tile_px // token_px
            raise ValueError(
                f"student.token_px {token_px} gives {grid} x {grid} tokens a tile, which can't tell {tiles.ratio} x "
                f"{tiles.ratio} children apart"
            )

    def _check_stage1_slides(self) -> None:
        scope, slides = self.stage1.scope, self.stage1.slides
        if self.stage1.weighting == "attention":
            if scope == "shared":
                raise ValueError(
                    "stage1.scope 'shared' needs stage1.weighting 'uniform': an encoder weighted by the attention of a "
                    "teacher has seen the labels of that teacher's fold"
                )
            if slides != "train":
                raise ValueError(
                    f"stage1.slides {slides!r} needs stage1.weighting 'uniform': the teacher's attention is known on the "
                    "fold's training slides only"
                )
        if scope == "shared" and slides == "train":
            raise ValueError(
                "stage1.scope 'shared' needs stage1.slides 'unlabelled': an encoder that learned from one fold's training "
                "slides has read the pixels of another's test slides ('all' allows it, and is called transductive)"
            )
        if scope == "fold" and slides == "all":
            raise ValueError(
                "stage1.slides 'all' is every slide of the table, the same for each fold: leave out stage1.scope 'fold', "
                "or take stage1.slides 'train', whose encoder sees no test slide"
            )

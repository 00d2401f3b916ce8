"""The configuration of a run: frozen, strict, one TOML file an experiment.

Each section stands beside the code that it configures, with defaults and meanings; here they are put together. A key
that isn't there is an error that names the nearest one.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from napari_lrmil.errors import EncoderError
from training.data.table import DataSection
from training.data.tile_index import TilesSection
from training.encoders import EncoderSection, StudentSection
from training.methods import TEACHER
from training.runtime import Precision
from training.section import Section
from training.seeds import Seeds
from training.stages.calibrate import CalibrateSection
from training.stages.distill_slides import Stage2Section
from training.stages.distill_tiles import Stage1Section
from training.stages.evaluate import EvaluateSection
from training.stages.export import ExportSection
from training.stages.front import FrontSection
from training.stages.heads import MILSection


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
        default=30.0, ge=0, description="least time between checkpoints, which are written after an epoch"
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
    calibrate: CalibrateSection = CalibrateSection()
    evaluate: EvaluateSection = EvaluateSection()
    front: FrontSection = FrontSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
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
        odd = [key for key in self.front.rows or () if key == TEACHER.key or key not in self.evaluate.methods]
        if odd or (self.front.rows is not None and not self.front.rows):
            raise ValueError(
                f"front.rows names rows of evaluate.methods other than {TEACHER.key!r}; there is no {odd[0]!r} among them"
                if odd
                else "front.rows is empty: leave it out for all rows"
            )
        self._check_tokens()
        self._check_stage1_slides()
        stage1 = self.stage1
        if not (stage1.lambda_attn or stage1.lambda_last or (stage1.layers and stage1.lambda_layer)):
            raise ValueError(
                "of stage1.lambda_attn, stage1.lambda_last and, with stage1.layers, stage1.lambda_layer, one must be "
                "above 0: there is nothing to learn from"
            )
        return self

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

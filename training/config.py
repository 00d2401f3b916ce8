"""The configuration of a run: frozen, strict, one TOML file an experiment.

Every field has its default and meaning here. A key that isn't here is an error that names the nearest one.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import CONVSTEM, IMAGENET_MEAN, IMAGENET_STD, EncoderSpec


class Section(BaseModel):
    """Base of every section: no unknown keys, no changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    out_dir: Path = Field(description="run directory; made where missing")
    seed: int = Field(default=0, ge=0, description="of splits, initial weights, sampling and bootstrap")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: int = Field(default=2, ge=1, description="tiles decoded at once")


class DataSection(Section):
    """The slide table and how it is split."""

    slides: Path = Field(description="CSV: slide_id, path, patient_id, label; optional site, fold, mpp")
    mpp: float | None = Field(default=None, gt=0, description="µm/px of slides that say none themselves")
    n_folds: int = Field(default=5, ge=3, description="folds by patient, where the table has no column fold")
    folds: tuple[int, ...] | None = Field(default=None, description="which folds to run; default all")


class TilesSection(Section):
    """The tiles of student (LR) and teacher (HR)."""

    tile_px: int = Field(default=256, gt=0, description="edge of a tile, both resolutions")
    mpp_lr: float = Field(default=2.0, gt=0, description="µm/px of the student: 2.0 is 5x")
    ratio: int = Field(default=4, ge=2, description="mpp_lr / mpp_hr: 4 makes the teacher's 0.5 µm/px, 20x")
    min_tissue: float = Field(default=0.25, ge=0, le=1, description="smallest share of tissue of a tile")
    apply_icc: bool = Field(
        default=False, description="convert to sRGB by the slides' ICC profiles, as at inference"
    )


class EncoderSection(Section):
    """The teacher encoder f; the student starts from it."""

    architecture: str = Field(default=CONVSTEM, description="timm ViT, or convstem_vit")
    options: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="of the constructor"
    )
    weights: Path | None = Field(default=None, description="safetensors; none: random, for baselines only")
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    batch_size: int = Field(default=32, ge=1, description="tiles a step when embedding")

    @property
    def spec(self) -> EncoderSpec:
        """What the model package builds from."""
        return EncoderSpec(architecture=self.architecture, options=self.options, mean=self.mean, std=self.std)


class MILSection(Section):
    """ABMIL heads, teacher's and student's, and how they are trained: one bag a step."""

    hidden_dim: int = Field(default=128, gt=0)
    gated: bool = True
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on instances")
    epochs: int = Field(default=50, ge=1, description="at most")
    patience: int = Field(
        default=10, ge=1, description="epochs without a better validation AUC before stopping"
    )
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)


class Stage1Section(Section):
    """Tile-level distillation: L1 = lambda_layer L_layer + lambda_attn L_attn (method.md section 3)."""

    layers: tuple[int, ...] = Field(default=(0, 1, 10), description="blocks whose tokens are matched")
    lambda_layer: float = Field(default=1.0, ge=0)
    lambda_attn: float = Field(default=1.0, ge=0)
    weighting: Literal["uniform", "attention"] = Field(
        default="uniform",
        description="of the children in L_attn; uniform needs no labels, so one encoder serves all folds",
    )
    epochs: int = Field(default=5, ge=1)
    pairs_per_epoch: int | None = Field(default=None, ge=1, description="sampled; default every pair")
    val_pairs: int = Field(default=512, ge=1, description="of validation slides, to choose the epoch")
    shifted: bool = Field(default=True, description="LR tiles start at every HR grid position")
    turned: bool = Field(default=True, description="tiles are turned and flipped, their children permuted")
    min_children: float = Field(
        default=0.25, gt=0, le=1, description="share of a pair's children with tissue"
    )
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0, description="peak, after a warm-up of 5 % of the steps")
    weight_decay: float = Field(default=0.02, ge=0)


class Stage2Section(Section):
    """Slide-level distillation: L2 = l_ce CE + l_bag KL + l_soft KL + l_hard CE (method.md section 3)."""

    l_ce: float = Field(default=1.0, ge=0)
    l_bag: float = Field(default=1.0, ge=0, description="teacher's bag logits")
    l_soft: float = Field(default=0.5, ge=0, description="teacher's attention")
    l_hard: float = Field(default=0.5, ge=0, description="teacher's most and least attended tiles")
    temperature_bag: float = Field(default=2.0, gt=0)
    temperature_attention: float = Field(default=1.0, gt=0)
    aggregation: Literal["mean", "max", "sum"] = Field(
        default="sum", description="how the children's attention becomes that of the LR tile"
    )
    k: int = Field(default=4, ge=1, description="tiles at each end in the hard loss")


Method = Literal["teacher_hr", "lr_scratch", "stage1_only", "stage2_only", "lrmil"]


class EvaluateSection(Section):
    """What is compared on the test slides."""

    methods: tuple[Method, ...] = Field(
        default=get_args(Method), description="rows of the table; lrmil is always trained"
    )
    bootstrap: int = Field(default=2000, ge=100, description="resamples of patients for the 95 % intervals")


class ExportSection(Section):
    """The bundle."""

    name: str = Field(default="LRMIL student", min_length=1)
    description: str = Field(default="An LRMIL student.")
    demonstration: bool = Field(default=False, description="marked as not for diagnosis, in card and window")
    licence: str = Field(default="other", description="as a model hub names it")
    training_data: str = Field(default="Not described.")


class RunConfig(Section):
    """The whole configuration."""

    run: RunSection
    data: DataSection
    tiles: TilesSection = TilesSection()
    encoder: EncoderSection = EncoderSection()
    mil: MILSection = MILSection()
    stage1: Stage1Section = Stage1Section()
    stage2: Stage2Section = Stage2Section()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if (
            list(self.stage1.layers) != sorted(set(self.stage1.layers))
            or min(self.stage1.layers, default=0) < 0
        ):
            raise ValueError("stage1.layers must ascend and not be negative")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply ``--section.key value`` pairs.

    Parameters
    ----------
    path : Path
    overrides : sequence of str
        ``["--run.seed", "3", ...]``; ``--run.seed=3`` works too. Values are read as TOML where they
        can be, else as text.

    Raises
    ------
    ConfigError
        Naming the key, and for an unknown one the nearest that exists.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no such config: {path}") from error
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for key, value in _pairs(overrides):
        *sections, name = key.split(".")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--{key}: {section!r} is not a section")
        place[name] = value
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path.name}: " + "; ".join(_explain(item) for item in error.errors())) from error


def content_hash(*values: Any) -> str:
    """SHA-256 over values of which each has one text: models as JSON, the rest by `repr`."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(
            (value.model_dump_json() if isinstance(value, BaseModel) else repr(value)).encode() + b"\0"
        )
    return digest.hexdigest()


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    words = list(overrides)
    pairs = []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"expected --section.key, got {word!r}")
        key, has_value, text = word[2:].partition("=")
        if not has_value:
            if not words:
                raise ConfigError(f"--{key} needs a value")
            text = words.pop(0)
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        pairs.append((key, value))
    return pairs


def _explain(item: Any) -> str:
    place = [str(part) for part in item["loc"]]
    if item["type"] != "extra_forbidden":
        return f"{'.'.join(place) or 'the whole'}: {item['msg'].removeprefix('Value error, ')}"
    model: Any = RunConfig
    for part in place[:-1]:
        model = model.model_fields[part].annotation
    near = difflib.get_close_matches(place[-1], model.model_fields, n=1, cutoff=0.0)
    return f"unknown key {'.'.join(place)!r}; did you mean {'.'.join([*place[:-1], near[0]])!r}?"

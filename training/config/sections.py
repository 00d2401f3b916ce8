"""The configuration of a run: frozen, strict, one TOML file an experiment.

Every field has its default and meaning here. A key that isn't here is an error that names the nearest one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder import CONVSTEM, IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, with_preset


class Section(BaseModel):
    """Base of every section: no unknown keys, no changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    out_dir: Path = Field(description="run directory; made where missing")
    seed: int = Field(default=0, ge=0, description="of splits, initial weights, sampling and bootstrap")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: int = Field(default=2, ge=1, description="tiles decoded at once")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true",
        description="of the encoders, training and embedding; MIL heads are small and stay at 32 bits",
    )
    embeddings: Path | None = Field(
        default=None, description="embedding store; default in out_dir; runs of one encoder may share it"
    )
    checkpoint_seconds: float = Field(
        default=30.0, ge=0, description="least time between checkpoints, which are written after an epoch"
    )


class DataSection(Section):
    """The slide table and how it is split."""

    slides: Path = Field(description="CSV: slide_id, path, patient_id, label; optional site, fold, mpp")
    mpp: float | None = Field(default=None, gt=0, description="µm/px of slides that say none themselves")
    n_folds: int = Field(default=5, ge=3, description="folds by patient, where the table has no column fold")
    folds: tuple[int, ...] | None = Field(default=None, description="which folds to run; default all")
    preserved_sites: bool = Field(
        default=False, description="no site (column site of the table) is in two folds"
    )
    cache_gib: float = Field(
        default=1.0, ge=0, description="bags kept in memory; the others are read each epoch"
    )


class TilesSection(Section):
    """The tiles of student (LR) and teacher (HR)."""

    tile_px: int = Field(default=256, gt=0, description="edge of a tile, both resolutions")
    mpp_lr: float = Field(default=2.0, gt=0, description="µm/px of the student: 2.0 is 5x")
    ratio: int = Field(default=4, ge=2, description="mpp_lr / mpp_hr: 4 makes the teacher's 0.5 µm/px, 20x")
    min_tissue: float = Field(default=0.25, ge=0, le=1, description="smallest share of tissue of a tile")
    apply_icc: bool = Field(
        default=False, description="convert to sRGB by the slides' ICC profiles, as at inference"
    )


class _ViTSection(Section):
    """What the teacher's and the student's encoder have in common."""

    preset: str | None = Field(
        default=None,
        description="published encoder (docs/encoders.md): gives the fields that are not set here",
    )
    architecture: str | None = None
    options: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="of the constructor; beside a preset they win key by key"
    )
    weights: str | None = None
    mean: tuple[float, float, float] = Field(
        default=IMAGENET_MEAN, description="subtracted from RGB in 0..1, as in the encoder's pretraining"
    )
    std: tuple[float, float, float] = Field(default=IMAGENET_STD, description="divides it")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        try:
            filled = with_preset(given)
        except EncoderError as error:
            raise ValueError(str(error)) from error
        if isinstance(filled.get("weights"), str | Path):
            filled["weights"] = str(filled["weights"]) or None
        return filled

    def _spec(self, architecture: str) -> EncoderSpec:
        return EncoderSpec(architecture=architecture, options=self.options, mean=self.mean, std=self.std)


class EncoderSection(_ViTSection):
    """The teacher encoder f; the student starts from it."""

    architecture: str = Field(default=CONVSTEM, description="timm ViT, or convstem_vit")
    weights: str | None = Field(
        default=None,
        description='safetensors file or hf-hub:OWNER/NAME[/FILE]; none or "": random, for baselines only',
    )
    batch_size: int = Field(default=32, ge=1, description="tiles a step when embedding")

    @property
    def spec(self) -> EncoderSpec:
        """What the model package builds from."""
        return self._spec(self.architecture)


class StudentSection(_ViTSection):
    """The student encoder f', where it isn't a copy of f: distilled in resolution and in size at once."""

    architecture: str | None = Field(
        default=None, description="timm ViT or convstem_vit; default: f' starts as a copy of f"
    )
    weights: str | None = Field(
        default=None,
        description='safetensors file or hf-hub:OWNER/NAME[/FILE] to start from; none or "": random',
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="its blocks that are matched with stage1.layers, one each; default: at the same relative depth",
    )

    @property
    def spec(self) -> EncoderSpec | None:
        """What the model package builds from; None where the student is a copy of f."""
        return None if self.architecture is None else self._spec(self.architecture)


class MILSection(Section):
    """ABMIL heads, teacher's and student's, and how they are trained."""

    hidden_dim: int = Field(default=128, gt=0, description="width of the attention's hidden layer")
    gated: bool = Field(default=True, description="attention times a sigmoid gate")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on instances")
    epochs: int = Field(default=50, ge=1, description="at most")
    patience: int = Field(
        default=10, ge=1, description="epochs without a better validation AUC before stopping"
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="of AdamW, constant")
    weight_decay: float = Field(default=1e-3, ge=0, description="of AdamW")
    accumulate: int = Field(default=1, ge=1, description="bags a step")


class Stage1Section(Section):
    """Tile-level distillation: L1 = lambda_layer L_layer + lambda_attn L_attn (method.md section 3)."""

    layers: tuple[int, ...] = Field(
        default=(0, 1, 10), description="blocks of f whose tokens are matched; none: L_attn alone"
    )
    lambda_layer: float = Field(
        default=1.0, ge=0, description="of L_layer: token blocks against the children's class tokens"
    )
    lambda_attn: float = Field(
        default=1.0, ge=0, description="of L_attn: final class token against the children's, weighted"
    )
    weighting: Literal["uniform", "attention"] = Field(
        default="uniform",
        description="of the children in L_attn; uniform needs no labels, so one encoder serves all folds",
    )
    scope: Literal["auto", "shared", "fold"] = Field(
        default="auto",
        description="one f' for all folds, or one a fold; auto: shared where weights are uniform and folds are many",
    )
    slides: Literal["all", "unlabelled"] = Field(
        default="all",
        description="whose pixels a shared f' learns from. No label is used, but with all it has seen the pixels of "
        "test slides; unlabelled keeps to slides without label, of patients that no fold validates or tests",
    )
    epochs: int = Field(default=5, ge=1, description="the one with the least validation loss is kept")
    pairs_per_epoch: int | None = Field(default=None, ge=1, description="sampled; default every pair")
    val_pairs: int = Field(default=512, ge=1, description="of validation slides, to choose the epoch")
    shifted: bool = Field(default=True, description="LR tiles start at every HR grid position")
    turned: bool = Field(default=True, description="tiles are turned and flipped, their children permuted")
    min_children: float = Field(
        default=0.25, gt=0, le=1, description="share of a pair's children with tissue"
    )
    batch_size: int = Field(default=32, ge=1, description="tiles a pass, over all processes together")
    accumulate: int = Field(default=1, ge=1, description="passes a step")
    checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, a third slower"
    )
    window_gib: float = Field(
        default=1.0,
        gt=0,
        description="teacher embeddings held in memory; pairs are shuffled within such a window",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="peak, after a warm-up of 5 % of the steps")
    weight_decay: float = Field(default=0.02, ge=0, description="of AdamW")


class Stage2Section(Section):
    """Slide-level distillation: L2 = l_ce CE + l_bag KL + l_soft KL + l_hard CE (method.md section 3)."""

    l_ce: float = Field(default=1.0, ge=0, description="of the cross-entropy with the label")
    l_bag: float = Field(default=1.0, ge=0, description="weight of the KL to the teacher's bag logits")
    l_soft: float = Field(
        default=0.5, ge=0, description="weight of the KL to the teacher's attention, summed over the bag"
    )
    l_hard: float = Field(
        default=0.5,
        ge=0,
        description="weight of the cross-entropy on the tiles that it attends to most and least",
    )
    temperature_bag: float = Field(default=2.0, gt=0, description="T_b, of both sides' bag logits")
    temperature_attention: float = Field(
        default=1.0, gt=0, description="T_a, of the student's attention logits"
    )
    aggregation: Literal["mean", "max", "sum"] = Field(
        default="sum", description="how the children's attention becomes that of the LR tile"
    )
    k: int = Field(default=4, ge=1, description="tiles at each end in the hard loss")


Method = Literal["teacher_hr", "lr_scratch", "stage1_only", "stage2_only", "lrmil"]
Shortcut = Literal["tissue_fraction", "rgb", "random_init"]


class EvaluateSection(Section):
    """What is compared on the test slides."""

    methods: tuple[Method, ...] = Field(
        default=get_args(Method), description="rows of the table; lrmil is always trained"
    )
    shortcuts: tuple[Shortcut, ...] = Field(
        default=get_args(Shortcut),
        description="baselines that no pathology needs: what they reach is not the method's merit",
    )
    bootstrap: int = Field(default=2000, ge=100, description="resamples of patients for the 95 % intervals")


class ExportSection(Section):
    """The bundle."""

    name: str = Field(default="LRMIL student", min_length=1, description="of the bundle")
    description: str = Field(default="An LRMIL student.", description="one sentence for its card")
    demonstration: bool = Field(default=False, description="marked as not for diagnosis, in card and window")
    licence: str = Field(default="other", description="as a model hub names it")
    training_data: str = Field(default="Not described.", description="what it was trained on, for its card")


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
    evaluate: EvaluateSection = EvaluateSection()
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
        if self.stage1.scope == "shared" and self.stage1.weighting == "attention":
            raise ValueError(
                "stage1.scope 'shared' needs stage1.weighting 'uniform': an encoder weighted by the attention of a "
                "teacher has seen the labels of that teacher's fold"
            )
        if not self.stage1.layers and self.stage1.lambda_attn == 0:
            raise ValueError(
                "without stage1.layers, stage1.lambda_attn must be above 0: there is nothing to learn from"
            )
        return self

"""MIL heads: train one on bags until it has learned its slides, and ask one about bags. Teacher's and students' alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.errors import ConfigError, shortened
from napari_lrmil.model.bundle import stored_weights
from napari_lrmil.model.mil import (
    HEADS,
    ABMILSpec,
    AnyBag,
    MILModel,
    MILOutput,
    MILSpec,
    build_mil,
)
from training.data.bags import Bags, SlideBag
from training.loop import FitResult, OptimizerName, Recipe, Session, Task, fit, write_history
from training.metrics import auc
from training.section import Section, explained, known_or_nearest, nearest
from training.stages.head_files import give_start, hash_of, texts_shape

_OF_ABMIL = ("hidden_dim", "gated", "projection", "dropout", "normalise", "init", "init_classifier")
_OF_FOCUS = ("texts",)
_SIDES: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")
ExtraLoss = Callable[[SlideBag, MILOutput], dict[str, Tensor]]
"""SlideBag and the head's output -> named losses, already weighted, that are added to the cross-entropy."""


@runtime_checkable
class TrainedLoss(Protocol):
    """An `ExtraLoss` that may have trained parameters of its own."""

    def begin(self, head: MILModel, embed_dim: int, n_classes: int) -> nn.Module | None:
        """Start anew for a head with fresh weights; returns what is trained beside it, if anything."""

    def __call__(self, bag: SlideBag, output: MILOutput) -> dict[str, Tensor]:
        """Return the losses."""


_ONE_THREAD = 2**18
"""Numbers of a bag up to which a head's step on the CPU is faster in one thread, as torch's threads wait longer for each
other than they save: 2.5 times faster for 31 tiles of 192 numbers, 1.5 times for 450, and as fast for 1,024."""
_SEEDS_APART = 1_000_003
"""Between the starts of one head: far from the seeds that runs are given."""


class MILSection(Section):
    """MIL heads, teacher's and student's, and how they are trained."""

    name: str = Field(default="abmil", description="of the head: " + ", ".join(HEADS))
    head: dict[str, Any] = Field(
        default_factory=dict,
        description="the head's own keys, with its paper's defaults (docs/comparison.md); those of abmil stand in [mil] itself: "
        + ", ".join(f"mil.{key}" for key in _OF_ABMIL),
    )
    teacher: dict[str, Any] = Field(
        default_factory=dict, description="values of [mil] for the teacher's head alone"
    )
    student: dict[str, Any] = Field(
        default_factory=dict, description="values of [mil] for all other heads than the teacher's"
    )
    hidden_dim: int = Field(default=128, gt=0, description="width of the attention's hidden layer")
    gated: bool = Field(default=True, description="attention times a sigmoid gate")
    projection: tuple[Annotated[int, Field(gt=0, le=8192)], ...] = Field(
        default=(128,),
        max_length=8,
        description="widths of trained layers before the attention, which attention, classifier and instance classifier "
        "share; []: they read the frozen embeddings",
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on instances and after each projection")
    normalise: bool = Field(
        default=True, description="layer norm of the embeddings first; published heads have none"
    )
    init: Path | None = Field(
        default=None,
        description="safetensors file of a published ABMIL head, as FEATHER's, whose weights the head starts from; widths, gated "
        "and normalise must be its own",
    )
    init_classifier: bool = Field(
        default=False,
        description="start from its classifier too: its classes are those of the run, in this order",
    )
    texts: Path | None = Field(
        default=None,
        description="of focus: safetensors file with a matrix of text embeddings a class, called as the class",
    )
    files_licence: str = Field(
        default="", description="of what mil.init or mil.texts names, for the card of the bundle"
    )
    epochs: int = Field(default=50, ge=1, description="at most")
    min_epochs: int = Field(
        default=10,
        ge=1,
        description="weights of an earlier epoch are not kept, whatever their validation AUC: they have fitted nothing; "
        "where mil.epochs is small, half of it",
    )
    patience: int = Field(
        default=10,
        ge=1,
        description="epochs without a better validation AUC before stopping, after mil.min_epochs",
    )
    optimizer: OptimizerName = Field(
        default="adamw", description="adam and radam, of papers, add the weight decay to the gradient"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="of the optimizer's running means"
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="constant after mil.warmup_epochs")
    warmup_epochs: float = Field(default=2.0, ge=0, description="over which the learning rate rises from 0")
    weight_decay: float = Field(default=1e-3, ge=0)
    accumulate: int = Field(default=1, ge=1, description="bags a step")
    clip: float = Field(default=5.0, gt=0, description="longest gradient; 1e9: any")
    balance: Literal["none", "loss", "bags"] = Field(
        default="none",
        description="of classes of unlike size. loss: a slide's cross-entropy counts n / (classes x slides of its class); "
        "bags: an epoch draws as many bags of each class, those of a small one several times",
    )
    fitted_auc: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="a head with a smaller AUC on its own training slides didn't fit them: it is trained again "
        "(mil.restarts), and marked in the table where that doesn't help",
    )
    restarts: int = Field(
        default=2,
        ge=0,
        description="trainings more, from other initial weights, of a head that didn't fit, each of twice mil.epochs and at "
        "least mil.epochs long: where validation is at chance at first, patience ends before anything is learned; of "
        "several the one with the best validation AUC is kept, those that fitted first",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A section that doesn't use these keys has the hash that it had before they came."""
        usual: dict[str, object] = {
            "name": "abmil",
            "head": {},
            "teacher": {},
            "student": {},
            "optimizer": "adamw",
            "betas": (0.9, 0.999),
            "normalise": True,
            "init": None,
            "init_classifier": False,
            "texts": None,
            "files_licence": "",
        }
        return {
            key: value
            for key, value in dump(self).items()
            if key not in usual or getattr(self, key) != usual[key]
        }

    @field_validator("name")
    @classmethod
    def _known_head(cls, value: str) -> str:
        return known_or_nearest(value, HEADS, "head")

    @model_validator(mode="after")
    def _of_its_head(self) -> MILSection:
        if self.name == "abmil":
            if self.head:
                raise ValueError(
                    f"mil.head: the keys of abmil stand in [mil] itself: mil.{next(iter(self.head))}"
                )
        else:
            of_other = next((key for key in _OF_ABMIL if key in self.model_fields_set), None)
            if of_other is not None:
                own = ", ".join(_own_keys(self.name)) or "none"
                raise ValueError(f"mil.{of_other} is a key of abmil; {self.name} has, in [mil.head]: {own}")
            self._own_spec(embed_dim=768, n_classes=2)
        if self.texts is not None and self.name != "focus":
            raise ValueError(f"mil.texts are of head 'focus'; {self.name!r} reads none")
        if self.init_classifier and self.init is None:
            raise ValueError("mil.init_classifier needs mil.init")
        for side in _SIDES:
            values = getattr(self, side)
            odd = next((key for key in _SIDES if key in values), None)
            if odd is not None:
                raise ValueError(f"mil.{side}: leave out {odd!r}")
            try:
                self.of(side)
            except ValidationError as error:
                raise ValueError(f"mil.{side}: {explained(error.errors()[0], MILSection)}") from error
        return self

    def of(self, side: Literal["teacher", "student"]) -> MILSection:
        """Return the section of the teacher's head, or of the others: without sides of its own."""
        own = getattr(self, side)
        if not self.teacher and not self.student:
            return self
        base = self.model_dump(exclude_unset=True, exclude={"teacher", "student"})
        return MILSection.model_validate(_over(base, own, self.name))

    def with_student(self, values: Mapping[str, Any]) -> MILSection:
        """Return the section with other values for all heads but the teacher's.

        Raises
        ------
        ValueError
            Where one of them is wrong.
        """
        odd = next((side for side in _SIDES if side in values), None)
        if odd is not None:
            raise ValueError(f"a row's mil is of its own head: leave out {odd!r}")
        mine, teacher = self.of("student"), self.of("teacher")
        base = mine.model_dump(exclude_unset=True, exclude={"teacher", "student"})
        # The teacher's values one by one, as what is the row's alone isn't to reach it.
        kept = {key: value for key, value in teacher if key not in _SIDES}
        if teacher.name != "abmil":
            kept = {key: value for key, value in kept.items() if key not in _OF_ABMIL}
        return MILSection.model_validate(_over(base, dict(values), mine.name) | {"teacher": kept})

    def spec(self, embed_dim: int, n_classes: int) -> MILSpec:
        """Return what the model package builds the head from."""
        if self.name != "abmil":
            return self._own_spec(embed_dim, n_classes)
        return ABMILSpec(
            embed_dim=embed_dim,
            n_classes=n_classes,
            hidden_dim=self.hidden_dim,
            gated=self.gated,
            dropout=self.dropout,
            projection=self.projection,
            normalise=self.normalise,
        )

    @property
    def factors(self) -> tuple[int, ...]:
        """How many times coarser than the finest each magnification is that the head reads; see `MILSpec.factors`."""
        return self.spec(embed_dim=768, n_classes=2).factors

    def build(self, embed_dim: int, class_names: tuple[str, ...]) -> MILModel:
        """Return the head with fresh weights, after what `init` and `texts` give it.

        Raises
        ------
        ConfigError
            Where a file is missing, can't be read or doesn't fit.
        """
        return give_start(
            build_mil(self.spec(embed_dim, len(class_names))),
            class_names,
            init=self.init,
            classifier=self.init_classifier,
            texts=self.texts,
        )

    @property
    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of each file that the head starts from, by its key: part of what makes it this head.

        Raises
        ------
        ConfigError
            Where one can't be read.
        """
        named = {"mil.init": self.init, "mil.texts": self.texts}
        return {key: hash_of(path, key) for key, path in named.items() if path is not None}

    @property
    def files_note(self) -> str:
        """What the card of a bundle says of these files; empty where there are none."""
        said = {"mil.init": "started from a published head", "mil.texts": "reads embeddings of texts"}
        licence = self.files_licence or "not stated"
        return " ".join(
            f"The head {said[key]} (SHA-256 {sha256}, licence: {licence})."
            for key, sha256 in self.file_hashes.items()
        )

    def _own_spec(self, embed_dim: int, n_classes: int) -> MILSpec:
        spec = HEADS[self.name]
        of_texts = {}
        if self.texts is not None and self.name == "focus":
            try:
                n_texts, text_dim = texts_shape(self.texts)
            except ConfigError as error:
                raise ValueError(str(error)) from error
            of_texts = {"n_texts": n_texts, "text_dim": text_dim}
            for key, value in of_texts.items():
                if self.head.get(key, value) != value:
                    raise ValueError(f"mil.head.{key} is {self.head[key]}, that of {self.texts} {value}")
        odd = next((key for key in self.head if key not in _own_keys(self.name)), None)
        if odd is not None:
            known = _own_keys(self.name)
            meant = f"did you mean 'mil.head.{nearest(odd, known)}'?" if known else f"{self.name} has none"
            raise ValueError(f"unknown key 'mil.head.{shortened(odd)}'; {meant}")
        try:
            return spec.model_validate(
                {"embed_dim": embed_dim, "n_classes": n_classes, **self.head, **of_texts}
            )
        except ValidationError as error:
            raise ValueError(f"mil.head: {explained(error.errors()[0], spec)}") from error

    def recipe(self, seed: int, *, again: bool = False) -> Recipe:
        """Return how its weights are fitted, for the first time or after a training that didn't fit."""
        return Recipe(
            epochs=2 * self.epochs if again else self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            seed=seed,
            accumulate=self.accumulate,
            patience=self.patience,
            min_epochs=self.epochs if again else min(self.min_epochs, max(1, self.epochs // 2)),
            rising_epochs=self.warmup_epochs,
            clip=self.clip,
            optimizer=self.optimizer,
            betas=self.betas,
        )


def _own_keys(name: str) -> list[str]:
    """Keys of a head's spec that a config can set."""
    return [key for key in HEADS[name].model_fields if key not in MILSpec.model_fields]


def _over(base: dict[str, Any], values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return values over others, of the head `name`: where they name another, without what is this one's alone."""
    if values.get("name", name) != name:
        base = {key: value for key, value in base.items() if key not in ("head", *_OF_ABMIL, *_OF_FOCUS)}
    elif isinstance(values.get("head"), dict) and "head" in base:
        values = values | {"head": base["head"] | values["head"]}
    return base | values


def put_over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of ``[mil]`` over others as they stand in a file; another head's own keys go with its name."""
    name = base.get("name", "abmil")
    return _over(dict(base), dict(values), name if isinstance(name, str) else "")


class Lacks(NamedTuple):
    """What a head doesn't say, of which stage 2 has terms."""

    attention: bool
    instances: bool
    """No instance classifier of tiles that decide: none, or one of the slide's classes."""


def lacks(section: MILSection) -> Lacks:
    """Return what the head of a section doesn't say."""
    head = HEADS[section.name]
    return Lacks(attention=not head.has_attention, instances=not head.tells_deciding_tiles)


class InTensors(nn.Module):
    """A head as the training loop calls it: its output as a mapping of tensors, see `MILOutput.tensors`."""

    def __init__(self, head: Callable[[AnyBag], MILOutput]) -> None:
        super().__init__()
        self.head = head

    def forward(self, bag: AnyBag) -> dict[str, Tensor]:
        """Return the tensors of what the head says."""
        return self.head(bag).tensors()


class Fit(BaseModel):
    """How well a head, or a baseline's regression, learned what it was shown."""

    model_config = ConfigDict(frozen=True)

    train_auc: float | None
    """On its own training slides, without dropout, weights as they are kept; None where a class is absent."""
    fitted: bool
    """Whether `train_auc` reaches ``mil.fitted_auc``."""


class HeadFit(Fit):
    """The same of a head, and how it was trained."""

    val_auc: float
    val_loss: float
    epoch: int
    """Whose weights are kept, from 0."""
    epochs: int
    """That were trained."""
    starts: int
    """Trainings from different initial weights, of which this one is kept."""


class FittedHead(NamedTuple):
    """A head in eval mode, and how well it fits."""

    model: MILModel
    fit: HeadFit


def fit_head(
    train: Bags,
    val: Bags,
    section: MILSection,
    session: Session,
    *,
    embed_dim: int,
    n_classes: int,
    seed: int,
    class_names: tuple[str, ...] | None = None,
    ce_weight: float = 1.0,
    extra_loss: ExtraLoss | None = None,
) -> FittedHead:
    """Return a fresh head trained on `train`, stopped on the AUC of `val` (of equal ones the smaller loss).

    The same seed gives the same head on the same machine: of weights, order and dropout. One that doesn't fit its
    training slides is trained again from other weights, as `MILSection` says; curve and TensorBoard are of the one that
    is kept and of the last one.

    Parameters
    ----------
    train, val : Bags
    section : MILSection
    session : Session
    embed_dim, n_classes : int
    seed : int
    class_names : tuple of str, optional
        For a head that reads texts of them.
    ce_weight : float
        Of the cross-entropy with the label.
    extra_loss : callable, optional
        See `ExtraLoss`, and `TrainedLoss`.
    """
    tries: list[tuple[FittedHead, FitResult]] = []
    with _threads_for(train, session.fabric.device):
        for start in range(1 + section.restarts):
            files = session.files.of_start(start)
            tries.append(
                _fit_once(
                    train,
                    val,
                    section,
                    replace(session, files=files),
                    embed_dim=embed_dim,
                    class_names=class_names or tuple(map(str, range(n_classes))),
                    recipe=section.recipe(seed + _SEEDS_APART * start, again=start > 0),
                    ce_weight=ce_weight,
                    extra_loss=extra_loss,
                )
            )
            if tries[-1][0].fit.fitted:
                break

    def rank(one: tuple[FittedHead, FitResult]) -> tuple[bool, float, float]:
        fit = one[0].fit
        return fit.fitted, round(fit.val_auc, 6), -fit.val_loss

    kept = max(tries, key=rank)
    if kept is not tries[-1] and session.fabric.global_rank == 0:
        write_history(session.files.metrics_csv, kept[1])
    head, _ = kept
    return FittedHead(head.model, head.fit.model_copy(update={"starts": len(tries)}))


@contextmanager
def _threads_for(bags: Bags, device: torch.device) -> Iterator[None]:
    """Compute in one thread where the first of the bags is small, on the CPU."""
    before = torch.get_num_threads()
    small = device.type == "cpu" and len(bags) > 0 and bags[0].instance_embeddings.numel() <= _ONE_THREAD
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit_once(
    train: Bags,
    val: Bags,
    section: MILSection,
    session: Session,
    *,
    embed_dim: int,
    class_names: tuple[str, ...],
    recipe: Recipe,
    ce_weight: float,
    extra_loss: ExtraLoss | None,
) -> tuple[FittedHead, FitResult]:
    device = session.fabric.device
    torch.manual_seed(recipe.seed)
    model, n_classes = section.build(embed_dim, class_names).to(device), len(class_names)
    beside = None
    if isinstance(extra_loss, TrainedLoss):
        beside = extra_loss.begin(model, embed_dim, n_classes)
    trained = model if beside is None else nn.ModuleDict({"head": model, "beside": beside.to(device)})
    weights = torch.from_numpy(class_weights(train.labels, n_classes)) if section.balance == "loss" else None
    notes: dict[str, list[Tensor]] = {}

    def batches(epoch: int, start: int = 0) -> Iterator[SlideBag]:
        rng = np.random.default_rng((recipe.seed, epoch))
        if section.balance == "bags":
            return train.in_order(balanced_order(train.labels, rng)[start:].tolist())
        return train.in_order(rng.permutation(len(train))[start:].tolist())

    def losses(wrapped: nn.Module, bag: SlideBag) -> dict[str, Tensor]:
        output = MILOutput.of_tensors(wrapped(bag.on(device)))
        notes.setdefault("labels", []).append(torch.tensor(bag.label))
        notes.setdefault("logits", []).append(output.bag_logits.detach())
        own = model.losses(output, bag.label, class_weights=weights)
        terms = {name: ce_weight * value for name, value in own.items()}
        if extra_loss is not None:
            terms |= extra_loss(bag, output)
        return {"loss": torch.stack(list(terms.values())).sum()} | terms

    def validate() -> dict[str, float]:
        logits = torch.from_numpy(bag_logits(model, val, device))
        loss = float(F.cross_entropy(logits, torch.from_numpy(val.labels)))
        # Of the epoch's steps: with dropout, and of weights as they were at each. A pass more would read all bags again.
        labels = torch.stack(notes["labels"]).cpu().numpy()
        seen = torch.stack(notes["logits"]).double().cpu().numpy()
        trained = _auc_or_none(labels, seen)
        return ({} if trained is None else {"train_auc": trained}) | {
            "val_auc": auc(val.labels, torch.softmax(logits, dim=1).numpy()),
            "val_loss": loss,
        }

    task = Task(
        batches=batches,
        steps_per_epoch=len(train),
        losses=losses,
        validate=validate,
        score=lambda metrics: (round(metrics["val_auc"], 6), -metrics["val_loss"]),
        names=lambda bag, losses: bag.name,
        rest=batches,
        notes=notes,
    )
    result = fit(trained, task, recipe, session, called=InTensors(model))
    model.load_state_dict(
        stored_weights(model.state_dict())
    )  # rounded: what is evaluated is what a bundle serves
    facts = head_fit(result, train.labels, bag_logits(model, train, device), section)
    return FittedHead(model, facts), result


def head_fit(
    result: FitResult, labels: NDArray[np.int64], logits: NDArray[np.float64], section: MILSection
) -> HeadFit:
    """Return how well a head learned its own training slides.

    Parameters
    ----------
    result : FitResult
        Its epochs have val_auc and val_loss.
    labels : (n,) int array
    logits : (n, C) array
        Of the training slides, with the weights that are kept.
    section : MILSection
    """
    kept, train_auc = result.history[result.best_epoch], _auc_or_none(labels, logits)
    return HeadFit(
        train_auc=train_auc,
        val_auc=kept["val_auc"],
        val_loss=kept["val_loss"],
        fitted=train_auc is not None and train_auc >= section.fitted_auc,
        epoch=result.best_epoch,
        epochs=len(result.history),
        starts=1,
    )


def class_weights(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Return n / (C n_c) of each class c: their mean over the slides is 1, and each class weighs as much in all.

    Parameters
    ----------
    labels : (n,) int array
    n_classes : int
        C

    Returns
    -------
    (C,) array
    """
    counts = np.bincount(labels, minlength=n_classes)
    return np.asarray(len(labels) / (n_classes * np.maximum(counts, 1)), np.float64)


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return n indices in random order, as many of each class as can be (they differ by one at most).

    Within a class every slide is drawn before one is drawn again.

    Parameters
    ----------
    labels : (n,) int array
    rng : numpy Generator
    """
    classes = np.unique(labels)
    rng.shuffle(classes)  # the classes that get one more where n can't be shared evenly
    drawn = []
    for place, label in enumerate(classes):
        slides = np.flatnonzero(labels == label)
        wanted = len(labels) // len(classes) + (place < len(labels) % len(classes))
        rounds = [rng.permutation(slides) for _ in range(-(-wanted // len(slides)))]
        drawn.append(np.concatenate(rounds)[:wanted])
    return np.asarray(rng.permutation(np.concatenate(drawn)), np.int64)


def _auc_or_none(labels: NDArray[np.int64], logits: NDArray[np.float64]) -> float | None:
    try:
        return auc(labels, torch.softmax(torch.from_numpy(logits), dim=1).numpy())
    except ValueError:  # a class is absent
        return None


def bag_outputs(model: MILModel, bags: Iterable[SlideBag], device: torch.device) -> Iterator[MILOutput]:
    """Yield the model's outputs bag by bag, on the CPU, without gradients."""
    model.eval()
    with torch.inference_mode():
        for bag in bags:
            told = model(bag.on(device)).tensors()
            yield MILOutput.of_tensors({name: value.float().cpu() for name, value in told.items()})


def bag_logits(model: MILModel, bags: Iterable[SlideBag], device: torch.device) -> NDArray[np.float64]:
    """Return the bag logits, (number of bags, C)."""
    return np.stack([output.bag_logits.double().numpy() for output in bag_outputs(model, bags, device)])

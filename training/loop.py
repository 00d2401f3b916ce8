"""One fit() for every stage: epochs, validation, early stopping, checkpoints, the best weights kept."""

from __future__ import annotations

import csv
import io
import itertools
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from rich.markup import escape
from torch import Tensor, nn

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import LRMILError
from training import notice
from training.checkpoint import Files, FitState, Notes, Sums, random_states
from training.files import save_tensors
from training.progress import Advance, Reporter

T = TypeVar("T")
OptimizerName = Literal["adamw", "adam", "radam"]
_OPTIMIZERS: dict[OptimizerName, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "radam": torch.optim.RAdam,
}


class TrainingDiverged(LRMILError):
    """A loss stopped being a number."""


@dataclass(frozen=True)
class Recipe:
    """How weights are fitted.

    Attributes
    ----------
    epochs : int
        At most.
    learning_rate : float
        Constant, after `rising_epochs`; or with `warmup` the peak of a cosine after 5 % of rising steps.
    weight_decay : float
    seed : int
        What is random in an epoch depends on it and on the epoch alone.
    accumulate : int
        Batches a step; an epoch's last step has those that are left. They are held in memory together.
    patience : int, optional
        Epochs without a better score before stopping; None never stops early.
    warmup : bool
    min_epochs : int
        Only from this epoch on can weights be kept, if there are so many: those of an earlier one are kept only where
        training breaks off before. Patience counts from there.
    rising_epochs : float
        Epochs over which a constant rate rises from near 0.
    learning_rates : mapping
        Beginning of parameters' names -> their rate, where it isn't `learning_rate`.
    clip : float
        A gradient that is longer is shortened to it; inf: never. An epoch's metrics say how long gradients were and which
        share of them was.
    optimizer : {"adamw", "adam", "radam"}
        The weight decay of the last two is added to the gradient.
    betas : tuple of float
        Of the optimizer's running means of gradients and of their squares.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    seed: int
    accumulate: int = 1
    patience: int | None = None
    warmup: bool = False
    min_epochs: int = 1
    rising_epochs: float = 0.0
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    clip: float = 5.0
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Task(Generic[T]):
    """What is fitted: batches of type T, their loss, and what says how good the weights are.

    Attributes
    ----------
    batches : callable
        Epoch -> its batches.
    steps_per_epoch : int
        Batches of an epoch at most, for schedule and bar.
    losses : callable
        Model (as Fabric wraps it) and batch -> named losses; "loss" is minimised, all scalars are logged.
    validate : callable
        Metrics of the model as it is, in eval mode; the same on every process.
    score : callable
        Metrics -> tuple that is larger for better ones.
    names : callable
        Batch and losses -> the slides to name where the loss isn't a number.
    size : callable
        Batch -> its weight in the mean over a step's batches and over an epoch, for batches of unequal size. The same
        on every process.
    rest : callable, optional
        Epoch and number -> its batches after so many, for a run that goes on in its middle, where taking these and leaving
        them would take long.
    notes : dict
        What the task gathers of an epoch's batches, as lists of tensors of one shape: empty when an epoch begins, and part of
        a checkpoint in its middle.
    """

    batches: Callable[[int], Iterable[T]]
    steps_per_epoch: int
    losses: Callable[[nn.Module, T], dict[str, Tensor]]
    validate: Callable[[], dict[str, float]]
    score: Callable[[dict[str, float]], tuple[float, ...]]
    names: Callable[[T, dict[str, Tensor]], str]
    size: Callable[[T], float] = lambda batch: 1.0
    rest: Callable[[int, int], Iterable[T]] | None = None
    notes: Notes = field(default_factory=dict)

    def batches_after(self, epoch: int, number: int) -> Iterator[T]:
        """Return an iterator over an epoch's batches but the first so many."""
        if number and self.rest is not None:
            return iter(self.rest(epoch, number))
        found = iter(self.batches(epoch))
        deque(itertools.islice(found, number), maxlen=0)
        return found


@dataclass(frozen=True)
class Session:
    """Where a fit computes, where it writes, and to whom it speaks.

    Attributes
    ----------
    fabric : Fabric
        Device, precision and processes; with several each sees its share of every batch.
    files : Files
    reporter : Reporter
    name : str
        For the bar and for errors.
    """

    fabric: Fabric
    files: Files
    reporter: Reporter
    name: str


class FitResult(NamedTuple):
    """The epoch whose weights the model now holds, and every epoch's metrics."""

    best_epoch: int
    history: list[dict[str, float]]


def fit(
    model: nn.Module, task: Task[T], recipe: Recipe, session: Session, *, called: nn.Module | None = None
) -> FitResult:
    """Train `model` in place and leave it with the weights of its best epoch.

    A fit that goes on from a checkpoint ends where an uninterrupted one does; on one process to the last bit, also from the
    middle of an epoch. On several, which draw random numbers each, about there.

    Parameters
    ----------
    model : nn.Module
    task : Task
    recipe : Recipe
    session : Session
    called : nn.Module, optional
        What `task.losses` gets, wrapped for precision and processes: a module around `model` where that doesn't return
        tensors in tuples or mappings. Default: `model`.

    Raises
    ------
    TrainingDiverged
        Naming step and slides; the weights of the best epoch so far are back in the model and in `files.last_good`.
    Noticed
        Where a signal asked the process to end: after the step, whose state is in the checkpoint.
    """
    fabric, files = session.fabric, session.files
    # A head's step on a CPU takes half the time. Elsewhere a gradient scaler must see gradients first.
    fused: dict[str, Any] = (
        {} if recipe.optimizer == "radam" else {"fused": fabric.device.type == "cpu" or None}
    )
    kind: Callable[..., torch.optim.Optimizer] = _OPTIMIZERS[recipe.optimizer]
    optimizer = kind(
        _by_learning_rate(model, recipe),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        **fused,
    )
    wrapped, wrapped_optimizer = fabric.setup(model if called is None else called, optimizer)
    steps_per_epoch = -(-task.steps_per_epoch // recipe.accumulate)
    total_steps, rising = recipe.epochs * steps_per_epoch, recipe.rising_epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: _warm_cosine(step, total_steps) if recipe.warmup else _rising(step, rising),
    )
    state = FitState(model, optimizer, schedule, fabric, task.notes)
    if not state.load(files):
        session.reporter.say(
            f"[yellow]Note:[/] {escape(session.name)}: {escape(str(files.checkpoint))} is damaged; this training starts anew"
        )
    trainer = _Trainer(task, state, session, wrapped, wrapped_optimizer, recipe.clip)
    checkpoints = _Checkpoints(state, session)
    total = recipe.epochs * task.steps_per_epoch
    min_epochs = min(recipe.min_epochs, recipe.epochs)
    with (
        session.reporter.bar(session.name, total) as advance,
        _tensorboard(files, fabric, state.step) as log,
        notice.deferred(),
    ):
        if state.step:
            before = f"after epoch {state.epoch - 1}"
            if state.within.n_batches:
                before = f"in epoch {state.epoch}, after {state.within.n_batches} of {task.steps_per_epoch}"
            advance(
                state.epoch * task.steps_per_epoch + state.within.n_batches,
                note=f"went on {before}",
            )
        while state.epoch < recipe.epochs and not (
            state.epoch >= min_epochs and state.out_of_patience(recipe.patience)
        ):
            state.begin_epoch(recipe.seed * 100_003 + state.epoch)
            model.train()
            left = task.batches_after(state.epoch, state.within.n_batches)
            state.go_on()
            for batches in _groups(left, recipe.accumulate):
                loss = trainer.step(batches, advance)
                log("step/loss", loss, state.step)
                log("step/learning_rate", float(schedule.get_last_lr()[0]), state.step)
                state.step += 1
                checkpoints.after_step()
            model.eval()
            with checkpoints.kept_if_ended():
                metrics = state.within.sums.means(fabric) | trainer.gradients() | task.validate()
            trainer.check_validation(metrics)
            # At the epoch's last step: a run that goes on from this epoch's checkpoint purges all from its next step on.
            for name, value in metrics.items():
                log(f"epoch/{name}", value, max(0, state.step - 1))
            may_stay = state.epoch + 1 >= min_epochs
            state.finish_epoch(metrics, (float(may_stay), *task.score(metrics)))
            if fabric.global_rank == 0:
                write_history(files.metrics_csv, FitResult(state.best_epoch, state.history))
            checkpoints.after_epoch()
            advance(
                0, note=" ".join(f"{name} {metrics[name]:.3g}" for name in metrics if name.startswith("val"))
            )
        if state.epoch < recipe.epochs:
            advance(total - state.epoch * task.steps_per_epoch, note=f"stopped at epoch {state.epoch - 1}")
    model.load_state_dict(state.best)
    model.eval()
    result = FitResult(state.best_epoch, state.history)
    if fabric.global_rank == 0:
        write_history(files.metrics_csv, result)
    return result


def _by_learning_rate(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the parameters in groups of one learning rate, as an optimizer takes them."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        own = [rate for start, rate in recipe.learning_rates.items() if name.startswith(start)]
        groups.setdefault(own[0] if own else recipe.learning_rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


class _Trainer(Generic[T]):
    """Steps of a fit, and the errors that end it."""

    def __init__(
        self,
        task: Task[T],
        state: FitState,
        session: Session,
        wrapped: _FabricModule,
        optimizer: _FabricOptimizer,
        clip: float,
    ) -> None:
        self._task, self._state, self._session = task, state, session
        self._wrapped, self._optimizer, self._clip = wrapped, optimizer, clip

    def gradients(self) -> dict[str, float]:
        """Return the mean length of the epoch's gradients, and the share that was shortened; finite ones alone."""
        if not self._state.within.norms:
            return {}
        norms = torch.stack(self._state.within.norms).double()  # one look at the device an epoch
        norms = norms[torch.isfinite(norms)]
        if not len(norms):
            return {"train_gradient": math.inf, "train_clipped": 1.0}
        return {
            "train_gradient": float(norms.mean()),
            "train_clipped": float((norms > self._clip).double().mean()),
        }

    def step(self, batches: list[T], advance: Advance) -> float:
        """Update the weights once; returns the mean loss over the batches."""
        task, fabric, within = self._task, self._session.fabric, self._state.within
        of_step, size = Sums(), sum(task.size(batch) for batch in batches)
        seen = []
        for place, batch in enumerate(batches, start=1):
            share = task.size(batch)
            with fabric.no_backward_sync(self._wrapped, enabled=place < len(batches)):
                losses = task.losses(self._wrapped, batch)
                if not torch.isfinite(losses["loss"]):
                    names = task.names(batch, losses)
                    raise self._diverged(
                        "loss", float(losses["loss"].detach()), names, within.n_batches + place
                    )
                fabric.backward(losses["loss"] * (share / size))
            losses = {name: value.detach() for name, value in losses.items()}
            within.sums.add(losses, share)
            of_step.add(losses, share)
            seen.append((batch, losses))
            advance()
        norm = fabric.clip_gradients(
            self._wrapped, self._optimizer, max_norm=self._clip, error_if_nonfinite=False
        )
        if norm is not None:
            within.norms.append(norm.detach().cpu() if norm.device.type == "mps" else norm.detach())
        # A gradient scaler skips such steps by itself.
        if norm is not None and not torch.isfinite(norm) and not _scales(fabric):
            names = ", ".join(dict.fromkeys(task.names(*one) for one in seen))
            raise self._diverged("gradient", float(norm), names, within.n_batches + len(batches))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._state.schedule.step()
        within.n_batches += len(batches)
        return of_step.mean("loss")

    def check_validation(self, metrics: dict[str, float]) -> None:
        """Stop where the score isn't a number: it would compare as worse than anything, in silence."""
        if any(map(math.isnan, self._task.score(metrics))):
            what = ", ".join(name for name, value in metrics.items() if math.isnan(value))
            raise self._diverged(
                "validation", math.nan, f"{what} of the validation slides", self._state.within.n_batches
            )

    def _diverged(self, what: str, value: float, names: str, step: int) -> TrainingDiverged:
        """Return the error, once the best weights so far are back in the model and in a file."""
        state, last_good = self._state, self._session.files.last_good
        state.model.load_state_dict(state.best)
        save_tensors(last_good, state.best)
        kept = "the initial weights" if state.best_epoch < 0 else f"the weights of epoch {state.best_epoch}"
        return TrainingDiverged(
            f"{self._session.name}: the {what} is {value} at epoch {state.epoch}, step {step}, on {names}. Look at "
            f"that slide, or try a smaller learning rate. Kept: {kept}, in {last_good}."
        )


class _Checkpoints:
    """When a fit's state is written: after epochs, within long ones, and where a signal asks the process to end.

    With several processes all write or none, whichever of them it was whose clock or signal said so.
    """

    def __init__(self, state: FitState, session: Session) -> None:
        self._state, self._files, self._fabric = state, session.files, session.fabric
        self._saved_at, self._steps = time.monotonic(), 0

    def after_step(self) -> None:
        """Write it where that is due, and end the work where that is asked."""
        self._steps += 1
        files, waited = self._files, time.monotonic() - self._saved_at
        due = waited >= files.checkpoint_seconds and (
            waited >= 60 * files.checkpoint_minutes
            or (files.checkpoint_steps is not None and self._steps >= files.checkpoint_steps)
        )
        self._write_or_end(due)

    def after_epoch(self) -> None:
        """The same, where a checkpoint is due sooner."""
        self._write_or_end(time.monotonic() - self._saved_at >= self._files.checkpoint_seconds)

    @contextmanager
    def kept_if_ended(self) -> Iterator[None]:
        """Within the block, the validation, a signal needn't wait: the epoch's steps are kept, and the next run validates."""
        if self._fabric.world_size > 1:  # the others would wait for this process
            yield
            return
        random = random_states(self._fabric.device)
        try:
            with notice.at_once():
                yield
        except notice.Noticed:
            self._state.save(self._files, random)
            raise

    def _write_or_end(self, due: bool) -> None:
        ends = notice.came()
        if self._fabric.world_size > 1:
            asked = torch.tensor([due, ends], dtype=torch.float32, device=self._fabric.device)
            of_all = self._fabric.all_reduce(asked, reduce_op="max")
            assert isinstance(of_all, Tensor)
            due, ends = (bool(one) for one in of_all.tolist())
        if due or ends:
            self._state.save(self._files)
            self._saved_at, self._steps = time.monotonic(), 0
        if ends:
            notice.obey_any()


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _scales(fabric: Fabric) -> bool:
    return getattr(fabric.strategy.precision, "scaler", None) is not None


def _warm_cosine(step: int, total: int) -> float:
    """Return the factor of the peak: a rise over 5 % of the steps, then half a cosine down to 0."""
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))


def _rising(step: int, rising: float) -> float:
    return min(1.0, (step + 1) / rising) if rising > 0 else 1.0


def write_history(path: Path, result: FitResult) -> None:
    """Write a row an epoch; the column "kept" has a 1 where the weights are those that stay."""
    text = io.StringIO()
    columns = [*result.history[0], "kept"] if result.history else ["epoch", "kept"]
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    for row in result.history:
        writer.writerow(row | {"kept": int(row["epoch"] == result.best_epoch)})
    write_text(path, text.getvalue())


@contextmanager
def _tensorboard(files: Files, fabric: Fabric, step: int) -> Iterator[Callable[[str, float, int], None]]:
    if files.tensorboard is None or fabric.global_rank != 0:
        yield lambda name, value, at: None
        return
    from torch.utils.tensorboard import SummaryWriter  # takes a second: only where something is trained

    if not step:  # what is there is of another fit: it would be drawn into the same curves
        shutil.rmtree(files.tensorboard, ignore_errors=True)
    with SummaryWriter(str(files.tensorboard), purge_step=step or None) as writer:
        yield lambda name, value, at: writer.add_scalar(name, value, at)

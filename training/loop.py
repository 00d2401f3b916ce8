"""One fit() for every stage: epochs, validation, early stopping, checkpoints, the best weights kept."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import LRMILError
from training.checkpoint import Files, FitState
from training.progress import Reporter
from training.run_dir import save_tensors

T = TypeVar("T")
_MAX_NORM = 5.0


class TrainingDiverged(LRMILError):
    """A loss stopped being a number."""


class FitResult(NamedTuple):
    """The epoch whose weights the model now holds, and every epoch's metrics."""

    best_epoch: int
    history: list[dict[str, float]]


def fit(
    model: nn.Module,
    *,
    fabric: Fabric,
    epochs: int,
    batches: Callable[[int], Iterable[T]],
    steps_per_epoch: int,
    loss_of: Callable[[nn.Module, T], dict[str, Tensor]],
    names_of: Callable[[T, dict[str, Tensor]], str],
    validate: Callable[[], dict[str, float]],
    score: Callable[[dict[str, float]], tuple[float, ...]],
    learning_rate: float,
    weight_decay: float,
    seed: int,
    accumulate: int = 1,
    size_of: Callable[[T], float] = lambda batch: 1.0,
    patience: int | None = None,
    warmup: bool = False,
    files: Files,
    reporter: Reporter,
    description: str,
) -> FitResult:
    """Train `model` in place and leave it with the weights of its best epoch.

    What is random in an epoch depends on `seed` and the epoch alone, so that a run which goes on from a checkpoint
    ends where an uninterrupted one does.

    Parameters
    ----------
    model : nn.Module
    fabric : Fabric
        Device, precision and processes; with several each sees its share of every batch.
    epochs : int
        At most.
    batches : callable
        Epoch -> its batches.
    steps_per_epoch : int
        Batches of an epoch at most, for schedule and bar.
    loss_of : callable
        Model (as Fabric wraps it) and batch -> named losses; "loss" is minimised, all scalars are logged.
    names_of : callable
        Batch and losses -> the slides to name where the loss isn't a number.
    validate : callable
        Metrics of the model as it is, in eval mode; the same on every process.
    score : callable
        Metrics -> tuple that is larger for better ones.
    learning_rate : float
        Constant, or with `warmup` the peak of a cosine after 5 % of rising steps.
    weight_decay : float
        Of AdamW.
    seed : int
    accumulate : int
        Batches a step; an epoch's last step has those that are left. They are held in memory together.
    size_of : callable
        Batch -> its weight in the mean over a step's batches and over an epoch, for batches of unequal size.
        The same on every process.
    patience : int, optional
        Epochs without a better score before stopping; None never stops early.
    files : Files
    reporter, description
        For the bar.

    Raises
    ------
    TrainingDiverged
        Naming step and slides; the weights of the best epoch so far are back in the model and in `files.last_good`.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    wrapped, optimizer_ = fabric.setup(model, optimizer)
    total = epochs * steps_per_epoch
    total_steps = epochs * -(-steps_per_epoch // accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _cosine(step, total_steps) if warmup else 1.0
    )
    state = FitState(model, optimizer, schedule, fabric)
    if files.checkpoint is not None:
        state.load(files)
    broken = functools.partial(_diverged, state, files, description)
    saved_at = time.monotonic()
    with reporter.bar(description, total) as advance, _tensorboard(files, fabric, state.step) as log:
        if state.epoch:
            advance(state.epoch * steps_per_epoch, note=f"went on after epoch {state.epoch - 1}")
        while state.epoch < epochs:
            if patience is not None and state.epoch - 1 - state.best_epoch >= patience:
                break
            torch.manual_seed(seed * 100_003 + state.epoch)
            model.train()
            sums, count = _Sums(), 0
            for group in _groups(batches(state.epoch), accumulate):
                of_step, size = _Sums(), sum(size_of(batch) for batch in group)
                told = []
                for place, batch in enumerate(group, start=1):
                    count += 1
                    with fabric.no_backward_sync(wrapped, enabled=place < len(group)):
                        losses = loss_of(wrapped, batch)
                        if not torch.isfinite(losses["loss"]):
                            raise broken("loss", losses["loss"].detach(), names_of(batch, losses), count)
                        fabric.backward(losses["loss"] * (size_of(batch) / size))
                    losses = {name: value.detach() for name, value in losses.items()}
                    sums.add(losses, size_of(batch))
                    of_step.add(losses, size_of(batch))
                    told.append((batch, losses))
                    advance()
                norm = fabric.clip_gradients(
                    wrapped, optimizer_, max_norm=_MAX_NORM, error_if_nonfinite=False
                )
                # A gradient scaler skips such steps by itself.
                if norm is not None and not torch.isfinite(norm) and not _scales(fabric):
                    names = dict.fromkeys(names_of(*one) for one in told)
                    raise broken("gradient", norm, ", ".join(names), count)
                optimizer_.step()
                optimizer_.zero_grad(set_to_none=True)
                schedule.step()
                log("step/loss", of_step.mean("loss"), state.step)
                log("step/learning_rate", schedule.get_last_lr()[0], state.step)
                state.step += 1
            model.eval()
            metrics = sums.means(fabric) | validate()
            found = score(metrics)
            if any(map(math.isnan, found)):  # it would compare as worse than anything, in silence
                what = ", ".join(name for name, value in metrics.items() if math.isnan(value))
                raise broken("validation", math.nan, f"{what} of the validation slides", count)
            # At the epoch's last step: a run that goes on from this epoch's checkpoint purges all from its next step on.
            for name, value in metrics.items():
                log(f"epoch/{name}", value, max(0, state.step - 1))
            state.finish_epoch(metrics, found)
            done = state.epoch >= epochs
            if fabric.global_rank == 0:
                _write_history(files.metrics_csv, state.history)
                if files.checkpoint and not done and time.monotonic() - saved_at >= files.checkpoint_seconds:
                    state.save(files)
                    saved_at = time.monotonic()
            advance(
                0, note=" ".join(f"{name} {metrics[name]:.3g}" for name in metrics if name.startswith("val"))
            )
        if state.epoch < epochs:
            left = total - state.epoch * steps_per_epoch
            advance(left, note=f"stopped at epoch {state.epoch - 1}")
    model.load_state_dict(state.best)
    model.eval()
    if fabric.global_rank == 0:
        _write_history(files.metrics_csv, state.history)
    return FitResult(state.best_epoch, state.history)


class _Sums:
    """Weighted means of losses over batches."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, losses: dict[str, Tensor], weight: float) -> None:
        self._weight += weight
        for name, value in losses.items():
            if value.ndim == 0:
                value = weight * (value.double() if value.device.type != "mps" else value)
                self._sums[name] = self._sums[name] + value if name in self._sums else value

    def mean(self, name: str) -> float:
        """Of this process."""
        return float(self._sums[name]) / self._weight

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Of all processes, by column."""
        return {
            f"train_{name}": float(fabric.all_reduce(value, reduce_op="mean")) / self._weight
            for name, value in self._sums.items()
        }


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _scales(fabric: Fabric) -> bool:
    return getattr(fabric.strategy.precision, "scaler", None) is not None


def _diverged(
    state: FitState, files: Files, description: str, what: str, value: Tensor | float, names: str, step: int
) -> TrainingDiverged:
    """The error to raise, once the best weights so far are back in the model and in a file."""
    state.model.load_state_dict(state.best)
    save_tensors(files.last_good, state.best)
    kept = "the initial weights" if state.best_epoch < 0 else f"the weights of epoch {state.best_epoch}"
    return TrainingDiverged(
        f"{description}: the {what} is {float(value)} at epoch {state.epoch}, step {step}, on {names}. Look at that "
        f"slide, or try a smaller learning rate. Kept: {kept}, in {files.last_good}."
    )


def _cosine(step: int, total: int) -> float:
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]) if history else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
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

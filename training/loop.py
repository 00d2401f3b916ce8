"""One fit() for every stage: epochs, validation, early stopping, checkpoints, the best weights kept."""

from __future__ import annotations

import csv
import io
import math
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
        Batches a step.
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
    saved_at = time.monotonic()
    with reporter.bar(description, total) as advance, _tensorboard(files, fabric, state.step) as log:
        if state.epoch:
            advance(state.epoch * steps_per_epoch, note=f"went on after epoch {state.epoch - 1}")
        while state.epoch < epochs:
            if patience is not None and state.epoch - 1 - state.best_epoch >= patience:
                break
            torch.manual_seed(seed * 100_003 + state.epoch)
            model.train()
            sums = _Sums()
            for count, (batch, at_end) in enumerate(_with_end(batches(state.epoch)), start=1):
                update = at_end or count % accumulate == 0
                with fabric.no_backward_sync(wrapped, enabled=not update):
                    losses = loss_of(wrapped, batch)
                    _check(losses["loss"], batch, losses, names_of, state, files, description, count)
                    fabric.backward(losses["loss"] / accumulate)
                sums.add(losses)
                if update:
                    norm = fabric.clip_gradients(
                        wrapped, optimizer_, max_norm=_MAX_NORM, error_if_nonfinite=False
                    )
                    if not _scales(fabric):  # a gradient scaler skips such steps by itself
                        _check(norm, batch, losses, names_of, state, files, description, count)
                    optimizer_.step()
                    optimizer_.zero_grad(set_to_none=True)
                    schedule.step()
                    log("step/loss", float(losses["loss"].detach()), state.step)
                    log("step/learning_rate", schedule.get_last_lr()[0], state.step)
                    state.step += 1
                advance()
            model.eval()
            metrics = sums.means(fabric) | validate()
            for name, value in metrics.items():
                log(f"epoch/{name}", value, state.step)
            state.finish_epoch(metrics, score(metrics))
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
    """Means of the losses over an epoch and over processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in losses.items():
            if value.ndim == 0:
                value = value.detach().double() if value.device.type != "mps" else value.detach()
                self._sums[name] = self._sums[name] + value if name in self._sums else value

    def means(self, fabric: Fabric) -> dict[str, float]:
        return {
            f"train_{name}": float(fabric.all_reduce(value, reduce_op="mean")) / max(1, self._count)
            for name, value in self._sums.items()
        }


def _with_end(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    iterator = iter(items)
    try:
        item = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield item, False
        item = following
    yield item, True


def _scales(fabric: Fabric) -> bool:
    return getattr(fabric.strategy.precision, "scaler", None) is not None


def _check(
    value: Tensor | None,
    batch: T,
    losses: dict[str, Tensor],
    names_of: Callable[[T, dict[str, Tensor]], str],
    state: FitState,
    files: Files,
    description: str,
    step: int,
) -> None:
    if value is None or bool(torch.isfinite(value)):
        return
    state.model.load_state_dict(state.best)
    save_tensors(files.last_good, state.best)
    what = "loss" if value is losses["loss"] else "gradient"
    kept = "the initial weights" if state.best_epoch < 0 else f"the weights of epoch {state.best_epoch}"
    raise TrainingDiverged(
        f"{description}: the {what} is {float(value.detach())} at epoch {state.epoch}, step {step}, on "
        f"{names_of(batch, losses)}. Look at that slide, or try a smaller learning rate. Kept: {kept}, in {files.last_good}."
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

    with SummaryWriter(str(files.tensorboard), purge_step=step or None) as writer:
        yield lambda name, value, at: writer.add_scalar(name, value, at)

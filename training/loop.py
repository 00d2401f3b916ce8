"""One fit() for every stage: epochs, validation, early stopping, the best weights kept."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from napari_lrmil.errors import LRMILError
from training.progress import Reporter

T = TypeVar("T")


class TrainingDiverged(LRMILError):
    """A loss stopped being a number."""


class FitResult(NamedTuple):
    """The epoch whose weights the model now holds, and every epoch's metrics."""

    best_epoch: int
    history: list[dict[str, float]]


def fit(
    model: nn.Module,
    *,
    epochs: int,
    batches: Callable[[int], Iterable[T]],
    steps_per_epoch: int,
    loss_of: Callable[[T], dict[str, Tensor]],
    validate: Callable[[], dict[str, float]],
    score: Callable[[dict[str, float]], tuple[float, ...]],
    learning_rate: float,
    weight_decay: float,
    patience: int | None = None,
    warmup: bool = False,
    metrics_csv: Path,
    reporter: Reporter,
    description: str,
) -> FitResult:
    """Train `model` in place and leave it with the weights of its best epoch.

    Parameters
    ----------
    model : nn.Module
    epochs : int
        At most.
    batches : callable
        Epoch -> its batches.
    steps_per_epoch : int
    loss_of : callable
        Batch -> named losses; "loss" is minimised, all are logged.
    validate : callable
        Metrics of the model as it is, in eval mode.
    score : callable
        Metrics -> tuple that is larger for better ones.
    learning_rate : float
        Constant, or with `warmup` the peak of a cosine after 5 % of rising steps.
    weight_decay : float
        Of AdamW.
    patience : int, optional
        Epochs without a better score before stopping; None never stops early.
    metrics_csv : Path
        A row per epoch, rewritten each time.
    reporter, description
        For the bar.

    Raises
    ------
    TrainingDiverged
        Naming the step; the weights of the best epoch so far are back in the model.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    total = epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _cosine(step, total) if warmup else 1.0
    )
    history: list[dict[str, float]] = []
    best_epoch, best_score = -1, (-math.inf,)
    best_state = copy.deepcopy(model.state_dict())
    with reporter.bar(description, total) as advance:
        for epoch in range(epochs):
            model.train()
            sums: dict[str, float] = {}
            steps = 0
            for batch in batches(epoch):
                losses = loss_of(batch)
                if not bool(torch.isfinite(losses["loss"])):
                    model.load_state_dict(best_state)
                    raise TrainingDiverged(
                        f"{description}: the loss is {losses['loss'].item()} at epoch {epoch}, step {steps}"
                        f"{f', {batch.name}' if hasattr(batch, 'name') else ''}. Try a smaller learning rate."
                    )
                optimizer.zero_grad(set_to_none=True)
                losses["loss"].backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                steps += 1
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach())
                advance()
            model.eval()
            metrics = validate()
            row = {f"train_{name}": value / max(1, steps) for name, value in sums.items()} | metrics
            history.append({"epoch": float(epoch)} | row)
            _write_history(metrics_csv, history)
            if score(metrics) > best_score:
                best_epoch, best_score = epoch, score(metrics)
                best_state = copy.deepcopy(model.state_dict())
            elif patience is not None and epoch - best_epoch >= patience:
                advance(total - (epoch + 1) * steps_per_epoch, note=f"stopped at epoch {epoch}")
                break
            advance(0, note=" ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
    model.load_state_dict(best_state)
    model.eval()
    return FitResult(best_epoch, history)


def _cosine(step: int, total: int) -> float:
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)

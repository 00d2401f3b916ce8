"""The state of a fit after an epoch, on disk: where a killed run goes on."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import nn

from training.files import load_state, save_state


@dataclass(frozen=True)
class Files:
    """Where a stage writes.

    Attributes
    ----------
    metrics_csv : Path
        A row per epoch.
    tensorboard : Path, optional
        Folder of event files.
    checkpoint : Path, optional
        State after an epoch, from which the same call goes on.
    key : str
        Hash of the stage's inputs: a checkpoint of others is not used.
    checkpoint_seconds : float
        Least time between two checkpoints.
    """

    metrics_csv: Path
    tensorboard: Path | None = None
    checkpoint: Path | None = None
    key: str = ""
    checkpoint_seconds: float = 30.0

    @property
    def last_good(self) -> Path:
        """Weights that are kept where a loss stopped being a number."""
        return self.metrics_csv.with_suffix(".last_good.safetensors")


class _Numbers(BaseModel):
    """What a checkpoint holds beside tensors."""

    format: Literal[1] = 1
    key: str
    epoch: int
    step: int
    best_epoch: int
    best_score: tuple[float, ...]
    history: list[dict[str, float]]
    schedule: int
    precision: dict[str, Any]  # whatever a gradient scaler says of itself


class FitState:
    """What a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        fabric: Fabric,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.fabric = model, optimizer, schedule, fabric
        self.epoch = self.step = 0
        self.best_epoch = -1
        self.best_score: tuple[float, ...] = (-math.inf,)
        self.best = copy.deepcopy(model.state_dict())
        self.history: list[dict[str, float]] = []

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether so many epochs brought no better score; never where `patience` is None."""
        return patience is not None and self.epoch - 1 - self.best_epoch >= patience

    def finish_epoch(self, metrics: dict[str, float], score: tuple[float, ...]) -> None:
        """Note an epoch, and keep its weights where they are the best so far."""
        self.history.append({"epoch": float(self.epoch)} | metrics)
        if score > self.best_score:
            self.best_epoch, self.best_score = self.epoch, score
            self.best = copy.deepcopy(self.model.state_dict())
        self.epoch += 1

    def save(self, files: Files) -> None:
        """Write the checkpoint, whole or not at all."""
        assert files.checkpoint is not None
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        numbers = _Numbers(
            key=files.key,
            epoch=self.epoch,
            step=self.step,
            best_epoch=self.best_epoch,
            best_score=self.best_score,
            history=self.history,
            schedule=self.schedule.last_epoch,
            precision=self.fabric.strategy.precision.state_dict(),
        )
        save_state(files.checkpoint, tensors, numbers.model_dump())

    def load(self, files: Files) -> bool:
        """Go on from a checkpoint of the same inputs; a damaged or foreign one is passed over.

        Returns
        -------
        bool
            False where there is one that is damaged.
        """
        path = files.checkpoint
        if path is None or not path.exists():
            return True
        try:
            tensors, numbers = load_state(path)
            saved = _Numbers.model_validate(numbers)
        except (SafetensorError, OSError, ValueError):  # also the numbers of another format
            return False
        if saved.key != files.key:
            return True
        device = self.fabric.device
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            # AdamW keeps its step counts on the CPU.
            parts[part][rest] = value if rest.endswith(".step") and part == "optimizer" else value.to(device)
        self.epoch, self.step = saved.epoch, saved.step
        self.best_epoch, self.best_score = saved.best_epoch, saved.best_score
        self.history, self.best = saved.history, parts["best"]
        self.model.load_state_dict(parts["model"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, rest = name.partition(".")
            moments.setdefault(int(index), {})[rest] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.fabric.strategy.precision.load_state_dict(saved.precision)
        self.schedule.last_epoch = saved.schedule
        for group, base, factor in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(self.schedule.last_epoch)
        return True

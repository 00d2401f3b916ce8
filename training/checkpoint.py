"""The state of a fit, on disk: where a run that was stopped goes on, after an epoch or in the middle of one."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor, nn

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
        State from which the same call goes on.
    key : str
        Hash of the stage's inputs: a checkpoint of others is not used.
    checkpoint_seconds : float
        Least time between two checkpoints.
    checkpoint_minutes : float
        Within an epoch one is written after so long ...
    checkpoint_steps : int, optional
        ... or after so many steps.
    """

    metrics_csv: Path
    tensorboard: Path | None = None
    checkpoint: Path | None = None
    key: str = ""
    checkpoint_seconds: float = 30.0
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None

    def of_start(self, number: int) -> Files:
        """Return where a training writes that begins anew from other weights; 0 is the first."""
        if not number:
            return self
        place = None if self.checkpoint is None else _of_start(self.checkpoint, str(number))
        return replace(self, key=f"{self.key} start {number}", checkpoint=place)

    @property
    def last_good(self) -> Path:
        """Weights that are kept where a loss stopped being a number."""
        return self.metrics_csv.with_suffix(".last_good.safetensors")


def _of_start(checkpoint: Path, number: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.start{number}{checkpoint.suffix}")


def remove_checkpoints(checkpoint: Path) -> None:
    """Remove a training's checkpoint, and those of its further starts."""
    for path in (checkpoint, *checkpoint.parent.glob(_of_start(checkpoint, "*").name)):
        path.unlink(missing_ok=True)


class Sums:
    """Weighted means of losses over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weight = 0.0

    def add(self, losses: dict[str, Tensor], weight: float) -> None:
        """Add a batch's losses; those that aren't scalars are left out."""
        self.weight += weight
        for name, value in losses.items():
            if value.ndim == 0:
                value = weight * (value.double() if value.device.type != "mps" else value)
                self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean(self, name: str) -> float:
        """Return the mean over this process's batches."""
        return float(self.sums[name]) / self.weight

    def of_all(self, fabric: Fabric) -> dict[str, Tensor]:
        """Return the sums, each the mean over all processes."""
        found = {}
        for name, value in self.sums.items():
            mean = fabric.all_reduce(value, reduce_op="mean")
            assert isinstance(mean, Tensor)
            found[name] = mean
        return found

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Return the means over the batches of all processes, by column of the metrics file."""
        return {f"train_{name}": float(mean) / self.weight for name, mean in self.of_all(fabric).items()}


Notes = dict[str, list[Tensor]]
"""What a task notes of an epoch's batches: name -> tensors of one shape."""


@dataclass
class Within:
    """How far an epoch has come.

    Attributes
    ----------
    notes : Notes
        The task's.
    n_batches : int
    sums : Sums
        Of the losses.
    norms : list of Tensor
        Lengths of the gradients, before they were shortened.
    """

    notes: Notes
    n_batches: int = 0
    sums: Sums = field(default_factory=Sums)
    norms: list[Tensor] = field(default_factory=list)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return where torch's random numbers are, on the CPU and on a device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


class _Numbers(BaseModel):
    """What a checkpoint holds beside tensors."""

    format: Literal[1, 2] = 2  # those of 1 are of the end of an epoch
    key: str
    epoch: int
    step: int
    best_epoch: int
    best_score: tuple[float, ...]
    history: list[dict[str, float]]
    schedule: int
    precision: dict[str, Any]  # whatever a gradient scaler says of itself
    batches: int = 0
    """Of the epoch that it is in the middle of."""
    weight: float = 0.0
    """Of these batches."""
    sums: list[str] = []
    notes: list[str] = []
    """Names in their order, which is that of columns; tensors have another."""


class FitState:
    """What a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        fabric: Fabric,
        notes: Notes | None = None,
    ) -> None:
        self.within = Within({} if notes is None else notes)
        self._random: dict[str, Tensor] | None = None
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
        self.within = Within(self.within.notes)

    def begin_epoch(self, seed: int) -> None:
        """Begin an epoch, or go on in the middle of the one that was loaded."""
        torch.manual_seed(seed)
        if not self.within.n_batches:
            self.within.notes.clear()

    def go_on(self) -> None:
        """Put random numbers back to where they were when the checkpoint was written that was loaded."""
        if self._random is not None:
            _set_random_states(self._random, self.fabric.device)
            self._random = None

    def save(self, files: Files, random: dict[str, Tensor] | None = None) -> None:
        """Write the checkpoint, whole or not at all; all processes call it, the main one writes.

        Parameters
        ----------
        files : Files
        random : dict, optional
            States of random numbers in the middle of an epoch, as `random_states` gives them; by default those of now.
        """
        within, sums = self.within, self.within.sums.of_all(self.fabric)
        if files.checkpoint is None or self.fabric.global_rank != 0:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        if within.n_batches:
            tensors |= {f"sums.{name}": value for name, value in sums.items()}
            tensors |= {f"notes.{name}": torch.stack(values) for name, values in within.notes.items()}
            tensors |= {f"norms.{place}": value for place, value in enumerate(_stacked(within.norms))}
            random = random_states(self.fabric.device) if random is None else random
            tensors |= {f"random.{name}": value for name, value in random.items()}
        numbers = _Numbers(
            key=files.key,
            epoch=self.epoch,
            step=self.step,
            best_epoch=self.best_epoch,
            best_score=self.best_score,
            history=self.history,
            schedule=self.schedule.last_epoch,
            precision=self.fabric.strategy.precision.state_dict(),
            batches=within.n_batches,
            weight=within.sums.weight,
            sums=list(sums),
            notes=list(within.notes),
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
        names = ("model", "best", "optimizer", "sums", "notes", "norms", "random")
        parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            # AdamW keeps its step counts on the CPU; random states are read there.
            stays = part in ("random", "norms") or (rest.endswith(".step") and part == "optimizer")
            parts[part][rest] = value if stays else value.to(device)
        if saved.batches:
            notes = self.within.notes
            notes.clear()
            notes |= {name: list(parts["notes"][name].unbind()) for name in saved.notes}
            norms = [one.to(device) for values in parts["norms"].values() for one in values.unbind()]
            self.within = Within(notes, saved.batches, norms=norms)
            self.within.sums.sums = {name: parts["sums"][name] for name in saved.sums}
            self.within.sums.weight = saved.weight
            self._random = parts["random"]
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


def _stacked(values: list[Tensor]) -> list[Tensor]:
    """Return tensors of one shape as one; of none, none."""
    return [torch.stack(values)] if values else []

"""Devices, precision and processes, through Lightning Fabric.

One process unless ``torchrun`` started several: then stage 1 shares each batch, embedding shares the slides, and the MIL
heads of a fold are dealt out whole.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.single_device import SingleDeviceStrategy

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.device import resolve_device

T = TypeVar("T")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""As Fabric names it."""

# Lightning has torch ask NVML whether there is a GPU, so that processes may fork afterwards; an optimizer asks at each of
# its steps, which took longer than a small head's step itself. Nothing here forks.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

# A process may wait for another that trains a head or embeds its last slide.
_PATIENCE = datetime.timedelta(hours=12)


class Runtime:
    """Where a run computes.

    Parameters
    ----------
    device : str
        auto, cpu, cuda, cuda:N or mps; under torchrun each process takes its own device of that kind.
    precision : Precision
        As Fabric names it: 32-true, bf16-mixed, 16-mixed.

    Raises
    ------
    ConfigError, DeviceError
    """

    def __init__(self, device: str, precision: Precision = "32-true") -> None:
        chosen = resolve_device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", 0)
        if precision == "16-mixed" and chosen.type == "cpu":
            raise ConfigError(
                "run.precision '16-mixed' needs a GPU; on the CPU take 'bf16-mixed' or '32-true'"
            )
        self.precision = precision
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
            self.fabric = Fabric(
                accelerator=chosen.type,
                devices=local,
                num_nodes=world // local,
                strategy=DDPStrategy(timeout=_PATIENCE),
                precision=precision,
            )
            self.fabric.launch()
        else:
            self.fabric = self._single(chosen, precision)
        self.device = self.fabric.device
        # MIL heads train on one process each, in full precision: they are small, and a bag is one step.
        self.head_fabric = self._single(self.device, "32-true")
        # An encoder that learns together with a head does so on one process too, at the run's precision.
        self.end_to_end_fabric = self._single(self.device, precision)

    @staticmethod
    def _single(device: torch.device, precision: Precision) -> Fabric:
        return Fabric(
            accelerator=device.type,
            devices=1,
            strategy=SingleDeviceStrategy(device),
            precision=precision,
        )

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.fabric.global_rank

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[T], size: Callable[[T], float] | None = None) -> list[T]:
        """Return this process's part of some independent pieces of work, of which `size` says how large one is."""
        if size is None:
            return list(items[self.rank :: self.world])
        dealt = deal([size(item) for item in items], self.world)
        return [item for item, rank in zip(items, dealt, strict=True) if rank == self.rank]

    def of_main(self, value: T) -> T:
        """Return what the main process gave, on all processes."""
        if self.world == 1:
            return value
        found: T = self.fabric.broadcast(value)
        return found

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.fabric.barrier()


def deal(sizes: Sequence[float], n: int) -> list[int]:
    """Return which of `n` processes each piece of work goes to: the largest first, each to who has least to do."""
    loads, dealt = [0.0] * n, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        rank = loads.index(min(loads))
        loads[rank] += sizes[place]
        dealt[place] = rank
    return dealt


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context for inference at a run's precision."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "32-true")


def lost_a_peer(error: RuntimeError) -> bool:
    """Whether this process only stopped because another one did, which has said why."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    # Gloo has no class for it.
    said = str(error)
    return "closed by peer" in said or "reset by peer" in said or "Broken pipe" in said


def close_process_group() -> None:
    """Close what torchrun opened, at the good end of a run, so that it ends without a warning.

    Not after an error: it may wait for the other processes, which wait for this one until torchrun sees it gone.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.distributed.destroy_process_group()

"""What distillation adds to a step of the student's head: forward, losses, backward and update, with it and without.

    python -m benchmarks.stage2_step [--steps 40] [--lr-tiles 256 1024 4096]

One slide, embeddings of 768 numbers, 16 HR tiles for each LR tile, ABMIL as training builds it. The kinds of step take
turns. The teacher's attention gathered onto LR tiles doesn't change while the student learns, so training makes it once a
slide, before the first step ("as run"); the third kind makes it anew in every step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.model.mil import ABMILSpec, MILOutput, build_mil
from training.data.bags import SlideBag
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles
from training.stages.distill_slides import SlideDistillation, Stage2Section, TeacherOutput
from training.stages.heads import MILSection

EMBED_DIM, RATIO, N_CLASSES = 768, 4, 2
TARGET = 1.3
PLAIN, AS_RUN, EACH_STEP = "cross-entropy alone", "distilled, as run", "distilled, gathered anew"
Losses = Callable[[MILOutput], list[Tensor]]


class Slide:
    """A bag of n LR tiles on a square grid with all their children, and what a teacher says of it."""

    def __init__(self, n_lr: int, config: Stage2Section) -> None:
        generator = torch.Generator().manual_seed(n_lr)
        edge = int(np.ceil(np.sqrt(n_lr)))
        lr_places = np.argwhere(np.ones((edge, edge), bool))[:n_lr]
        offsets = np.argwhere(np.ones((RATIO, RATIO), bool))
        hr_places = (lr_places[:, None] * RATIO + offsets).reshape(-1, 2)
        row = SlideRow("slide", Path("slide.tif"), "patient", "1")  # never opened
        self.tiles = SlideTiles(row, (edge, edge), lr_places, hr_places)
        self.instances = torch.randn(n_lr, EMBED_DIM, generator=generator)
        logits = torch.randn(len(hr_places), generator=generator)
        bag_logits = torch.randn(N_CLASSES, generator=generator)
        self.teacher = TeacherOutput(bag_logits, logits, torch.softmax(logits, dim=0))
        self.label = torch.tensor([1])
        self.bag = SlideBag("slide", self.instances, 1)
        self.config = config
        self.guided = self.gather()

    def gather(self) -> SlideDistillation:
        """Gather the teacher's attention, as training does once for each slide."""
        return SlideDistillation(
            self.config, [self.tiles], {"slide": self.teacher}, ratio=RATIO, device=torch.device("cpu")
        )

    def cross_entropy(self, output: MILOutput) -> list[Tensor]:
        """Return the loss of stage 2 without a teacher."""
        return [F.cross_entropy(output.bag_logits[None], self.label)]

    def distilled(self, output: MILOutput, teacher: SlideDistillation) -> list[Tensor]:
        """Return the terms of stage 2's whole loss."""
        return [*self.cross_entropy(output), *teacher(self.bag, output).values()]

    def kinds(self) -> dict[str, Losses]:
        """Return kind of step -> its losses."""
        return {
            PLAIN: self.cross_entropy,
            AS_RUN: lambda output: self.distilled(output, self.guided),
            EACH_STEP: lambda output: self.distilled(output, self.gather()),
        }


class Head:
    """A head with its optimizer: `step` is what the training loop does with one bag."""

    def __init__(self, config: MILSection) -> None:
        torch.manual_seed(0)
        spec = ABMILSpec(
            embed_dim=EMBED_DIM,
            n_classes=N_CLASSES,
            hidden_dim=config.hidden_dim,
            gated=config.gated,
            dropout=config.dropout,
        )
        self.model = build_mil(spec).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def step(self, slide: Slide, losses_of: Losses) -> float:
        """Take one step; return its seconds."""
        started = time.perf_counter()
        losses = losses_of(self.model(slide.instances))
        loss = torch.stack(losses).sum()
        if not bool(torch.isfinite(loss)):
            raise RuntimeError("the loss isn't finite")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        return time.perf_counter() - started


def measure(n_lr: int, *, steps: int, warmup: int) -> dict[str, list[float]]:
    """Return seconds of every step by kind; the kinds take turns, each with a head of its own."""
    slide = Slide(n_lr, Stage2Section())
    kinds = slide.kinds()
    heads = {name: Head(MILSection()) for name in kinds}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for index in range(-warmup, steps):
        names = list(kinds)
        # Each kind comes after each other one as often.
        for name in names[index % 3 :] + names[: index % 3]:
            took = heads[name].step(slide, kinds[name])
            if index >= 0:
                seconds[name].append(took)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lr-tiles", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--steps", type=int, default=60, help="of each kind")
    parser.add_argument("--warmup", type=int, default=6)
    args = parser.parse_args()
    console = Console()
    console.print(
        f"{torch.get_num_threads()} threads for torch, {args.steps} steps of each kind, {EMBED_DIM} numbers a tile"
    )
    table = Table("LR / HR tiles", "step", "ms (median)", f"ratio (<= {TARGET})")
    for n_lr in args.lr_tiles:
        seconds = measure(n_lr, steps=args.steps, warmup=args.warmup)
        for name, found in seconds.items():
            # Turn by turn: a busy moment hits both.
            ratios = [ours / plain for ours, plain in zip(found, seconds[PLAIN], strict=True)]
            table.add_row(
                f"{n_lr:,} / {n_lr * RATIO**2:,}" if name == PLAIN else "",
                name,
                f"{statistics.median(found) * 1000:.2f}",
                "" if name == PLAIN else f"{statistics.median(ratios):.2f}",
            )
    console.print(table)


if __name__ == "__main__":
    main()

"""Seconds and memory of MIL heads: the classes of one bag, and one step of training, beside torchmil's or the plain form.

    python -m benchmarks.mil [--heads clam_sb dsmil ...] [--tiles 256 4096 16384] [--repeats 5]

Embeddings of 768 numbers, two classes, the widths of the papers' defaults on both sides, neither with layer norm in front
nor dropout. Where torchmil (the extra
`peers`) has the head, that is the other side, with the layer before the attention that the paper has and torchmil takes
as its feature extractor; else it is the method's formula written plainly, as its authors publish it. The sides take turns;
times are of the process, so that what else the machine does counts little. Memory is the peak beside the bag, each side in
a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.model.mil import HEADS, MILModel

EMBED_DIM = 768
Step = Callable[[Tensor], Tensor]
"""Bag (N, D) -> loss of training."""


class Ours(nn.Module):
    """A head of this package with its own loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        spec = {"embed_dim": EMBED_DIM, "n_classes": 2, "normalise": False, "dropout": 0.0}
        self.head: MILModel = HEADS[name].model_validate(spec).build()

    def forward(self, bag: Tensor) -> Tensor:
        """Return the loss in training, else the classes."""
        output = self.head(bag)
        if not self.training:
            return output.bag_logits
        return torch.stack(list(self.head.losses(output, 1).values())).sum()


class Peer(nn.Module):
    """torchmil's head with its own loss, of one bag."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, bag: Tensor) -> Tensor:
        """Return the loss in training, else the class."""
        if not self.training:
            found: Tensor = self.model(bag[None])
            return found
        _, losses = self.model.compute_loss(torch.ones(1), bag[None])  # type: ignore[operator]
        return torch.stack([value.mean() for value in losses.values()]).sum()


class PlainGated(nn.Module):
    """Gated attention of one branch or one a class after a projection, written out: the plain form of ABMIL and CLAM-MB."""

    def __init__(self, *, width: int, hidden: int, branches: int, k: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(EMBED_DIM)
        self.projection = (
            nn.Sequential(nn.Linear(EMBED_DIM, width), nn.ReLU(), nn.Dropout(0.25)) if width else None
        )
        dim = width or EMBED_DIM
        self.value, self.gate = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, branches)
        self.classifiers = nn.ModuleList(nn.Linear(dim, 1 if branches > 1 else 2) for _ in range(branches))
        self.instance_classifiers = nn.ModuleList(nn.Linear(dim, 2) for _ in range(branches))
        self.k = k

    def forward(self, bag: Tensor) -> Tensor:
        """Return the loss in training, else the classes."""
        instances = bag if self.projection is None else self.projection(bag)
        attention = self.score(torch.tanh(self.value(instances)) * torch.sigmoid(self.gate(instances)))
        scores = torch.softmax(attention.T, dim=1)
        embeddings = torch.mm(scores, instances)
        logits = torch.cat([layer(one) for layer, one in zip(self.classifiers, embeddings, strict=True)])
        if not self.training:
            return logits
        loss = F.cross_entropy(logits[None], torch.tensor([1]))
        if self.k:
            top = torch.topk(scores[-1], self.k).indices
            bottom = torch.topk(-scores[-1], self.k).indices
            ends = self.instance_classifiers[-1](torch.cat([instances[top], instances[bottom]]))
            target = torch.cat([torch.ones(self.k), torch.zeros(self.k)]).long()
            loss = 0.7 * loss + 0.3 * F.cross_entropy(ends, target)
        return loss


def peer(name: str) -> tuple[str, nn.Module] | None:
    """Return what a head is compared with, and how it is called; None where there is nothing."""
    if name == "abmil":
        return "plain", PlainGated(width=0, hidden=128, branches=1)
    if name == "clam_mb":
        return "plain", PlainGated(width=512, hidden=256, branches=2, k=8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchmil import models
    except ImportError:
        return None
    width, extract = (EMBED_DIM,), nn.Sequential(nn.Linear(EMBED_DIM, 512), nn.ReLU())
    if name == "clam_sb":
        return "torchmil", Peer(
            models.CLAM_SB(in_shape=width, att_dim=256, k_sample=8, gated=True, feat_ext=extract)
        )
    if name == "dsmil":
        return "torchmil", Peer(models.DSMIL(in_shape=width, att_dim=128, nonlinear_v=True))
    if name == "transmil":
        return "torchmil", Peer(models.TransMIL(in_shape=width, att_dim=512, n_heads=8))
    if name == "dtfd":
        return "torchmil", Peer(
            models.DTFDMIL(in_shape=width, att_dim=128, n_groups=4, distill_mode="afs", feat_ext=extract)
        )
    return None


def once(model: nn.Module, bag: Tensor, *, training: bool) -> float:
    """Predict, or take a step's forward and backward pass; return the seconds of the process."""
    model.train(training)
    started = time.process_time()
    if training:
        model.zero_grad(set_to_none=True)
        loss: Tensor = model(bag)
        torch.autograd.backward(loss)
    else:
        with torch.inference_mode():
            model(bag)
    return time.process_time() - started


def sides(name: str) -> dict[str, nn.Module]:
    """Return this package's head and the other side, by how they are called."""
    torch.manual_seed(0)
    other = peer(name)
    return {"ours": Ours(name)} | ({} if other is None else {other[0]: other[1]})


def peak_bytes(name: str, side: str, n: int, *, training: bool) -> int:
    """Return the peak memory beside bag and weights, measured in this process."""
    model, bag = sides(name)[side], torch.randn(n, EMBED_DIM)
    once(model, bag[:64], training=training)  # what is loaded at the first use
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    once(model, bag, training=training)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def in_own_process(name: str, side: str, n: int, *, training: bool) -> str:
    """Return `peak_bytes` of a process of its own, in MB."""
    if not Path("/proc/self/clear_refs").exists():
        return "-"
    asked = [sys.executable, "-m", "benchmarks.mil", "--peak", name, side, str(n), str(int(training))]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    return f"{int(found.stdout.split()[-1]) / 2**20:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = ["abmil", "clam_sb", "clam_mb", "dsmil", "transmil", "dtfd"]
    parser.add_argument("--heads", nargs="+", default=known, choices=known)
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 4096, 16384])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        name, side, n, training = args.peak
        print(peak_bytes(name, side, int(n), training=bool(int(training))))
        return
    console = Console(width=110)
    console.print(
        f"{torch.get_num_threads()} threads for torch, median of {args.repeats}, {EMBED_DIM} numbers a tile"
    )
    for name in args.heads:
        table = Table("head", "tiles", "what", "side", "ms", "ours / other", "MB beside the bag")
        models = sides(name)
        for n in args.tiles:
            bag = torch.randn(n, EMBED_DIM)
            for training in (False, True):
                seconds: dict[str, list[float]] = {side: [] for side in models}
                for index in range(-1, args.repeats):
                    for side, model in models.items():
                        took = once(model, bag, training=training)
                        if index >= 0:
                            seconds[side].append(took)
                for side, found in seconds.items():
                    others = [values for key, values in seconds.items() if key != "ours"]
                    ratio = (
                        f"{statistics.median(a / b for a, b in zip(found, others[0], strict=True)):.2f}"
                        if side == "ours" and others
                        else ""
                    )
                    memory = "" if args.no_memory else in_own_process(name, side, n, training=training)
                    what = "training step" if training else "inference"
                    table.add_row(
                        name, f"{n:,}", what, side, f"{statistics.median(found) * 1000:.1f}", ratio, memory
                    )
        console.print(table)


if __name__ == "__main__":
    main()

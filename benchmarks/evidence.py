"""Seconds that evidence takes beside the head's own answer, and how many tiles it leaves out exactly, of every MIL head.

    python -m benchmarks.evidence [--heads transmil ...] [--tiles 43 1024 4096]

Embeddings of 768 numbers, two classes, the papers' default widths, random weights. Of a head of several magnifications the
tiles are the finest, all of whose parents are read. Times are of the process, so that what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from napari_lrmil.evidence import explain
from napari_lrmil.model.calibration import VectorScaling
from napari_lrmil.model.mil import HEADS, AnyBag, Bag, build_mil
from napari_lrmil.model.mil.focus import FOCUS
from napari_lrmil.model.mil.mean import MeanSpec

EMBED_DIM = 768
SCALING = VectorScaling.of_temperature(1.0, 2)


def random_bag(factors: tuple[int, ...], n: int) -> AnyBag:
    """Return a bag of `n` tiles, with the tiles that they lie in where a head reads several magnifications."""
    bags: list[Bag] = []
    parents = None
    for coarse in factors:
        of_level = max(1, -(-n // coarse**2))
        if bags:
            parents = torch.arange(of_level) * len(bags[-1]) // of_level
        places = torch.stack([torch.arange(of_level) % 64, torch.arange(of_level) // 64], dim=1)
        bags.append(Bag(torch.randn(of_level, EMBED_DIM), places=places, mpp=float(coarse), parents=parents))
    return bags[0] if len(bags) == 1 else tuple(bags)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--tiles", nargs="+", type=int, default=[43, 1024, 4096])
    given = parser.parse_args()
    table = Table("head", "tiles", "answer, s", "evidence, s", "ratio", "left out exactly")
    console = Console()
    explain(build_mil(MeanSpec(embed_dim=8, n_classes=2)), torch.randn(4, 8), scaling=SCALING)  # imports
    for name in given.heads:
        torch.manual_seed(0)
        spec = HEADS[name].model_validate({"embed_dim": EMBED_DIM, "n_classes": 2})
        head = build_mil(spec).eval()
        if isinstance(head, FOCUS):
            head.set_text(torch.randn(head.spec.n_texts, head.spec.text_dim))
        for n in given.tiles:
            bag = random_bag(spec.factors, n)
            with torch.inference_mode():
                head(bag)
                started = time.process_time()
                head(bag)
                answer = time.process_time() - started
            started = time.process_time()
            found = explain(head, bag, scaling=SCALING)
            seconds = time.process_time() - started
            exact = n if found.exact_tiles is None else int(found.exact_tiles.sum())
            table.add_row(
                name,
                f"{n:,}",
                f"{answer:.4f}",
                f"{seconds:.2f}",
                f"{seconds / answer:,.0f}",
                f"{exact:,} of {n:,}",
            )
            console.print(name, n, f"{seconds:.2f} s", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()

"""What one slide costs on the command line beside what torch's own import costs: `lrmil predict`, computed and from the cache.

    python -m benchmarks.command_start [SLIDE] [--turns 5]

Each turn starts all commands as processes of their own, in turn. Seconds on the clock, and of the processors by the command and
what it starts: those say the same on a busy machine. The load is printed, since clocks mean little where it is above
a half or so.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

import napari_lrmil

DEMO_SLIDE = Path(napari_lrmil.__file__).parent / "demo" / "slides" / "lesion.tiff"


class Cost(NamedTuple):
    """Of one process and its own."""

    clock_s: float
    cpu_s: float


def cost(words: list[str]) -> Cost:
    """Run a command to its end."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "slide", nargs="?", type=Path, default=DEMO_SLIDE, help="default: the demonstration's"
    )
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = [sys.executable, "-c"]
        predict = [sys.executable, "-m", "napari_lrmil", "predict", str(given.slide), "--bundle", "demo"]
        kept = [*predict, "--cache-dir", f"{folder}/cache"]
        commands = {
            "import torch": [*python, "import torch"],
            "import torch, timm": [*python, "import torch, timm"],
            "lrmil --version": [sys.executable, "-m", "napari_lrmil", "--version"],
            "predict, computed": [*predict, "--no-cache", "--out", f"{folder}/out", "--overwrite"],
            "predict, from the cache": kept,
        }
        cost(kept)  # fills it, and warms the disk's
        turns = [{name: cost(words) for name, words in commands.items()} for _ in range(given.turns)]
    table = Table(
        "command", "s", "s of the processors", "beyond torch, s", title=f"medians of {given.turns} turns"
    )
    of_torch = {name: median(turn["import torch"].clock_s for turn in turns) for name in commands}
    for name in commands:
        clock = median(turn[name].clock_s for turn in turns)
        cpu = median(turn[name].cpu_s for turn in turns)
        table.add_row(name, f"{clock:.2f}", f"{cpu:.2f}", f"{clock - of_torch[name]:+.2f}")
    console = Console()
    console.print(table)
    console.print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

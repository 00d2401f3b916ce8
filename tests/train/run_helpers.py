"""Configs of tiny runs, and what such a run left behind."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.fuzz.kills import TINY_RUN
from training.config import load_config
from training.progress import Reporter
from training.run.cli import run

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("teacher_hr", "lr_scratch", "stage1_only", "stage2_only", "lrmil")
SHORTCUTS = ("tissue_fraction", "rgb", "random_init")


def write_config(folder: Path, slides: Path) -> Path:
    path = folder / "config.toml"
    path.write_text(TINY_RUN.format(slides=slides))
    return path


def rerun(folder: Path, *overrides: str, skip_bad: bool = False) -> tuple[Path, str]:
    """Run the folder's config in this process; the bundle, and what was printed."""
    text = io.StringIO()
    words = ["--run.out_dir", str(folder / "run"), *overrides]
    bundle = run(
        load_config(folder / "config.toml", words),
        skip_bad=skip_bad,
        reporter=Reporter(Console(file=text, width=200)),
    )
    return bundle, text.getvalue()


def python(folder: Path, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """A process of its own in a folder, with one thread: sums in one order."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def child_environment() -> dict[str, str]:
    """For processes that run this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def weights(folder: Path, fold: int = 0) -> dict[str, bytes]:
    """Every file of weights that a fold trained, and the encoder, its own or that of all folds."""
    root = folder / "run" / f"fold{fold}"
    encoder = next(
        path
        for path in (place / "student_encoder.safetensors" for place in (root, folder / "run" / "shared"))
        if path.exists()
    )
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("mil/*.safetensors"))
    } | {"student_encoder": encoder.read_bytes()}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def absolute_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table, to be written elsewhere."""
    return [row | {"path": str((table.parent / row["path"]).resolve())} for row in read_rows(table)]

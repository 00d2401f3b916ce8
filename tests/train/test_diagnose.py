"""Why distillation helped or didn't, read from a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from training.studies.diagnose import app, explained_share


def test_share_of_variance_by_hand() -> None:
    wanted = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    assert explained_share(wanted, wanted) == 1
    assert explained_share(np.full((3, 2), wanted.mean(axis=0)), wanted) == 0
    # Squared errors 1 + 0 + 1 of a variance of 4 + 0 + 4.
    assert explained_share(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), wanted) == pytest.approx(0.75)
    assert explained_share(-wanted, wanted) < 0


def test_heads_and_encoders_of_a_finished_run(
    finished: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["run"])
    assert done.exit_code == 0, done.output
    rows = {
        cells[0]: cells[1:]
        for line in done.output.splitlines()
        if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 1
    }
    results = json.loads((finished / "run" / "results.json").read_text())
    for method in ("teacher_hr", "lr_scratch", "stage1_only", "stage2_only", "lrmil"):
        of_train, of_val, of_test = rows[method]
        assert of_test.split()[0] == f"{results[method]['auc']:.2f}"  # one fold: its AUC is that of the run
        assert all(0 <= float(cell.split()[0]) <= 1 for cell in (of_train, of_val))
    for encoder in ("f on LR", "f' on LR"):
        assert all(float(cell.split()[0]) <= 1 for cell in rows[encoder])
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_what_is_no_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert done.exit_code == 1
    assert "config.json" in done.output

"""Why distillation helped or didn't: measures by hand, causes in words, and a finished run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from training.studies.diagnose import (
    Explained,
    Facts,
    Probes,
    View,
    app,
    explained_share,
    findings,
    linear_cka,
    measure_explained,
    measure_probes,
    page,
    whitened_share,
)


def test_share_of_variance_by_hand() -> None:
    wanted = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    assert explained_share(wanted, wanted) == 1
    assert explained_share(np.full((3, 2), wanted.mean(axis=0)), wanted) == 0
    # Squared errors 1 + 0 + 1 of a variance of 4 + 0 + 4.
    assert explained_share(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), wanted) == pytest.approx(0.75)
    assert explained_share(-wanted, wanted) < 0


def test_whitened_share_by_hand() -> None:
    wanted = np.array([[0.0, 0.0], [2.0, 20.0], [4.0, 10.0]])
    half = wanted.copy()
    half[:, 1] = 7  # worse than the mean: nothing, not less
    assert whitened_share(half, wanted) == pytest.approx(0.5)
    assert whitened_share(wanted, wanted) == 1


def test_cka_is_the_same_for_turned_and_scaled_embeddings_and_small_for_unrelated_ones() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(2000, 6)) * np.array([5, 3, 2, 1, 1, 1])
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert linear_cka(one, 3 * one @ turn + 7) == pytest.approx(1)
    assert linear_cka(one, rng.normal(size=(2000, 6))) < 0.05
    # By hand: |x . y|^2 / (|x|^2 |y|^2) for one dimension each.
    assert linear_cka(np.array([[0.0], [1], [2]]), np.array([[0.0], [1], [1]])) == pytest.approx(0.75)


def tiles(rng: np.random.Generator, n: int, *, holds: Callable[[np.ndarray], np.ndarray]) -> View:
    """A teacher of 20 dimensions, of which two hold nearly all variance and the last tells the class."""
    positive = rng.random(n) < 0.3
    wanted = rng.normal(size=(n, 20)) * np.array([30.0, 20.0, *[1.0] * 18])
    wanted[:, -1] = 2 * positive + 0.5 * rng.normal(size=n)
    return View(holds(wanted) + 0.01 * rng.normal(size=(n, 20)), wanted, positive)


def test_a_few_directions_of_large_variance_do_not_stand_for_all_of_them() -> None:
    """An embedding that holds two directions of twenty explains 97 % of the variance and misses the class."""
    rng = np.random.default_rng(0)
    views = [
        tiles(rng, 1000, holds=lambda w: np.concatenate([w[:, :2], np.zeros((len(w), 18))], axis=1))
        for _ in range(2)
    ]
    found, probes = measure_explained(*views), measure_probes(*views)
    assert found.variance_test > 0.95
    assert found.cka > 0.95
    assert found.whitened_test < 0.5
    assert probes.children > 0.95
    assert probes.lr < 0.6


def test_an_embedding_that_holds_everything_explains_everything() -> None:
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    found = measure_explained(*(tiles(rng, 1000, holds=lambda w: w @ turn) for _ in range(2)))
    assert min(found) > 0.95


def test_tiles_of_one_kind_have_no_probe() -> None:
    rng = np.random.default_rng(0)
    one = tiles(rng, 50, holds=lambda w: w)
    assert math.isnan(measure_probes(one, one._replace(positive=np.zeros(50, bool))).lr)


GOOD = (1.0, 0.95, 0.94)


def facts(**changes: object) -> Facts:
    """A run in which nothing failed."""
    base = Facts(
        explained={"f on LR": Explained(0.3, 0.25, 0.6, 0.7), "f' on LR": Explained(0.6, 0.55, 0.8, 0.9)},
        probes={"f on LR": Probes(0.65, 0.93), "f' on LR": Probes(0.91, 0.93)},
        heads={"teacher_hr": GOOD, "lr_scratch": (0.99, 0.7, 0.72), "lrmil": GOOD},
        test_interval=(0.9, 0.98),
        n_train=200,
        n_test=60,
        from_masks=True,
    )
    return base._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        ({}, ["Nothing here says that the run failed"]),
        ({"heads": {"teacher_hr": (1.0, 0.52, 0.55), "lrmil": GOOD}}, ["The teacher is blind"]),
        (
            {"heads": {"teacher_hr": (1.0, 0.7, 0.7), "lr_scratch": (1.0, 0.9, 0.9), "lrmil": GOOD}},
            ["The teacher has nothing to give", "Too few training slides"],
        ),
        ({"heads": {"teacher_hr": GOOD, "lrmil": (0.61, 0.6, 0.6)}}, ["Heads underfit"]),
        # What doesn't fit its own slides isn't called blind: it was never seen what it sees.
        ({"heads": {"teacher_hr": (0.6, 0.5, 0.5), "lrmil": GOOD}}, ["Heads underfit"]),
        (
            {
                "explained": {
                    "f on LR": Explained(0.3, 0.25, 0.6, 0.7),
                    "f' on LR": Explained(0.31, 0.26, 0.6, 0.7),
                }
            },
            ["Stage 1 taught f' nothing"],
        ),
        ({"probes": {"f on LR": Probes(0.6, 0.93), "f' on LR": Probes(0.8, 0.93)}}, ["f' underfits"]),
        (
            {
                "explained": {
                    "f on LR": Explained(0.3, 0.25, 0.6, 0.7),
                    "f' on LR": Explained(0.9, 0.4, 0.8, 0.9),
                },
                "probes": {"f on LR": Probes(0.6, 0.93), "f' on LR": Probes(0.8, 0.93)},
            },
            ["f' has learned its training tiles by heart"],
        ),
        ({"heads": {"teacher_hr": (1.0, 0.75, 0.74), "lrmil": GOOD}}, ["Too few training slides"]),
        ({"test_interval": (0.6, 0.95)}, ["Too few test slides to tell"]),
        ({"test_interval": (math.nan, math.nan)}, ["Nothing here says"]),
        (
            {"probes": {name: Probes(math.nan, math.nan) for name in ("f on LR", "f' on LR")}},
            ["Nothing here"],
        ),
    ],
)
def test_each_cause_is_named_from_its_numbers(changes: dict[str, object], causes: list[str]) -> None:
    found = findings(facts(**changes))
    assert len(found) == len(causes), found
    for text, cause in zip(found, causes, strict=True):
        assert text.strip("*").startswith(cause)


def test_the_page_says_the_numbers_that_a_cause_follows_from() -> None:
    text = page("run", facts(probes={"f on LR": Probes(0.6, 0.93), "f' on LR": Probes(0.8, 0.93)}))
    assert "a linear probe for the lesion reaches AUC 0.80 on its tiles, 0.93 on their children" in text
    assert "| f' on LR | 0.60 | 0.55 | 0.80 | 0.90 |" in text


def test_heads_and_encoders_of_a_finished_run(
    finished: Path, cohort: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(finished)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["run"])
    assert done.exit_code == 0, done.output
    rows: dict[str, list[list[str]]] = {}
    for line in done.output.splitlines():
        if line.startswith("| "):
            first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.setdefault(first, []).append(cells)
    results = json.loads((finished / "run" / "results.json").read_text())
    for method in ("teacher_hr", "lr_scratch", "stage1_only", "stage2_only", "lrmil"):
        ((of_train, of_val, of_test),) = rows[method]
        assert of_test == f"{results[method]['auc']:.2f}"  # one fold: its AUC is that of the run
        assert all(0 <= float(cell) <= 1 for cell in (of_train, of_val))
    for encoder in ("f on LR", "f' on LR"):
        of_view, of_probe = rows[encoder]
        assert all(float(cell) <= 1 for cell in of_view)
        assert all(0 <= float(cell) <= 1 for cell in of_probe)
    assert "1. **" in done.output or "1. Nothing" in done.output
    masks = ["--masks", str(cohort.parent / "masks"), "--out", str(tmp_path / "page.md")]
    done = CliRunner().invoke(app, ["run", *masks])
    assert done.exit_code == 0, done.output
    assert "for the lesion (AUC)" in (tmp_path / "page.md").read_text()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_what_is_no_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert done.exit_code == 1
    assert "config.json" in done.output

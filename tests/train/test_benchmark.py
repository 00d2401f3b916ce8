"""The benchmark: which rows it has, that one that fails stops no other, and the numbers of its table."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from run_helpers import ROOT, python, write_config
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import EncoderSpec
from napari_lrmil.model.mil.abmil import ABMILSpec
from training.benchmark.__main__ import app
from training.benchmark.costs import computation
from training.benchmark.rows import chosen, inline, rows_of
from training.benchmark.table import (
    BenchmarkRow,
    Measured,
    resample_calls,
    two_sided,
    weighted_calls,
)
from training.benchmark.trials import Trials, run_process
from training.benchmark.write import as_csv, as_html, as_markdown, printed
from training.config import RunConfig, load_config
from training.intervals import FoldScores, Resampled
from training.metrics import call_metrics

# --- rows ------------------------------------------------------------------------------------------------------------

OWN = """
[[compare]]
set = "decisive"

[[compare]]
key = "soft"
embedding = "student"
losses = ["ce", "soft"]
"""


def loaded(folder: Path, toml: str = "") -> RunConfig:
    path = write_config(folder, Path("slides.csv"))
    path.write_text(path.read_text() + toml)
    return load_config(path)


def test_rows_are_those_of_the_config_and_every_objective_in_lrmils_place(tmp_path: Path) -> None:
    rows = {row.key: row for row in rows_of(loaded(tmp_path, OWN))}
    assert list(rows)[:2] == ["teacher_hr", "lrmil"]
    assert {"lr_scratch", "stage1_only", "stage2_only", "soft"} <= rows.keys()
    tiles = ("hints", "review_kd", "tat", "vitkd", "class_and_tokens")
    assert [key for key in rows if key.startswith("stage1_") and rows[key].kind == "objective"] == [
        f"stage1_{name}" for name in tiles
    ]
    bags = [f"stage2_{name}" for name in ("kd", "hints", "nkd", "uskd")]
    assert [key for key in rows if key.startswith("stage2_") and rows[key].kind == "objective"] == bags
    assert {"hr_mean", "lr_mean", "student_mean"} <= rows.keys()
    assert not {"hr_abmil", "lr_abmil"} & rows.keys()  # the config's own head: teacher_hr and lr_scratch
    for row in (one for one in rows.values() if one.entry.get("head") in (None, "mean")):
        # What is written for the command line is what a config reads.
        read = load_config(tmp_path / "config.toml", ["--compare", inline([row.entry])])
        assert row.key in {one.key for one in read.rows}
    tat = next(one for one in read.rows if one.key == bags[-1])
    assert tat.is_distilled


def test_rows_are_chosen_by_key_and_by_objective(tmp_path: Path) -> None:
    rows = rows_of(loaded(tmp_path, OWN))

    def keys(*names: str | None) -> set[str]:
        return {row.key for row in chosen(rows, *names)} - {"teacher_hr", "lrmil"}

    assert keys("soft,lr_scratch", "none") == {"soft", "lr_scratch"}
    assert keys("none", "hints, kd") == {"stage1_hints", "stage2_hints", "stage2_kd"}
    assert keys("none", "stage1_hints") == {"stage1_hints"}
    assert keys(None, None) == {row.key for row in rows} - {"teacher_hr", "lrmil"}
    with pytest.raises(ConfigError, match="--objectives: unknown objective 'nkdd'; did you mean 'nkd'"):
        chosen(rows, None, "nkdd")


def test_inline_toml() -> None:
    value = {"key": 'a "b" \\ c', "list": [1, 2.5, True], "of": {"x y": "é\n"}, "not": None}
    assert tomllib.loads(f"value = {inline(value)}")["value"] == {
        "key": 'a "b" \\ c',
        "list": [1, 2.5, True],
        "of": {"x y": "é\n"},
    }


# --- trials ----------------------------------------------------------------------------------------------------------


def test_a_process_that_fails_says_why_and_is_remembered(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    row = rows_of(config)[0]
    trials = Trials(tmp_path / "benchmark")
    assert trials.get(row, config) is None
    trial = run_process([str(tmp_path / "none.toml")], tmp_path / "log.txt", "key")
    assert trial.state == "failed"
    assert "no such config" in trial.error
    assert trial.peak_bytes is None or trial.peak_bytes > 2**20
    known = Trials(tmp_path / "benchmark")
    known.note(row, trial)
    assert Trials(tmp_path / "benchmark").get(row, config) is None  # of another key: of other inputs


# --- numbers ---------------------------------------------------------------------------------------------------------


def fold(seed: int, *, n: int = 12, n_classes: int = 3) -> FoldScores:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(n_classes), size=(2, 2, n))
    patients = tuple(f"{seed}-{index // 2}" for index in range(n))
    return FoldScores(np.arange(n) % n_classes, patients, probabilities)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_weighted_metrics_are_the_metrics_of_slides_that_stand_there_as_often(n_classes: int) -> None:
    one = fold(0, n_classes=n_classes)
    probabilities, called = one.probabilities[0, 0], one.calls[0, 0]
    rng = np.random.default_rng(1)
    weights = np.concatenate([np.ones((1, 12)), rng.integers(1, 4, size=(5, 12))]).astype(float)
    found = weighted_calls(one.labels, probabilities, called, weights)
    for place, row in enumerate(weights.astype(int)):
        repeated = np.repeat(np.arange(12), row)
        labels, calls = one.labels[repeated], called[repeated]
        expected = call_metrics(labels, probabilities[repeated], calls)
        for name in ("balanced_accuracy", "brier", "ece"):
            assert found[name][place] == pytest.approx(expected[name])
        assert found["macro_f1"][place] == pytest.approx(f1_score(labels, calls, average="macro"))


def test_a_metric_without_a_class_is_not_defined() -> None:
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    found = weighted_calls(labels, probabilities, np.array([0, 1, 1]), np.array([[1.0, 1.0, 0.0]]))
    assert np.isnan(found["balanced_accuracy"][0])
    assert found["brier"][0] == pytest.approx((2 * 0.01 + 2 * 0.64) / 2)


def test_resampled_metrics_are_means_over_trainings_and_keep_patients_together() -> None:
    folds = [fold(0), fold(1)]
    found = resample_calls({"a": folds, "b": folds}, n_resamples=300, seed=0)
    by_hand = [
        call_metrics(
            np.concatenate([one.labels for one in folds]),
            np.concatenate([one.probabilities[e, h] for one in folds]),
            np.concatenate([one.calls[e, h] for one in folds]),
        )["brier"]
        for e in range(2)
        for h in range(2)
    ]
    assert found["a"]["brier"].value == pytest.approx(np.mean(by_hand))
    np.testing.assert_array_equal(found["a"]["brier"].draws, found["b"]["brier"].draws)
    assert found["a"]["brier"].draws.std() > 0
    alone = [one._replace(patients=("p",) * 12) for one in folds]  # one patient a fold: nothing to draw
    single = [one._replace(probabilities=one.probabilities[:1, :1]) for one in alone]
    assert resample_calls({"a": single}, n_resamples=50, seed=0)["a"]["brier"].draws.std() == pytest.approx(0)


def test_two_sided_p_by_hand() -> None:
    draws = np.concatenate([np.full(95, 0.1), np.full(4, -0.1)])
    assert two_sided(Resampled(0.1, draws)) == pytest.approx(2 * 5 / 100)
    assert two_sided(Resampled(0.0, np.zeros(99))) == 1
    assert two_sided(Resampled(0.0, np.full(10, np.nan))) is None


def test_operations_by_hand() -> None:
    """A ViT of one block, 16 dimensions, 4 tokens of 8 px and a class token; ABMIL without gate or projection, 10 tiles."""
    vit = EncoderSpec(
        architecture="vit_tiny_patch16_224",
        options={"patch_size": 8, "img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2},
    )
    head = ABMILSpec(embed_dim=16, n_classes=2, hidden_dim=4, gated=False)
    found = computation(vit, head, tile_px=16, n_tiles=10)
    tokens, dim = 5, 16
    linear = dim * 3 * dim + dim * dim + 2 * dim * 4 * dim
    of_tile = 2 * (4 * 3 * 64 * dim + tokens * linear + 2 * tokens * tokens * dim)
    of_bag = 2 * 10 * (dim * 4 + 4 + dim * 2) + 2 * (10 * dim + dim * 2)
    assert found.flops == pytest.approx(10 * of_tile + of_bag, rel=0.02)
    assert found.parameters > linear


# --- the pages -------------------------------------------------------------------------------------------------------

ROWS = [
    BenchmarkRow(
        key="lrmil",
        name="LRMIL | <b>",
        train_auc=1.0,
        unfitted=1,
        auc=Measured(value=0.9, low=0.8, high=None),
        seconds=1.5,
        gflops=2.0,
        parameters=2_500_000,
    ),
    BenchmarkRow(key="stage2_kd", name="stage2_kd", error="first line\nout of memory"),
]


def test_the_table_as_text() -> None:
    rows = list(csv.DictReader(as_csv(ROWS).splitlines()))
    assert rows[0]["auc"] == "0.9"
    assert rows[0]["auc_low"] == "0.8"
    assert rows[0]["auc_high"] == rows[1]["auc"] == ""
    assert rows[1]["error"].endswith("out of memory")
    text = as_markdown(ROWS, "Title")
    assert "| LRMIL \\| <b> | 1.000! | 0.900 [0.800, -] |" in text
    assert "- stage2_kd: out of memory" in text
    console = Console(file=io.StringIO(), width=80)
    console.print(printed(ROWS))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "stage2_kd" in shown
    assert "0.900 [0.800, -]" in shown
    page = as_html(ROWS, "Title")
    assert "LRMIL | &lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert "<pre>first line\nout of memory</pre>" in page


# --- a whole one -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_benchmark_lists_what_fails_and_goes_on(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, cohort)
    path.write_text(
        path.read_text()
        + """
[[compare]]
key = "lr_scratch"

[[compare]]
key = "broken"
embedding = "lr"
mil = { learning_rate = 1e300 }
"""
    )
    words = ["config.toml", "--objectives", "kd", "--methods", "lr_scratch,broken"]
    listed = python(tmp_path, "-m", "training.benchmark", *words, "--list")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert [line.split()[1] for line in listed.stdout.splitlines()] == [
        "teacher_hr",
        "lrmil",
        "lr_scratch",
        "broken",
        "stage2_kd",
    ]
    assert not (tmp_path / "run").exists()
    # Each row is tried in a process of its own; the command needs none again.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "Failed: broken" in " ".join(done.output.split())
    folder = tmp_path / "run" / "benchmark"
    with (folder / "benchmark.csv").open(newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert list(rows)[:2] == ["lrmil", "teacher_hr"]
    assert {"lr_scratch", "stage2_kd", "broken"} <= rows.keys()
    assert rows["broken"]["error"]
    for key in ("lrmil", "teacher_hr", "lr_scratch", "stage2_kd"):
        row = rows[key]
        for name in ("auc", "balanced_accuracy", "macro_f1", "brier", "ece", "tiles", "megabytes", "seconds"):
            assert row[name], (key, name)
        assert float(row["parameters"]) > 10_000
        assert float(row["gflops"]) > 0
        assert float(row["train_seconds"]) > 0
    assert rows["stage2_kd"]["p"]
    assert rows["stage2_kd"]["name"] == "LRMIL, stage 2 by kd"
    assert float(rows["teacher_hr"]["gflops"]) > float(rows["lrmil"]["gflops"])  # it reads 16 times the tiles
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert float(rows["lrmil"]["brier"]) == pytest.approx(results["lrmil"]["brier"])
    assert float(rows["lrmil"]["auc"]) == pytest.approx(results["lrmil"]["auc"])
    for ending in ("md", "html"):
        assert (folder / f"benchmark.{ending}").stat().st_size > 500
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert again.output.count("done before") == 4  # the one that failed is tried again

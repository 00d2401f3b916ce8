"""Several seeds in one run: each head and encoder as a run of its own would have made it, shared work done once."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import python, rerun, write_config
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import Encoder
from training.config import load_config
from training.data.predictions import Predictions
from training.methods import BY_KEY, KNOWN, METHODS, Method
from training.noninferiority import Comparison
from training.run import results
from training.run.cli import app
from training.run.results import front_table, results_table
from training.stages.evaluate import MethodResult, fold_scores
from training.stages.front import Costs, Front, FrontRow, Timed


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..3", (0, 1, 2, 3)), ("7", (7,)), ("0,3,5..6", (0, 3, 5, 6)), ("[4, 2]", (4, 2))]
)
def test_seeds_are_a_range_or_a_list(cohort: Path, tmp_path: Path, text: str, seeds: tuple[int, ...]) -> None:
    config = load_config(write_config(tmp_path, cohort), ["--run.seeds", text, "--stage1.seeds", text])
    assert config.run.seeds == config.stage1.seeds == seeds


@pytest.mark.parametrize("text", ["3..1", "a", "0..9999999", "1,1", "-1", "[]"])
def test_what_is_no_seed_is_refused(cohort: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.seeds"):
        load_config(write_config(tmp_path, cohort), [f"--run.seeds={text}"])


def test_scores_are_ordered_by_encoder_and_head() -> None:
    def of(value: float, name: str = "s") -> Predictions:
        return Predictions(
            ("a", "b"), (name,), ("p",), np.zeros(1, int), np.array([[1 - value, value]]), np.ones(1, int)
        )

    found = fold_scores([of(value) for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)], 3)
    assert found.probabilities[..., 0, 1].tolist() == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    with pytest.raises(ValueError, match="different slides"):
        fold_scores([of(0.1), of(0.2, "other")], 2)


FEW = ["--evaluate.methods", '["teacher_hr", "lr_scratch", "lrmil"]', "--evaluate.shortcuts", "[]"]


def heads_of(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.rglob("mil/*.safetensors"))
    }


@pytest.mark.slow
def test_seeds_of_one_run_are_the_runs_of_each_seed_with_shared_work_done_once(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    write_config(folder, cohort)
    _, said = rerun(folder, *FEW, "--run.seeds", "5..6", "--stage1.seeds", "[5, 8]")
    run = folder / "run"
    made = heads_of(run)
    assert set(made) == {
        *(
            f"fold0/{seed}mil/{name}.safetensors"
            for seed in ("", "seed6/")
            for name in ("teacher_hr", "lr_scratch")
        ),
        *(
            f"fold0/{encoder}{seed}mil/lrmil.safetensors"
            for encoder in ("", "encoder8/")
            for seed in ("", "seed6/")
        ),
    }
    assert said.count("Embedding HR tiles") == 1
    assert said.count("Stage 1: tiles") == 2
    assert (run / "fold0" / "encoder8" / "student_encoder.safetensors").is_file()
    # One seed alone, in a run of its own: the same heads, to the last bit. The config's own seed deals the splits.
    alone = tmp_path / "alone"
    alone.mkdir()
    write_config(alone, cohort)
    rerun(alone, *FEW, "--run.seeds", "6", "--stage1.seeds", "8")
    of_alone = heads_of(alone / "run")
    assert of_alone["fold0/mil/teacher_hr.safetensors"] == made["fold0/seed6/mil/teacher_hr.safetensors"]
    assert of_alone["fold0/mil/lrmil.safetensors"] == made["fold0/encoder8/seed6/mil/lrmil.safetensors"]
    assert len({made[name] for name in made if name.endswith("lrmil.safetensors")}) == 4
    # The table is over all of them.
    results = json.loads((run / "results.json").read_text())
    assert np.shape(results["lrmil"]["auc_by_training"]) == (2, 2)
    assert np.shape(results["lr_scratch"]["auc_by_training"]) == (1, 2)
    for result in results.values():
        assert result["auc"] == pytest.approx(np.mean(result["auc_by_training"]))
        assert result["auc_interval"][0] == result["auc"]
    assert "patients and trainings (2 heads on 2 encoders)" in " ".join(said.split())
    assert "2 heads of each method, on 2 student encoders" in (run / "report.html").read_text()
    # Done once more it does nothing; a further seed trains its heads and nothing else.
    before = {path: path.stat().st_mtime_ns for path in (run / "done").iterdir()}
    kept = (run / "results.json").read_bytes()
    rerun(folder, *FEW, "--run.seeds", "5..6", "--stage1.seeds", "[5, 8]")
    assert {path: path.stat().st_mtime_ns for path in (run / "done").iterdir()} == before
    assert (run / "results.json").read_bytes() == kept
    _, said = rerun(folder, *FEW, "--run.seeds", "5..7", "--stage1.seeds", "[5, 8]")
    assert "Stage 1: tiles" not in said
    trained = set(heads_of(run)) - set(made)
    assert trained
    assert all("seed7" in name for name in trained)
    assert {name: text for name, text in heads_of(run).items() if name in made} == made
    # What is no longer asked for doesn't pass for a result of this run.
    rerun(folder, *FEW, "--run.seeds", "5")
    assert not list(run.glob("fold0/*/predictions/*.csv"))
    assert len(list(run.glob("fold0/predictions/*.csv"))) == 3


@pytest.mark.slow
def test_a_run_of_seeds_that_was_killed_ends_as_if_it_had_not_been(cohort: Path, tmp_path: Path) -> None:
    ends = []
    for name, kills in (
        ("whole", []),
        (
            "killed",
            [
                ("training.checkpoint", "FitState.save:seed6/checkpoints/lrmil", "2", "after"),
                ("training.run.markers", "Markers.write:fold0/seed6/test_lrmil", "1", "before"),
            ],
        ),
    ):
        folder = tmp_path / name
        folder.mkdir()
        write_config(folder, cohort)
        options = [*FEW, "--run.checkpoint_seconds", "0", "--seeds", "5..6"]
        script = str(Path(__file__).with_name("killed_run.py"))
        for kill in kills:
            done = python(folder, script, *kill, "config.toml", *options)
            assert done.returncode == -signal.SIGKILL, (kill, done.stdout, done.stderr)
        done = python(folder, "-m", "training.run", "config.toml", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        ends.append((heads_of(folder / "run"), (folder / "run" / "results.json").read_bytes()))
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_a_dry_run_counts_every_seed(copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied()
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["config.toml", "--dry-run", "--seeds", "5..7", "--stage1.seeds", "5,9"])
    assert done.exit_code == 0, done.output
    said = done.output
    assert said.count("/teacher_mil") == 3
    assert said.count("/stage1 ") == 2
    assert sum("/lrmil " in line for line in said.splitlines()) == 6
    assert sum("fold0/lrmil" in line and "done" in line for line in said.splitlines()) == 1


@pytest.mark.slow
def test_a_dry_run_measures_encoders_at_the_precision_of_the_run(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HR tiles and training in bfloat16, LR tiles at 32 bits, as at inference: each is measured as it will be done."""
    folder = copied()
    monkeypatch.chdir(folder)
    seen: list[tuple[bool, bool]] = []
    forward = Encoder.forward

    def noting(self: Encoder, *values: object, **options: object) -> object:
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return forward(self, *values, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "forward", noting)
    for precision, kinds in (
        ("32-true", {(False, False), (False, True)}),
        ("bf16-mixed", {(True, False), (False, False), (True, True)}),
    ):
        seen.clear()
        words = ["config.toml", "--dry-run", "--run.precision", precision, "--run.out_dir", "new"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert set(seen) == kinds


def test_the_table_of_the_front_keeps_to_80_columns() -> None:
    """All that may be chosen, widest numbers: nothing is cut off, and a long name goes on in the next line."""
    costs = Costs(seconds=123.4, tiles=123_456, megabytes=1234.56, file_megabytes=1234.56)
    not_shown = Comparison(difference=0.123, limit=0.123, p=0.5, adjusted_p=1.0, shown=False)
    chosen = [method for method in KNOWN if method.may_be_chosen]
    rows = [
        FrontRow(
            key=method.key,
            name=f"{method.name}, student.token_px = 8",
            mpp=2.0,
            costs=costs,
            of_teacher=costs,
            val_auc=0.9,
            test_auc=0.9,
            val=not_shown,
            test=not_shown,
        )
        for method in chosen
    ]
    front = Front(
        margin=0.02,
        alpha=0.05,
        rows=tuple(rows),
        chosen=rows[0].key,
        patients={"a": 3, "b": 3},
        timed=Timed(n_slides=3, device="cpu", cores=2, load=1.0),
    )
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(front_table(front))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert sum(line.rstrip().endswith("not shown") for line in lines) == len(rows)
    first_column = "".join(line[: line.index("not shown")] if "not shown" in line else line for line in lines)
    for method in chosen[:3]:
        assert method.name.split()[0] in first_column


@pytest.mark.parametrize(
    ("compared", "longer"), [(METHODS, ""), (METHODS, ", mean of the children of an LR tile"), (KNOWN, "")]
)
def test_run_tables_keep_to_80_columns(
    monkeypatch: pytest.MonkeyPatch, compared: tuple[Method, ...], longer: str
) -> None:
    """All rows, several seeds, widest numbers, all marks: nothing is cut off, and a long name goes on in the next line."""
    monkeypatch.setattr(results, "method_name", lambda key, result=None: BY_KEY[key].name + longer)
    widest: MethodResult = {
        "train_auc": 0.123,
        "n_unfitted": 30,
        "auc_interval": [0.123, 0.123, 0.123],
        "lrmil_minus_this": [-0.123, -0.123, -0.123],
        "brier": 0.123,
    }
    console = Console(width=80, file=io.StringIO(), record=True)
    of_student = [method.key for method in compared if method.is_of_student]
    all_widest = {method.key: widest for method in compared}
    console.print(results_table(all_widest, mark_student="*", of_student=of_student))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    numbers = "0.123 [0.123, 0.123] -0.123 [-0.123, -0.123] 0.123"
    rows = [line for line in lines if numbers in " ".join(line.split())]
    assert len(rows) == len(compared)
    assert sum("0.123! " in line for line in rows) == sum(method.head != "logistic" for method in compared)
    wide = rows[0].index("0.123")
    first_column = " ".join(line[:wide].strip() for line in lines)
    for method in compared:
        assert f"{method.name}{longer}{'*' if method.is_of_student else ''} " in first_column
    if compared == METHODS and not longer:
        assert len(lines) <= len(compared) + 5  # a row a method

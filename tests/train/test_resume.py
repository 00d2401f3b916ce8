"""A run that is killed, whose disk fills up, or that meets another one in its directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_helpers import absolute_rows, python, rerun, weights, write_config, write_rows
from typer.testing import CliRunner

from training.run.cli import app
from training.run.markers import RunDirError

pytestmark = pytest.mark.slow

# Module, function (and what its arguments mention), which call, before or after it: one in the midst of each stage, of
# trainings in the middle of an epoch. A signal's name: it is sent before the call, and the run ends by itself.
KILLS = [
    ("training.data.tile_index", "remembered", 7, "after"),
    ("training.data.store", "ArrayWriter.finish", 5, "after"),  # the third slide's first array
    ("training.checkpoint", "FitState.save:teacher_hr", 1, "after"),
    ("training.run.layout", "Folder.write_teacher_outputs", 1, "before"),
    ("training.checkpoint", "FitState.save:stage1", 1, "after"),
    ("training.checkpoint", "FitState.save:stage1", 3, "before"),  # in its second epoch
    ("training.loop", "_Trainer.step", 2, "SIGUSR1"),  # of stage 1, where that is
    ("training.run.markers", "Markers.write:fold0/stage1", 1, "before"),
    ("training.stages.embed_tiles", "embed_slide", 4, "before"),  # student embeddings
    ("training.checkpoint", "FitState.save:stage2_only", 2, "after"),
    ("training.loop", "_Trainer.step", 5, "SIGTERM"),  # of a head
    ("training.checkpoint", "FitState.save:lrmil", 3, "before"),
    ("training.run.layout", "Folder.write_predictions:lr_scratch", 1, "before"),
    ("training.stages.export", "save_bundle", 1, "before"),
    ("training.run.layout", "RunDir.write_kept_results", 1, "before"),
    ("training.run.layout", "RunDir.write_results", 1, "before"),
]


def test_killed_in_the_midst_of_each_stage_it_ends_as_if_it_had_not_been(
    finished: Path, cohort: Path, tmp_path: Path
) -> None:
    write_config(tmp_path, cohort)
    # A checkpoint after two steps: an epoch of stage 1 has 5, of a head 9.
    options = ["--run.checkpoint_seconds", "0", "--run.checkpoint_steps", "2"]
    options += ["--run.out_dir", str(tmp_path / "run")]
    for module, function, number, when in KILLS:
        script = str(Path(__file__).with_name("killed_run.py"))
        done = python(tmp_path, script, module, function, str(number), when, "config.toml", *options)
        if when.startswith("SIG"):
            assert done.returncode == 75, (function, done.stdout, done.stderr)
            assert f"error: stopped by {when}, exit status 75. What was finished is kept in" in done.stderr
            assert "Traceback" not in done.stderr
        else:
            assert done.returncode == -signal.SIGKILL, (function, done.stdout, done.stderr)
        assert not (tmp_path / "run" / "results.json").exists()
    done = python(tmp_path, "-m", "training.run", "config.toml", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads((folder / "run" / "results.json").read_text()) for folder in (tmp_path, finished)]
    assert results[0] == results[1]
    assert weights(tmp_path) == weights(finished)
    for stage in ("stage1", "teacher_hr", "lrmil"):
        tables = [folder / "run" / "fold0" / "metrics" / f"{stage}.csv" for folder in (tmp_path, finished)]
        assert tables[0].read_bytes() == tables[1].read_bytes()
    left = [path for path in (tmp_path / "run").rglob("checkpoints/*")]
    assert left == []


def test_a_checkpoint_of_other_inputs_or_a_torn_one_is_passed_over(
    finished: Path, cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    write_config(tmp_path, cohort)
    shutil.copytree(finished / "run", tmp_path / "run")
    for stage in ("stage1", "lrmil"):
        (tmp_path / "run" / "done" / f"fold0-{stage}").unlink()
    checkpoints = tmp_path / "run" / "fold0" / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "stage1.safetensors").write_bytes(b"PK torn")
    (checkpoints / "lrmil.safetensors").write_bytes(b"")
    rerun(tmp_path)
    assert weights(tmp_path) == weights(finished)


def test_damaged_files_of_a_finished_run_are_made_anew_and_it_says_so(
    finished: Path, copied: Callable[..., Path]
) -> None:
    folder = copied()
    # The marker of each step knows its files, and those that it read: a run that was finished twice is the same.
    for step, name in (
        ("fold0/stage1 is", "fold0/student_encoder.safetensors"),
        ("fold0/lrmil is", "fold0/mil/lrmil.safetensors"),
        ("fold0/test_lrmil is", "fold0/predictions/lrmil.csv"),
        ("fold0/export is", "fold0/bundle/bundle.json"),
        ("results is", "done/results.json"),
        ("the splits are dealt", "splits.json"),
    ):
        path = folder / "run" / name
        right = path.read_bytes()
        path.write_bytes(right[:-9] + bytes([right[-9] ^ 1]) + right[-8:])  # of the same size
        _, said = rerun(folder)
        assert f"{step} " in said
        assert "anew" in said
        if name != "fold0/bundle/bundle.json":  # it holds when and where it was exported
            assert path.read_bytes() == right
    assert weights(folder) == weights(finished)
    curve = folder / "run" / "fold0" / "metrics" / "lrmil.csv"
    curve.write_text(curve.read_text().replace("1", "2"))
    with pytest.raises(RunDirError, match=r"lrmil\.csv isn't as this run wrote it.* Delete it: the report"):
        rerun(folder, "--evaluate.bootstrap", "101")  # a report is drawn again
    curve.unlink()
    rerun(folder)
    assert (
        "The curves of these trainings are gone: fold0, lrmil."
        in (folder / "run" / "report.html").read_text()
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a given size; called again it grows."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        how = (
            ["-o", f"remount,size={size}"]
            if os.path.ismount(place)
            else ["-t", "tmpfs", "-o", f"size={size}"]
        )
        done = subprocess.run(
            ["mount", *how, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.mark.parametrize("size", ["96k", "300k", "600k"])
def test_a_full_disk_is_told_and_the_next_run_ends_as_if_it_had_not_been(
    finished: Path, cohort: Path, tmp_path: Path, small_disk: Callable[[str], Path], size: str
) -> None:
    write_config(tmp_path, cohort)
    run_dir = small_disk(size) / "run"
    options = ("--run.checkpoint_seconds", "0", "--run.out_dir", str(run_dir))
    done = python(tmp_path, "-m", "training.run", "config.toml", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: the disk is full" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    small_disk("200m")
    again = python(tmp_path, "-m", "training.run", "config.toml", *options)
    assert again.returncode == 0, again.stdout + again.stderr
    expected = json.loads((finished / "run" / "results.json").read_text())
    assert json.loads((run_dir / "results.json").read_text()) == expected


def test_embeddings_that_were_damaged_are_made_anew(finished: Path, copied: Callable[..., Path]) -> None:
    folder = copied()
    stored = sorted((folder / "run" / "embeddings.zarr").glob("hr-*/*.zarr/embedding/c/0/0"))
    with stored[0].open("r+b") as file:
        file.truncate(100)
    stored[1].unlink()
    for stage in ("teacher_mil", "stage1", "lrmil"):
        (folder / "run" / "done" / f"fold0-{stage}").unlink()
    _, said = rerun(folder)
    assert "Embedding HR tiles" in said
    assert stored[1].is_file()
    assert weights(folder) == weights(finished)


def test_a_dry_run_writes_nothing_and_names_what_is_left(
    finished: Path, copied: Callable[..., Path], cohort: Path, tmp_path: Path
) -> None:
    write_config(tmp_path, cohort)
    args = [str(tmp_path / "config.toml"), "--dry-run", "--run.out_dir"]
    before = sorted(path.name for path in tmp_path.iterdir())
    fresh = CliRunner().invoke(app, [*args, str(tmp_path / "run")])
    assert fresh.exit_code == 0, fresh.output
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert "11 of 11 steps to do" in fresh.output
    assert "Nothing is written" in fresh.output
    folder = copied()
    times = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    done = CliRunner().invoke(app, [*args, str(folder / "run")])
    assert "0 of 11 steps to do" in done.output
    some = CliRunner().invoke(app, [*args, str(folder / "run"), "--stage2.l_soft", "0.1"])
    assert "2 of 11 steps to do" in some.output  # stage 2 only and LRMIL
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == times


def test_patients_spelt_twice_stop_a_run_unless_it_is_told_to_go_on(cohort: Path, tmp_path: Path) -> None:
    rows = absolute_rows(cohort)
    first, second = [row for row in rows if row["fold"] == "train"][:2]
    first["patient_id"], second["patient_id"] = "7", "07"
    write_config(tmp_path, write_rows(tmp_path / "slides.csv", rows))
    args = [str(tmp_path / "config.toml"), "--run.out_dir", str(tmp_path / "run")]
    for more in ([], ["--dry-run"]):
        refused = CliRunner().invoke(app, [*args, *more])
        said = " ".join(refused.output.split())
        assert refused.exit_code != 0
        assert "patient_id: line " in said
        assert "data.allow_similar_names = true" in said
        assert not (tmp_path / "run").exists()
    going_on = CliRunner().invoke(app, [*args, "--dry-run", "--data.allow_similar_names", "true"])
    assert going_on.exit_code == 0, going_on.output
    assert "Note: slides.csv: patient_id: line " in " ".join(going_on.output.split())


def test_a_loss_that_is_no_number_names_the_slide_and_keeps_the_last_good_weights(
    finished: Path, copied: Callable[..., Path]
) -> None:
    """The embeddings of one slide hold what no encoder gives: they are finite, their square is not."""
    import numpy as np

    from training.data.store import EmbeddingStore

    folder = copied()
    root = next((folder / "run" / "embeddings.zarr").glob("hr-*"))
    store = EmbeddingStore(root)
    manifest = json.loads((root / "train-002.zarr" / "manifest.json").read_text())
    values = store.read("train-002")
    tokens = store.read("train-002", "layer_class_tokens")
    store.write(
        "train-002", stamp=manifest["stamp"], embedding=values, layer_class_tokens=np.full_like(tokens, 6e4)
    )
    (folder / "run" / "done" / "fold0-stage1").unlink()
    args = [
        str(folder / "config.toml"),
        "--run.out_dir",
        str(folder / "run"),
        "--stage1.lambda_layer",
        "1e38",
    ]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "Stage 1: tiles: the loss is inf at epoch 0" in said
    assert "on train-002" in said
    assert (folder / "run" / "fold0" / "metrics" / "stage1.last_good.safetensors").is_file()

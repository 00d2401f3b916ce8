"""Parts of a run in processes of their own, side by side in one directory: as one process leaves it, and each step once."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from run_helpers import absolute_rows, child_environment, python, weights, write_config, write_rows
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from training.config import load_config
from training.progress import Reporter
from training.run.cli import app
from training.run.layout import RunDir
from training.run.locks import Locks
from training.run.prepare import prepare
from training.run.steps import Step, once

FOLDS = ("--data.n_folds", "3", "--mil.epochs", "2", "--stage1.epochs", "1", "--evaluate.bootstrap", "100")


def locks_of(root: Path) -> tuple[Locks, io.StringIO]:
    text = io.StringIO()
    return Locks(root, Reporter(Console(file=text, width=200))), text


@contextmanager
def holder(root: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that is at work until it is killed; `what` is an expression of `locks`."""
    code = (
        "import sys, time; from pathlib import Path; from training.progress import Reporter\n"
        "from training.run.locks import Locks\n"
        "locks = Locks(Path(sys.argv[1]), Reporter())\n"
        f"with {what}:\n    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], env=child_environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "held"
        yield process
    finally:
        process.kill()
        process.communicate()


# --- locks -----------------------------------------------------------------------------------------------------------


def test_a_step_that_is_held_is_waited_for_and_it_is_said_who_holds_it(tmp_path: Path) -> None:
    locks, said = locks_of(tmp_path)
    with holder(tmp_path, "locks.step('fold0/stage1')") as other:
        assert locks.is_held("fold0/stage1")
        assert f"process {other.pid} on " in locks.who("fold0/stage1")
        with locks.step("fold1/stage1"):  # another one isn't waited for
            assert said.getvalue() == ""
        start = time.monotonic()
        killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {other.pid}"])
        with locks.step("fold0/stage1"):  # and the lock is gone with its process
            waited = time.monotonic() - start
        killer.wait()
    assert waited > 0.5
    assert f"fold0/stage1 is being done by process {other.pid} on " in said.getvalue()
    assert not locks.is_held("fold0/stage1")


def test_a_step_that_another_process_did_meanwhile_is_not_done_again(cohort: Path, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, cohort), ["--run.out_dir", str(tmp_path / "run")])
    context = prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO()))).context
    made = tmp_path / "run" / "fold0" / "made.txt"
    step = Step("fold0/some", "key", (made,))
    code = (
        "from pathlib import Path; import sys, time; from training.progress import Reporter\n"
        "from training.run.locks import Locks; from training.run.layout import RunDir\n"
        "root = Path(sys.argv[1])\n"
        "with Locks(root, Reporter()).step('fold0/some'):\n"
        "    print('held', flush=True); time.sleep(1)\n"
        "    made = root / 'fold0' / 'made.txt'; made.parent.mkdir(exist_ok=True); made.write_text('x')\n"
        "    RunDir(root).markers.write('fold0/some', 'key', [made])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        once(context, step, lambda: pytest.fail("it was done twice"))
    assert made.read_text() == "x"


def test_runs_of_one_config_share_a_directory_and_others_are_refused(cohort: Path, tmp_path: Path) -> None:
    write_config(tmp_path, cohort)
    run = tmp_path / "run"
    run.mkdir()
    locks, _ = locks_of(run)
    with holder(run, "locks.at_work('a config')") as other:
        with locks.at_work("a config"), locks.at_work("a config"):
            pass
        with (
            pytest.raises(ConfigError, match=r"another run is working in .*run with another config"),
            locks.at_work("another"),
        ):
            pass
        done = CliRunner().invoke(app, [str(tmp_path / "config.toml"), "--run.out_dir", str(run)])
        assert done.exit_code == 1
        said = " ".join(done.output.split())
        assert f"with another config (process {other.pid} on " in said
        assert "run.out_dir" in said
        assert not (run / "config.json").exists()
    with locks.at_work("another"):  # what a killed process left is no hindrance
        pass
    assert list((run / ".locks" / "at_work").iterdir()) == []


def test_words_that_name_no_part_are_told(cohort: Path, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, cohort))
    for args, said in (
        (
            ["head"],
            "no such part of a run: head; did you mean heads? There are embed, stage1, heads, collect",
        ),
        (["embed", "--fold", "0"], "--fold is of stage1 and heads"),
        (["--fold", "0"], "--fold is of stage1 and heads"),
        (
            ["heads", "--fold", "7", "--run.out_dir", str(tmp_path / "run")],
            "--fold 7: this run has the folds 0",
        ),
    ):
        done = CliRunner().invoke(app, [config, *args])
        assert done.exit_code == 1
        assert said in " ".join(done.output.split())


# --- whole runs ------------------------------------------------------------------------------------------------------

SBATCH = """#!/bin/sh
# Stands for SLURM: runs a job, or those of an array side by side, and prints its number.
for word; do script=$word; done
echo "sbatch $*" >> "$SLURM_TOLD"
number=$(wc -l < "$SLURM_TOLD")
array=$(sed -n 's/^#SBATCH --array=//p' "$script")
case "$array" in 0-*) array=$(seq -s ' ' 0 "${array#0-}") ;; *) array=$(echo "$array" | tr ',' ' ') ;; esac
running=""
for task in ${array:-none}; do
    SLURM_JOB_ID=$number$task SLURM_ARRAY_TASK_ID=$task bash "$script" > "$script-$task.log" 2>&1 &
    running="$running $!"
done
for one in $running; do wait "$one" || exit 1; done
echo "$number;cluster"
"""


def command(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def patients_table(cohort: Path, folder: Path) -> Path:
    """The cohort without its column fold, so that it has several."""
    rows = [{key: value for key, value in row.items() if key != "fold"} for row in absolute_rows(cohort)]
    return write_rows(folder / "slides.csv", rows)


@pytest.mark.slow
def test_the_jobs_of_a_run_leave_what_one_process_leaves(cohort: Path, tmp_path: Path) -> None:
    """Two processes embed, three train a fold each, at the same time; SLURM itself is played by a script."""
    write_config(tmp_path, patients_table(cohort, tmp_path))
    one, parts = (tmp_path / name for name in ("one", "parts"))
    whole = python(tmp_path, "-m", "training.run", "config.toml", *FOLDS, "--run.out_dir", str(one / "run"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    options = [*FOLDS, "--run.out_dir", str(parts / "run")]
    early = python(tmp_path, "-m", "training.run", "config.toml", "collect", *options)
    assert early.returncode == 1
    assert "15 of 15 slides aren't embedded, so there is nothing to collect" in early.stderr
    assert not list((parts / "run").glob("embeddings.zarr/*/*.zarr"))
    written = python(
        tmp_path,
        "-m",
        "training.slurm",
        "config.toml",
        "--embed-jobs",
        "2",
        "--sbatch",
        "--partition=long",
        *options,
    )
    assert written.returncode == 0, written.stdout + written.stderr
    submit = parts / "run" / "slurm" / "submit.sh"
    assert written.stdout.strip() == f"bash {submit}"
    assert "#SBATCH --partition=long\n" in (submit.parent / "heads.sh").read_text()
    command(tmp_path / "bin", "sbatch", SBATCH)
    asked_of = tmp_path / "told.txt"
    asked_of.touch()
    environment = child_environment() | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_TOLD": str(asked_of),
    }
    done = subprocess.run(
        ["bash", str(submit)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    logs = {path.name: path.read_text() for path in submit.parent.glob("*.log")}
    assert done.returncode == 0, (done.stderr, logs)
    assert done.stdout == "embed 1, stage1 2, heads 3, collect 4\n"
    asked = asked_of.read_text()
    assert "--dependency=afterok:1 stage1.sh" in asked
    assert "--dependency=aftercorr:2 heads.sh" in asked
    assert "--dependency=afterok:3 collect.sh" in asked
    assert len(logs) == 2 + 3 + 3 + 1
    assert "Embedding HR tiles" in logs["embed.sh-0.log"] + logs["embed.sh-1.log"]

    first, second = ((folder / "run" / "results.json").read_bytes() for folder in (one, parts))
    assert first == second
    for fold in range(3):
        assert weights(one, fold) == weights(parts, fold)
        told = [
            json.loads((folder / "run" / f"fold{fold}" / "bundle" / "bundle.json").read_text())
            for folder in (one, parts)
        ]
        for of_bundle in told:  # when, and of which config: its folder is another one
            del of_bundle["provenance"]
        assert told[0] == told[1]
    files = [
        {
            str(path.relative_to(folder / "run"))
            for path in (folder / "run").rglob("*")
            if path.is_file() and not {"slurm", ".locks", "locks", "tensorboard"} & set(path.parts)
        }
        for folder in (one, parts)
    ]
    assert files[0] == files[1]
    for name in sorted(files[0]):
        if name.startswith("fold") and name.endswith((".csv", ".safetensors")):
            assert (one / "run" / name).read_bytes() == (parts / "run" / name).read_bytes(), name
    # Nothing is done twice, and a comparison trains nothing.
    (parts / "run" / "done" / "fold1-lrmil").unlink()
    lacking = python(tmp_path, "-m", "training.run", "config.toml", "collect", *options)
    assert lacking.returncode == 1
    assert "fold1/lrmil isn't done, so there is nothing to collect of it" in lacking.stderr
    again = python(tmp_path, "-m", "training.run", "config.toml", *options)
    assert again.returncode == 0
    assert "Embedding" not in again.stdout
    assert "fold2/stage1: done before" in again.stdout


@pytest.mark.slow
def test_a_job_that_is_told_that_its_time_is_over_is_queued_again(cohort: Path, tmp_path: Path) -> None:
    write_config(tmp_path, cohort)
    options = ["--run.out_dir", str(tmp_path / "run")]
    written = python(tmp_path, "-m", "training.slurm", "config.toml", *options)
    assert written.returncode == 0, written.stdout + written.stderr
    script = tmp_path / "run" / "slurm" / "stage1.sh"
    assert "#SBATCH --signal=B:USR1@300\n" in script.read_text()
    assert "#SBATCH --array=0\n" in script.read_text()
    command(tmp_path / "bin", "scontrol", '#!/bin/sh\necho "$*" >> "$SLURM_TOLD"\n')
    told = tmp_path / "told.txt"
    environment = child_environment() | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_TOLD": str(told),
        "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "0",
    }
    job = subprocess.Popen(
        ["bash", str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not (tmp_path / "run" / "splits.json").exists():  # it is at work
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)  # to the shell alone, as --signal=B: does
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 75, said
    assert "error: stopped by SIGUSR1, exit status 75." in said
    assert "Traceback" not in said
    assert told.read_text() == "requeue 77\n"
    done = subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert told.read_text() == "requeue 77\n"
    assert RunDir(tmp_path / "run").markers.find("fold0/stage1") is not None

"""Two processes under torchrun, on gloo: the same result as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_helpers import python, read_rows, write_config
from safetensors.torch import load_file as load_tensors

pytestmark = pytest.mark.slow


def launch(folder: Path, *overrides: str, processes: int) -> None:
    command = ["-m", "training.run", "config.toml", *overrides]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    done = python(folder, *command, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_end_where_one_does(finished: Path, cohort: Path, tmp_path: Path) -> None:
    write_config(tmp_path, cohort)
    launch(tmp_path, processes=2)
    one, two = finished / "run", tmp_path / "run"
    for name in ("stage1", "teacher_hr", "lrmil", "random_init"):
        rows = [read_rows(run / "fold0" / "metrics" / f"{name}.csv") for run in (one, two)]
        assert len(rows[0]) == len(rows[1])
        for first, second in zip(*rows, strict=True):
            assert {key: float(value) for key, value in second.items()} == pytest.approx(
                {key: float(value) for key, value in first.items()}, rel=1e-3, abs=1e-5
            )
    states = [load_tensors(run / "fold0" / "student_encoder.safetensors") for run in (one, two)]
    start_to_end = 1e-3  # of two epochs at a rate of 3e-4
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=start_to_end / 10)
    results = [json.loads((run / "results.json").read_text()) for run in (one, two)]
    for method, expected in results[0].items():
        assert results[1][method]["auc"] == expected["auc"]
        assert results[1][method]["brier"] == pytest.approx(expected["brier"], rel=1e-4)


@pytest.mark.parametrize(
    ("rank", "how", "said"),
    [
        (0, "disk", "error: the disk is full while writing slide-7"),
        (1, "slide", ": slide-7 can't be read"),  # one line for each slide that failed
        (1, "nan", "error: Stage 1: tiles: the loss is nan at epoch 0, step 1, on "),
    ],
)
def test_an_error_of_one_process_ends_the_others_at_once_and_is_not_drowned(
    cohort: Path, tmp_path: Path, rank: int, how: str, said: str
) -> None:
    """Without torchrun's help they would wait at a barrier for half a day."""
    write_config(tmp_path, cohort)
    done = python(
        tmp_path,
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(Path(__file__).with_name("failing_rank.py")), str(rank), how, "config.toml"),
        timeout_s=120,
    )
    assert done.returncode != 0
    assert said in done.stderr
    # torchrun has a traceback of its own.
    assert "]: Traceback" not in done.stderr, done.stderr


def test_precision_accumulation_and_checkpointing(cohort: Path, tmp_path: Path) -> None:
    """bfloat16 trains to about the same loss; checkpointing to the same, to the last digit that counts."""
    write_config(tmp_path, cohort)
    ways = {
        "plain": (),
        "checkpointing": ("--stage1.checkpointing", "true"),
        "bf16": ("--run.precision", "bf16-mixed"),
        # Half the pairs a pass and two passes a step: the same steps.
        "accumulated": ("--stage1.batch_size", "16", "--stage1.accumulate", "2"),
    }
    losses = {}
    for name, options in ways.items():
        launch(
            tmp_path,
            *(
                "--run.out_dir",
                f"run-{name}",
                "--evaluate.methods",
                '["lrmil"]',
                "--evaluate.shortcuts",
                "[]",
            ),
            *options,
            processes=1,
        )
        rows = read_rows(tmp_path / f"run-{name}" / "fold0" / "metrics" / "stage1.csv")
        losses[name] = [float(row["val_loss"]) for row in rows]
    assert losses["checkpointing"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.05)
    assert losses["bf16"] != losses["plain"]
    assert losses["accumulated"] == pytest.approx(losses["plain"], rel=1e-3)

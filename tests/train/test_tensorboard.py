"""TensorBoard's events say what the CSV files say, also of a run that was stopped and went on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from training.checkpoint import Files
from training.loop import Recipe, Session, Task, fit
from training.progress import Reporter
from training.runtime import Runtime


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), as TensorBoard would draw them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def columns(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def assert_same(told: dict[str, list[tuple[int, float]]], table: dict[str, list[float]]) -> None:
    for name, values in table.items():
        if name not in ("epoch", "kept"):
            # Events are float32.
            assert [value for _, value in told[f"epoch/{name}"]] == pytest.approx(values, rel=1e-6), name


@pytest.mark.parametrize("stage", ["stage1", "teacher_hr", "lrmil", "stage1_only", "random_init"])
def test_a_runs_events_are_its_tables(finished: Path, stage: str) -> None:
    run = finished / "run"
    told = scalars(run / "tensorboard" / "fold0" / stage)
    table = columns(run / "fold0" / "metrics" / f"{stage}.csv")
    assert {name for name in told if name.startswith("epoch/")} == {
        f"epoch/{name}" for name in table if name not in ("epoch", "kept")
    }
    assert_same(told, table)
    # A step's losses lie between the epochs, and their means are the epochs'.
    ends = [step for step, _ in told["epoch/train_loss"]]
    steps = [step for step, _ in told["step/loss"]]
    assert steps == list(range(ends[-1] + 1))
    if stage != "stage1":  # there batches aren't all of one size
        first = [value for step, value in told["step/loss"] if step <= ends[0]]
        assert sum(first) / len(first) == pytest.approx(table["train_loss"][0], rel=1e-5)


class _Stopped(Exception):
    pass


def _fit(folder: Path, *, dies_in: int | None = None, rate: float = 0.1) -> None:
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    def batches(epoch: int) -> Iterable[Tensor]:
        for place in range(3):
            if epoch == dies_in and place == 2:
                raise _Stopped
            yield torch.full((1, 1), 1.0 + place)

    def losses(wrapped: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": (wrapped(batch) - 5).square().mean()}

    def validate() -> dict[str, float]:
        return {"val_loss": float(model.weight.detach().square())}

    task = Task(
        batches=batches,
        steps_per_epoch=3,
        losses=losses,
        validate=validate,
        score=lambda metrics: (-metrics["val_loss"],),
        names=lambda batch, losses: "",
    )
    files = Files(folder / "m.csv", folder / "events", folder / "checkpoint.safetensors", "k", 0.0)
    reporter = Reporter(Console(file=io.StringIO()))
    recipe = Recipe(epochs=4, learning_rate=rate, weight_decay=0.0, seed=0)
    fit(model, task, recipe, Session(Runtime("cpu").head_fabric, files, reporter, "Fit"))


def test_what_was_stopped_within_an_epoch_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    _fit(tmp_path / "whole")
    with pytest.raises(_Stopped):
        _fit(tmp_path / "stopped", dies_in=2)
    _fit(tmp_path / "stopped")
    whole, stopped = (scalars(tmp_path / name / "events") for name in ("whole", "stopped"))
    assert stopped == whole
    assert_same(stopped, columns(tmp_path / "stopped" / "m.csv"))


def test_a_stage_that_is_done_again_leaves_no_old_points_in_its_curves(tmp_path: Path) -> None:
    with pytest.raises(_Stopped):
        _fit(tmp_path / "again", dies_in=2, rate=0.5)
    (tmp_path / "again" / "checkpoint.safetensors").unlink()
    _fit(tmp_path / "again")
    _fit(tmp_path / "whole")
    whole, again = (scalars(tmp_path / name / "events") for name in ("whole", "again"))
    assert again == whole

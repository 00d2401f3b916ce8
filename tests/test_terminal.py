"""Errors of every command look the same, whatever a name holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError, SlideError
from napari_lrmil.terminal import errors_as_messages, exit_with, print_error

ROOT = Path(__file__).resolve().parents[1]
NO_MARKUP = "no slide in x[/]y/[bold red]z/:warning:/[link=file:///etc] of a very long name " * 4


def test_a_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(NO_MARKUP)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: {NO_MARKUP}\n")


@pytest.mark.parametrize("status", [1, 2])
def test_an_error_that_a_user_can_cure_ends_the_program(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, errors_as_messages(status=status):
        raise SlideError(NO_MARKUP)
    assert ended.value.code == status
    assert capsys.readouterr().err == f"error: {NO_MARKUP}\n"
    with pytest.raises(SystemExit) as ended:
        exit_with(ConfigError("wrong"), status=status)
    assert ended.value.code == status


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors_as_messages():
        _ = 1 / 0


@pytest.mark.slow
@pytest.mark.parametrize(("command", "status"), [
    (["-m", "napari_lrmil", "info", "x[/]y.svs"], 1),
    (["-m", "napari_lrmil", "predict", "x[/]y.svs", "-b", "demo"], 2),
    (["-m", "training.run", "x[/]y.toml"], 1),
    (["-m", "training.cohort", "out", "--slides", "x[/]y"], 2),
    (["-m", "training.report", "x[/]y"], 1),
    (["-m", "training.tables", "camelyon16", "--slides", "x[/]y"], 1),
    (["-m", "training.import_features", "x[/]y.toml", "features"], 1),
    (["-m", "training.studies.results", "out.md", "--run", "x[/]y"], 1),
    (["-m", "training.studies.diagnose", "x[/]y"], 1),
    (["-m", "training.studies.kfold_table", "x[/]y"], 1),
    (["-m", "training.studies.osteosarcoma", "x[/]y", "out"], 1),
    (["-m", "training.studies.glas", "x[/]y", "out"], 1),
    (["-m", "training.studies.stand_in", "x[/]y", "--slides", "x[/]y"], 1),
])  # fmt: skip
def test_every_command_prints_through_it(command: list[str], status: int, tmp_path: Path) -> None:
    """A name with brackets on the way: real processes, their status and their error stream."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    # `lrmil predict` tells each slide on a line of its own where nobody watches, as here.
    told = [line for line in done.stderr.splitlines() if "x[/]y" in line and not line.startswith("1/1 ")]
    (line,) = told
    assert line.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_folder_with_brackets_takes_a_cohort(tmp_path: Path) -> None:
    from training.cohort.__main__ import app

    options = [str(tmp_path / "x[/]y"), "--slides", "0/1/0/0", "--size", "512x576", "--workers", "1"]
    for said in ("Wrote ", "The cohort in "):
        done = CliRunner().invoke(app, options)
        assert done.exit_code == 0, done.output
        assert f"{said}{tmp_path}/x[/]y" in done.output

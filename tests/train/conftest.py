"""A tiny run of all steps, made once by the command itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import python, write_config


@pytest.fixture(scope="session")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``config.toml`` and ``run``, as ``python -m training.run config.toml`` leaves it. Don't change it."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, cohort)
    done = python(folder, "-m", "training.run", "config.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path, one_thread: None) -> Callable[..., Path]:
    """A copy of the finished run to go on with."""

    def copy(name: str = "copy") -> Path:
        return Path(shutil.copytree(finished, tmp_path / name))

    return copy

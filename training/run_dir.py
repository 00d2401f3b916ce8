"""The run directory: what is finished, under which inputs, and how a file gets there whole.

Steps meet only through files here. A step is finished when its stamp holds the hash of its inputs: a second
run with the same config skips it, one with another config does it again.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file, save

from napari_lrmil.atomic import replacing, write_text
from napari_lrmil.errors import ConfigError

_NUMBERS = "lrmil"


@dataclass(frozen=True)
class RunDir:
    """A run directory."""

    root: Path

    def path(self, *parts: str) -> Path:
        """A place in it."""
        return self.root.joinpath(*parts)

    def prepare(self) -> None:
        """Make the directory.

        Raises
        ------
        ConfigError
            Where something else lies there.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(f"{self.root} can't be a run directory: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one run.

        The system frees the lock when the process ends, however it ends.

        Raises
        ------
        ConfigError
            Where another run holds it.
        """
        lock = FileLock(self.path(".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(
                f"another run is working in {self.root}. Wait for it, stop it, or take another run.out_dir."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def is_done(self, step: str, key: str) -> bool:
        """Whether `step` was finished with inputs of this hash."""
        try:
            return self._stamp(step).read_text(encoding="utf-8") == key
        except FileNotFoundError:
            return False

    def forget(self, step: str) -> None:
        """Before a step is done again: its files are about to match no stamp."""
        self._stamp(step).unlink(missing_ok=True)

    def mark_done(self, step: str, key: str) -> None:
        """Say that all files of `step` are written."""
        write_text(self._stamp(step), key)

    def _stamp(self, step: str) -> Path:
        return self.path("done", step.replace("/", "-"))


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], numbers: dict[str, Any] | None = None) -> None:
    """A safetensors file, whole or not at all, with JSON values in its header where there are some."""
    metadata = None if numbers is None else {_NUMBERS: json.dumps(numbers)}
    # Through bytes: Python's own write says that a disk is full, where the library's says something of its own.
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with replacing(path) as scratch:
        scratch.write_bytes(content)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file."""
    return load_file(path)


def load_numbers(path: Path) -> dict[str, Any]:
    """The JSON values that `save_tensors` put into the header."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    values: dict[str, Any] = json.loads(metadata.get(_NUMBERS, "{}"))
    return values


def code_commit() -> str:
    """Commit of the training code, with '+changes' where the tree differs from it; 'unknown' without git."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")

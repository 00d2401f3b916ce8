"""Markers of finished steps: what each was made from, and how its files were; and the one way to read such a file.

A marker holds the hash of the step's inputs, and size and SHA-256 of each file that the step read of earlier steps and
wrote. Those of earlier versions hold the hash of the inputs alone: what these left is read as it lies there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import ConfigError, reason_of
from napari_lrmil.outside import read_file
from training.hashing import file_hash

CONFIG, SPLITS, FRONT, RESULTS = "config", "splits", "front", "results"
"""Steps of the whole run; the other ones are named ``<folder>/<what>``."""
CURE = "Run python -m training.run with its config again: it goes on where it stopped."
_MOST_BYTES, _MOST_MARKER_BYTES = 2**34, 2**24
"""Of a file that no marker tells the size of: larger than any encoder's weights."""
_EARLIER = re.compile(rb"[0-9a-f]{64}")


class RunDirError(ConfigError):
    """A run directory lacks a part, or one is damaged."""


class Seal(BaseModel):
    """How a file was when its step was done."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Seal:
        """Return how a file is now."""
        return cls(size=path.stat().st_size, sha256=file_hash(path))

    def fits(self, path: Path) -> bool:
        """Whether a file is as it was; one of another size isn't read."""
        try:
            return path.is_file() and path.stat().st_size == self.size and file_hash(path) == self.sha256
        except OSError:
            return False


class Marker(BaseModel):
    """What a marker says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    key: str
    """Hash of the step's inputs."""
    files: dict[str, Seal] | None
    """Path in the run directory -> how the file was; None in markers of earlier versions."""


class Markers:
    """The markers of a run directory.

    Parameters
    ----------
    root : Path
        The run directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: str) -> Path:
        """Return the marker of a step that is named ``<folder>/<what>``, or alone."""
        return self.root / "done" / step.replace("/", "-")

    def find(self, step: str) -> Marker | None:
        """Return what a step's marker says; None where there is none, or it is damaged."""
        try:
            data = read_file(self.path(step), most_bytes=_MOST_MARKER_BYTES)
            if _EARLIER.fullmatch(data):
                return Marker(key=data.decode(), files=None)
            return Marker.model_validate_json(data)
        except (OSError, ValidationError):
            return None

    def write(self, step: str, key: str, files: Iterable[Path] = ()) -> None:
        """Say that a step is done.

        Parameters
        ----------
        step : str
        key : str
            Hash of its inputs.
        files : iterable of Path
            What it has read of earlier steps and written, in the run directory.
        """
        seals = {self._name(path): Seal.of(path).model_dump() for path in files}
        write_text(self.path(step), json.dumps({"key": key, "files": seals}, indent=1) + "\n")

    def forget(self, step: str) -> None:
        """Take a step's marker away, before its files are about to match none."""
        self.path(step).unlink(missing_ok=True)

    def first_changed(self, marker: Marker, makes: Sequence[Path], reads: Sequence[Path] = ()) -> Path | None:
        """Return the first file of a step that isn't there or isn't as its marker says; None where all are.

        Parameters
        ----------
        marker : Marker
            Of the step; one of an earlier version only says that its files were written.
        makes, reads : sequence of Path
            What the step writes, and what it reads of earlier steps.
        """
        if marker.files is None:
            return next((path for path in makes if not path.is_file()), None)
        for path in (*reads, *makes):
            seal = marker.files.get(self._name(path))
            if seal is None or not seal.fits(path):
                return path
        return None

    def is_done(self, step: str, key: str, makes: Sequence[Path] = (), reads: Sequence[Path] = ()) -> bool:
        """Whether a step was finished with inputs of this hash, and its files are as they were."""
        marker = self.find(step)
        return marker is not None and marker.key == key and self.first_changed(marker, makes, reads) is None

    def has_written(self, path: Path, step: str) -> bool:
        """Whether a step's marker knows a file."""
        marker = self.find(step)
        return marker is not None and self._name(path) in (marker.files or {})

    def read(self, path: Path, *steps: str, kept_as: Path | None = None) -> bytes:
        """Return the content of a file that one of some steps has written.

        Parameters
        ----------
        path : Path
        *steps : str
            Which may have written it.
        kept_as : Path, optional
            The file in the marker of which this one is a copy.

        Raises
        ------
        RunDirError
            Where it isn't as that step wrote it, or no step has written it.
        OSError
            Where it isn't there, or can't be read.
        """
        found = [marker for marker in map(self.find, steps) if marker is not None]
        name = self._name(kept_as or path)
        seal = next((marker.files[name] for marker in found if marker.files and name in marker.files), None)
        if seal is not None:
            data = read_file(path, most_bytes=max(seal.size, 1)) if _is_of(path, seal.size) else b""
            if len(data) != seal.size or hashlib.sha256(data).hexdigest() != seal.sha256:
                raise RunDirError(
                    f"{path} isn't as this run wrote it: its size or its SHA-256 is another. {CURE}"
                )
            return data
        made_before = any(marker.files is None for marker in found) or not self.path(CONFIG).exists()
        if made_before or not path.exists():
            return read_file(path, most_bytes=_MOST_BYTES)
        raise RunDirError(f"{path} belongs to no finished step of this run. {CURE}")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _is_of(path: Path, size: int) -> bool:
    """Whether a file has a size; what isn't there is an OSError."""
    return path.stat().st_size == size


def unreadable(path: Path, error: Exception, what: str = "") -> RunDirError:
    """Return the error of a file that can't be read, or holds something else than it should."""
    return RunDirError(f"{path} can't be read{what}: {reason_of(error)}. {CURE}")

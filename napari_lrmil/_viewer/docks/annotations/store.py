"""Where regions are kept: a GeoJSON file beside the slide, written whole after each change. No Qt.

The file is an ordinary export (see docs/exports.md), so QuPath opens it as it is.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import platformdirs

from napari_lrmil.errors import LRMILError
from napari_lrmil.export.annotation import Annotation
from napari_lrmil.export.errors import GeoJSONError
from napari_lrmil.export.geojson import read_annotations, write_annotations

SUFFIX = ".lrmil-annotations.geojson"
DATA_DIR_VARIABLE = "LRMIL_DATA_DIR"

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
Bounds = tuple[int, int, int, int]
_Stamp = tuple[int, int] | None


class RegionsError(LRMILError):
    """Regions can't be kept."""


class Loaded(NamedTuple):
    """Regions of a slide, and what the user should know of the file."""

    annotations: list[Annotation]
    note: str = ""


class RegionStore:
    """The file of one slide's regions. Its methods may be called from any thread.

    Where the folder can't be written, a file in the user's data folder takes its place, found again by the
    slide's fingerprint. A file that is damaged, or that another program has changed meanwhile, is never
    overwritten: it is renamed first, and the note says to what.

    Parameters
    ----------
    slide_path : Path
    fingerprint : str
    bounds_l0_xywh : (int, int, int, int)
    """

    def __init__(self, slide_path: Path, fingerprint: str, bounds_l0_xywh: Bounds) -> None:
        self.beside = slide_path.with_name(slide_path.name + SUFFIX)
        named = os.environ.get(DATA_DIR_VARIABLE)
        root = (
            Path(named).expanduser()
            if named
            else platformdirs.user_data_path("napari-lrmil", appauthor=False)
        )
        self.fallback = root / "annotations" / f"{fingerprint}.geojson"
        self.where = self.beside
        self._bounds = bounds_l0_xywh
        self._seen: dict[Path, _Stamp] = {}
        self._lock = threading.Lock()

    def load(self) -> Loaded:
        """What is there: beside the slide, or in its place; the newer one where both are."""
        with self._lock:
            there = [path for path in (self.beside, self.fallback) if _stamp(path) is not None]
            self._seen = {path: _stamp(path) for path in there}
            notes = []
            for path in sorted(there, key=lambda each: _stamp(each) or (0, 0), reverse=True):
                try:
                    found = read_annotations(path, bounds_l0_xywh=self._bounds)
                except GeoJSONError as error:
                    self._seen[path] = None  # so that it is set aside, not overwritten
                    notes.append(f"{path.name} can't be read ({error}). It is kept under another name.")
                    continue
                self.where = path
                return Loaded(found, " ".join([*notes, *self._place_note()]))
            return Loaded([], " ".join(notes))

    def save(self, annotations: Sequence[Annotation]) -> str:
        """Keep these, whole or not at all.

        Returns
        -------
        str
            What the user should know; mostly empty.

        Raises
        ------
        RegionsError
            Where they can be kept nowhere.
        """
        with self._lock:
            if not annotations and _stamp(self.beside) is None and _stamp(self.fallback) is None:
                return ""
            try:
                note = self._write(self.beside, annotations)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise _unkept(error) from error
                try:
                    note = self._write(self.fallback, annotations)
                except OSError as also:
                    raise _unkept(also) from error
            return " ".join([*([note] if note else []), *self._place_note()])

    def _place_note(self) -> list[str]:
        if self.where != self.fallback:
            return []
        return [
            "The slide's folder is read-only: regions are kept on this computer, for this user alone "
            f"({self.fallback})."
        ]

    def _write(self, path: Path, annotations: Sequence[Annotation]) -> str:
        note = ""
        now = _stamp(path)
        if now is not None and now != self._seen.get(path):
            kept = path.with_name(f"{path.name}.kept-{time.strftime('%Y%m%d-%H%M%S')}")
            os.replace(path, kept)
            note = (
                f"Another program had changed {path.name}, or it was damaged; its content is in {kept.name}."
            )
        write_annotations(path, annotations, bounds_l0_xywh=self._bounds)
        self._seen[path] = _stamp(path)
        self.where = path
        return note


def _stamp(path: Path) -> _Stamp:
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size)


def _unkept(error: OSError) -> RegionsError:
    return RegionsError(
        f"The regions could not be kept ({error.strerror or error}). Free some space or make the folder writable, "
        "then change anything; or export them elsewhere."
    )

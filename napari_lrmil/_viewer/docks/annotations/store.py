"""The file that keeps a slide's annotations: GeoJSON beside it, written whole after each change. No Qt.

The file is an ordinary export (see docs/exports.md), so QuPath opens it as it is. The jobs at the end are what the
dock does with files behind the window.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil.errors import LRMILError
from napari_lrmil.export.annotation import Annotation
from napari_lrmil.export.errors import GeoJSONError
from napari_lrmil.export.geojson import read_annotations, write_annotations
from napari_lrmil.slide.files import user_folder
from napari_lrmil.slide.identity import earlier_digits

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Steps
    from napari_lrmil.slide import Slide

SUFFIX = ".lrmil-annotations.geojson"

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
Bounds = tuple[int, int, int, int]
_Stamp = tuple[int, int] | None


class AnnotationsError(LRMILError):
    """Annotations can't be kept."""


class LoadedAnnotations(NamedTuple):
    """Annotations of a slide, and what the user should know of the file."""

    annotations: list[Annotation]
    note: str = ""


class AnnotationStore:
    """The file of one slide's annotations. Its methods may be called from any thread.

    Where the folder can't be written, a file in the user's data folder takes its place, found again by the
    slide's fingerprint; what an earlier version kept there by its own fingerprint is read, and left as it is. A file
    that is damaged, or that another program has changed meanwhile, is never overwritten: it is renamed first, and the
    note says to what.

    Parameters
    ----------
    slide_path : Path
    fingerprint : str
    bounds_l0_xywh : (int, int, int, int)
    """

    def __init__(self, slide_path: Path, fingerprint: str, bounds_l0_xywh: Bounds) -> None:
        self.beside = slide_path.with_name(slide_path.name + SUFFIX)
        root = user_folder("data")
        self.fallback = root / "annotations" / f"{fingerprint}.geojson"
        of_before = sorted(self.fallback.parent.glob(f"{earlier_digits(fingerprint)}*.geojson"))
        self._places = tuple(dict.fromkeys([self.beside, self.fallback, *of_before]))
        self.where = self.beside
        self._bounds = bounds_l0_xywh
        self._own: dict[Path, _Stamp] = {}
        self._version = 0
        self._lock = threading.Lock()

    def load(self) -> LoadedAnnotations:
        """What is there: beside the slide, or in its place; the newer one where both are."""
        with self._lock:
            there = [path for path in self._places if _stamp(path) is not None]
            self._own = {path: _stamp(path) for path in there}
            notes = []
            for path in sorted(there, key=lambda each: _stamp(each) or (0, 0), reverse=True):
                left_out: list[str] = []
                try:
                    found = read_annotations(path, bounds_l0_xywh=self._bounds, left_out=left_out.append)
                except GeoJSONError as error:
                    self._own[path] = None  # so that it is set aside, not overwritten
                    notes.append(f"{path.name} can't be read ({error}). It is kept under another name.")
                    continue
                if left_out:
                    self._own[path] = None
                    notes.append(
                        f"{_left_out_text(left_out)} {path.name} is kept under another name before it is written anew."
                    )
                self.where = path
                return LoadedAnnotations(found, " ".join([*notes, *self._place_note()]))
            return LoadedAnnotations([], " ".join(notes))

    def save(self, annotations: Sequence[Annotation], version: int) -> str:
        """Keep these, whole or not at all.

        Parameters
        ----------
        annotations : sequence of Annotation
        version : int
            Counts the changes since `load`. One that comes late, when it or a newer one is already kept, is left
            out: it may have waited for a thread while the slide was closed.

        Returns
        -------
        str
            What the user should know; mostly empty.

        Raises
        ------
        AnnotationsError
            Where they can be kept nowhere.
        """
        with self._lock:
            if version <= self._version:
                return ""
            note = self._save(annotations)
            self._version = version
            return note

    def _save(self, annotations: Sequence[Annotation]) -> str:
        if not annotations and all(_stamp(path) is None for path in self._places):
            return ""
        try:
            note = self._write(self.beside, annotations)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise _not_kept(error) from error
            try:
                note = self._write(self.fallback, annotations)
            except OSError as also:
                raise _not_kept(also) from error
        return " ".join([*([note] if note else []), *self._place_note()])

    def _place_note(self) -> list[str]:
        if self.where == self.beside:
            return []
        return [
            "The slide's folder is read-only: annotations are kept on this computer, for this user alone "
            f"({self.fallback})."
        ]

    def _write(self, path: Path, annotations: Sequence[Annotation]) -> str:
        now = _stamp(path)
        kept = _free_name(path) if now is not None and now != self._own.get(path) else None
        if kept is not None:
            os.replace(path, kept)
        try:
            write_annotations(path, annotations, bounds_l0_xywh=self._bounds)
        except OSError:
            if kept is not None:
                os.replace(kept, path)  # or it would look as if nothing had ever been drawn
            raise
        self._own[path] = _stamp(path)
        self.where = path
        if kept is None:
            return ""
        return f"Another program had changed {path.name}, or it was damaged; its content is in {kept.name}."


def open_store(slide: Slide) -> Steps[None, tuple[AnnotationStore, LoadedAnnotations]]:
    """Find the annotations that were kept of a slide."""
    yield None
    store = AnnotationStore(slide.path, slide.fingerprint(), slide.bounds_l0_xywh)
    yield None
    return store, store.load()


def save(store: AnnotationStore, annotations: Sequence[Annotation], version: int) -> Steps[None, str]:
    """Keep annotations; see `AnnotationStore.save`."""
    yield None
    return store.save(annotations, version)


def import_geojson(path: Path, bounds_l0_xywh: Bounds, *, cropped: bool) -> Steps[None, LoadedAnnotations]:
    """Read the annotations, and nothing else, of a GeoJSON file; the note says what couldn't be read of it."""
    yield None
    left_out: list[str] = []
    found = read_annotations(
        path,
        bounds_l0_xywh=bounds_l0_xywh,
        cropped=cropped,
        object_types={"annotation"},
        left_out=left_out.append,
    )
    return LoadedAnnotations(found, _left_out_text(left_out))


def export_geojson(
    path: Path, annotations: Sequence[Annotation], bounds_l0_xywh: Bounds, *, cropped: bool
) -> Steps[None, Path]:
    """Write annotations as GeoJSON."""
    yield None
    return write_annotations(path, annotations, bounds_l0_xywh=bounds_l0_xywh, cropped=cropped)


def _left_out_text(reasons: Sequence[str], most: int = 3) -> str:
    if not reasons:
        return ""
    what = "1 feature was" if len(reasons) == 1 else f"{len(reasons):,} features were"
    more = f"; and {len(reasons) - most:,} more" if len(reasons) > most else ""
    return f"{what} left out: {'; '.join(reasons[:most])}{more}."


def _stamp(path: Path) -> _Stamp:
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size)


def _free_name(path: Path) -> Path:
    """A name to set a file aside under, which no other file has."""
    first = path.with_name(f"{path.name}.kept-{time.strftime('%Y%m%d-%H%M%S')}")
    kept, count = first, 1
    while kept.exists():
        count += 1
        kept = first.with_name(f"{first.name}-{count}")
    return kept


def _not_kept(error: OSError) -> AnnotationsError:
    return AnnotationsError(
        f"The annotations could not be kept ({error.strerror or error}). Free some space or make the folder writable, "
        "then change anything; or export them elsewhere."
    )

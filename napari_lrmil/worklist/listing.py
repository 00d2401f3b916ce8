"""Which slides a folder or a table holds. None is opened: a thousand are listed in a blink."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from napari_lrmil.errors import TableError, WorklistError
from napari_lrmil.slide.files import (
    DICOM_SUFFIX,
    IMAGE_SUFFIXES,
    SLIDE_SUFFIXES,
    TIFF_SUFFIXES,
    dicom_slides,
    is_zarr,
    is_zipped_zarr,
    parts_beside,
    slide_id_of,
)
from napari_lrmil.table import (
    NO_VALUE,
    Problem,
    Table,
    alike,
    lines_of,
    mpp_of,
    path_of,
    read_table_file,
    refuse,
)

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})


@dataclass(frozen=True)
class ListedSlide:
    """A slide of a folder or a table.

    Attributes
    ----------
    path : Path
        A file, or a folder of DICOM files or OME-Zarr.
    slide_id : str
    mpp : float, optional
        µm per level-0 pixel, where the table gives it.
    known_label : str, optional
        The table's.
    """

    path: Path
    slide_id: str
    mpp: float | None = None
    known_label: str | None = None


def list_slides(
    path: Path, *, recursive: bool = False, note: Callable[[str], None] | None = None
) -> list[ListedSlide]:
    """The slides that a path means: those of a folder, the rows of a table, or itself.

    Parameters
    ----------
    path : Path
    recursive : bool
        Folders in folders too.
    note : callable, optional
        See `read_slide_table`.

    Raises
    ------
    WorklistError
        Where there is no slide, or a table is wrong.
    """
    if path.is_dir():
        found = [ListedSlide(slide, slide_id_of(slide)) for slide in find_slides(path, recursive=recursive)]
        if not found:
            deeper = "" if recursive else " Slides in folders below it are found with --recursive."
            raise WorklistError(f"{path} holds no slides.{deeper}")
        return found
    if path.suffix.lower() in TABLE_SUFFIXES:
        return read_slide_table(path, note=note)
    return [ListedSlide(path, slide_id_of(path))]


def find_slides(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The slides of a folder, by name. Files that belong to a slide aren't listed beside it.

    DICOM files of one series are one slide, as are OME-Zarr folders. PNG and JPEG regions are listed where
    a folder holds nothing else that is a slide: beside slides they are pictures of them. What can't be looked at, an
    inner folder without access or a link that leads nowhere, is listed as a slide too: opening it tells why.

    Raises
    ------
    WorklistError
        Where the folder itself can't be read.
    """
    if is_zarr(folder):
        return [folder]
    found: list[Path] = []
    visited = {folder.resolve()}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            slides, below = _slides_in(here)
        except WorklistError:
            if here == folder:
                raise
            found.append(here)
            continue
        found += slides
        for inner in below:
            # Links can lead back to where we came from.
            where = inner.resolve()
            if where in visited:
                continue
            visited.add(where)
            if recursive:
                waiting.append(inner)
            elif _is_dicom_slide(inner):
                found.append(inner)
    return sorted(found, key=lambda path: natural(str(path.relative_to(folder))))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts slide 2 before slide 10, whatever the case."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold())
        for part in re.split(r"(\d+)", name)
        if part
    )


def read_slide_table(path: Path, *, note: Callable[[str], None] | None = None) -> list[ListedSlide]:
    """Rows of a CSV with the column path, and optionally slide_id, mpp and label; others are left alone.

    Relative paths start at the table's folder. See `napari_lrmil.table` for what a table may look like. A label
    that stands for none, such as NA, is none.

    Parameters
    ----------
    path : Path
    note : callable, optional
        Called with what looks odd and doesn't stop the list: names that look like one spelt twice.

    Raises
    ------
    WorklistError
        Listing everything that is wrong at once.
    """
    try:
        table = read_table_file(path, needed=("path",), optional=("slide_id", "mpp", "label"))
        slides, problems = _listed_slides(table)
        refuse(path, problems)
    except TableError as error:
        raise WorklistError(str(error)) from error
    if note is not None:
        for column in ("slide_id", "label"):
            found = alike((record.line, record.cells[column]) for record in table.records)
            if found is not None:
                note(f"{path.name}: {column} {found.text}")
        lines: dict[str, list[int]] = {}
        for slide, record in zip(slides, table.records, strict=True):
            lines.setdefault(slide.slide_id, []).append(record.line)
        for slide_id, places in lines.items():
            if len(places) > 1:
                note(f"{path.name}: {lines_of(places)} have the slide_id {slide_id!r}")
    return slides


def _listed_slides(table: Table) -> tuple[list[ListedSlide], list[Problem]]:
    slides = []
    problems = list(table.problems)
    lines: dict[Path, int] = {}
    for line, cells in table.records:
        try:
            if not cells["path"]:
                raise TableError("path is empty")
            slide = path_of(cells["path"], table.path.parent)
            first = lines.setdefault(slide, line)
            if first != line:
                problems.append(Problem(line, f"lines {first} and {line} name the same slide"))
            label = cells["label"] if cells["label"].lower() not in NO_VALUE else None
            slides.append(
                ListedSlide(slide, cells["slide_id"] or slide_id_of(slide), mpp_of(cells["mpp"]), label)
            )
        except TableError as error:
            problems.append(Problem(line, f"line {line}: {error}"))
    return slides, problems


def _slides_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Slides of a folder, and the folders in it that may hold more."""
    try:
        visible = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        kinds = {entry.name: (_kind(entry), Path(entry.path)) for entry in visible}
    except OSError as error:
        raise WorklistError(f"{folder} can't be read ({error.strerror})") from error
    files = {name: path for name, (kind, path) in kinds.items() if kind == "file"}
    folders = {name: path for name, (kind, path) in kinds.items() if kind == "folder"}
    zarrs = [path for path in folders.values() if is_zarr(path)]
    parts = {part for path in files.values() for part in parts_beside(path)}
    below = [path for path in folders.values() if path not in zarrs and path not in parts]
    slides = zarrs + [
        path
        for kind, path in kinds.values()
        if kind in ("file", "lost link")
        # Opening a zipped one says what to do with it.
        and (path.suffix.lower() in SLIDE_SUFFIXES | TIFF_SUFFIXES or is_zipped_zarr(path))
    ]
    series = dicom_slides(path for path in files.values() if path.suffix.lower() in (DICOM_SUFFIX, ""))
    if len(series) == 1 and not slides and not below:
        slides.append(folder)
    else:
        # The largest file is the one that the others are levels of.
        slides += [max(group, key=_size) for group in series]
    if not slides:
        slides = [path for path in files.values() if path.suffix.lower() in IMAGE_SUFFIXES]
    return [path for path in slides if path not in parts], below


def _kind(entry: os.DirEntry[str]) -> Literal["file", "folder", "lost link", "other"]:
    """What an entry is, or what its link leads to: nowhere, where that is gone or the link itself."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        return "lost link" if entry.is_symlink() else "other"
    except OSError:
        return "lost link"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone meanwhile, which is told when it is opened
        return 0


def _is_dicom_slide(folder: Path) -> bool:
    try:
        slides, _ = _slides_in(folder)
    except WorklistError:
        return False
    return slides == [folder]

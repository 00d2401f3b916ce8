"""Which slides a folder or a table holds. None is opened: a thousand are listed in a blink."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from napari_lrmil.errors import WorklistError
from napari_lrmil.slide.files import (
    DICOM_SUFFIX,
    IMAGE_SUFFIXES,
    SLIDE_SUFFIXES,
    TIFF_SUFFIXES,
    dicom_slides,
    is_zarr,
    parts_beside,
    slide_id_of,
)

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
TABLE_COLUMNS = ("path", "slide_id", "mpp", "label")


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


def list_slides(path: Path, *, recursive: bool = False) -> list[ListedSlide]:
    """The slides that a path means: those of a folder, the rows of a table, or itself.

    Parameters
    ----------
    path : Path
    recursive : bool
        Folders in folders too.

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
        return read_slide_table(path)
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


def read_slide_table(path: Path) -> list[ListedSlide]:
    """Rows of a CSV with the column path, and optionally slide_id, mpp and label; others are left alone.

    Relative paths start at the table's folder. Commas, semicolons and tabs part the columns.

    Raises
    ------
    WorklistError
        Listing everything that is wrong at once.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise WorklistError(f"no such slide table: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise WorklistError(f"{path} can't be read as a table ({error}); save it as CSV in UTF-8") from error
    head = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count))
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
    if "path" not in columns:
        raise WorklistError(
            f"{path} has no column 'path'. Its first line must name the columns, such as: path,mpp"
        )
    rows: list[ListedSlide] = []
    problems: list[str] = []
    lines: dict[Path, int] = {}
    try:
        for record in reader:
            text_of = {key: (record.get(columns.get(key, "")) or "").strip() for key in TABLE_COLUMNS}
            if not text_of["path"]:
                problems.append(f"line {reader.line_num}: path is empty")
                continue
            mpp = _mpp(text_of["mpp"])
            if text_of["mpp"] and mpp is None:
                problems.append(f"line {reader.line_num}: mpp {text_of['mpp']!r} is no number above 0")
            slide = path.parent / Path(text_of["path"]).expanduser()
            first = lines.setdefault(slide, reader.line_num)
            if first != reader.line_num:
                problems.append(f"lines {first} and {reader.line_num} name the same slide")
            rows.append(
                ListedSlide(slide, text_of["slide_id"] or slide_id_of(slide), mpp, text_of["label"] or None)
            )
    except csv.Error as error:
        raise WorklistError(f"{path} can't be read as a table ({error})") from error
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise WorklistError(f"{path}: {shown}")
    if not rows:
        raise WorklistError(f"{path} has no rows")
    return rows


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
        if kind in ("file", "lost link") and path.suffix.lower() in SLIDE_SUFFIXES | TIFF_SUFFIXES
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


def _mpp(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None

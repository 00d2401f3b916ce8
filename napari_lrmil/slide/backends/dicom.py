"""A folder of DICOM files as one slide."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.errors import SlideError

_PREAMBLE = 128
_HEADER_BYTES = 2**16


def is_dicom(path: Path) -> bool:
    """Whether a file carries DICOM's mark."""
    with path.open("rb") as file:
        file.seek(_PREAMBLE)
        return file.read(4) == b"DICM"


def dicom_files_in(folder: Path) -> tuple[Path, ...]:
    """The DICOM files of a folder, by name.

    Raises
    ------
    SlideError
        Where there is none.
    """
    files = tuple(path for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path))
    if not files:
        raise SlideError(f"{folder.name} is a folder that holds neither DICOM files nor an OME-Zarr image")
    return files


def series_files(path: Path, series_uid: str) -> tuple[Path, ...]:
    """The files beside `path` (itself included) that belong to its series."""
    mark = series_uid.encode("ascii")
    return tuple(file for file in dicom_files_in(path.parent) if file == path or mark in _header_of(file))


def _header_of(path: Path) -> bytes:
    # The UID stands before the pixels; a frame table of many thousand entries comes after it.
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)

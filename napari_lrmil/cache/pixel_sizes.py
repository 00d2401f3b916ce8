"""µm/px that somebody typed for a slide: kept by what the slide holds, found again whatever it is called by then.

Each value is a small file of its own in the user's data folder, so that two windows don't take each other's away.
"""

from __future__ import annotations

import os
from pathlib import Path

from napari_lrmil.cache.codec import JSONValue
from napari_lrmil.cache.seal import read_sealed, write_sealed
from napari_lrmil.errors import LRMILError
from napari_lrmil.outside import parse_json, read_file
from napari_lrmil.slide import Slide
from napari_lrmil.slide.files import user_folder
from napari_lrmil.slide.pixel_size import MAX_MPP, MIN_MPP

_MOST_UNSEALED_BYTES = 100


def typed_mpp(fingerprint: str) -> float | None:
    """Return the µm/px that was typed for a slide; None where none was, or it can't be read."""
    path = _file(fingerprint)
    try:
        mpp = read_sealed(path, subject=fingerprint)
    except (OSError, ValueError, LookupError, TypeError):
        mpp = _unsealed(path)
    return float(mpp) if isinstance(mpp, int | float) and MIN_MPP <= mpp <= MAX_MPP else None


def keep_typed_mpp(fingerprint: str, mpp: float | None) -> None:
    """Keep what was typed for a slide in the place of what was typed before; None forgets it.

    Raises
    ------
    OSError
        Where it can't be written.
    """
    path = _file(fingerprint)
    if mpp is None:
        path.unlink(missing_ok=True)
    else:
        write_sealed(path, mpp, subject=fingerprint)


def open_slide(path: str | Path, *, mpp: float | None = None) -> Slide:
    """Open a slide with the µm/px that is given, else with what was typed for it before, else with its own.

    Raises
    ------
    SlideError
    """
    slide = Slide(path, mpp=mpp)
    # Without a folder, no fingerprint is made. One in a home that may not be looked into is none.
    if mpp is None and os.path.isdir(_folder()):  # Path.is_dir raises there
        try:
            typed = typed_mpp(slide.fingerprint())
        except (OSError, LRMILError):  # reading the slide will say what is wrong
            typed = None
        if typed is not None:
            slide.use_remembered_mpp(typed)
    return slide


def _unsealed(path: Path) -> JSONValue:
    """What a version before the seal kept; None where the file is no such one."""
    try:
        said = parse_json(read_file(path, most_bytes=_MOST_UNSEALED_BYTES))
    except (OSError, ValueError):
        return None
    return said["mpp"] if isinstance(said, dict) and set(said) == {"mpp"} else None


def _file(fingerprint: str) -> Path:
    return _folder() / f"{fingerprint}.json"


def _folder() -> Path:
    return user_folder("data") / "pixel-sizes"

"""Small pictures of slides, kept in the cache as JPEG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from napari_lrmil.cache import ResultCache
from napari_lrmil.slide import Slide
from napari_lrmil.slide.picture import overview

MAX_LEVEL_PX = 2**27
"""Pixels that the coarsest level may have. A larger one means minutes of decoding for a stamp."""
_QUALITY = 88


def thumbnail(
    slide_path: str | Path, edge_px: int = 256, *, cache: ResultCache | None = None
) -> NDArray[np.uint8]:
    """A picture of the scanned area, its longer edge `edge_px` (a small slide isn't enlarged).

    Parameters
    ----------
    slide_path : path-like
    edge_px : int
    cache : ResultCache, optional
        Where thumbnails are kept, by the slide's fingerprint; one that is there is shown without opening the
        slide.

    Returns
    -------
    (height, width, 3) uint8 array

    Raises
    ------
    SlideError
        Where the slide can't be read, or has no level that is coarse enough.
    """
    path = Path(slide_path)
    fingerprint = cache.known_fingerprint(path) if cache else None
    if cache and fingerprint:
        kept = _decoded(cache.read_thumbnail(fingerprint, edge_px))
        if kept is not None:
            return kept
    with Slide(path) as slide:
        if cache:
            fingerprint = slide.fingerprint()
            cache.remember_slide(slide, fingerprint)
            kept = _decoded(cache.read_thumbnail(fingerprint, edge_px))
            if kept is not None:
                return kept
        pixels = overview(slide, edge_px, max_level_px=MAX_LEVEL_PX)
        slide.check_unchanged()
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=_QUALITY)
    if cache and fingerprint:
        cache.write_thumbnail(fingerprint, edge_px, data.getvalue())
    decoded = _decoded(data.getvalue())
    assert decoded is not None
    return decoded  # the same the first time as from the cache


def _decoded(data: bytes | None) -> NDArray[np.uint8] | None:
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError):
        return None  # damaged: made anew

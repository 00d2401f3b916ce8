"""Small pictures of slides from their coarse levels. Label and macro images are never looked at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from napari_lrmil.cache import ResultCache
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.picture import coarse_level, level_pixels, scanned_area

MAX_LEVEL_PX = 2**27
"""Pixels that the coarsest level may have. A larger one means minutes of decoding for a stamp."""
_STRIP_PX = 2**24
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
    if edge_px < 1:
        raise ValueError(f"a thumbnail needs edge_px >= 1, got {edge_px}")
    fingerprint = cache.known_fingerprint(path) if cache else None
    if cache and fingerprint:
        kept = _decoded(cache.read_thumbnail(fingerprint, edge_px))
        if kept is not None:
            return kept
    with Slide(path) as slide:
        if cache:
            fingerprint = slide.fingerprint()
            cache.remember_fingerprint(path, fingerprint)
            kept = _decoded(cache.read_thumbnail(fingerprint, edge_px))
            if kept is not None:
                return kept
        pixels = _read(slide, edge_px)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=_QUALITY)
    if cache and fingerprint:
        cache.write_thumbnail(fingerprint, edge_px, data.getvalue())
    decoded = _decoded(data.getvalue())
    assert decoded is not None
    return decoded  # the same the first time as from the cache


def _read(slide: Slide, edge_px: int) -> NDArray[np.uint8]:
    _, _, width, height = slide.bounds_l0_xywh
    scale = max(1.0, max(width, height) / edge_px)
    out_x, out_y = (max(1, round(side / scale)) for side in (width, height))
    level = coarse_level(slide, scale)
    if level_pixels(slide, level) > MAX_LEVEL_PX:
        raise SlideError(f"{slide.path.name} has no level that is coarse enough for a thumbnail")
    return scanned_area(slide, level=level, out_px_xy=(out_x, out_y), strip_px=_STRIP_PX, keep_tiles=False)


def _decoded(data: bytes | None) -> NDArray[np.uint8] | None:
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError):
        return None  # damaged: made anew

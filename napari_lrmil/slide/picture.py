"""The scanned area of a slide as a small picture, from a coarse level."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.slide.resample import read_area

if TYPE_CHECKING:
    from napari_lrmil.slide.reader import Slide

_TOLERANCE = 1.02


def coarse_level(slide: Slide, downsample: float) -> int:
    """The coarsest level that is no coarser than `downsample`, to 2 %; level 0 where all are."""
    downsamples = slide.level_downsamples
    fits = [level for level, one in enumerate(downsamples) if one <= downsample * _TOLERANCE]
    return max(fits, key=lambda level: downsamples[level], default=0)


def level_pixels(slide: Slide, level: int) -> float:
    """How many pixels of a level the scanned area has."""
    _, _, width, height = slide.bounds_l0_xywh
    return width * height / slide.level_downsamples[level] ** 2


def scanned_area_steps(
    slide: Slide, *, level: int, out_px_xy: tuple[int, int], strip_px: int, keep_tiles: bool = True
) -> Generator[None, None, NDArray[np.uint8]]:
    """Read the scanned area strip by strip, so that no large level is held whole and that it can be cancelled.

    Parameters
    ----------
    slide : Slide
    level : int
        See `coarse_level`.
    out_px_xy : (int, int)
        Width and height of the picture.
    strip_px : int
        Pixels of the level that are read at once, about.
    keep_tiles : bool
        See `Slide.read_region`.

    Returns
    -------
    (height, width, 3) uint8 array
    """
    left, top, width, height = slide.bounds_l0_xywh
    out_x, out_y = out_px_xy
    rows = max(1, int(strip_px / (level_pixels(slide, level) / out_y)))
    pixels = np.empty((out_y, out_x, 3), np.uint8)
    for row in range(0, out_y, rows):
        yield
        n_rows = min(rows, out_y - row)
        pixels[row : row + n_rows] = read_area(
            slide,
            level=level,
            corner_l0_xy=(left, top + row * height / out_y),
            size_l0_xy=(width, n_rows * height / out_y),
            out_px_xy=(out_x, n_rows),
            keep_tiles=keep_tiles,
        )
    return pixels


def scanned_area(
    slide: Slide, *, level: int, out_px_xy: tuple[int, int], strip_px: int, keep_tiles: bool = True
) -> NDArray[np.uint8]:
    """`scanned_area_steps` to its end."""
    steps = scanned_area_steps(
        slide, level=level, out_px_xy=out_px_xy, strip_px=strip_px, keep_tiles=keep_tiles
    )
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            picture: NDArray[np.uint8] = stop.value
            return picture

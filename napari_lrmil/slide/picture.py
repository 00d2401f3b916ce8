"""Pictures of a slide for people: the whole scanned area, and a tile closer than a model reads it.

Both come from the pixels of the levels. The label, macro and thumbnail images in a file are never looked at: they can
show who the patient is.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.geometry import LEVEL_TOLERANCE, TileGrid, choose_level
from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.resample import read_area

STRIP_PX = 2**24
"""Pixels of a level that are read at once: 50 MB."""
CLOSE_UP_MPP = 0.5
"""µm/px of 20x, where nuclei can be told apart."""


def overview(
    slide: Slide, edge_px: int, *, max_level_px: int | None = None, strip_px: int = STRIP_PX
) -> NDArray[np.uint8]:
    """Run `overview_steps` to its end; its tiles stay out of the cache."""
    steps = overview_steps(slide, edge_px, max_level_px=max_level_px, strip_px=strip_px, keep_tiles=False)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            picture: NDArray[np.uint8] = stop.value
            return picture


def overview_steps(
    slide: Slide,
    edge_px: int,
    *,
    max_level_px: int | None = None,
    strip_px: int = STRIP_PX,
    keep_tiles: bool = True,
) -> Generator[None, None, NDArray[np.uint8]]:
    """Make a picture of the scanned area strip by strip: no large level is held whole, and it can be cancelled.

    It has the true proportions where the size of a pixel is known.

    Parameters
    ----------
    slide : Slide
    edge_px : int
        The longer edge; a slide with fewer pixels isn't enlarged.
    max_level_px : int, optional
        Pixels that the scanned area may have at the level that must be read.
    strip_px : int
        Pixels of the level that are read at once, about.
    keep_tiles : bool
        See `Slide.read_region`.

    Returns
    -------
    (height, width, 3) uint8 array

    Raises
    ------
    SlideError
        Where the slide can't be read, or no level is as coarse as `max_level_px` asks.
    """
    if edge_px < 1:
        raise ValueError(f"a picture needs an edge of at least 1 px, got {edge_px}")
    left, top, width, height = slide.bounds_l0_xywh
    out_x, out_y = overview_size_xy(slide, edge_px)
    level = _coarse_level(slide, _downsample(slide, edge_px))
    level_px = overview_level_px(slide, edge_px)
    if max_level_px is not None and level_px > max_level_px:
        raise SlideError(f"{slide.path.name} has no level that is coarse enough for a picture of all of it")
    rows = max(1, int(strip_px / (level_px / out_y)))
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


def overview_size_xy(slide: Slide, edge_px: int) -> tuple[int, int]:
    """Return width and height of `overview` in px."""
    _, _, width, height = slide.bounds_l0_xywh
    mpp_x, mpp_y = _mpp_xy(slide)
    px_um = _downsample(slide, edge_px) * max(mpp_x, mpp_y)
    return max(1, round(width * mpp_x / px_um)), max(1, round(height * mpp_y / px_um))


def overview_level_px(slide: Slide, edge_px: int) -> float:
    """Return how many pixels of a level have to be read for `overview`."""
    _, _, width, height = slide.bounds_l0_xywh
    return width * height / slide.level_downsamples[_coarse_level(slide, _downsample(slide, edge_px))] ** 2


def close_up(
    slide: Slide,
    grid: TileGrid,
    row: int,
    col: int,
    *,
    max_px: int,
    keep_tiles: bool = False,
) -> NDArray[np.uint8]:
    """Read a tile of a grid at `close_up_mpp`, (height, width, 3) uint8 RGB.

    Raises
    ------
    UnknownMppError
    SlideError
        Where the slide is closed or can't be read.
    """
    mpp = close_up_mpp(slide, grid, max_px=max_px)
    edge_px = max(1, round(grid.spec.tile_um / mpp))
    return read_area(
        slide,
        level=choose_level(slide.level_mpps, max(mpp, min(slide.level_mpps))),
        corner_l0_xy=grid.corner_l0_xy(row, col),
        size_l0_xy=grid.tile_l0_xy,
        out_px_xy=(edge_px, edge_px),
        keep_tiles=keep_tiles,
    )


def close_up_mpp(slide: Slide, grid: TileGrid, *, max_px: int) -> float:
    """Return µm/px of a close-up: `CLOSE_UP_MPP`, or coarser where the slide has no more or a tile would exceed `max_px`.

    Never coarser than the model reads the tile.
    """
    return min(grid.spec.mpp, max(CLOSE_UP_MPP, grid.spec.tile_um / max_px, min(slide.level_mpps)))


def _mpp_xy(slide: Slide) -> tuple[float, float]:
    """µm/px at level 0, or equal sides where they are unknown."""
    return slide.mpp_xy if slide.has_mpp else (1.0, 1.0)


def _downsample(slide: Slide, edge_px: int) -> float:
    """Level-0 pixels, along the axis where they are longer, per pixel of an overview."""
    _, _, width, height = slide.bounds_l0_xywh
    mpp_x, mpp_y = _mpp_xy(slide)
    return max(1.0, max(width * mpp_x, height * mpp_y) / edge_px / max(mpp_x, mpp_y))


def _coarse_level(slide: Slide, downsample: float) -> int:
    """The coarsest level that is no coarser than `downsample`, but for the tolerance; level 0 where all are."""
    downsamples = slide.level_downsamples
    fits = [level for level, one in enumerate(downsamples) if one <= downsample * (1 + LEVEL_TOLERANCE)]
    return max(fits, key=lambda level: downsamples[level], default=0)

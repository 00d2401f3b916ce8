"""Tiles at higher power than the model reads them. No Qt."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.slide import Slide
from napari_lrmil.slide.geometry import choose_level
from napari_lrmil.slide.resample import read_area

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction

CLOSE_MPP = 0.5
"""µm/px of 20x, where nuclei can be told apart."""
MAX_PX = 640
_MPP_AT_1X = 10.0

Pixels = NDArray[np.uint8]


def close_up_mpp(slide: Slide, prediction: SlidePrediction) -> float:
    """µm/px of a close-up: `CLOSE_MPP`, coarser where the slide or the memory has no more to give."""
    return max(CLOSE_MPP, prediction.tiles.grid.spec.tile_um / MAX_PX, min(slide.level_mpps))


def close_up_text(slide: Slide, prediction: SlidePrediction) -> str:
    """How close that is, for people."""
    mpp = close_up_mpp(slide, prediction)
    return (
        f"Shown at {mpp:.2g} µm/px ({_MPP_AT_1X / mpp:.2g}×); "
        f"the model reads {prediction.tiles.grid.spec.mpp:.2g} µm/px."
    )


def close_up(slide: Slide, prediction: SlidePrediction, n: int) -> Pixels:
    """Tile n as (height, width, 3) uint8 RGB.

    Raises
    ------
    SlideError
        Where the slide is closed or can't be read.
    """
    grid, mpp = prediction.tiles.grid, close_up_mpp(slide, prediction)
    edge_px = max(1, round(grid.spec.tile_um / mpp))
    return read_area(
        slide,
        level=choose_level(slide.level_mpps, mpp),
        corner_l0_xy=grid.corner_l0_xy(int(prediction.tiles.rows[n]), int(prediction.tiles.cols[n])),
        size_l0_xy=grid.tile_l0_xy,
        out_px_xy=(edge_px, edge_px),
    )


def close_ups(
    slide: Slide, prediction: SlidePrediction, numbers: Iterable[int]
) -> Generator[tuple[int, Pixels], None, None]:
    """Tiles one by one, so that reading can be shown and be stopped."""
    for n in numbers:
        yield n, close_up(slide, prediction, n)

"""Tiles at higher power than the model reads them. No Qt."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.slide import Slide, picture

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction

MAX_PX = 640
_MPP_AT_1X = 10.0

Pixels = NDArray[np.uint8]


def close_up_mpp(slide: Slide, prediction: SlidePrediction) -> float:
    """µm/px of a close-up, see `napari_lrmil.slide.picture.close_up_mpp`."""
    return picture.close_up_mpp(slide, prediction.tiles.grid, max_px=MAX_PX)


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
    tiles = prediction.tiles
    return picture.close_up(
        slide, tiles.grid, int(tiles.rows[n]), int(tiles.cols[n]), max_px=MAX_PX, keep_tiles=True
    )


def close_ups(
    slide: Slide, prediction: SlidePrediction, numbers: Iterable[int]
) -> Generator[tuple[int, Pixels], None, None]:
    """Tiles one by one, so that reading can be shown and be stopped."""
    for n in numbers:
        yield n, close_up(slide, prediction, n)

"""A prediction's attention as an image on the tile grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.predict import SlidePrediction


class Heatmap(NamedTuple):
    """One value a tile, NaN where no tile was read.

    `corner_um_xy` is the top left corner of the first pixel in level-0 µm, `pixel_um_xy` the size of one.
    """

    values: NDArray[np.float32]
    corner_um_xy: tuple[float, float]
    pixel_um_xy: tuple[float, float]


def attention_heatmap(prediction: SlidePrediction) -> Heatmap:
    """Attention relative to uniform: score * N, so that 1 is a tile that matters as much as any other.

    Raw scores shrink with the bag and percentiles always show something hot; this scale does neither: a
    slide on which no tile stands out is 1 everywhere.

    Parameters
    ----------
    prediction : SlidePrediction

    Returns
    -------
    Heatmap
        `values` of shape (rows, cols) of the tile grid.
    """
    tiles = prediction.tiles
    values = np.full(tiles.grid.shape_yx, np.nan, np.float32)
    values[tiles.rows, tiles.cols] = prediction.attention_scores * len(tiles)
    mpp_x, mpp_y = prediction.mpp_xy
    left, top = tiles.grid.origin_l0_xy
    width, height = tiles.grid.tile_l0_xy
    return Heatmap(values, (left * mpp_x, top * mpp_y), (width * mpp_x, height * mpp_y))

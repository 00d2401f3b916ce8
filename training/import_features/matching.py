"""Match patches of a feature file to our HR tiles by their places on the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from training.import_features.files import FeatureError

EXTENT_TOLERANCE = 0.02
"""How far the edge of an imported patch may be from that of our tile: other roundings of mpp, not another scale."""
ALIGNED_TILES = 0.25
NEAREST_TILES = 0.5
_DUST = 1e-9


@dataclass(frozen=True)
class Match:
    """Which imported patch serves each of M tiles.

    Attributes
    ----------
    nearest : (M,) int64 array
        Index of the nearest patch, however far it is.
    fits : (M,) bool array
        Whether it is near enough.
    offset_l0_xy : (M, 2) float64 array
        From the tile to that patch, in level-0 pixels.
    typical_offset_l0_xy : (float, float)
        The median, over the tiles whose nearest patch overlaps them.
    """

    nearest: NDArray[np.int64]
    fits: NDArray[np.bool_]
    offset_l0_xy: NDArray[np.float64]
    typical_offset_l0_xy: tuple[float, float]

    @property
    def missing(self) -> float:
        """Share of tiles without a patch that is near enough."""
        return 1 - float(self.fits.mean()) if len(self.fits) else 0.0


def match_features(
    *,
    corners_l0_xy: NDArray[np.floating],
    tile_l0_xy: tuple[float, float],
    coords_l0_xy: NDArray[np.floating],
    patch_l0_xy: tuple[float, float],
    nearest: bool = False,
) -> Match:
    """Find the imported patch of each tile.

    A patch fits where its corner lies within a quarter of a tile of the tile's corner, along both axes;
    with `nearest` where its centre lies within half a tile of the tile's centre, which is an approximation:
    as little as a quarter of the tile may be seen then.

    Parameters
    ----------
    corners_l0_xy : (M, 2) array
        Top left corners of our tiles in level-0 pixels.
    tile_l0_xy : (float, float)
    coords_l0_xy : (N, 2) array
        Top left corners of the imported patches in level-0 pixels.
    patch_l0_xy : (float, float)
    nearest : bool

    Returns
    -------
    Match

    Raises
    ------
    FeatureError
        Where there are no patches, or they aren't as large as our tiles, within 2 %.
    """
    tile, patch = np.asarray(tile_l0_xy, float), np.asarray(patch_l0_xy, float)
    if not len(coords_l0_xy):
        raise FeatureError("the file holds no patches")
    if (np.abs(patch / tile - 1) > EXTENT_TOLERANCE + _DUST).any():
        raise FeatureError(
            f"its patches measure {_px(patch)} level-0 pixels, our HR tiles {_px(tile)}: another magnification or tile "
            "size. Change tiles.tile_px, tiles.mpp_lr or tiles.ratio, or make the features anew"
        )
    # Centres and corners are the same but for patches that are a little smaller or larger than our tiles.
    shift = (patch - tile) / 2 if nearest else np.zeros(2)
    tree = cKDTree((np.asarray(coords_l0_xy, float) + shift) / tile)
    wanted = np.asarray(corners_l0_xy, float).reshape(-1, 2) / tile
    distance, index = tree.query(wanted, p=np.inf)  # p: the larger of the two axes
    index = np.asarray(index, np.int64)
    offset = (tree.data[index] - wanted) * tile
    fits = distance <= (NEAREST_TILES if nearest else ALIGNED_TILES) + _DUST
    overlapping = offset[distance < 1] if (distance < 1).any() else offset
    typical = np.median(overlapping, axis=0) if len(overlapping) else np.zeros(2)
    return Match(index, fits, offset, (float(typical[0]), float(typical[1])))


def _px(size: NDArray[np.floating]) -> str:
    return f"{size[0]:.5g} x {size[1]:.5g}"

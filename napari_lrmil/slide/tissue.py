"""Where the tissue is, from a coarse level, on a pixel grid that the tiles share."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from napari_lrmil.slide.geometry import TileGrid, choose_level
from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.resample import read_area

MASK_UM = 16.0
"""Wanted size of a mask pixel: a few nuclei, so that stroma between them counts as tissue."""

_MIN_CONTRAST, _MAX_CONTRAST = 7.0, 22.0
_MIN_PIECE_UM2 = 4_000.0
_STRIP_PX = 4_096


def tissue_mask(slide: Slide, grid: TileGrid, *, divisible_by: int = 1) -> NDArray[np.bool_]:
    """Tissue of the area that `grid` covers.

    Haematoxylin and eosin both absorb green most, so stained tissue is magenta: red and blue exceed green.
    Glass and black, blue or green pen don't; red pen has little blue.

    Parameters
    ----------
    slide : Slide
    grid : TileGrid
    divisible_by : int
        The number of mask pixels along a tile is a multiple of this, so that a subdivided grid
        falls on whole mask pixels too.

    Returns
    -------
    (rows * k, cols * k) bool array
        k mask pixels along the edge of a tile, each about `MASK_UM` wide.
    """
    per_tile = divisible_by * max(1, math.ceil(grid.spec.tile_um / MASK_UM / divisible_by))
    return _magenta_mask(_read_coarse(slide, grid, per_tile), grid.spec.tile_um / per_tile)


def _read_coarse(slide: Slide, grid: TileGrid, per_tile: int) -> NDArray[np.uint8]:
    rows, cols = grid.shape_yx
    pixel_um = grid.spec.tile_um / per_tile
    level = choose_level(slide.level_mpps, max(pixel_um, slide.level_mpps[0]))
    image = np.empty((rows * per_tile, cols * per_tile, 3), np.uint8)
    # In blocks, so that a slide with a single level is never held whole.
    tile_level_px = max(grid.tile_l0_xy) / slide.level_downsamples[level]
    step = max(1, int(_STRIP_PX / tile_level_px))
    for row in range(0, rows, step):
        for col in range(0, cols, step):
            n_rows, n_cols = min(step, rows - row), min(step, cols - col)
            image[row * per_tile : (row + n_rows) * per_tile, col * per_tile : (col + n_cols) * per_tile] = (
                read_area(
                    slide,
                    level=level,
                    corner_l0_xy=grid.corner_l0_xy(row, col),
                    size_l0_xy=(n_cols * grid.tile_l0_xy[0], n_rows * grid.tile_l0_xy[1]),
                    out_px_xy=(n_cols * per_tile, n_rows * per_tile),
                )
            )
    return image


def _magenta_mask(rgb: NDArray[np.uint8], pixel_um: float) -> NDArray[np.bool_]:
    signed = rgb.astype(np.float32)
    magenta = np.minimum(signed[..., 0], signed[..., 2]) - signed[..., 1]
    magenta = ndimage.gaussian_filter(magenta, 0.7)
    # Otsu finds the valley between glass and tissue; the limits hold where there is only one of them.
    split = threshold_otsu(magenta) if magenta.max() > magenta.min() else _MIN_CONTRAST
    mask = magenta > np.clip(split, _MIN_CONTRAST, _MAX_CONTRAST)
    labels, n_pieces = ndimage.label(mask)
    if n_pieces:
        area_px = np.bincount(labels.ravel())
        keep = area_px * pixel_um**2 >= _MIN_PIECE_UM2
        keep[0] = False
        mask = keep[labels]
    return np.asarray(mask, np.bool_)


def tissue_fractions(mask: NDArray[np.bool_], shape_yx: tuple[int, int]) -> NDArray[np.float32]:
    """Share of tissue in each tile of a grid of `shape_yx` that the mask covers, shape (rows, cols)."""
    rows, cols = shape_yx
    if mask.shape[0] % rows or mask.shape[1] % cols:
        raise ValueError(f"a mask of {mask.shape} pixels doesn't divide into {shape_yx} tiles")
    blocks = mask.reshape(rows, mask.shape[0] // rows, cols, mask.shape[1] // cols)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)

"""Where the tissue is, from a coarse level, on a pixel grid that the tiles share."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from napari_lrmil.slide.geometry import TileGrid, choose_level
from napari_lrmil.slide.pyramid import LevelArray, lazy_pyramid
from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.resample import resample_area

MASK_UM = 16.0
"""Wanted size of a mask pixel: a few nuclei, so that stroma between them counts as tissue."""

_MIN_CONTRAST, _MAX_CONTRAST = 5.0, 12.0
"""Grey levels by which tissue is more magenta than glass."""

_MIN_BLUENESS = 0.12
"""Of what a pixel has more red than green, it has this share more blue: eosin 0.2 or more, red ink less."""

_LEAST_BROWN = 20.0
"""Grey levels by which brown has more red than blue."""

_DAB_GREEN, _DAB_RED = (0.5, 0.95), (0.2, 0.8)
"""Optical density of brown in green and red, as shares of that in blue. DAB has 0.73 and 0.34, alone; haematoxylin beside
it raises both, and grey dirt has 1. Red and orange ink let nearly all red pass."""

IMMUNOSTAIN_SHARE = 0.05
"""Of the stained area: a slide with more brown is an immunostain. Sections in H&E have none to speak of."""

_GLASS_SPREAD, _MIN_GLASS, _MIN_GLASS_SHARE, _MAX_GLASS_TINT = 12, 200, 0.1, 12
"""Glass is the brightest, at least a tenth of a slide, and tinted by a few grey levels at most: what is more
is pale tissue that fills the view."""
_MIN_PIECE_UM2 = 4_000.0
_STRIP_PX = 4_096


class Tissue(NamedTuple):
    """Where the tissue is, and how it is stained."""

    mask: NDArray[np.bool_]
    """(rows * k, cols * k) on the grid: k mask pixels along the edge of a tile, each about `MASK_UM` wide."""
    brown_share: float
    """Of the stained area, the share that is brown, 0 to 1: about 0 in H&E, see `IMMUNOSTAIN_SHARE`."""


def find_tissue(slide: Slide, grid: TileGrid, *, divisible_by: int = 1) -> Tissue:
    """Find the tissue of the area that `grid` covers.

    Haematoxylin and eosin both absorb green most, so stained tissue is magenta: red and blue exceed green.
    Glass and black, blue or green pen don't; red pen has little blue. Violet pen can't be told from
    haematoxylin by its colour.

    The brown of an immunostain (DAB) absorbs blue most. It counts as tissue where it is `IMMUNOSTAIN_SHARE` or more of
    all that is stained: a speck of brown dirt or glue on an H&E slide stays out. Brown ink can't be told from DAB.

    Parameters
    ----------
    slide : Slide
    grid : TileGrid
    divisible_by : int
        The number of mask pixels along a tile is a multiple of this, so that a subdivided grid
        falls on whole mask pixels too.

    """
    per_tile = _mask_pixels_along(grid, divisible_by)
    coarse = _read_coarse(slide, grid, per_tile)
    rgb = ndimage.gaussian_filter(coarse.astype(np.float32), (0.7, 0.7, 0))
    # Glass isn't white: a warm lamp or a tinted slide makes it look faintly stained.
    rgb *= 255.0 / _glass_colour(coarse)
    pixel_um = grid.spec.tile_um / per_tile
    magenta = _pieces(_is_magenta(rgb), pixel_um)
    brown = _pieces(_is_brown(rgb), pixel_um)
    stained = magenta | brown
    share = float((brown & ~magenta).sum() / max(1, stained.sum()))
    return Tissue(stained if share >= IMMUNOSTAIN_SHARE else magenta, share)


def tissue_mask(slide: Slide, grid: TileGrid, *, divisible_by: int = 1) -> NDArray[np.bool_]:
    """The mask of `find_tissue`."""
    return find_tissue(slide, grid, divisible_by=divisible_by).mask


def mask_source(slide: Slide, grid: TileGrid, *, divisible_by: int = 1) -> int:
    """The stored level that `tissue_mask` reads."""
    return _coarse_level(slide, grid, _mask_pixels_along(grid, divisible_by)).plan.source


def _mask_pixels_along(grid: TileGrid, divisible_by: int) -> int:
    return divisible_by * max(1, math.ceil(grid.spec.tile_um / MASK_UM / divisible_by))


def _coarse_level(slide: Slide, grid: TileGrid, per_tile: int) -> LevelArray:
    pixel_um = grid.spec.tile_um / per_tile
    # Virtual levels too: where a slide has none that is coarse, a viewer's overview has made them already.
    levels = lazy_pyramid(slide)
    mpps = [max(slide.mpp_xy) * level.plan.downsample for level in levels]
    return levels[choose_level(mpps, max(pixel_um, mpps[0]))]


def _read_coarse(slide: Slide, grid: TileGrid, per_tile: int) -> NDArray[np.uint8]:
    rows, cols = grid.shape_yx
    level = _coarse_level(slide, grid, per_tile)
    image = np.empty((rows * per_tile, cols * per_tile, 3), np.uint8)
    # In blocks, so that no level is ever held whole.
    tile_level_px = max(grid.tile_l0_xy) / level.plan.downsample
    step = max(1, int(_STRIP_PX / tile_level_px))
    for row in range(0, rows, step):
        for col in range(0, cols, step):
            n_rows, n_cols = min(step, rows - row), min(step, cols - col)
            image[row * per_tile : (row + n_rows) * per_tile, col * per_tile : (col + n_cols) * per_tile] = (
                resample_area(
                    lambda left, top, width, height: level.read(left, top, left + width, top + height),
                    downsample=level.plan.downsample,
                    corner_l0_xy=grid.corner_l0_xy(row, col),
                    size_l0_xy=(n_cols * grid.tile_l0_xy[0], n_rows * grid.tile_l0_xy[1]),
                    out_px_xy=(n_cols * per_tile, n_rows * per_tile),
                )
            )
    return image


def _is_magenta(rgb: NDArray[np.float32]) -> NDArray[np.bool_]:
    red, green, blue = np.moveaxis(rgb, 2, 0)
    magenta = np.minimum(red, blue) - green
    # Otsu finds the valley between glass and tissue; the limits hold where there is only one of them, or where
    # it would part pale tissue from dark. What differs by less than a grey level is rounding, which has no valley.
    split = threshold_otsu(magenta) if np.ptp(magenta) >= 1 else _MIN_CONTRAST
    mask = magenta > np.clip(split, _MIN_CONTRAST, _MAX_CONTRAST)
    mask &= (blue - green) > _MIN_BLUENESS * (red - green)
    return np.asarray(mask, np.bool_)


def _is_brown(rgb: NDArray[np.float32]) -> NDArray[np.bool_]:
    red, green, blue = np.moveaxis(-np.log(np.clip(rgb, 1, 255) / 255), 2, 0)  # optical densities
    mask = rgb[..., 0] - rgb[..., 2] > _LEAST_BROWN
    for density, (least, most) in ((green, _DAB_GREEN), (red, _DAB_RED)):
        mask &= (density > least * blue) & (density < most * blue)
    return np.asarray(mask, np.bool_)


def _pieces(mask: NDArray[np.bool_], pixel_um: float) -> NDArray[np.bool_]:
    """The mask without its specks."""
    labels, n_pieces = ndimage.label(mask)
    if not n_pieces:
        return mask
    keep = np.bincount(labels.ravel()) * pixel_um**2 >= _MIN_PIECE_UM2
    keep[0] = False
    return np.asarray(keep[labels], np.bool_)


def _glass_colour(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB of the empty slide, or white where too little of it is seen to tell."""
    darkest = rgb.min(axis=2)
    scanned = darkest < 255  # pure white is what was never scanned
    if not scanned.any():
        return np.full(3, 255, np.float32)
    brightest = np.percentile(darkest[scanned], 99)
    glass = scanned & (darkest >= brightest - _GLASS_SPREAD)
    colour = np.median(rgb[glass], axis=0).astype(np.float32)
    if brightest < _MIN_GLASS or glass.mean() < _MIN_GLASS_SHARE or np.ptp(colour) > _MAX_GLASS_TINT:
        return np.full(3, 255, np.float32)
    return np.asarray(colour, np.float32)


def tissue_fractions(mask: NDArray[np.bool_], shape_yx: tuple[int, int]) -> NDArray[np.float32]:
    """Share of tissue in each tile of a grid of `shape_yx` that the mask covers, shape (rows, cols)."""
    rows, cols = shape_yx
    if mask.shape[0] % rows or mask.shape[1] % cols:
        raise ValueError(f"a mask of {mask.shape} pixels doesn't divide into {shape_yx} tiles")
    blocks = mask.reshape(rows, mask.shape[0] // rows, cols, mask.shape[1] // cols)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)

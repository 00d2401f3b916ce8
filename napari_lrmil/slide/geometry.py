"""Pure geometry: tile grids, level choice and frames.

The common frame is level 0, in pixels (``_l0``) or micrometres (``_um``), with (0, 0) at the top left
*corner* of the first pixel. Downsamples and tile sizes stay floats: a tile of 256 px at 0.5 µm/px on a
slide of 0.499 µm/px spans 256.513 level-0 pixels, and rounding that would shift the thousandth tile by
half a field of view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError

LEVEL_TOLERANCE = 0.02
"""How much coarser than wanted a level may be and still serve: scanners' nominal mpp differ by about 1 %."""

MAX_EDGE_UM, MAX_AREA_UM2 = 5e5, 3e10
"""Half a metre; and 170 x 170 mm, of which a whole mount takes a part: a tissue mask of it still fits into memory."""

MAX_TILE_L0_PX, MAX_TILES = 2**16, 2**22
"""Pixels along a tile at level 0, and tiles of a grid: far more than any slide gives a model."""


@dataclass(frozen=True)
class TileSpec:
    """What a model wants to see: square tiles of `tile_px` pixels at `mpp` µm/px."""

    tile_px: int
    mpp: float

    def __post_init__(self) -> None:
        if self.tile_px < 1 or not self.mpp > 0:
            raise ValueError(f"a tile needs tile_px >= 1 and mpp > 0, got {self.tile_px} and {self.mpp}")

    @property
    def tile_um(self) -> float:
        """Edge length in µm."""
        return self.tile_px * self.mpp


@dataclass(frozen=True)
class TileGrid:
    """A regular grid of square tiles over a slide.

    Attributes
    ----------
    spec : TileSpec
        Pixels and µm/px of a tile as the model sees it.
    origin_l0_xy : (float, float)
        Top left corner of tile (0, 0) in level-0 pixels.
    tile_l0_xy : (float, float)
        Size of a tile in level-0 pixels; the axes differ where the pixels aren't square.
    shape_yx : (int, int)
        Rows and columns.
    """

    spec: TileSpec
    origin_l0_xy: tuple[float, float]
    tile_l0_xy: tuple[float, float]
    shape_yx: tuple[int, int]

    def corner_l0_xy(self, row: float, col: float) -> tuple[float, float]:
        """Top left corner of a tile in level-0 pixels; fractions name places between tiles."""
        return (
            self.origin_l0_xy[0] + col * self.tile_l0_xy[0],
            self.origin_l0_xy[1] + row * self.tile_l0_xy[1],
        )

    def corners_l0_xy(self, rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.float64]:
        """Corners of many tiles, shape (N, 2), as (x, y) in level-0 pixels."""
        places: NDArray[np.float64] = np.stack([cols, rows], axis=1).astype(np.float64)
        return np.asarray(places * self.tile_l0_xy + self.origin_l0_xy, np.float64)

    def subdivide(self, ratio: int) -> TileGrid:
        """The finer grid whose `ratio` x `ratio` tiles fill each tile of this one.

        Both share one origin, so tile (i, j) here holds exactly the tiles
        (i * ratio + dy, j * ratio + dx) there.
        """
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1, got {ratio}")
        return replace(
            self,
            spec=TileSpec(self.spec.tile_px, self.spec.mpp / ratio),
            tile_l0_xy=(self.tile_l0_xy[0] / ratio, self.tile_l0_xy[1] / ratio),
            shape_yx=(self.shape_yx[0] * ratio, self.shape_yx[1] * ratio),
        )


def make_tile_grid(
    *, bounds_l0_xywh: tuple[int, int, int, int], mpp_xy: tuple[float, float], spec: TileSpec
) -> TileGrid:
    """Cover the scanned bounds of a slide with whole tiles; the last row and column may reach outside.

    Parameters
    ----------
    bounds_l0_xywh : (int, int, int, int)
        Left, top, width and height of the scanned area in level-0 pixels.
    mpp_xy : (float, float)
        µm per level-0 pixel along x and y.
    spec : TileSpec
    """
    left, top, width, height = bounds_l0_xywh
    tile_l0_xy = (spec.tile_um / mpp_xy[0], spec.tile_um / mpp_xy[1])
    # A sliver below a thousandth of a tile is a rounding of the mpp, not another row.
    rows = max(1, math.ceil(height / tile_l0_xy[1] - 1e-3))
    cols = max(1, math.ceil(width / tile_l0_xy[0] - 1e-3))
    return TileGrid(spec, (float(left), float(top)), tile_l0_xy, (rows, cols))


def check_grid(
    *, bounds_l0_xywh: tuple[int, int, int, int], mpp_xy: tuple[float, float], spec: TileSpec
) -> None:
    """Refuse what `make_tile_grid` would make of an mpp that is wrong by a factor of hundreds.

    Masks and tiles over such a grid would ask for more memory than there is, so this comes first.

    Raises
    ------
    SlideError
        Naming the mpp.
    """
    (_, _, width, height), mpp = bounds_l0_xywh, max(mpp_xy)
    width_um, height_um = width * mpp_xy[0], height * mpp_xy[1]
    if max(width_um, height_um) > MAX_EDGE_UM or width_um * height_um > MAX_AREA_UM2:
        raise SlideError(
            f"at {mpp:.3g} µm/px (mpp), the slide would measure {width_um / 1000:,.0f} x {height_um / 1000:,.0f} mm, "
            "more than any slide: its µm/px is wrong"
        )
    tile_l0_px = spec.tile_um / min(mpp_xy)
    n_tiles = (width_um / spec.tile_um) * (height_um / spec.tile_um)
    if tile_l0_px > MAX_TILE_L0_PX or n_tiles > MAX_TILES:
        raise SlideError(
            f"at {mpp:.3g} µm/px (mpp), the slide would have {n_tiles:,.0f} tiles, each {tile_l0_px:,.0f} of its pixels "
            f"wide ({spec.tile_um:g} µm): its µm/px is wrong, or the model's"
        )


def choose_level(
    level_mpps: Sequence[float], wanted_mpp: float, *, tolerance: float = LEVEL_TOLERANCE
) -> int:
    """The coarsest level that still gives `wanted_mpp`: nothing finer than needed is read.

    Parameters
    ----------
    level_mpps : sequence of float
        µm/px of each level, level 0 first.
    wanted_mpp : float
    tolerance : float
        A level up to this fraction coarser than wanted counts as giving it.

    Raises
    ------
    SlideError
        Where even level 0 is too coarse.
    """
    fits = [level for level, mpp in enumerate(level_mpps) if mpp <= wanted_mpp * (1 + tolerance)]
    if not fits:
        raise SlideError(
            f"the slide's finest level has {min(level_mpps):.3g} µm/px, but {wanted_mpp:.3g} µm/px is needed"
        )
    return max(fits, key=lambda level: level_mpps[level])


def level_to_l0(position: float, downsample: float) -> int:
    """The level-0 pixel nearest to a position on a level, along one axis."""
    return round(position * downsample)


def l0_to_level(position_l0: float, downsample: float) -> int:
    """The pixel of a level nearest to a level-0 position, along one axis.

    Undoes `level_to_l0` exactly for every whole pixel of a level with `downsample` >= 1: rounding moves a
    position by half a level-0 pixel at most, which is less than half a pixel of a coarser level.
    """
    return round(position_l0 / downsample)


def children_of(rows: NDArray[np.integer], cols: NDArray[np.integer], ratio: int) -> NDArray[np.int64]:
    """Children of LR tiles in the HR grid, numbered row by row (y outer, x inner).

    Parameters
    ----------
    rows, cols : (N,) int arrays
        Positions in the LR grid.
    ratio : int
        mpp_lr / mpp_hr.

    Returns
    -------
    (N, ratio * ratio, 2) int array
        (row, col) in the HR grid.
    """
    dy, dx = np.divmod(np.arange(ratio * ratio), ratio)
    return np.stack(
        [np.asarray(rows)[:, None] * ratio + dy, np.asarray(cols)[:, None] * ratio + dx], axis=-1
    ).astype(np.int64)

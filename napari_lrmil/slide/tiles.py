"""The tiles of a slide that hold tissue, and their pixels in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import NoTissueError
from napari_lrmil.slide.geometry import TileGrid, TileSpec, choose_level, make_tile_grid
from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.resample import read_area
from napari_lrmil.slide.tissue import tissue_fractions, tissue_mask


@dataclass(frozen=True)
class TileSet:
    """The tiles of a grid that hold tissue, row by row.

    Attributes
    ----------
    grid : TileGrid
    level : int
        The one level that they are read from.
    rows, cols : (N,) int64 arrays
        Places in the grid.
    tissue_fraction : (rows, cols) float32 array
        Of the whole grid, tiles left out included.
    """

    grid: TileGrid
    level: int
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def corners_l0_xy(self) -> NDArray[np.float64]:
        """(N, 2) top left corners as (x, y) in level-0 pixels."""
        return self.grid.corners_l0_xy(self.rows, self.cols)


def find_tissue_tiles(slide: Slide, spec: TileSpec, *, min_tissue: float) -> TileSet:
    """Tiles of `spec` of which at least the share `min_tissue` is tissue.

    Raises
    ------
    NoTissueError
        Where there is none.
    UnknownMppError
    SlideError
    """
    grid = make_tile_grid(bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=spec)
    return tissue_tiles_of(slide, grid, tissue_mask(slide, grid), min_tissue=min_tissue)


def tissue_tiles_of(slide: Slide, grid: TileGrid, mask: NDArray[np.bool_], *, min_tissue: float) -> TileSet:
    """As `find_tissue_tiles`, for a grid and mask already at hand (one mask serves nested grids)."""
    level = choose_level(slide.level_mpps, grid.spec.mpp)
    fractions = tissue_fractions(mask, grid.shape_yx)
    rows, cols = np.nonzero(fractions >= max(min_tissue, 1e-6))
    if not len(rows):
        raise NoTissueError(
            f"{slide.path.name}: no tissue found. Of the {fractions.size} tiles none is tissue by "
            f"{min_tissue:.0%} or more (the most is {float(fractions.max()):.0%})."
        )
    return TileSet(grid, level, rows.astype(np.int64), cols.astype(np.int64), fractions)


def read_tile(slide: Slide, grid: TileGrid, level: int, row: float, col: float) -> NDArray[np.uint8]:
    """Pixels (tile_px, tile_px, 3) of one place in a grid; fractions of a row or column are allowed."""
    return read_area(
        slide,
        level=level,
        corner_l0_xy=grid.corner_l0_xy(row, col),
        size_l0_xy=grid.tile_l0_xy,
        out_px_xy=(grid.spec.tile_px, grid.spec.tile_px),
    )


def iter_tiles(
    slide: Slide,
    grid: TileGrid,
    level: int,
    places: Sequence[tuple[float, float]],
    *,
    batch_size: int,
    threads: int = 2,
) -> Iterator[NDArray[np.uint8]]:
    """Batches (<= batch_size, tile_px, tile_px, 3) of the tiles at `places` (row, col), in their order.

    The next two batches are decoded in `threads` threads while the caller works on this one; closing the
    generator ends them.
    """
    starts = range(0, len(places), batch_size)
    with ThreadPoolExecutor(threads, thread_name_prefix="lrmil-tiles") as pool:
        waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
        try:
            for index, start in enumerate(starts):
                for ahead in range(index + len(waiting), min(index + 3, len(starts))):
                    begin = starts[ahead]
                    waiting.append(
                        [
                            pool.submit(read_tile, slide, grid, level, row, col)
                            for row, col in places[begin : begin + batch_size]
                        ]
                    )
                yield np.stack([future.result() for future in waiting.popleft()])
                del start
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()

"""The tiles of a slide that hold tissue, and their pixels in order."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import NoTissueError, SlideError
from napari_lrmil.slide.geometry import TileGrid, TileSpec, check_grid, choose_level, make_tile_grid
from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.resample import pixels_of_area, read_area
from napari_lrmil.slide.tissue import IMMUNOSTAIN_SHARE, Tissue, find_tissue, mask_source, tissue_fractions

MAX_DAMAGED_SHARE = 0.01
"""Share of the tiles with tissue that may be damaged. An assumption, not a measurement: a hundredth of a bag has little
weight in a mean over it, but attention can rest on a single tile, and it isn't known what a damaged one held. Who can't
accept that sets `--max-damaged 0`."""


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
    brown_share : float
        Of the stained area, the share that is brown as an immunostain is, 0 to 1.
    """

    grid: TileGrid
    level: int
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]
    brown_share: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def immunostained(self) -> bool:
        """Whether so much is brown that the slide isn't one in H&E."""
        return self.brown_share >= IMMUNOSTAIN_SHARE

    @property
    def places(self) -> list[tuple[float, float]]:
        """(row, col) of each tile, as `iter_tiles` takes them."""
        return list(zip(self.rows.tolist(), self.cols.tolist(), strict=True))

    @property
    def corners_l0_xy(self) -> NDArray[np.float64]:
        """(N, 2) top left corners as (x, y) in level-0 pixels."""
        return self.grid.corners_l0_xy(self.rows, self.cols)


class NestedTiles(NamedTuple):
    """Tiles with tissue of two nested grids: each LR tile holds `ratio` x `ratio` places of the HR grid."""

    lr: TileSet
    hr: TileSet


def tile_grid(slide: Slide, spec: TileSpec) -> TileGrid:
    """Return the grid of `spec` over the scanned area of a slide.

    Raises
    ------
    UnknownMppError
    SlideError
        Where the grid would be absurd, as it is with a wrong mpp.
    """
    bounds, mpp_xy = slide.bounds_l0_xywh, slide.mpp_xy
    try:
        check_grid(bounds_l0_xywh=bounds, mpp_xy=mpp_xy, spec=spec)
    except SlideError as error:
        raise SlideError(f"{slide.path.name}: {error} (it is {slide.pixel_size.text})") from error
    return make_tile_grid(bounds_l0_xywh=bounds, mpp_xy=mpp_xy, spec=spec)


def find_tiles(
    slide: Slide,
    spec: TileSpec,
    *,
    min_tissue: float,
    ratio: int = 1,
    within: int = 1,
    one_in: int = 1,
    seed: int = 0,
) -> TileSet:
    """Find the tiles of a slide that a model reads: the one rule, for training and serving.

    Parameters
    ----------
    slide : Slide
    spec : TileSpec
        Of the model that serves (LR), or of the tiles that its own subdivide.
    min_tissue : float
        Share of a tile that must be tissue.
    ratio : int
        mpp_lr / mpp_hr of its training, 1 where there is one grid. One mask serves both grids there, and this sets the
        size of its pixels: with another ratio, another tile may just be tissue enough.
    within : int
        For a model of tiles finer than LR: so many of them, along an edge, subdivide a tile of `spec`, whose grid and mask
        they share as in training. Between 1 and `ratio`, these are the tiles that hold a part of an HR tile with tissue.
    one_in, seed : int
        For a model of a random part of these tiles: see `random_part`.

    Raises
    ------
    NoTissueError
        Where there is none.
    UnknownMppError
    SlideError
        Where the slide is too coarse, or can't be read.
    """
    grid = tile_grid(slide, spec)
    choose_level(slide.level_mpps, grid.subdivide(within).spec.mpp)  # before the mask, which takes longer
    tissue = find_tissue(slide, grid, divisible_by=ratio)
    found = _within(slide, grid, tissue, min_tissue, ratio=ratio, within=within)
    if one_in == 1:
        return found
    part = random_part(np.stack([found.rows, found.cols], axis=1), one_in, seed)
    return replace(found, rows=found.rows[part], cols=found.cols[part])


def find_magnifications(
    slide: Slide, finest: TileSpec, factors: Sequence[int], *, min_tissue: float
) -> tuple[TileSet, ...]:
    """Find the tiles of a slide at several magnifications, the coarsest first: the one rule, for training and serving.

    All lie on the grid of the coarsest and share its tissue mask: the coarsest and the finest are those with tissue enough,
    the tiles between them those that hold a part of a finest one with tissue. A tile with tissue has a finest one in it.

    Parameters
    ----------
    slide : Slide
    finest : TileSpec
        Of the finest tiles.
    factors : sequence of int
        How many times coarser each is than the finest, as in `MILSpec.factors`.
    min_tissue : float

    Raises
    ------
    NoTissueError, UnknownMppError, SlideError
        As `find_tiles` does.
    """
    coarsest = factors[0]
    grid = tile_grid(slide, TileSpec(finest.tile_px, finest.mpp * coarsest))
    choose_level(slide.level_mpps, grid.subdivide(coarsest).spec.mpp)
    tissue = find_tissue(slide, grid, divisible_by=coarsest)
    return tuple(
        _within(slide, grid, tissue, min_tissue, ratio=coarsest, within=coarsest // factor)
        for factor in factors
    )


def holding(
    places: NDArray[np.int64], shape_yx: tuple[int, int], factor: int, ratio: int
) -> NDArray[np.int64]:
    """Return the tiles of one subdivision of a grid that hold a part of some tiles of another, (K, 2), row by row.

    Parameters
    ----------
    places : (N, 2) int64 array
        (row, col) where `ratio` x `ratio` tiles fill one of the grid.
    shape_yx : (int, int)
        Of the grid.
    factor : int
        The same of the tiles that are returned.
    ratio : int
    """
    first = places * factor // ratio
    last = ((places + 1) * factor - 1) // ratio
    held = np.zeros((shape_yx[0] * factor, shape_yx[1] * factor), np.bool_)
    for place in np.ndindex(-(-factor // ratio) + 1, -(-factor // ratio) + 1):
        rows, cols = np.minimum(first + place, last).T
        held[rows, cols] = True
    return np.asarray(np.argwhere(held), np.int64)


def parents_in(
    places: NDArray[np.int64], coarser: NDArray[np.int64], shape_yx: tuple[int, int], ratio: int
) -> NDArray[np.int64]:
    """Return the tile of a coarser grid that each tile lies in, (M,) index into `coarser`; -1 where it isn't among them.

    Parameters
    ----------
    places : (M, 2) array
        (row, col) in a grid that divides the tiles of the coarser one into `ratio` x `ratio`.
    coarser : (N, 2) array
        (row, col) of the tiles that are there.
    shape_yx : (int, int)
        Of the coarser grid.
    ratio : int
    """
    index_of = np.full(shape_yx, -1, np.int64)
    index_of[coarser[:, 0], coarser[:, 1]] = np.arange(len(coarser))
    found: NDArray[np.int64] = index_of[places[:, 0] // ratio, places[:, 1] // ratio]
    return found


def random_part(places: NDArray[np.int64], one_in: int, seed: int) -> NDArray[np.int64]:
    """Return the indices, ascending, of a random 1 / one_in of some tiles, of one at least.

    By hashes of places and seed: the same tiles of a slide in training and serving, on every machine and in all versions.

    Parameters
    ----------
    places : (N, 2) int64 array
        (row, col)
    one_in, seed : int
    """
    n = max(1, round(len(places) / one_in))
    hashes = [
        hashlib.blake2b(f"{seed} {row} {col}".encode(), digest_size=8).digest()
        for row, col in places.tolist()
    ]
    return np.array(sorted(sorted(range(len(places)), key=hashes.__getitem__)[:n]), np.int64)


def find_nested_tiles(slide: Slide, spec: TileSpec, *, min_tissue: float, ratio: int) -> NestedTiles:
    """Find the tiles of `find_tiles`, and by the same mask those of the HR grid, for training.

    Raises
    ------
    NoTissueError, UnknownMppError, SlideError
        As `find_tiles` does, and where the slide is too coarse for the HR grid.
    """
    grid = tile_grid(slide, spec)
    hr_grid = grid.subdivide(ratio)
    choose_level(slide.level_mpps, hr_grid.spec.mpp)
    tissue = find_tissue(slide, grid, divisible_by=ratio)
    return NestedTiles(
        _with_tissue(slide, grid, tissue, min_tissue), _with_tissue(slide, hr_grid, tissue, min_tissue)
    )


def _within(
    slide: Slide, grid: TileGrid, tissue: Tissue, min_tissue: float, *, ratio: int, within: int
) -> TileSet:
    """Return the tiles of a subdivision of a grid, see `find_tiles`."""
    read = grid.subdivide(within)
    if within in (1, ratio):
        return _with_tissue(slide, read, tissue, min_tissue)
    level = choose_level(slide.level_mpps, read.spec.mpp)
    finest = grid.subdivide(ratio)
    fine = np.argwhere(_enough(slide, tissue_fractions(tissue.mask, finest.shape_yx), min_tissue))
    rows, cols = holding(fine, grid.shape_yx, within, ratio).T
    mask = tissue.mask
    if ratio % within:  # so that a tile is a whole number of pixels
        mask = mask.repeat(within, axis=0).repeat(within, axis=1)
    return TileSet(read, level, rows, cols, tissue_fractions(mask, read.shape_yx), tissue.brown_share)


def _with_tissue(slide: Slide, grid: TileGrid, tissue: Tissue, min_tissue: float) -> TileSet:
    level = choose_level(slide.level_mpps, grid.spec.mpp)
    fractions = tissue_fractions(tissue.mask, grid.shape_yx)
    rows, cols = np.nonzero(_enough(slide, fractions, min_tissue))
    return TileSet(grid, level, rows.astype(np.int64), cols.astype(np.int64), fractions, tissue.brown_share)


def _enough(slide: Slide, fractions: NDArray[np.float32], min_tissue: float) -> NDArray[np.bool_]:
    """Return which tiles hold tissue enough; none is a NoTissueError."""
    enough = fractions >= max(min_tissue, 1e-6)
    if not enough.any():
        raise NoTissueError(
            f"{slide.path.name}: no tissue found. Of the {fractions.size} tiles none is tissue by "
            f"{min_tissue:.0%} or more (the most is {float(fractions.max()):.0%})."
        )
    return np.asarray(enough, np.bool_)


def check_damage(
    slide: Slide, tiles: TileSet, *, ratio: int = 1, max_damaged: float = MAX_DAMAGED_SHARE
) -> int:
    """Count tiles that hold a damaged place, of those that were read and those that the mask couldn't see.

    Parameters
    ----------
    slide : Slide
        That was read: of what wasn't, nothing is known.
    tiles : TileSet
    ratio : int
        As in `find_tiles`.
    max_damaged : float
        Share of the tiles that may be damaged.

    Raises
    ------
    SlideError
        Where more are.
    """
    places = slide.damaged_places
    if not places:
        return 0
    grid = tiles.grid
    with_tissue = np.zeros(grid.shape_yx, np.bool_)
    with_tissue[tiles.rows, tiles.cols] = True
    read = with_tissue & _touched(slide, grid, tiles.level)
    # A damaged place of the level that the mask is made of may hide tissue.
    hidden = _touched(slide, grid, mask_source(slide, grid, divisible_by=ratio)) & ~with_tissue
    damaged, of = int(read.sum() + hidden.sum()), int(with_tissue.sum() + hidden.sum())
    if damaged > max_damaged * of:
        raise SlideError(
            f"{slide.path.name} is damaged: {damaged} of {of} tiles that hold or may hold tissue can't be decoded "
            f"({damaged / of:.1%}; up to {max_damaged:.1%} are allowed, see --max-damaged): copy the file again"
        )
    return damaged


def _touched(slide: Slide, grid: TileGrid, level: int) -> NDArray[np.bool_]:
    """Tiles (rows, cols) of a grid with which a damaged place of a level overlaps."""
    touched = np.zeros(grid.shape_yx, np.bool_)
    scale = slide.level_downsamples[level]
    for at, left, top, width, height in slide.damaged_places:
        if at != level:
            continue
        edges = np.array([[left, left + width], [top, top + height]], np.float64) * scale
        (first_col, last_col), (first_row, last_row) = (
            edges - np.array(grid.origin_l0_xy)[:, None]
        ) / np.array(grid.tile_l0_xy)[:, None]
        touched[
            max(0, math.floor(first_row)) : max(0, math.ceil(last_row)),
            max(0, math.floor(first_col)) : max(0, math.ceil(last_col)),
        ] = True
    return touched


def pixels_of_tiles(slide: Slide, grid: TileGrid, level: int, places: Sequence[tuple[float, float]]) -> int:
    """Return how many pixels of a level the tiles at `places` (row, col) are made of: what `iter_tiles` reads."""
    downsample = slide.level_downsamples[level]
    return sum(
        pixels_of_area(
            downsample=downsample,
            corner_l0_xy=grid.corner_l0_xy(row, col),
            size_l0_xy=grid.tile_l0_xy,
        )
        for row, col in places
    )


def read_tile(slide: Slide, grid: TileGrid, level: int, row: float, col: float) -> NDArray[np.uint8]:
    """Pixels (tile_px, tile_px, 3) of one place in a grid; fractions of a row or column are allowed."""
    return read_area(
        slide,
        level=level,
        corner_l0_xy=grid.corner_l0_xy(row, col),
        size_l0_xy=grid.tile_l0_xy,
        out_px_xy=(grid.spec.tile_px, grid.spec.tile_px),
        keep_tiles=False,
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
    tile_px = grid.spec.tile_px
    starts = range(0, len(places), batch_size)

    def fill(batch: NDArray[np.uint8], wanted: Sequence[tuple[float, float]], part: int) -> None:
        # Neighbours share stored tiles, so each thread takes a run of them: taking turns, the threads would want
        # the same tile at the same time, and one of them would wait.
        for index in range(part * len(wanted) // threads, (part + 1) * len(wanted) // threads):
            batch[index] = read_tile(slide, grid, level, *wanted[index])

    with ThreadPoolExecutor(threads, thread_name_prefix="lrmil-tiles") as pool:
        # One task a thread and batch, not one a tile: handing over a task takes a tenth of decoding a tile.
        waiting: deque[tuple[NDArray[np.uint8], list[Future[None]]]] = deque()
        try:
            for index in range(len(starts)):
                for start in starts[index + len(waiting) : index + 3]:
                    wanted = places[start : start + batch_size]
                    batch: NDArray[np.uint8] = np.empty((len(wanted), tile_px, tile_px, 3), np.uint8)
                    waiting.append((batch, [pool.submit(fill, batch, wanted, n) for n in range(threads)]))
                ready, tasks = waiting[0]
                for task in tasks:
                    task.result()
                waiting.popleft()
                yield ready
        finally:
            for _, tasks in waiting:
                for task in tasks:
                    task.cancel()

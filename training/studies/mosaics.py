"""Slides put together from regions, so that it's known which instances make a slide positive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import ConfigError
from training.studies.regions import VIABLE, Region

SIDE = 3
MAX_VIABLE = 3


class Cell(NamedTuple):
    """A region at its place in a mosaic."""

    region: Region
    quarter_turns: int
    flipped: bool


class Mosaic(NamedTuple):
    """A slide of `SIDE` x `SIDE` regions, row by row; they abut, and no glass is between them."""

    slide_id: str
    part: str
    label: str
    cells: tuple[Cell, ...]


def plan_mosaics(regions: Sequence[Region], *, part: str, n: int, seed: int) -> list[Mosaic]:
    """Plan mosaics of the regions of one part of a split.

    Half are positive: one to three viable regions among others, at random places; the rest hold none. A region is
    drawn again only when all of its class are in the mosaic already. Each is turned and flipped at random, so that one
    that comes back isn't equal pixel for pixel.

    Parameters
    ----------
    regions : sequence of Region
        Of this part alone: no region is then in two parts.
    part : str
        Named in the slides' ids.
    n : int
        Number of mosaics, even.
    seed : int

    Raises
    ------
    ConfigError
        Where `n` is odd, or the part lacks a class.
    """
    viable = [region for region in regions if region.kind == VIABLE]
    others = [region for region in regions if region.kind != VIABLE]
    if n < 2 or n % 2:
        raise ConfigError(
            f"the number of mosaics is {n}; it must be even, half of each class, and at least 2"
        )
    if not viable or not others:
        raise ConfigError(
            f"part {part}: {len(viable)} viable regions and {len(others)} others; both are needed"
        )
    # The part's name counts, so that two parts of one seed aren't drawn alike.
    rng = np.random.default_rng([seed, *part.encode()])
    mosaics = []
    for number in range(n):
        n_viable = int(rng.integers(1, MAX_VIABLE + 1)) if number % 2 else 0
        chosen = _draw(viable, n_viable, rng) + _draw(others, SIDE**2 - n_viable, rng)
        cells = tuple(
            Cell(chosen[index], int(rng.integers(4)), bool(rng.integers(2)))
            for index in rng.permutation(len(chosen))
        )
        mosaics.append(Mosaic(f"mosaic-{part}-{number:02d}", part, "viable" if n_viable else "other", cells))
    return mosaics


def _draw(regions: list[Region], n: int, rng: np.random.Generator) -> list[Region]:
    order: list[int] = []
    while len(order) < n:
        order += rng.permutation(len(regions)).tolist()
    return [regions[index] for index in order[:n]]


def compose(cells: Sequence[Cell], pixels: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return the pixels of a mosaic.

    Parameters
    ----------
    cells : sequence of Cell
        SIDE * SIDE of them.
    pixels : dict
        Region id -> (E, E, 3) uint8 array.

    Returns
    -------
    (SIDE * E, SIDE * E, 3) uint8 array
    """
    placed = [turned(pixels[cell.region.region_id], cell) for cell in cells]
    rows = [np.concatenate(placed[start : start + SIDE], axis=1) for start in range(0, SIDE**2, SIDE)]
    return np.concatenate(rows, axis=0)


def turned(region: NDArray[np.uint8], cell: Cell) -> NDArray[np.uint8]:
    """Return the region as the mosaic shows it: turned counterclockwise, then mirrored left to right."""
    result = np.rot90(region, cell.quarter_turns)
    return result[:, ::-1] if cell.flipped else result


def viable_mask(cells: Sequence[Cell], cell_px: int) -> NDArray[np.bool_]:
    """Return where viable regions are, (SIDE * cell_px, SIDE * cell_px)."""
    grid = np.asarray([cell.region.kind == VIABLE for cell in cells]).reshape(SIDE, SIDE)
    return np.asarray(np.kron(grid, np.ones((cell_px, cell_px), bool)), np.bool_)

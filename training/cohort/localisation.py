"""How well attention finds the lesions: against masks or regions that are known.

Pure functions: places in a grid, scores and a mask go in, numbers come out. Two measures, each with what chance gives:

- AUPRC of a slide's attention scores against its tiles' lesion share. A random order gives the prevalence of positive
  tiles, which differs between slides and between grids: never read it without the prevalence beside it.
- Pointing game: whether the tile with the most attention is positive. A random tile hits with the prevalence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from training.metrics import Interval, bootstrap_over_patients

MIN_LESION = 0.25
"""Lesion share from which a tile is positive. It is the share from which a tile counts as tissue (`tiles.min_tissue`):
a tile of which a quarter shows the finding holds it. Every positive slide of the generated cohort has such tiles; at a
half, a small lesion that straddles four tiles would count in none."""

Array = NDArray[np.float64]


class SlideLocalisation(NamedTuple):
    """One method on one positive slide."""

    auprc: float
    hit: float
    """1 or 0; between them where several tiles share the most attention."""
    prevalence: float
    """Share of positive tiles in the bag: the chance level of both."""


class Localisation(NamedTuple):
    """Means over positive slides, with 95 % intervals over patients."""

    auprc: Interval
    hit: Interval
    prevalence: float
    n_slides: int


def tile_lesion_fractions(mask: NDArray[np.bool_], places: NDArray[np.integer], tile_mask_px: float) -> Array:
    """Return the lesion share of tiles.

    Parameters
    ----------
    mask : (H, W) bool array
        Lesions of the whole slide; its first pixel is the corner of the grid.
    places : (N, 2) int array
        (row, col) in a grid of square tiles.
    tile_mask_px : float
        Edge of a tile in pixels of the mask.

    Returns
    -------
    (N,) float64 array
        Of the whole tile: what reaches outside the mask is no lesion.

    Raises
    ------
    ValueError
        Where a tile is smaller than a pixel of the mask.
    """
    if tile_mask_px < 1:
        raise ValueError(f"the mask is too coarse: a tile is {tile_mask_px:.2g} of its pixels wide")
    height, width = mask.shape
    sums = np.zeros((height + 1, width + 1), np.int64)
    sums[1:, 1:] = mask.astype(np.int64).cumsum(axis=0).cumsum(axis=1)
    starts = np.rint(places * tile_mask_px).astype(np.int64)
    ends = np.rint((places + 1) * tile_mask_px).astype(np.int64)
    area = np.prod(ends - starts, axis=1)
    (top, left), (bottom, right) = (
        (np.minimum(edge[:, 0], height), np.minimum(edge[:, 1], width)) for edge in (starts, ends)
    )
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return np.asarray(inside / area, np.float64)


def gather_on_parents(
    hr_scores: Array, hr_places: NDArray[np.integer], lr_places: NDArray[np.integer], ratio: int
) -> Array:
    """Sum attention of HR tiles onto the LR tiles that hold them, so that teacher and student rank the same tiles.

    Parameters
    ----------
    hr_scores : (M,) array
    hr_places : (M, 2) int array
        (row, col) in the HR grid.
    lr_places : (N, 2) int array
        (row, col) in the LR grid.
    ratio : int

    Returns
    -------
    (N,) float64 array
        0 on tiles without children.
    """
    shape = np.concatenate([hr_places // ratio, lr_places]).max(axis=0) + 1
    sums = np.zeros(shape, np.float64)
    np.add.at(sums, tuple((hr_places // ratio).T), hr_scores)
    return np.asarray(sums[tuple(lr_places.T)], np.float64)


def localise_slide(
    attention_scores: Array, lesion_fractions: Array, *, min_lesion: float = MIN_LESION
) -> SlideLocalisation:
    """Return AUPRC and pointing game of one slide.

    Parameters
    ----------
    attention_scores : (N,) array
        Any scores that rank the tiles.
    lesion_fractions : (N,) array
        See `tile_lesion_fractions`.
    min_lesion : float

    Raises
    ------
    ValueError
        Where no tile is positive: there is nothing to find.
    """
    positive = lesion_fractions >= min_lesion
    if not positive.any():
        raise ValueError(f"no tile is lesion by {min_lesion:.0%} or more")
    top = attention_scores == attention_scores.max()
    return SlideLocalisation(
        auprc=float(average_precision_score(positive, attention_scores)),
        hit=float(positive[top].mean()),
        prevalence=float(positive.mean()),
    )


def average_slides(
    slides: list[SlideLocalisation], patients: list[str], *, n_resamples: int, rng: np.random.Generator
) -> Localisation:
    """Return means over positive slides; intervals by bootstrap over patients.

    Parameters
    ----------
    slides : list of SlideLocalisation
        For several seeds: the mean over them for each slide.
    patients : list of str
        Patient of each slide.
    n_resamples : int
    rng : numpy Generator
    """
    values = np.asarray(slides, np.float64)  # (N, 3)

    def interval(column: int) -> Interval:
        return bootstrap_over_patients(
            lambda drawn: float(values[drawn, column].mean()), patients, n_resamples=n_resamples, rng=rng
        )

    return Localisation(interval(0), interval(1), float(values[:, 2].mean()), len(slides))

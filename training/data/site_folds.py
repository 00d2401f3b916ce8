"""Deal whole sites into folds that are as even as can be.

Howard et al. (Nature Communications 2021) state it as a quadratic programme: the least sum of squared
differences between what a fold holds of each class and an even share. The same sum is made small here by
a greedy deal and then by moving and swapping sites for as long as that helps, from many starts: some
dozens of sites take a fraction of a second, and no solver is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STARTS = 24
_NO_CLASS = 10.0
"""Cost of a fold without a class: above that of any unevenness, so that such a deal is left if it can be."""


def deal_sites(counts: NDArray[np.int64], *, n_folds: int, seed: int) -> NDArray[np.int64] | None:
    """Return the fold of each site.

    Parameters
    ----------
    counts : (S, C) int array
        Slides of each class at each site; every class has some.
    n_folds : int
    seed : int
        Same seed, same deal.

    Returns
    -------
    (S,) int array, or None
        None where no deal was found in which each fold holds every class.
    """
    rng = np.random.default_rng(seed)
    # Shares of a class instead of slides: a rare class counts as much as a common one.
    shares = counts / counts.sum(axis=0)
    best: NDArray[np.int64] | None = None
    best_cost = np.inf
    for _ in range(_STARTS):
        fold_of = _greedy(shares, n_folds, rng)
        cost = _improve(shares, fold_of, n_folds)
        if cost < best_cost - 1e-12:
            best, best_cost = fold_of, cost
    return best if best_cost < _NO_CLASS else None


def unevenness(shares: NDArray[np.float64], fold_of: NDArray[np.int64], n_folds: int) -> float:
    """Return the sum that is made small: squared differences from an even share, and a fine for a missing class."""
    return float(_cost(_held(shares, fold_of, n_folds)).sum())


def _held(shares: NDArray[np.float64], fold_of: NDArray[np.int64], n_folds: int) -> NDArray[np.float64]:
    held = np.zeros((n_folds, shares.shape[1]))
    np.add.at(held, fold_of, shares)
    return held


def _cost(held: NDArray[np.float64], n_folds: int | None = None) -> NDArray[np.float64]:
    """Return the cost of each fold (..., F), from what it holds of each class (..., F, C)."""
    even = 1 / (n_folds or held.shape[-2])
    # Sums and differences of floats leave dust where nothing is held.
    return np.asarray(((held - even) ** 2 + _NO_CLASS * (held < 1e-9)).sum(axis=-1), np.float64)


def _greedy(shares: NDArray[np.float64], n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal large sites first, each to the fold that it suits best; the noise makes every start another."""
    size = shares.sum(axis=1) * rng.uniform(0.5, 1.5, len(shares))
    fold_of = np.zeros(len(shares), np.int64)
    held = np.zeros((n_folds, shares.shape[1]))
    for site in np.argsort(-size, kind="stable"):
        gain = _cost(held + shares[site], n_folds) - _cost(held, n_folds)
        fold_of[site] = rng.choice(np.flatnonzero(gain <= gain.min() + 1e-12))
        held[fold_of[site]] += shares[site]
    return fold_of


def _improve(shares: NDArray[np.float64], fold_of: NDArray[np.int64], n_folds: int) -> float:
    """Move or swap sites, the best change first, until none helps. Changes `fold_of`; returns its cost."""
    n_sites = len(shares)
    while True:
        held = _held(shares, fold_of, n_folds)
        cost = _cost(held)
        # Moves: (S, F) change of the fold left and of the fold entered.
        left = _cost(held[fold_of] - shares, n_folds) - cost[fold_of]
        entered = _cost(held[None] + shares[:, None], n_folds) - cost[None]
        moves = left[:, None] + entered
        moves[np.arange(n_sites), fold_of] = 0.0
        # Swaps: (S, S) change where site i takes the place of site j and j that of i.
        difference = shares[None] - shares[:, None]
        given = _cost(held[fold_of][:, None] + difference, n_folds) - cost[fold_of][:, None]
        swaps = given + given.T
        swaps[fold_of[:, None] == fold_of[None]] = 0.0
        if min(moves.min(), swaps.min()) > -1e-12:
            return float(cost.sum())
        if moves.min() <= swaps.min():
            site, fold = np.unravel_index(np.argmin(moves), moves.shape)
            fold_of[site] = fold
        else:
            one, other = np.unravel_index(np.argmin(swaps), swaps.shape)
            fold_of[one], fold_of[other] = fold_of[other], fold_of[one]

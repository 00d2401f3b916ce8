"""AUC within folds and models, and its intervals over patients and trainings.

Scores of different models have no common scale: a pair of slides counts only where one model has scored both, that is
within a fold and within one training (head's seed, encoder's seed). An AUC is the share of such pairs that are in order,
over all folds and trainings. Its interval draws anew what would be other in a repetition: inside each fold the patients,
with all of their slides, and the trainings.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.model.calibration import called_class
from training.metrics import Interval

Array = NDArray[np.float64]

_LEAST_DEFINED = 0.1
"""Share of the resamples that must have pairs of every class."""


class FoldScores(NamedTuple):
    """What the trainings of one method say of a fold's test slides: E encoders, S heads on each, N slides, C classes.

    Attributes
    ----------
    labels : (N,) int array
    patients : tuple of str
    probabilities : (E, S, N, C) array
        E is 1 where no trained encoder takes part, S is 1 where nothing of a method depends on a seed.
    called : (E, S, N) int array, optional
        The classes that are called; None where only ranks matter.
    """

    labels: NDArray[np.int64]
    patients: tuple[str, ...]
    probabilities: Array
    called: NDArray[np.int64] | None = None

    @property
    def calls(self) -> NDArray[np.int64]:
        """The classes that are called, the most probable ones where that wasn't said; (E, S, N)."""
        return called_class(self.probabilities, None) if self.called is None else self.called


class Resampled(NamedTuple):
    """A number, and what it was on each resample; NaN where it isn't defined."""

    value: float
    draws: Array

    def minus(self, other: Resampled) -> Resampled:
        """Return the paired difference to a number of the same resamples."""
        return Resampled(self.value - other.value, self.draws - other.draws)

    def interval(self) -> Interval:
        """Return the 95 % percentile interval.

        Raises
        ------
        ValueError
            Where the number isn't defined on most resamples.
        """
        known = self.draws[np.isfinite(self.draws)]
        if len(known) < max(2, _LEAST_DEFINED * len(self.draws)):
            raise ValueError("the metric is defined on too few resamples for an interval")
        low, high = np.percentile(known, [2.5, 97.5])
        return Interval(self.value, float(low), float(high))


def within_fold_auc(folds: Sequence[FoldScores]) -> float:
    """Return the share of pairs in order, one-vs-rest macro for more than two classes.

    Raises
    ------
    ValueError
        Where no fold has a pair of some class: an AUC isn't defined then.
    """
    values = class_aucs(folds)
    if np.isnan(values).any():
        absent = int(np.flatnonzero(np.isnan(values))[0])
        raise ValueError(f"no AUC: no fold has slides with and without class {absent}")
    return float(values.mean())


def class_aucs(folds: Sequence[FoldScores]) -> Array:
    """Return the AUC of each class against the rest, (C,); NaN where no fold has a pair. With two classes they are equal."""
    in_order, pairs = _pairs_of_all(folds, _once(folds))
    values: Array = _share(in_order, pairs)[:, 0]
    return np.repeat(values, 2) if len(values) == 1 else values


def resample_aucs(
    methods: Mapping[str, Sequence[FoldScores]],
    *,
    n_resamples: int,
    seed: int,
    shared: Collection[str] = (),
) -> dict[str, Resampled]:
    """Return the AUC of every method on the same resamples, so that differences are paired.

    Parameters
    ----------
    methods : mapping
        Method -> its folds, the same folds with the same slides for each. Methods with as many heads, or encoders, have
        them of the same seeds in the same order.
    n_resamples : int
    seed : int
    shared : collection of str
        Methods whose encoder of one seed serves all folds: its draw is common to them then.

    Raises
    ------
    ValueError
        Where an AUC isn't defined at all.
    """
    by_class = resample_class_aucs(methods, n_resamples=n_resamples, seed=seed, shared=shared)
    return {
        method: Resampled(within_fold_auc(folds), by_class[method].mean(axis=0))
        for method, folds in methods.items()
    }


def resample_class_aucs(
    methods: Mapping[str, Sequence[FoldScores]],
    *,
    n_resamples: int,
    seed: int,
    shared: Collection[str] = (),
) -> dict[str, Array]:
    """Return what `resample_aucs` takes the mean of: each class against the rest, (C, B); of two classes one, (1, B).

    NaN where a resample has no pair.
    """
    draws = _draw(methods, n_resamples, np.random.default_rng(seed), shared)
    return {
        method: _share(*_pairs_of_all(folds, draws, shared=method in shared))
        for method, folds in methods.items()
    }


def resample_dealt_anew(
    methods: Mapping[str, Sequence[Sequence[FoldScores]]],
    *,
    n_resamples: int,
    seed: int,
    shared: Collection[str] = (),
) -> dict[str, Resampled]:
    """Return the AUC of every method where each seed has dealt the slides into folds of its own.

    A patient is in other folds for other seeds, so that patients are drawn over all folds together: a drawn one comes
    with what all seeds say of its slides. Seeds are drawn as well, and in each the encoders and heads that it has.

    Parameters
    ----------
    methods : mapping
        Method -> the folds of each seed, the same folds for each method.
    n_resamples : int
    seed : int
    shared : collection of str
        Methods whose encoder serves all folds of a seed: its draw is common to them then.

    Raises
    ------
    ValueError
        Where an AUC isn't defined at all.
    """
    first = next(iter(methods.values()))
    names = sorted({name for folds in first for fold in folds for name in fold.patients})
    rng = np.random.default_rng(seed)
    patients = _weights(len(names), n_resamples, rng) * len(names)
    seeds = _weights(len(first), n_resamples, rng)
    trainings = [
        _draw({name: by_seed[place] for name, by_seed in methods.items()}, n_resamples, rng, shared)
        for place in range(len(first))
    ]
    found = {}
    for method, by_seed in methods.items():
        all_folds = [fold for folds in by_seed for fold in folds]
        sums: list[tuple[Array, Array]] = []
        for place, folds in enumerate(by_seed):
            draws = [
                drawn._replace(slides=patients[:, np.searchsorted(names, fold.patients)])
                for fold, drawn in zip(folds, trainings[place], strict=True)
            ]
            in_order, pairs = _pairs_of_all(folds, draws, shared=method in shared)
            sums.append((seeds[:, place] * in_order, seeds[:, place] * pairs))
        in_order, pairs = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
        found[method] = Resampled(within_fold_auc(all_folds), _share(in_order, pairs).mean(axis=0))
    return found


class _Draws(NamedTuple):
    """Weights of a fold's slides (B, N), and of heads and encoders by their number: (B, S), (B, E), rows sum to 1."""

    slides: Array
    heads: dict[int, Array]
    encoders: dict[int, Array]
    shared_encoders: dict[int, Array]
    """The same ones in every fold."""


def _once(folds: Sequence[FoldScores]) -> list[_Draws]:
    """Every slide and every training once."""
    return [
        _Draws(
            np.ones((1, len(fold.labels))),
            {n: np.full((1, n), 1 / n) for n in (fold.probabilities.shape[1],)},
            {n: np.full((1, n), 1 / n) for n in (fold.probabilities.shape[0],)},
            {},
        )
        for fold in folds
    ]


def _draw(
    methods: Mapping[str, Sequence[FoldScores]],
    n_resamples: int,
    rng: np.random.Generator,
    shared: Collection[str],
) -> list[_Draws]:
    first = next(iter(methods.values()))
    n_heads = sorted({fold.probabilities.shape[1] for folds in methods.values() for fold in folds})

    def n_encoders(*, of_shared: bool) -> list[int]:
        of = (folds for method, folds in methods.items() if (method in shared) is of_shared)
        return sorted({fold.probabilities.shape[0] for folds in of for fold in folds})

    common = {n: _weights(n, n_resamples, rng) for n in n_encoders(of_shared=True)}
    draws = []
    for fold in first:
        names = sorted(set(fold.patients))
        of_slide = np.searchsorted(names, fold.patients)
        patients = _weights(len(names), n_resamples, rng) * len(names)
        draws.append(
            _Draws(
                patients[:, of_slide],
                {n: _weights(n, n_resamples, rng) for n in n_heads},
                {n: _weights(n, n_resamples, rng) for n in n_encoders(of_shared=False)},
                common,
            )
        )
    return draws


def _weights(n: int, n_resamples: int, rng: np.random.Generator) -> Array:
    """Return how often each of n is among n that are drawn with replacement, over n; (B, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) / n


def _pairs_of_all(
    folds: Sequence[FoldScores], draws: Sequence[_Draws], *, shared: bool = False
) -> tuple[Array, Array]:
    """Return the weight of pairs in order, and of all pairs, over folds; (classes, B) each."""
    n_classes = folds[0].probabilities.shape[-1]
    classes = [1] if n_classes == 2 else list(range(n_classes))
    n_resamples = len(draws[0].slides)
    in_order, pairs = np.zeros((2, len(classes), n_resamples))
    for fold, drawn in zip(folds, draws, strict=True):
        n_encoders, n_heads = fold.probabilities.shape[:2]
        encoders = (drawn.shared_encoders if shared else drawn.encoders)[n_encoders]
        heads = drawn.heads[n_heads]
        for row, one in enumerate(classes):
            positive = fold.labels == one
            pairs[row] += drawn.slides[:, positive].sum(axis=1) * drawn.slides[:, ~positive].sum(axis=1)
            for encoder in range(n_encoders):
                for head in range(n_heads):
                    scores = fold.probabilities[encoder, head, :, one]
                    weight = encoders[:, encoder] * heads[:, head]
                    in_order[row] += weight * _in_order(positive, scores, drawn.slides)
    return in_order, pairs


def _in_order(positive: NDArray[np.bool_], scores: Array, weights: Array) -> Array:
    """Return the weight of pairs whose positive slide scores higher, ties half; (B,)."""
    if positive.all() or not positive.any():
        return np.zeros(len(weights))
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-math.inf))
    drawn = weights[:, order]
    above = np.add.reduceat(drawn * positive[order], starts, axis=1)  # (B, distinct scores)
    below = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    total: Array = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    return total


def _share(in_order: Array, pairs: Array) -> Array:
    return np.divide(in_order, pairs, out=np.full_like(pairs, math.nan), where=pairs > 0)

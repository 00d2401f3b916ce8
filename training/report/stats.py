"""The points of the report's plots: ROC curves, reliability, confusion. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_curve

from training.metrics import wilson

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

N_BINS = 10
"""As in `training.metrics.expected_calibration_error`."""


class Roc(NamedTuple):
    """Points of an ROC curve from (0, 0) to (1, 1); slides with one score make one step."""

    false_positive: Array
    true_positive: Array

    @property
    def area(self) -> float:
        """Under the curve, by trapezoids: the AUC."""
        return float(np.trapezoid(self.true_positive, self.false_positive))


class Bin(NamedTuple):
    """Slides whose confidence lies in [low, high); low and high of the 95 % Wilson interval of the accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def binary_roc(positive: NDArray[np.bool_], scores: Array) -> Roc | None:
    """Return the curve of one class against the rest; None where either is absent.

    Parameters
    ----------
    positive : (N,) bool array
    scores : (N,) array
    """
    if positive.all() or not positive.any():
        return None
    false_positive, true_positive, _ = roc_curve(positive, scores, drop_intermediate=False)
    return Roc(false_positive, true_positive)


def class_rocs(labels: Labels, probabilities: Array) -> list[Roc | None]:
    """Return a one-vs-rest curve a class; for two classes only the second's, of which the first's is the mirror."""
    n_classes = probabilities.shape[1]
    wanted = [1] if n_classes == 2 else range(n_classes)
    return [binary_roc(labels == index, probabilities[:, index]) for index in wanted]


def fold_mean_roc(parts: Sequence[tuple[NDArray[np.bool_], Array]]) -> Roc | None:
    """Return the mean of the folds' curves, each weighted by its pairs: its area is the share of pairs in order.

    Parameters
    ----------
    parts : sequence of ((N,) bool array, (N,) array)
        Of each fold: which slides are of the class, and their scores. A fold without a pair takes no part.
    """
    found = [(binary_roc(positive, scores), positive) for positive, scores in parts]
    known = [
        (curve, int(positive.sum() * (~positive).sum())) for curve, positive in found if curve is not None
    ]
    if not known:
        return None
    return _mean_roc([curve for curve, _ in known], [float(pairs) for _, pairs in known])


def macro_roc(curves: list[Roc | None]) -> Roc | None:
    """Return the mean of curves at each false positive rate; its area is the mean of theirs. None if one is absent."""
    known = [curve for curve in curves if curve is not None]
    if not known or len(known) < len(curves):
        return None
    return _mean_roc(known, [1.0] * len(known))


def _mean_roc(known: list[Roc], weights: list[float]) -> Roc:
    grid = np.unique(np.concatenate([curve.false_positive for curve in known]))
    # A curve rises upright where slides of the class come in a row: both ends of such a step are kept.
    below = np.average([_at(curve, grid, upper=False) for curve in known], axis=0, weights=weights)
    above = np.average([_at(curve, grid, upper=True) for curve in known], axis=0, weights=weights)
    rates = np.stack([below, above], axis=1).ravel()
    return Roc(np.repeat(grid, 2), rates)


def _at(curve: Roc, grid: Array, *, upper: bool) -> Array:
    places, first = np.unique(curve.false_positive, return_index=True)
    last = np.append(first[1:], len(curve.false_positive)) - 1
    low, high = curve.true_positive[first], curve.true_positive[last]
    right = np.searchsorted(places, grid)
    left = np.maximum(right - 1, 0)
    width = np.where(places[right] > places[left], places[right] - places[left], 1.0)
    between = high[left] + (low[right] - high[left]) * (grid - places[left]) / width
    at_place = high[right] if upper else low[right]
    return np.asarray(np.where(places[right] == grid, at_place, between), np.float64)


def reliability(labels: Labels, probabilities: Array, *, n_bins: int = N_BINS) -> list[Bin]:
    """Count confidence (the largest probability) against accuracy in equal-width bins; empty ones are left out.

    Parameters
    ----------
    labels : (N,) int array
    probabilities : (N, C) array
    n_bins : int
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    bins = []
    for index in range(n_bins):
        inside = place == index
        n = int(inside.sum())
        if n:
            low, high = wilson(int(correct[inside].sum()) / n, n)
            bins.append(
                Bin(
                    index / n_bins,
                    (index + 1) / n_bins,
                    n,
                    float(confidence[inside].mean()),
                    float(correct[inside].mean()),
                    low,
                    high,
                )
            )
    return bins


def confusion(labels: Labels, called: Labels, n_classes: int) -> NDArray[np.int64]:
    """Return (C, C) counts: row is the label, column the class that is called."""
    return np.asarray(confusion_matrix(labels, called, labels=list(range(n_classes))), np.int64)


def best_epoch(curve: dict[str, Array]) -> int | None:
    """Return the row of the epoch whose weights were kept; None where the curve can't say.

    Curves of earlier versions don't name it: there it has the best validation AUC, of equal ones the smaller loss.
    """
    if "kept" in curve and curve["kept"].any():
        return int(curve["kept"].argmax())
    if "val_loss" not in curve:
        return None
    loss = curve["val_loss"]
    auc = np.round(curve.get("val_auc", np.zeros(len(loss))), 6)
    return int(min(range(len(loss)), key=lambda row: (-auc[row], loss[row])))


def mean_sd(values: list[float]) -> tuple[float, float | None]:
    """Return the mean, and the sample's standard deviation where there are two values or more."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None

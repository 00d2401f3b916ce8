"""Slide-level metrics, calibration and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


class Interval(NamedTuple):
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def auc(labels: Labels, probabilities: Array) -> float:
    """Return the area under the ROC curve, one-vs-rest macro for more than two classes.

    Parameters
    ----------
    labels : (N,) int array
    probabilities : (N, C) array

    Raises
    ------
    ValueError
        Where a class is absent: an AUC isn't defined then, and 0.0 would be a lie.
    """
    n_classes = probabilities.shape[1]
    absent = sorted(set(range(n_classes)) - set(labels.tolist()))
    if absent:
        raise ValueError(f"no AUC: class {absent[0]} is absent from the {len(labels)} slides")
    if n_classes == 2:
        return _binary_auc(labels == 1, probabilities[:, 1])
    return float(
        np.mean([_binary_auc(labels == index, probabilities[:, index]) for index in range(n_classes)])
    )


def _binary_auc(positive: NDArray[np.bool_], scores: Array) -> float:
    # By ranks (Mann-Whitney U, ties count half): scikit-learn's takes ten times as long, and the bootstrap asks
    # thousands of times.
    n_positive = int(positive.sum())
    above = rankdata(scores)[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * (len(positive) - n_positive)))


def brier(labels: Labels, probabilities: Array) -> float:
    """Return the mean squared distance of the probabilities from the one-hot labels, summed over classes."""
    return float(np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1).mean())


def expected_calibration_error(labels: Labels, probabilities: Array, *, n_bins: int = 10) -> float:
    """Return the gap between confidence and accuracy, averaged over equal-width bins by their share of slides."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [
        abs(confidence[bins == index].mean() - correct[bins == index].mean()) * (bins == index).mean()
        for index in range(n_bins)
        if (bins == index).any()
    ]
    return float(sum(gaps))


def slide_metrics(labels: Labels, probabilities: Array, called: Labels) -> dict[str, float]:
    """Return all metrics of one model, by name."""
    return {"auc": auc(labels, probabilities)} | call_metrics(labels, probabilities, called)


def call_metrics(labels: Labels, probabilities: Array, called: Labels) -> dict[str, float]:
    """Return the metrics that look at each slide by itself, so that slides of several models may stand together.

    Parameters
    ----------
    labels : (N,) int array
    probabilities : (N, C) array
    called : (N,) int array
        The classes that are called.
    """
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, called)),
        "accuracy": float(accuracy_score(labels, called)),
        "weighted_f1": float(f1_score(labels, called, average="weighted")),
        "brier": brier(labels, probabilities),
        "ece": expected_calibration_error(labels, probabilities),
    }


def bootstrap_over_patients(
    metric: Callable[[NDArray[np.int64]], float],
    patients: list[str],
    *,
    n_resamples: int,
    rng: np.random.Generator,
) -> Interval:
    """Return the 95 % percentile interval of a metric, resampling patients with all of their slides.

    Parameters
    ----------
    metric : callable
        Takes the slides' indices (with repeats); raises ValueError where it isn't defined on them, and
        such a resample is drawn again.
    patients : list of str
        Patient of each slide.
    n_resamples : int
    rng : numpy Generator
    """
    groups: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        groups.setdefault(patient, []).append(index)
    slides_of = [np.asarray(group, np.int64) for group in groups.values()]
    values: list[float] = []
    for _ in range(n_resamples * 10):
        drawn = np.concatenate(
            [slides_of[index] for index in rng.integers(len(slides_of), size=len(slides_of))]
        )
        try:
            values.append(metric(drawn))
        except ValueError:
            continue
        if len(values) == n_resamples:
            break
    if len(values) < n_resamples:
        raise ValueError("the metric is defined on too few resamples for an interval")
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(metric(np.arange(len(patients))), float(low), float(high))


class Share(NamedTuple):
    """A share with its 95 % interval, counted by patient."""

    value: float
    low: float
    high: float
    n_slides: int
    n_patients: int


def share_of_patients(holds: NDArray[np.bool_], patients: Sequence[str]) -> Share:
    """Return the share of slides of which something holds, each patient with the same say, and its Wilson interval.

    The interval's n is the number of patients: slides of one patient are no independent trials. It has a width also where
    all or none hold, which a bootstrap's hasn't.

    Parameters
    ----------
    holds : (N,) bool array
        N is 1 or more.
    patients : sequence of N str
    """
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    value = float((np.bincount(place, weights=holds) / np.bincount(place)).mean())
    return Share(value, *wilson(value, len(names)), len(holds), len(names))


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % score interval of a share of n."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would leave a hair.
    return (centre - half if share > 0 else 0.0), (centre + half if share < 1 else 1.0)

"""Slide-level metrics, calibration and intervals."""

from __future__ import annotations

from collections.abc import Callable
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


def slide_metrics(labels: Labels, probabilities: Array) -> dict[str, float]:
    """Return all metrics of one model, by name."""
    return {"auc": auc(labels, probabilities)} | call_metrics(labels, probabilities)


def call_metrics(labels: Labels, probabilities: Array) -> dict[str, float]:
    """Return the metrics that look at each slide by itself, so that slides of several models may stand together."""
    predicted = probabilities.argmax(axis=1)
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "accuracy": float(accuracy_score(labels, predicted)),
        "weighted_f1": float(f1_score(labels, predicted, average="weighted")),
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


def fit_temperature(bag_logits: Array, labels: Labels) -> float:
    """Return the temperature in [1, 10] with the least negative log-likelihood on validation slides.

    Never below 1: a small validation set that the model separates perfectly would ask for T -> 0, which
    is certainty that nobody earned.

    Parameters
    ----------
    bag_logits : (N, C) array
    labels : (N,) int array
    """
    candidates = np.geomspace(1.0, 10.0, 101)

    def loss(temperature: float) -> float:
        scaled = bag_logits / temperature
        log_sum = np.logaddexp.reduce(scaled, axis=1)
        return float((log_sum - scaled[np.arange(len(labels)), labels]).mean())

    return float(min(candidates, key=loss))

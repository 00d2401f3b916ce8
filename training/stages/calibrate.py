"""Step 6: what validation slides say of a head's numbers: how far to scale them, and from where on a class is called."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.optimize import minimize

from napari_lrmil.errors import ConfigError
from napari_lrmil.evidence import softmax
from napari_lrmil.model.calibration import OperatingPoint, VectorScaling, called_class
from napari_lrmil.model.mil import MILModel, MILOutput
from training.data.bags import SlideBag
from training.section import Section

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

_LARGEST_TEMPERATURE, _LARGEST_BIAS = 10.0, 20.0
_ALIKE = 0.1
"""Weight of the penalty on differences between the classes' 1 / temperature: they change the order of slides."""
_LEAST_THRESHOLD = 1e-6
_MOST_ROUNDS = 50


class CalibrateSection(Section):
    """What validation slides decide of a trained head: the point at which it calls a class."""

    rule: Literal["youden", "sensitivity", "specificity"] = Field(
        default="youden",
        description="of the thresholds, by patient: youden takes the largest sum of the classes' sensitivities; of two classes "
        "a wanted sensitivity or specificity can be given instead",
    )
    wanted: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="the sensitivity or specificity that validation slides are to reach",
    )
    positive: str | None = Field(
        default=None,
        description="of two classes, the one that sensitivity and specificity speak of; default the last by alphabet",
    )

    @model_validator(mode="after")
    def _complete(self) -> CalibrateSection:
        if (self.wanted is None) != (self.rule == "youden"):
            raise ValueError(
                f"rule {self.rule!r} "
                + ("takes no 'wanted'" if self.rule == "youden" else "needs 'wanted', as 0.95")
            )
        return self

    def positive_class(self, class_names: Sequence[str]) -> str | None:
        """Return the positive class of two; None of more.

        Raises
        ------
        ConfigError
            Where the section doesn't suit these classes.
        """
        named = ", ".join(class_names)
        if len(class_names) > 2 and (self.rule != "youden" or self.positive is not None):
            raise ConfigError(
                f"calibrate.rule {self.rule!r} and calibrate.positive are for two classes; there are {len(class_names)} "
                f"({named}): take calibrate.rule 'youden' without a positive class"
            )
        if self.positive is not None and self.positive not in class_names:
            raise ConfigError(f"calibrate.positive {self.positive!r} is none of the classes: {named}")
        return None if len(class_names) > 2 else self.positive or class_names[1]


class Calibration(BaseModel):
    """What a head's numbers go through before they are a label."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scaling: VectorScaling
    operating_point: OperatingPoint

    def probabilities(self, bag_logits: Array) -> Array:
        """Return probabilities (..., C) of bag logits."""
        return softmax(self.scaling.scaled(bag_logits))

    def called(self, probabilities: Array) -> Labels:
        """Return the class that is called of (..., C) probabilities."""
        return called_class(probabilities, self.operating_point.thresholds)


def served_outputs(model: MILModel, bags: Iterable[SlideBag]) -> Iterator[MILOutput]:
    """Yield what a head says bag by bag, in the precision in which a bundle serves it: float64, on the CPU."""
    exact = copy.deepcopy(model).cpu().double().eval()
    with torch.inference_mode():
        for bag in bags:
            yield exact(bag.on("cpu", torch.float64))


def fit_calibration(
    bag_logits: Array,
    labels: Labels,
    patients: Sequence[str],
    class_names: Sequence[str],
    section: CalibrateSection,
) -> Calibration:
    """Return scaling and operating point from N validation slides; each patient has the same say.

    Parameters
    ----------
    bag_logits : (N, C) array
    labels : (N,) int array
    patients : sequence of N str
    class_names : sequence of C str
    section : CalibrateSection
    """
    scaling = fit_scaling(bag_logits, labels, patient_weights(patients))
    probabilities = softmax(scaling.scaled(bag_logits))
    return Calibration(
        scaling=scaling, operating_point=fit_point(probabilities, labels, patients, class_names, section)
    )


def patient_weights(patients: Sequence[str]) -> Array:
    """Return weights (N,) of slides that sum to 1 for each patient."""
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    return 1 / np.bincount(place, minlength=len(names))[place]


def fit_scaling(bag_logits: Array, labels: Labels, weights: Array) -> VectorScaling:
    """Return the temperatures in [1, 10] and biases with the least negative log-likelihood.

    Temperatures are never below 1: a small validation set that the head separates perfectly would ask for T -> 0, which is
    certainty that nobody earned. They differ between classes only where much speaks for it.

    Parameters
    ----------
    bag_logits : (N, C) array
    labels : (N,) int array
        Every class is among them.
    weights : (N,) array
    """
    n_classes = bag_logits.shape[1]
    wanted = np.eye(n_classes)[labels]
    share = (weights / weights.sum())[:, None]

    def loss(values: Array) -> tuple[float, Array]:
        slopes, biases = values[:n_classes], values[n_classes:]
        scaled = bag_logits * slopes + biases
        found = softmax(scaled)
        top = scaled.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(scaled - top).sum(axis=1))
        apart = slopes - slopes.mean()
        value = (share[:, 0] * (log_sum - (scaled * wanted).sum(axis=1))).sum()
        off = share * (found - wanted)
        slope_gradient = (off * bag_logits).sum(axis=0) + 2 * _ALIKE * apart
        bias_gradient = (
            off.sum(axis=0) + 2e-6 * biases
        )  # all biases may rise together: the smallest are taken
        total = value + _ALIKE * np.square(apart).sum() + 1e-6 * np.square(biases).sum()
        return float(total), np.concatenate([slope_gradient, bias_gradient])

    bounds = [(1 / _LARGEST_TEMPERATURE, 1.0)] * n_classes + [(-_LARGEST_BIAS, _LARGEST_BIAS)] * n_classes
    start = np.concatenate([np.ones(n_classes), np.zeros(n_classes)])
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    biases = found[n_classes:] - found[n_classes:].mean()
    return VectorScaling(temperatures=tuple((1 / found[:n_classes]).tolist()), biases=tuple(biases.tolist()))


def fit_point(
    probabilities: Array,
    labels: Labels,
    patients: Sequence[str],
    class_names: Sequence[str],
    section: CalibrateSection,
) -> OperatingPoint:
    """Return the thresholds that the section asks for; parameters as of `fit_calibration`."""
    weights = patient_weights(patients)
    positive = section.positive_class(class_names)
    if section.rule == "youden":
        thresholds = _youden(np.log(np.maximum(probabilities, 1e-300)), labels, weights)
    else:
        assert positive is not None
        assert section.wanted is not None
        place = class_names.index(positive)
        at = _wanted(
            probabilities[:, place],
            labels == place,
            weights,
            section.wanted,
            sensitivity=section.rule == "sensitivity",
        )
        thresholds = np.array([at, 1 - at] if place == 0 else [1 - at, at])
    return OperatingPoint(
        rule=section.rule, thresholds=tuple(thresholds.tolist()), positive=positive, wanted=section.wanted
    )


def _youden(log_p: Array, labels: Labels, weights: Array) -> Array:
    """Raise the mean of the classes' sensitivities, one class's threshold after the other, until none helps."""
    n_classes = log_p.shape[1]
    log_t = np.full(n_classes, -np.log(n_classes))
    # Of two classes one threshold says all.
    turns = [1] if n_classes == 2 else list(range(n_classes))

    def mean_sensitivity(log_t: Array) -> float:
        right = (log_p - log_t).argmax(axis=1) == labels
        shares = [
            np.average(right[labels == one], weights=weights[labels == one]) for one in range(n_classes)
        ]
        return round(float(np.mean(shares)), 12)

    best = mean_sensitivity(log_t)
    for _ in range(_MOST_ROUNDS):
        before = best
        for one in turns:
            others = np.delete(log_p - log_t, one, axis=1).max(axis=1)
            for value in _between(log_p[:, one] - others, nearest_to=log_t[one]):
                tried = log_t.copy()
                tried[one] = value
                if (reached := mean_sensitivity(tried)) > best:
                    best, log_t = reached, tried
        if best == before:
            break
    thresholds = np.maximum(softmax(log_t), _LEAST_THRESHOLD)
    found: Array = thresholds / thresholds.sum()
    return found


def _wanted(
    scores: Array, positive: NDArray[np.bool_], weights: Array, wanted: float, *, sensitivity: bool
) -> float:
    """Return the threshold of the positive class that keeps the wanted share with the least loss on the other side."""
    odds = np.log(np.maximum(scores, 1e-300)) - np.log(np.maximum(1 - scores, 1e-300))
    part = positive if sensitivity else ~positive
    kept = []
    for value in _between(odds, nearest_to=0.0):
        called = odds > value
        right = called[part] if sensitivity else ~called[part]
        if np.average(right, weights=weights[part]) >= wanted - 1e-12:
            kept.append(value)
    at = 1 / (1 + np.exp(-(max(kept) if sensitivity else min(kept))))
    return float(np.clip(at, _LEAST_THRESHOLD, 1 - _LEAST_THRESHOLD))


def _between(scores: Array, *, nearest_to: float) -> list[float]:
    """Return a value between any two neighbours, one below all and one above all; the nearest to a value come first."""
    known = np.unique(scores)
    middles = [known[0] - 1, *((known[1:] + known[:-1]) / 2), known[-1] + 1]
    return sorted(map(float, middles), key=lambda value: abs(value - nearest_to))

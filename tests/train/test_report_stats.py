"""The points of the report's plots, by hand and against the metrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.metrics import auc, expected_calibration_error
from training.report.stats import (
    best_epoch,
    binary_roc,
    class_rocs,
    confusion,
    macro_roc,
    mean_sd,
    reliability,
    wilson,
)


def test_roc_by_hand() -> None:
    # From the highest score down: right, wrong and right tied, wrong.
    curve = binary_roc(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))
    assert curve is not None
    assert curve.false_positive.tolist() == [0, 0, 0.5, 1]
    assert curve.true_positive.tolist() == [0, 0.5, 1, 1]
    assert curve.area == pytest.approx(0.875)
    assert binary_roc(np.array([True, True]), np.array([0.1, 0.2])) is None


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n_classes = draw(st.integers(2, 4))
    extra = draw(st.lists(st.integers(0, n_classes - 1), max_size=12))
    labels = np.array([*range(n_classes), *extra], np.int64)
    # Coarse scores, so that ties are common.
    flat = draw(
        st.lists(st.integers(1, 5), min_size=len(labels) * n_classes, max_size=len(labels) * n_classes)
    )
    scores = np.array(flat, np.float64).reshape(len(labels), n_classes)
    return labels, scores / scores.sum(axis=1, keepdims=True)


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_area_is_the_auc(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    curve = macro_roc(class_rocs(labels, probabilities))
    assert curve is not None
    assert curve.area == pytest.approx(auc(labels, probabilities), abs=1e-9)
    assert (np.diff(curve.false_positive) >= 0).all()
    assert (np.diff(curve.true_positive) >= -1e-12).all()
    ends = [curve.false_positive[[0, -1]].tolist(), curve.true_positive[[0, -1]].tolist()]
    assert ends == [[0, 1], pytest.approx([0, 1])] or curve.true_positive[0] == 0


@settings(max_examples=80, deadline=None)
@given(predictions())
def test_bins_give_the_ece(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    bins = reliability(labels, probabilities)
    ece = sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / len(labels)
    assert ece == pytest.approx(expected_calibration_error(labels, probabilities), abs=1e-9)
    assert sum(one.n for one in bins) == len(labels)
    assert all(one.low <= one.confidence <= one.high + 1e-9 for one in bins)
    assert all(
        one.accuracy_low <= one.accuracy + 1e-9 and one.accuracy <= one.accuracy_high + 1e-9 for one in bins
    )


def test_macro_of_two_steps_by_hand() -> None:
    # The first class is ranked perfectly, the second exactly the wrong way round.
    labels = np.array([0, 1, 2, 2])
    first = binary_roc(labels == 0, np.array([1.0, 0.1, 0.2, 0.3]))
    second = binary_roc(labels == 1, np.array([1.0, 0.1, 0.5, 0.6]))
    curve = macro_roc([first, second])
    assert curve is not None
    assert curve.area == pytest.approx(0.5)
    at_half = curve.true_positive[np.isclose(curve.false_positive, 1 / 3)]
    assert at_half.tolist() == [0.5, 0.5]
    assert macro_roc([first, None]) is None


def test_reliability_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.92, 0.08], [0.4, 0.6], [1.0, 0.0]])
    bins = reliability(np.array([0, 1, 1, 0]), probabilities)
    assert [(one.low, one.high, one.n) for one in bins] == [(0.6, 0.7, 1), (0.9, 1.0, 3)]
    assert bins[1].confidence == pytest.approx((0.95 + 0.92 + 1.0) / 3)
    assert bins[1].accuracy == pytest.approx(2 / 3)


def test_wilson() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 5)[0] == 0
    assert wilson(1.0, 5)[1] == 1


def test_confusion_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    called = probabilities.argmax(axis=1)
    assert confusion(np.array([0, 1, 1, 2]), called, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_best_epoch_is_the_one_that_training_keeps() -> None:
    curve = {"val_auc": np.array([0.5, 0.8, 0.8, 0.8]), "val_loss": np.array([0.1, 0.7, 0.6, 0.6])}
    assert best_epoch(curve) == 2
    assert best_epoch({"val_loss": np.array([3.0, 1.0, 2.0])}) == 1
    assert best_epoch({"train_loss": np.array([1.0])}) is None


def test_mean_sd() -> None:
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_sd([1.0, float("nan")]) == (1.0, None)
    assert np.isnan(mean_sd([])[0])

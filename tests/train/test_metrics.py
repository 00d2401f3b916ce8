"""Metrics and intervals against hand-computed values and what an interval promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from training.metrics import (
    auc,
    bootstrap_over_patients,
    brier,
    expected_calibration_error,
    share_of_patients,
    slide_metrics,
)


def two(positive: list[float]) -> np.ndarray:
    p = np.asarray(positive, float)
    return np.stack([1 - p, p], axis=1)


def test_auc_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    # Of the four pairs (0.1, 0.35), (0.1, 0.8), (0.4, 0.35), (0.4, 0.8), three are in order.
    assert auc(labels, two([0.1, 0.4, 0.35, 0.8])) == pytest.approx(0.75)
    assert auc(labels, two([0.5, 0.5, 0.5, 0.5])) == pytest.approx(0.5)  # ties count half
    assert auc(1 - labels, two([0.1, 0.4, 0.35, 0.8])) == pytest.approx(0.25)


def test_auc_of_three_classes_is_the_mean_of_one_against_the_rest() -> None:
    labels = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    # Class 0 always above: 1. Class 1: 0.3 against 0.1, 0.5, 0.1: 2/3. Class 2: (0.3, 0.8) against (0.1, 0.4): 3/4.
    assert auc(labels, probabilities) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_auc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for n_classes in (2, 3, 5):
        labels = rng.integers(n_classes, size=200)
        probabilities = rng.random((200, n_classes)).round(1) + 0.01  # with ties
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        if n_classes == 2:
            expected = roc_auc_score(labels, probabilities[:, 1])
        else:
            expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert auc(labels, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_auc_without_a_class_is_an_error_not_zero(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"no AUC: class . is absent from the 3 slides"):
        auc(np.array(labels), two([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="class 2 is absent"):
        auc(np.array([0, 1, 1]), np.full((3, 3), 1 / 3))


def test_brier_by_hand() -> None:
    assert brier(np.array([1, 0]), two([0.7, 0.4])) == pytest.approx((2 * 0.09 + 2 * 0.16) / 2)
    assert brier(np.array([1, 0]), two([1, 0])) == 0
    assert brier(np.array([1, 0]), two([0, 1])) == 2


def test_calibration_error_by_hand() -> None:
    # Two bins: confidence 0.95 right once of twice (gap 0.45, half the slides), 0.65 always right (gap 0.35).
    probabilities = two([0.95, 0.95, 0.65, 0.35])
    labels = np.array([1, 0, 1, 0])
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    assert (
        expected_calibration_error(np.array([1, 0]), two([1.0, 0.0])) == 0
    )  # certainty falls in the last bin


def test_all_metrics_of_the_protocol() -> None:
    labels = np.array([0, 0, 0, 1])
    found = slide_metrics(labels, two([0.2, 0.6, 0.3, 0.9]), np.array([0, 1, 0, 1]))
    assert set(found) == {"auc", "balanced_accuracy", "accuracy", "weighted_f1", "brier", "ece"}
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    f1 = [
        2 * 2 / (2 * 2 + 0 + 1),
        2 * 1 / (2 * 1 + 1 + 0),
    ]  # of class 0: 2 hits, 1 missed; of class 1: 1, 1 false
    assert found["weighted_f1"] == pytest.approx(0.75 * f1[0] + 0.25 * f1[1])


def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 2
    return labels, two(list(1 / (1 + np.exp(-(rng.normal(size=n) + labels)))))


def interval_of(labels: np.ndarray, p: np.ndarray, patients: list[str], n: int = 400, seed: int = 0):  # type: ignore[no-untyped-def]
    return bootstrap_over_patients(
        lambda drawn: auc(labels[drawn], p[drawn]),
        patients,
        n_resamples=n,
        rng=np.random.default_rng(seed),
    )


def test_interval_holds_the_value_and_covers_the_truth() -> None:
    truth = 0.5 * (1 + math.erf(1 / 2))  # AUC of two unit normals one apart
    covered = 0
    for seed in range(40):
        labels, p = sample(np.random.default_rng(seed), 60)
        found = interval_of(labels, p, [str(index) for index in range(60)], n=200)
        assert found.low <= found.value <= found.high
        assert found.value == pytest.approx(auc(labels, p))
        covered += found.low <= truth <= found.high
    assert covered >= 34  # of 40, at 95 %: fewer has a chance below 1 %


def test_more_slides_of_the_same_patients_do_not_narrow_the_interval() -> None:
    labels, p = sample(np.random.default_rng(1), 40)
    patients = [str(index) for index in range(40)]
    one = interval_of(labels, p, patients)
    same = interval_of(np.tile(labels, 5), np.tile(p, (5, 1)), patients * 5)
    fooled = interval_of(np.tile(labels, 5), np.tile(p, (5, 1)), [str(index) for index in range(200)])
    assert same.high - same.low == pytest.approx(one.high - one.low, rel=0.02)
    assert fooled.high - fooled.low < 0.6 * (one.high - one.low)


def test_a_patients_slides_are_drawn_together() -> None:
    patients = ["a", "b", "a", "c", "a"]

    def metric(drawn: np.ndarray) -> float:
        counts = np.bincount(drawn, minlength=5)
        assert counts[0] == counts[2] == counts[4]
        assert counts.sum() == 3 * counts[0] + counts[1] + counts[3]
        assert counts[0] + counts[1] + counts[3] == 3
        return 0.0

    bootstrap_over_patients(metric, patients, n_resamples=100, rng=np.random.default_rng(0))


def test_the_same_generator_gives_the_same_interval() -> None:
    labels, p = sample(np.random.default_rng(2), 30)
    patients = [str(index) for index in range(30)]
    assert interval_of(labels, p, patients) == interval_of(labels, p, patients)
    assert interval_of(labels, p, patients) != interval_of(labels, p, patients, seed=1)


def test_resamples_without_a_class_are_drawn_again_not_counted_as_zero() -> None:
    found = interval_of(np.array([0, 0, 0, 0, 0, 1]), two([0, 0, 0, 0, 0, 1]), list("abcdef"))
    assert found == (1.0, 1.0, 1.0)
    one_class = np.zeros(2, int)
    with pytest.raises(ValueError, match="too few resamples"):
        interval_of(one_class, two([0, 1]), ["a", "b"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=30), st.floats(1, 10))
def test_metrics_stay_in_range_and_temperature_keeps_the_order(
    pairs: list[tuple[int, float]], temperature: float
) -> None:
    labels = np.array([label for label, _ in pairs] + [0, 1])
    logits = np.array([[0, 8 * value - 4] for _, value in pairs] + [[0, 0.1], [0, -0.2]])
    values = []
    for scaled in (logits, logits / temperature):
        exponents = np.exp(scaled)
        p = exponents / exponents.sum(axis=1, keepdims=True)
        assert 0 <= auc(labels, p) <= 1
        assert 0 <= brier(labels, p) <= 2
        assert 0 <= expected_calibration_error(labels, p) <= 1
        values.append(auc(labels, p))
    assert values[1] == pytest.approx(values[0], abs=1e-6)


def test_a_share_counts_patients_alike_by_hand() -> None:
    # Patient a: two of three slides; b: none of one; c: its one.
    holds = np.array([True, True, False, False, True])
    found = share_of_patients(holds, list("aaabc"))
    assert found.value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert (found.n_slides, found.n_patients) == (5, 3)
    assert found.low < found.value < found.high
    # All of ten patients: Wilson 1 / (1 + z^2 / n), where a bootstrap would say that nothing else is possible.
    everyone = share_of_patients(np.ones(10, bool), list("abcdefghij"))
    assert everyone[:3] == (1.0, pytest.approx(1 / (1 + 1.959964**2 / 10)), 1.0)

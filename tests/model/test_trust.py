"""What a bundle promises is kept, counted on many slides; what it can't promise it doesn't."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from napari_lrmil.model.trust import (
    ConformalInfo,
    OODInfo,
    TileGaussian,
    Trust,
    TrustInfo,
    conformal_quantile,
    fit_conformal,
    least_calibration,
    ood_threshold,
    prediction_set,
)

# --- sets of classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "coverage", "rank"),
    [
        (9, 0.9, 9),  # ceil(10 * 0.9)
        (10, 0.9, 10),  # ceil(9.9)
        (19, 0.9, 18),
        (20, 0.9, 19),  # ceil(18.9)
        (19, 0.95, 19),
        (99, 0.9, 90),
        (1, 0.5, 1),
        (8, 0.9, None),  # ceil(8.1) is more than there are
        (18, 0.95, None),
        (0, 0.5, None),
    ],
)
def test_quantile_is_the_kth_smallest(n: int, coverage: float, rank: int | None) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, n + 1) / 100)
    assert conformal_quantile(scores, coverage) == (None if rank is None else rank / 100)


@given(st.integers(1, 199), st.integers(1, 2000))
def test_rounding_never_moves_the_rank(percent_halves: int, n: int) -> None:
    """In whole numbers: ceil((n + 1) c) for c in steps of half a percent."""
    coverage = percent_halves / 200
    rank = max(1, -(-(n + 1) * percent_halves // 200))
    expected = None if rank > n else float(rank)
    assert conformal_quantile(np.arange(1.0, n + 1), coverage) == expected


@pytest.mark.parametrize(("coverage", "n"), [(0.9, 9), (0.95, 19), (0.8, 4), (0.5, 1)])
def test_fewest_slides(coverage: float, n: int) -> None:
    assert least_calibration(coverage) == n
    assert conformal_quantile(np.zeros(n), coverage) is not None
    assert conformal_quantile(np.zeros(n - 1), coverage) is None


def test_calibration_by_hand() -> None:
    """Nine slides of two classes; at 0.8 the 8th smallest of 1 - p of the true class counts."""
    true = np.array([0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.55, 0.4, 0.2])
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0])
    probabilities = np.stack(
        [np.where(labels == 0, true, 1 - true), np.where(labels == 1, true, 1 - true)], axis=1
    )
    info = fit_conformal(probabilities, labels, 0.8)
    assert info.quantile == pytest.approx(0.6)
    assert (info.method, info.coverage, info.n_calibration) == ("lac", 0.8, 9)
    sets = [prediction_set(np.array([p, 1 - p]), info.quantile).tolist() for p in (0.7, 0.59, 0.41, 0.3)]
    assert sets == [[True, False], [True, True], [True, True], [False, True]]


def test_too_few_slides_rule_out_nothing() -> None:
    info = fit_conformal(np.array([[0.99, 0.01]] * 5), np.zeros(5, np.int64), 0.9)
    assert info.quantile is None
    assert prediction_set(np.array([1.0, 0.0]), info.quantile).all()


def test_a_probability_of_the_coverage_is_enough() -> None:
    """A model that is always right and certain: its quantile would be 1e-6, and 0.999 'unsure'."""
    info = fit_conformal(np.array([[1 - 1e-6, 1e-6]] * 30), np.zeros(30, np.int64), 0.9)
    assert info.quantile == pytest.approx(0.1)
    assert prediction_set(np.array([0.91, 0.09]), info.quantile).tolist() == [True, False]
    # What is far from that is not sure of anything.
    assert prediction_set(np.array([0.6, 0.4]), info.quantile).tolist() == [False, False]


@given(
    st.lists(st.floats(0.001, 1), min_size=2, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_sets_grow_with_the_quantile_and_hold_the_more_probable_first(
    weights: list[float], one: float, other: float
) -> None:
    probabilities = np.array(weights) / sum(weights)
    low, high = (prediction_set(probabilities, quantile) for quantile in sorted((one, other)))
    assert not (low & ~high).any()
    if high.any() and not high.all():
        assert probabilities[high].min() >= probabilities[~high].max()


@pytest.mark.parametrize(
    ("n_classes", "n_calibration", "coverage"), [(2, 9, 0.9), (2, 20, 0.9), (4, 50, 0.8)]
)
def test_sets_hold_the_true_class_as_often_as_promised(
    n_classes: int, n_calibration: int, coverage: float
) -> None:
    """Many calibrations, one new slide each; the model is overconfident, which must not matter."""
    rng = np.random.default_rng(5)
    n_trials, held, quantiles = 4000, 0, []
    for _ in range(n_trials):
        labels = rng.integers(n_classes, size=n_calibration + 1)
        logits = rng.normal(size=(n_calibration + 1, n_classes)) + 1.5 * np.eye(n_classes)[labels]
        powers = np.exp(4 * logits)  # the temperature is wrong by four
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        info = fit_conformal(probabilities[:-1], labels[:-1], coverage)
        quantiles.append(info.quantile)
        held += prediction_set(probabilities[-1], info.quantile)[labels[-1]]
    # At least as often, within what 4,000 coins do once in 10,000.
    assert held >= binom.ppf(1e-4, n_trials, coverage)
    # And not by calling everything possible.
    assert np.mean([quantile == 1 for quantile in quantiles]) < 0.05
    assert held <= binom.ppf(1 - 1e-4, n_trials, min(1, coverage + 1 / (n_calibration + 1)))


def test_two_classes_have_the_same_sets_at_any_temperature() -> None:
    rng = np.random.default_rng(2)
    margins, labels = rng.normal(size=41) * 2, rng.integers(2, size=40)
    found = []
    for temperature in (1.0, 3.0):
        p = 1 / (1 + np.exp(-margins / temperature))
        probabilities = np.stack([1 - p, p], axis=1)
        quantile = conformal_quantile(1 - probabilities[np.arange(40), labels], 0.9)
        found.append([prediction_set(values, quantile).tolist() for values in probabilities])
    assert found[0] == found[1]


# --- strange slides --------------------------------------------------------------------------------------------------


def gaussian(dim: int = 4) -> TileGaussian:
    """Variance 4 along the first axis, 0.25 elsewhere; mean 1."""
    return TileGaussian(
        mean=torch.ones(dim).double(),
        axes=torch.eye(dim)[:1].double(),
        variances=torch.tensor([4.0, 0.25]).double(),
    )


def test_distance_by_hand() -> None:
    tiles = torch.tensor([[1.0, 1, 1, 1], [3, 1, 1, 1], [1, 2, 1, 1], [3, 2, 1, 0]])
    np.testing.assert_allclose(gaussian().tile_distances(tiles), [0, 1 / 4, 4 / 4, (1 + 4 + 4) / 4])
    assert gaussian().slide_score(tiles) == pytest.approx((0 + 0.25 + 1 + 2.25) / 4)


def test_with_all_axes_it_is_the_mahalanobis_distance() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    covariance = mixing @ mixing.T
    variances, vectors = np.linalg.eigh(covariance)
    model = TileGaussian(
        mean=torch.zeros(5).double(),
        axes=torch.from_numpy(vectors.T[1:].copy()),
        variances=torch.from_numpy(np.append(variances[1:], variances[0])),
    )
    tiles = rng.normal(size=(20, 5))
    expected = np.einsum("nd,de,ne->n", tiles, np.linalg.inv(covariance), tiles) / 5
    np.testing.assert_allclose(model.tile_distances(torch.from_numpy(tiles)), expected, rtol=1e-8)


def test_the_same_slide_has_the_same_score_in_any_order_and_dtype() -> None:
    tiles = torch.randn(30, 4)
    one = gaussian().slide_score(tiles)
    assert gaussian().slide_score(tiles[torch.randperm(30)]) == pytest.approx(one, rel=1e-12)
    assert gaussian().slide_score(tiles.double()) == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "expected"), [(19, (19.0, 0.05)), (39, (38.0, 0.05)), (18, (18.0, 1 / 19)), (1, (1.0, 0.5))]
)
def test_threshold_keeps_the_rate_that_it_states(n: int, expected: tuple[float, float]) -> None:
    assert ood_threshold(np.arange(n, 0, -1.0), 0.05) == pytest.approx(expected)


@pytest.mark.parametrize("n", [10, 19, 60])
def test_false_alarms_are_as_rare_as_stated(n: int) -> None:
    rng = np.random.default_rng(1)
    alarms, n_trials = 0, 4000
    for scores in rng.gamma(2.0, size=(n_trials, n + 1)):
        threshold, rate = ood_threshold(scores[:-1], 0.05)
        alarms += scores[-1] > threshold
    assert alarms <= binom.ppf(1 - 1e-4, n_trials, rate)


def info(rank: int = 1) -> TrustInfo:
    return TrustInfo(
        conformal=ConformalInfo(coverage=0.9, n_calibration=30, quantile=0.25),
        ood=OODInfo(rank=rank, threshold=1.5, false_alarm_rate=0.05, n_calibration=30, n_training_tiles=900),
    )


def test_what_is_stored_comes_back() -> None:
    trust = Trust(info(), gaussian())
    stored = trust.tensors()
    assert {value.dtype for value in stored.values()} == {torch.float32}
    again = Trust.of(TrustInfo.model_validate_json(trust.info.model_dump_json()), stored)
    assert again.info == trust.info
    tiles = torch.randn(5, 4)
    np.testing.assert_allclose(
        again.tiles.tile_distances(tiles), trust.tiles.tile_distances(tiles), rtol=1e-6
    )
    assert trust.prediction_set(np.array([0.8, 0.2])).tolist() == [True, False]


@pytest.mark.parametrize(("change", "said"), [
    ({"mean": torch.zeros(3)}, "don't belong together"),
    ({"variances": torch.ones(3)}, "don't belong together"),
    ({"axes": torch.eye(4)[:2]}, "1 are stated"),
    ({"axes": torch.zeros(4)}, "1 are stated"),
    ({"variances": torch.tensor([1.0, 0.0])}, "isn't above 0"),
    ({"mean": torch.full((4,), torch.nan)}, "aren't finite"),
    ({"extra": torch.zeros(1)}, "instead of"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Trust.of(info(), Trust(info(), gaussian()).tensors() | change)


@pytest.mark.parametrize(
    "change", [{"coverage": 1.0}, {"n_calibration": 0}, {"quantile": 1.5}, {"method": "aps"}, {"other": 1}]
)
def test_wrong_statements_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        ConformalInfo.model_validate(info().conformal.model_dump() | change)

"""AUC within folds and models against values counted by hand; intervals against simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.intervals import (
    FoldScores,
    Resampled,
    class_aucs,
    resample_aucs,
    resample_dealt_anew,
    within_fold_auc,
)
from training.metrics import auc


def fold(labels: list[int], *models: list[float], patients: list[str] | None = None) -> FoldScores:
    """One encoder; a list of scores of class 1 for each head."""
    p = np.asarray(models, float)
    return FoldScores(
        np.asarray(labels, np.int64),
        tuple(patients or [f"p{place}" for place in range(len(labels))]),
        np.stack([1 - p, p], axis=-1)[None],
    )


def test_pairs_are_counted_within_folds_by_hand() -> None:
    # Fold 0: pairs (0.2, 0.3) in order, (0.4, 0.3) not: 1 of 2. Fold 1: 0.8 and 0.9 above 0.7: 2 of 2.
    folds = [fold([0, 0, 1], [0.2, 0.4, 0.3]), fold([0, 1, 1], [0.7, 0.8, 0.9])]
    assert within_fold_auc(folds) == pytest.approx(3 / 4)
    # All slides in one list: of 9 pairs also (0.2, 0.8), (0.2, 0.9), (0.4, 0.8), (0.4, 0.9) and not (0.7, 0.3): 7.
    labels = np.concatenate([one.labels for one in folds])
    pooled = np.concatenate([one.probabilities[0, 0] for one in folds])
    assert auc(labels, pooled) == pytest.approx(7 / 9)


def test_ties_count_half_and_models_count_alike() -> None:
    # The first head: a tie and a pair in order, 1.5 of 2; the second: none of 2.
    assert within_fold_auc([fold([0, 0, 1], [0.5, 0.1, 0.5], [0.9, 0.9, 0.1])]) == pytest.approx(0.375)


def test_a_fold_of_one_class_has_no_pair_and_takes_no_part() -> None:
    folds = [fold([0, 1], [0.1, 0.9]), fold([1, 1], [0.0, 0.0])]
    assert within_fold_auc(folds) == 1.0
    with pytest.raises(ValueError, match="no fold has slides with and without class"):
        within_fold_auc(folds[1:])


def test_more_classes_are_each_against_the_rest() -> None:
    labels = np.array([0, 1, 2, 2])
    p = np.array([[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    one = FoldScores(labels, tuple("abcd"), p[None, None])
    assert class_aucs([one]) == pytest.approx([1, 2 / 3, 3 / 4])
    assert within_fold_auc([one]) == pytest.approx(auc(labels, p))


def test_one_fold_and_model_is_the_usual_auc() -> None:
    rng = np.random.default_rng(0)
    for n_classes in (2, 3, 5):
        labels = rng.integers(n_classes, size=60)
        p = rng.random((60, n_classes)).round(1) + 0.01  # with ties
        p /= p.sum(axis=1, keepdims=True)
        one = FoldScores(labels, tuple(map(str, range(60))), p[None, None])
        assert within_fold_auc([one]) == pytest.approx(auc(labels, p))


def test_a_resample_is_the_auc_of_the_slides_and_models_drawn() -> None:
    """Whole resamples done the long way: each drawn patient's slides as often, each drawn head as often."""
    one = fold([0, 1, 0, 1, 1], [0.1, 0.4, 0.5, 0.5, 0.2], [0.3, 0.2, 0.6, 0.9, 0.7], patients=list("aabbc"))
    found = resample_aucs({"m": [one]}, n_resamples=50, seed=3)["m"].draws
    rng = np.random.default_rng(3)
    patients = rng.multinomial(3, np.full(3, 1 / 3), size=50)
    heads = rng.multinomial(2, np.full(2, 1 / 2), size=50)
    for drawn, of_head, value in zip(patients, heads, found, strict=True):
        slides = np.repeat(np.arange(5), drawn[[0, 0, 1, 1, 2]])
        try:
            each = [auc(one.labels[slides], p[slides]) for p in one.probabilities[0]]
        except ValueError:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(np.average(each, weights=of_head))


def test_a_method_minus_itself_is_nothing_and_differences_are_narrower_than_their_parts() -> None:
    rng = np.random.default_rng(1)
    labels = list(np.arange(40) % 2)
    base = rng.normal(size=40) + np.asarray(labels)

    def method(shift: float) -> list[FoldScores]:
        return [fold(labels, *[list(base + shift * rng.normal(size=40)) for _ in range(4)]) for _ in range(2)]

    found = resample_aucs({"a": method(0.1), "b": method(0.1)}, n_resamples=300, seed=0)
    assert set(found["a"].minus(found["a"]).draws) == {0.0}
    apart = found["a"].interval()
    paired = found["a"].minus(found["b"]).interval()
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_an_encoder_of_all_folds_is_drawn_once_for_them_and_one_a_fold_by_itself() -> None:
    """One patient a fold, two encoders, of which one orders the slides and the other reverses them: what is drawn varies by
    the encoders alone, for a method whose encoders serve both folds as one coin, for the other as the mean of two."""
    right_and_wrong = np.array([[[[0.9, 0.1], [0.1, 0.9]]], [[[0.1, 0.9], [0.9, 0.1]]]])
    folds = [FoldScores(np.array([0, 1]), ("p", "p"), right_and_wrong) for _ in range(2)]
    found = resample_aucs({"all": folds, "own": folds}, n_resamples=4000, seed=0, shared={"all"})
    # Two of two draws: AUC 0, 1/2 or 1 with 1/4, 1/2 and 1/4; the mean of two such has half the variance.
    assert np.var(found["all"].draws) == pytest.approx(1 / 8, rel=0.05)
    assert np.var(found["own"].draws) == pytest.approx(1 / 16, rel=0.05)
    assert set(found["own"].draws) == {0, 0.25, 0.5, 0.75, 1}
    assert np.corrcoef(found["all"].draws, found["own"].draws)[0, 1] == pytest.approx(0, abs=0.05)
    dealt = resample_dealt_anew(
        {"all": [folds, folds], "own": [folds, folds]}, n_resamples=4000, seed=0, shared={"all"}
    )
    assert np.var(dealt["all"].draws) > 1.3 * np.var(dealt["own"].draws)


def test_an_interval_without_enough_resamples_is_refused() -> None:
    with pytest.raises(ValueError, match="too few resamples"):
        Resampled(0.5, np.full(100, math.nan)).interval()


def simulate(
    rng: np.random.Generator, *, n_folds: int, n_seeds: int, n: int, spread: float, gap: float
) -> list[FoldScores]:
    """Unit normal slides, positives about 1 higher as each training has it; every fold's models have a scale of their own."""
    folds = []
    for _ in range(n_folds):
        labels = (np.arange(n) % 2).tolist()
        offset = gap * rng.normal()
        slides = rng.normal(size=n)
        models = [
            list(slides + np.asarray(labels) * (1 + spread * rng.normal()) + offset) for _ in range(n_seeds)
        ]
        folds.append(fold(labels, *models))
    return folds


def test_pooling_scores_of_different_models_gives_another_and_lower_auc() -> None:
    """Each fold has an AUC of about 0.76; its models have an offset of their own, as trained heads do."""
    rng = np.random.default_rng(0)
    within, pooled = [], []
    for _ in range(20):
        folds = simulate(rng, n_folds=5, n_seeds=1, n=60, spread=0.0, gap=2.0)
        within.append(within_fold_auc(folds))
        pooled.append(
            auc(
                np.concatenate([one.labels for one in folds]),
                np.concatenate([one.probabilities[0, 0] for one in folds]),
            )
        )
    truth = 0.5 * (1 + math.erf(1 / 2))  # two unit normals one apart: 0.760
    assert np.mean(within) == pytest.approx(truth, abs=0.02)
    assert np.mean(pooled) < 0.68


def coverage(*, spread: float, n_seeds: int, seed: int, over_seeds: bool = True) -> float:
    """Share of 150 simulated experiments whose interval holds the true AUC of slide and training drawn at random."""
    rng = np.random.default_rng(seed)
    # Positive minus negative: mean 1, variance 1 + 1 + spread^2.
    truth = 0.5 * (1 + math.erf(1 / math.sqrt(2 + spread**2) / math.sqrt(2)))
    held = 0
    for number in range(150):
        folds = simulate(rng, n_folds=3, n_seeds=n_seeds, n=30, spread=spread, gap=1.0)
        if not over_seeds:  # as if the models drawn were all that there are
            folds = [FoldScores(f.labels, f.patients, f.probabilities[:, :1]) for f in folds]
        low, high = resample_aucs({"m": folds}, n_resamples=200, seed=number)["m"].interval()[1:]
        held += low <= truth <= high
    return held / 150


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_intervals_cover_the_truth_at_about_their_rate(spread: float) -> None:
    """At 95 %, fewer than 135 of 150 has a chance below 1 %."""
    assert coverage(spread=spread, n_seeds=10, seed=5) >= 0.90


@pytest.mark.slow
def test_intervals_over_patients_alone_miss_the_truth_where_trainings_differ() -> None:
    assert coverage(spread=1.5, n_seeds=10, seed=6, over_seeds=False) < 0.88
    assert coverage(spread=1.5, n_seeds=10, seed=6) >= 0.90

"""What is shown not to be worse than the teacher: against limits known in closed form, and simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, norm

from training.intervals import FoldScores
from training.noninferiority import compare_with_teacher, holm, least_patients, patients_by_class

Scores = NDArray[np.float64]


def fold(labels: Scores, scores: Scores, name: str = "") -> FoldScores:
    """Scores (N,) or (S, N) of class 1, one patient a slide."""
    p = 1 / (1 + np.exp(-np.atleast_2d(scores)))
    names = tuple(f"{name}p{place}" for place in range(len(labels)))
    return FoldScores(labels.astype(np.int64), names, np.stack([1 - p, p], axis=-1)[None])


def perfect(n: int) -> tuple[Scores, Scores]:
    labels = np.arange(2 * n) % 2.0
    return labels, 4 * labels + np.linspace(0, 1, 2 * n)


def test_holm_by_hand() -> None:
    # In order: 3 x 0.01, 2 x 0.03, then 1 x 0.04, which is no less than the one before.
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_a_row_that_loses_nothing_has_clopper_and_pearsons_limit() -> None:
    labels, scores = perfect(10)
    one = [fold(labels, scores)]
    found = compare_with_teacher(one, {"row": one}, margin=0.1, alpha=0.05, n_resamples=20_000, seed=0)["row"]
    assert found.difference == 0
    assert found.p == pytest.approx(0.9**10, abs=0.01)  # that none of ten is lost where a tenth is
    assert found.limit == pytest.approx(1 - 0.05**0.1, abs=0.01)
    assert not found.shown


def test_a_row_that_loses_one_patient_of_ten_wholly() -> None:
    labels, scores = perfect(10)
    worse = scores.copy()
    worse[1] = -9  # a positive below every negative: 10 of 100 pairs
    found = compare_with_teacher(
        [fold(labels, scores)],
        {"row": [fold(labels, worse)]},
        margin=0.1,
        alpha=0.05,
        n_resamples=20_000,
        seed=0,
    )["row"]
    assert found.difference == pytest.approx(0.1)
    assert found.limit == pytest.approx(beta.ppf(0.95, 2, 9), abs=0.04)


def test_few_patients_show_nothing_and_enough_do() -> None:
    least = least_patients(margin=0.02, alpha=0.05, n_rows=1)
    assert least == 149  # 0.98 ** 148 = 0.0503
    for n, shown in ((3, False), (least - 20, False), (least + 20, True)):
        labels, scores = perfect(n)
        one = [fold(labels, scores)]
        found = compare_with_teacher(one, {"row": one}, margin=0.02, alpha=0.05, n_resamples=4000, seed=0)
        assert found["row"].shown is shown, n


def test_patients_count_and_not_slides() -> None:
    labels, scores = perfect(200)
    one = fold(labels, scores)._replace(patients=tuple(f"p{place // 40}" for place in range(400)))
    assert patients_by_class([one]).tolist() == [10, 10]
    assert not compare_with_teacher([one], {"row": [one]}, margin=0.02, alpha=0.05, n_resamples=1000, seed=0)[
        "row"
    ].shown


def test_more_rows_ask_for_more() -> None:
    labels, scores = perfect(170)
    one = [fold(labels, scores)]
    alone, four = (
        compare_with_teacher(
            one, dict.fromkeys(names, one), margin=0.02, alpha=0.05, n_resamples=4000, seed=0
        )["a"]
        for names in ("a", "abcd")
    )
    assert alone.shown
    assert not four.shown
    assert four.adjusted_p == pytest.approx(4 * alone.p)
    assert least_patients(margin=0.02, alpha=0.05, n_rows=4) == math.ceil(math.log(0.0125) / math.log(0.98))


def test_the_rarest_of_three_classes_decides_by_macro_auc() -> None:
    """One class in three that is lost by a share q costs q / 3 of its own AUC, and what it weighs among the others' rest."""
    counts = np.array([100, 100, 20])
    labels = np.repeat(np.arange(3), counts)
    p = np.eye(3)[labels] * 0.9 + 0.1 / 3
    one = [FoldScores(labels, tuple(map(str, range(220))), p[None, None])]
    found = compare_with_teacher(one, {"row": one}, margin=0.05, alpha=0.05, n_resamples=20_000, seed=0)[
        "row"
    ]
    cost = (1 + 20 / 120 + 20 / 120) / 3  # of the whole class
    assert found.p == pytest.approx((1 - 0.05 / cost) ** 20, abs=0.01)


def binormal(
    rng: np.random.Generator, *, n: int, n_folds: int, n_seeds: int, aucs: tuple[float, float], spread: float
) -> tuple[list[FoldScores], list[FoldScores]]:
    """Teacher and row with scores that correlate by 0.8 and true AUCs; seeds see the positives higher or lower."""
    made: tuple[list[FoldScores], list[FoldScores]] = ([], [])
    for number in range(n_folds):
        labels = np.arange(n) % 2.0
        common = np.sqrt(0.8) * rng.normal(size=n)
        for folds, auc in zip(made, aucs, strict=True):
            slides = common + np.sqrt(0.2) * rng.normal(size=n)
            gaps = np.sqrt(2) * norm.ppf(auc) + spread * rng.normal(size=n_seeds)
            folds.append(fold(labels, slides + labels * gaps[:, None], f"f{number}"))
    return made


@pytest.mark.parametrize(
    ("kind", "n", "n_seeds"), [("shifted", 40, 1), ("shifted", 40, 5), ("few lost wholly", 300, 1)]
)
def test_false_passes_are_as_rare_as_promised(kind: str, n: int, n_seeds: int) -> None:
    """The row loses just the margin: any pass is false. 150 repetitions: 5 % and three standard errors are 16."""
    rng = np.random.default_rng(5)
    passes = 0
    for number in range(150):
        if kind == "shifted":
            teacher, row = binormal(
                rng, n=n, n_folds=3, n_seeds=n_seeds, aucs=(0.9, 0.85), spread=0.1 * (n_seeds > 1)
            )
        else:
            labels, scores = perfect(n // 2)
            lost = np.where((labels == 1) & (rng.random(n) < 0.05), -9, scores)
            teacher, row = [fold(labels, scores)], [fold(labels, lost)]
        passes += compare_with_teacher(
            teacher, {"row": row}, margin=0.05, alpha=0.05, n_resamples=300, seed=number
        )["row"].shown
    assert passes <= 16


def test_any_false_pass_among_several_rows_is_as_rare() -> None:
    """Four rows on the margin: each alone may pass by chance, and Holm bounds the chance of any."""
    rng = np.random.default_rng(6)
    labels, scores = perfect(150)
    any_pass = 0
    for number in range(150):
        lost = [np.where((labels == 1) & (rng.random(300) < 0.05), -9, scores) for _ in range(4)]
        found = compare_with_teacher(
            [fold(labels, scores)],
            {str(place): [fold(labels, one)] for place, one in enumerate(lost)},
            margin=0.05,
            alpha=0.05,
            n_resamples=400,
            seed=number,
        )
        any_pass += any(one.shown for one in found.values())
    assert any_pass <= 16


def test_equal_aucs_pass_with_enough_patients() -> None:
    rng = np.random.default_rng(7)
    passes = 0
    for number in range(20):
        teacher, row = binormal(rng, n=160, n_folds=3, n_seeds=1, aucs=(0.9, 0.9), spread=0)
        passes += compare_with_teacher(
            teacher, {"row": row}, margin=0.05, alpha=0.05, n_resamples=300, seed=number
        )["row"].shown
    assert passes >= 18

"""Whether a cheaper reading is as good as the teacher but for a margin: paired, one-sided, for several at once.

The question isn't whether two AUCs differ but whether a row can be *shown* to lose less than a margin. The hypothesis to
refute is AUC_teacher - AUC_row >= margin; what isn't refuted isn't shown, which says nothing against the row: with few
patients nothing can be shown.

**One row.** Patients, inside folds, and trainings are drawn anew as for the intervals (`training.intervals`), the same for
teacher and row. Where a row has lost nothing on the few patients at hand, all resamples agree, and the bootstrap would be
certain of what three patients said. So each resample holds one more patient, of whichever class makes the row look worst,
on whom the teacher is right about every pair and the row wrong: that patient's weight among m of its class is drawn from
Beta(1, m). For losses that are all or nothing this is Clopper and Pearson's limit (Biometrika 1934), for bounded ones in
general Gaffke's (2005; Learned-Miller and Thomas, arXiv 1905.06208; Phan, Thomas and Learned-Miller, ICML 2021).

**Several rows.** The cheapest that passes is exported, so that one false pass among the rows is enough to export a row
that is worse than promised. Holm's procedure (Scandinavian Journal of Statistics 1979) keeps the chance of any at `alpha`,
however the rows depend on each other. A fixed sequence, the most expensive row first and the end at the first failure,
would give each row all of `alpha`, but only pays where AUC rises with cost; it need not (an architecture can be clearer at
5x than at 20x), and a poor expensive row would then bar all cheaper ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.intervals import Array, FoldScores, resample_class_aucs, within_fold_auc

_TEACHER = ""
"""Beside the rows' keys, of which none is empty."""


class Comparison(BaseModel):
    """A row against the teacher on the same slides.

    Attributes
    ----------
    difference : float
        AUC of the teacher minus that of the row.
    limit : float
        The difference is below this with a confidence of 1 - alpha, one-sided, for this row alone; 1 where nothing is known.
    p : float
        Of the hypothesis that the row loses the margin or more, for this row alone.
    adjusted_p : float
        The same for all rows at once, by Holm.
    shown : bool
        Whether it is shown, among all rows, that the row loses less than the margin.
    """

    model_config = ConfigDict(frozen=True)

    difference: float
    limit: float
    p: float
    adjusted_p: float
    shown: bool


def compare_with_teacher(
    teacher: Sequence[FoldScores],
    rows: Mapping[str, Sequence[FoldScores]],
    *,
    margin: float,
    alpha: float,
    n_resamples: int,
    seed: int,
    shared: Collection[str] = (),
) -> dict[str, Comparison]:
    """Return of each row whether it is shown to lose less than a margin of AUC against the teacher.

    Parameters
    ----------
    teacher : sequence of FoldScores
        Fold by fold.
    rows : mapping
        Row -> the same folds with the same slides.
    margin : float
        Of AUC, macro over classes.
    alpha : float
        Chance, at most, that any row is wrongly said to lose less.
    n_resamples : int
    seed : int
    shared : collection of str
        See `resample_aucs`.

    Raises
    ------
    ValueError
        Where an AUC isn't defined at all.
    """
    aucs = resample_class_aucs({_TEACHER: teacher, **rows}, n_resamples=n_resamples, seed=seed, shared=shared)
    counts = patients_by_class(teacher)
    uniform = np.random.default_rng((seed, n_resamples)).random(n_resamples)
    of_teacher = within_fold_auc(teacher)
    found = {}
    for key, folds in rows.items():
        lost = _with_one_more(aucs[_TEACHER] - aucs[key], counts, uniform)
        lost = np.where(np.isnan(lost), 1.0, lost)  # a resample without a pair tells nothing for the row
        p = (1 + (lost >= margin).sum(axis=1)) / (n_resamples + 1)
        worst = int(np.argmax(p))
        limit = np.quantile(lost, 1 - alpha, axis=1, method="higher")
        found[key] = (of_teacher - within_fold_auc(folds), float(limit.max()), float(p[worst]))
    adjusted = holm({key: p for key, (_, _, p) in found.items()})
    return {
        key: Comparison(
            difference=difference, limit=limit, p=p, adjusted_p=adjusted[key], shown=adjusted[key] <= alpha
        )
        for key, (difference, limit, p) in found.items()
    }


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted by Holm, each at most 1: all hypotheses with one up to alpha are refuted together."""
    adjusted, highest = {}, 0.0
    for place, key in enumerate(sorted(p, key=lambda key: p[key])):
        highest = max(highest, min(1.0, (len(p) - place) * p[key]))
        adjusted[key] = highest
    return {key: adjusted[key] for key in p}


def patients_by_class(folds: Sequence[FoldScores]) -> NDArray[np.int64]:
    """Return the number of patients with a slide of each class, over all folds; (C,)."""
    n_classes = folds[0].probabilities.shape[-1]
    pairs = {
        (name, label)
        for fold in folds
        for name, label in zip(fold.patients, fold.labels.tolist(), strict=True)
    }
    return np.bincount([label for _, label in pairs], minlength=n_classes)


def least_patients(*, margin: float, alpha: float, n_rows: int, n_classes: int = 2) -> int:
    """Return how many patients of each class it takes, at least, that the best of rows can be shown to lose less.

    With fewer, not even a row that loses no pair against the teacher is: (1 - share)^m > alpha / n_rows, where the share
    of a class's patients that costs the margin is margin * C / 2.
    """
    share = min(margin * n_classes / 2, 1 - 1e-9)
    return math.ceil(math.log(alpha / n_rows) / math.log1p(-share))


def _with_one_more(lost: Array, counts: NDArray[np.int64], uniform: Array) -> Array:
    """Return differences (C, B) of the macro AUC with one more patient of each class in turn, who is lost wholly.

    Parameters
    ----------
    lost : (C, B) array, or (1, B) for two classes
        Of the AUC of each class against the rest.
    counts : (C,) int array
        Patients.
    uniform : (B,) array
    """
    n_classes = len(counts)
    classes = [1] if n_classes == 2 else list(range(n_classes))
    rest = counts.sum() - counts
    turns = []
    for one, count in enumerate(counts.tolist()):
        share = 1 - (1 - uniform) ** (1 / count) if count else np.ones_like(uniform)
        weights = np.stack(
            [share if one == place else share * count / max(1, rest[place]) for place in classes]
        )
        turns.append((lost * (1 - weights) + weights).mean(axis=0))
    return np.stack(turns)

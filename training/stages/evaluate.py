"""Step 6: what each method says of the test slides, and the numbers that compare them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from napari_lrmil.model.calibration import called_class
from napari_lrmil.model.mil import MILModel
from napari_lrmil.model.trust import prediction_set
from training.data.bags import Bags
from training.data.predictions import Predictions, SlideAttention
from training.data.table import SlideRow
from training.intervals import FoldScores, Resampled, class_aucs, resample_aucs, within_fold_auc
from training.methods import (
    BY_KEY,
    OURS,
    SHORTCUT_KEYS,
    MethodKey,
    ShortcutKey,
    method_name,
)
from training.metrics import Share, auc, call_metrics, share_of_patients
from training.section import Section
from training.stages.calibrate import (
    CalibrateSection,
    Calibration,
    fit_calibration,
    fit_point,
    served_outputs,
)
from training.stages.fit_trust import COVERAGE
from training.stages.heads import Fit
from training.stages.shortcuts import ShortcutFeatures, shortcut_predictions

Numbers: TypeAlias = list[float | None]
"""Value, low end and high end of a 95 % interval; the ends None where most resamples lack a class."""
MethodResult: TypeAlias = dict[
    str,
    "float | int | str | Numbers | list[list[float]] | dict[str, float] | dict[str, Numbers] | dict[str, object] | None",
]
"""Name of a metric -> its value, as ``results.json`` holds it."""


class EvaluateSection(Section):
    """What is compared on the test slides."""

    methods: tuple[MethodKey, ...] | None = Field(
        default=None,
        description="some of set decisive, as configs of before name them; write [[compare]] rows",
    )
    shortcuts: tuple[ShortcutKey, ...] = Field(
        default=SHORTCUT_KEYS,
        description="baselines that no pathology needs: what they reach is not the method's merit",
    )
    bootstrap: int = Field(
        default=2000, ge=100, description="resamples of patients and trainings for the 95 % intervals"
    )


def predict_test(
    model: MILModel,
    val: Bags,
    val_slides: Sequence[SlideRow],
    test: Bags,
    slides: Sequence[SlideRow],
    places: Sequence[NDArray[np.int64]],
    class_names: tuple[str, ...],
    section: CalibrateSection,
) -> tuple[Predictions, Predictions, dict[str, SlideAttention], Calibration]:
    """Return what a head says of test slides, scaled and called as the validation slides ask for.

    Parameters
    ----------
    model : MILModel
    val, test : Bags
    val_slides, slides : sequences of SlideRow
        The validation and the test slides.
    places : sequence of (N, 2) arrays
        (row, col) of the test slides' tiles.
    class_names : tuple of str
    section : CalibrateSection

    Returns
    -------
    predictions : Predictions
        Of the test slides.
    val_predictions : Predictions
        Of the validation slides, which the same numbers were chosen on.
    attention : dict
        By slide, of the test slides, for the class that is called; empty where the head has no attention.
    calibration : Calibration
        Which was fitted.
    """
    of_val = np.stack([output.bag_logits.numpy() for output in served_outputs(model, val)])
    patients = [row.patient_id for row in val_slides]
    calibration = fit_calibration(of_val, val.labels, patients, class_names, section)
    logits, attention = [], {}
    for row, tiles, output in zip(slides, places, served_outputs(model, test), strict=True):
        logits.append(output.bag_logits.numpy())
        called = int(calibration.called(calibration.probabilities(logits[-1])))
        scores = output.attention_for(called)
        if scores is not None:
            attention[row.slide_id] = SlideAttention(scores.numpy(), tiles)
    probabilities = calibration.probabilities(np.stack(logits))
    val_probabilities = calibration.probabilities(of_val)
    return (
        _table(slides, class_names, probabilities, calibration.called(probabilities)),
        _table(val_slides, class_names, val_probabilities, calibration.called(val_probabilities)),
        attention,
        calibration,
    )


def predict_shortcut(
    slide_features: tuple[str, ...],
    features: Mapping[str, ShortcutFeatures],
    train: Sequence[SlideRow],
    val: Sequence[SlideRow],
    test: Sequence[SlideRow],
    class_names: tuple[str, ...],
    section: CalibrateSection,
    *,
    fitted_auc: float,
) -> tuple[Predictions, Fit]:
    """Return what tissue fraction or colours alone say of the test slides, and how well they fit the training slides.

    Parameters
    ----------
    slide_features : tuple of str
        What the baseline takes of a slide: names of `ShortcutFeatures`.
    features : mapping
        Of all slides, by id.
    train, val, test : sequences of SlideRow
    class_names : tuple of str
    section : CalibrateSection
        The baseline's thresholds are chosen as those of the heads.
    fitted_auc : float
        See `MILSection`.
    """
    vectors = [
        np.stack([features[row.slide_id].vector(slide_features) for row in part])
        for part in (train, val, test)
    ]
    labels = [_labels(part, class_names) for part in (train, val)]
    all_three = shortcut_predictions(
        vectors[0], labels[0], vectors[1], labels[1], np.concatenate(vectors), n_classes=len(class_names)
    )
    of_train, of_val, probabilities = np.split(all_three, [len(train), len(train) + len(val)])
    train_auc = auc(labels[0], of_train)
    point = fit_point(of_val, labels[1], [row.patient_id for row in val], class_names, section)
    predictions = _table(test, class_names, probabilities, called_class(probabilities, point.thresholds))
    return predictions, Fit(train_auc=train_auc, fitted=train_auc >= fitted_auc)


def fold_scores(trainings: Sequence[Predictions], n_heads: int) -> FoldScores:
    """Return what the trainings of a method say of one fold.

    Parameters
    ----------
    trainings : sequence of Predictions
        Of the same slides, encoder by encoder, and of each head by head.
    n_heads : int
        Heads on an encoder.
    """
    first = trainings[0]
    if any(one.slide_ids != first.slide_ids for one in trainings):
        raise ValueError("trainings of one fold were tested on different slides")
    probabilities = np.stack([one.probabilities for one in trainings])
    called = np.stack([one.called for one in trainings])
    return FoldScores(
        first.labels,
        first.patients,
        probabilities.reshape(-1, n_heads, *probabilities.shape[1:]),
        called.reshape(-1, n_heads, called.shape[1]),
    )


def compare_methods(
    tested: Mapping[str, Sequence[FoldScores]],
    fits: Mapping[str, Sequence[Fit]],
    class_names: tuple[str, ...],
    *,
    n_resamples: int,
    seed: int,
    shared: Collection[str] = (),
    set_quantiles: Sequence[float | None] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, MethodResult]:
    """Return metrics and intervals of every method.

    Parameters
    ----------
    tested : mapping
        Method -> what its trainings say of the test slides of each fold.
    fits : mapping
        Method -> how well each training learned its own slides.
    class_names : tuple of str
    n_resamples : int
        Of patients and trainings, for the 95 % intervals.
    seed : int
    shared : collection of str
        Methods whose f' serves all folds.
    set_quantiles : sequence of float or None, optional
        Of the sets of classes of each fold's bundle, see `ConformalInfo`.
    names : mapping, optional
        Method -> its name in tables, of those that no other table knows.

    Returns
    -------
    dict
        Method -> metrics, as docs/exports.md describes them.
    """
    resampled = resample_aucs(tested, n_resamples=n_resamples, seed=seed, shared=shared)
    results: dict[str, MethodResult] = {}
    for method, folds in tested.items():
        n_encoders, n_heads = folds[0].probabilities.shape[:2]
        by_training = [[_one_training(folds, e, h) for h in range(n_heads)] for e in range(n_encoders)]
        results[method] = {
            **({"name": names[method]} if names and method in names else {}),
            "auc": resampled[method].value,
            **_mean_calls(folds),
            "auc_interval": _interval(resampled[method]),
            "auc_by_class": dict(zip(class_names, class_aucs(folds).tolist(), strict=True)),
            "auc_by_training": [list(map(within_fold_auc, row)) for row in by_training],
            "n_test": sum(len(fold.labels) for fold in folds),
            **_training_fits(fits[method]),
            "sensitivity": {
                name: _numbers(share) for name, share in sensitivities(folds, class_names).items()
            },
        }
        if method != OURS.key:
            results[method]["lrmil_minus_this"] = _interval(resampled[OURS.key].minus(resampled[method]))
        elif set_quantiles is not None:
            results[method] |= _set_shares(folds, set_quantiles)
    return results


def is_unfitted(method: str, result: Mapping[str, object]) -> bool:
    """Whether some head of a method didn't fit its own training slides; baselines without a head aren't asked to."""
    n_unfitted = result.get("n_unfitted")
    return (
        isinstance(n_unfitted, int)
        and n_unfitted > 0
        and (method not in BY_KEY or BY_KEY[method].head == "mil")
    )


def unfitted_note(fitted_auc: float) -> str:
    """Say what the mark means."""
    return (
        f"The head that validation kept did not fit its own training slides (AUC there below {fitted_auc:g}, "
        "mil.fitted_auc): it was trained too little, or learned nothing from them that holds on validation slides."
    )


def unfitted_trainings(results: Mapping[str, Mapping[str, object]]) -> str:
    """Say how many trainings of which methods didn't fit."""
    return ", ".join(
        f"{result['n_unfitted']} of {result['n_trainings']} of {method_name(method, result)}"
        for method, result in results.items()
        if is_unfitted(method, result)
    )


def _training_fits(fits: Sequence[Fit]) -> dict[str, float | int | None]:
    known = [fit.train_auc for fit in fits if fit.train_auc is not None]
    return {
        "train_auc": float(np.mean(known)) if known else None,
        "n_trainings": len(fits),
        "n_unfitted": sum(not fit.fitted for fit in fits),
    }


def sensitivities(folds: Sequence[FoldScores], class_names: Sequence[str]) -> dict[str, Share]:
    """Return of each class the share of its slides that the first training calls so; by patient, over all folds."""
    labels = np.concatenate([fold.labels for fold in folds])
    called = np.concatenate([fold.calls[0, 0] for fold in folds])
    patients = np.concatenate([np.asarray(fold.patients) for fold in folds])
    return {
        name: share_of_patients(called[labels == one] == one, patients[labels == one].tolist())
        for one, name in enumerate(class_names)
    }


def called_metrics(found: Mapping[str, Share], positive: str | None) -> dict[str, float]:
    """Return sensitivities by name, as a bundle's card has them.

    Parameters
    ----------
    found : mapping
        See `sensitivities`.
    positive : str, optional
        Of two classes: the sensitivity of the other is the specificity. None names each by its class.
    """
    metrics: dict[str, float] = {}
    for name, share in found.items():
        kind = "sensitivity" if name == positive else "specificity"
        key = f"test_{kind}" if positive is not None else f"test_sensitivity_{name}"
        parts = {
            "": share.value,
            "_low": share.low,
            "_high": share.high,
            "_patients": float(share.n_patients),
        }
        metrics |= {key + part: value for part, value in parts.items()}
    return metrics


def called_text(result: Mapping[str, object], positive: str | None) -> str:
    """Say what LRMIL's operating point and sets of classes came to on test slides, of a row of ``results.json``."""
    parts = []
    found = result.get("sensitivity")
    if isinstance(found, dict):
        names = {name: "sensitivity" if name == positive else "specificity" for name in found}
        parts = [
            f"{names[name] if positive is not None else f'sensitivity for {name}'} {_share_text(share)}"
            for name, share in sorted(found.items(), key=lambda pair: pair[0] != positive)
        ]
        of = "" if positive is None else f" for {positive}"
        parts = [f"At its operating point{of}, chosen on validation, LRMIL has a {', a '.join(parts)}."]
    if "set_coverage" in result:
        parts.append(
            f"Its sets of classes, meant to hold the true one of {COVERAGE:.0%} of slides, hold it of "
            f"{_share_text(result['set_coverage'])}; {_share_text(result['set_unsure'])} are unsure."
        )
    note = "Of the exported students, on test slides, by patient, with 95 % Wilson intervals."
    return " ".join([*parts, note]) if parts else ""


def _share_text(share: object) -> str:
    assert isinstance(share, list)
    value, low, high = share
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _set_shares(folds: Sequence[FoldScores], quantiles: Sequence[float | None]) -> MethodResult:
    """Return how many test slides' sets of classes hold the true one, and how many hold another number than one."""
    held, unsure = [], []
    for fold, quantile in zip(folds, quantiles, strict=True):
        sets = np.stack([prediction_set(values, quantile) for values in fold.probabilities[0, 0]])
        held.append(sets[np.arange(len(fold.labels)), fold.labels])
        unsure.append(sets.sum(axis=1) != 1)
    patients = [name for fold in folds for name in fold.patients]
    return {
        "set_coverage": _numbers(share_of_patients(np.concatenate(held), patients)),
        "set_unsure": _numbers(share_of_patients(np.concatenate(unsure), patients)),
    }


def _numbers(share: Share) -> Numbers:
    return [share.value, share.low, share.high]


def _one_training(folds: Sequence[FoldScores], encoder: int, head: int) -> list[FoldScores]:
    return [
        fold._replace(probabilities=fold.probabilities[encoder : encoder + 1, head : head + 1])
        for fold in folds
    ]


def _mean_calls(folds: Sequence[FoldScores]) -> dict[str, float]:
    """Return the metrics of calls and probabilities over the slides of all folds, as their mean over trainings."""
    labels = np.concatenate([fold.labels for fold in folds])
    probabilities = np.concatenate([fold.probabilities for fold in folds], axis=2)
    called = np.concatenate([fold.calls for fold in folds], axis=2)
    each = [
        call_metrics(labels, probabilities[place], called[place]) for place in np.ndindex(called.shape[:2])
    ]
    return {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}


def _interval(resampled: Resampled) -> Numbers:
    """Return a number with its interval; without ends where most resamples lack a class."""
    try:
        return list(resampled.interval())
    except ValueError:
        return [resampled.value, None, None]


def _table(
    slides: Sequence[SlideRow],
    class_names: tuple[str, ...],
    probabilities: NDArray[np.float64],
    called: NDArray[np.int64],
) -> Predictions:
    return Predictions(
        class_names=class_names,
        slide_ids=tuple(row.slide_id for row in slides),
        patients=tuple(row.patient_id for row in slides),
        labels=_labels(slides, class_names),
        probabilities=probabilities,
        called=called,
    )


def _labels(slides: Sequence[SlideRow], class_names: tuple[str, ...]) -> NDArray[np.int64]:
    return np.asarray([class_names.index(row.label or "") for row in slides], np.int64)

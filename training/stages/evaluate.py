"""Step 6: what each method says of the test slides, and the numbers that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax

from napari_lrmil.model.mil import MILModel
from training.data.bags import Bags
from training.data.predictions import Predictions, SlideAttention
from training.data.table import SlideRow
from training.intervals import FoldScores, Resampled, class_aucs, resample_aucs, within_fold_auc
from training.methods import (
    BY_KEY,
    METHOD_KEYS,
    OURS,
    SHORTCUT_KEYS,
    MethodKey,
    ShortcutKey,
    method_name,
)
from training.metrics import auc, call_metrics, fit_temperature
from training.section import Section
from training.stages.heads import Fit, bag_logits, bag_outputs
from training.stages.shortcuts import ShortcutFeatures, shortcut_predictions

Numbers: TypeAlias = list[float | None]
"""Value, low end and high end of a 95 % interval; the ends None where most resamples lack a class."""
MethodResult: TypeAlias = dict[str, "float | int | Numbers | list[list[float]] | dict[str, float] | None"]
"""Name of a metric -> its value, as ``results.json`` holds it."""


class EvaluateSection(Section):
    """What is compared on the test slides."""

    methods: tuple[MethodKey, ...] = Field(
        default=METHOD_KEYS, description="rows of the table; lrmil is always trained"
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
    test: Bags,
    slides: Sequence[SlideRow],
    places: Sequence[NDArray[np.int64]],
    class_names: tuple[str, ...],
    device: torch.device,
) -> tuple[Predictions, dict[str, SlideAttention]]:
    """Return what a head says of test slides, at the temperature that the validation slides ask for.

    Parameters
    ----------
    model : MILModel
    val, test : Bags
    slides : sequence of SlideRow
        The test slides.
    places : sequence of (N, 2) arrays
        (row, col) of their tiles.
    class_names : tuple of str
    device : torch.device

    Returns
    -------
    predictions : Predictions
    attention : dict
        By slide.
    """
    temperature = fit_temperature(bag_logits(model, val, device), val.labels)
    logits, attention = [], {}
    outputs = bag_outputs(model, test, device)
    for row, tiles, output in zip(slides, places, outputs, strict=True):
        logits.append(output.bag_logits.double().numpy() / temperature)
        attention[row.slide_id] = SlideAttention(output.attention_scores.double().numpy(), tiles)
    return _table(slides, class_names, softmax(np.stack(logits), axis=1), temperature), attention


def predict_shortcut(
    slide_features: tuple[str, ...],
    features: Mapping[str, ShortcutFeatures],
    train: Sequence[SlideRow],
    val: Sequence[SlideRow],
    test: Sequence[SlideRow],
    class_names: tuple[str, ...],
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
    fitted_auc : float
        See `MILSection`.
    """
    vectors = [
        np.stack([features[row.slide_id].vector(slide_features) for row in part])
        for part in (train, val, test)
    ]
    labels = [_labels(part, class_names) for part in (train, val)]
    asked = np.concatenate([vectors[0], vectors[2]])
    probabilities = shortcut_predictions(
        vectors[0], labels[0], vectors[1], labels[1], asked, n_classes=len(class_names)
    )
    of_train, of_test = probabilities[: len(train)], probabilities[len(train) :]
    train_auc = auc(labels[0], of_train)
    return _table(test, class_names, of_test, 1.0), Fit(train_auc=train_auc, fitted=train_auc >= fitted_auc)


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
    return FoldScores(
        first.labels, first.patients, probabilities.reshape(-1, n_heads, *probabilities.shape[1:])
    )


def compare_methods(
    tested: Mapping[str, Sequence[FoldScores]],
    fits: Mapping[str, Sequence[Fit]],
    class_names: tuple[str, ...],
    *,
    n_resamples: int,
    seed: int,
    shares_encoder: bool = False,
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
    shares_encoder : bool
        Whether one f' serves all folds.

    Returns
    -------
    dict
        Method -> metrics, as docs/exports.md describes them.
    """
    resampled = resample_aucs(tested, n_resamples=n_resamples, seed=seed, shares_encoder=shares_encoder)
    results: dict[str, MethodResult] = {}
    for method, folds in tested.items():
        n_encoders, n_heads = folds[0].probabilities.shape[:2]
        by_training = [[_one_training(folds, e, h) for h in range(n_heads)] for e in range(n_encoders)]
        results[method] = {
            "auc": resampled[method].value,
            **_mean_calls(folds),
            "auc_interval": _interval(resampled[method]),
            "auc_by_class": dict(zip(class_names, class_aucs(folds).tolist(), strict=True)),
            "auc_by_training": [list(map(within_fold_auc, row)) for row in by_training],
            "n_test": sum(len(fold.labels) for fold in folds),
            **_training_fits(fits[method]),
        }
        if method != OURS.key:
            results[method]["lrmil_minus_this"] = _interval(resampled[OURS.key].minus(resampled[method]))
    return results


def is_unfitted(method: str, result: Mapping[str, object]) -> bool:
    """Whether some head of a method didn't fit its own training slides; baselines without a head aren't asked to."""
    n_unfitted = result.get("n_unfitted")
    return (
        isinstance(n_unfitted, int) and n_unfitted > 0 and method in BY_KEY and BY_KEY[method].head == "abmil"
    )


def unfitted_note(fitted_auc: float) -> str:
    """Say what the mark means."""
    return (
        f"The head did not fit its own training slides (AUC there below {fitted_auc:g}, mil.fitted_auc): the row says "
        "how training went, not what these tiles hold."
    )


def unfitted_trainings(results: Mapping[str, Mapping[str, object]]) -> str:
    """Say how many trainings of which methods didn't fit."""
    return ", ".join(
        f"{result['n_unfitted']} of {result['n_trainings']} of {method_name(method)}"
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


def _one_training(folds: Sequence[FoldScores], encoder: int, head: int) -> list[FoldScores]:
    return [
        fold._replace(probabilities=fold.probabilities[encoder : encoder + 1, head : head + 1])
        for fold in folds
    ]


def _mean_calls(folds: Sequence[FoldScores]) -> dict[str, float]:
    """Return the metrics of calls and probabilities over the slides of all folds, as their mean over trainings."""
    labels = np.concatenate([fold.labels for fold in folds])
    probabilities = np.concatenate([fold.probabilities for fold in folds], axis=2)
    each = [call_metrics(labels, one) for of_encoder in probabilities for one in of_encoder]
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
    temperature: float,
) -> Predictions:
    return Predictions(
        class_names=class_names,
        slide_ids=tuple(row.slide_id for row in slides),
        patients=tuple(row.patient_id for row in slides),
        labels=_labels(slides, class_names),
        probabilities=probabilities,
        temperature=temperature,
    )


def _labels(slides: Sequence[SlideRow], class_names: tuple[str, ...]) -> NDArray[np.int64]:
    return np.asarray([class_names.index(row.label or "") for row in slides], np.int64)

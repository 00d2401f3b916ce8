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
from training.methods import METHOD_KEYS, OURS, SHORTCUT_KEYS, MethodKey, ShortcutKey
from training.metrics import auc, bootstrap_over_patients, fit_temperature, slide_metrics
from training.section import Section
from training.stages.heads import bag_logits, bag_outputs
from training.stages.shortcuts import ShortcutFeatures, shortcut_predictions

Numbers: TypeAlias = list[float | None]
"""Value, low end and high end of a 95 % interval; the ends None where most resamples lack a class."""
MethodResult: TypeAlias = dict[str, "float | int | Numbers"]
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
    bootstrap: int = Field(default=2000, ge=100, description="resamples of patients for the 95 % intervals")


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
) -> Predictions:
    """Return what tissue fraction or colours alone say of the test slides.

    Parameters
    ----------
    slide_features : tuple of str
        What the baseline takes of a slide: names of `ShortcutFeatures`.
    features : mapping
        Of all slides, by id.
    train, val, test : sequences of SlideRow
    class_names : tuple of str
    """
    vectors = [
        np.stack([features[row.slide_id].vector(slide_features) for row in part])
        for part in (train, val, test)
    ]
    labels = [_labels(part, class_names) for part in (train, val)]
    probabilities = shortcut_predictions(
        vectors[0], labels[0], vectors[1], labels[1], vectors[2], n_classes=len(class_names)
    )
    return _table(test, class_names, probabilities, 1.0)


def compare_methods(
    pooled: Mapping[str, Predictions], *, n_resamples: int, seed: int
) -> dict[str, MethodResult]:
    """Return metrics and intervals of every method.

    Parameters
    ----------
    pooled : mapping
        Method -> its predictions over all folds.
    n_resamples : int
        Of patients, for the 95 % intervals.
    seed : int

    Returns
    -------
    dict
        Method -> metrics, with "auc_interval", "n_test" and, for all but LRMIL, "lrmil_minus_this" (paired).
    """
    results: dict[str, MethodResult] = {}
    for method, one in pooled.items():
        results[method] = {
            **slide_metrics(one.labels, one.probabilities),
            "auc_interval": _interval(one, None, n_resamples, seed),
            "n_test": len(one.labels),
        }
        if method != OURS.key:
            results[method]["lrmil_minus_this"] = _interval(pooled[OURS.key], one, n_resamples, seed)
    return results


def _interval(one: Predictions, other: Predictions | None, n_resamples: int, seed: int) -> Numbers:
    """Return the AUC of one, or its difference to another; without ends where most resamples lack a class."""

    def metric(drawn: NDArray[np.int64]) -> float:
        value = auc(one.labels[drawn], one.probabilities[drawn])
        if other is not None:
            value -= auc(other.labels[drawn], other.probabilities[drawn])
        return value

    rng = np.random.default_rng(seed)
    try:
        return list(bootstrap_over_patients(metric, list(one.patients), n_resamples=n_resamples, rng=rng))
    except ValueError:
        return [metric(np.arange(len(one.patients))), None, None]


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

"""Step 6: what each method says of the test slides, once, and the table that compares them."""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from napari_lrmil.atomic import write_text
from napari_lrmil.model.mil import MILModel
from training.data.bags import load_bags
from training.data.table import Split
from training.metrics import Interval, auc, bootstrap_over_patients, fit_temperature, slide_metrics
from training.mil_fit import bag_logits
from training.run_dir import write_json
from training.stages.context import Context

NAMES = {
    "teacher_hr": "teacher on HR",
    "lr_scratch": "LR from scratch",
    "stage1_only": "stage 1 only",
    "stage2_only": "stage 2 only",
    "lrmil": "LRMIL",
}


class FoldPredictions(NamedTuple):
    """One method on the test slides of one fold."""

    slide_ids: list[str]
    patients: list[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    temperature: float


def predict_test(
    context: Context, split: Split, method: str, model: MILModel, store_kind: str
) -> FoldPredictions:
    """Probabilities on the test fold, at the temperature that the validation fold asks for."""
    store = context.store(store_kind)
    val = load_bags(store, split.val, context.class_names)
    temperature = fit_temperature(
        bag_logits(model, val, context.device), np.asarray([bag.label for bag in val], np.int64)
    )
    test = load_bags(store, split.test, context.class_names)
    logits = bag_logits(model, test, context.device) / temperature
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    result = FoldPredictions(
        slide_ids=[row.slide_id for row in split.test],
        patients=[row.patient_id for row in split.test],
        labels=np.asarray([bag.label for bag in test], np.int64),
        probabilities=exponents / exponents.sum(axis=1, keepdims=True),
        temperature=temperature,
    )
    _write_csv(context, split, method, result)
    return result


def compare(context: Context, predictions: dict[str, list[FoldPredictions]]) -> dict[str, dict[str, object]]:
    """Metrics and intervals of every method, pooled over folds; printed, and written to ``results.json``.

    Parameters
    ----------
    context : Context
    predictions : dict
        Method -> its folds.

    Returns
    -------
    dict
        Method -> metrics, with "auc_interval" and, for all but lrmil, "lrmil_minus_this" (paired).
    """
    n_resamples = context.config.evaluate.bootstrap
    pooled = {method: _pool(folds) for method, folds in predictions.items()}
    results: dict[str, dict[str, object]] = {}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)  # within 80 columns
    for name in ("method", "AUC [95 % CI]", "LRMIL minus this", "Brier"):
        table.add_column(name, no_wrap=True)
    ours = pooled["lrmil"]
    for method, one in pooled.items():
        interval = _interval(context, n_resamples, one, None)
        metrics: dict[str, object] = {**slide_metrics(one.labels, one.probabilities)}
        metrics["auc_interval"] = list(interval)
        metrics["n_test"] = len(one.labels)
        difference = ""
        if method != "lrmil":
            paired = _interval(context, n_resamples, ours, one)
            metrics["lrmil_minus_this"] = list(paired)
            difference = f"{paired.value:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
        results[method] = metrics
        table.add_row(
            NAMES[method],
            f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
            difference,
            *(f"{metrics[name]:.3f}" for name in ("brier",)),
        )
    write_json(context.run_dir.path("results.json"), results)
    n_positive = {name: int((ours.labels == index).sum()) for index, name in enumerate(context.class_names)}
    slides = ", ".join(f"{count} {name}" for name, count in n_positive.items())
    context.reporter.say(
        f"\nTest slides: {slides}; intervals by bootstrap over patients ({n_resamples} resamples)."
    )
    context.reporter.console.print(table)
    return results


def _interval(
    context: Context, n_resamples: int, one: FoldPredictions, other: FoldPredictions | None
) -> Interval:
    def metric(drawn: NDArray[np.int64]) -> float:
        value = auc(one.labels[drawn], one.probabilities[drawn])
        if other is not None:
            value -= auc(other.labels[drawn], other.probabilities[drawn])
        return value

    rng = np.random.default_rng(context.config.run.seed)
    return bootstrap_over_patients(metric, one.patients, n_resamples=n_resamples, rng=rng)


def _pool(folds: list[FoldPredictions]) -> FoldPredictions:
    return FoldPredictions(
        slide_ids=[name for fold in folds for name in fold.slide_ids],
        patients=[name for fold in folds for name in fold.patients],
        labels=np.concatenate([fold.labels for fold in folds]),
        probabilities=np.concatenate([fold.probabilities for fold in folds]),
        temperature=float(np.mean([fold.temperature for fold in folds])),
    )


def _write_csv(context: Context, split: Split, method: str, result: FoldPredictions) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "patient_id", "label", *(f"p_{name}" for name in context.class_names)])
    for slide_id, patient, label, row in zip(
        result.slide_ids, result.patients, result.labels, result.probabilities, strict=True
    ):
        writer.writerow([slide_id, patient, context.class_names[label], *(f"{value:.6f}" for value in row)])
    write_text(context.run_dir.path(f"fold{split.fold}", "predictions", f"{method}.csv"), text.getvalue())

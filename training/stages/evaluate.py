"""Step 6: what each method says of the test slides, once, and the table that compares them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.special import softmax

from napari_lrmil.atomic import write_text
from napari_lrmil.model.mil import MILModel
from napari_lrmil.slide.files import stamp_of
from training.config import content_hash
from training.data.store import EmbeddingStore
from training.data.table import SlideRow, Split
from training.metrics import auc, bootstrap_over_patients, fit_temperature, slide_metrics
from training.mil_fit import bag_logits, bag_outputs
from training.run_dir import save_tensors, write_json
from training.shortcuts import ShortcutFeatures, shortcut_predictions, slide_shortcuts
from training.stages.context import Context

NAMES = {
    "teacher_hr": "teacher on HR",
    "lr_scratch": "LR from scratch",
    "stage1_only": "stage 1 only",
    "stage2_only": "stage 2 only",
    "lrmil": "LRMIL",
    "random_init": "random encoder",
    "rgb": "colour alone",
    "tissue_fraction": "tissue alone",
}


class FoldPredictions(NamedTuple):
    """One method on the test slides of one fold."""

    slide_ids: list[str]
    patients: list[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    temperature: float


def predict_test(
    context: Context,
    split: Split,
    method: str,
    model: MILModel,
    store: EmbeddingStore,
    *,
    hr: bool,
    key: str,
) -> FoldPredictions:
    """Probabilities on the test fold, at the temperature that the validation fold asks for.

    Writes ``foldN/predictions/<method>.csv`` and ``foldN/test_attention/<method>.safetensors``: of each test slide the
    attention scores (N,) and the places (N, 2) of its tiles.

    Parameters
    ----------
    context : Context
    split : Split
    method : str
    model : MILModel
    store : EmbeddingStore
    hr : bool
        Whether it holds HR tiles.
    key : str
        Hash of the step's inputs: with the same, what was written is read.
    """
    step = f"fold{split.fold}/test_{method}"
    table = context.run_dir.path(f"fold{split.fold}", "predictions", f"{method}.csv")
    attention = context.run_dir.path(f"fold{split.fold}", "test_attention", f"{method}.safetensors")
    if context.run_dir.is_done(step, key) and table.is_file() and attention.is_file():
        return _read(context, split, table)
    context.run_dir.forget(step)
    val = context.bags(store, split.val)
    temperature = fit_temperature(bag_logits(model, val, context.device), val.labels)
    logits, tensors = [], {}
    test = context.bags(store, split.test, share=0.0)
    for item, output in zip(
        context.tiles_of(split.test), bag_outputs(model, test, context.device), strict=True
    ):
        logits.append(output.bag_logits.double().numpy() / temperature)
        tensors[f"{item.row.slide_id}/attention_scores"] = output.attention_scores
        places = item.hr_places if hr else item.lr_places
        tensors[f"{item.row.slide_id}/places"] = torch.from_numpy(places.astype(np.int64))
    save_tensors(attention, tensors)
    _write(context, split, table, softmax(np.stack(logits), axis=1), temperature)
    context.run_dir.mark_done(step, key)
    return _read(context, split, table)


def predict_shortcut(
    context: Context, split: Split, method: Literal["tissue_fraction", "rgb"], *, key: str
) -> FoldPredictions:
    """What tissue fraction or colours alone say of the test fold (method.md section 6); `key` as in `predict_test`."""
    step = f"fold{split.fold}/test_{method}"
    table = context.run_dir.path(f"fold{split.fold}", "predictions", f"{method}.csv")
    if context.run_dir.is_done(step, key) and table.is_file():
        return _read(context, split, table)
    context.run_dir.forget(step)
    features, labels = [], []
    for part in (split.train, split.val, split.test):
        features.append(np.stack([shortcut_features(context, row).vector(method) for row in part]))
        labels.append(np.asarray([context.class_names.index(row.label or "") for row in part], np.int64))
    probabilities = shortcut_predictions(
        features[0], labels[0], features[1], labels[1], features[2], n_classes=len(context.class_names)
    )
    _write(context, split, table, probabilities, 1.0)
    context.run_dir.mark_done(step, key)
    return _read(context, split, table)


def shortcut_features(context: Context, row: SlideRow) -> ShortcutFeatures:
    """Of one slide, read once a run."""
    place = context.run_dir.path("shortcuts", f"{row.slide_id}.json")
    item = context.tiles[row.slide_id]
    key = content_hash(stamp_of(row.path), row.mpp, context.geometry, item.lr_places.tobytes().hex())
    if place.is_file():
        saved = json.loads(place.read_text(encoding="utf-8"))
        if saved.pop("key") == key:
            return ShortcutFeatures(
                **{
                    name: np.asarray(value) if isinstance(value, list) else value
                    for name, value in saved.items()
                }
            )
    with context.geometry.open(row) as slide:
        found = slide_shortcuts(slide, item, context.geometry, threads=context.config.run.threads)
    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else float(value)
        for name, value in found._asdict().items()
    }
    write_json(place, {"key": key} | values)
    return found


def sweep(context: Context, made: set[tuple[str, str]]) -> None:
    """Remove what earlier configs of this directory left of other folds or methods: it would pass for this run's.

    Parameters
    ----------
    context : Context
    made : set of (str, str)
        Folder of a fold and name of a method.
    """
    for pattern in ("fold*/predictions/*.csv", "fold*/test_attention/*.safetensors"):
        for path in context.run_dir.root.glob(pattern):
            if (path.parents[1].name, path.stem) not in made:
                path.unlink()


def compare(context: Context, predictions: dict[str, list[FoldPredictions]]) -> dict[str, dict[str, Any]]:
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
    results = _results(context, pooled)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)  # within 80 columns
    for name in ("method", "AUC [95 % CI]", "LRMIL minus this", "Brier"):
        table.add_column(name, no_wrap=True)
    ours = pooled["lrmil"]
    for method, metrics in results.items():
        difference = _shown(metrics["lrmil_minus_this"], "+.3f") if "lrmil_minus_this" in metrics else ""
        table.add_row(
            NAMES[method], _shown(metrics["auc_interval"], ".3f"), difference, f"{metrics['brier']:.3f}"
        )
    write_json(context.run_dir.path("results.json"), results)
    n_positive = {name: int((ours.labels == index).sum()) for index, name in enumerate(context.class_names)}
    slides = ", ".join(f"{count} {name}" for name, count in n_positive.items())
    context.reporter.say(
        f"\nTest slides: {slides}; intervals by bootstrap over patients ({n_resamples} resamples)."
    )
    context.reporter.console.print(table)
    return results


def _results(context: Context, pooled: dict[str, FoldPredictions]) -> dict[str, dict[str, Any]]:
    """The metrics of all methods; thousands of resamples, so that the same ones aren't taken twice."""
    n_resamples = context.config.evaluate.bootstrap
    key = content_hash(
        n_resamples,
        context.config.run.seed,
        [
            (method, one.patients, one.labels.tolist(), one.probabilities.tolist())
            for method, one in pooled.items()
        ],
    )
    # Not results.json itself: that one is absent while a run is at work.
    place = context.run_dir.path("done", "results.json")
    if context.run_dir.is_done("results", key) and place.is_file():
        known: dict[str, dict[str, Any]] = json.loads(place.read_text(encoding="utf-8"))
        return known
    context.run_dir.forget("results")
    results: dict[str, dict[str, Any]] = {}
    for method, one in pooled.items():
        results[method] = {
            **slide_metrics(one.labels, one.probabilities),
            "auc_interval": _interval(context, n_resamples, one, None),
            "n_test": len(one.labels),
        }
        if method != "lrmil":
            results[method]["lrmil_minus_this"] = _interval(context, n_resamples, pooled["lrmil"], one)
    write_json(place, results)
    context.run_dir.mark_done("results", key)
    return results


def _interval(
    context: Context, n_resamples: int, one: FoldPredictions, other: FoldPredictions | None
) -> list[float | None]:
    """Value, low, high; the ends None where most resamples lack a class, as with five classes of one patient each."""

    def metric(drawn: NDArray[np.int64]) -> float:
        value = auc(one.labels[drawn], one.probabilities[drawn])
        if other is not None:
            value -= auc(other.labels[drawn], other.probabilities[drawn])
        return value

    rng = np.random.default_rng(context.config.run.seed)
    try:
        return list(bootstrap_over_patients(metric, one.patients, n_resamples=n_resamples, rng=rng))
    except ValueError:
        return [metric(np.arange(len(one.patients))), None, None]


def _shown(interval: list[float | None], how: str) -> str:
    value, *ends = ("-" if number is None else format(number, how) for number in interval)
    return f"{value} [{', '.join(ends)}]"


def _pool(folds: list[FoldPredictions]) -> FoldPredictions:
    return FoldPredictions(
        slide_ids=[name for fold in folds for name in fold.slide_ids],
        patients=[name for fold in folds for name in fold.patients],
        labels=np.concatenate([fold.labels for fold in folds]),
        probabilities=np.concatenate([fold.probabilities for fold in folds]),
        temperature=float(np.mean([fold.temperature for fold in folds])),
    )


def _write(
    context: Context, split: Split, table: Path, probabilities: NDArray[np.float64], temperature: float
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["slide_id", "patient_id", "label", *(f"p_{name}" for name in context.class_names), "temperature"]
    )
    # Every digit: what is read back after an interruption is what was found.
    for row, values in zip(split.test, probabilities.tolist(), strict=True):
        writer.writerow([row.slide_id, row.patient_id, row.label, *map(repr, values), repr(temperature)])
    write_text(table, text.getvalue())


def _read(context: Context, split: Split, table: Path) -> FoldPredictions:
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return FoldPredictions(
        slide_ids=[row.slide_id for row in split.test],
        patients=[row.patient_id for row in split.test],
        labels=np.asarray([context.class_names.index(row["label"]) for row in rows], np.int64),
        probabilities=np.asarray(
            [[float(row[f"p_{name}"]) for name in context.class_names] for row in rows], np.float64
        ),
        temperature=float(rows[0]["temperature"]),
    )

"""The report's tables and captions as plain values, ready for the template."""

from __future__ import annotations

import math
from typing import NamedTuple

from napari_lrmil.model.bundle import BundleInfo
from napari_lrmil.model.mil import HEADS
from training.data.predictions import Predictions
from training.methods import BY_KEY, EMBEDDINGS, LEARNED, OURS, SHORTCUT_KEYS, method_name
from training.metrics import Interval, slide_metrics
from training.report.data import FoldData, RunData
from training.report.plots import Series
from training.report.stats import confusion, mean_sd
from training.stages.evaluate import is_unfitted

METRICS = (
    ("balanced_accuracy", "balanced accuracy"),
    ("accuracy", "accuracy"),
    ("weighted_f1", "weighted F1"),
    ("brier", "Brier"),
    ("ece", "ECE"),
)
FOLD_METRICS = (
    ("auc", "AUC"),
    ("balanced_accuracy", "balanced accuracy"),
    ("brier", "Brier"),
    ("ece", "ECE"),
)


class MethodRow(NamedTuple):
    """A row of the comparison; `difference` is LRMIL minus this method, None for LRMIL itself.

    Of an interval that results.json doesn't hold, low and high are NaN; so is `train_auc` of a run of earlier versions.
    `unfitted` says that some head didn't fit its own training slides, `left_out` which terms of stage 2 its heads leave
    without meaning, and why; empty where none.
    """

    method: str
    name: str
    ours: bool
    shortcut: bool
    series: Series
    auc: Interval
    difference: Interval | None
    metrics: list[float]
    n_test: int
    train_auc: float
    unfitted: bool
    left_out: str


class ClassRow(NamedTuple):
    """The AUC of one method for each class against the rest, and their mean."""

    name: str
    ours: bool
    macro: float
    by_class: list[float]


class FoldRow(NamedTuple):
    """One method on one fold."""

    fold: int
    n: int
    metrics: list[float]


class FoldBlock(NamedTuple):
    """One method on all folds; `summary` is mean and standard deviation a metric."""

    name: str
    ours: bool
    shortcut: bool
    rows: list[FoldRow]
    summary: list[tuple[float, float | None]]


class Part(NamedTuple):
    """Slides and patients of a part of a fold, and the slides of each class."""

    slides: int
    patients: int
    by_class: list[int]


class FoldParts(NamedTuple):
    """How one fold used the slides; None where that isn't known. `extra` counts unlabelled slides."""

    fold: int
    train: Part | None
    val: Part | None
    test: Part
    extra: int | None
    calibration: int | None
    called: str


class ConfusionRow(NamedTuple):
    """A label: counts a predicted class, their shares of the row, and the row's total."""

    name: str
    counts: list[int]
    shares: list[float]
    total: int


def series_of(data: RunData) -> dict[str, Series]:
    """Return each method's colour and dashes: LRMIL has the first."""
    others = [method for method in data.methods if method != OURS.key]
    return {OURS.key: Series(0)} | {method: Series(1 + place) for place, method in enumerate(others)}


def comparison(data: RunData) -> list[MethodRow]:
    """Return what results.json says, method by method."""
    series = series_of(data)
    rows = []
    for method, result in data.results.items():
        rows.append(
            MethodRow(
                method=method,
                name=method_name(method, result)
                + (", transductive" if _is_transductive(data, method) else ""),
                ours=method == OURS.key,
                shortcut=method in SHORTCUT_KEYS,
                series=series[method],
                auc=_interval(result.get("auc_interval"), result.get("auc")),
                difference=None if method == OURS.key else _interval(result.get("lrmil_minus_this"), None),
                metrics=[_number(result.get(name)) for name, _ in METRICS],
                n_test=int(result.get("n_test", len(data.pooled(method).labels))),
                train_auc=_number(result.get("train_auc")),
                unfitted=is_unfitted(method, result),
                left_out=str(result.get("left_out") or ""),
            )
        )
    return rows


def class_rows(data: RunData) -> list[ClassRow]:
    """Return the AUC by class; none where there are two, of which either's is the other's, or the run doesn't say."""
    if len(data.class_names) == 2:
        return []
    return [
        ClassRow(
            method_name(method, result),
            method == OURS.key,
            _number(result.get("auc")),
            [_number(result["auc_by_class"].get(name)) for name in data.class_names],
        )
        for method, result in data.results.items()
        if "auc_by_class" in result
    ]


def _is_transductive(data: RunData, method: str) -> bool:
    return data.is_transductive and method in BY_KEY and BY_KEY[method].is_after_stage1


def encoders_text(data: RunData) -> str:
    """Say in words what f and f' are, and which rows read more of a test slide than its LR pixels."""
    own = {row.get("key"): row.get("embedding") for row in data.config.get("compare") or []}
    finer, calls = [], []
    for method, result in data.results.items():
        known = BY_KEY.get(method)
        embedding = known.embedding if known else (EMBEDDINGS | LEARNED).get(str(own.get(method)))
        if embedding is None:
            continue
        if embedding.pixels in ("hr", "mid"):
            finer.append(method_name(method, result))
        elif embedding.pixels == "enlarged":
            calls.append(method_name(method, result))
    text = (
        "f is the teacher's encoder, as it came; f\u2032 is the student's, which began as f and learned in stage 1 to say of an "
        "LR tile what f says of the same tissue at HR."
    )
    if finer:
        text += f" Pixels finer than LR are read by: {', '.join(finer)}."
    if calls:
        text += f" LR pixels, but more encoder calls than LRMIL's: {', '.join(calls)}."
    text += " All other rows read LR tiles alone"
    several = [name for name in _heads(data) if name in HEADS and _reads_several(name)]
    return text + (f", with head {' or '.join(several)} coarser ones too." if several else ".")


def _heads(data: RunData) -> list[str]:
    """Return the names of heads that a run's config says, each once."""
    mil, rows = data.config.get("mil") or {}, data.config.get("compare") or []
    found = [mil.get("name"), *((mil.get(side) or {}).get("name") for side in ("teacher", "student"))]
    for row in rows:
        found += [row.get("head"), (row.get("mil") or {}).get("name")]
    return list(dict.fromkeys(str(name) for name in found if name))


def _reads_several(head: str) -> bool:
    return len(HEADS[head].model_validate({"embed_dim": 1, "n_classes": 2}).factors) > 1


def largest_difference(rows: list[MethodRow]) -> float:
    """Return half of the scale on which differences are drawn."""
    ends = [abs(end) for row in rows if row.difference for end in row.difference if math.isfinite(end)]
    return max([0.05, *ends])


def fold_blocks(data: RunData) -> list[FoldBlock]:
    """Return metrics of each fold's test slides, from its predictions."""
    blocks = []
    for method in data.methods:
        rows = [
            FoldRow(fold.fold, len(fold.predictions[method].labels), _fold_metrics(fold.predictions[method]))
            for fold in data.folds
        ]
        summary = [mean_sd([row.metrics[place] for row in rows]) for place in range(len(FOLD_METRICS))]
        blocks.append(
            FoldBlock(
                method_name(method, data.results[method]),
                method == OURS.key,
                method in SHORTCUT_KEYS,
                rows,
                summary,
            )
        )
    return blocks


def fold_parts(data: RunData) -> list[FoldParts]:
    """Return numbers of slides and patients that each fold learned from, was stopped on, and was tested on."""
    return [_parts(fold, data.class_names) for fold in data.folds]


def confusion_rows(data: RunData) -> list[ConfusionRow]:
    """Return LRMIL's confusion matrix, of all folds together."""
    ours = data.pooled(OURS.key)
    rows = []
    for name, counts in zip(
        data.class_names,
        confusion(ours.labels, ours.called, len(data.class_names)).tolist(),
        strict=True,
    ):
        total = sum(counts)
        rows.append(
            ConfusionRow(name, counts, [count / total if total else math.nan for count in counts], total)
        )
    return rows


def _interval(triple: object, value: object) -> Interval:
    if isinstance(triple, list) and len(triple) == 3:
        return Interval(*map(_number, triple))
    return Interval(_number(value), math.nan, math.nan)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _fold_metrics(one: Predictions) -> list[float]:
    try:
        found = slide_metrics(one.labels, one.probabilities, one.called)
    except ValueError:  # a fold without one of the classes
        return [math.nan] * len(FOLD_METRICS)
    return [found[name] for name, _ in FOLD_METRICS]


def _parts(fold: FoldData, class_names: tuple[str, ...]) -> FoldParts:
    test = fold.predictions[OURS.key]
    counts = [int((test.labels == index).sum()) for index in range(len(class_names))]
    split = fold.split
    known = {
        name: Part(
            len(rows),
            len({row.patient_id for row in rows}),
            [sum(row.label == label for row in rows) for label in class_names],
        )
        for name, rows in ({} if split is None else {"train": split.train, "val": split.val}).items()
    }
    return FoldParts(
        fold=fold.fold,
        train=known.get("train"),
        val=known.get("val"),
        test=Part(len(test.labels), len(set(test.patients)), counts),
        extra=None if split is None else len(split.extra),
        calibration=None if split is None else len(split.calibration),
        called=_called_text(fold.info),
    )


def _called_text(info: BundleInfo | None) -> str:
    point = None if info is None else info.operating_point
    if info is None or point is None:
        return "most probable"
    if len(point.thresholds) == 2:
        return f"{info.class_names[1]} from {point.thresholds[1]:.3g}"
    return ", ".join(
        f"{name} {value:.3g}" for name, value in zip(info.class_names, point.thresholds, strict=True)
    )

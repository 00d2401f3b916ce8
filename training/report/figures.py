"""Which plots the page shows, each with its caption and legend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from training.methods import OURS, SHORTCUT_KEYS, TEACHER, method_name
from training.metrics import brier, expected_calibration_error
from training.report.data import RunData
from training.report.plots import (
    Series,
    Spot,
    Trace,
    calibration_panel,
    curve_panel,
    front_panel,
    roc_panel,
)
from training.report.stats import Bin, Roc, best_epoch, class_rocs, fold_mean_roc, macro_roc, reliability
from training.report.tables import comparison, series_of
from training.run.layout import Curve


class Key(NamedTuple):
    """An entry of a legend."""

    series: Series
    name: str


@dataclass(frozen=True)
class Panel:
    """A plot; `caption` says in words what it shows."""

    svg: str
    title: str
    caption: str
    ours: bool = False


@dataclass(frozen=True)
class Group:
    """Panels that share a legend; `title` may be empty."""

    title: str
    panels: list[Panel]
    keys: list[Key] = field(default_factory=list)
    large: bool = False


_COSTS = (
    ("seconds", "seconds a slide"),
    ("tiles", "tiles a slide"),
    ("read_megabytes", "MB read of a slide"),
)


def front_group(data: RunData) -> Group | None:
    """Draw AUC over what each row costs a slide, one panel a cost; None where the run doesn't say."""
    front = data.front
    if front is None:
        return None
    aucs = {row.method: row.auc for row in comparison(data)}
    series = series_of(data)
    bar = front.row(TEACHER.key).test_auc - front.margin
    panels = []
    for name, label in _COSTS:
        spots = [
            Spot(getattr(row.costs, name), aucs[row.key], series[row.key], row.key == front.chosen)
            for row in front.rows
        ]
        said = "; ".join(
            f"{row.name} {getattr(row.costs, name):.3g}, AUC {row.test_auc:.3f}" for row in front.rows
        )
        title = label[0].upper() + label[1:]
        panels.append(Panel(front_panel(f"front-{name}", spots, label=label, bar=bar), title, f"{said}."))
    keys = [Key(series[row.key], row.name) for row in front.rows]
    return Group("", panels, keys)


def roc_groups(data: RunData) -> list[Group]:
    """Draw all methods in one panel, then each alone: by fold for two classes, by class for more."""
    series = series_of(data)
    by_class = {method: _class_rocs(data, method) for method in data.methods}
    macro = {method: macro_roc(curves) for method, curves in by_class.items()}
    known = {method: curve for method, curve in macro.items() if curve is not None}
    if not known:
        return []
    many = len(data.class_names) > 2
    together = []
    for name, title, members in (
        ("roc-methods", "Methods", [method for method in known if method not in SHORTCUT_KEYS]),
        ("roc-shortcuts", "Shortcut baselines", [method for method in known if method in SHORTCUT_KEYS]),
    ):
        if members:
            # LRMIL last, so that it lies on top.
            order = [*(method for method in members if method != OURS.key), OURS.key]
            lines = [
                (known[method], series[method], method == OURS.key) for method in order if method in known
            ]
            mean = "; mean over classes" if many else ""
            caption = f"{'With LRMIL. ' if OURS.key not in members else ''}Mean over folds{mean}."
            together.append(Panel(roc_panel(name, lines), title, caption))
    keys = [Key(series[method], method_name(method, data.results[method])) for method in known]
    groups = [Group("All methods", together, keys, large=True)]
    panels = []
    for place, (method, curve) in enumerate(known.items()):
        if many:
            lines = [
                (one, Series(1 + index), False)
                for index, one in enumerate(by_class[method])
                if one is not None
            ]
            areas = ", ".join(
                f"{name} {one.area:.3f}"
                for name, one in zip(data.class_names, by_class[method], strict=True)
                if one is not None
            )
            caption = f"AUC {curve.area:.3f}, the mean of {areas}."
        else:
            lines = _fold_rocs(data, method)
            caption = f"AUC {curve.area:.3f}, mean over folds."
        lines.append((curve, series[OURS.key], True))
        panels.append(
            Panel(
                roc_panel(f"roc-{place}", lines),
                method_name(method, data.results[method]),
                caption,
                ours=method == OURS.key,
            )
        )
    if many:
        keys = [Key(Series(1 + index), name) for index, name in enumerate(data.class_names)]
        keys.append(Key(series[OURS.key], "mean over classes"))
        groups.append(Group("Each method, by class against the rest", panels, keys))
    elif len(data.folds) > 1:
        keys = [Key(Series(1 + place), f"fold {fold.fold}") for place, fold in enumerate(data.folds)]
        groups.append(
            Group("Each method, by fold", panels, [*keys, Key(series[OURS.key], "mean over folds")])
        )
    else:
        groups.append(Group("Each method", panels))
    return groups


def _class_rocs(data: RunData, method: str) -> list[Roc | None]:
    """Return a curve a class against the rest, the mean over folds; for two classes only the second's."""
    n_classes = len(data.class_names)
    of_fold = [fold.predictions[method] for fold in data.folds]
    return [
        fold_mean_roc([(one.labels == index, one.probabilities[:, index]) for one in of_fold])
        for index in ([1] if n_classes == 2 else range(n_classes))
    ]


def _fold_rocs(data: RunData, method: str) -> list[tuple[Roc, Series, bool]]:
    if len(data.folds) == 1:
        return []
    found = []
    for place, fold in enumerate(data.folds):
        one = fold.predictions[method]
        curve = class_rocs(one.labels, one.probabilities)[0]
        if curve is not None:
            found.append((curve, Series(1 + place), False))
    return found


def calibration_group(data: RunData) -> tuple[Group, list[Bin]]:
    """Draw a reliability diagram a method; return the bins of LRMIL's, too."""
    series = series_of(data)
    panels = []
    ours: list[Bin] = []
    for place, method in enumerate(sorted(data.methods, key=lambda method: method != OURS.key)):
        one = data.pooled(method)
        bins = reliability(one.labels, one.probabilities)
        if method == OURS.key:
            ours = bins
        result = data.results[method]
        ece = result.get("ece", expected_calibration_error(one.labels, one.probabilities))
        score = result.get("brier", brier(one.labels, one.probabilities))
        panels.append(
            Panel(
                calibration_panel(
                    f"calibration-{place}", bins, series[method], n_classes=len(data.class_names)
                ),
                method_name(method, data.results[method]),
                f"ECE {ece:.3f}, Brier {score:.3f}; {len(one.labels)} slides.",
                ours=method == OURS.key,
            )
        )
    return Group("", panels), ours


def curve_groups(data: RunData) -> list[Group]:
    """Draw training curves: stage 1, then each head, a line a fold."""
    groups = []
    stage1 = {fold.fold: fold.stage1 for fold in data.folds if fold.stage1 is not None}
    if stage1:
        title = "Stage 1: the student encoder"
        groups.append(_curve_group("stage1", title, stage1, {**_fold_series(data)}, "fold"))
    elif data.shared_stage1 is not None:
        title = "Stage 1: the student encoder, one for all folds"
        groups.append(_curve_group("stage1", title, {0: data.shared_stage1}, {0: Series(0)}, ""))
    for place, method in enumerate(data.methods):
        curves = {fold.fold: fold.heads[method] for fold in data.folds if method in fold.heads}
        if curves:
            title = f"Head: {method_name(method, data.results[method])}"
            groups.append(_curve_group(f"head-{place}", title, curves, _fold_series(data), "fold"))
    return groups


def _fold_series(data: RunData) -> dict[int, Series]:
    return {fold.fold: Series(place) for place, fold in enumerate(data.folds)}


def _curve_group(
    name: str, title: str, curves: dict[int, Curve], series: dict[int, Series], word: str
) -> Group:
    columns = list(
        dict.fromkeys(
            column for curve in curves.values() for column in curve if column not in ("epoch", "kept")
        )
    )
    # With one loss only, the sum and its one term are the same line.
    if [column for column in columns if column.startswith("train_")] == ["train_loss", "train_ce"]:
        columns.remove("train_ce")
    panels = []
    for place, column in enumerate(columns):
        traces = [
            Trace(curve["epoch"], curve[column], series[fold], best_epoch(curve))
            for fold, curve in curves.items()
            if column in curve
        ]
        label = column_name(column)
        svg = curve_panel(f"{name}-{place}", traces, label=label, unit_range=column.endswith("_auc"))
        panels.append(Panel(svg, label, _ends(curves, column)))
    keys = [Key(series[fold], f"{word} {fold}") for fold in curves] if word and len(curves) > 1 else []
    return Group(title, panels, keys)


def _ends(curves: dict[int, Curve], column: str) -> str:
    """Say where the lines end, for those who can't see them."""
    parts = []
    for curve in curves.values():
        kept = best_epoch(curve)
        if column in curve and kept is not None:
            parts.append(f"{curve[column][kept]:.3g}")
    return f"At the kept epoch: {', '.join(parts)}." if parts else ""


_TERMS = {
    "loss": "loss",
    "ce": "cross-entropy",
    "bag": "bag term",
    "soft": "soft attention term",
    "hard": "hard attention term",
    "layer": "layer term",
    "attention": "attention term",
    "last": "last-layer term",
    "gradient": "mean length of the gradient",
    "clipped": "share of clipped steps",
    "gradient_layer": "gradient of the layer term",
    "gradient_last": "gradient of the last-layer term",
    "gradient_attention": "gradient of the attention term",
    "auc": "AUC",
}


def column_name(column: str) -> str:
    """Say a column of a metrics file in words: train_ce is the training cross-entropy."""
    part, _, term = column.partition("_")
    words = {"train": "training", "val": "validation"}
    if part not in words or not term:
        return column.replace("_", " ")
    return f"{words[part]} {_TERMS.get(term, term.replace('_', ' '))}"

"""Run directories made by hand, and what a page holds."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from training.metrics import auc, call_metrics

VOID = {"meta", "img", "br", "line", "circle", "path", "use", "rect", "link", "input"}


class Page(HTMLParser):
    """Tags with attributes, table rows as lists of texts, and all text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if ("td" in self.open or "th" in self.open) and self.rows:
            self.rows[-1][-1] += data

    def row(self, first: str, n_cells: int) -> list[str]:
        """The one row of `n_cells` that begins with `first`."""
        (found,) = [row for row in self.rows if len(row) == n_cells and row[0] == first]
        return found

    def values(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]


def write_csv(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def make_run(
    root: Path,
    *,
    class_names: tuple[str, ...] = ("a", "b", "c"),
    methods: tuple[str, ...] = ("teacher_hr", "rgb", "lrmil"),
    n_folds: int = 2,
    per_fold: int = 9,
    prefix: str = "slide",
    name: str = "By hand",
) -> Path:
    """A finished run without bundles, slides or table: random probabilities, true numbers in results.json."""
    rng = np.random.default_rng(3)
    n_classes = len(class_names)
    labels = np.tile(np.arange(n_classes), per_fold)[:per_fold]
    results: dict[str, dict[str, object]] = {}
    for method in methods:
        parts = []
        for fold in range(n_folds):
            scores = rng.random((per_fold, n_classes)) + 0.4 * np.eye(n_classes)[labels]
            parts.append(scores / scores.sum(axis=1, keepdims=True))
            header = ["slide_id", "patient_id", "label", *(f"p_{one}" for one in class_names)]
            write_csv(
                root / f"fold{fold}" / "predictions" / f"{method}.csv",
                [header]
                + [
                    [f"{prefix}-{fold}-{i}", f"patient-{prefix}-{fold}-{i}", class_names[labels[i]], *row]
                    for i, row in enumerate(parts[-1].tolist())
                ],
            )
            if method != "rgb":
                write_csv(
                    root / f"fold{fold}" / "metrics" / f"{method}.csv",
                    [["epoch", "train_loss", "train_ce", "val_auc", "val_loss"]]
                    + [
                        [float(epoch), 1 / (1 + epoch), 1 / (1 + epoch), 0.6, 0.7 - 0.1 * epoch]
                        for epoch in range(3)
                    ],
                )
        pooled, all_labels = np.concatenate(parts), np.tile(labels, n_folds)
        value = float(np.mean([auc(labels, part) for part in parts]))
        results[method] = {
            **call_metrics(all_labels, pooled, pooled.argmax(axis=1)),
            "auc": value,
            "auc_interval": [value, value - 0.1, min(1.0, value + 0.1)],
            "auc_by_class": {one: 0.7 + 0.01 * place for place, one in enumerate(class_names)},
            "n_test": len(all_labels),
            "train_auc": 0.875 if method == "teacher_hr" else 0.995,
            "n_trainings": n_folds,
            "n_unfitted": 0 if method == "lrmil" else 1,
        }
        if method != "lrmil":
            results[method]["lrmil_minus_this"] = [0.012, -0.034, 0.056]
    config = {
        "run": {"out_dir": str(root.absolute()), "seed": 4},
        "data": {"slides": "/home/someone/secret-study/slides.csv", "n_folds": n_folds},
        "evaluate": {"bootstrap": 123},
        "export": {"name": name, "description": "", "training_data": "", "demonstration": False},
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(config))
    (root / "results.json").write_text(json.dumps(results))
    return root

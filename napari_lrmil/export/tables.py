"""Many slides as one table, and how every table of this program is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil.atomic import write_text
from napari_lrmil.table import spreadsheet_safe

if TYPE_CHECKING:
    from napari_lrmil.cache import ResultSummary
    from napari_lrmil.predict import SlidePrediction

PREDICTIONS_NAME = "predictions.csv"
FAILED = "failed"
"""Stands in the place of a status, and of an error where errors, which can name a file, stay out."""

_BEFORE_CLASSES = ("slide", "answer", "label", "status")
_RESULT_COLUMNS = (
    "unsure",
    "prediction_set",
    "coverage",
    "out_of_distribution",
    "ood_score",
    "ood_threshold",
)
_WITHHELD_COLUMNS = ("label_not_to_be_used", "probabilities_not_to_be_used")
_RUN_COLUMNS = ("tiles", "seconds")
_REVIEW_COLUMNS = ("verdict", "note", "error")
_SOURCE_COLUMNS = ("fingerprint", "bundle", "bundle_sha256", "version")


class FolderRow(NamedTuple):
    """A slide of a folder: its result, or why there is none, and what the reviewer said."""

    slide: str
    """Its name or id; left out of the file unless identifiers are wanted."""
    result: ResultSummary | None = None
    verdict: str = ""
    note: str = ""
    error: str = ""


def shown_name(prediction: SlidePrediction, *, show_identifiers: bool) -> str:
    """The slide's name, which can hold a patient's, or a neutral one by its fingerprint."""
    return prediction.slide_name if show_identifiers else neutral_name(prediction.slide_fingerprint)


def neutral_name(fingerprint: str) -> str:
    """What a slide is called where its name stays out."""
    return f"slide {fingerprint[:8]}"


def folder_columns(class_names: Iterable[str]) -> list[str]:
    """Columns of `write_folder_table`."""
    return [
        *_BEFORE_CLASSES,
        *(spreadsheet_safe(f"p_{name}") for name in class_names),
        *_RESULT_COLUMNS,
        *_WITHHELD_COLUMNS,
        *_RUN_COLUMNS,
        *_REVIEW_COLUMNS,
        *_SOURCE_COLUMNS,
    ]


def write_folder_table(
    path: str | Path,
    rows: Sequence[FolderRow],
    *,
    class_names: Sequence[str] = (),
    show_identifiers: bool = False,
) -> Path:
    """``predictions.csv`` of a folder, a row a slide in the order given, whole or not at all.

    The window and the command line write the same columns; docs/exports.md says what is in them. What isn't known is
    empty. A slide that is unlike those of training has no label, no probabilities of classes and no set of them, but in the
    columns that say that they are not to be used. A text that a spreadsheet would run as a formula gets an apostrophe in front.

    Parameters
    ----------
    path : path-like
    rows : sequence of FolderRow
    class_names : sequence of str
        Classes that have a column whether or not there is a result; those of the rows follow.
    show_identifiers : bool
        Without it, slides are named by their fingerprint, slides that failed by their place in the list, and
        errors, which can name a file, are ``failed``. Notes are written as the reviewer wrote them.
    """
    path = Path(path)
    write_text(path, folder_table(rows, class_names=class_names, show_identifiers=show_identifiers))
    return path


def folder_table(
    rows: Sequence[FolderRow], *, class_names: Sequence[str] = (), show_identifiers: bool = False
) -> str:
    """The text of `write_folder_table`, header and rows."""
    of_rows = (name for row in rows if row.result is not None for name in row.result.class_names)
    classes = list(dict.fromkeys((*class_names, *of_rows)))
    table = (
        _cells(row, number, classes, show_identifiers=show_identifiers)
        for number, row in enumerate(rows, start=1)
    )
    return csv_text(folder_columns(classes), table)


def _cells(row: FolderRow, number: int, classes: Sequence[str], *, show_identifiers: bool) -> list[str]:
    result, error, name = row.result, row.error, row.slide
    if not show_identifiers:
        name = f"slide {number}" if result is None else neutral_name(result.fingerprint)
        error = FAILED if row.error else ""
    name = spreadsheet_safe(name)
    review = [spreadsheet_safe(text) for text in (row.verdict, row.note, error)]
    if result is None:
        empty = [""] * (len(classes) + len(_RESULT_COLUMNS) + len(_WITHHELD_COLUMNS) + len(_RUN_COLUMNS))
        return [name, "", "", FAILED if row.error else "", *empty, *review, *[""] * len(_SOURCE_COLUMNS)]
    by_class = dict(zip(result.class_names, result.class_probabilities, strict=True))
    withheld = result.label is None
    stated = result.prediction_set is not None
    measured = result.ood_score is not None and result.ood_threshold is not None
    return [
        *(
            name,
            spreadsheet_safe(result.answer),
            spreadsheet_safe(result.label or ""),
            ";".join(result.status),
        ),
        *("" if withheld else _number(by_class.get(one)) for one in classes),
        _truth(result.unsure) if stated else "",
        "" if withheld else spreadsheet_safe(";".join(result.prediction_set or ())),
        _number(result.coverage),
        _truth(result.out_of_distribution) if measured else "",
        *(_number(result.ood_score), _number(result.ood_threshold)),
        spreadsheet_safe(result.called) if withheld else "",
        spreadsheet_safe(";".join(f"{one}={p:.6g}" for one, p in by_class.items())) if withheld else "",
        *(str(result.n_tiles), f"{result.seconds:.3f}"),
        *review,
        result.fingerprint,
        spreadsheet_safe(result.bundle_name),
        *(result.bundle_sha256, result.version),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _truth(holds: bool) -> str:
    return str(holds).lower()


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV, a line a row; texts from outside go through `spreadsheet_safe` first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()

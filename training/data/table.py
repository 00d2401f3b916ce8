"""The slide table: read and checked as a whole. How it is split stands in `training.data.splits`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from napari_lrmil.errors import ConfigError, TableError
from napari_lrmil.table import (
    NO_VALUE,
    Problem,
    Table,
    alike,
    lines_of,
    listed,
    mpp_of,
    path_of,
    read_table_file,
    refuse,
)
from training.section import Section

REQUIRED = ("slide_id", "path", "patient_id", "label")
OPTIONAL = ("site", "fold", "mpp")
_NAMES = ("slide_id", "patient_id", "label")


class DataSection(Section):
    """The slide table and how it is split."""

    slides: Path = Field(description="CSV: slide_id, path, patient_id, label; optional site, fold, mpp")
    allow_similar_names: bool = Field(
        default=False,
        description="take labels, patients or slides whose names look like one (Tumor and tumor, 7 and 7.0) for different "
        "ones; else they stop the run",
    )
    mpp: float | None = Field(default=None, gt=0, description="µm/px of slides that say none themselves")
    n_folds: int = Field(default=5, ge=3, description="folds by patient, where the table has no column fold")
    folds: tuple[int, ...] | None = Field(default=None, description="which folds to run; default all")
    preserved_sites: bool = Field(
        default=False, description="no site (column site of the table) is in two folds"
    )
    calibration: float = Field(
        default=0.5,
        ge=0,
        le=0.8,
        description="share of a fold's validation patients that chooses nothing, neither epoch nor thresholds, so that sets of "
        "classes calibrated on it keep their promise; taken where at least 9 such slides and 12 others remain, and the column "
        "fold names no calibration slides",
    )
    cache_gib: float = Field(
        default=1.0, ge=0, description="bags kept in memory; the others are read each epoch"
    )

    def rows(self, note: Callable[[str], None] | None = None) -> list[SlideRow]:
        """Read the table; see `read_table`."""
        return read_table(
            self.slides, allow_similar_names=self.allow_similar_names, sites=self.preserved_sites, note=note
        )


@dataclass(frozen=True)
class SlideRow:
    """One slide of the table; `label` is None for an unlabelled one."""

    slide_id: str
    path: Path
    patient_id: str
    label: str | None
    fold: str | None = None
    site: str | None = None
    mpp: float | None = None


def read_table(
    path: Path,
    *,
    allow_similar_names: bool = False,
    sites: bool = False,
    note: Callable[[str], None] | None = None,
) -> list[SlideRow]:
    """Read a slide table.

    Parameters
    ----------
    path : Path
        CSV with the columns slide_id, path, patient_id, label and optionally site, fold, mpp. Relative
        slide paths start at the table's folder. A label that is empty, or stands for none (`NO_VALUE`), means
        unlabelled. See `napari_lrmil.table` for what a table may look like.
    allow_similar_names : bool
        Take names that look like one (Tumor and tumor, patients 7 and 7.0) for different ones. Else they are an
        error: each spelling would be a class, or a patient whose slides are in several parts of a split.
    sites : bool
        Look at the sites' names too, where folds keep sites apart.
    note : callable, optional
        Called with what should be known of a table that isn't wrong.

    Raises
    ------
    ConfigError
        Listing everything that is wrong with the table at once.
    """
    try:
        table = read_table_file(path, needed=REQUIRED, optional=OPTIONAL)
        rows, problems = _rows(table)
        similar = _similar(table, (*_NAMES, "site") if sites else _NAMES)
        refuse(path, problems if allow_similar_names else problems + similar)
    except TableError as error:
        raise ConfigError(str(error)) from error
    if note is not None:
        for problem in similar:
            note(f"{path.name}: {problem.text}")
        stand_ins = [
            (line, cells["label"])
            for line, cells in table.records
            if cells["label"] and cells["label"].lower() in NO_VALUE
        ]
        if stand_ins:
            words = listed(sorted({repr(text) for _, text in stand_ins}))
            lines = lines_of([line for line, _ in stand_ins])
            note(f"{path.name}: the label {words} was taken for none, so that slides are unlabelled: {lines}")
    return rows


def _rows(table: Table) -> tuple[list[SlideRow], list[Problem]]:
    rows = []
    problems = list(table.problems)
    lines_of_id: dict[str, list[int]] = {}
    of_file: dict[str, dict[str, int]] = {}
    for line, cells in table.records:
        try:
            row = _row(cells, table.path.parent)
        except TableError as error:
            problems.append(Problem(line, f"line {line}: {error}"))
            continue
        rows.append(row)
        lines_of_id.setdefault(row.slide_id, []).append(line)
        of_file.setdefault(os.path.realpath(row.path), {})[row.slide_id] = line
    problems += [
        Problem(lines[1], f"slide_id {name!r} appears {len(lines)} times: {lines_of(lines)}")
        for name, lines in lines_of_id.items()
        if len(lines) > 1
    ]
    problems += [
        Problem(
            max(lines.values()),
            f"slides {', '.join(lines)} are one file, {Path(file).name}: {lines_of(list(lines.values()))}",
        )
        for file, lines in of_file.items()
        if len(lines) > 1
    ]
    return rows, problems


def _similar(table: Table, columns: Sequence[str]) -> list[Problem]:
    found = []
    for column in columns:
        cells = [(record.line, record.cells[column]) for record in table.records]
        if column == "label":
            cells = [(line, text) for line, text in cells if text.lower() not in NO_VALUE]
        # Patients aren't named in what is printed.
        problem = alike(cells, by_line=column == "patient_id")
        if problem is not None:
            cure = "spell them alike, or take them for different ones with data.allow_similar_names = true"
            found.append(Problem(problem.line, f"{column}: {problem.text}; {cure}"))
    return found


def _row(cells: dict[str, str], folder: Path) -> SlideRow:
    for name in ("slide_id", "path", "patient_id"):
        if not cells[name]:
            raise TableError(f"{name} is empty")
    slide_id = cells["slide_id"]
    # The id becomes a folder name in the run directory.
    if Path(slide_id).name != slide_id or slide_id.startswith(".") or not slide_id.isprintable():
        raise TableError(
            f"slide_id {slide_id!r} must not hold path separators or line breaks, or begin with a dot"
        )
    if cells["patient_id"].lower() in NO_VALUE:
        # Else all slides of unknown patients would be one patient's.
        raise TableError(f"patient_id {cells['patient_id']!r} names nobody")
    return SlideRow(
        slide_id=slide_id,
        path=path_of(cells["path"], folder),
        patient_id=cells["patient_id"],
        label=cells["label"] if cells["label"].lower() not in NO_VALUE else None,
        fold=cells["fold"] or None,
        site=cells["site"] or None,
        mpp=mpp_of(cells["mpp"]),
    )

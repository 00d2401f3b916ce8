"""The slide table: read, checked as a whole, and split by patient."""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from napari_lrmil.errors import ConfigError

REQUIRED = ("slide_id", "path", "patient_id", "label")
OPTIONAL = ("site", "fold", "mpp")
SPLIT_NAMES = ("train", "val", "test", "unlabelled")


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


class Split(NamedTuple):
    """Rows by use in one fold; `extra` has no labels and serves stage 1 only."""

    fold: int
    train: tuple[SlideRow, ...]
    val: tuple[SlideRow, ...]
    test: tuple[SlideRow, ...]
    extra: tuple[SlideRow, ...]


def read_table(path: Path) -> list[SlideRow]:
    """Read a slide table.

    Parameters
    ----------
    path : Path
        CSV with the columns slide_id, path, patient_id, label and optionally site, fold, mpp. Relative
        slide paths start at the table's folder. An empty label means unlabelled.

    Raises
    ------
    ConfigError
        Listing everything that is wrong with the table at once.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            records = list(reader)
    except FileNotFoundError as error:
        raise ConfigError(f"no such slide table: {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} can't be read as CSV: {error}") from error
    problems = []
    for name in REQUIRED:
        if name not in columns:
            near = difflib.get_close_matches(name, [column for column in columns if column], n=1)
            hint = f"; is it {near[0]!r}?" if near else ""
            problems.append(f"column {name!r} is missing{hint}")
    if problems or not records:
        raise ConfigError(f"{path}: " + ("; ".join(problems) or "the table has no rows"))
    rows = []
    for line, record in enumerate(records, start=2):
        try:
            rows.append(_row(record, path.parent))
        except ConfigError as error:
            problems.append(f"line {line}: {error}")
    ids = [row.slide_id for row in rows]
    problems += [
        f"slide_id {name!r} appears {ids.count(name)} times"
        for name in sorted(set(ids))
        if ids.count(name) > 1
    ]
    of_file: dict[Path, list[str]] = {}
    for row in rows:
        of_file.setdefault(row.path.resolve(), []).append(row.slide_id)
    problems += [
        f"slides {', '.join(names)} are one file, {file.name}"
        for file, names in of_file.items()
        if len(set(names)) > 1
    ]
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    return rows


def _row(record: dict[str, str | None], folder: Path) -> SlideRow:
    text = {key: (value or "").strip() for key, value in record.items() if isinstance(key, str)}
    for name in ("slide_id", "path", "patient_id"):
        if not text[name]:
            raise ConfigError(f"{name} is empty")
    slide_id = text["slide_id"]
    # The id becomes a folder name in the run directory.
    if Path(slide_id).name != slide_id or slide_id.startswith("."):
        raise ConfigError(f"slide_id {slide_id!r} must not hold path separators or begin with a dot")
    try:
        mpp = float(text["mpp"]) if text.get("mpp") else None
    except ValueError as error:
        raise ConfigError(f"mpp {text['mpp']!r} is not a number") from error
    if mpp is not None and not 0 < mpp < float("inf"):
        raise ConfigError(f"mpp must be above 0, got {mpp}")
    return SlideRow(
        slide_id=slide_id,
        path=folder / Path(text["path"]).expanduser(),
        patient_id=text["patient_id"],
        label=text["label"] or None,
        fold=text.get("fold") or None,
        site=text.get("site") or None,
        mpp=mpp,
    )


def class_names(rows: list[SlideRow]) -> tuple[str, ...]:
    """The labels in alphabetical order.

    Raises
    ------
    ConfigError
        Where there are fewer than two.
    """
    names = tuple(sorted({row.label for row in rows if row.label is not None}))
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise ConfigError(f"a classifier needs at least two classes; the column 'label' holds {found}")
    return names


def make_splits(rows: list[SlideRow], *, n_folds: int, seed: int) -> list[Split]:
    """Splits by patient.

    The column fold decides where the table has it: the names train, val, test (and unlabelled) make one
    fixed split; whole numbers are folds of which each is tested once, the next one validates. Without
    the column, patients are dealt into `n_folds` folds, stratified by label. Unlabelled slides serve a
    numbered fold only where their patient and fold aren't held out in it.

    Raises
    ------
    ConfigError
        Where a patient is in two parts, a part is empty, or lacks a class.
    """
    names = class_names(rows)
    labelled = [row for row in rows if row.label is not None]
    extra = tuple(row for row in rows if row.label is None)
    folds = {row.fold for row in labelled}
    if None in folds and len(folds) > 1:
        missing = [row.slide_id for row in labelled if row.fold is None]
        raise ConfigError(f"column 'fold' is empty for {len(missing)} labelled slides: {_some(missing)}")
    if folds == {None}:
        splits = _numbered_splits(labelled, _deal(labelled, n_folds, seed), extra)
    elif folds <= set(SPLIT_NAMES):
        parts = {part: tuple(row for row in labelled if row.fold == part) for part in SPLIT_NAMES}
        if parts["unlabelled"]:
            raise ConfigError(
                f"slides marked unlabelled have a label: {_some([row.slide_id for row in parts['unlabelled']])}"
            )
        held_out = [row.slide_id for row in extra if row.fold in ("val", "test")]
        if held_out:
            raise ConfigError(f"slides of val or test have no label: {_some(held_out)}")
        splits = [Split(0, parts["train"], parts["val"], parts["test"], extra)]
    elif all(fold is not None and fold.isdecimal() for fold in folds):
        splits = _numbered_splits(labelled, [int(row.fold or 0) for row in labelled], extra)
    else:
        odd = sorted(fold for fold in folds if fold and fold not in SPLIT_NAMES and not fold.isdecimal())
        raise ConfigError(
            f"column 'fold' mixes kinds or holds {', '.join(map(repr, odd)) or 'both'}: use either whole numbers or "
            f"the names {', '.join(SPLIT_NAMES)}"
        )
    for split in splits:
        _check_split(split, names)
    return splits


def _deal(rows: list[SlideRow], n_folds: int, seed: int) -> list[int]:
    patients = {row.patient_id for row in rows}
    if len(patients) < n_folds:
        raise ConfigError(
            f"{n_folds} folds need as many patients; there are {len(patients)} (data.n_folds sets it)"
        )
    for name in sorted({row.label for row in rows if row.label is not None}):
        n_of_class = len({row.patient_id for row in rows if row.label == name})
        if n_of_class < n_folds:
            raise ConfigError(
                f"{n_folds} folds need as many patients of each class; {name!r} has {n_of_class} (data.n_folds sets it)"
            )
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold_of = np.zeros(len(rows), int)
    parts = splitter.split(rows, [row.label for row in rows], [row.patient_id for row in rows])
    for fold, (_, test) in enumerate(parts):
        fold_of[test] = fold
    return fold_of.tolist()


def _numbered_splits(rows: list[SlideRow], folds: list[int], extra: tuple[SlideRow, ...]) -> list[Split]:
    numbers = sorted(set(folds))
    if len(numbers) < 3:
        raise ConfigError(f"train, validation and test need at least 3 folds; there are {len(numbers)}")
    splits = []
    for place, fold in enumerate(numbers):
        val_fold = numbers[(place + 1) % len(numbers)]
        where = {"test": [], "val": [], "train": []}  # type: dict[str, list[SlideRow]]
        for row, number in zip(rows, folds, strict=True):
            where["test" if number == fold else "val" if number == val_fold else "train"].append(row)
        held_out = {row.patient_id for part in ("val", "test") for row in where[part]}
        usable = tuple(
            row
            for row in extra
            if row.patient_id not in held_out and row.fold not in (str(fold), str(val_fold))
        )
        splits.append(Split(fold, tuple(where["train"]), tuple(where["val"]), tuple(where["test"]), usable))
    return splits


def _check_split(split: Split, names: tuple[str, ...]) -> None:
    parts = {"train": split.train, "val": split.val, "test": split.test}
    seen: dict[str, str] = {}
    shared = set()
    for part, rows in parts.items():
        for row in rows:
            if seen.setdefault(row.patient_id, part) != part:
                shared.add(row.patient_id)
    shared |= {row.patient_id for row in split.extra if seen.get(row.patient_id) in ("val", "test")}
    if shared:
        slides = [
            row.slide_id
            for rows in (*parts.values(), split.extra)
            for row in rows
            if row.patient_id in shared
        ]
        raise ConfigError(
            f"fold {split.fold}: {len(shared)} patients are in two parts of the split, which leaks; their slides: "
            f"{_some(slides)}"
        )
    for part, rows in parts.items():
        absent = [name for name in names if name not in {row.label for row in rows}]
        if absent:
            raise ConfigError(
                f"fold {split.fold}: {part} has no slide of class {', '.join(absent)} ({len(rows)} slides in all)"
            )


def _some(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""The slide table: read and checked as a whole. How it is split stands in `training.data.splits`."""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from napari_lrmil.errors import ConfigError
from training.section import Section

REQUIRED = ("slide_id", "path", "patient_id", "label")
OPTIONAL = ("site", "fold", "mpp")


class DataSection(Section):
    """The slide table and how it is split."""

    slides: Path = Field(description="CSV: slide_id, path, patient_id, label; optional site, fold, mpp")
    mpp: float | None = Field(default=None, gt=0, description="µm/px of slides that say none themselves")
    n_folds: int = Field(default=5, ge=3, description="folds by patient, where the table has no column fold")
    folds: tuple[int, ...] | None = Field(default=None, description="which folds to run; default all")
    preserved_sites: bool = Field(
        default=False, description="no site (column site of the table) is in two folds"
    )
    cache_gib: float = Field(
        default=1.0, ge=0, description="bags kept in memory; the others are read each epoch"
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

"""CLAM's files: a data set CSV (case_id, slide_id, label) and splits_N.csv or splits_N_bool.csv."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from napari_lrmil.errors import ConfigError
from napari_lrmil.table import NO_VALUE
from training.data.splits import some
from training.tables.build import Draft, Entry, Shared, check_patients
from training.tables.source import Layout, first_line, read_source

DATASET = Layout(
    "a CLAM data set CSV",
    needed={"patient": ("case_id",), "slide": ("slide_id",), "label": ("label",)},
    closed=False,  # CLAM's own tables carry survival, site and gene columns besides
)
_PARTS: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("val",), "test": ("test",)}
SPLIT = Layout("a CLAM split file", needed=_PARTS, optional={"row": ("",)})
_FILE = re.compile(r"splits_(\d+)(_bool)?\.csv")


def read_dataset(path: Path) -> list[Entry]:
    """Read the slides of a data set CSV, without a split.

    Raises
    ------
    ConfigError
        Where columns are missing or a cell is empty.
    """
    source = read_source(path)
    records = source.records(DATASET)
    lines = zip(source.lines, records, strict=True)
    empty = [str(line) for line, record in lines if NO_VALUE & {cell.lower() for cell in record.values()}]
    if empty:
        raise ConfigError(
            f"{path.name}: empty cells, or such that stand for none (NA, nan), in line {some(empty)}"
        )
    return [Entry(record["slide"], record["patient"], record["label"]) for record in records]


def read_split(path: Path, slides: Collection[str] = ()) -> dict[str, str]:
    """Read slide id -> train, val or test, from either form of split file.

    Parameters
    ----------
    path : Path
    slides : collection of str
        The ids that there are. Where ids are numbers, pandas writes them as 1000.0 into a column with empty cells.

    Raises
    ------
    ConfigError
        Where it is neither form, or a slide is in two parts.
    """
    records = read_source(path).records(SPLIT)
    ids = {_without_decimals(slide): slide for slide in slides}
    found: dict[str, list[str]] = {}

    def add(name: str, parts: Iterable[str]) -> None:
        known = name if name in slides else ids.get(_without_decimals(name), name)
        found.setdefault(known, []).extend(parts)

    flags = {record[part].lower() for record in records for part in _PARTS}
    if flags <= {"true", "false"}:
        for record in records:
            add(record["row"], [part for part in _PARTS if record[part].lower() == "true"])
    else:
        for part in _PARTS:
            for record in records:
                if record[part].lower() not in NO_VALUE:
                    add(record[part], [part])
    if path.stem.endswith("_descriptor") or all(
        _without_decimals(name).isdecimal() and name not in slides for name in found
    ):
        raise ConfigError(
            f"{path.name} holds numbers where a split file holds slides: give splits_N.csv, not its _descriptor"
        )
    twice = [f"{slide} ({', '.join(parts)})" for slide, parts in found.items() if len(parts) != 1]
    if twice:
        raise ConfigError(f"{path.name}: {len(twice)} slides aren't in exactly one part: {some(twice)}")
    return {slide: parts[0] for slide, parts in found.items()}


def _without_decimals(name: str) -> str:
    return re.sub(r"^(\d+)\.0+$", r"\1", name)


def apply_split(entries: list[Entry], path: Path, shared: Shared) -> Draft:
    """Return entries with their part of a split; those that it doesn't name are left out.

    Raises
    ------
    ConfigError
        Where the split names unknown slides, or a patient is in two parts.
    """
    known = {entry.slide_id for entry in entries}
    part_of = read_split(path, known)
    unknown = [slide for slide in part_of if slide not in known]
    if unknown:
        raise ConfigError(
            f"{path.name} names {len(unknown)} slides that the label file lacks: {some(unknown)}"
        )
    chosen = [replace(entry, fold=part_of[entry.slide_id]) for entry in entries if entry.slide_id in part_of]
    left_out = [entry.slide_id for entry in entries if entry.slide_id not in part_of]
    checked = check_patients(chosen, shared)
    notes = [f"{len(left_out)} slides are not in {path.name}: {some(left_out)}"] if left_out else []
    return Draft(checked.entries, notes + checked.notes)


def split_files(folder: Path) -> dict[int, Path]:
    """Return split files of a folder by their number; splits_N.csv before splits_N_bool.csv.

    Raises
    ------
    ConfigError
        Where there are none.
    """
    found: dict[int, Path] = {}
    if not folder.is_dir():
        raise ConfigError(f"no such folder of split files: {folder}")
    for path in sorted(folder.glob("splits_*.csv"), key=lambda path: "_bool" in path.name):
        if match := _FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), path)
    if not found:
        raise ConfigError(f"{folder} has no file splits_N.csv or splits_N_bool.csv")
    return dict(sorted(found.items()))


def is_dataset(path: Path) -> bool:
    """Return whether a file has the columns of a data set CSV."""
    return DATASET.fits(first_line(path))

"""The slides behind a run: its table, and how each fold split it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_lrmil.errors import ConfigError
from training.data.table import SlideRow, Split, make_splits, read_table


def read_rows(run_dir: Path, config: dict[str, Any], notes: list[str]) -> list[SlideRow]:
    """The slide table of a run; a relative path of its config starts where the run was started.

    Parameters
    ----------
    run_dir : Path
    config : dict
        As ``config.json`` holds it.
    notes : list of str
        Gets a line where there is no table; the rows are none then.
    """
    slides = Path(str(config.get("data", {}).get("slides", "")))
    out_dir = Path(str(config.get("run", {}).get("out_dir", "")))
    places = [slides]
    depth = len(out_dir.parts)
    root = run_dir.resolve()
    if not slides.is_absolute() and not out_dir.is_absolute() and root.parts[-depth:] == out_dir.parts:
        places.insert(0, Path(*root.parts[:-depth]) / slides)
    for place in places:
        if place.is_file():
            try:
                return read_table(place)
            except ConfigError:
                break
    notes.append(
        "The slide table isn't where the config says: numbers of training slides are unknown, and there are no "
        "pictures. Where its path is relative, start the report in the folder where the run was started."
    )
    return []


def remade_splits(
    rows: list[SlideRow], config: dict[str, Any], tested: dict[int, tuple[str, ...]], notes: list[str]
) -> dict[int, Split]:
    """Splits by fold, made again from the table and taken only where they test the slides that were tested.

    Parameters
    ----------
    rows : list of SlideRow
    config : dict
    tested : dict
        Fold -> ids of its test slides.
    notes : list of str
        Gets a line where a fold's split can't be told.
    """
    seen = {name for names in tested.values() for name in names}
    usable = [row for row in rows if row.label is None or row.slide_id in seen]
    data = config.get("data", {})
    found: dict[int, Split] = {}
    # A run that skipped bad slides split the rest; where every fold was run, the predictions name them.
    for candidates in (rows, usable):
        try:
            splits = make_splits(
                candidates,
                n_folds=data.get("n_folds", 5),
                seed=config.get("run", {}).get("seed", 0),
                preserved_sites=data.get("preserved_sites", False),
            )
        except ConfigError:
            continue
        found |= {
            split.fold: split
            for split in splits
            if split.fold not in found
            and {row.slide_id for row in split.test} == set(tested.get(split.fold, ()))
        }
    if rows and set(found) != set(tested):
        notes.append(
            "The slide table has changed since the run, or slides were skipped: where a fold's split can't "
            "be told from it, the numbers of training slides are left out."
        )
    return found

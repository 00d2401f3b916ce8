"""The slides behind a run: its table, and how each fold used them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_lrmil.errors import ConfigError
from training.data.splits import Split
from training.data.table import SlideRow, read_table
from training.run.layout import RunDir


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


def recorded_splits(run: RunDir, tested: dict[int, tuple[str, ...]], notes: list[str]) -> dict[int, Split]:
    """Return splits by fold as the run recorded them.

    Parameters
    ----------
    run : RunDir
    tested : dict
        Fold -> ids of its test slides: splits of a later, unfinished run say nothing about these.
    notes : list of str
        Gets a line where a fold's split isn't known.
    """
    kept = run.read_splits()
    found = {
        split.fold: split
        for split in (kept.splits() if kept is not None else ())
        if {row.slide_id for row in split.test} == set(tested.get(split.fold, ()))
    }
    if set(found) != set(tested):
        notes.append(
            "The run doesn't say how it split its slides, as those of earlier versions don't: the numbers of training "
            "slides are left out."
        )
    return found

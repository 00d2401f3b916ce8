"""What a finished run left behind, read into plain values. Nothing here draws."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import BundleError, ConfigError, LRMILError
from napari_lrmil.model.bundle import BundleInfo, load_info
from training.config import Shortcut
from training.data.table import SlideRow, Split, make_splits, read_table
from training.stages.evaluate import NAMES

OURS = "lrmil"
SHORTCUTS: tuple[str, ...] = get_args(Shortcut)
"""Methods that can't see what the label is about: what they reach, a shortcut explains."""

STAGE1_PLACES = (
    "fold{fold}/metrics/stage1.csv",
    "fold{fold}/student_encoder.csv",
    "shared/metrics/stage1.csv",
)


class Predictions(NamedTuple):
    """One method on the test slides of one fold, or of all: N slides, C classes.

    `temperature` is None where the table doesn't say it, and for folds taken together.
    """

    slide_ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    temperature: float | None


Curve = dict[str, NDArray[np.float64]]
"""Column of a metrics file -> one value an epoch; "epoch" is one of them."""


@dataclass(frozen=True)
class FoldData:
    """One fold; `split` is None where the slide table doesn't give the split that was run."""

    fold: int
    predictions: dict[str, Predictions]
    heads: dict[str, Curve]
    stage1: Curve | None
    bundle: Path
    info: BundleInfo | None
    split: Split | None


@dataclass(frozen=True)
class RunData:
    """A finished run.

    `results` holds what ``results.json`` says, LRMIL last of the methods proper and then the shortcut
    baselines. `shared_stage1` is the curve of an encoder that serves all folds. `rows` are the slides of the table
    by id, empty where it can't be read; `notes` say what is missing and harms no number.
    """

    root: Path
    config: dict[str, Any]
    class_names: tuple[str, ...]
    results: dict[str, dict[str, Any]]
    folds: tuple[FoldData, ...]
    shared_stage1: Curve | None
    rows: dict[str, SlideRow]
    notes: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Keys of `results`."""
        return tuple(self.results)

    @property
    def info(self) -> BundleInfo | None:
        """Of the first fold that has a bundle."""
        return next((fold.info for fold in self.folds if fold.info is not None), None)

    def pooled(self, method: str) -> Predictions:
        """Return a method's predictions of the test slides of all folds."""
        return pool([fold.predictions[method] for fold in self.folds])


def method_name(method: str) -> str:
    """Return a method's name as a reader knows it."""
    return NAMES.get(method, method.replace("_", " "))


def pool(parts: list[Predictions]) -> Predictions:
    """Put folds one after the other."""
    return Predictions(
        slide_ids=tuple(name for part in parts for name in part.slide_ids),
        patients=tuple(name for part in parts for name in part.patients),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        temperature=None,
    )


def read_run(run_dir: Path) -> RunData:
    """Read a run directory.

    Parameters
    ----------
    run_dir : Path
        As ``python -m training.run`` leaves it.

    Raises
    ------
    LRMILError
        Where the run isn't finished, naming the part that is missing.
    """
    if not run_dir.is_dir():
        raise LRMILError(f"no run directory at {run_dir}")
    config = _read_json(run_dir, "config.json")
    results = _read_json(run_dir, "results.json")
    if OURS not in results:
        raise LRMILError(
            f"{run_dir / 'results.json'} has no row {OURS!r}: it is not the result of a whole run"
        )
    results = {name: results[name] for name in sorted(results, key=lambda name: _rank(name, list(results)))}
    notes: list[str] = []
    rows = _read_rows(run_dir, config, notes)
    numbers = _fold_numbers(run_dir, config)
    raw = {
        number: {
            method: _read_predictions(run_dir, f"fold{number}/predictions/{method}.csv") for method in results
        }
        for number in numbers
    }
    class_names = _class_names(run_dir, raw)
    predictions = {
        number: {method: _checked(one, class_names, run_dir) for method, one in methods.items()}
        for number, methods in raw.items()
    }
    n_test = sum(len(methods[OURS].labels) for methods in predictions.values())
    if results[OURS].get("n_test", n_test) != n_test:
        raise LRMILError(
            f"{run_dir}: results.json speaks of {results[OURS]['n_test']} test slides, the folds' predictions of "
            f"{n_test}. {_CURE}"
        )
    tested = {number: predictions[number][OURS].slide_ids for number in numbers}
    splits = _remade_splits(rows, config, tested, notes)
    infos = _infos(run_dir, numbers, notes)
    folds = tuple(
        FoldData(
            fold=number,
            predictions=predictions[number],
            heads={
                method: curve
                for method in results
                if (curve := _read_curve(run_dir / f"fold{number}" / "metrics" / f"{method}.csv")) is not None
            },
            stage1=_first_curve(run_dir, STAGE1_PLACES[:2], number),
            bundle=run_dir / f"fold{number}" / "bundle",
            info=infos.get(number),
            split=splits.get(number),
        )
        for number in numbers
    )
    return RunData(
        root=run_dir,
        config=config,
        class_names=class_names,
        results=results,
        folds=folds,
        shared_stage1=_first_curve(run_dir, STAGE1_PLACES[2:], 0),
        rows={row.slide_id: row for row in rows},
        notes=tuple(notes),
    )


_CURE = "Run python -m training.run with its config again: it goes on where it stopped."


def _rank(method: str, order: list[str]) -> tuple[int, int]:
    if method in SHORTCUTS:
        return (2, SHORTCUTS.index(method))
    known = list(NAMES)
    place = known.index(method) if method in known else len(known) + order.index(method)
    return (1, 0) if method == OURS else (0, place)


def _read_json(run_dir: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((run_dir / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LRMILError(f"{run_dir} is not a finished run: it has no {name}. {_CURE}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LRMILError(f"{run_dir / name} can't be read as JSON ({error}). {_CURE}") from error
    if not isinstance(value, dict):
        raise LRMILError(f"{run_dir / name} is damaged. {_CURE}")
    return value


def _fold_numbers(run_dir: Path, config: dict[str, Any]) -> list[int]:
    there = sorted(
        int(path.name.removeprefix("fold"))
        for path in run_dir.glob("fold*")
        if path.name.removeprefix("fold").isdecimal() and any(path.glob("predictions/*.csv"))
    )
    wanted = config.get("data", {}).get("folds")
    numbers = there if wanted is None else sorted(int(number) for number in wanted)
    if not numbers:
        raise LRMILError(f"{run_dir} is not a finished run: it has no fold. {_CURE}")
    return numbers


class _Raw(NamedTuple):
    class_names: tuple[str, ...]
    records: list[dict[str, str]]
    place: str


def _read_predictions(run_dir: Path, place: str) -> _Raw:
    try:
        with (run_dir / place).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            records = list(reader)
    except FileNotFoundError as error:
        raise LRMILError(f"{run_dir} is not a finished run: it has no {place}. {_CURE}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LRMILError(f"{run_dir / place} can't be read as CSV ({error}). {_CURE}") from error
    names = tuple(name.removeprefix("p_") for name in columns[3:] if name.startswith("p_"))
    if columns[:3] != ["slide_id", "patient_id", "label"] or len(names) < 2 or not records:
        raise LRMILError(f"{run_dir / place} is no table of predictions. {_CURE}")
    return _Raw(names, records, place)


def _class_names(run_dir: Path, raw: dict[int, dict[str, _Raw]]) -> tuple[str, ...]:
    found = {one.class_names for methods in raw.values() for one in methods.values()}
    if len(found) > 1:
        raise LRMILError(
            f"{run_dir}: the predictions of its folds and methods name different classes. {_CURE}"
        )
    return found.pop()


def _checked(raw: _Raw, class_names: tuple[str, ...], run_dir: Path) -> Predictions:
    records = raw.records
    try:
        temperature = records[0].get("temperature")
        return Predictions(
            slide_ids=tuple(record["slide_id"] for record in records),
            patients=tuple(record["patient_id"] for record in records),
            labels=np.array([class_names.index(record["label"]) for record in records], np.int64),
            probabilities=np.array(
                [[float(record[f"p_{name}"]) for name in class_names] for record in records], np.float64
            ),
            temperature=float(temperature) if temperature else None,
        )
    except (ValueError, TypeError) as error:  # an unknown label, a cut line
        raise LRMILError(f"{run_dir / raw.place} is damaged ({error}). {_CURE}") from error


def _first_curve(run_dir: Path, places: tuple[str, ...], fold: int) -> Curve | None:
    curves = (_read_curve(run_dir / place.format(fold=fold)) for place in places)
    return next((curve for curve in curves if curve is not None), None)


def _read_curve(path: Path) -> Curve | None:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
        curve = {
            name: np.array([float(record[name]) for record in records], np.float64) for name in records[0]
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, IndexError, csv.Error) as error:
        raise LRMILError(f"{path} is damaged ({error}). {_CURE}") from error
    return curve if "epoch" in curve else None


def _infos(run_dir: Path, numbers: list[int], notes: list[str]) -> dict[int, BundleInfo]:
    found = {}
    for number in numbers:
        try:
            found[number] = load_info(run_dir / f"fold{number}" / "bundle")
        except BundleError:
            continue
    missing = [str(number) for number in numbers if number not in found]
    if missing:
        notes.append(f"No readable bundle: fold {', '.join(missing)}.")
    return found


def _read_rows(run_dir: Path, config: dict[str, Any], notes: list[str]) -> list[SlideRow]:
    """Read the slide table of a run; a relative path of its config starts where the run was started.

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


def _remade_splits(
    rows: list[SlideRow], config: dict[str, Any], tested: dict[int, tuple[str, ...]], notes: list[str]
) -> dict[int, Split]:
    """Return splits by fold, made again from the table, and only those that test the slides that were tested.

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

"""What a finished run left behind, read into plain values. Nothing here draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_lrmil.errors import ConfigError, LRMILError
from napari_lrmil.model.bundle import BundleInfo
from training.data.predictions import Predictions, pool
from training.data.splits import Split
from training.data.table import SlideRow, read_table
from training.methods import OURS, in_table_order
from training.run.layout import Curve, Folder, RunDir
from training.run.markers import RunDirError
from training.stages.front import Front


@dataclass(frozen=True)
class FoldData:
    """One fold; `split` is None where the run doesn't say how it split its slides."""

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
    front: Front | None
    """None in runs of earlier versions, or where the teacher wasn't compared."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Keys of `results`."""
        return tuple(self.results)

    @property
    def info(self) -> BundleInfo | None:
        """Of the first fold that has a bundle."""
        return next((fold.info for fold in self.folds if fold.info is not None), None)

    @property
    def positive_class(self) -> str | None:
        """Of two classes, the one that sensitivity speaks of; None of more."""
        if len(self.class_names) > 2:
            return None
        return str(self.config.get("calibrate", {}).get("positive") or self.class_names[1])

    @property
    def trainings(self) -> str:
        """How many heads and encoders the table is over, in words; empty for one each."""
        n_heads = len(self.config.get("run", {}).get("seeds") or [0])
        n_encoders = len(self.config.get("stage1", {}).get("seeds") or [0])
        if n_heads == n_encoders == 1:
            return ""
        return (
            f"{n_heads} heads of each method, on {n_encoders} student encoder{'s' if n_encoders > 1 else ''}"
        )

    @property
    def is_transductive(self) -> bool:
        """Whether f' learned from the pixels of test slides; runs of earlier versions don't say so in their results."""
        shared = self.shared_stage1 is not None
        return shared and self.config.get("stage1", {}).get("slides", "all") == "all"

    def pooled(self, method: str) -> Predictions:
        """Return a method's predictions of the test slides of all folds."""
        return pool([fold.predictions[method] for fold in self.folds])


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
    run = RunDir(run_dir)
    config = run.read_config_values()
    results = run.read_results()
    if OURS.key not in results:
        raise RunDirError(f"{run.results_json} has no row {OURS.key!r}: it is not the result of a whole run")
    results = {name: results[name] for name in in_table_order(list(results), ours_last=True)}
    notes: list[str] = []
    rows = _read_rows(run_dir, config, notes)
    folds = _folds(run, config)
    predictions = {
        fold.number: {method: fold.read_predictions(method) for method in results} for fold in folds
    }
    found = {one.class_names for of_fold in predictions.values() for one in of_fold.values()}
    if len(found) > 1:
        raise RunDirError(f"{run_dir}: the predictions of its folds and methods name different classes")
    n_test = sum(len(of_fold[OURS.key].labels) for of_fold in predictions.values())
    if results[OURS.key].get("n_test", n_test) != n_test:
        raise RunDirError(
            f"{run_dir}: results.json speaks of {results[OURS.key]['n_test']} test slides, the folds' predictions of "
            f"{n_test}. Run python -m training.run with its config again: it goes on where it stopped."
        )
    lost = [
        f"{fold.name}, {stage}"
        for fold in (*folds, run.shared)
        for stage in ("stage1", *results)
        if fold.lost_curve(stage)
    ]
    if lost:
        notes.append(f"The curves of these trainings are gone: {'; '.join(lost)}.")
    tested = {number: of_fold[OURS.key].slide_ids for number, of_fold in predictions.items()}
    splits = _recorded_splits(run, tested, notes)
    infos = {fold.number: info for fold in folds if (info := fold.read_bundle_info()) is not None}
    if len(infos) < len(folds):
        missing = [str(fold.number) for fold in folds if fold.number not in infos]
        notes.append(f"No readable bundle: fold {', '.join(missing)}.")
    return RunData(
        root=run_dir,
        config=config,
        class_names=found.pop(),
        results=results,
        folds=tuple(
            FoldData(
                fold=fold.number,
                predictions=predictions[fold.number],
                heads={method: curve for method in results if (curve := fold.read_curve(method)) is not None},
                stage1=fold.read_curve("stage1"),
                bundle=fold.bundle,
                info=infos.get(fold.number),
                split=splits.get(fold.number),
            )
            for fold in folds
        ),
        shared_stage1=run.shared.read_curve("stage1"),
        rows={row.slide_id: row for row in rows},
        notes=tuple(notes),
        front=run.read_front(),
    )


def _folds(run: RunDir, config: dict[str, Any]) -> list[Folder]:
    wanted = config.get("data", {}).get("folds")
    folds = (
        run.tested_folds() if wanted is None else [run.fold(number) for number in sorted(map(int, wanted))]
    )
    if not folds:
        raise RunDirError(
            f"{run.root} is not a finished run: it has no fold. Run python -m training.run again"
        )
    return folds


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
                return read_table(place, allow_similar_names=True)  # the run decided that
            except ConfigError:
                break
    notes.append(
        "The slide table isn't where the config says: there are no pictures. Where its path is relative, start the "
        "report in the folder where the run was started."
    )
    return []


def _recorded_splits(run: RunDir, tested: dict[int, tuple[str, ...]], notes: list[str]) -> dict[int, Split]:
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

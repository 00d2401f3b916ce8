"""Finished runs of one experiment, several seeds of it, read into one set of predictions.

A run's own seed (``run.seed``) deals the slides into folds; in each run there may be encoders and heads of several seeds
(``stage1.seeds``, ``run.seeds``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import ConfigError
from training.data.predictions import Predictions
from training.methods import in_table_order
from training.run.layout import Folder, RunDir
from training.run.markers import RunDirError


class TestedSlide(NamedTuple):
    """One row of a prediction file."""

    patient: str
    label: str
    fold: str
    probabilities: tuple[float, ...]
    called: int


@dataclass(frozen=True)
class Tiles:
    """Of the runs' config: what a place in a grid measures."""

    tile_px: int
    mpp_lr: float
    ratio: int

    @property
    def lr_um(self) -> float:
        """Edge of an LR tile."""
        return self.tile_px * self.mpp_lr

    @property
    def hr_um(self) -> float:
        """Edge of an HR tile."""
        return self.lr_um / self.ratio


@dataclass(frozen=True)
class Experiment:
    """S seeds of one experiment on the same N slides of C classes, in each E encoders with H heads.

    Attributes
    ----------
    seeds : tuple of int
        Of the runs.
    class_names : tuple of str
    slide_ids, patients : tuples of str
    labels : (N,) int array
    folds : (S, N) array of str
        Which fold tested a slide.
    probabilities : dict
        Method -> (S, E, H, N, C) array. E is 1 for a method without f', H for one without a head.
    called : dict
        Method -> (S, E, H, N) array of the classes that are called.
    left_out : tuple of str
        Methods that only some of the runs have.
    tiles : Tiles
    run_dirs : dict
        Seed -> its run directories.
    shared : frozenset of str
        Methods whose f' serves all folds of a run.
    """

    seeds: tuple[int, ...]
    class_names: tuple[str, ...]
    slide_ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: NDArray[np.int64]
    folds: NDArray[np.str_]
    probabilities: dict[str, NDArray[np.float64]]
    called: dict[str, NDArray[np.int64]]
    left_out: tuple[str, ...]
    tiles: Tiles
    run_dirs: dict[int, tuple[Path, ...]]
    shared: frozenset[str]


Key = tuple[str, str]
"""Of a training: its encoder's and its head's seed as `Folder.trainings` names them."""


def read_experiment(run_dirs: Sequence[Path]) -> Experiment:
    """Read runs; those of one seed are parts of it, and tested other slides.

    Parameters
    ----------
    run_dirs : sequence of Path
        Each with ``config.json`` and ``fold*/predictions/*.csv``.

    Raises
    ------
    ConfigError
        Where a run isn't finished, or seeds, methods or runs disagree about slides, patients, labels or tiles.
    """
    configs = {folder: _config(folder) for folder in run_dirs}
    if len(configs) != len(run_dirs) or not run_dirs:
        raise ConfigError("give each run once, with --run; at least one is needed")
    tiles = {folder: _tiles(folder, config) for folder, config in configs.items()}
    if len(set(tiles.values())) > 1:
        raise ConfigError(f"the runs have different tiles: {sorted(set(map(str, tiles.values())))}")
    dirs: dict[int, tuple[Path, ...]] = {}
    for folder, config in configs.items():
        seed = int(config["run"]["seed"])
        dirs[seed] = (*dirs.get(seed, ()), folder)
    seeds = tuple(sorted(dirs))
    found: dict[str, dict[int, dict[Key, dict[str, TestedSlide]]]] = {}
    class_names: set[tuple[str, ...]] = set()
    for seed in seeds:
        for method, key, predictions, fold in _read_folds(dirs[seed]):
            class_names.add(predictions.class_names)
            slides = _by_slide(predictions, f"{fold.run_root.name}/{fold.name}")
            known = found.setdefault(method, {}).setdefault(seed, {}).setdefault(key, {})
            twice = sorted(known.keys() & slides.keys())
            if twice:
                raise ConfigError(
                    f"{fold.trainings()[key].predictions(method)}: {twice[0]} was tested by seed {seed} before"
                )
            known |= slides
    if len(class_names) > 1:
        raise ConfigError(f"the runs have different classes: {sorted(class_names)}")
    complete = {name: by_seed for name, by_seed in found.items() if len(by_seed) == len(seeds)}
    order = in_table_order(sorted(complete))
    if not order:
        raise ConfigError("no method is in all of the runs")
    names = class_names.pop()
    grids = {method: _grid(method, complete[method]) for method in order}
    first = next(iter(complete[order[0]][seeds[0]].values()))
    for method in order:
        for seed in seeds:
            for slides in complete[method][seed].values():
                _check_same(method, seed, first, slides)
    ids = tuple(sorted(first))

    def gathered(method: str, field: str) -> NDArray[np.generic]:
        """(S, E, H, N) and what the field has."""
        values = np.asarray(
            [
                [[getattr(slides[name], field) for name in ids] for slides in complete[method][seed].values()]
                for seed in seeds
            ]
        )
        return values.reshape(len(seeds), *grids[method], *values.shape[2:])

    return Experiment(
        seeds=seeds,
        class_names=names,
        slide_ids=ids,
        patients=tuple(first[name].patient for name in ids),
        labels=np.asarray([names.index(first[name].label) for name in ids], np.int64),
        folds=gathered(order[0], "fold")[:, 0, 0].astype(np.str_),
        probabilities={method: gathered(method, "probabilities").astype(np.float64) for method in order},
        called={method: gathered(method, "called").astype(np.int64) for method in order},
        left_out=tuple(sorted(found.keys() - complete.keys())),
        tiles=next(iter(tiles.values())),
        run_dirs=dirs,
        shared=frozenset(order).intersection(*(_sharing(RunDir(folder), order) for folder in configs)),
    )


def _grid(method: str, by_seed: dict[int, dict[Key, dict[str, TestedSlide]]]) -> tuple[int, int]:
    """Return the numbers of encoders and of heads on each, E and H, which all runs must have.

    The trainings of each seed are put in order, encoder by encoder.
    """
    grids = set()
    for seed, trainings in by_seed.items():
        encoders, heads = (
            sorted(set(names), key=lambda one: (len(one), one)) for names in zip(*trainings, strict=True)
        )
        keys = [(encoder, head) for encoder in encoders for head in heads]
        if set(keys) != set(trainings):
            odd = next(key for key in keys if key not in trainings)
            raise ConfigError(
                f"{method}: a run of seed {seed} has no predictions of {'/'.join(filter(None, odd)) or 'its first seeds'}. "
                "Let it finish."
            )
        by_seed[seed] = {key: trainings[key] for key in keys}
        grids.add((len(encoders), len(heads)))
    if len(grids) > 1:
        raise ConfigError(
            f"{method}: the runs have different numbers of encoders and heads, {sorted(grids)}. Give all of them the same "
            "number of run.seeds and of stage1.seeds."
        )
    return grids.pop()


def _read_folds(run_dirs: Sequence[Path]) -> Iterator[tuple[str, Key, Predictions, Folder]]:
    """Read each method's predictions of each fold, by each of its trainings."""
    for run_dir in map(RunDir, run_dirs):
        folds = run_dir.tested_folds()
        if not folds:
            raise ConfigError(f"{run_dir.root} holds no fold*/predictions: let the run finish first")
        for fold in folds:
            for key, folder in fold.trainings().items():
                for method in folder.predicted_methods():
                    yield method, key, folder.read_predictions(method), fold


def _config(folder: Path) -> dict[str, dict[str, float]]:
    config = RunDir(folder).read_config_values()
    if not all(isinstance(config.get(key), dict) for key in ("run", "tiles")):
        raise ConfigError(f"{RunDir(folder).config_json} isn't the config of a run")
    return config


def _sharing(run_dir: RunDir, methods: Sequence[str]) -> set[str]:
    """Return the methods whose f' serves all folds of a run."""
    try:
        config, splits = run_dir.read_config(), run_dir.read_splits()
    except RunDirError:  # of another version, in which all methods had the same f'
        return set(methods) if run_dir.shared.student_encoder.is_file() else set()
    return config.sharing(len(run_dir.folds() if splits is None else splits.folds))


def _tiles(folder: Path, config: dict[str, dict[str, float]]) -> Tiles:
    tiles = config["tiles"]
    try:
        return Tiles(int(tiles["tile_px"]), float(tiles["mpp_lr"]), int(tiles["ratio"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{RunDir(folder).config_json}: tiles has no {error}") from error


def _by_slide(predictions: Predictions, fold: str) -> dict[str, TestedSlide]:
    names = predictions.class_names
    return {
        slide: TestedSlide(patient, names[label], fold, tuple(probabilities), called)
        for slide, patient, label, probabilities, called in zip(
            predictions.slide_ids,
            predictions.patients,
            predictions.labels.tolist(),
            predictions.probabilities.tolist(),
            predictions.called.tolist(),
            strict=True,
        )
    }


def _check_same(method: str, seed: int, first: dict[str, TestedSlide], other: dict[str, TestedSlide]) -> None:
    odd = sorted(first.keys() ^ other.keys())
    if odd:
        raise ConfigError(
            f"{method}, seed {seed}: {len(odd)} slides are tested by some runs only ({', '.join(odd[:3])}). "
            "All seeds must run all folds."
        )
    for name, slide in first.items():
        if slide[:2] != other[name][:2]:
            raise ConfigError(
                f"{method}, seed {seed}: {name} has patient and label {other[name][:2]}, elsewhere {slide[:2]}"
            )

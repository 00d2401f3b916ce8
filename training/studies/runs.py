"""Finished runs of one experiment, several seeds of it, read into one set of predictions."""

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
    """S seeds of one experiment on the same N slides of C classes.

    Attributes
    ----------
    seeds : tuple of int
    class_names : tuple of str
    slide_ids, patients : tuples of str
    labels : (N,) int array
    folds : (S, N) array of str
        Which fold tested a slide.
    probabilities : dict
        Method -> (S, N, C) array.
    called : dict
        Method -> (S, N) array of the classes that are called.
    left_out : tuple of str
        Methods that only some of the runs have.
    tiles : Tiles
    run_dirs : dict
        Seed -> its run directories.
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
    found: dict[str, dict[int, dict[str, TestedSlide]]] = {}
    class_names: set[tuple[str, ...]] = set()
    for seed in seeds:
        for method, predictions, fold in _read_folds(dirs[seed]):
            class_names.add(predictions.class_names)
            slides = _by_slide(predictions, f"{fold.run_root.name}/{fold.name}")
            known = found.setdefault(method, {}).setdefault(seed, {})
            twice = sorted(known.keys() & slides.keys())
            if twice:
                raise ConfigError(f"{fold.predictions(method)}: {twice[0]} was tested by seed {seed} before")
            known |= slides
    if len(class_names) > 1:
        raise ConfigError(f"the runs have different classes: {sorted(class_names)}")
    complete = {name: by_seed for name, by_seed in found.items() if len(by_seed) == len(seeds)}
    order = in_table_order(sorted(complete))
    if not order:
        raise ConfigError("no method is in all of the runs")
    names = class_names.pop()
    first = complete[order[0]][seeds[0]]
    for method in order:
        for seed in seeds:
            _check_same(method, seed, first, complete[method][seed])
    ids = tuple(sorted(first))
    return Experiment(
        seeds=seeds,
        class_names=names,
        slide_ids=ids,
        patients=tuple(first[name].patient for name in ids),
        labels=np.asarray([names.index(first[name].label) for name in ids], np.int64),
        folds=np.asarray([[complete[order[0]][seed][name].fold for name in ids] for seed in seeds]),
        probabilities={
            method: np.asarray(
                [[complete[method][seed][name].probabilities for name in ids] for seed in seeds], np.float64
            )
            for method in order
        },
        called={
            method: np.asarray([[complete[method][seed][name].called for name in ids] for seed in seeds])
            for method in order
        },
        left_out=tuple(sorted(found.keys() - complete.keys())),
        tiles=next(iter(tiles.values())),
        run_dirs=dirs,
    )


def _read_folds(run_dirs: Sequence[Path]) -> Iterator[tuple[str, Predictions, Folder]]:
    """Read each method's predictions of each fold."""
    for run_dir in map(RunDir, run_dirs):
        folds = run_dir.tested_folds()
        if not folds:
            raise ConfigError(f"{run_dir.root} holds no fold*/predictions: let the run finish first")
        for fold in folds:
            for method in fold.predicted_methods():
                yield method, fold.read_predictions(method), fold


def _config(folder: Path) -> dict[str, dict[str, float]]:
    config = RunDir(folder).read_config_values()
    if not all(isinstance(config.get(key), dict) for key in ("run", "tiles")):
        raise ConfigError(f"{RunDir(folder).config_json} isn't the config of a run")
    return config


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

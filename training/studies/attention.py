"""Attention that finished runs kept of their test slides, against lesion masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from napari_lrmil.errors import ConfigError
from training import methods
from training.cohort import MASK_DOWNSAMPLE, MPP_L0
from training.cohort.localisation import (
    MIN_LESION,
    Localisation,
    SlideLocalisation,
    average_slides,
    gather_on_parents,
    localise_slide,
    tile_lesion_fractions,
)
from training.data.predictions import SlideAttention
from training.run.layout import Folder, RunDir
from training.run.markers import RunDirError
from training.studies.runs import Experiment, Tiles

MASK_MPP = MASK_DOWNSAMPLE * MPP_L0
"""µm a pixel of the generated cohort's masks measures, and of the mosaics'."""

TEACHER = methods.TEACHER.key

LocalisedSlides = dict[str, SlideLocalisation]
"""Slide -> how well one method's attention finds its lesions, in one training."""


class AttentionRow(NamedTuple):
    """A method on one grid."""

    method: str
    grid: str
    localisation: Localisation


def localisation_rows(
    experiment: Experiment, masks: Path, *, mask_mpp: float = MASK_MPP, n_resamples: int
) -> list[AttentionRow]:
    """Measure how well each method's attention finds the lesions of the test slides.

    Parameters
    ----------
    experiment : Experiment
        Its runs keep ``foldN/test_attention/<method>.safetensors``: of each test slide ``<id>/attention_scores`` (N,)
        and ``<id>/places`` (N, 2), (row, col) in the LR grid, for the teacher in the HR grid.
    masks : Path
        ``<id>.png``, not 0 where the lesion is; a slide whose mask is empty has nothing to find.
    mask_mpp : float
        µm a pixel of the masks measures.
    n_resamples : int

    Returns
    -------
    list of AttentionRow
        The teacher twice: on its own tiles, and summed onto the LR tiles.

    Raises
    ------
    ConfigError
        Where there is no attention, a mask is missing or unreadable, or the seeds kept other slides.
    """
    lesions = {name: read_mask(masks / f"{name}.png") for name in experiment.slide_ids}
    lesions = {name: mask for name, mask in lesions.items() if mask.any()}
    found: dict[tuple[str, str], list[LocalisedSlides]] = {}
    for seed in experiment.seeds:
        for kept in _read_attention(experiment.run_dirs[seed]):
            for key, localised in _localise_methods(kept, lesions, experiment.tiles, mask_mpp).items():
                found.setdefault(key, []).append(localised)
    if not found:
        raise ConfigError(
            "the runs kept no attention of test slides (foldN/test_attention): leave --masks out"
        )
    order = methods.in_table_order(sorted({method for method, _ in found}))
    return [
        AttentionRow(method, grid, _over_seeds(experiment, method, found[method, grid], n_resamples))
        for method, grid in sorted(found, key=lambda key: (order.index(key[0]), key))
    ]


def _localise_methods(
    kept: dict[str, dict[str, SlideAttention]],
    lesions: dict[str, NDArray[np.bool_]],
    tiles: Tiles,
    mask_mpp: float,
) -> dict[tuple[str, str], LocalisedSlides]:
    """Localise the attention of one training of each method; keys are (method, grid)."""
    found = {}
    for method, slides in kept.items():
        is_teacher = method == TEACHER
        grid, tile_um = ("HR tiles", tiles.hr_um) if is_teacher else ("LR tiles", tiles.lr_um)
        found[method, grid] = _localise(slides, lesions, tile_um / mask_mpp)
    student = next((slides for method, slides in kept.items() if method != TEACHER), None)
    if TEACHER in kept and student is not None:
        gathered = {
            name: SlideAttention(
                gather_on_parents(one.scores, one.places, student[name].places, tiles.ratio),
                student[name].places,
            )
            for name, one in kept[TEACHER].items()
            if name in student
        }
        found[TEACHER, "LR tiles"] = _localise(gathered, lesions, tiles.lr_um / mask_mpp)
    return found


def _over_seeds(
    experiment: Experiment, method: str, by_seed: list[LocalisedSlides], n_resamples: int
) -> Localisation:
    """Average the trainings slide by slide, then the slides."""
    names = sorted(by_seed[0])
    tested = experiment.probabilities.get(method)
    n_trainings = len(experiment.seeds) if tested is None else math.prod(tested.shape[:3])
    if len(by_seed) != n_trainings or any(sorted(one) != names for one in by_seed):
        raise ConfigError(f"{method}: not every seed kept its attention of the same slides")
    if not names:
        raise ConfigError(f"{method}: no test slide has a tile that is lesion by {MIN_LESION:.0%} or more")
    patient_of = dict(zip(experiment.slide_ids, experiment.patients, strict=True))
    means = [SlideLocalisation(*np.mean([one[name] for one in by_seed], axis=0).tolist()) for name in names]
    return average_slides(
        means,
        [patient_of[name] for name in names],
        n_resamples=n_resamples,
        rng=np.random.default_rng(0),
    )


def _localise(
    slides: dict[str, SlideAttention], lesions: dict[str, NDArray[np.bool_]], tile_mask_px: float
) -> LocalisedSlides:
    """Localise the slides that have a lesion and a positive tile."""
    result = {}
    for name, one in slides.items():
        if name not in lesions:
            continue
        try:
            fractions = tile_lesion_fractions(lesions[name], one.places, tile_mask_px)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        if (fractions >= MIN_LESION).any():
            result[name] = localise_slide(one.scores, fractions)
    return result


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return a lesion mask, (H, W).

    Raises
    ------
    ConfigError
        Where it can't be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(np.asarray(image.convert("L")) > 0, np.bool_)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"the mask {path} can't be read: {error}") from error


def _read_attention(run_dirs: tuple[Path, ...]) -> Iterator[dict[str, dict[str, SlideAttention]]]:
    """Read method -> slide -> attention, over all folds; of one training after the other."""
    folders: dict[tuple[str, str], list[tuple[RunDir, Folder]]] = {}
    for run_dir in map(RunDir, run_dirs):
        for fold in run_dir.folds():
            for key, folder in fold.trainings().items():
                folders.setdefault(key, []).append((run_dir, folder))
    for of_training in folders.values():
        found: dict[str, dict[str, SlideAttention]] = {}
        for run_dir, folder in of_training:
            for method in _on_known_grids(run_dir, folder.attended_methods()):
                found.setdefault(method, {}).update(folder.read_attention(method))
        yield found


def _on_known_grids(run_dir: RunDir, keys: list[str]) -> list[str]:
    """Return the methods whose attention is on all HR tiles, as the teacher's, or on LR tiles."""
    try:
        rows = methods.BY_KEY | {row.key: row for row in run_dir.read_config().rows}
    except RunDirError:  # of another version
        rows = methods.BY_KEY
    embedding = {key: rows[key].embedding for key in keys if key in rows}
    return [
        key
        for key in keys
        if key == TEACHER or (one := embedding.get(key, methods.LR)) is None or one.on_lr_tiles
    ]

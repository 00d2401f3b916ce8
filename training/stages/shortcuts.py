"""Shortcut baselines: what a slide's label can be guessed from without looking at any tissue.

Tissue fraction alone, and the mean and spread of the colours. Where one of them comes near a model, the label is
confounded with how much was cut or how it was stained, and the model's AUC says little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from napari_lrmil.slide import Slide, find_tiles, iter_tiles
from training.data.tile_index import SlideTiles, TileGeometry
from training.files import Json
from training.metrics import auc

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""C of the logistic regression: the validation slides choose."""


class ShortcutFeatures(NamedTuple):
    """What the baselines see of one slide."""

    tissue_fraction: float
    """Share of the tiles of the LR grid that hold tissue."""
    tissue_mm2: float
    rgb_mean: Array
    """(3,) over all pixels of the LR tissue tiles, 0 to 255."""
    rgb_std: Array
    """(3,)"""

    def vector(self, names: tuple[str, ...]) -> Array:
        """Return some of them, by name, as one vector (F,): those of `Method.slide_features` for a baseline."""
        return np.concatenate([np.atleast_1d(getattr(self, name)) for name in names]).astype(np.float64)

    def as_json(self) -> dict[str, Json]:
        """Return the numbers as they are kept."""
        return {
            "tissue_fraction": float(self.tissue_fraction),
            "tissue_mm2": float(self.tissue_mm2),
            "rgb_mean": self.rgb_mean.tolist(),
            "rgb_std": self.rgb_std.tolist(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Json]) -> ShortcutFeatures:
        """Return the features of which `as_json` gave these numbers."""
        fraction, mm2, mean, std = (np.asarray(values[name], np.float64) for name in cls._fields)
        return cls(float(fraction), float(mm2), mean, std)


def slide_shortcuts(
    slide: Slide, tiles: SlideTiles, geometry: TileGeometry, *, batch_size: int = 64, threads: int = 2
) -> ShortcutFeatures:
    """Return the features of one slide; reads each LR tissue tile once, at the student's level.

    Parameters
    ----------
    slide : Slide
    tiles : SlideTiles
        Of this slide.
    geometry : TileGeometry
    batch_size, threads : int
        See `iter_tiles`.

    Raises
    ------
    SlideError
    """
    found = find_tiles(slide, geometry.lr_spec, min_tissue=geometry.min_tissue, ratio=geometry.ratio)
    grid = found.grid
    grid_mm2 = found.tissue_fraction.size * (grid.spec.tile_um / 1000) ** 2
    places = [(float(row), float(col)) for row, col in tiles.lr_places]
    # Whole numbers: no rounding however many pixels there are.
    count, total, total_squared = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for batch in iter_tiles(slide, grid, found.level, places, batch_size=batch_size, threads=threads):
        pixels = batch.reshape(-1, 3).astype(np.int64)
        count += len(pixels)
        total += pixels.sum(axis=0)
        total_squared += np.square(pixels).sum(axis=0)
    mean = total / count
    return ShortcutFeatures(
        tissue_fraction=len(tiles.lr_places) / float(np.prod(tiles.lr_shape_yx)),
        tissue_mm2=float(found.tissue_fraction.mean(dtype=np.float64)) * grid_mm2,
        rgb_mean=mean,
        rgb_std=np.sqrt(np.maximum(total_squared / count - np.square(mean), 0)),
    )


def shortcut_predictions(
    features_train: Array,
    labels_train: Labels,
    features_val: Array,
    labels_val: Labels,
    features_test: Array,
    *,
    n_classes: int,
) -> Array:
    """Return what a logistic regression on slide features says of test slides.

    Standardised by the training slides; its strength C has the best AUC on the validation slides, of equal ones the
    smaller log loss, as the MIL heads are chosen.

    Parameters
    ----------
    features_train, features_val, features_test : (N, F) arrays
    labels_train, labels_val : (N,) int arrays
        Every class is in both.
    n_classes : int

    Returns
    -------
    (N, C) float64 array
        Probabilities of the test slides.

    Raises
    ------
    ValueError
        Where a class is absent.
    """
    absent = sorted(set(range(n_classes)) - set(labels_train.tolist()))
    if absent:
        raise ValueError(f"class {absent[0]} is absent from the {len(labels_train)} training slides")

    def score(model: Pipeline) -> tuple[float, float]:
        probabilities = model.predict_proba(features_val)
        loss = log_loss(labels_val, probabilities, labels=range(n_classes))
        return round(auc(labels_val, probabilities), 6), -float(loss)

    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000)).fit(
            features_train, labels_train
        )
        for strength in STRENGTHS
    ]
    return np.asarray(max(models, key=score).predict_proba(features_test), np.float64)

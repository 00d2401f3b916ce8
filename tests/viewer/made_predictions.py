"""Predictions made by hand: every value can be worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_lrmil.evidence import DeletionCurve
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.slide import TileGrid, TileSet, TileSpec


def make_prediction(
    lesion: float = 0.8,
    *,
    shape_yx: tuple[int, int] = (2, 3),
    tile_px: int = 64,
    demonstration: bool = True,
    gain: float = 0.1,
    **more: Any,
) -> SlidePrediction:
    """A grid full of tiles of 2 µm/px on a slide of 0.5 µm/px.

    Attention of tile n is proportional to n + 1; each tile speaks for "lesion" with n - 9 percentage points, and
    as much against "benign"; in log-odds with a twentieth of that number, and alone with half of it.
    """
    rows, cols = np.indices(shape_yx).reshape(2, -1).astype(np.int64)
    n = len(rows)
    spec = TileSpec(tile_px, 2.0)
    grid = TileGrid(spec, (0.0, 0.0), (spec.tile_um / 0.5, spec.tile_um / 0.5), shape_yx)
    logits = np.log(np.arange(1, n + 1, dtype=np.float64))
    scores = np.exp(logits) / np.exp(logits).sum()
    points = (np.arange(n) - 9.0) / 100
    fractions = np.linspace(0, 1, 11)
    flat = np.full(11, 0.5)
    values: dict[str, Any] = {
        "slide_name": "made",
        "class_names": ("benign", "lesion"),
        "class_probabilities": np.array([1 - lesion, lesion]),
        "attention_scores": scores,
        "attention_logits": logits,
        "class_contributions": np.stack([-points, points], axis=1),
        "log_odds_contributions": 5 * np.stack([-points, points], axis=1),
        "log_odds_alone": 50 * np.stack([-points, points], axis=1),
        "deletion": DeletionCurve(fractions, flat - gain, flat, flat - 0.05, flat + 0.05, int(lesion > 0.5)),
        "tiles": TileSet(grid, 1, rows, cols, np.ones(shape_yx, np.float32)),
        "mpp_xy": (0.5, 0.5),
        "level": 1,
        "level_mpp": 2.0,
        "seconds": 1.26,
        "bundle_name": "Fake",
        "bundle_sha256": "abcdef0123456789" * 4,
        "demonstration": demonstration,
        "device": "cpu",
        "slide_fingerprint": "f" * 64,
        "version": "9.9.9",
    }
    return SlidePrediction(**{**values, **more})

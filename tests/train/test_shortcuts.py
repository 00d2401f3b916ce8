"""Shortcut baselines: features by hand and from a real file, and a regression that leaks nothing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from napari_lrmil.slide import Slide
from training.cohort.writer import write_slide
from training.data.table import SlideRow, read_table
from training.data.tile_index import SlideTiles, TileGeometry, index_slides
from training.methods import BY_KEY
from training.metrics import auc
from training.progress import Reporter
from training.stages.shortcuts import STRENGTHS, ShortcutFeatures, shortcut_predictions, slide_shortcuts

PINK = (205, 140, 185)


def indexed(row: SlideRow, geometry: TileGeometry) -> SlideTiles:
    reporter = Reporter(Console(file=io.StringIO()))
    (tiles,) = index_slides([row], geometry, skip_bad=False, reporter=reporter, threads=1)
    return tiles


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_of_a_slide_that_is_known(tmp_path: Path) -> None:
    """Left half glass, right half two pinks in equal shares: half of the tiles, half of the area, their mean and half
    their distance."""
    pixels = np.full((1024, 1024, 3), 245, np.uint8)
    pixels[:512, 512:] = PINK
    pixels[512:, 512:] = (185, 120, 165)
    write_slide(tmp_path / "half.tif", pixels, jpeg_quality=100)
    geometry = TileGeometry(tile_px=64, mpp_lr=2.0, ratio=4, min_tissue=0.25, default_mpp=None)
    row = SlideRow("half", tmp_path / "half.tif", "p", "benign")
    tiles = indexed(row, geometry)
    with geometry.open(row) as slide:
        found = slide_shortcuts(slide, tiles, geometry)
    assert found.tissue_fraction == 0.5
    assert found.tissue_mm2 == pytest.approx(
        0.5 * 0.512**2, abs=0.512 * 0.017
    )  # to a mask pixel along the edge
    np.testing.assert_allclose(found.rgb_mean, (195, 130, 175), atol=2)
    np.testing.assert_allclose(found.rgb_std, (10, 10, 10), atol=1.5)


def test_colours_are_those_of_the_tissue_tiles(cohort: Path) -> None:
    """Against plain crops of the level that the student reads, taken by another library."""
    import tifffile

    geometry = TileGeometry(tile_px=32, mpp_lr=2.0, ratio=4, min_tissue=0.25, default_mpp=None)
    row = next(row for row in read_table(cohort) if row.slide_id == "train-001")
    tiles = indexed(row, geometry)
    with geometry.open(row) as slide:
        found = slide_shortcuts(slide, tiles, geometry, batch_size=3, threads=1)
    level = tifffile.imread(row.path, level=1)
    crops = np.stack(
        [level[32 * r : 32 * r + 32, 32 * c : 32 * c + 32] for r, c in tiles.lr_places.tolist()]
    ).reshape(-1, 3)
    np.testing.assert_allclose(found.rgb_mean, crops.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(found.rgb_std, crops.std(axis=0), atol=0.5)
    assert found.tissue_fraction == len(tiles.lr_places) / 16
    assert 0 < found.tissue_mm2 <= 0.256**2


def test_only_the_low_level_is_read(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = TileGeometry(tile_px=32, mpp_lr=2.0, ratio=4, min_tissue=0.25, default_mpp=None)
    row = next(row for row in read_table(cohort) if row.slide_id == "train-001")
    tiles = indexed(row, geometry)
    read: list[int] = []
    with geometry.open(row) as slide:
        original = Slide.read_region

        def watching(
            self: Slide, location: tuple[int, int], level: int, *rest: object, **more: object
        ) -> object:
            read.append(level)
            return original(self, location, level, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(Slide, "read_region", watching)
        slide_shortcuts(slide, tiles, geometry)
    assert read.count(1) == len(tiles.lr_places)  # each tile once
    assert min(read) >= 1


def test_each_baseline_sees_its_own_features() -> None:
    features = ShortcutFeatures(0.4, 12.0, np.asarray([1.0, 2, 3]), np.asarray([4.0, 5, 6]))
    np.testing.assert_array_equal(features.vector(BY_KEY["tissue_fraction"].slide_features), [0.4, 12])
    np.testing.assert_array_equal(features.vector(BY_KEY["rgb"].slide_features), [1, 2, 3, 4, 5, 6])


# --- regression -------------------------------------------------------------------------------------------------------


def drawn(seed: int, n: int, *, signal: float, n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    features = rng.normal(size=(n, 3))
    features[:, 0] += signal * labels
    return features * (1, 1000, 0.001) + (0, 5e4, 0), labels.astype(np.int64)


def test_a_shortcut_is_found_whatever_the_units() -> None:
    (train, y), (val, y_val), (test, y_test) = (drawn(seed, 60, signal=4) for seed in (1, 2, 3))
    found = shortcut_predictions(train, y, val, y_val, test, n_classes=2)
    assert found.shape == (60, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert auc(y_test, found) > 0.97
    scaled = shortcut_predictions(train * 7 + 3, y, val * 7 + 3, y_val, test * 7 + 3, n_classes=2)
    np.testing.assert_allclose(scaled, found, atol=1e-6)


def test_without_a_shortcut_it_is_at_chance() -> None:
    (train, y), (val, y_val), (test, y_test) = (drawn(seed, 400, signal=0) for seed in (1, 2, 3))
    assert auc(y_test, shortcut_predictions(train, y, val, y_val, test, n_classes=2)) == pytest.approx(
        0.5, abs=0.06
    )


def test_three_classes_and_a_constant_feature() -> None:
    (train, y), (val, y_val), (test, y_test) = (drawn(seed, 90, signal=5, n_classes=3) for seed in (1, 2, 3))
    for features in (train, val, test):
        features[:, 2] = 8.0
    found = shortcut_predictions(train, y, val, y_val, test, n_classes=3)
    assert found.shape == (90, 3)
    assert auc(y_test, found) > 0.9


def test_a_prediction_depends_on_its_own_slide_alone() -> None:
    """Standardising by the test slides would leak: one odd slide beside it would change another's probability."""
    (train, y), (val, y_val), (test, _) = (drawn(seed, 40, signal=1) for seed in (1, 2, 3))
    together = shortcut_predictions(train, y, val, y_val, test, n_classes=2)
    odd = np.concatenate([test[:1], test[1:] * 1e3])
    np.testing.assert_allclose(shortcut_predictions(train, y, val, y_val, odd, n_classes=2)[0], together[0])


def test_validation_chooses_the_strength() -> None:
    """Noise columns beyond counting: the strong fit, which learns the noise by heart, is not the one that is taken."""
    rng = np.random.default_rng(0)
    labels = (np.arange(60) % 2).astype(np.int64)

    def features() -> np.ndarray:
        noise = rng.normal(size=(60, 200))
        noise[:, 0] += 2.5 * labels
        return noise

    train, val, test = features(), features(), features()
    found = shortcut_predictions(train, labels, val, labels, test, n_classes=2)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    by_strength = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000)).fit(train, labels)
        for strength in STRENGTHS
    ]
    aucs = [round(auc(labels, model.predict_proba(val)), 6) for model in by_strength]
    chosen = [np.allclose(model.predict_proba(test), found) for model in by_strength].index(True)
    assert aucs[chosen] == max(aucs)


def test_an_absent_class_is_named() -> None:
    (train, _), (val, y_val), (test, _) = (drawn(seed, 10, signal=1) for seed in (1, 2, 3))
    with pytest.raises(ValueError, match="class 1 is absent"):
        shortcut_predictions(train, np.zeros(10, np.int64), val, y_val, test, n_classes=2)

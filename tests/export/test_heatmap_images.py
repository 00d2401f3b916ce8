"""Heatmaps as PNG and OME-Zarr: the right colour and number at the right place."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from matplotlib import colormaps
from PIL import Image

from napari_lrmil.export import images
from napari_lrmil.export.errors import ExportError
from napari_lrmil.export.geojson import write_heatmap_geojson
from napari_lrmil.export.images import heatmap_image, write_heatmap_png, write_heatmap_zarr
from napari_lrmil.export.painting import (
    LEAST_CONTRIBUTION,
    Scale,
    attention_scale,
    grid_values,
    legend_strip,
    length_text,
    nice_length,
    overlay,
    paint,
    scale_of,
    thumbnail,
)
from napari_lrmil.heatmap import LEAST_ATTENTION_TOP, attention_heatmap, channel_values
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.slide import Slide, TileGrid, TileSpec

SHIFTS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def test_grid_picture_shows_each_tile_in_its_colour(leica_prediction: SlidePrediction) -> None:
    picture = np.asarray(heatmap_image(leica_prediction, legend=False, max_px=240))
    rows, cols = leica_prediction.tiles.grid.shape_yx
    step = 240 // max(rows, cols)
    assert picture.shape == (rows * step, cols * step, 4)
    values = attention_heatmap(leica_prediction).values
    top = max(4.0, float(np.percentile(values[np.isfinite(values)], 99)))
    for row in range(rows):
        for col in range(cols):
            square = picture[row * step : (row + 1) * step, col * step : (col + 1) * step]
            if np.isnan(values[row, col]):
                assert not square[..., 3].any()
            else:
                heat = float(np.clip((values[row, col] - 1) / (top - 1), 0, 1))
                wanted = np.rint(np.array(colormaps["viridis"](heat)) * 255)
                assert np.abs(square.astype(float) - wanted).max() <= 1


def test_overlay_lies_on_the_tiles_of_a_slide_with_bounds(
    leica: Slide, leica_prediction: SlidePrediction
) -> None:
    plain = np.asarray(thumbnail(leica, max_px=800).convert("RGB")).astype(int)
    count = len(leica_prediction.tiles)
    speaking = replace(
        leica_prediction, class_contributions=np.full((count, 2), 0.5)
    )  # cold ones would be clear
    over = np.asarray(heatmap_image(speaking, slide=leica, channel="lesion", max_px=800, legend=False))
    assert over.shape[:2] == plain.shape[:2] == (800, round(800 * 2220 / 2967))
    assert (over[..., 3] == 255).all()
    changed = (over[..., :3].astype(int) != plain).any(axis=-1)
    zoom = 800 / 2967
    edge = 64 * 2 / 0.499 * zoom
    read = np.isfinite(grid_values(leica_prediction, "attention"))
    for row, col in np.argwhere(np.ones_like(read)):
        top, left = (round(float(place) * edge) + 2 for place in (row, col))
        inside = changed[top : top + int(edge) - 4, left : left + int(edge) - 4]
        if inside.size:
            assert inside.mean() > 0.95 if read[row, col] else not inside.any(), (row, col)


def test_thumbnail_is_the_scanned_area_alone(leica: Slide, aperio: Slide) -> None:
    with_bounds = np.asarray(thumbnail(leica, max_px=300)).astype(int)
    without = np.asarray(thumbnail(aperio, max_px=300)).astype(int)
    assert with_bounds.shape == without.shape
    # The same tissue, stored twice as JPEG: nowhere else do they fit as well.
    misfit = {shift: np.abs(np.roll(with_bounds, shift, (0, 1)) - without).mean() for shift in SHIFTS}
    assert min(misfit, key=lambda shift: misfit[shift]) == (0, 0)
    assert misfit[0, 0] < 8


def test_a_slide_without_evidence_looks_cold(leica_prediction: SlidePrediction) -> None:
    count = len(leica_prediction.tiles)
    flat = replace(
        leica_prediction,
        attention_scores=np.full(count, 1 / count),
        class_contributions=np.full((count, 2), 1e-5),
    )
    assert scale_of(flat, "attention").high == LEAST_ATTENTION_TOP
    scale = scale_of(flat, "lesion")
    assert (scale.low, scale.high) == (-LEAST_CONTRIBUTION, LEAST_CONTRIBUTION)
    cold = scale_of(flat, "attention").colours(grid_values(flat, "attention"), thin=True)
    assert cold[..., 3].max() == 0


def test_contributions_diverge_around_a_clear_zero(leica_prediction: SlidePrediction) -> None:
    scale = scale_of(leica_prediction, "lesion")
    against, none, speaks = scale.colours(np.array([scale.low, 0.0, scale.high]), thin=True).tolist()
    assert against[3] == speaks[3] == 255
    assert none[3] < 50
    assert speaks[2] > speaks[0]  # teal
    assert against[0] > against[2]  # brown
    with pytest.raises(ValueError, match="no class"):
        scale_of(leica_prediction, "unheard of")


def test_paint_takes_the_tile_of_each_pixel_centre(leica_prediction: SlidePrediction) -> None:
    grid = leica_prediction.tiles.grid
    values = np.arange(grid.shape_yx[0] * grid.shape_yx[1], dtype=np.float32).reshape(grid.shape_yx)
    scale = replace(scale_of(leica_prediction, "attention"), low=0.0, high=float(values.max()))
    (x, y), (width, height) = grid.origin_l0_xy, grid.tile_l0_xy
    # From half a tile left of and above tile (1, 1), 2 x 2 tiles, 4 x 4 pixels.
    area = (x + width / 2, y + height / 2, 2 * width, 2 * height)
    painted = paint(values, grid, scale, area_l0_xywh=area, size_px=(4, 4), thin=False)
    wanted = values[np.ix_([0, 1, 1, 2], [0, 1, 1, 2])]
    assert np.array_equal(painted, scale.colours(wanted, thin=False))
    outside = paint(values, grid, scale, area_l0_xywh=(x - 9e5, y, 100, 100), size_px=(3, 3), thin=False)
    assert not outside[..., 3].any()


def test_heat_lies_on_its_tiles() -> None:
    values = np.array([[1, 2], [np.nan, 4]], np.float32)
    grid = TileGrid(TileSpec(1, 20.0), (10.0, 0.0), (20.0, 20.0), values.shape)
    scale = Scale(1.0, 4.0, "viridis", "attention, times average")
    # A picture of 60 x 40 level-0 pixels, 10 a pixel: the grid begins one pixel to the right.
    painted = paint(values, grid, scale, area_l0_xywh=(0, 0, 60, 40), size_px=(6, 4), thin=True)
    nan = np.nan
    wanted = np.array([[nan, 1, 1, 2, 2, nan]] * 2 + [[nan, nan, nan, 4, 4, nan]] * 2)
    assert np.array_equal(painted, scale.colours(wanted, thin=True))


def test_an_overlay_keeps_what_was_not_read_and_saturates() -> None:
    def over(*values: float) -> list[list[int]]:
        grid = TileGrid(TileSpec(1, 1.0), (0.0, 0.0), (1.0, 1.0), (1, 4))
        painted = overlay(
            Image.new("RGB", (4, 1), (200, 200, 200)),
            np.array([values], np.float32),
            grid,
            Scale(1.0, 4.0, "viridis", "attention, times average"),
            area_l0_xywh=(0, 0, 4, 1),
        )
        return np.asarray(painted.convert("RGB"))[0].tolist()

    unread, low, uniform, beyond = over(np.nan, 0.2, 1.0, 9.0)
    assert unread == [200, 200, 200]
    assert low == uniform  # below uniform looks like uniform
    assert beyond == over(4, 4, 4, 4)[3]
    assert beyond[2] < 100  # yellow has little blue


def test_one_scale_for_several_slides(leica_prediction: SlidePrediction) -> None:
    values = channel_values(leica_prediction, "attention")
    assert attention_scale(values) == scale_of(leica_prediction, "attention")
    both = attention_scale(np.concatenate([values, values * 3]))
    assert both.high == pytest.approx(np.percentile(np.concatenate([values, values * 3]), 99))


@pytest.mark.parametrize(
    ("limit", "wanted", "text"),
    [
        (250, 200, "200 µm"),
        (99.75, 50, "50 µm"),
        (20, 20, "20 µm"),
        (1e4, 1e4, "10 mm"),
        (999, 500, "500 µm"),
        (1000, 1000, "1 mm"),
        (2.1, 2, "2 µm"),
        (0.9, 0.5, "0.5 µm"),
        (4e4, 2e4, "20 mm"),
    ],
)
def test_nice_lengths(limit: float, wanted: float, text: str) -> None:
    assert nice_length(limit) == pytest.approx(wanted)
    assert length_text(nice_length(limit)) == text


def test_scale_bar_is_as_long_as_it_says() -> None:
    strip = np.asarray(legend_strip(640, 2.0, None).convert("L"))
    bar = strip[13]  # a row through it
    assert (bar < 50).sum() == 500 / 2.0  # 0.6 * 640 px * 2 µm/px = 768 µm: 500 µm
    narrow = legend_strip(240, 1.0, None)
    assert narrow.width == 240


def test_png_is_whole_or_absent_and_names_no_slide(
    leica: Slide, leica_prediction: SlidePrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(leica_prediction, version="0.0.9")
    path = write_heatmap_png(tmp_path / "out" / "h.png", made, slide=leica, max_px=400)
    with Image.open(path) as picture:
        assert picture.mode == "RGBA"
        assert picture.width == 299
        assert leica_prediction.bundle_sha256 in picture.info["Comment"]
        assert "classified by napari-lrmil 0.0.9" in picture.info["Comment"]
    before = path.read_bytes()
    assert leica_prediction.slide_name.encode() not in before

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_heatmap_png(path, leica_prediction)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["h.png"]


def test_ome_zarr_lies_over_the_slide(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    path = write_heatmap_zarr(tmp_path / "h.ome.zarr", leica_prediction)
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert [axis["type"] for axis in image["axes"]] == ["channel", "space", "space"]
    assert [axis.get("unit") for axis in image["axes"]] == [None, "micrometer", "micrometer"]
    (dataset,) = image["datasets"]
    scale, translation = dataset["coordinateTransformations"]
    assert (scale["type"], translation["type"]) == ("scale", "translation")
    # A tile of 128 µm; the centre of the first one is half a tile from the corner of the bounds.
    np.testing.assert_allclose(scale["scale"], [1, 128, 128])
    np.testing.assert_allclose(translation["translation"], [0, 1483 * 0.499 + 64, 2220 * 0.499 + 64])
    array = group[dataset["path"]]
    assert array.dtype == np.float32
    assert array.metadata.dimension_names == ("c", "y", "x")
    assert np.isnan(array.fill_value)
    pixels = array[:]
    tiles = leica_prediction.tiles
    read = np.zeros(tiles.grid.shape_yx, bool)
    read[tiles.rows, tiles.cols] = True
    assert np.array_equal(np.isfinite(pixels), np.broadcast_to(read, pixels.shape))
    np.testing.assert_allclose(
        pixels[0, tiles.rows, tiles.cols], leica_prediction.attention_scores * len(tiles), rtol=1e-6
    )
    of_classes = (
        leica_prediction.class_contributions,
        leica_prediction.log_odds_contributions,
        leica_prediction.log_odds_alone,
    )
    for channel, values in enumerate(np.concatenate(of_classes, axis=1).T):
        np.testing.assert_allclose(pixels[1 + channel, tiles.rows, tiles.cols], values, rtol=1e-6)
    channels = ome["omero"]["channels"]
    assert [one["label"] for one in channels] == [
        "attention, times average",
        "contribution of a tile to p(benign)",
        "contribution of a tile to p(lesion)",
        "contribution of a tile to the log-odds of benign",
        "contribution of a tile to the log-odds of lesion",
        "log-odds of benign by a tile alone",
        "log-odds of lesion by a tile alone",
    ]
    for one in channels:
        assert len(one["color"]) == 6
        assert set(one["window"]) == {"min", "max", "start", "end"}
        assert one["window"]["start"] < one["window"]["end"]
    assert leica_prediction.slide_name not in str(dict(group.attrs))


def test_ome_zarr_is_replaced_only_on_request_and_only_whole(
    leica_prediction: SlidePrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_heatmap_zarr(tmp_path / "h.ome.zarr", leica_prediction)
    with pytest.raises(ExportError, match="already there"):
        write_heatmap_zarr(path, leica_prediction)
    other = replace(leica_prediction, bundle_sha256="other", version="0.0.9")
    write_heatmap_zarr(path, other, overwrite=True)
    assert zarr.open_group(path, mode="r").attrs["napari_lrmil"]["bundle_sha256"] == "other"
    assert zarr.open_group(path, mode="r").attrs["napari_lrmil"]["version"] == "0.0.9"  # that made it

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(images, "grid_values", fail)
    with pytest.raises(OSError, match="disk full"):
        write_heatmap_zarr(path, leica_prediction, overwrite=True)
    assert zarr.open_group(path, mode="r").attrs["napari_lrmil"]["bundle_sha256"] == "other"
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.ome.zarr"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="no OME-Zarr"):
        write_heatmap_zarr(tmp_path / "folder", leica_prediction, overwrite=True)


def test_heatmaps_say_that_a_slide_is_unlike_training(
    leica: Slide, leica_prediction: SlidePrediction, tmp_path: Path
) -> None:
    """And nothing where there is no reason; each file apart from the report and the table that say so, too."""
    unlike = replace(
        leica_prediction, prediction_set=("benign",), coverage=0.9, ood_score=9.0, ood_threshold=2.0
    )
    like = replace(unlike, ood_score=1.0)
    for prediction, named in ((unlike, True), (like, False)):
        with Image.open(
            write_heatmap_png(tmp_path / "h.png", prediction, slide=leica, max_px=300)
        ) as picture:
            texts = [str(picture.info.get("Warning")), picture.info["Comment"]]
        path = write_heatmap_zarr(tmp_path / "h.ome.zarr", prediction, overwrite=True)
        about = zarr.open_group(path, mode="r").attrs["napari_lrmil"]
        texts += [str(about["warnings"]), str(about["status"])]
        written = write_heatmap_geojson(
            tmp_path / "h.geojson", prediction, bounds_l0_xywh=leica.bounds_l0_xywh
        )
        about = json.loads(written.read_text())["napari_lrmil"]
        texts += [str(about["warnings"]), str(about["status"])]
        assert ["This slide looks unlike the training slides" in text for text in texts[::2]] == [named] * 3
        assert ["unlike training" in text for text in texts[1::2]] == [named] * 3

"""The canvas on a real viewer: camera, marks, texts, keys, layers, and that closing takes them back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import make_prediction
from qtpy.QtCore import Qt
from real_windows import canvas_widget

from napari_lrmil._viewer.canvas import Area
from napari_lrmil._viewer.layers import TILE_MARK_KEY
from napari_lrmil._viewer.napari_canvas import NapariCanvas
from napari_lrmil.heatmap import HeatmapLook


@pytest.fixture
def canvas(viewer: Any) -> Iterator[NapariCanvas]:
    made = NapariCanvas(viewer)
    yield made
    made.close()


def counted(signal: Any) -> list[tuple[object, ...]]:
    """What a signal has sent."""
    sent: list[tuple[object, ...]] = []
    signal.connect(lambda *values: sent.append(values))
    return sent


def test_the_field_is_what_the_camera_shows(viewer: Any, canvas: NapariCanvas) -> None:
    moves = counted(canvas.camera_moved)
    canvas.go_to((300.0, 500.0), zoom=2.0)
    assert moves
    height_px, width_px = viewer.canvas.size
    assert canvas.zoom == 2.0
    assert canvas.field == pytest.approx(
        (300 - height_px / 4, 500 - width_px / 4, height_px / 2, width_px / 2)
    )
    canvas.go_to((10.0, 20.0))
    assert canvas.zoom == 2.0
    assert canvas.field.center_yx == pytest.approx((10, 20))


def test_an_area_is_fitted_by_its_longer_side_and_never_too_near(viewer: Any, canvas: NapariCanvas) -> None:
    height_px, width_px = viewer.canvas.size
    wide = Area(100.0, 200.0, 1.0, 8000.0)
    canvas.fit(wide, share=0.5)
    assert canvas.field.center_yx == pytest.approx((100.5, 4200))
    assert canvas.zoom == pytest.approx(0.5 * width_px / 8000)
    canvas.fit(Area(0.0, 0.0, 9000.0, 1.0), share=0.5)
    assert canvas.zoom == pytest.approx(0.5 * height_px / 9000)
    canvas.fit(Area(0.0, 0.0, 1.0, 1.0), share=0.5, max_zoom=4.0)
    assert canvas.zoom == 4.0
    canvas.fit(Area(70.0, 80.0, 0.0, 0.0), share=0.5)
    assert canvas.zoom == 4.0
    assert canvas.field.center_yx == pytest.approx((70, 80))


def test_one_tile_is_outlined_and_the_chosen_layer_stays_chosen(viewer: Any, canvas: NapariCanvas) -> None:
    chosen = viewer.add_image(np.zeros((8, 8)))
    canvas.mark_tile(3, Area(0.0, 0.0, 120.0, 120.0))
    canvas.mark_tile(7, Area(240.0, 120.0, 120.0, 120.0))
    (mark,) = [layer for layer in viewer.layers if TILE_MARK_KEY in layer.metadata]
    assert mark.metadata[TILE_MARK_KEY] == 7
    assert viewer.layers.selection.active == chosen
    outer, inner = (np.asarray(corners) for corners in mark.data)  # two lines of 2 µm, side by side
    np.testing.assert_allclose(outer[0], (237, 117))
    np.testing.assert_allclose(inner[2], (361, 241))
    canvas.clear_tile_mark()
    canvas.clear_tile_mark()
    assert list(viewer.layers) == [chosen]


def test_it_tells_of_layers_and_heatmaps(viewer: Any, canvas: NapariCanvas, small_slide: Path) -> None:
    changes, gone, restyled = (
        counted(each) for each in (canvas.layers_changed, canvas.layer_removed, canvas.heatmap_changed)
    )
    slide = canvas.open_slide(small_slide)
    assert changes
    assert viewer.canvas.overlays.scale_bar.visible
    assert canvas.drawn_heatmap(slide) is None
    prediction = make_prediction()
    canvas.set_new_heatmaps(opacity=0.25)
    canvas.show_heatmap(slide, prediction, HeatmapLook())
    assert canvas.heatmap_opacity(slide) == 0.25
    before, restyled_before = len(changes), len(restyled)
    canvas.set_heatmap(slide, visible=False, opacity=None)
    assert len(changes) > before
    assert len(restyled) == restyled_before
    canvas.show_heatmap(slide, prediction, HeatmapLook("lesion"))
    assert len(restyled) > restyled_before
    drawn = canvas.drawn_heatmap(slide)  # shown or not
    assert drawn is not None
    assert drawn.rgba.shape == (2, 3, 4)
    assert drawn.area == pytest.approx((0, 0, 256, 384))  # tiles of 128 µm
    assert drawn.rgba[..., 3].max() <= round(0.25 * 255)
    heatmap = next(layer for layer in viewer.layers if layer.metadata.get("lrmil_heatmap_of") is slide)
    canvas.remove_slide(slide)
    assert heatmap in [layer for (layer,) in gone]
    assert not viewer.layers


def test_layers_to_draw_on_come_and_go(viewer: Any, canvas: NapariCanvas) -> None:
    shapes, points = canvas.add_shapes(ndim=2), canvas.add_points(ndim=2)
    assert canvas.chosen_layer() is None  # what the program adds isn't what the user chose
    canvas.choose_layer(shapes)
    assert canvas.chosen_layer() == shapes
    canvas.remove_layer(shapes)
    canvas.remove_layer(shapes)
    assert list(viewer.layers) == [points]
    canvas.choose_layer(shapes)  # one that is gone stays unchosen
    assert list(viewer.layers) == [points]


def test_closing_takes_back_what_it_added_and_is_silent_from_then_on(
    viewer: Any, canvas: NapariCanvas, qtbot: Any
) -> None:
    pressed: list[str] = []
    canvas.bind_key("Control-9", lambda: pressed.append("9"))
    canvas.show_magnification("10×")
    assert viewer.canvas.overlays["lrmil_magnification"].visible
    qtbot.keyClick(canvas_widget(), Qt.Key.Key_9, Qt.KeyboardModifier.ControlModifier)
    assert pressed == ["9"]
    changes, moves = counted(canvas.layers_changed), counted(canvas.camera_moved)
    canvas.close()
    canvas.close()
    viewer.add_image(np.zeros((8, 8)))
    viewer.scene.camera.zoom = 0.7
    qtbot.keyClick(canvas_widget(), Qt.Key.Key_9, Qt.KeyboardModifier.ControlModifier)
    assert pressed == ["9"]
    assert "lrmil_magnification" not in viewer.canvas.overlays
    assert not changes
    assert not moves

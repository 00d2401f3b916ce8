"""The overview dock in real windows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import make_prediction
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QImage
from qtpy.QtWidgets import QDialog, QMessageBox, QWidget
from real_windows import LONG_MS, canvas_widget, delete_what_is_due, open_slide, shot_at_rest, wait_for_jobs

from napari_lrmil._viewer.canvas import Area
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.overview.field import Fit
from napari_lrmil._viewer.docks.overview.widget import OverviewWidget
from napari_lrmil._viewer.magnifier import MAGNIFICATIONS, scanned_area
from napari_lrmil.slide import Slide

pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def overview(viewer: Any) -> OverviewWidget:
    _, widget = viewer.window.add_plugin_dock_widget("napari-lrmil", "LRMIL: overview")
    assert isinstance(widget, OverviewWidget)
    return widget


def settled(qtbot: Any, overview: OverviewWidget) -> None:
    """The map shows the field that the canvas has by now: it follows with a delay."""
    area = scanned_area(overview.controller.slide)

    def shows_it() -> bool:
        fit = Fit.of(area, (float(overview.map.width()), float(overview.map.height())))
        return overview.map.field_px_xywh == pytest.approx(fit.to_px_xywh(overview.canvas.field))

    qtbot.waitUntil(shows_it, timeout=LONG_MS)


def painted(overview: OverviewWidget) -> Any:
    """What the map shows: (height, width, 3) of the widget's pixels."""
    image = overview.map.grab().toImage().convertToFormat(QImage.Format.Format_RGB888)
    image = image.scaled(overview.map.size())
    rows = np.frombuffer(image.constBits().asstring(image.sizeInBytes()), np.uint8)
    return rows.reshape(image.height(), image.bytesPerLine())[:, : 3 * image.width()].reshape(
        image.height(), image.width(), 3
    )


def wait_for_picture(qtbot: Any, overview: OverviewWidget) -> None:
    """Without a slide the map is grey, with a rectangle at most."""
    qtbot.waitUntil(lambda: len(np.unique(painted(overview).reshape(-1, 3), axis=0)) > 50, timeout=LONG_MS)


def test_presets_by_key_and_button_are_exact(
    viewer: Any, overview: OverviewWidget, qtbot: Any, small_slide: Path
) -> None:
    """A length of the slide covers as many pixels of the real canvas as the magnification says."""
    open_slide(viewer, small_slide)
    camera = viewer.scene.camera
    camera.center = (0.0, 400.0, 700.0)
    for number, value in enumerate(MAGNIFICATIONS, start=1):
        camera.zoom = 0.123
        if number % 2:
            qtbot.keyClick(
                canvas_widget(), Qt.Key(int(Qt.Key.Key_0) + number), Qt.KeyboardModifier.ControlModifier
            )
        else:
            qtbot.mouseClick(overview.presets[value], LEFT)
        settled(qtbot, overview)
        assert 1 / camera.zoom == pytest.approx(10 / value, rel=0.01)
        assert camera.center[-2:] == pytest.approx((400, 700))
        text = f"{value}× · {10 / value:g} µm/px"
        if value > 20:  # the scan has 0.5 µm/px
            text += " · enlarged beyond the scan's 20×"
        assert overview.magnification.text() == text
        assert viewer.canvas.overlays["lrmil_magnification"].text == text
        assert viewer.canvas.overlays["lrmil_magnification"].visible
    assert viewer.canvas.overlays.scale_bar.visible


def test_drawn_pixels_measure_what_is_said(
    viewer: Any, overview: OverviewWidget, qtbot: Any, small_slide: Path
) -> None:
    open_slide(viewer, small_slide)
    square = viewer.add_image(
        np.full((1, 1), 1.0), scale=(100, 100), translate=(450, 650), units=("um", "um"), colormap="green"
    )
    square.contrast_limits = (0, 1)
    viewer.scene.camera.center = (0, 450, 650)
    overview.presets[20].click()
    viewer.canvas.overlays.scale_bar.visible = False
    ratio = canvas_widget().devicePixelRatioF()
    shot = shot_at_rest(qtbot, viewer).astype(int)
    green = np.argwhere((shot[..., 1] > 200) & (shot[..., 0] < 60) & (shot[..., 2] < 60))
    height, width = np.ptp(green, axis=0) + 1
    assert height / ratio == pytest.approx(200, abs=2)  # 100 µm at 0.5 µm a pixel
    assert width / ratio == pytest.approx(200, abs=2)


def test_unknown_mpp_has_no_magnification(
    viewer: Any, overview: OverviewWidget, qtbot: Any, slide_without_mpp: Path
) -> None:
    open_slide(viewer, slide_without_mpp)
    assert not overview.presets[10].isEnabled()
    assert "µm/px" in overview.hint.text()
    assert overview.hint.isVisibleTo(overview)
    assert overview.magnification.text() == "–"
    dock_widget(viewer).controller.set_mpp(0.5)
    assert overview.presets[10].isEnabled()
    assert not overview.hint.isVisibleTo(overview)
    wait_for_picture(qtbot, overview)


def test_map_moves_the_view_and_follows_it(
    viewer: Any, overview: OverviewWidget, qtbot: Any, shared_file: Callable[[str], Path]
) -> None:
    """On a slide with bounds: the map shows what was scanned, and knows where that lies."""
    slide = open_slide(viewer, shared_file("slides_repacked/cmu_leica.scn"))
    wait_for_picture(qtbot, overview)
    left, top, width, height = slide.bounds_l0_xywh
    mpp_x, mpp_y = slide.mpp_xy
    overview.presets[20].click()
    middle = QPoint(overview.map.width() // 2, overview.map.height() // 2)
    qtbot.mouseClick(overview.map, LEFT, pos=middle)
    settled(qtbot, overview)
    expected = ((top + height / 2) * mpp_y, (left + width / 2) * mpp_x)
    pixel_um = max(height * mpp_y / overview.map.height(), 1)
    assert viewer.scene.camera.center[-2:] == pytest.approx(expected, abs=2 * pixel_um)

    def field_middle() -> tuple[float, float]:
        x, y, w, h = overview.map.field_px_xywh or (0, 0, 0, 0)
        return x + w / 2, y + h / 2

    # The map follows the canvas with a delay, and rounds to its own pixels.
    qtbot.waitUntil(lambda: field_middle() == pytest.approx((middle.x(), middle.y()), abs=3), timeout=LONG_MS)
    before = viewer.scene.camera.center
    qtbot.keyClick(overview.map, Qt.Key.Key_Right)
    field_um = viewer.canvas.size[1] / viewer.scene.camera.zoom
    area_right = (left + width) * mpp_x
    assert viewer.scene.camera.center[-1] == pytest.approx(min(before[-1] + field_um / 2, area_right))
    qtbot.keyClick(overview.map, Qt.Key.Key_Minus)
    assert viewer.scene.camera.zoom == pytest.approx(1.0)
    qtbot.keyClick(overview.map, Qt.Key.Key_Home)
    assert viewer.scene.camera.center[-2:] == pytest.approx(expected)
    settled(qtbot, overview)
    x, y, w, h = overview.map.field_px_xywh or (0, 0, 0, 0)
    area = Area(top * mpp_y, left * mpp_x, height * mpp_y, width * mpp_x)
    fit = Fit.of(area, (overview.map.width(), overview.map.height()))
    area_x, area_y, area_w, area_h = fit.to_px_xywh(area)
    assert x <= area_x
    assert y <= area_y
    assert x + w >= area_x + area_w
    assert y + h >= area_y + area_h


def test_many_camera_events_paint_few_times(
    viewer: Any, overview: OverviewWidget, qtbot: Any, small_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_slide(viewer, small_slide)
    settled(qtbot, overview)
    painted: list[int] = []
    show = overview.map.show_field
    monkeypatch.setattr(overview.map, "show_field", lambda field: (painted.append(1), show(field)))
    for step in range(300):
        viewer.scene.camera.center = (0, 100 + step, 100)
    assert len(painted) <= 1
    settled(qtbot, overview)
    assert 1 <= len(painted) <= 3


def test_heatmap_on_the_map(viewer: Any, overview: OverviewWidget, qtbot: Any, small_slide: Path) -> None:
    slide = open_slide(viewer, small_slide)
    wait_for_picture(qtbot, overview)
    assert not overview.heatmap.isVisibleTo(overview)
    dock_widget(viewer).controller.show_result(slide, make_prediction())
    assert overview.heatmap.isVisibleTo(overview)
    with_heatmap = painted(overview)
    overview.heatmap.click()
    without = painted(overview)
    ys, xs = np.nonzero((with_heatmap != without).any(-1))
    fit = Fit.of(Area(0, 0, 960, 1280), (overview.map.width(), overview.map.height()))  # the slide in µm
    left, top, width, height = fit.to_px_xywh(Area(0, 0, 2 * 128, 3 * 128))  # tiles of 128 µm
    assert xs.min() >= left - 1
    assert ys.min() >= top - 1
    assert (xs.max() + 1, ys.max() + 1) == pytest.approx((left + width, top + height), abs=1.5)
    overview.heatmap.click()
    np.testing.assert_array_equal(painted(overview), with_heatmap)


def test_associated_images_only_on_request(
    viewer: Any,
    overview: OverviewWidget,
    qtbot: Any,
    shared_file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    original = Slide.read_associated
    monkeypatch.setattr(
        Slide, "read_associated", lambda self, name: (read.append(name), original(self, name))[1]
    )
    slide = open_slide(viewer, shared_file("slides_real/CMU-1-Small-Region.svs"))
    wait_for_jobs(qtbot)
    name = next(each for each in slide.associated_images if each in ("label", "macro", "thumbnail"))
    assert read == []
    asked: list[str] = []

    def answer(button: Any) -> Any:
        def question(parent: QWidget, title: str, text: str, *_: Any) -> Any:
            asked.append(text)
            return button

        return question

    monkeypatch.setattr(QMessageBox, "question", answer(QMessageBox.StandardButton.No))
    qtbot.mouseClick(overview.associated_buttons[name], LEFT)
    wait_for_jobs(qtbot)
    assert "patient" in asked[0]
    assert read == []
    monkeypatch.setattr(QMessageBox, "question", answer(QMessageBox.StandardButton.Yes))
    qtbot.mouseClick(overview.associated_buttons[name], LEFT)
    qtbot.waitUntil(lambda: overview.associated_dialog is not None, timeout=LONG_MS)
    assert read == [name]
    dialog = overview.associated_dialog
    assert dialog is not None
    assert "patient" in dialog.windowTitle()
    viewer.layers.clear()  # with its slide, the image goes too
    qtbot.waitUntil(lambda: overview.associated_dialog is None, timeout=LONG_MS)


def test_an_associated_image_stands_beside_no_other_slide(
    viewer: Any, overview: OverviewWidget, small_slide: Path, qtbot: Any, tmp_path: Path
) -> None:
    open_slide(viewer, small_slide)
    for _ in range(2):  # of two in a row, the second is closed too
        overview.show_associated("label", np.zeros((20, 30, 3), np.uint8))
    dialog = overview.associated_dialog
    assert dialog is not None
    qtbot.waitUntil(dialog.isVisible, timeout=LONG_MS)
    open_slide(viewer, shutil.copy(small_slide, tmp_path / "other.tiff"))
    assert overview.associated_dialog is None
    wait_for_jobs(qtbot)
    assert not [each for each in overview.findChildren(QDialog) if each.isVisible()]


def test_every_control_says_what_it_does(viewer: Any, overview: OverviewWidget, small_slide: Path) -> None:
    open_slide(viewer, small_slide)
    for control in [overview.map, overview.whole, overview.heatmap, *overview.presets.values()]:
        assert control.toolTip()
        assert control.accessibleName() or control.text()
        assert control.focusPolicy() & Qt.FocusPolicy.TabFocus


def test_closing_the_dock_leaves_nothing(
    viewer: Any, overview: OverviewWidget, qtbot: Any, small_slide: Path
) -> None:
    open_slide(viewer, small_slide)
    ended: list[int] = []
    overview.destroyed.connect(lambda: ended.append(1))
    viewer.window.remove_dock_widget(overview)
    # Keys and label are the main dock's: they work on, and end with it.
    for key, zoom in ((Qt.Key.Key_6, 4.0), (Qt.Key.Key_4, 1.0)):
        qtbot.keyClick(canvas_widget(), key, Qt.KeyboardModifier.ControlModifier)
        assert viewer.scene.camera.zoom == pytest.approx(zoom)
    qtbot.waitUntil(
        lambda: viewer.canvas.overlays["lrmil_magnification"].text == "10× · 1 µm/px", timeout=LONG_MS
    )
    viewer.window.remove_dock_widget(dock_widget(viewer))
    assert "lrmil_magnification" not in viewer.canvas.overlays
    delete_what_is_due()
    assert ended


def test_main_dock_closed_and_opened_again(
    viewer: Any, overview: OverviewWidget, qtbot: Any, small_slide: Path
) -> None:
    open_slide(viewer, small_slide)
    viewer.window.remove_dock_widget(dock_widget(viewer))
    delete_what_is_due()
    assert overview.open_again.isVisibleTo(overview)
    qtbot.mouseClick(overview.open_again, LEFT)
    assert overview.controller is dock_widget(viewer).controller
    assert overview.presets[10].isEnabled()

"""The tiles dock in real windows, by mouse and keys."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_slides import write_slide
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage
from qtpy.QtWidgets import QListWidget
from real_windows import (
    LONG_MS,
    assert_controls_say_what_they_do,
    canvas_widget,
    choose_by_keys,
    wait_for_jobs,
)

from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.tiles import presenter as module
from napari_lrmil._viewer.docks.tiles.panel import CLOSE_UP_MAX_PX
from napari_lrmil._viewer.docks.tiles.widget import TilesWidget
from napari_lrmil._viewer.layers import TILE_MARK_KEY
from napari_lrmil.slide.picture import close_up

pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton
TILES = "LRMIL: tiles"


@pytest.fixture
def dock(viewer: Any, main_dock: ClassifyWidget, qtbot: Any) -> TilesWidget:
    """The tiles dock with all its images."""
    _, made = viewer.window.add_plugin_dock_widget("napari-lrmil", TILES)
    assert isinstance(made, TilesWidget)
    wait_for_images(qtbot, made)
    return made


def wait_for_images(qtbot: Any, dock: TilesWidget) -> None:
    qtbot.waitUntil(lambda: not dock.background.running("close-ups"), timeout=LONG_MS)


def marks(viewer: Any) -> list[Any]:
    return [layer for layer in viewer.layers if TILE_MARK_KEY in layer.metadata]


def icon_pixels(dock: TilesWidget, n: int) -> np.ndarray:
    item = dock.top.item_of(n) or dock.bottom.item_of(n)
    assert item is not None
    (size,) = item.icon().availableSizes()[:1]
    image = item.icon().pixmap(size).toImage().convertToFormat(QImage.Format.Format_RGB888)
    pointer = image.constBits()
    if hasattr(pointer, "setsize"):
        pointer.setsize(image.bytesPerLine() * image.height())
    rows = np.frombuffer(pointer, np.uint8).reshape(image.height(), image.bytesPerLine())
    # A copy: the image's memory goes with the image.
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def numbers(tiles: QListWidget) -> list[int]:
    return [tiles.item(row).data(Qt.ItemDataRole.UserRole) for row in range(tiles.count())]


def test_images_are_the_tiles_at_higher_power(main_dock: ClassifyWidget, dock: TilesWidget) -> None:
    result, slide = main_dock.controller.result, main_dock.controller.slide
    assert result is not None
    assert slide is not None
    points = result.class_contributions[:, result.class_names.index(result.label)] * 100
    top, bottom = numbers(dock.top), numbers(dock.bottom)
    assert len(top) == len(bottom) == 6
    assert points[top].tolist() == sorted(points, reverse=True)[:6]
    assert sorted(points[bottom].tolist()) == sorted(points)[:6]
    for n in (top[0], bottom[-1]):
        row, col = int(result.tiles.rows[n]), int(result.tiles.cols[n])
        expected = close_up(slide, result.tiles.grid, row, col, max_px=CLOSE_UP_MAX_PX)
        np.testing.assert_array_equal(icon_pixels(dock, n), expected)
    assert icon_pixels(dock, top[0]).shape == (256, 256, 3)  # the model read 64 px
    assert "20×" in dock.note.text()


def test_a_click_goes_to_the_tile_and_marks_it(
    viewer: Any, main_dock: ClassifyWidget, dock: TilesWidget, qtbot: Any
) -> None:
    result = main_dock.controller.result
    assert result is not None
    active = viewer.layers.selection.active
    item = dock.top.item(1)
    where = dock.top.visualItemRect(item).center()
    qtbot.mouseClick(dock.top.viewport(), LEFT, pos=where)
    n = numbers(dock.top)[1]
    left, top = result.tiles.corners_l0_xy[n]
    side_um = result.tiles.grid.spec.tile_um
    centre_um = np.array([top * 0.5 + side_um / 2, left * 0.5 + side_um / 2])
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], centre_um)
    shown_px = viewer.scene.camera.zoom * side_um
    assert shown_px == pytest.approx(min(viewer.canvas.size) / 3)
    (mark,) = marks(viewer)
    assert mark.metadata[TILE_MARK_KEY] == n
    box = np.concatenate(mark.data)
    np.testing.assert_allclose((box.min(0) + box.max(0)) / 2, centre_um)
    assert ((box.max(0) - box.min(0)) > side_um).all()  # around the tile, not over it
    assert viewer.layers.selection.active is active
    assert main_dock.controller.result is result


def test_keys_go_through_the_tiles(viewer: Any, dock: TilesWidget, qtbot: Any) -> None:
    top = numbers(dock.top)
    dock.top.setFocus()
    dock.top.setCurrentRow(0)
    qtbot.keyClick(dock.top, Qt.Key.Key_Right)
    assert not marks(viewer)
    qtbot.keyClick(dock.top, Qt.Key.Key_Return)
    assert [mark.metadata[TILE_MARK_KEY] for mark in marks(viewer)] == [top[1]]
    canvas = canvas_widget()
    canvas.setFocus()
    qtbot.keyClick(canvas, Qt.Key.Key_Right, Qt.KeyboardModifier.AltModifier)
    assert [mark.metadata[TILE_MARK_KEY] for mark in marks(viewer)] == [top[2]]
    assert dock.top.currentRow() == 2
    qtbot.keyClick(canvas, Qt.Key.Key_Left, Qt.KeyboardModifier.AltModifier)
    assert [mark.metadata[TILE_MARK_KEY] for mark in marks(viewer)] == [top[1]]


def test_kind_and_number_can_be_chosen(dock: TilesWidget, qtbot: Any) -> None:
    choose_by_keys(qtbot, dock.channel, 0)
    assert dock.top_title.text() == "Most attention"
    assert dock.top.item(0).text().endswith("×")
    dock.k.setFocus()
    qtbot.keyClick(dock.k, Qt.Key.Key_Down)
    qtbot.keyClick(dock.k, Qt.Key.Key_Down)
    assert dock.top.count() == dock.bottom.count() == 4
    wait_for_images(qtbot, dock)
    dock.size_px.setFocus()
    before = dock.top.iconSize().width()
    qtbot.keyClick(dock.size_px, Qt.Key.Key_PageUp)
    assert dock.top.iconSize().width() == before + 64


def test_it_follows_the_slide(
    viewer: Any, main_dock: ClassifyWidget, dock: TilesWidget, qtbot: Any, tmp_path: Path, bundle_dir: Path
) -> None:
    qtbot.keyClick(dock.top, Qt.Key.Key_Down)
    dock.top.setCurrentRow(0)
    qtbot.keyClick(dock.top, Qt.Key.Key_Return)
    assert marks(viewer)
    other = write_slide(tmp_path / "other.tiff", size_xy=(2304, 1920))
    main_dock.controller.open_slide(other)
    assert dock.hint.isVisibleTo(dock)
    assert "Classify this slide" in dock.hint.text()
    assert not marks(viewer)
    main_dock.controller.choose_slide(0)
    wait_for_images(qtbot, dock)
    assert not dock.hint.isVisibleTo(dock)
    assert dock.top.count() == 6
    viewer.layers.clear()
    assert "Open a slide" in dock.hint.text()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Two events: the first is set once a close-up is about to be read, which then waits for the second."""
    reading, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        reading.set()
        assert go_on.wait(LONG_MS / 1000)
        return close_up(*arguments, **options)

    monkeypatch.setattr(module, "close_up", slow)
    return reading, go_on


def test_closing_while_images_are_read_ends_the_reading(
    viewer: Any, main_dock: ClassifyWidget, qtbot: Any, held: tuple[threading.Event, threading.Event]
) -> None:
    reading, go_on = held
    docked, made = viewer.window.add_plugin_dock_widget("napari-lrmil", TILES)
    assert reading.wait(LONG_MS / 1000)
    made.ending.callback(go_on.set)  # so that the step under way can end
    viewer.window.remove_dock_widget(docked)
    wait_for_jobs(qtbot)
    assert not marks(viewer)
    main_dock.controller.set_heatmap(visible=False)  # nobody listens any more who is gone


def test_a_slide_closed_while_images_are_read_is_no_error(
    viewer: Any, main_dock: ClassifyWidget, qtbot: Any, held: tuple[threading.Event, threading.Event]
) -> None:
    reading, go_on = held
    _, made = viewer.window.add_plugin_dock_widget("napari-lrmil", TILES)
    assert reading.wait(LONG_MS / 1000)
    viewer.layers.clear()
    go_on.set()
    wait_for_images(qtbot, made)
    wait_for_jobs(qtbot)
    assert not made.error.isVisibleTo(made)
    assert "Open a slide" in made.hint.text()


def test_closing_the_dock_leaves_neither_mark_nor_keys(viewer: Any, dock: TilesWidget, qtbot: Any) -> None:
    dock.top.setCurrentRow(0)
    qtbot.keyClick(dock.top, Qt.Key.Key_Return)
    viewer.window.remove_dock_widget(dock)
    assert not marks(viewer)
    canvas = canvas_widget()
    qtbot.keyClick(canvas, Qt.Key.Key_Right, Qt.KeyboardModifier.AltModifier)
    assert not marks(viewer)


def test_every_control_can_be_reached_and_says_what_it_does(dock: TilesWidget) -> None:
    assert_controls_say_what_they_do(dock)

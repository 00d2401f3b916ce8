"""Result, evidence and gallery in real windows, by mouse and keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qtpy.QtCore import QPoint, QPointF, Qt, QThreadPool
from qtpy.QtGui import QImage
from qtpy.QtWidgets import QAbstractButton, QAbstractSlider, QAbstractSpinBox, QComboBox, QListWidget, QWidget
from window_files import write_slide

from napari_lrmil._viewer import open_slide_with_result
from napari_lrmil._viewer.docks.classify.evidence import NO_TILE
from napari_lrmil._viewer.docks.classify.sections import CardDialog
from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.tiles import GalleryDock
from napari_lrmil._viewer.docks.tiles import widget as gallery_module
from napari_lrmil._viewer.docks.tiles.close_up import close_up
from napari_lrmil._viewer.docks.tiles.stage import MARK_KEY
from napari_lrmil._viewer.layers import HEATMAP_KEY
from napari_lrmil._viewer.session import dock_widget
from napari_lrmil.model.bundle import load_bundle, save_bundle
from napari_lrmil.model.trust import ConformalInfo, OODInfo, TileGaussian, Trust, TrustInfo

pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton
GALLERY = "LRMIL: tiles"


@pytest.fixture
def viewer(viewer: Any) -> Any:
    viewer.window.resize(1300, 1000)
    return viewer


@pytest.fixture
def widget(viewer: Any, small_slide: Path, bundle_dir: Path) -> ClassifyWidget:
    """The dock with a result."""
    open_slide_with_result(viewer, small_slide, bundle_dir)
    return dock_widget(viewer)


@pytest.fixture
def gallery(viewer: Any, widget: ClassifyWidget, qtbot: Any) -> GalleryDock:
    """The gallery with all its images."""
    _, made = viewer.window.add_plugin_dock_widget("napari-lrmil", GALLERY)
    assert isinstance(made, GalleryDock)
    wait_for_images(qtbot, made)
    return made


def wait_for_images(qtbot: Any, gallery: GalleryDock) -> None:
    qtbot.waitUntil(lambda: not gallery.background.running("close-ups"), timeout=30_000)


def heatmap(viewer: Any) -> Any:
    (layer,) = [layer for layer in viewer.layers if HEATMAP_KEY in layer.metadata]
    return layer


def marks(viewer: Any) -> list[Any]:
    return [layer for layer in viewer.layers if MARK_KEY in layer.metadata]


def choose(qtbot: Any, combo: QComboBox, index: int) -> None:
    """As by keys: up to the first, down to the one wanted."""
    combo.setFocus()
    qtbot.keyClick(combo, Qt.Key.Key_Home)
    for _ in range(index):
        qtbot.keyClick(combo, Qt.Key.Key_Down)
    assert combo.currentIndex() == index


def bundle_with_trust(source: Path, target: Path, *, quantile: float | None, threshold: float) -> Path:
    """A copy that calls slides unsure (quantile None) or strange (threshold 0) as wanted."""
    bundle = load_bundle(source)
    dim = bundle.encoder.embed_dim
    info = TrustInfo(
        conformal=ConformalInfo(coverage=0.9, n_calibration=20, quantile=quantile),
        ood=OODInfo(
            rank=1, threshold=threshold, false_alarm_rate=0.05, n_calibration=20, n_training_tiles=100
        ),
    )
    gaussian = TileGaussian(torch.zeros(dim), torch.eye(dim)[:1], torch.ones(2))
    save_bundle(target, info=bundle.info, encoder=bundle.encoder, mil=bundle.mil, trust=Trust(info, gaussian))
    return target


# --- result


def test_unsure_and_strange_are_told(
    viewer: Any, small_slide: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    bundle = bundle_with_trust(bundle_dir, tmp_path / "trust", quantile=None, threshold=0.0)
    open_slide_with_result(viewer, small_slide, bundle)
    section = dock_widget(viewer).result_section
    assert section.label.text() == "Unsure"
    assert section.set.text() == "Unsure: benign or lesion at 90 %"
    assert section.strange.isVisible()
    assert "unlike the training slides" in section.strange.text.text()
    assert "unsure" in viewer.canvas.overlays.text.text
    assert "unlike the training slides" in viewer.canvas.overlays.text.text


def test_a_familiar_slide_gets_its_set_and_no_warning(
    viewer: Any, small_slide: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    bundle = bundle_with_trust(bundle_dir, tmp_path / "trust", quantile=0.52, threshold=1e9)
    prediction = open_slide_with_result(viewer, small_slide, bundle)
    section = dock_widget(viewer).result_section
    assert section.set.text().startswith(("Set at 90 %: {", "Unsure: "))
    assert section.label.text() == ("Unsure" if prediction.unsure else prediction.label)
    assert not section.strange.isVisible()
    assert "warning above 1e+09" in section.distance.text()


def test_without_trust_the_dock_says_that_there_is_none(widget: ClassifyWidget) -> None:
    assert "states none" in widget.result_section.set.text()
    assert widget.result_section.label.text() in ("benign", "lesion")
    assert not widget.result_section.strange.isVisible()


def test_the_card_opens_beside_the_slide(widget: ClassifyWidget, qtbot: Any) -> None:
    qtbot.mouseClick(widget.model_section.card, LEFT)
    dialog = widget.findChild(CardDialog)
    assert dialog is not None
    assert not dialog.isModal()
    text = dialog.text.toPlainText()
    assert text.startswith("Tiny")
    assert "library_name" not in text
    assert "How far to trust a result" in text
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: widget.findChild(CardDialog) is None, timeout=5_000)


# --- evidence


def test_the_heatmap_shows_what_is_chosen(viewer: Any, widget: ClassifyWidget, qtbot: Any) -> None:
    section, result = widget.evidence_section, widget.controller.result
    assert result is not None
    layer, tiles = heatmap(viewer), result.tiles
    read = (tiles.rows, tiles.cols)
    assert [section.channel.itemText(n) for n in range(3)] == [
        "Attention",
        "Contribution to benign",
        "Contribution to lesion",
    ]
    choose(qtbot, section.channel, 2)
    assert heatmap(viewer) is layer
    np.testing.assert_allclose(layer.data[read], result.class_contributions[:, 1] * 100, rtol=1e-5)
    assert layer.contrast_limits[0] == -layer.contrast_limits[1]
    assert layer.contrast_limits[1] >= 1.0
    assert "out exactly" in section.legend.text()
    assert section.bar.accessibleName().endswith("percentage points of p(lesion)")
    assert layer.name == "small contribution to lesion"

    choose(qtbot, section.scaling, 1)
    assert layer.contrast_limits == [-100, 100]
    assert "rank" in section.legend.text()

    choose(qtbot, section.channel, 0)
    assert layer.contrast_limits == [0, 100]
    section.threshold.setFocus()
    qtbot.keyClick(section.threshold, Qt.Key.Key_End)
    assert section.threshold_text.text() == "from 100 %"
    assert np.isnan(layer.data).all()
    qtbot.keyClick(section.threshold, Qt.Key.Key_Home)
    assert np.isfinite(layer.data).sum() == len(tiles)

    choose(qtbot, section.colormap, 2)
    assert "magma" in layer.colormap.name
    choose(qtbot, section.scaling, 0)
    assert layer.contrast_limits[0] == 1.0


def test_another_classification_keeps_the_look(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, tmp_path: Path, bundle_dir: Path
) -> None:
    choose(qtbot, widget.evidence_section.channel, 1)
    other = write_slide(tmp_path / "other.tiff", size_xy=(2304, 1920))
    open_slide_with_result(viewer, other, bundle_dir)
    assert widget.evidence_section.channel.currentIndex() == 1
    names = {layer.name for layer in viewer.layers if HEATMAP_KEY in layer.metadata}
    assert names == {"small contribution to benign", "other contribution to benign"}


def test_the_mouse_reads_a_tiles_values(viewer: Any, widget: ClassifyWidget, qtbot: Any) -> None:
    """A move over the canvas itself, through Qt and napari."""
    result = widget.controller.result
    assert result is not None
    n = len(result.tiles) // 2
    layer = heatmap(viewer)
    viewer.scene.camera.center = layer.data_to_world((result.tiles.rows[n], result.tiles.cols[n]))
    qtbot.wait(200)
    canvas = canvas_widget(viewer)
    centre = QPoint(canvas.width() // 2, canvas.height() // 2)
    move(qtbot, canvas, centre + QPoint(3, 3))
    move(qtbot, canvas, centre)
    text = widget.evidence_section.hover.text()
    assert f"row {result.tiles.rows[n]}, column {result.tiles.cols[n]}" in text
    assert f"attention {result.attention_scores[n] * len(result.tiles):.2f}×" in text
    assert "lesion" in text
    viewer.scene.camera.center = (-1e5, -1e5)
    qtbot.wait(100)
    move(qtbot, canvas, centre + QPoint(2, 2))
    assert widget.evidence_section.hover.text() == NO_TILE


def canvas_widget(viewer: Any) -> QWidget:
    """The widget that draws."""
    window = dock_widget(viewer).window()
    found = [child for child in window.findChildren(QWidget) if "CanvasBackend" in type(child).__name__]
    assert len(found) == 1
    return found[0]


def move(qtbot: Any, canvas: QWidget, at: QPoint) -> None:
    from qtpy.QtCore import QEvent
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtWidgets import QApplication

    none = Qt.MouseButton.NoButton
    event = QMouseEvent(
        QEvent.Type.MouseMove,
        QPointF(at),
        QPointF(canvas.mapToGlobal(at)),
        none,
        none,
        Qt.KeyboardModifier.NoModifier,
    )
    QApplication.sendEvent(canvas, event)
    qtbot.wait(20)


def test_the_figures_are_drawn(widget: ClassifyWidget, qtbot: Any) -> None:
    section = widget.evidence_section
    for figure in (section.curve, section.bar):
        image = figure.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
        colours = {image.pixel(x, y) for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)}
        assert len(colours) > 8, figure
        assert figure.toolTip()
        assert figure.accessibleName()
    assert "Area gained over random" in section.curve_text.text()


def test_every_control_can_be_reached_and_says_what_it_does(
    widget: ClassifyWidget, gallery: GalleryDock
) -> None:
    kinds = (QAbstractButton, QComboBox, QAbstractSlider, QAbstractSpinBox, QListWidget)
    for part in (widget.result_section, widget.evidence_section, gallery):
        for kind in kinds:
            for control in part.findChildren(kind):
                if control.objectName().startswith("qt_") or "ScrollBar" in type(control).__name__:
                    continue
                assert control.toolTip(), control
                assert control.accessibleName() or getattr(control, "text", str)(), control
                assert control.focusPolicy() & Qt.FocusPolicy.TabFocus, control


# --- gallery


def icon_pixels(gallery: GalleryDock, n: int) -> np.ndarray:
    item = gallery.top.item_of(n) or gallery.bottom.item_of(n)
    assert item is not None
    (size,) = item.icon().availableSizes()[:1]
    image = item.icon().pixmap(size).toImage().convertToFormat(QImage.Format.Format_RGB888)
    pointer = image.constBits()
    if hasattr(pointer, "setsize"):
        pointer.setsize(image.bytesPerLine() * image.height())
    rows = np.frombuffer(pointer, np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3)


def numbers(tiles: QListWidget) -> list[int]:
    return [tiles.item(row).data(Qt.ItemDataRole.UserRole) for row in range(tiles.count())]


def test_images_are_the_tiles_at_higher_power(widget: ClassifyWidget, gallery: GalleryDock) -> None:
    result, slide = widget.controller.result, widget.controller.slide
    assert result is not None
    assert slide is not None
    points = result.class_contributions[:, result.class_names.index(result.label)] * 100
    top, bottom = numbers(gallery.top), numbers(gallery.bottom)
    assert len(top) == len(bottom) == 6
    assert points[top].tolist() == sorted(points, reverse=True)[:6]
    assert sorted(points[bottom].tolist()) == sorted(points)[:6]
    for n in (top[0], bottom[-1]):
        np.testing.assert_array_equal(icon_pixels(gallery, n), close_up(slide, result, n))
    assert icon_pixels(gallery, top[0]).shape == (256, 256, 3)  # the model read 64 px
    assert "20×" in gallery.note.text()


def test_a_click_goes_to_the_tile_and_marks_it(
    viewer: Any, widget: ClassifyWidget, gallery: GalleryDock, qtbot: Any
) -> None:
    result = widget.controller.result
    assert result is not None
    active = viewer.layers.selection.active
    item = gallery.top.item(1)
    where = gallery.top.visualItemRect(item).center()
    qtbot.mouseClick(gallery.top.viewport(), LEFT, pos=where)
    n = numbers(gallery.top)[1]
    left, top = result.tiles.corners_l0_xy[n]
    side_um = result.tiles.grid.spec.tile_um
    centre_um = np.array([top * 0.5 + side_um / 2, left * 0.5 + side_um / 2])
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], centre_um)
    shown_px = viewer.scene.camera.zoom * side_um
    assert shown_px == pytest.approx(min(viewer.canvas.size) / 3)
    (mark,) = marks(viewer)
    assert mark.metadata[MARK_KEY] == n
    box = np.concatenate(mark.data)
    np.testing.assert_allclose((box.min(0) + box.max(0)) / 2, centre_um)
    assert ((box.max(0) - box.min(0)) > side_um).all()  # around the tile, not over it
    assert viewer.layers.selection.active is active
    assert widget.controller.result is result


def test_keys_go_through_the_tiles(viewer: Any, gallery: GalleryDock, qtbot: Any) -> None:
    top = numbers(gallery.top)
    gallery.top.setFocus()
    gallery.top.setCurrentRow(0)
    qtbot.keyClick(gallery.top, Qt.Key.Key_Right)
    assert not marks(viewer)
    qtbot.keyClick(gallery.top, Qt.Key.Key_Return)
    assert [mark.metadata[MARK_KEY] for mark in marks(viewer)] == [top[1]]
    canvas = canvas_widget(viewer)
    canvas.setFocus()
    qtbot.keyClick(canvas, Qt.Key.Key_Right, Qt.KeyboardModifier.AltModifier)
    assert [mark.metadata[MARK_KEY] for mark in marks(viewer)] == [top[2]]
    assert gallery.top.currentRow() == 2
    qtbot.keyClick(canvas, Qt.Key.Key_Left, Qt.KeyboardModifier.AltModifier)
    assert [mark.metadata[MARK_KEY] for mark in marks(viewer)] == [top[1]]


def test_kind_and_number_can_be_chosen(gallery: GalleryDock, qtbot: Any) -> None:
    choose(qtbot, gallery.channel, 0)
    assert gallery.top_title.text() == "Most attention"
    assert gallery.top.item(0).text().endswith("×")
    gallery.k.setFocus()
    qtbot.keyClick(gallery.k, Qt.Key.Key_Down)
    qtbot.keyClick(gallery.k, Qt.Key.Key_Down)
    assert gallery.top.count() == gallery.bottom.count() == 4
    wait_for_images(qtbot, gallery)
    gallery.size_px.setFocus()
    before = gallery.top.iconSize().width()
    qtbot.keyClick(gallery.size_px, Qt.Key.Key_PageUp)
    assert gallery.top.iconSize().width() == before + 64


def test_it_follows_the_slide(
    viewer: Any, widget: ClassifyWidget, gallery: GalleryDock, qtbot: Any, tmp_path: Path, bundle_dir: Path
) -> None:
    qtbot.keyClick(gallery.top, Qt.Key.Key_Down)
    gallery.top.setCurrentRow(0)
    qtbot.keyClick(gallery.top, Qt.Key.Key_Return)
    assert marks(viewer)
    other = write_slide(tmp_path / "other.tiff", size_xy=(2304, 1920))
    widget.controller.open_slide(other)
    assert gallery.hint.isVisibleTo(gallery)
    assert "Classify this slide" in gallery.hint.text()
    assert not marks(viewer)
    widget.controller.choose_slide(0)
    wait_for_images(qtbot, gallery)
    assert not gallery.hint.isVisibleTo(gallery)
    assert gallery.top.count() == 6
    viewer.layers.clear()
    assert "Open a slide" in gallery.hint.text()


def test_closing_while_images_are_read_ends_the_reading(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Iterator[Any]:
        for step in gallery_close_ups(*arguments):
            reading.set()
            go_on.wait(0.3)
            yield step

    gallery_close_ups = gallery_module.close_ups
    monkeypatch.setattr(gallery_module, "close_ups", slow)
    docked, _ = viewer.window.add_plugin_dock_widget("napari-lrmil", GALLERY)
    assert reading.wait(10)
    viewer.window.remove_dock_widget(docked)
    qtbot.waitUntil(lambda: QThreadPool.globalInstance().activeThreadCount() == 0, timeout=10_000)
    assert not marks(viewer)
    widget.controller.set_heatmap(visible=False)  # nobody listens any more who is gone


def test_a_slide_closed_while_images_are_read_is_no_error(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Event()
    original = gallery_module.close_ups

    def slow(*arguments: Any) -> Iterator[Any]:
        for step in original(*arguments):
            reading.set()
            threading.Event().wait(0.1)
            yield step

    monkeypatch.setattr(gallery_module, "close_ups", slow)
    _, made = viewer.window.add_plugin_dock_widget("napari-lrmil", GALLERY)
    assert reading.wait(10)
    viewer.layers.clear()
    wait_for_images(qtbot, made)
    qtbot.wait(200)
    assert not made.error.isVisibleTo(made)
    assert "Open a slide" in made.hint.text()


def test_closing_the_gallery_leaves_neither_mark_nor_keys(
    viewer: Any, gallery: GalleryDock, qtbot: Any
) -> None:
    gallery.top.setCurrentRow(0)
    qtbot.keyClick(gallery.top, Qt.Key.Key_Return)
    viewer.window.remove_dock_widget(gallery)
    assert not marks(viewer)
    canvas = canvas_widget(viewer)
    qtbot.keyClick(canvas, Qt.Key.Key_Right, Qt.KeyboardModifier.AltModifier)
    assert not marks(viewer)

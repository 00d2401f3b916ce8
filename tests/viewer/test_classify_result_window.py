"""The result and its evidence in real windows, by mouse and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_slides import write_slide
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QImage
from qtpy.QtWidgets import QWidget
from real_windows import assert_controls_say_what_they_do, canvas_widget, choose_by_keys

from napari_lrmil._viewer import open_slide_with_result
from napari_lrmil._viewer.docks.classify.evidence import NO_TILE
from napari_lrmil._viewer.docks.classify.sections import CardDialog
from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.layers import HEATMAP_KEY
from napari_lrmil.model.bundle import load_bundle, save_bundle
from napari_lrmil.model.trust import ConformalInfo, OODInfo, TileGaussian, Trust, TrustInfo

pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton


def heatmap(viewer: Any) -> Any:
    (layer,) = [layer for layer in viewer.layers if HEATMAP_KEY in layer.metadata]
    return layer


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
    assert section.label.text() == "unlike training"
    assert not section.set.isVisible()
    assert section.strange.isVisible()
    assert "unlike the training slides" in section.strange.text.text()
    assert viewer.canvas.overlays.text.text.splitlines()[0] == "unlike training"
    unsure = bundle_with_trust(bundle_dir, tmp_path / "unsure", quantile=None, threshold=1e9)
    dock_widget(viewer).controller.load_bundle(str(unsure))
    open_slide_with_result(viewer, small_slide, unsure)
    assert section.label.text() == "Unsure"
    assert section.set.text() == "Unsure: benign or lesion at 90 %"
    assert not section.strange.isVisible()
    assert "unsure" in viewer.canvas.overlays.text.text


def test_a_familiar_slide_gets_its_set_and_no_warning(
    viewer: Any, small_slide: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    bundle = bundle_with_trust(bundle_dir, tmp_path / "trust", quantile=0.52, threshold=1e9)
    prediction = open_slide_with_result(viewer, small_slide, bundle)
    section = dock_widget(viewer).result_section
    assert section.set.text().startswith(("Only ", "Unsure: "))
    assert section.label.text() == ("Unsure" if prediction.unsure else prediction.label)
    assert not section.strange.isVisible()
    assert "warning above 1e+09" in section.distance.text()


def test_without_trust_the_dock_says_that_there_is_none(main_dock: ClassifyWidget) -> None:
    assert "states none" in main_dock.result_section.set.text()
    assert main_dock.result_section.label.text() in ("benign", "lesion")
    assert not main_dock.result_section.strange.isVisible()


def test_the_card_opens_beside_the_slide(main_dock: ClassifyWidget, qtbot: Any) -> None:
    qtbot.mouseClick(main_dock.model_section.card, LEFT)
    dialog = main_dock.findChild(CardDialog)
    assert dialog is not None
    assert not dialog.isModal()
    text = dialog.text.toPlainText()
    assert text.startswith("Tiny")
    assert "library_name" not in text
    assert "How far to trust a result" in text
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: main_dock.findChild(CardDialog) is None, timeout=5_000)


# --- evidence


def test_the_heatmap_shows_what_is_chosen(viewer: Any, main_dock: ClassifyWidget, qtbot: Any) -> None:
    section, result = main_dock.evidence_section, main_dock.controller.result
    assert result is not None
    layer, tiles = heatmap(viewer), result.tiles
    read = (tiles.rows, tiles.cols)
    assert [section.channel.itemText(n) for n in range(3)] == [
        "Attention",
        "Contribution to benign",
        "Contribution to lesion",
    ]
    choose_by_keys(qtbot, section.channel, 2)
    assert heatmap(viewer) is layer
    np.testing.assert_allclose(layer.data[read], result.class_contributions[:, 1] * 100, rtol=1e-5)
    assert layer.contrast_limits[0] == -layer.contrast_limits[1]
    assert layer.contrast_limits[1] >= 1.0
    assert "out exactly" in section.legend.text()
    assert section.bar.accessibleName().endswith("percentage points of p(lesion)")
    assert layer.name == "small contribution to lesion"

    assert section.unit.isEnabled()
    choose_by_keys(qtbot, section.unit, 1)
    np.testing.assert_allclose(layer.data[read], result.log_odds_contributions[:, 1], rtol=1e-5)
    assert section.bar.accessibleName().endswith("log-odds of lesion")
    choose_by_keys(qtbot, section.unit, 2)
    np.testing.assert_allclose(layer.data[read], result.log_odds_alone[:, 1], rtol=1e-5)
    choose_by_keys(qtbot, section.unit, 0)

    choose_by_keys(qtbot, section.scaling, 1)
    assert layer.contrast_limits == [-100, 100]
    assert "rank" in section.legend.text()

    choose_by_keys(qtbot, section.channel, 0)
    assert layer.contrast_limits == [0, 100]
    section.threshold.setFocus()
    qtbot.keyClick(section.threshold, Qt.Key.Key_End)
    assert section.threshold_text.text() == "from 100 %"
    assert np.isnan(layer.data).all()
    qtbot.keyClick(section.threshold, Qt.Key.Key_Home)
    assert np.isfinite(layer.data).sum() == len(tiles)

    choose_by_keys(qtbot, section.colormap, 2)
    assert "magma" in layer.colormap.name
    choose_by_keys(qtbot, section.scaling, 0)
    assert layer.contrast_limits[0] == 1.0


def test_a_smooth_heatmap_and_the_tile_grid_are_a_key_apart(
    viewer: Any, main_dock: ClassifyWidget, qtbot: Any
) -> None:
    section, layer = main_dock.evidence_section, heatmap(viewer)
    tiles, (rows, columns) = layer.data.copy(), layer.data.shape
    ends = layer.extent.world.copy()
    qtbot.mouseClick(section.smooth, LEFT, pos=QPoint(8, section.smooth.height() // 2))
    assert layer.data.shape == (8 * rows, 8 * columns)
    grown = np.abs(layer.extent.world - ends) / np.array(layer.scale)
    assert (
        grown <= 4
    ).all()  # both lie in the same place: half a tile of 8 pixels is the border that napari leaves out
    for shown in (False, True, False):
        qtbot.keyClick(canvas_widget(), Qt.Key.Key_H, Qt.KeyboardModifier.ShiftModifier)
        assert section.smooth.isChecked() == shown
        assert (layer.data.shape == tiles.shape) != shown
    np.testing.assert_array_equal(layer.data, tiles)


def test_another_classification_keeps_the_look(
    viewer: Any, main_dock: ClassifyWidget, qtbot: Any, tmp_path: Path, bundle_dir: Path
) -> None:
    choose_by_keys(qtbot, main_dock.evidence_section.channel, 1)
    other = write_slide(tmp_path / "other.tiff", size_xy=(2304, 1920))
    open_slide_with_result(viewer, other, bundle_dir)
    assert main_dock.evidence_section.channel.currentIndex() == 1
    names = {layer.name for layer in viewer.layers if HEATMAP_KEY in layer.metadata}
    assert names == {"small contribution to benign", "other contribution to benign"}


def test_the_mouse_reads_a_tiles_values(viewer: Any, main_dock: ClassifyWidget, qtbot: Any) -> None:
    """A move over the canvas itself, through Qt and napari."""
    result = main_dock.controller.result
    assert result is not None
    n = len(result.tiles) // 2
    layer = heatmap(viewer)
    viewer.scene.camera.center = layer.data_to_world((result.tiles.rows[n], result.tiles.cols[n]))
    qtbot.wait(200)
    canvas = canvas_widget()
    centre = QPoint(canvas.width() // 2, canvas.height() // 2)
    move(qtbot, canvas, centre + QPoint(3, 3))
    move(qtbot, canvas, centre)
    text = main_dock.evidence_section.hover.text()
    assert f"row {result.tiles.rows[n]}, column {result.tiles.cols[n]}" in text
    assert f"attention {result.attention_scores[n] * len(result.tiles):.2f}×" in text
    assert "lesion" in text
    viewer.scene.camera.center = (-1e5, -1e5)
    qtbot.wait(100)
    move(qtbot, canvas, centre + QPoint(2, 2))
    assert main_dock.evidence_section.hover.text() == NO_TILE


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


def test_the_figures_are_drawn(main_dock: ClassifyWidget, qtbot: Any) -> None:
    section = main_dock.evidence_section
    for figure in (section.curve, section.bar):
        image = figure.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
        colours = {image.pixel(x, y) for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)}
        assert len(colours) > 8, figure
        assert figure.toolTip()
        assert figure.accessibleName()
    assert "Area gained over random" in section.curve_text.text()


def test_every_control_can_be_reached_and_says_what_it_does(main_dock: ClassifyWidget) -> None:
    assert_controls_say_what_they_do(main_dock.result_section, main_dock.evidence_section)

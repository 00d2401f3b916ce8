"""The annotations dock in real windows: drawing by mouse, files, QuPath's frame, closing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QMessageBox
from real_windows import (
    LONG_MS,
    canvas_point,
    canvas_widget,
    delete_what_is_due,
    drag_to,
    open_slide,
    shot_at_rest,
    wait_for_jobs,
)

from napari_lrmil._viewer.docks.annotations import store
from napari_lrmil._viewer.docks.annotations import widget as module
from napari_lrmil._viewer.docks.annotations.layers import ANNOTATIONS_KEY
from napari_lrmil._viewer.docks.annotations.store import SUFFIX
from napari_lrmil._viewer.docks.annotations.widget import CLASS, NAME, AnnotationsWidget
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil.export.annotation import Annotation
from napari_lrmil.export.geojson import write_annotations

pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def dock(viewer: Any) -> AnnotationsWidget:
    _, widget = viewer.window.add_plugin_dock_widget("napari-lrmil", "LRMIL: annotations")
    assert isinstance(widget, AnnotationsWidget)
    return widget


@pytest.fixture
def scn(tmp_path: Path, shared_file: Callable[[str], Path]) -> Path:
    """A copy of the Leica slide, which states bounds; its folder can be written."""
    target = tmp_path / "slides" / "cmu_leica.scn"
    target.parent.mkdir()
    target.write_bytes(shared_file("slides_repacked/cmu_leica.scn").read_bytes())
    return target


def ready(qtbot: Any, dock: AnnotationsWidget) -> None:
    qtbot.waitUntil(lambda: dock.tools["polygon"].isEnabled(), timeout=LONG_MS)


def kept_of(slide_path: Path) -> list[dict[str, Any]]:
    """Features in the file beside a slide."""
    file = slide_path.with_name(slide_path.name + SUFFIX)
    features = json.loads(file.read_text(encoding="utf-8"))["features"] if file.exists() else []
    assert isinstance(features, list)
    return features


def shapes_of(viewer: Any) -> Any:
    """The one layer of drawn shapes."""
    (layer,) = [
        each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata and hasattr(each, "shape_type")
    ]
    return layer


def add(qtbot: Any, dock: AnnotationsWidget, tool: str, vertices_l0_yx: Any) -> Annotation:
    """What napari does at the end of a drawing."""
    before = len(dock.presenter.annotations)
    dock.tools[tool].click()
    layer = dock.viewer.layers.selection.active  # the one that the tool is for
    if tool == "point":
        layer.add(np.array(vertices_l0_yx))
    else:
        layer.add(np.array(vertices_l0_yx, float), shape_type=tool)
    qtbot.waitUntil(lambda: len(dock.presenter.annotations) == before + 1, timeout=LONG_MS)
    return dock.presenter.annotations[-1]


RECTANGLE = [(100, 200), (100, 500), (300, 500), (300, 200)]


def test_draw_by_mouse_name_and_reopen(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path
) -> None:
    """Press, drag, let go on the canvas: the place is the one under the mouse, and comes back."""
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    dock.new_class.setCurrentText("Tumour")
    dock.new_class.lineEdit().editingFinished.emit()
    viewer.scene.camera.zoom = 1.0
    viewer.scene.camera.center = (0, 480, 640)
    shot_at_rest(qtbot, viewer)
    qtbot.mouseClick(dock.tools["rectangle"], LEFT)
    canvas = canvas_widget()
    start, end = canvas_point(viewer, (430.0, 590.0)), canvas_point(viewer, (530.0, 690.0))
    qtbot.mouseMove(canvas, start)
    qtbot.mousePress(canvas, LEFT, pos=start)
    for share in (0.3, 0.6, 1.0):
        drag_to(canvas, start + (end - start) * share)
        qtbot.wait(50)  # napari leaves out what comes sooner; later is fine
    qtbot.mouseRelease(canvas, LEFT, pos=end)
    qtbot.waitUntil(lambda: len(dock.presenter.annotations) == 1, timeout=LONG_MS)
    (drawn,) = dock.presenter.annotations
    assert (drawn.name, drawn.class_name) == ("Annotation 1", "Tumour")
    xs, ys = np.array(drawn.rings_l0_xy[0]).T
    # A level-0 pixel is 0.5 µm, so half a canvas pixel; the mouse is right to a pixel or two.
    assert (xs.min(), xs.max()) == pytest.approx((1180, 1380), abs=6)
    assert (ys.min(), ys.max()) == pytest.approx((860, 1060), abs=6)
    dock.table.item(0, NAME).setText("Invasive front")
    qtbot.waitUntil(
        lambda: [each["properties"]["name"] for each in kept_of(small_slide)] == ["Invasive front"],
        timeout=LONG_MS,
    )
    assert dock.presenter.annotations[0].name == "Invasive front"
    viewer.layers.clear()
    assert dock.table.rowCount() == 0
    file = small_slide.with_name(small_slide.name + SUFFIX)
    assert [each.name for each in file.parent.iterdir() if "annotations" in each.name] == [file.name]
    open_slide(viewer, small_slide)
    qtbot.waitUntil(lambda: dock.table.rowCount() == 1, timeout=LONG_MS)
    assert dock.table.item(0, NAME).text() == "Invasive front"
    assert dock.table.item(0, CLASS).text() == "Tumour"
    (layer,) = [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    world = np.array([layer.data_to_world(vertex) for vertex in layer.data[0]])
    assert (world.min(0), world.max(0)) == (
        pytest.approx((ys.min() / 2, xs.min() / 2), abs=1e-3),
        pytest.approx((ys.max() / 2, xs.max() / 2), abs=1e-3),
    )


def test_polygon_by_mouse_and_escape(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path
) -> None:
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    viewer.scene.camera.zoom = 1.0
    viewer.scene.camera.center = (0, 480, 640)
    qtbot.mouseClick(dock.tools["polygon"], LEFT)
    shot_at_rest(qtbot, viewer)
    canvas = canvas_widget()
    for world in ((430, 590), (430, 690), (530, 640)):
        at = canvas_point(viewer, world)
        qtbot.mouseMove(canvas, at)
        shot_at_rest(qtbot, viewer)
        qtbot.mouseClick(canvas, LEFT, pos=at)
        qtbot.wait(
            QApplication.doubleClickInterval() + 100
        )  # or two clicks are a double click; later is fine
    qtbot.keyClick(canvas, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: len(dock.presenter.annotations) == 1, timeout=LONG_MS)
    (drawn,) = dock.presenter.annotations
    assert len(drawn.rings_l0_xy[0]) == 3
    qtbot.mouseClick(dock.tools["pan"], LEFT)
    assert dock.tools["pan"].isChecked()
    assert not dock.tools["polygon"].isChecked()


@pytest.mark.parametrize("name", ["slides_repacked/cmu_leica.scn", "slides_repacked/cmu_aperio_pyramid.svs"])
@pytest.mark.parametrize("cropped", [True, False])
def test_round_trip_through_qupath_coordinates(
    viewer: Any,
    dock: AnnotationsWidget,
    qtbot: Any,
    tmp_path: Path,
    shared_file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    cropped: bool,
) -> None:
    """World µm -> pixels as QuPath counts -> world, within 1/100 px, with bounds and without."""
    path = tmp_path / Path(name).name
    path.write_bytes(shared_file(name).read_bytes())
    slide = open_slide(viewer, path)
    ready(qtbot, dock)
    left, top, _width, _height = slide.bounds_l0_xywh
    mpp_x, mpp_y = slide.mpp_xy
    uncropped = not cropped and dock.uncropped.isVisibleTo(dock)
    dock.uncropped.setChecked(uncropped)
    if "scn" in name:
        assert (left, top) != (0, 0)
    world = np.array([[(top + 100.25) * mpp_y, (left + 200.5) * mpp_x], [(top + 100.25) * mpp_y, (left + 640) * mpp_x],
                      [(top + 420.75) * mpp_y, (left + 333.3) * mpp_x]])  # fmt: skip
    dock.tools["polygon"].click()
    layer = shapes_of(viewer)
    layer.add([np.array([layer.world_to_data(each) for each in world])], shape_type="polygon")
    qtbot.waitUntil(lambda: len(dock.presenter.annotations) == 1, timeout=LONG_MS)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(
        module.QFileDialog, "getSaveFileName", lambda *_, **__: (str(out / "annotations"), "")
    )
    qtbot.mouseClick(dock.export_button, LEFT)
    file = out / "annotations.geojson"
    qtbot.waitUntil(file.exists, timeout=LONG_MS)
    qtbot.waitUntil(lambda: "exported" in dock.status.text(), timeout=LONG_MS)
    (feature,) = json.loads(file.read_text(encoding="utf-8"))["features"]
    origin = (0, 0) if uncropped else (left, top)
    expected = [(each[1] / mpp_x - origin[0], each[0] / mpp_y - origin[1]) for each in world]
    (ring,) = feature["geometry"]["coordinates"]
    assert np.array(ring[:-1]) == pytest.approx(np.array(expected), abs=0.01)
    dock.table.selectRow(0)
    qtbot.keyClick(dock.table, Qt.Key.Key_Delete)
    assert dock.presenter.annotations == ()
    monkeypatch.setattr(module.QFileDialog, "getOpenFileName", lambda *_, **__: (str(file), ""))
    qtbot.mouseClick(dock.import_button, LEFT)
    qtbot.waitUntil(lambda: len(dock.presenter.annotations) == 1, timeout=LONG_MS)
    (layer,) = [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    again = np.array([layer.data_to_world(vertex) for vertex in layer.data[0]])
    assert np.abs((again - world) / np.array([mpp_y, mpp_x])).max() < 0.01
    assert "1 annotation imported" in dock.status.text()
    qtbot.mouseClick(dock.import_button, LEFT)
    qtbot.waitUntil(lambda: "there already" in dock.status.text(), timeout=LONG_MS)
    assert len(dock.presenter.annotations) == 1


def test_imported_polygon_with_holes_survives(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, scn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(viewer, scn)
    ready(qtbot, dock)
    left, top, _, _ = slide.bounds_l0_xywh
    outline = tuple((left + x, top + y) for x, y in ((0.0, 0.0), (100.123, 0.0), (90.0, 80.456)))
    hole = tuple((left + x, top + y) for x, y in ((40.0, 10.0), (60.0, 10.0), (60.0, 20.0)))
    given = Annotation(
        "polygon", (outline,), ((hole,),), name="n", class_name="c", class_color_rgb=(9, 8, 7),
        locked=True, measurements={"m": 1.5}, properties={"metadata": {"k": "v"}},
    )  # fmt: skip
    file = write_annotations(scn.with_name("in.geojson"), [given], bounds_l0_xywh=slide.bounds_l0_xywh)
    before = file.read_text(encoding="utf-8")
    monkeypatch.setattr(module.QFileDialog, "getOpenFileName", lambda *_, **__: (str(file), ""))
    qtbot.mouseClick(dock.import_button, LEFT)
    qtbot.waitUntil(lambda: len(dock.presenter.annotations) == 1, timeout=LONG_MS)
    qtbot.waitUntil(lambda: kept_of(scn) != [], timeout=LONG_MS)
    assert kept_of(scn) == json.loads(before)["features"]


def test_broken_import_and_replacing_are_told(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    broken = small_slide.with_name("broken.geojson")
    broken.write_text("[1, 2", encoding="utf-8")
    monkeypatch.setattr(module.QFileDialog, "getOpenFileName", lambda *_, **__: (str(broken), ""))
    qtbot.mouseClick(dock.import_button, LEFT)
    qtbot.waitUntil(lambda: dock.error.isVisibleTo(dock), timeout=LONG_MS)
    assert "JSON" in dock.error.text()
    add(qtbot, dock, "rectangle", RECTANGLE)
    monkeypatch.setattr(module.QFileDialog, "getSaveFileName", lambda *_, **__: (str(broken), ""))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.No)
    qtbot.mouseClick(dock.export_button, LEFT)
    assert broken.read_text(encoding="utf-8") == "[1, 2"
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    qtbot.mouseClick(dock.export_button, LEFT)
    qtbot.waitUntil(lambda: "exported" in dock.status.text(), timeout=LONG_MS)
    assert len(json.loads(broken.read_text(encoding="utf-8"))["features"]) == 1


def test_edit_in_the_list(viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path) -> None:
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    first = add(qtbot, dock, "rectangle", RECTANGLE)
    second = add(qtbot, dock, "ellipse", [(900, 900), (900, 1300), (1100, 1300), (1100, 900)])
    third = add(qtbot, dock, "point", [(50.0, 60.0)])
    assert [each.name for each in dock.presenter.annotations] == [
        "Annotation 1",
        "Annotation 2",
        "Annotation 3",
    ]
    assert [dock.table.item(row, 2).text() for row in range(3)] == ["0.015 mm²", "0.0157 mm²", "point"]
    assert third.rings_l0_xy == (((60.0, 50.0),),)
    dock.table.item(1, CLASS).setText("Stroma")
    assert dock.presenter.annotations[1].class_name == "Stroma"
    layer = shapes_of(viewer)
    colour = np.array(layer.edge_color)[1, :3] * 255
    assert tuple(np.rint(colour)) in [(0, 114, 178)]
    dock.table.clearSelection()
    dock.table.setCurrentCell(1, NAME)
    qtbot.keyClick(dock.table, Qt.Key.Key_Return)
    assert viewer.scene.camera.center[-2:] == pytest.approx((500, 550))
    assert set(layer.selected_data) == {1}
    height, width = viewer.canvas.size
    assert viewer.scene.camera.zoom == pytest.approx(min(4.0, 0.6 * min(height / 100, width / 200)))
    dock.table.selectRow(0)
    qtbot.keyClick(dock.table, Qt.Key.Key_Delete)
    assert [each.id for each in dock.presenter.annotations] == [second.id, third.id]
    qtbot.mouseClick(dock.undo, LEFT)
    assert {each.id for each in dock.presenter.annotations} == {first.id, second.id, third.id}
    layer.selected_data = {0}
    layer.remove_selected()  # as the Delete key does on the canvas
    qtbot.waitUntil(lambda: len(dock.presenter.annotations) == 2, timeout=LONG_MS)
    assert dock.undo.isEnabled()


def test_tools_follow_the_layer_list(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path
) -> None:
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    qtbot.mouseClick(dock.tools["rectangle"], LEFT)
    (layer,) = [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    layer.mode = "add_ellipse"  # by napari's button or key
    assert dock.tools["ellipse"].isChecked()
    viewer.layers.selection.active = next(each for each in viewer.layers if each.name == "small")
    assert dock.tools["pan"].isChecked()
    viewer.layers.selection.active = layer
    assert dock.tools["ellipse"].isChecked()


def test_outlines_stay_as_thick_on_the_screen(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path
) -> None:
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    add(qtbot, dock, "rectangle", RECTANGLE)
    layer = shapes_of(viewer)
    for zoom in (0.01, 4.0):
        viewer.scene.camera.zoom = zoom

        def as_thick(zoom: float = zoom) -> bool:
            (width,) = layer.edge_width
            return width * 0.5 * zoom == pytest.approx(3.0, rel=0.3)

        qtbot.waitUntil(as_thick, timeout=LONG_MS)


def test_deleting_a_layer_deletes_no_annotation(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path
) -> None:
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    kept = add(qtbot, dock, "rectangle", RECTANGLE)
    (layer,) = [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    viewer.layers.remove(layer)
    wait_for_jobs(qtbot)
    assert [each.id for each in dock.presenter.annotations] == [kept.id]
    dock.table.selectRow(0)
    qtbot.mouseClick(dock.go_to, LEFT)
    (again,) = [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    assert again.nshapes == 1


@pytest.mark.parametrize("how", ["layer", "dock", "window"])
def test_nothing_is_lost_at_closing(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path, how: str
) -> None:
    """Even what was drawn in the very last moment, whichever way the end comes."""
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    dock.tools["rectangle"].click()
    shapes_of(viewer).add(np.array(RECTANGLE, float), shape_type="rectangle")
    if how == "layer":
        viewer.layers.remove(next(each for each in viewer.layers if each.name == "small"))
        assert not [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    elif how == "dock":
        viewer.window.remove_dock_widget(dock)
        delete_what_is_due()
        assert not [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    else:
        viewer.close()
        delete_what_is_due()
    file = small_slide.with_name(small_slide.name + SUFFIX)
    assert len(json.loads(file.read_text(encoding="utf-8"))["features"]) == 1
    assert sorted(each.name for each in file.parent.glob("*small*")) == [small_slide.name, file.name]


def test_two_slides_keep_their_own(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path, scn: Path
) -> None:
    open_slide(viewer, small_slide)
    ready(qtbot, dock)
    add(qtbot, dock, "rectangle", RECTANGLE)
    open_slide(viewer, scn)
    ready(qtbot, dock)
    assert dock.table.rowCount() == 0
    (layer,) = [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    assert not layer.visible
    dock_widget(viewer).controller.choose_slide(0)
    assert dock.table.rowCount() == 1
    assert layer.visible


def test_full_disk_is_told(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, small_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    open_slide(viewer, small_slide)
    ready(qtbot, dock)

    def full(*_: Any, **__: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_annotations", full)
    add(qtbot, dock, "rectangle", RECTANGLE)
    qtbot.waitUntil(lambda: dock.error.isVisibleTo(dock), timeout=LONG_MS)
    assert "Free some space" in dock.error.text()
    monkeypatch.undo()
    dock.table.item(0, NAME).setText("again")
    qtbot.waitUntil(lambda: not dock.error.isVisibleTo(dock), timeout=LONG_MS)


def test_mpp_given_later_moves_the_annotations_along(
    viewer: Any, dock: AnnotationsWidget, qtbot: Any, slide_without_mpp: Path
) -> None:
    open_slide(viewer, slide_without_mpp)
    ready(qtbot, dock)
    before = add(qtbot, dock, "rectangle", RECTANGLE)
    dock_widget(viewer).controller.set_mpp(0.25)
    (layer,) = [each for each in viewer.layers if ANNOTATIONS_KEY in each.metadata]
    assert tuple(layer.scale) == (0.25, 0.25)
    assert layer.data_to_world((100, 200)) == pytest.approx((25, 50))
    assert dock.presenter.annotations[0] == before


def test_every_control_says_what_it_does(viewer: Any, dock: AnnotationsWidget, small_slide: Path) -> None:
    open_slide(viewer, small_slide)
    controls = [*dock.tools.values(), dock.new_class, dock.table, dock.go_to, dock.delete,
                dock.undo, dock.import_button, dock.export_button, dock.uncropped]  # fmt: skip
    for control in controls:
        assert control.toolTip()
        assert control.accessibleName() or control.text()
        assert control.focusPolicy() & Qt.FocusPolicy.TabFocus

"""The workspace in real windows: one entry of the menu or one key, all docks at their places, room for the slide."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from made_slides import write_slide
from napari.errors import MultipleReaderError
from napari.utils.notifications import show_info
from npe2 import PluginManager, PluginManifest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QDialog, QDockWidget, QMainWindow, QScrollArea, QTabBar
from real_windows import LONG_MS, PLUGIN, canvas_widget, wait_for_jobs

from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.dock import find_docked
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.tiles.widget import TilesWidget
from napari_lrmil._viewer.docks.worklist.widget import worklist_dock
from napari_lrmil._viewer.layers import SLIDE_KEY
from napari_lrmil._viewer.qt import notices
from napari_lrmil._viewer.reader import this_reader_is_preferred
from napari_lrmil._viewer.settings import read_settings
from napari_lrmil._viewer.workspace import LEFT, RIGHT, open_workspace
from napari_lrmil.cache import ResultSummary
from napari_lrmil.slide import Slide

pytestmark = pytest.mark.usefixtures("alone")

SETTLED_MS = 600
"""What docks still do when they have come: a window that closes before is held by it."""
CONTROL_SHIFT = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier
SIDES = {Qt.DockWidgetArea.LeftDockWidgetArea: LEFT, Qt.DockWidgetArea.RightDockWidgetArea: RIGHT}


def window_of(viewer: Any) -> QMainWindow:
    window = dock_widget(viewer).parent().parent()
    assert isinstance(window, QMainWindow)
    return window


def dock_of(viewer: Any, kind: type[Any]) -> QDockWidget:
    dock = find_docked(viewer, kind).parent()
    assert isinstance(dock, QDockWidget)
    return dock


def tabs(window: QMainWindow) -> list[list[str]]:
    """The texts of the tabs that are seen, group by group."""
    bars = window.findChildren(QTabBar, options=Qt.FindChildOption.FindDirectChildrenOnly)
    return sorted([bar.tabText(at) for at in range(bar.count())] for bar in bars if bar.isVisible())


def press_workspace_key(qtbot: Any) -> None:
    qtbot.keyClick(canvas_widget(), Qt.Key.Key_L, CONTROL_SHIFT)


def in_place(viewer: Any) -> bool:
    window = window_of(viewer)
    return all(
        window.dockWidgetArea(dock_of(viewer, place.kind)) == area and not dock_of(viewer, place.kind).isFloating()
        for area, places in SIDES.items()
        for place in places
    )  # fmt: skip


@pytest.mark.parametrize("size", [(1600, 1000), (1100, 800)])
def test_one_command_opens_all_docks_and_leaves_the_room_to_the_slide(
    viewer: Any, qtbot: Any, small_slide: Path, size: tuple[int, int]
) -> None:
    viewer.window.resize(*size)
    viewer.open(small_slide, plugin=PLUGIN)
    PluginManager.instance().commands.execute("napari-lrmil.workspace")
    window = window_of(viewer)
    expected = [["classify", "tiles", "annotations", "export"], ["worklist", "overview"]]
    qtbot.waitUntil(lambda: in_place(viewer) and tabs(window) == expected, timeout=LONG_MS)
    layer_list, controls = (window.findChild(QDockWidget, f"layer {name}") for name in ("list", "controls"))
    qtbot.waitUntil(lambda: layer_list.height() <= layer_list.minimumSizeHint().height() + 2, timeout=LONG_MS)
    assert (window.width(), window.height()) == size
    assert controls.isHidden()
    for side in SIDES.values():  # nothing is cut off at the right
        for place in side:
            scroll = find_docked(viewer, place.kind).findChild(QScrollArea)
            bar = scroll.verticalScrollBar().sizeHint().width()
            assert scroll.widget().minimumSizeHint().width() + bar <= scroll.width(), place.name
    for front, behind in ((LEFT[0], LEFT[1]), (RIGHT[0], RIGHT[1])):
        assert not dock_of(viewer, front.kind).visibleRegion().isEmpty()
        assert dock_of(viewer, behind.kind).visibleRegion().isEmpty()
    widths = [dock_of(viewer, places[0].kind).width() for places in SIDES.values()]
    assert sum(widths) < 0.4 * 1600
    _height, width = viewer.canvas.size
    if size[0] == 1600:
        assert width >= 0.6 * size[0]
    bottom, right = viewer.layers[0].extent.world[1]
    field = dock_widget(viewer).canvas.field
    assert field.height >= bottom
    assert field.width >= right


def test_the_key_opens_it_from_the_first_slide_on(viewer: Any, qtbot: Any, small_slide: Path) -> None:
    viewer.open(small_slide, plugin=PLUGIN)
    press_workspace_key(qtbot)
    qtbot.waitUntil(lambda: find_docked(viewer, ClassifyWidget) is not None, timeout=LONG_MS)
    qtbot.waitUntil(lambda: in_place(viewer), timeout=LONG_MS)
    qtbot.wait(SETTLED_MS)


def test_the_key_brings_back_what_was_closed_moved_or_undocked(viewer: Any, qtbot: Any) -> None:
    open_workspace(viewer)
    qtbot.waitUntil(lambda: in_place(viewer), timeout=LONG_MS)
    worklist, overview, tiles = (dock_of(viewer, place.kind) for place in (*LEFT, RIGHT[1]))
    viewer.window.remove_dock_widget(worklist)
    overview.setFloating(True)
    tiles.hide()
    window_of(viewer).addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock_of(viewer, RIGHT[3].kind))
    press_workspace_key(qtbot)
    qtbot.waitUntil(lambda: in_place(viewer), timeout=LONG_MS)
    assert not tiles.isHidden()
    assert len(viewer.window.dock_widgets) == len(LEFT) + len(RIGHT)
    qtbot.wait(SETTLED_MS)


def test_its_docks_are_those_of_the_menu(viewer: Any, qtbot: Any) -> None:
    from napari._app_model import get_app_model

    names = {widget.display_name for widget in PluginManifest.from_distribution(PLUGIN).contributions.widgets}
    assert {f"LRMIL: {place.name}" for place in (*LEFT, *RIGHT)} == names
    open_workspace(viewer)
    qtbot.waitUntil(lambda: in_place(viewer), timeout=LONG_MS)
    tiles = dock_of(viewer, RIGHT[1].kind)
    get_app_model().commands.execute_command("napari-lrmil.gallery").result()
    assert tiles.isHidden()  # its entry in the menu hides it; it docks no second one
    assert len(viewer.window.dock_widgets) == len(names)
    qtbot.wait(SETTLED_MS)


def test_notices_go_though_the_window_was_not_active(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "LONGEST_MS", 50)
    window = window_of(viewer)

    def shown() -> list[QDialog]:
        dialogs = window.findChildren(QDialog)
        return [each for each in dialogs if "Notification" in type(each).__name__ and each.isVisible()]

    monkeypatch.setattr(
        "napari._qt.dialogs.qt_notification.NapariQtNotification.isActiveWindow", lambda _: False
    )
    for notice in shown():
        notice.close()
    monkeypatch.setattr("napari._qt.dialogs.qt_notification.NapariQtNotification.DISMISS_AFTER", 10**9)
    show_info("read me")
    qtbot.waitUntil(lambda: bool(shown()), timeout=LONG_MS)
    qtbot.waitUntil(lambda: not shown(), timeout=LONG_MS)


# ---- the first start


def test_slides_open_without_a_question_once_that_was_agreed_to(
    viewer: Any, qtbot: Any, small_slide: Path
) -> None:
    """The button of the start page; before, napari asks, which is an error outside its window."""
    slide = Path(shutil.copy(small_slide, small_slide.with_suffix(".svs")))
    with pytest.raises(MultipleReaderError):
        viewer.open(slide, plugin=None)  # as `napari SLIDE`, File > Open and drops do
    worklist = worklist_dock(viewer)
    qtbot.waitUntil(worklist.start.reader.isVisible, timeout=LONG_MS)
    qtbot.mouseClick(worklist.start.reader.always, Qt.MouseButton.LeftButton)
    assert worklist.start.isVisible()
    assert not worklist.start.reader.isVisible()
    (layer,) = viewer.open(slide, plugin=None)
    assert SLIDE_KEY in layer.metadata
    with pytest.raises(MultipleReaderError):
        viewer.open(small_slide, plugin=None)  # .tiff, as ordinary images are called
    qtbot.wait(SETTLED_MS)


def test_tiff_opens_without_a_question_where_that_was_ticked(
    viewer: Any, qtbot: Any, small_slide: Path
) -> None:
    reader = worklist_dock(viewer).start.reader
    reader.shared.setChecked(True)
    qtbot.mouseClick(reader.always, Qt.MouseButton.LeftButton)
    (layer,) = viewer.open(small_slide, plugin=None)
    assert SLIDE_KEY in layer.metadata
    qtbot.wait(SETTLED_MS)


def test_who_wants_to_be_asked_is_not_asked_here_again(viewer: Any, qtbot: Any) -> None:
    worklist = worklist_dock(viewer)
    qtbot.mouseClick(worklist.start.reader.ask, Qt.MouseButton.LeftButton)
    assert not worklist.start.reader.isVisible()
    assert not read_settings().offer_reader
    assert not this_reader_is_preferred()
    qtbot.wait(SETTLED_MS)


# ---- without a mouse


def test_a_slide_is_labelled_judged_and_copied_by_keys_alone(
    viewer: Any, qtbot: Any, tmp_path: Path, bundle_dir: Path
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(4):
        write_slide(folder / f"s{number}.tiff", size_xy=(1536 + 256 * number, 1024))
    open_workspace(viewer)
    main, worklist, tiles = dock_widget(viewer), worklist_dock(viewer), find_docked(viewer, TilesWidget)
    main.controller.load_bundle(str(bundle_dir))
    worklist.presenter.open_list(folder)
    qtbot.waitUntil(lambda: worklist.model.rowCount() == 4, timeout=LONG_MS)
    qtbot.waitUntil(lambda: main.controller.bundle is not None, timeout=LONG_MS)
    qtbot.wait(SETTLED_MS)

    def press(key: str, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        qtbot.keyClick(canvas_widget(), getattr(Qt.Key, f"Key_{key}"), modifier)

    def shown() -> str:
        slide = main.controller.slide
        return "" if slide is None else slide.name

    shift, alt = Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.AltModifier
    press("N")
    assert shown() == "s0"
    press("K")
    qtbot.waitUntil(lambda: main.controller.result is not None, timeout=LONG_MS)
    if not main.controller.evidence_shown:
        main.controller.reveal_label(True)
    before = main.canvas.field
    press("H")
    assert main.canvas.field != before
    assert main.canvas.field.center_yx == pytest.approx(tile_center(main, tiles.presenter._panel.top[0].n))
    press("4", alt)
    assert in_front(viewer, TilesWidget)
    assert tiles.isAncestorOf(window_of(viewer).focusWidget())
    viewer.scene.camera.zoom *= 0.5
    moved = main.canvas.field
    qtbot.keyClick(tiles.top, Qt.Key.Key_H)  # letters are keys in its lists too
    assert main.canvas.field != moved

    press("C", shift)
    image = QApplication.clipboard().image()
    height, width = viewer.canvas.size
    assert (image.height(), image.width()) == (height, width)
    main.canvas.show_text("")
    press("C", shift)
    assert QApplication.clipboard().image() != image  # the label was on it

    press("U")
    press("Q", shift)
    assert shown() == "s1"
    summary = unsure_summary(folder / "s3.tiff")
    worklist.presenter.worklist.set_result(folder / "s3.tiff", summary)
    worklist.presenter.arrange(text="")
    press("Q")
    assert shown() == "s3"
    press("Q")
    assert shown() == "s3"
    assert "No slide after this one is unsure" in worklist.hint.text()

    press("3", alt)
    assert in_front(viewer, ClassifyWidget)
    wait_for_jobs(qtbot)
    qtbot.wait(SETTLED_MS)


def in_front(viewer: Any, kind: type[Any]) -> bool:
    return not dock_of(viewer, kind).visibleRegion().isEmpty()


def tile_center(main: ClassifyWidget, n: int) -> tuple[float, float]:
    result = main.controller.result
    grid, (mpp_x, mpp_y) = result.tiles.grid, result.mpp_xy
    (x, y), (width, height) = (
        grid.corner_l0_xy(int(result.tiles.rows[n]), int(result.tiles.cols[n])),
        grid.tile_l0_xy,
    )
    return ((y + height / 2) * mpp_y, (x + width / 2) * mpp_x)


def unsure_summary(path: Path) -> ResultSummary:
    with Slide(path) as slide:
        fingerprint = slide.fingerprint()
    return ResultSummary(
        "lesion", 0.5, ("benign", "lesion"), (0.5, 0.5), ("benign", "lesion"), True, False, None, 3, 1.0, fingerprint, "b", "a"
    )  # fmt: skip

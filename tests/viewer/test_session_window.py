"""A window is closed and another one goes on where it was; what is gone meanwhile is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_slides import write_slide
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget
from real_windows import LONG_MS, delete_what_is_due, wait_for_jobs

from napari_lrmil._viewer.docks.dock import find_docked
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.tiles.widget import TilesWidget
from napari_lrmil._viewer.docks.worklist.widget import WorklistWidget, worklist_dock
from napari_lrmil._viewer.kept_session import Session, keep_session, read_session, stamp_or_none
from napari_lrmil._viewer.settings import change_setting
from napari_lrmil._viewer.workspace import open_workspace
from napari_lrmil.slide.files import user_folder

pytestmark = pytest.mark.usefixtures("alone")
SETTLED_MS = 600
LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "slides"
    target.mkdir()
    for number in range(3):
        write_slide(target / f"s{number}.tiff", size_xy=(1536 + 256 * number, 1024))
    return target


def worklist_of(viewer: Any) -> WorklistWidget:
    found = find_docked(viewer, WorklistWidget)
    assert found is not None
    return found


def in_front(viewer: Any, kind: type[Any]) -> bool:
    dock = find_docked(viewer, kind).parent()
    assert isinstance(dock, QDockWidget)
    return not dock.visibleRegion().isEmpty()


def test_a_new_window_goes_on_where_the_last_was_closed(
    make_napari_viewer: Callable[..., Any], qtbot: Any, folder: Path, bundle_dir: Path
) -> None:
    viewer = make_napari_viewer(show=True, strict_qt="raise")
    open_workspace(viewer)
    main, worklist = dock_widget(viewer), worklist_of(viewer)
    main.controller.load_bundle(str(bundle_dir))
    qtbot.waitUntil(lambda: main.controller.bundle is not None, timeout=LONG_MS)
    worklist.presenter.open_list(folder)
    qtbot.waitUntil(lambda: worklist.model.rowCount() == 3, timeout=LONG_MS)
    qtbot.wait(SETTLED_MS)
    worklist.presenter.open_slide(folder / "s1.tiff")
    find_docked(viewer, TilesWidget).parent().raise_()
    qtbot.waitUntil(lambda: "tiles" in main.session._session.fronts, timeout=LONG_MS)
    main.canvas.go_to((200.0, 300.0), zoom=2.5)
    wait_for_jobs(qtbot)
    del main, worklist
    viewer.close()
    delete_what_is_due()

    viewer = make_napari_viewer(show=True, strict_qt="raise")
    open_workspace(viewer)
    main, worklist = dock_widget(viewer), worklist_of(viewer)
    qtbot.waitUntil(lambda: main.controller.slide is not None, timeout=LONG_MS)
    assert main.controller.slide.path == folder / "s1.tiff"
    assert worklist.presenter.panel().folder == str(folder)
    qtbot.waitUntil(lambda: main.canvas.zoom == pytest.approx(2.5), timeout=LONG_MS)
    assert main.canvas.field.center_yx == pytest.approx((200.0, 300.0))
    assert in_front(viewer, TilesWidget)
    qtbot.waitUntil(lambda: main.controller.bundle is not None, timeout=LONG_MS)
    assert main.controller.bundle_path == str(bundle_dir)
    worklist.presenter.step(1)
    assert main.controller.slide.path == folder / "s2.tiff"
    wait_for_jobs(qtbot)
    qtbot.wait(SETTLED_MS)


@pytest.mark.parametrize("gone", ["folder", "slide", "another file", "model"])
def test_what_is_gone_is_said_and_the_rest_comes(viewer: Any, qtbot: Any, folder: Path, gone: str) -> None:
    slide = folder / "s1.tiff"
    model = "" if gone != "model" else str(folder / "no-model")
    keep_session(Session(listed=str(folder), slide=str(slide), stamp=stamp_or_none(str(slide)), model=model))
    if gone == "folder":
        shutil.rmtree(folder)
    elif gone == "slide":
        slide.unlink()
    elif gone == "another file":
        write_slide(slide, size_xy=(1792, 1280))
    open_workspace(viewer)
    main, worklist = dock_widget(viewer), worklist_of(viewer)
    said = {
        "folder": "slides, the list of last time, is no longer there. s1.tiff, the slide",
        "slide": "s1.tiff, the slide of last time, is no longer there.",
        "another file": "s1.tiff is another file by now than last time.",
        "model": "no-model, the model of last time, is no longer there.",
    }[gone]
    qtbot.waitUntil(lambda: said in worklist.hint.text(), timeout=LONG_MS)
    assert (main.controller.slide is not None) == (gone in ("another file", "model"))
    assert worklist.model.rowCount() == {"folder": 0, "slide": 2}.get(gone, 3)
    wait_for_jobs(qtbot)
    qtbot.wait(SETTLED_MS)


def test_a_slide_that_is_open_stays_though_another_was_last(
    viewer: Any, qtbot: Any, folder: Path, small_slide: Path
) -> None:
    keep_session(Session(listed=str(folder), slide=str(folder / "s1.tiff")))
    viewer.open(small_slide, plugin="napari-lrmil")
    open_workspace(viewer)
    wait_for_jobs(qtbot)
    qtbot.wait(SETTLED_MS)
    assert dock_widget(viewer).controller.slide.path == small_slide
    assert worklist_of(viewer).presenter.worklist is None


def test_what_was_opened_lately_is_a_click_away_until_it_is_forgotten(
    viewer: Any, qtbot: Any, folder: Path, small_slide: Path
) -> None:
    keep_session(Session(recent_lists=(str(folder),), recent_slides=(str(small_slide),)))
    worklist = worklist_dock(viewer)
    qtbot.waitUntil(worklist.start.recent.isVisible, timeout=LONG_MS)
    entries = worklist.start.recent.entries
    assert [entry.text() for entry in entries.values()] == ["List: slides", "Slide: small.tiff"]
    qtbot.mouseClick(entries[str(small_slide)], LEFT)
    assert dock_widget(viewer).controller.slide.path == small_slide
    qtbot.mouseClick(worklist.start.recent.forget, LEFT)
    assert not worklist.start.recent.isVisible()
    assert read_session() == Session()
    keep_session(Session(recent_lists=(str(folder),)))
    worklist.show_now()
    qtbot.mouseClick(worklist.start.recent.entries[str(folder)], LEFT)
    qtbot.waitUntil(lambda: worklist.model.rowCount() == 3, timeout=LONG_MS)
    assert not worklist.start.isVisible()
    wait_for_jobs(qtbot)
    qtbot.wait(SETTLED_MS)


def test_nothing_is_kept_where_that_is_switched_off(viewer: Any, qtbot: Any, small_slide: Path) -> None:
    main = dock_widget(viewer)
    main.controller.open_slide(small_slide)
    file = user_folder("data") / "session.json"
    qtbot.waitUntil(file.exists, timeout=LONG_MS)
    change_setting("keep_session", False)
    qtbot.waitUntil(lambda: not file.exists(), timeout=LONG_MS)
    main.canvas.go_to((1.0, 1.0))
    qtbot.wait(1500)
    assert not file.exists()
    assert main.session.recent == Session()

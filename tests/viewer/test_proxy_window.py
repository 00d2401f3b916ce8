"""All docks on what napari hands to plugins: a viewer behind its public proxy, writes from other threads refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import Qt
from real_windows import PLUGIN, further_docks, open_slide

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.worklist.widget import worklist_dock
from napari_lrmil._viewer.window import State

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def viewer(alone: Iterator[None], make_napari_viewer_proxy: Callable[..., Any]) -> Any:
    return make_napari_viewer_proxy(show=True, strict_qt="raise")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["done", "closed in the midst"])
def test_every_dock_works_through_the_proxy(
    viewer: Any, qtbot: Any, small_slide: Path, bundle_dir: Path, ending: str
) -> None:
    main = dock_widget(viewer)
    names = further_docks()
    docks = [viewer.window.add_plugin_dock_widget(PLUGIN, name)[1] for name in names]
    assert len({type(dock) for dock in docks}) == len(names)
    slide = open_slide(viewer, small_slide)
    main.controller.load_bundle(str(bundle_dir))
    qtbot.waitUntil(lambda: main.controller.state is State.READY, timeout=60_000)
    qtbot.mouseClick(main.run_section.classify, LEFT)
    if ending == "done":
        qtbot.waitUntil(lambda: main.controller.state is State.DONE, timeout=60_000)
        assert main.controller.result is not None
        assert len(viewer.layers) >= 2  # the slide and its heatmap
    else:
        assert main.controller.state is State.RUNNING
        viewer.layers.clear()  # what a person does who has seen enough
        assert main.controller.slide is None
        assert slide.closed


@pytest.mark.slow
def test_the_worklist_goes_through_a_folder_behind_the_proxy(
    viewer: Any, qtbot: Any, small_slide: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(small_slide, folder / f"{name}.tiff")
    main = dock_widget(viewer)
    main.controller.load_bundle(str(bundle_dir))
    qtbot.waitUntil(lambda: main.controller.bundle is not None, timeout=60_000)
    worklist = worklist_dock(viewer)
    worklist.presenter.open_list(folder)
    qtbot.waitUntil(lambda: worklist.presenter.worklist is not None, timeout=30_000)
    worklist.presenter.step(1)
    assert main.controller.slide is not None
    first = main.controller.slide
    worklist.presenter.classify_all()
    worklist.presenter.step(1)
    assert first.closed  # one slide at a time, so that memory stays flat
    assert len(viewer.layers) >= 1

"""Real windows: opening, coordinates, classifying by clicks, cancelling, closing."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_slides import shared_slide, write_slide
from PIL import Image, ImageCms
from qtpy.QtCore import QPoint, Qt
from real_windows import LONG_MS, shot_at_rest, wait_for_jobs
from tiny_models import write_bundle

from napari_lrmil._viewer import open_slide_with_result
from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.layers import HEATMAP_KEY, MPP_UNKNOWN_KEY, SLIDE_KEY
from napari_lrmil._viewer.qt.background import thread_pool
from napari_lrmil._viewer.window import Change, State
from napari_lrmil.errors import LRMILError
from napari_lrmil.model.encoder import EncoderSpec
from napari_lrmil.slide import Slide

PLUGIN = "napari-lrmil"
REAL_SLIDES = ("slides_real/CMU-1-Small-Region.svs", "slides_repacked/cmu_aperio_pyramid.svs")
pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def hidden_viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    """Quicker, where nothing has to be seen."""
    return make_napari_viewer(show=False, strict_qt="raise")


@pytest.fixture
def widget(viewer: Any) -> ClassifyWidget:
    return dock_widget(viewer)


def wait_for(qtbot: Any, widget: ClassifyWidget, *states: State) -> None:
    qtbot.waitUntil(lambda: widget.controller.state in states, timeout=LONG_MS)


def slide_of(layer: Any) -> Slide:
    slide = layer.metadata[SLIDE_KEY]
    assert isinstance(slide, Slide)
    return slide


def heatmaps(viewer: Any) -> list[Any]:
    return [layer for layer in viewer.layers if HEATMAP_KEY in layer.metadata]


def test_plugin_opens_slides_lazily(viewer: Any, small_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels_read: list[int] = []
    original = Slide.read_region

    def counting(self: Slide, location: Any, level: int, size: Any, **options: Any) -> Any:
        levels_read.append(level)
        return original(self, location, level, size, **options)

    monkeypatch.setattr(Slide, "read_region", counting)
    viewer.window.resize(700, 500)
    (layer,) = viewer.open(small_slide, plugin=PLUGIN)
    assert layer.multiscale
    assert levels_read
    assert 0 not in levels_read
    assert np.asarray(layer.data[0][:8, :8]).shape == (8, 8, 3)
    assert 0 in levels_read


@pytest.mark.parametrize("name", REAL_SLIDES)
def test_open_without_naming_the_plugin(viewer: Any, name: str) -> None:
    """As the menu command sets it, napari asks no more which reader should open a slide."""
    from napari_lrmil._viewer.reader import prefer_this_reader

    prefer_this_reader()
    (layer,) = viewer.open(shared_slide(name), plugin=None)  # as File > Open and dropping do
    assert layer.name == Path(name).stem
    assert [str(unit) for unit in layer.units] == ["micrometer", "micrometer"]


def test_removed_layer_closes_its_slide_but_not_a_duplicates(viewer: Any, small_slide: Path) -> None:
    (layer,) = viewer.open(small_slide, plugin=PLUGIN)
    slide = slide_of(layer)
    copy = viewer.add_image(
        layer.data,
        rgb=True,
        multiscale=True,
        cache=False,
        metadata={SLIDE_KEY: slide},
        contrast_limits=(0, 255),
    )
    viewer.layers.remove(layer)
    slide.read_region((0, 0), 0, (8, 8))
    viewer.layers.remove(copy)
    with pytest.raises(LRMILError, match="closed"):
        slide.read_region((0, 0), 0, (8, 8))


@pytest.mark.parametrize("name", [*REAL_SLIDES, "slides_repacked/cmu_leica.scn"])
@pytest.mark.parametrize("bundle_fixture", ["bundle_dir", "vit_bundle_dir"])
def test_world_coordinates_are_level0_um(
    hidden_viewer: Any, request: pytest.FixtureRequest, name: str, bundle_fixture: str
) -> None:
    """A known tile's corner lies at the same world place in µm on the slide and on the heatmap."""
    bundle: Path = request.getfixturevalue(bundle_fixture)
    prediction = open_slide_with_result(hidden_viewer, shared_slide(name), bundle)
    slide_layer = next(layer for layer in hidden_viewer.layers if SLIDE_KEY in layer.metadata)
    (heatmap,) = heatmaps(hidden_viewer)
    mpp_x, mpp_y = prediction.mpp_xy
    for at in (0, len(prediction.tiles) - 1):
        row, col = int(prediction.tiles.rows[at]), int(prediction.tiles.cols[at])
        x_l0, y_l0 = prediction.tiles.corners_l0_xy[at]
        expected_um_yx = np.array([y_l0 * mpp_y, x_l0 * mpp_x])
        # napari's data coordinates count from pixel centres: a corner lies half a pixel before.
        on_slide = np.array(slide_layer.data_to_world((y_l0 - 0.5, x_l0 - 0.5)))
        on_heatmap = np.array(heatmap.data_to_world((row - 0.5, col - 0.5)))
        assert np.abs(on_slide - expected_um_yx).max() < min(mpp_x, mpp_y) / 100
        assert np.abs(on_heatmap - expected_um_yx).max() < min(mpp_x, mpp_y) / 100
        assert heatmap.data[row, col] == pytest.approx(
            prediction.attention_scores[at] * len(prediction.tiles), rel=1e-5
        )
    assert slide_layer.data_to_world((-0.5, -0.5)) == pytest.approx((0.0, 0.0))


def test_heatmap_is_drawn_over_its_tile(viewer: Any, small_slide: Path, bundle_dir: Path, qtbot: Any) -> None:
    """The pixels of the window itself: only inside one hot tile do they change."""
    prediction = open_slide_with_result(viewer, small_slide, bundle_dir)
    (heatmap,) = heatmaps(viewer)
    at = len(prediction.tiles) // 2
    row, col = int(prediction.tiles.rows[at]), int(prediction.tiles.cols[at])
    values = np.full(heatmap.data.shape, np.nan, np.float32)
    values[row, col] = 9.0
    heatmap.data = values
    heatmap.colorbar.visible = False
    viewer.canvas.overlays.text.visible = False
    viewer.scene.camera.center = heatmap.data_to_world((row, col))
    viewer.scene.camera.zoom = 1.0  # a screen pixel a µm
    with_heat = shot_at_rest(qtbot, viewer)
    heatmap.visible = False
    without = shot_at_rest(qtbot, viewer, unlike=with_heat)
    changed_yx = np.argwhere(np.abs(with_heat.astype(int) - without)[..., :3].sum(-1) > 30)
    height, width = without.shape[:2]
    top, left = changed_yx.min(0)
    bottom, right = changed_yx.max(0) + 1
    tile_um = prediction.tiles.grid.spec.tile_um
    assert abs((top + bottom) / 2 - height / 2) <= 1.5
    assert abs((left + right) / 2 - width / 2) <= 1.5
    assert abs((bottom - top) - tile_um) <= 2
    assert abs((right - left) - tile_um) <= 2


def test_a_slide_replaced_while_open_is_told_and_opened_again(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, small_slide: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    widget.controller.open_slide(small_slide)
    widget.controller.load_bundle(str(bundle_dir))
    wait_for(qtbot, widget, State.READY)
    assert not widget.run_section.reopen.isVisible()
    new = write_slide(tmp_path / "new.tiff", size_xy=(1536, 1024))
    os.replace(new, small_slide)
    qtbot.mouseClick(widget.run_section.classify, LEFT)
    wait_for(qtbot, widget, State.FAILED)
    assert widget.controller.result is None
    assert "small.tiff changed while it was read" in widget.run_section.error.text()
    assert widget.run_section.reopen.isVisible()
    qtbot.mouseClick(widget.run_section.reopen, LEFT)
    assert not widget.run_section.reopen.isVisible()
    assert not widget.run_section.error.isVisible()
    (slide,) = widget.controller.slides
    assert slide.level_dimensions_xy[0] == (1536, 1024)
    qtbot.mouseClick(widget.run_section.classify, LEFT)
    wait_for(qtbot, widget, State.DONE)
    assert widget.controller.result is not None
    assert widget.controller.result.slide_fingerprint == slide.fingerprint()


def test_classify_by_clicks(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, small_slide: Path, bundle_dir: Path
) -> None:
    progress: list[tuple[int, int]] = []

    def note_progress(change: Change) -> None:
        now = widget.controller.progress
        if now is not None and (now.tiles_done, now.tiles_total) not in progress:
            progress.append((now.tiles_done, now.tiles_total))

    widget.controller.changed.connect(note_progress)
    assert not widget.run_section.classify.isEnabled()
    widget.controller.open_slide(small_slide)
    assert viewer.canvas.overlays.scale_bar.visible
    widget.controller.load_bundle(str(bundle_dir))
    wait_for(qtbot, widget, State.READY)
    assert widget.model_section.banner.isVisible()
    assert "benign, lesion" in widget.model_section.facts.text()
    qtbot.mouseClick(widget.run_section.classify, LEFT)
    assert widget.run_section.cancel.isVisible()
    assert not widget.run_section.classify.isVisible()
    wait_for(qtbot, widget, State.DONE)
    total = progress[-1][1]
    assert progress[-1] == (total, total)
    assert len({done for done, _ in progress}) > 2
    assert widget.result_section.label.text() in ("benign", "lesion")
    assert "level 1" in widget.result_section.details.text().lower()
    assert viewer.canvas.overlays.text.visible
    assert "not for diagnosis" in viewer.canvas.overlays.text.text
    (heatmap,) = heatmaps(viewer)
    assert heatmap.colorbar.visible
    assert viewer.layers.index(heatmap) == 1

    shown = widget.evidence_section.shown
    qtbot.mouseClick(shown, LEFT, pos=QPoint(8, shown.height() // 2))
    assert not heatmap.visible
    heatmap.visible = True
    assert widget.evidence_section.shown.isChecked()
    widget.evidence_section.opacity.setFocus()
    qtbot.keyClick(widget.evidence_section.opacity, Qt.Key.Key_Home)
    assert heatmap.opacity == 0.0
    heatmap.opacity = 0.4
    assert widget.evidence_section.opacity.value() == 40

    viewer.layers.remove("small")
    assert len(viewer.layers) == 0
    assert not viewer.canvas.overlays.text.visible
    assert widget.controller.state is State.NO_SLIDE


@pytest.fixture
def slow_tiles(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Classifications that stop before their second batch until the event is set."""
    import napari_lrmil.predict as predict

    go_on = threading.Event()
    original = predict.embed_tiles

    def slow(*arguments: Any, **options: Any) -> Any:
        for number, batch in enumerate(original(*arguments, **options)):
            if number:
                assert go_on.wait(LONG_MS / 1000)
            yield batch

    monkeypatch.setattr(predict, "embed_tiles", slow)
    return go_on


def start(widget: ClassifyWidget, qtbot: Any, slide_path: Path, bundle: Path) -> None:
    widget.controller.open_slide(slide_path)
    widget.controller.load_bundle(str(bundle))
    wait_for(qtbot, widget, State.READY)
    qtbot.mouseClick(widget.run_section.classify, LEFT)
    qtbot.waitUntil(lambda: widget.run_section.bar.value() > 0, timeout=LONG_MS)


def test_cancel_by_click(
    viewer: Any,
    widget: ClassifyWidget,
    qtbot: Any,
    small_slide: Path,
    bundle_dir: Path,
    slow_tiles: threading.Event,
) -> None:
    start(widget, qtbot, small_slide, bundle_dir)
    qtbot.mouseClick(widget.run_section.cancel, LEFT)
    assert widget.controller.state is State.CANCELLED
    slow_tiles.set()
    wait_for_jobs(qtbot)
    assert widget.controller.state is State.CANCELLED
    assert not heatmaps(viewer)
    qtbot.mouseClick(widget.run_section.classify, LEFT)
    wait_for(qtbot, widget, State.DONE)
    assert heatmaps(viewer)


def test_slide_removed_while_running(
    viewer: Any,
    widget: ClassifyWidget,
    qtbot: Any,
    small_slide: Path,
    tmp_path: Path,
    bundle_dir: Path,
    slow_tiles: threading.Event,
) -> None:
    other = write_slide(tmp_path / "other.tiff", size_xy=(2304, 1920))
    start(widget, qtbot, small_slide, bundle_dir)
    widget.controller.open_slide(other)
    viewer.layers.remove("small")
    slow_tiles.set()
    wait_for(qtbot, widget, State.READY)
    wait_for_jobs(qtbot)
    assert not heatmaps(viewer)
    assert widget.controller.result is None
    assert widget.slide_section.slides.currentText() == "other"


def test_switching_slides_keeps_results_apart(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, small_slide: Path, tmp_path: Path, bundle_dir: Path
) -> None:
    open_slide_with_result(viewer, small_slide, bundle_dir)
    widget.controller.open_slide(write_slide(tmp_path / "other.tiff", size_xy=(2304, 1920)))
    assert widget.controller.result is None
    assert not viewer.canvas.overlays.text.visible
    assert not widget.result_section.isVisible()
    widget.controller.choose_slide(0)
    assert widget.controller.result is not None
    assert [layer.visible for layer in viewer.layers] == [True, True, False]
    viewer.layers.selection.active = viewer.layers["other"]
    assert widget.controller.result is None


def in_view(viewer: Any, layer: Any) -> bool:
    """Whether the canvas shows a layer whole, and no smaller than it needs to."""
    low, high = np.asarray(layer.extent.world)[:, -2:]
    center, zoom = np.asarray(viewer.scene.camera.center[-2:]), viewer.scene.camera.zoom
    share = (high - low) * zoom / np.asarray(viewer.canvas.size)
    return bool(np.allclose(center, (low + high) / 2, atol=2.0) and 0.8 < share.max() <= 1.0)


def test_the_second_slide_is_in_front_and_the_first_hidden(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, small_slide: Path, tmp_path: Path, bundle_dir: Path
) -> None:
    first_result = open_slide_with_result(viewer, small_slide, bundle_dir)
    small = write_slide(tmp_path / "other.tiff", size_xy=(1024, 768))
    drawn = viewer.add_shapes([[[0, 0], [9, 9]]], shape_type="line", name="of nobody")
    viewer.scene.camera.zoom = 7.0
    viewer.open(str(small), plugin=PLUGIN)  # as File > Open and drops do
    assert widget.controller.slide is slide_of(viewer.layers["other"])
    shown = [layer.name for layer in viewer.layers if layer.visible]
    assert shown == ["of nobody", "other"]
    assert in_view(viewer, viewer.layers["other"])
    assert not viewer.canvas.overlays.text.visible
    assert viewer.title == f"other in {tmp_path.name} – napari"
    assert viewer.window._qt_window.windowTitle() == f"other in {tmp_path.name} – napari"
    # A result of the first slide that comes late changes nothing of what is seen or chosen.
    first = widget.controller.slides[0]
    viewer.layers.selection.active = drawn
    widget.controller.show_result(first, first_result)
    assert viewer.layers.selection.active == drawn
    assert [layer.name for layer in viewer.layers if layer.visible] == shown
    assert not viewer.canvas.overlays.text.visible
    # The eye of the first slide's heatmap makes that slide the current one.
    heatmaps(viewer)[0].visible = True
    assert widget.controller.slide is first
    assert [layer.name for layer in viewer.layers if layer.visible] == [
        "small", heatmaps(viewer)[0].name, "of nobody"
    ]  # fmt: skip
    assert viewer.canvas.overlays.text.visible
    viewer.layers["small"].visible = False  # no label over a slide that isn't seen
    assert not viewer.canvas.overlays.text.visible
    viewer.layers["small"].visible = True
    assert viewer.canvas.overlays.text.visible
    heatmaps(viewer)[0].visible = False  # what the user hides stays hidden
    widget.controller.choose_slide(1)
    widget.controller.choose_slide(0)
    assert not heatmaps(viewer)[0].visible
    # Closing it shows the other one.
    viewer.layers.selection.active = viewer.layers["small"]
    viewer.layers.remove_selected()
    assert viewer.layers["other"].visible
    assert in_view(viewer, viewer.layers["other"])
    assert widget.controller.slide is slide_of(viewer.layers["other"])


def test_two_slides_dropped_at_once(viewer: Any, widget: ClassifyWidget, tmp_path: Path) -> None:
    paths = [write_slide(tmp_path / f"{name}.tiff", size_xy=(1024, 768)) for name in ("one", "two")]
    viewer.window._qt_viewer._qt_open(
        [str(path) for path in paths], stack=False, choose_plugin=False, plugin=PLUGIN
    )
    assert [layer.visible for layer in viewer.layers] == [False, True]
    assert widget.controller.slide is slide_of(viewer.layers["two"])
    assert widget.slide_section.slides.currentText() == "two"


def test_slides_opened_before_the_dock_are_not_stacked(viewer: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        viewer.open(str(write_slide(tmp_path / f"{name}.tiff", size_xy=(1024, 768))), plugin=PLUGIN)
    widget = dock_widget(viewer)
    assert [layer.visible for layer in viewer.layers] == [False, True]
    assert widget.controller.slide is slide_of(viewer.layers["two"])


def test_another_models_result_is_put_away_and_comes_back(
    viewer: Any, widget: ClassifyWidget, qtbot: Any, small_slide: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    result = open_slide_with_result(viewer, small_slide, bundle_dir)
    other = write_bundle(
        tmp_path / "elsewhere" / bundle_dir.name,
        EncoderSpec(options={"image_px": 64}),
        tile_px=64,
        attention_scale=2.0,
    )
    load(qtbot, widget, other)
    assert widget.controller.result is None
    assert not viewer.canvas.overlays.text.visible
    assert heatmaps(viewer) == []
    assert not widget.result_section.isVisible()
    assert result.label in widget.run_section.earlier.text()
    assert result.bundle_sha256[:8] in widget.run_section.earlier.text()
    names = [widget.model_section.bundles.itemText(at) for at in range(3)]
    assert names[1] != names[2]  # two of one name
    assert names[1].startswith("Tiny (")
    assert names[2].startswith("Tiny (")
    load(qtbot, widget, bundle_dir)
    assert widget.controller.result is result
    assert viewer.canvas.overlays.text.visible
    assert [layer.visible for layer in heatmaps(viewer)] == [True]
    assert not widget.run_section.earlier.isVisible()


def load(qtbot: Any, widget: ClassifyWidget, bundle: Path) -> None:
    widget.controller.load_bundle(str(bundle))
    qtbot.waitUntil(lambda: widget.controller.state is not State.LOADING_BUNDLE, timeout=LONG_MS)
    assert widget.controller.bundle_path == str(bundle)


def test_closing_while_running_ends_thread_and_slide(
    viewer: Any,
    widget: ClassifyWidget,
    qtbot: Any,
    small_slide: Path,
    bundle_dir: Path,
    slow_tiles: threading.Event,
) -> None:
    start(widget, qtbot, small_slide, bundle_dir)
    slide = slide_of(viewer.layers[0])
    widget.ending.callback(slow_tiles.set)  # so that the step under way can end
    viewer.close()
    qtbot.waitUntil(lambda: thread_pool().activeThreadCount() == 0, timeout=LONG_MS)
    assert slide.closed


_CLOSED_BY_THE_USER = """
import sys, threading
import napari
from qtpy.QtCore import QTimer
from napari_lrmil._viewer.models import import_models
from napari_lrmil._viewer.qt.background import thread_pool
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.window import State

import_models()
import napari_lrmil.predict as predict
original = predict.embed_tiles
closing = threading.Event()

def slow(*arguments, **options):
    for number, batch in enumerate(original(*arguments, **options)):
        if number:
            assert closing.wait(60)
        yield batch

predict.embed_tiles = slow
viewer = napari.Viewer()
widget = dock_widget(viewer)
controller = widget.controller
controller.open_slide(sys.argv[1])
controller.load_bundle(sys.argv[2])

def step():
    if controller.state is State.READY:
        controller.classify()
    elif controller.state is State.RUNNING and widget.run_section.bar.value() > 0:
        timer.stop()
        widget.ending.callback(closing.set)
        widget.window().close()

timer = QTimer()
timer.timeout.connect(step)
timer.start(20)
napari.run()
print("threads", thread_pool().activeThreadCount(), controller.state)
"""


def test_window_closed_by_the_user_ends_the_process(small_slide: Path, bundle_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CLOSED_BY_THE_USER, str(small_slide), str(bundle_dir)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "threads 0 ready" in done.stdout
    assert "Traceback" not in done.stderr


def test_closing_the_dock_keeps_the_slide_but_not_the_label(
    viewer: Any, small_slide: Path, bundle_dir: Path
) -> None:
    open_slide_with_result(viewer, small_slide, bundle_dir)
    viewer.window.remove_dock_widget(dock_widget(viewer))
    assert not viewer.canvas.overlays.text.visible
    slide_of(viewer.layers[0]).read_region((0, 0), 0, (8, 8))


def test_unknown_mpp_is_asked_for(viewer: Any, widget: ClassifyWidget, qtbot: Any, bundle_dir: Path) -> None:
    widget.controller.open_slide(shared_slide("slides_real/tcga-cr-7395-01a-01-ts1.svs"))
    widget.controller.load_bundle(str(bundle_dir))
    (layer,) = viewer.layers
    assert layer.metadata[MPP_UNKNOWN_KEY]
    assert tuple(layer.scale) == (1.0, 1.0)
    assert [str(unit) for unit in layer.units] == ["pixel", "pixel"]
    assert widget.slide_section.mpp_row.isVisible()
    qtbot.waitUntil(lambda: bool(widget.model_section.facts.text()), timeout=LONG_MS)
    assert not widget.run_section.classify.isEnabled()
    qtbot.keyClicks(widget.slide_section.mpp, "0,5")
    qtbot.mouseClick(widget.slide_section.set_mpp, LEFT)
    assert tuple(layer.scale) == (0.5, 0.5)
    assert layer.data_to_world((-0.5, -0.5)) == pytest.approx((0.0, 0.0))
    assert [str(unit) for unit in layer.units] == ["micrometer", "micrometer"]
    assert not layer.metadata[MPP_UNKNOWN_KEY]
    assert not widget.slide_section.mpp_row.isVisible()
    qtbot.mouseClick(widget.run_section.classify, LEFT)
    wait_for(qtbot, widget, State.DONE, State.FAILED)
    assert widget.controller.error == ""


def test_mpp_can_be_given_to_the_helper(viewer: Any, slide_without_mpp: Path, bundle_dir: Path) -> None:
    with pytest.raises(LRMILError, match="give mpp"):
        open_slide_with_result(viewer, slide_without_mpp, bundle_dir)
    viewer.layers.clear()
    assert open_slide_with_result(viewer, slide_without_mpp, bundle_dir, mpp=0.5).mpp_xy == (0.5, 0.5)


def test_bad_slide_is_told_in_the_dock(viewer: Any, widget: ClassifyWidget, tmp_path: Path) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"not a slide")
    widget.controller.open_slide(bad)
    assert widget.run_section.error.isVisible()
    assert "bad.svs" in widget.run_section.error.text()
    assert len(viewer.layers) == 0


def test_newer_bundle_is_told_in_the_dock(
    widget: ClassifyWidget, qtbot: Any, tmp_path: Path, bundle_dir: Path
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(bundle_dir, newer)
    described = json.loads((newer / "bundle.json").read_text())
    described["format_version"] = 99
    (newer / "bundle.json").write_text(json.dumps(described))
    widget.controller.load_bundle(str(newer))
    qtbot.waitUntil(lambda: widget.run_section.error.isVisible(), timeout=LONG_MS)
    assert "version 99" in widget.run_section.error.text()
    assert "pip install --upgrade" in widget.run_section.error.text()


def test_error_of_torch_ends_the_run(
    widget: ClassifyWidget, qtbot: Any, small_slide: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari_lrmil.predict as predict

    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")
        yield

    widget.controller.open_slide(small_slide)
    widget.controller.load_bundle(str(bundle_dir))
    wait_for(qtbot, widget, State.READY)
    monkeypatch.setattr(predict, "embed_tiles", out_of_memory)
    qtbot.mouseClick(widget.run_section.classify, LEFT)
    wait_for(qtbot, widget, State.FAILED)
    assert "out of memory" in widget.run_section.error.text()


def test_plugin_widget_opens_from_the_manifest(viewer: Any, qtbot: Any) -> None:
    docked, inner = viewer.window.add_plugin_dock_widget(PLUGIN, "LRMIL: classify slide")
    assert isinstance(inner, ClassifyWidget)
    qtbot.waitUntil(docked.isVisible, timeout=LONG_MS)
    assert dock_widget(viewer) is inner


def test_every_control_says_what_it_does(widget: ClassifyWidget) -> None:
    from qtpy.QtWidgets import QAbstractButton, QComboBox, QDoubleSpinBox, QSlider

    for kind in (QAbstractButton, QComboBox, QDoubleSpinBox, QSlider):
        for control in widget.findChildren(kind):
            if control.objectName().startswith("qt_"):  # parts of other controls
                continue
            assert control.toolTip(), control
            assert control.focusPolicy() & Qt.FocusPolicy.TabFocus or isinstance(control, QAbstractButton)


def test_screenshot_script(small_slide: Path, bundle_dir: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "screenshot.py"
    shot = tmp_path / "shots" / "window.png"
    command = [sys.executable, str(script), str(small_slide), "--bundle", str(bundle_dir), "--out", str(shot)]
    done = subprocess.run([*command, "--size", "1100x700"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert str(shot) in done.stdout
    with Image.open(shot) as image:
        assert image.size == (1100, 700)
        assert len(image.convert("RGB").resize((64, 64)).getcolors(4096) or ()) > 50


def test_screenshot_script_misses_the_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "screenshot.py"
    main = runpy.run_path(str(script))["main"]
    assert main([str(tmp_path / "no.svs"), "--out", str(tmp_path / "shot.png")]) == 1
    assert capsys.readouterr().err.startswith("error: no such slide")


def test_the_colour_profile_is_shown_on_request_and_changes_no_label(
    qtbot: Any, viewer: Any, widget: ClassifyWidget, bundle_dir: Path, tmp_path: Path
) -> None:
    # sRGB with the red and blue primaries exchanged: what it does is plain to see.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    n_tags = int.from_bytes(profile[128:132], "big")
    places = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(n_tags)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    path = write_slide(tmp_path / "icc.tiff", icc=bytes(profile))
    first = open_slide_with_result(viewer, path, bundle_dir)
    layer = next(each for each in viewer.layers if SLIDE_KEY in each.metadata)
    stored = np.asarray(layer.data[-1])
    box = widget.slide_section.icc
    assert box.isVisible()
    assert not box.isChecked()
    qtbot.mouseClick(box, LEFT, pos=QPoint(8, box.height() // 2))
    assert box.isChecked()
    assert np.abs(np.asarray(layer.data[-1]).astype(int) - stored[..., ::-1]).max() <= 3
    widget.controller.classify()
    wait_for(qtbot, widget, State.DONE)
    again = widget.controller.result
    assert again is not None
    np.testing.assert_array_equal(again.class_probabilities, first.class_probabilities)


def test_without_a_colour_profile_there_is_nothing_to_toggle(
    viewer: Any, widget: ClassifyWidget, small_slide: Path
) -> None:
    widget.controller.open_slide(small_slide)
    assert not widget.slide_section.icc.isVisible()


def test_a_bundle_that_reads_20x_runs_like_any_other(
    hidden_viewer: Any, small_slide: Path, tmp_path: Path
) -> None:
    """Same encoder, tiles of a quarter of the edge: 4 x 4 heatmap pixels in place of each."""
    spec = EncoderSpec(options={"image_px": 64})
    lr, hr = (
        write_bundle(tmp_path / name, spec, tile_px=64, mpp=mpp, within=within)
        for name, mpp, within in (("lr", 2.0, 1), ("hr", 0.5, 4))
    )
    coarse = open_slide_with_result(hidden_viewer, small_slide, lr)
    shape = heatmaps(hidden_viewer)[0].data.shape
    fine = open_slide_with_result(hidden_viewer, small_slide, hr)
    (heatmap,) = heatmaps(hidden_viewer)
    assert heatmap.data.shape == (4 * shape[0], 4 * shape[1])
    assert fine.tiles.grid == coarse.tiles.grid.subdivide(4)
    assert fine.level_mpp <= 0.5 * 1.02
    assert int(np.isfinite(heatmap.data).sum()) == len(fine.tiles) > len(coarse.tiles)
    widget = dock_widget(hidden_viewer)
    assert "Reads 0.5 µm/px in 64 px tiles" in widget.model_section.facts.text()

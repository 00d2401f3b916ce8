"""Real windows: one slide is seen, whoever opened it, with and without docks, and what is said is about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import make_prediction
from made_slides import write_slide
from napari.settings import get_settings
from pytestqt.exceptions import TimeoutError as QtTimeoutError
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QApplication
from real_windows import delete_what_is_due
from tiny_models import write_bundle

from napari_lrmil._viewer.docks.classify.panel import overlay_text
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.worklist.widget import worklist_dock
from napari_lrmil._viewer.layers import HEATMAP_KEY, SLIDE_KEY, slide_of
from napari_lrmil._viewer.window import RESTING, State
from napari_lrmil.model.bundle import load_info
from napari_lrmil.model.encoder import EncoderSpec
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.slide import Slide

pytestmark = pytest.mark.usefixtures("alone")
PLUGIN = "napari-lrmil"
LONG_MS = 60_000


@pytest.fixture(autouse=True)
def this_reader(viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has said once that slides open with this plugin: a drop asks nothing then."""
    monkeypatch.setattr(get_settings().plugins, "extension2reader", {"*.tiff": PLUGIN})


def open_file(viewer: Any, path: Path) -> None:
    """As File > Open does once its dialog is closed."""
    viewer.open(str(path), plugin=PLUGIN)
    QApplication.processEvents()


def drop_files(viewer: Any, *paths: Path) -> None:
    """Let files go over napari's window."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    drop = QDropEvent(
        QPointF(5, 5),
        Qt.DropAction.CopyAction,
        data,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    viewer.window._qt_viewer.dropEvent(drop)
    QApplication.processEvents()


def seen(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers if layer.visible]


def fills(viewer: Any, layer: Any) -> bool:
    """Whether the canvas shows a layer whole, and no smaller than it needs to."""
    low, high = np.asarray(layer.extent.world)[:, -2:]
    share = (high - low) * viewer.scene.camera.zoom / np.asarray(viewer.canvas.size)
    middle = np.asarray(viewer.scene.camera.center[-2:])
    return bool(np.allclose(middle, (low + high) / 2, atol=2.0) and 0.8 < share.max() <= 1.0)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    sizes = {"one": (2048, 1536), "two": (1024, 768), "three": (768, 1024)}
    return [write_slide(tmp_path / f"{name}.tiff", size_xy=size) for name, size in sizes.items()]


def test_without_a_dock_the_newest_alone_is_seen_and_layers_choose(viewer: Any, three: list[Path]) -> None:
    for path in three[:2]:
        open_file(viewer, path)
    assert seen(viewer) == ["two"]
    assert fills(viewer, viewer.layers["two"])
    viewer.layers.selection.active = viewer.layers["one"]
    assert seen(viewer) == ["one"]
    assert fills(viewer, viewer.layers["one"])
    viewer.layers["two"].visible = True  # its eye
    assert seen(viewer) == ["two"]
    drop_files(viewer, three[0], three[2])
    assert seen(viewer) == ["three"]
    assert viewer.layers.selection.active.name == "three"
    viewer.layers.remove_selected()
    assert len(seen(viewer)) == 1
    assert not [dock for dock in viewer.window.dock_widgets if "LRMIL" in dock]


def test_a_dock_takes_over_and_gives_back(viewer: Any, three: list[Path]) -> None:
    one, two, three_ = three
    open_file(viewer, one)
    open_file(viewer, two)
    viewer.layers.selection.active = viewer.layers["one"]
    zoomed = viewer.scene.camera.zoom * 3
    viewer.scene.camera.zoom = zoomed
    main = dock_widget(viewer)
    assert main.controller.slide is slide_of(viewer.layers["one"])
    assert seen(viewer) == ["one"]
    assert viewer.scene.camera.zoom == zoomed  # where the user was looking
    open_file(viewer, three_)
    assert seen(viewer) == ["three"]
    viewer.layers.selection.active = viewer.layers["two"]
    viewer.window.remove_dock_widget(main)
    delete_what_is_due()
    assert seen(viewer) == ["two"]
    viewer.layers["one"].visible = True
    assert seen(viewer) == ["one"]
    open_file(viewer, three_)
    assert seen(viewer) == [viewer.layers[-1].name]
    again = dock_widget(viewer)
    assert again.controller.slide is slide_of(viewer.layers[-1])


def unit_of(viewer: Any) -> str:
    """Of what is in the window, by which napari writes its scale bar; empty where layers differ."""
    units = viewer.layers.extent.units
    return "" if units is None else str(units[-1])


@pytest.mark.parametrize("docked", [True, False])
def test_a_slide_without_pixel_size_takes_the_unit_from_no_other(
    viewer: Any, three: list[Path], slide_without_mpp: Path, docked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr("napari._vispy.canvas.show_warning", warned.append)
    if docked:
        dock_widget(viewer)
    open_file(viewer, three[0])
    open_file(viewer, slide_without_mpp)
    assert (seen(viewer), unit_of(viewer)) == (["nompp"], "pixel")
    open_file(viewer, three[1])
    assert (seen(viewer), unit_of(viewer)) == (["two"], "micrometer")
    viewer.layers.selection.active = viewer.layers["nompp"]
    assert unit_of(viewer) == "pixel"
    if docked:
        controller = dock_widget(viewer).controller
        one = next(slide for slide in controller.slides if slide.name == "one")
        controller.show_result(one, make_prediction())  # it comes late, and is measured in µm
        assert len(viewer.layers) == 4
        assert unit_of(viewer) == "pixel"
        controller.set_mpp(0.5)
        assert unit_of(viewer) == "micrometer"
    viewer.layers.selection.active = viewer.layers["one"]
    assert unit_of(viewer) == "micrometer"
    assert warned == []


def test_slides_of_one_name_are_told_apart_in_the_list(
    viewer: Any, three: list[Path], tmp_path: Path
) -> None:
    main = dock_widget(viewer)
    (tmp_path / "later").mkdir()
    same = shutil.copy(three[0], tmp_path / "later" / "one.tiff")
    for path in (*three[:2], Path(same), three[1]):
        open_file(viewer, path)
    slides = main.slide_section.slides
    assert [slides.itemText(at) for at in range(slides.count())] == [
        f"one in {tmp_path.name}",
        f"two in {tmp_path.name} (1)",
        "one in later",
        f"two in {tmp_path.name} (2)",
    ]


def test_the_title_tells_slides_of_one_name_apart(viewer: Any, three: list[Path], tmp_path: Path) -> None:
    dock_widget(viewer)
    (tmp_path / "later").mkdir()
    same = shutil.copy(three[0], tmp_path / "later" / "one.tiff")
    titles = []
    for path in (three[0], Path(same)):
        dock_widget(viewer).controller.open_slide(path)
        titles.append(viewer.window._qt_window.windowTitle())
    assert titles == [f"one in {tmp_path.name} – napari", "one in later – napari"]


class Screen:
    """A window in which a user does whatever can be done, and what must hold of what it shows."""

    def __init__(self, viewer: Any, qtbot: Any, folder: Path, bundles: list[Path]) -> None:
        self.viewer, self.qtbot, self.folder, self.bundles = viewer, qtbot, folder, bundles
        self.paths = sorted(folder.glob("*.tiff"))
        self.given: dict[tuple[Slide, str], SlidePrediction] = {}
        self.count = 0
        self.bad = folder / "s9.svs"

    @property
    def main(self) -> Any:
        return dock_widget(self.viewer)

    def any_path(self, rng: np.random.Generator) -> Path:
        return self.paths[rng.integers(len(self.paths))]

    def any_layer(self, rng: np.random.Generator) -> Any:
        return self.viewer.layers[rng.integers(len(self.viewer.layers))] if len(self.viewer.layers) else None

    # ---- what the user does

    def open(self, rng: np.random.Generator) -> None:
        open_file(self.viewer, self.any_path(rng))

    def drop_two(self, rng: np.random.Generator) -> None:
        drop_files(self.viewer, self.any_path(rng), self.any_path(rng))

    def close_one(self, rng: np.random.Generator) -> None:
        if (layer := self.any_layer(rng)) is not None:
            self.viewer.layers.selection.active = layer
            self.viewer.layers.remove_selected()

    def select(self, rng: np.random.Generator) -> None:
        if (layer := self.any_layer(rng)) is not None:
            self.viewer.layers.selection.active = layer

    def eye(self, rng: np.random.Generator) -> None:
        if (layer := self.any_layer(rng)) is not None:
            layer.visible = not layer.visible

    def choose_in_the_dock(self, rng: np.random.Generator) -> None:
        if count := self.main.slide_section.slides.count():
            self.main.slide_section.slides.activated.emit(int(rng.integers(count)))

    def step_in_the_list(self, rng: np.random.Generator) -> None:
        """The list holds a slide that can't be opened."""
        worklist = worklist_dock(self.viewer)
        worklist.presenter.step(int(rng.choice([1, -1])))

    def switch_model(self, rng: np.random.Generator) -> None:
        controller = self.main.controller
        controller.load_bundle(str(self.bundles[rng.integers(len(self.bundles))]))
        self.qtbot.waitUntil(lambda: controller.state is not State.LOADING_BUNDLE, timeout=LONG_MS)
        self.qtbot.waitUntil(lambda: controller.bundle is not None, timeout=LONG_MS)

    def result(self, rng: np.random.Generator) -> None:
        """Of any slide that is open or was, by either model, as the batch and the cache bring it."""
        controller = self.main.controller
        known = [*controller.slides, *(slide for slide, _ in self.given)]
        if not known:
            return
        slide = known[rng.integers(len(known))]
        sha = load_info(self.bundles[rng.integers(len(self.bundles))]).sha256
        self.count += 1
        prediction = make_prediction(0.01 + 0.98 * (self.count * 0.37 % 1), bundle_sha256=sha)
        before = (controller.slide, set(self.viewer.layers.selection))
        controller.show_result(slide, prediction)
        assert (controller.slide, set(self.viewer.layers.selection)) == before, "a result chose something"
        if controller.bundle.info.sha256 == sha and slide in controller.slides and slide.has_mpp:
            self.given[slide, sha] = prediction

    def classify(self, rng: np.random.Generator) -> None:
        """For real; the user goes elsewhere meanwhile."""
        controller = self.main.controller
        if controller.state not in RESTING:
            return
        slide, sha = controller.slide, controller.bundle.info.sha256
        controller.classify()
        [self.select, self.eye, self.open, self.close_one][rng.integers(4)](rng)
        self.qtbot.waitUntil(lambda: controller.running_slide is None, timeout=LONG_MS)
        if slide in controller.results:
            self.given[slide, sha] = controller.results[slide]

    def close_the_dock(self, rng: np.random.Generator) -> None:
        """And open it again, with a model; results are gone with it."""
        self.viewer.window.remove_dock_widget(self.main)
        delete_what_is_due()
        self.given.clear()
        self.open(rng)
        self.check_what_is_seen()
        assert not self.viewer.canvas.overlays.text.visible
        self.switch_model(rng)
        worklist_dock(self.viewer).link()

    # ---- what must hold

    def check_what_is_seen(self) -> None:
        slides = {slide_of(layer) for layer in self.viewer.layers if layer.visible} - {None}
        assert len(slides) <= 1, "slides are stacked"
        assert unit_of(self.viewer) or not len(self.viewer.layers), "the scale bar has no unit"

    def check(self) -> None:
        self.check_what_is_seen()
        controller = self.main.controller
        current, sha = controller.slide, controller.bundle.info.sha256
        shown = {slide_of(layer) for layer in self.viewer.layers if layer.visible} - {None}
        assert shown <= {current}
        # Results of before come from the cache whenever they like, of this model alone.
        result = self.given.get((current, sha), controller.result) if current is not None else None
        assert controller.result is result
        assert result is None or result.bundle_sha256 == sha, "a result of another model"
        slide_seen = any(layer.visible for layer in self.viewer.layers if SLIDE_KEY in layer.metadata)
        text = self.viewer.canvas.overlays.text
        label = text.text.removesuffix("\n") if text.visible else ""
        assert label == (overlay_text(result) if result is not None and slide_seen else "")
        assert self.main.result_section.isVisibleTo(self.main) == (result is not None)
        for layer in self.viewer.layers:
            if HEATMAP_KEY in layer.metadata:
                assert layer.metadata[HEATMAP_KEY] in controller.results, "a heatmap of another model"
        title = f"{current.name} in {current.path.parent.name} – napari" if current is not None else "napari"
        assert self.viewer.window._qt_window.windowTitle() == title
        presenter = worklist_dock(self.viewer).presenter
        judged = presenter.panel().judged
        assert judged is None or judged.path == current.path.absolute()
        twice = [slide.path for slide in controller.slides].count(current.path if current else None) > 1
        if judged is not None and not twice:  # results made up here differ between two openings of one file
            assert judged.label is None or judged.bundle_sha256 == sha, "a row of another model"
            # Of a slide that is opened again, the row knows the result before the cache has brought it.
            self.qtbot.waitUntil(
                lambda: presenter.panel().judged.label == getattr(controller.result, "label", None),
                timeout=LONG_MS,
            )


DONE = (
    Screen.open, Screen.drop_two, Screen.close_one, Screen.select, Screen.eye, Screen.choose_in_the_dock,
    Screen.step_in_the_list, Screen.switch_model, Screen.result, Screen.classify, Screen.close_the_dock,
)  # fmt: skip
OFTEN = np.array([2, 1, 1.5, 3, 2, 2, 2, 1.5, 5, 1, 0.4])


@pytest.fixture
def make_screen(viewer: Any, qtbot: Any, tmp_path: Path, bundle_dir: Path) -> Callable[[], Screen]:
    """Two models of one name and the same weights; slides, one of them without µm/px and one that is none."""

    def make() -> Screen:
        folder = tmp_path / "folder"
        folder.mkdir()
        for name, size in {"s1": (1024, 768), "s2": (768, 1024), "s3": (1024, 1024)}.items():
            write_slide(folder / f"{name}.tiff", size_xy=size)
        write_slide(folder / "s4.tiff", size_xy=(640, 640), mpp=None)
        (folder / "s9.svs").write_bytes(b"no slide")
        warmer = write_bundle(
            tmp_path / "warmer", EncoderSpec(options={"image_px": 64}), tile_px=64, temperature=2.0
        )
        shutil.copy(bundle_dir / "model.safetensors", warmer / "model.safetensors")
        infos = [load_info(each) for each in (bundle_dir, warmer)]
        assert infos[0].weights_sha256 == infos[1].weights_sha256
        screen = Screen(viewer, qtbot, folder, [bundle_dir, warmer])
        screen.switch_model(np.random.default_rng(0))
        worklist = worklist_dock(viewer)
        worklist.presenter.open_list(folder)
        qtbot.waitUntil(lambda: len(worklist.presenter.panel().rows) == 5, timeout=LONG_MS)
        return screen

    return make


@pytest.mark.parametrize(
    ("seed", "steps"), [(0, 20), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_whatever_is_done_the_screen_says_what_it_shows(
    make_screen: Callable[[], Screen], seed: int, steps: int
) -> None:
    screen, rng, done = make_screen(), np.random.default_rng(seed), []
    for _ in range(steps):
        does = DONE[rng.choice(len(DONE), p=OFTEN / OFTEN.sum())]
        done.append(does.__name__)
        try:
            does(screen, rng)
            QApplication.processEvents()
            screen.check()
        except (AssertionError, QtTimeoutError) as error:
            raise AssertionError(f"after {done}") from error

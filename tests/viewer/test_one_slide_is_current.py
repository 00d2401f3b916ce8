"""Whatever is opened, dropped, closed, chosen or computed: what the canvas says is about the slide that it shows.

On napari's own viewer model with real slides; its window isn't needed for that.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import Job, fake, fake_background, started
from made_predictions import make_prediction
from made_slides import write_slide
from napari.components import ViewerModel
from napari.layers import Layer

from napari_lrmil._viewer.docks.classify.panel import overlay_text
from napari_lrmil._viewer.docks.classify.presenter import ClassifyPresenter, ClassifyView
from napari_lrmil._viewer.layers import ANNOTATIONS_KEY, HEATMAP_KEY, SLIDE_KEY, slide_layer, slide_of
from napari_lrmil._viewer.models import LoadedModel
from napari_lrmil._viewer.napari_canvas import NapariCanvas
from napari_lrmil._viewer.settings import Settings
from napari_lrmil._viewer.window import RESTING, Change, Controller
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.slide import Slide

MODELS = {sha: f"/models/{sha[0]}/same_name" for sha in ("a" * 64, "b" * 64)}
_STEPS = 40


def model(sha: str) -> LoadedModel:
    """One of two that read the same tiles."""
    info = SimpleNamespace(
        name="mine",
        sha256=sha,
        class_names=("benign", "lesion"),
        tiles=SimpleNamespace(mpp=2.0, tile_px=64),
        mpps=(2.0,),
        encoder=SimpleNamespace(architecture="vit"),
        demonstration=False,
    )
    bundle: Any = SimpleNamespace(info=info)
    return LoadedModel(bundle, ("cpu",))


class Window:
    """A viewer's model with controller, presenter and canvas of the main dock, and the canvas of another dock."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.viewer = ViewerModel()
        self.canvas, self.other_canvas = NapariCanvas(self.viewer), NapariCanvas(self.viewer)
        self.background, self.view = fake_background(), fake(ClassifyView)
        self.controller = Controller(self.canvas, self.background, Settings())
        self.presenter = ClassifyPresenter(self.view, self.controller, self.canvas)
        self.canvas.layers_changed.connect(self.controller.layers_changed)
        self.controller.begin()
        self.presenter.refresh(Change.ALL)
        self.given: dict[tuple[Slide, str], SlidePrediction] = {}
        """What is known of each slide by each model."""
        self.late: list[tuple[Slide, Job]] = []
        self.count = 0

    def prediction(self, sha: str) -> SlidePrediction:
        """No two have the same label text."""
        self.count += 1
        return make_prediction(0.01 + 0.98 * (self.count * 0.37 % 1), bundle_sha256=sha, demonstration=False)

    def close(self) -> None:
        self.controller.shutdown()
        self.viewer.layers.clear()
        self.canvas.close()
        self.other_canvas.close()

    # ---- what the user does, and what happens

    def open(self, rng: np.random.Generator) -> None:
        self.controller.open_slide(self.paths[rng.integers(len(self.paths))])

    def open_badly(self, rng: np.random.Generator) -> None:
        before = self.controller.slide
        self.controller.open_slide("/nowhere/at_all.svs")
        assert self.controller.slide is before

    def drop_two(self, rng: np.random.Generator) -> None:
        for at in rng.choice(len(self.paths), 2, replace=False):
            slide = Slide(self.paths[at])
            self.viewer.add_layer(Layer.create(*slide_layer(slide)))
            assert self.controller.slide is slide

    def step_in_list(self, rng: np.random.Generator) -> None:
        now = self.controller.slide
        self.controller.replace_slide(self.paths[rng.integers(len(self.paths))], [] if now is None else [now])

    def choose_in_list(self, rng: np.random.Generator) -> None:
        if slides := self.controller.slides:
            at = int(rng.integers(len(slides)))
            self.controller.choose_slide(at)
            assert self.controller.slide is slides[at]

    def close_one(self, rng: np.random.Generator) -> None:
        if len(self.viewer.layers):
            self.viewer.layers.selection.active = self.viewer.layers[rng.integers(len(self.viewer.layers))]
            self.viewer.layers.remove_selected()

    def close_quietly(self, rng: np.random.Generator) -> None:
        if len(self.viewer.layers):
            self.viewer.layers.pop(int(rng.integers(len(self.viewer.layers))))

    def select(self, rng: np.random.Generator) -> None:
        if len(self.viewer.layers):
            layer = self.viewer.layers[rng.integers(len(self.viewer.layers))]
            before = self.controller.slide
            self.viewer.layers.selection.active = layer
            assert slide_of(layer) in (None, self.controller.slide)
            assert self.controller.slide is before or self.controller.slide_visible

    def eye(self, rng: np.random.Generator) -> None:
        if len(self.viewer.layers):
            layer = self.viewer.layers[rng.integers(len(self.viewer.layers))]
            layer.visible = not layer.visible
            if layer.visible and slide_of(layer) is not None:
                assert slide_of(layer) is self.controller.slide

    def draw(self, rng: np.random.Generator) -> None:
        """The annotations of a slide were read; it may not be the current one any more."""
        if slides := self.controller.slides:
            slide = slides[rng.integers(len(slides))]
            self._quietly(lambda: self.other_canvas.add_shapes(metadata={ANNOTATIONS_KEY: slide}))

    def add_picture(self, rng: np.random.Generator) -> None:
        self.viewer.add_image(np.zeros((8, 8)))

    def result(self, rng: np.random.Generator) -> None:
        """From the batch or the cache, of any slide that is open or was."""
        known = [*self.controller.slides, *(slide for slide, _ in self.given)]
        if not known:
            return
        slide, sha = known[rng.integers(len(known))], list(MODELS)[rng.integers(2)]
        prediction = self.prediction(sha)
        loaded = self.controller.bundle
        self._quietly(lambda: self.controller.show_result(slide, prediction))
        if loaded is not None and loaded.info.sha256 == sha and slide in self.controller.slides:
            self.given[slide, sha] = prediction

    def classify(self, rng: np.random.Generator) -> None:
        if self.controller.state in RESTING:
            self.controller.classify()
            assert self.controller.slide is not None
            self.late.append((self.controller.slide, started(self.background, "classify")))

    def end_of_a_run(self, rng: np.random.Generator) -> None:
        """Also of one that was cancelled, or whose slide was closed."""
        if self.late:
            slide, job = self.late.pop(rng.integers(len(self.late)))
            runs = self.controller.running_slide is slide and job is started(self.background, "classify")
            if self.controller.bundle is None:
                return
            if rng.random() < 0.2:
                self._quietly(lambda: job.fail("something went wrong"))
                return
            sha = self.controller.bundle.info.sha256
            prediction = self.prediction(sha)
            self._quietly(lambda: job.finish(prediction))
            if runs:
                self.given[slide, sha] = prediction

    def load(self, rng: np.random.Generator) -> None:
        sha = list(MODELS)[rng.integers(2)]
        before = len(self.background.jobs)
        self.controller.load_bundle(MODELS[sha])
        if len(self.background.jobs) > before:
            started(self.background, "load model").finish(model(sha))

    def mark_tile(self, rng: np.random.Generator) -> None:
        if self.controller.slide is not None:
            self._quietly(lambda: self.other_canvas.mark_tile(3, self.canvas.field))

    def _quietly(self, happens: Any) -> None:
        """Results and what is drawn by the program choose nothing and show no other slide."""
        chosen, slide = set(self.viewer.layers.selection), self.controller.slide
        happens()
        assert self.controller.slide is slide
        assert {each for each in chosen if each in self.viewer.layers} == set(self.viewer.layers.selection)

    # ---- what must hold

    def tidy(self) -> None:
        """As the annotations dock does for slides that are closed."""
        for layer in list(self.viewer.layers):
            if ANNOTATIONS_KEY in layer.metadata and slide_of(layer) not in self.controller.slides:
                self.other_canvas.remove_layer(layer)

    def check(self) -> None:
        current, bundle = self.controller.slide, self.controller.bundle
        owned = [(layer, slide_of(layer)) for layer in self.viewer.layers if slide_of(layer) is not None]
        seen = {slide for layer, slide in owned if layer.visible}
        assert seen <= {current}, "layers of another slide are seen"
        if self.controller.slides:
            assert current in self.controller.slides
        active = self.viewer.layers.selection.active
        assert active is None or slide_of(active) in (None, current)
        slide_seen = any(layer.visible for layer in self.viewer.layers if SLIDE_KEY in layer.metadata)
        sha = bundle.info.sha256 if bundle is not None else ""
        result = self.given.get((current, sha)) if current is not None else None
        assert self.controller.result is result
        text = self.viewer.canvas.overlays.text
        shown = text.text.removesuffix("\n") if text.visible else ""
        assert shown == (overlay_text(result) if result is not None and slide_seen else "")
        heatmaps = [layer for layer in self.viewer.layers if HEATMAP_KEY in layer.metadata]
        for layer in heatmaps:
            assert (layer.metadata[HEATMAP_KEY], sha) in self.given, "a heatmap of another model"
        assert sum(layer.visible and layer.colorbar.visible for layer in heatmaps) <= 1
        title = f"{current.name} in {current.path.parent.name} – napari" if current is not None else "napari"
        assert self.viewer.title == title
        panel = self.view.show_panel.call_args.args[0]
        assert (panel.result is None) == (result is None)


@pytest.fixture(scope="module")
def slide_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [write_slide(folder / f"{name}.tiff") for name in ("one", "two", "three")]


HAPPENS = (
    Window.open, Window.open_badly, Window.drop_two, Window.step_in_list, Window.choose_in_list, Window.close_one,
    Window.close_quietly, Window.select, Window.eye, Window.draw, Window.add_picture, Window.result, Window.classify,
    Window.end_of_a_run, Window.load, Window.mark_tile,
)  # fmt: skip
_OFTEN = np.array([2, 0.3, 1, 1, 2, 0.7, 0.7, 4, 3, 1, 0.3, 9, 2, 3, 1, 1])


@pytest.mark.parametrize("seed", range(6))
def test_the_label_belongs_to_the_slide_that_is_seen_and_the_model(
    seed: int, slide_paths: list[Path]
) -> None:
    rng = np.random.default_rng(seed)
    window = Window(slide_paths)
    window.load(rng)
    done = []
    try:
        for _ in range(_STEPS):
            happens = HAPPENS[rng.choice(len(HAPPENS), p=_OFTEN / _OFTEN.sum())]
            done.append(happens.__name__)
            happens(window, rng)
            window.tidy()
            try:
                window.check()
            except AssertionError as error:
                raise AssertionError(f"after {done}") from error
    finally:
        window.close()


def test_labels_are_shown_and_change(slide_paths: list[Path]) -> None:
    """The sequences above would hold without any label, too."""
    window, rng, labels = Window(slide_paths), np.random.default_rng(1), set()
    window.load(rng)
    try:
        for happens in (Window.open, *4 * (Window.result,), Window.drop_two, *16 * (Window.result,)):
            happens(window, rng)
            window.check()
            labels.add(window.viewer.canvas.overlays.text.text)
    finally:
        window.close()
    assert len(labels) > 2

"""The window's controller: one current slide, one model, their results, and what is under way. No Qt, no torch.

It knows the window only by `Canvas` and `Background`. Each dock shows its share of what the controller holds, and
listens to `Controller.changed`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psygnal import Signal

from napari_lrmil._viewer.background import Background, in_one_step
from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil._viewer.current import CurrentSlide
from napari_lrmil._viewer.magnifier import Magnifier
from napari_lrmil._viewer.models import LoadedModel, classification, load_model
from napari_lrmil._viewer.outages import Outages
from napari_lrmil._viewer.settings import Settings
from napari_lrmil.errors import LRMILError, SlideAwayError, SlideChangedError
from napari_lrmil.heatmap import HeatmapLook, fitting_look
from napari_lrmil.model.naming import DEMO_BUNDLE
from napari_lrmil.slide import Slide

if TYPE_CHECKING:  # they load torch, which the background does while the window is already there
    from napari_lrmil.model.bundle import BundleInfo, ModelBundle
    from napari_lrmil.model.speed import Speed
    from napari_lrmil.predict import PredictProgress, SlidePrediction


class State(StrEnum):
    """Where the user is."""

    NO_SLIDE = "no slide"
    NEEDS_MPP = "needs mpp"
    LOADING_BUNDLE = "loading bundle"
    NO_BUNDLE = "no bundle"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


RESTING = (State.READY, State.DONE, State.CANCELLED, State.FAILED)
"""A slide and a model are there, and nothing is under way."""


class Change(Flag):
    """What has changed: listeners look at what concerns them."""

    NOTHING = 0
    SLIDES = auto()
    """Slides were opened, closed, or put into another order."""
    SLIDE = auto()
    """The current slide is another one."""
    PIXELS = auto()
    """The current slide's µm/px or its colours, or that it can be read again."""
    MODEL = auto()
    """The bundle or device in use."""
    RESULTS = auto()
    """Of any open slide."""
    RESULT = auto()
    """Of the current slide."""
    LOOK = auto()
    """Of the current slide's heatmap: what it shows, how, and whether it and the slide are shown."""
    RUN = auto()
    """What is under way, how far it is, and errors."""
    ALL = SLIDES | SLIDE | PIXELS | MODEL | RESULTS | RESULT | LOOK | RUN


@dataclass(eq=False)
class _Loading:
    """A bundle on its way. Reports of another one than the last are dropped: two are never the same."""

    bundle_path: str


@dataclass(eq=False)
class _Run:
    """A classification under way. Reports of another one than the last are dropped: two are never the same."""

    slide: Slide
    progress: PredictProgress | None = None


class _Kept(NamedTuple):
    """A result, and the model that was in use when it came; None where none was."""

    info: BundleInfo | None
    prediction: SlidePrediction


class Controller:
    """Slides, model, results and what is under way.

    Parameters
    ----------
    canvas : Canvas
    background : Background
    settings : Settings
    """

    changed = Signal(Change)
    """Says what has changed, after it has."""

    def __init__(self, canvas: Canvas, background: Background, settings: Settings) -> None:
        self._canvas, self._background, self._settings = canvas, background, settings
        self._current = CurrentSlide(canvas)
        self.magnifier = Magnifier(canvas, lambda: self._slide)
        self._bundle: ModelBundle | None = None
        self._bundle_speed: Speed | None = None
        self._bundle_path = ""
        self._bundle_paths = [DEMO_BUNDLE]
        self._devices: tuple[str, ...] = ("auto",)
        self._device = "auto"
        self._device_is_chosen = False
        self._results: dict[Slide, list[_Kept]] = {}
        """Of each open slide, at most one of each model; the latest last."""
        self._bundle_infos: dict[str, BundleInfo] = {}
        self._slide_errors: dict[Slide, str] = {}
        self._ended: dict[Slide, State] = {}
        self._replaced: set[Slide] = set()
        self._outages = Outages(canvas, background)
        self._outages.begun.connect(self._tell)
        self._outages.over.connect(self._file_is_back)
        self._outages.replaced.connect(self.note_replaced)
        self._n_returns = 0
        self._look = HeatmapLook()
        self._revealed: SlidePrediction | None = None
        """The current slide's, whose withheld label is shown all the same; another slide begins with its own hidden."""
        self._loading: _Loading | None = None
        self._run: _Run | None = None
        self._error = ""
        self._shut_down = False
        canvas.set_new_heatmaps(opacity=settings.heatmap_opacity)
        self._told = self._snapshot()

    # ---- what docks may ask

    @property
    def state(self) -> State:
        """Where the user is now."""
        if self._run is not None:
            return State.RUNNING
        if self._slide is None:
            return State.NO_SLIDE
        if not self._slide.has_mpp:
            return State.NEEDS_MPP
        if self._loading is not None:
            return State.LOADING_BUNDLE
        if self._bundle is None:
            return State.NO_BUNDLE
        return self._ended.get(self._slide, State.READY if self.result is None else State.DONE)

    @property
    def error(self) -> str:
        """What went wrong last, with the current slide or with none, in a sentence; empty where nothing did."""
        if self._error or self._slide is None:
            return self._error
        return self._outages.text(self._slide) or self._slide_errors.get(self._slide, "")

    @property
    def slides(self) -> tuple[Slide, ...]:
        """Open ones, the uppermost last."""
        return self._canvas.slides()

    @property
    def slide(self) -> Slide | None:
        """The current one."""
        return self._slide

    @property
    def bundle(self) -> ModelBundle | None:
        """The model in use."""
        return self._bundle

    @property
    def bundle_speed(self) -> Speed | None:
        """How fast it is on this machine."""
        return self._bundle_speed

    @property
    def bundle_path(self) -> str:
        """Where it came from; empty without one."""
        return self._bundle_path

    @property
    def bundle_paths(self) -> tuple[str, ...]:
        """Where the models came from that were loaded so far, and the demonstration model's."""
        return tuple(self._bundle_paths)

    def bundle_info(self, bundle_path: str) -> BundleInfo | None:
        """What the model that was loaded from there says of itself; None where none was."""
        return self._bundle_infos.get(bundle_path)

    @property
    def device(self) -> str:
        """The name of the device to compute on."""
        return self._device

    @property
    def devices(self) -> tuple[str, ...]:
        """Names that can be chosen."""
        return self._devices

    @property
    def slide_replaced(self) -> bool:
        """Whether the current slide's file was seen to be another one than is shown; `reopen_slide` shows it."""
        return self._slide in self._replaced

    @property
    def running_slide(self) -> Slide | None:
        """The one that is being classified."""
        return self._run.slide if self._run is not None else None

    @property
    def progress(self) -> PredictProgress | None:
        """Of the classification under way; None where there is none, or before its first batch."""
        return self._run.progress if self._run is not None else None

    @property
    def result(self) -> SlidePrediction | None:
        """Of the current slide, by the model in use."""
        return self._result_of(self._slide) if self._slide is not None else None

    @property
    def results(self) -> dict[Slide, SlidePrediction]:
        """Of all open slides that have one by the model in use."""
        results = {slide: self._result_of(slide) for slide in self._results}
        return {slide: result for slide, result in results.items() if result is not None}

    @property
    def earlier_result(self) -> SlidePrediction | None:
        """The latest of the current slide by another model, where the one in use has given none."""
        if self._slide is None or self.result is not None:
            return None
        kept = self._results.get(self._slide, [])
        return kept[-1].prediction if kept else None

    @property
    def label_revealed(self) -> bool:
        """Whether the label of a slide that is unlike those of training is shown, which is not to be used."""
        return self._revealed is not None and self._revealed is self.result

    @property
    def evidence_shown(self) -> bool:
        """Whether heatmap and tiles of the current slide's result are: they hang on a label, and where there is none they
        come with the one that is withheld.
        """
        return self.result is not None and self._evidence_shown(self.result)

    @property
    def slide_visible(self) -> bool:
        """Whether the current slide is seen: its layer can be hidden in the layer list."""
        return self._slide is not None and self._canvas.slide_visible(self._slide)

    @property
    def look(self) -> HeatmapLook | None:
        """Of the current slide's heatmap; None without a result."""
        return self._look_for(self.result) if self.result is not None else None

    # ---- slides

    def open_slide(self, path: str | Path, *, mpp: float | None = None) -> None:
        """Open a slide and make it the current one; `mpp` stands in for what the file says of its pixels."""
        try:
            slide = self._canvas.open_slide(Path(path), mpp=mpp)
        except LRMILError as error:
            self._error = str(error)
        else:
            self._show_slide(slide)
        self._tell()

    def replace_slide(self, path: str | Path, old: Collection[Slide], *, mpp: float | None = None) -> Slide:
        """Open a slide in the place of `old` ones, which are closed.

        Raises
        ------
        LRMILError
            Where it can't be opened. The old ones stay, and nothing is said of it here: over another slide's result
            it would seem to be about that one.
        """
        slide = self._canvas.open_slide(Path(path), mpp=mpp)
        self._show_slide(slide)
        for each in old:
            self._canvas.remove_slide(each)
        self._tell()
        return slide

    def reopen_slide(self) -> None:
        """Open the current slide's file anew, in its place."""
        if self._slide is not None:
            try:
                self.replace_slide(self._slide.path, [self._slide], mpp=self._slide.mpp_override)
            except LRMILError as error:
                self._error = str(error)
            self._tell()

    def layers_changed(self) -> None:
        """Layers came, went or were chosen: another slide may be the current one, see `CurrentSlide.follow`."""
        self._forget_all_but(self._canvas.slides())
        if self._current.follow():
            self._error = ""
        self._tell()

    def begin(self) -> None:
        """Take over what the window shows already; one slide alone stays as it is seen."""
        self._current.begin()
        self._tell()

    def choose_slide(self, index: int) -> None:
        """Make the slide of this place in `slides` the current one, in front of the others."""
        slides = self._canvas.slides()
        if 0 <= index < len(slides):
            self._show_slide(slides[index])
        self._tell()

    def _show_slide(self, slide: Slide) -> None:
        """Make a slide the current one: it alone is seen, and errors of before are over."""
        self._error = ""
        self._current.show(slide)

    @property
    def _slide(self) -> Slide | None:
        return self._current.slide

    def _forget_all_but(self, slides: Collection[Slide]) -> None:
        self._replaced &= set(slides)
        self._outages.forget_all_but(slides)
        for kept in (self._results, self._ended, self._slide_errors):
            for gone in [slide for slide in kept if slide not in slides]:
                del kept[gone]
        if self._run is not None and self._run.slide not in slides:
            self._stop()

    def set_mpp(self, mpp: float | None) -> None:
        """Say what a level-0 pixel of the current slide measures; None goes back to what the file says.

        A result made with another value is no longer one.
        """
        slide = self._slide
        if slide is not None and mpp != slide.mpp_override:
            self._error = ""
            try:
                slide.mpp_override = mpp
            except LRMILError as error:
                self._error = str(error)
            else:
                self._drop_result(slide)
                self._canvas.place_slide(slide, student_mpp=self._student_mpp)
        self._tell()

    def _drop_result(self, slide: Slide) -> None:
        """Take a slide's result away, and stop the classification that would give one."""
        if self.running_slide is slide:
            self._stop()
        for kept in (self._results, self._ended, self._slide_errors):
            kept.pop(slide, None)
        self._canvas.remove_heatmap(slide)

    def set_icc(self, applied: bool) -> None:
        """Show the current slide's colours through its own profile, or as stored. Models aren't affected."""
        if self._slide is not None and applied != self._slide.icc:
            self._error = ""
            self._tell()  # apart from what follows, so that the same error is told again
            try:
                self._slide.icc = applied
            except LRMILError as error:
                self._error = str(error)
            self._canvas.redraw(self._slide)
        self._tell()

    # ---- model

    def load_bundle(self, bundle_path: str) -> None:
        """Load a bundle in the background; the one in use stays until the new one is there."""
        if self._run is not None:
            return
        loading = self._loading = _Loading(bundle_path)
        self._error = ""
        self._background.start(
            "load model",
            in_one_step(lambda: load_model(bundle_path)),
            done=partial(self._bundle_loaded, loading),
            failed=partial(self._bundle_failed, loading),
        )
        self._tell()

    def choose_bundle(self, index: int) -> None:
        """Load the bundle of this place in `bundle_paths`."""
        if 0 <= index < len(self._bundle_paths):
            self.load_bundle(self._bundle_paths[index])

    def choose_device(self, device: str) -> None:
        """Compute there from the next classification on."""
        if device in self._devices:
            self._device = device
        self._tell()

    def _bundle_loaded(self, loading: _Loading, loaded: LoadedModel) -> None:
        if self._loading is not loading:
            return
        self._loading = None
        self._bundle, self._bundle_path = loaded.bundle, loading.bundle_path
        self._bundle_speed = loaded.speed
        self._bundle_infos[loading.bundle_path] = loaded.bundle.info
        if self._bundle_path not in self._bundle_paths:
            self._bundle_paths.append(self._bundle_path)
        self._devices = ("auto", *loaded.devices)
        self._ended.clear()
        self._slide_errors.clear()
        self._prefer_device()
        results = self.results
        for slide in self._canvas.slides():
            self._canvas.place_slide(slide, student_mpp=self._student_mpp)
            if slide in results:
                self._show_heatmap(slide, results[slide])
            else:  # of another model
                self._canvas.remove_heatmap(slide)
        self._tell()

    def _bundle_failed(self, loading: _Loading, message: str) -> None:
        if self._loading is loading:
            self._loading, self._error = None, message
            self._tell()

    def _prefer_device(self) -> None:
        """Take the device of the settings, once: from then on the user's choice holds."""
        if self._bundle is not None and not self._device_is_chosen:
            self._device_is_chosen = True
            self._device = self._settings.device_among(self._devices) or self._device

    @property
    def _student_mpp(self) -> float | None:
        return self._bundle.info.tiles.mpp if self._bundle is not None else None

    # ---- classification

    def classify(self) -> None:
        """Classify the current slide in the background."""
        slide, bundle = self._slide, self._bundle
        if self.state not in RESTING or slide is None or bundle is None:
            return
        run = self._run = _Run(slide)
        self._error = ""
        self._slide_errors.pop(slide, None)
        self._background.start(
            "classify",
            classification(slide, bundle, self._device),
            progressed=partial(self._progressed, run),
            done=partial(self._classified, run),
            failed=partial(self._classification_failed, run),
        )
        self._tell()

    def cancel(self) -> None:
        """Stop the classification under way."""
        if self._run is not None:
            self._ended[self._run.slide] = State.CANCELLED
            self._stop()
        self._tell()

    def show_result(self, slide: Slide, prediction: SlidePrediction) -> None:
        """Take in a prediction that was made elsewhere, or before: by the batch, or from the cache.

        It shows with its slide; that isn't made the current one by it. One of another model than the one in use, of
        another µm/px than the slide has by now, or of a slide that is closed, comes too late and is dropped. Where the
        slide's file is no longer the one that is
        shown, that is said instead: the prediction may be of the new one.
        """
        if slide in self._canvas.slides() and not self._is_replaced(slide):
            self._show(slide, prediction)
        self._tell()

    def _show(self, slide: Slide, prediction: SlidePrediction) -> None:
        info = self._bundle.info if self._bundle is not None else None
        if info is not None and prediction.bundle_sha256 != info.sha256:
            return
        if slide in self._canvas.slides() and slide.has_mpp and slide.mpp_xy == prediction.mpp_xy:
            kept = [each for each in self._results.get(slide, []) if each.info != info]
            self._results[slide] = [*kept, _Kept(info, prediction)]
            self._ended.pop(slide, None)
            self._slide_errors.pop(slide, None)
            self._show_heatmap(slide, prediction)

    def _is_replaced(self, slide: Slide) -> bool:
        """Look whether a slide's file is another one by now, or can't be reached, and note it."""
        try:
            slide.check_unchanged()
        except SlideAwayError:
            self._outages.note(slide)
            return True
        except SlideChangedError as error:
            self._drop_result(slide)
            self._replaced.add(slide)
            self._slide_errors[slide] = str(error)
            return True
        return False

    def _file_is_back(self, slide: Slide) -> None:
        """What failed meanwhile can be tried again, and other docks read what they couldn't."""
        self._slide_errors.pop(slide, None)
        if self._ended.get(slide) is State.FAILED:
            del self._ended[slide]
        self._n_returns += slide is self._slide
        self._tell()

    def note_replaced(self, slide: Slide, message: str) -> None:
        """Another file was seen in the place of a slide's: its results are put away, and `reopen_slide` shows that one."""
        if slide in self._canvas.slides():
            self._drop_result(slide)
            self._replaced.add(slide)
            self._slide_errors[slide] = message
        self._tell()

    def _result_of(self, slide: Slide) -> SlidePrediction | None:
        info = self._bundle.info if self._bundle is not None else None
        return next((each.prediction for each in self._results.get(slide, []) if each.info == info), None)

    def _progressed(self, run: _Run, progress: PredictProgress) -> None:
        if self._run is run:
            run.progress = progress
            self._tell()

    def _classified(self, run: _Run, prediction: SlidePrediction) -> None:
        if self._run is run:
            self._run = None
            self._show(run.slide, prediction)
            self._tell()

    def _classification_failed(self, run: _Run, message: str) -> None:
        if self._run is run:
            self._run = None
            if not self._is_replaced(run.slide):
                self._slide_errors[run.slide] = message
            self._ended[run.slide] = State.FAILED
            self._tell()

    def _stop(self) -> None:
        if self._run is not None:
            self._run = None
            self._background.cancel("classify")

    # ---- heatmaps

    def reveal_label(self, shown: bool) -> None:
        """Show what the model would say of the current slide, which is unlike those of training, or hide it again.

        It is hidden again, too, as soon as another slide or result is shown.
        """
        slide, result = self._slide, self.result
        if slide is not None and result is not None and result.label is None:
            self._revealed = result if shown else None
            self._show_heatmap(slide, result)
        self._tell()

    def _show_heatmap(self, slide: Slide, prediction: SlidePrediction) -> None:
        if self._evidence_shown(prediction):
            self._canvas.show_heatmap(slide, prediction, self._look_for(prediction))
        else:
            self._canvas.remove_heatmap(slide)

    def _evidence_shown(self, prediction: SlidePrediction) -> bool:
        return prediction.label is not None or prediction is self._revealed

    def _hide_what_was_revealed(self) -> None:
        """Put the withheld label away once its slide is not the current one any more, or has another result."""
        before = self._revealed
        if before is None or before is self.result:
            return
        self._revealed = None
        for slide, result in self.results.items():
            if result is before:
                self._canvas.remove_heatmap(slide)

    def choose_look(self, look: HeatmapLook) -> None:
        """Change what the heatmaps of all slides show; see `fitting_look` where a model lacks its class."""
        self._look = look
        for slide, result in self.results.items():
            if self._canvas.has_heatmap(slide):
                self._canvas.show_heatmap(slide, result, self._look_for(result))
        self._tell()

    def set_heatmap(self, *, visible: bool | None = None, opacity: float | None = None) -> None:
        """Show, hide or fade the current slide's heatmap."""
        if self._slide is not None and self.result is not None:
            if visible and not self._canvas.has_heatmap(self._slide):  # its layer was deleted
                self._show_heatmap(self._slide, self.result)
            self._canvas.set_heatmap(self._slide, visible=visible, opacity=opacity)
        self._tell()

    def _look_for(self, prediction: SlidePrediction) -> HeatmapLook:
        return fitting_look(prediction, self._look)

    # ---- settings and end

    def apply_settings(self, settings: Settings) -> None:
        """Take over what the user has changed in the Preferences."""
        before, self._settings = self._settings, settings
        if settings.device != before.device:
            self._device_is_chosen = False
            self._prefer_device()
        self._canvas.set_new_heatmaps(opacity=settings.heatmap_opacity)
        if settings.heatmap_opacity != before.heatmap_opacity:
            self.set_heatmap(opacity=settings.heatmap_opacity)
        self._tell()

    def shutdown(self) -> None:
        """Stop what runs and tell nothing from now on: the window is going."""
        self._stop()
        self._loading = None
        self._outages.forget_all_but(())
        self.changed.disconnect()
        self._shut_down = True

    # ---- telling

    def _tell(self) -> None:
        """Say what has changed since the last time."""
        if self._shut_down:
            return
        self._hide_what_was_revealed()
        before, self._told = self._told, self._snapshot()
        change = Change.NOTHING
        for kind, value in self._told.items():
            if value != before[kind]:
                change |= kind
        if change:
            self.changed.emit(change)

    def _snapshot(self) -> dict[Change, tuple[object, ...]]:
        """What each kind of change is told by; results are told apart by identity, they hold arrays."""
        slide, canvas = self._slide, self._canvas
        look: tuple[object, ...] = ()
        pixels: tuple[object, ...] = ()
        if slide is not None:
            pixels = (slide.mpp_override, slide.has_mpp, slide.icc, self._n_returns)
        if slide is not None and self.result is not None:
            look = (
                self.look, canvas.heatmap_visible(slide), canvas.heatmap_opacity(slide), self.slide_visible
            )  # fmt: skip
        return {
            Change.SLIDES: canvas.slides(),
            Change.SLIDE: (slide,),
            Change.PIXELS: pixels,
            Change.MODEL: (id(self._bundle), self._device, self._devices),
            Change.RESULTS: tuple((each, id(result)) for each, result in self.results.items()),
            Change.RESULT: (id(self.result), id(self.earlier_result), self.label_revealed),
            Change.LOOK: look,
            Change.RUN: (
                self.state,
                self.error,
                self.slide_replaced,
                self._loading,
                self._run,
                self.progress,
            ),
        }

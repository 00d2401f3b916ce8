"""The window's controller: one current slide, one model, what is shown, and what happens when. No Qt, no torch.

It knows the window only by the protocols in `protocols`, so it can be tested without one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_lrmil._viewer.docks.classify import panel as panels
from napari_lrmil._viewer.docks.classify.evidence import Evidence, evidence_panel
from napari_lrmil._viewer.docks.classify.panel import Panel, State
from napari_lrmil._viewer.docks.classify.result import card_markdown, overlay_text, result_panel
from napari_lrmil._viewer.protocols import Canvas, Jobs, View
from napari_lrmil.errors import LRMILError
from napari_lrmil.slide import Slide

if TYPE_CHECKING:  # they load torch, which the background does while the window is already there
    from napari_lrmil.heatmap import HeatmapLook
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.predict import PredictProgress, SlidePrediction

DEMO_BUNDLE = "demo"


class Change(Flag):
    """What has changed: listeners look at what concerns them."""

    NOTHING = 0
    SLIDES = auto()
    """Slides were opened, closed, or put into another order."""
    SLIDE = auto()
    """The current slide is another one."""
    PIXELS = auto()
    """The current slide's µm/px or its colours."""
    MODEL = auto()
    """The bundle or device in use."""
    RESULTS = auto()
    """Of any open slide."""
    RESULT = auto()
    """Of the current slide."""
    LOOK = auto()
    """Of the heatmaps: what they show and how."""
    RUN = auto()
    """What is under way, how far it is, and errors."""
    ALL = SLIDES | SLIDE | PIXELS | MODEL | RESULTS | RESULT | LOOK | RUN


@dataclass
class Run:
    """A classification under way."""

    job: int
    slide: Slide
    progress: PredictProgress | None = None


class Controller:
    """Slides, model, results and what is under way.

    Parameters
    ----------
    view : View
    canvas : Canvas
    jobs : Jobs
    """

    changed = Signal(Change)
    """Emitted after the view shows the new state."""

    def __init__(self, view: View, canvas: Canvas, jobs: Jobs) -> None:
        self._view, self._canvas, self._jobs = view, canvas, jobs
        self._job = 0
        self._slide: Slide | None = None
        self._results: dict[Slide, SlidePrediction] = {}
        self._ended: dict[Slide, State] = {}
        self._run: Run | None = None
        self._bundle: ModelBundle | None = None
        self._bundle_paths: list[str] = [DEMO_BUNDLE]
        self._bundle_path = ""
        self._loading: tuple[int, str] | None = None
        self._devices: tuple[str, ...] = ("auto",)
        self._device = "auto"
        self._error = ""
        self._ended_for_good = False
        self._evidence = Evidence()
        self._before = self._snapshot()

    # ---- slides

    def open_slide(self, path: str | Path, *, mpp: float | None = None) -> None:
        """Open a slide and make it the current one; `mpp` stands in for what the file says of its pixels."""
        try:
            self._slide = self._canvas.open_slide(Path(path), mpp=mpp)
            self._error = ""
        except LRMILError as error:
            self._error = str(error)
        self.refresh()

    def replace_slide(self, path: str | Path, old: Collection[Slide], *, mpp: float | None = None) -> None:
        """Open a slide in the place of `old` ones, which are closed; they stay where it can't be opened."""
        self.open_slide(path, mpp=mpp)
        if not self._error and self._slide is not None:
            for slide in old:
                self._canvas.remove_slide(slide)
            self._canvas.bring_forward(self._slide)  # now the view fits this one alone

    def slides_changed(self) -> None:
        """Layers came, went or were chosen."""
        slides = self._canvas.slides()
        for gone in [slide for slide in self._results.keys() | self._ended.keys() if slide not in slides]:
            self._results.pop(gone, None)
            self._ended.pop(gone, None)
        if self._run is not None and self._run.slide not in slides:
            self._stop()
        active = self._canvas.active_slide()
        if active is not None and active is not self._slide:
            self._error = ""
        if active is not None:
            self._slide = active
        elif self._slide not in slides:
            self._slide = slides[-1] if slides else None
        self.refresh()

    def choose_slide(self, index: int) -> None:
        """Make the slide of this place in the panel's list the current one, in front of the others."""
        slides = self._canvas.slides()
        if 0 <= index < len(slides):
            self._slide, self._error = slides[index], ""
            self._canvas.bring_forward(slides[index])
        self.refresh()

    def set_mpp(self, mpp: float) -> None:
        """Say what a level-0 pixel of the current slide measures, where the file doesn't."""
        if self._slide is not None and mpp > 0 and self.state is State.NEEDS_MPP:
            self._slide.mpp_override = mpp
            self._canvas.place_slide(self._slide, student_mpp=self._student_mpp)
        self.refresh()

    def set_icc(self, applied: bool) -> None:
        """Show the current slide's colours through its own profile, or as stored. Models aren't affected."""
        if self._slide is not None and applied != self._slide.icc:
            try:
                self._slide.icc, self._error = applied, ""
            except LRMILError as error:
                self._error = str(error)
            self._canvas.redraw(self._slide)
        self.refresh()

    # ---- model

    def load_bundle(self, bundle_path: str) -> None:
        """Load a bundle in the background; the one in use stays until the new one is there."""
        if self._run is not None:
            return
        self._job += 1
        self._loading = (self._job, bundle_path)
        self._error = ""
        self._jobs.load_bundle(self._job, bundle_path)
        self.refresh()

    def choose_bundle(self, index: int) -> None:
        """Load the bundle of this place in the panel's list."""
        if 0 <= index < len(self._bundle_paths):
            self.load_bundle(self._bundle_paths[index])

    def bundle_loaded(self, job: int, bundle: ModelBundle, devices: tuple[str, ...]) -> None:
        """Report of a job: `devices` are the names that this machine can compute on."""
        if self._loading is None or self._loading[0] != job:
            return
        self._bundle, self._bundle_path = bundle, self._loading[1]
        if self._bundle_path not in self._bundle_paths:
            self._bundle_paths.append(self._bundle_path)
        self._loading = None
        self._devices = ("auto", *devices)
        self._ended.clear()
        for slide in self._canvas.slides():
            self._canvas.place_slide(slide, student_mpp=self._student_mpp)
        self.refresh()

    def bundle_failed(self, job: int, message: str) -> None:
        """Report of a job."""
        if self._loading is None or self._loading[0] != job:
            return
        self._loading, self._error = None, message
        self.refresh()

    def choose_device(self, device: str) -> None:
        """Compute there from the next classification on."""
        if device in self._devices:
            self._device = device
        self.refresh()

    # ---- classification

    def classify(self) -> None:
        """Classify the current slide in the background."""
        if not self._can_classify or self._slide is None or self._bundle is None:
            return
        self._job += 1
        self._error = ""
        self._run = Run(self._job, self._slide)
        self._jobs.classify(self._job, self._slide, self._bundle, self._device)
        self.refresh()

    def cancel(self) -> None:
        """Stop the classification under way."""
        if self._run is not None:
            self._ended[self._run.slide] = State.CANCELLED
            self._stop()
        self.refresh()

    def progressed(self, job: int, progress: PredictProgress) -> None:
        """Report of a job."""
        if self._run is not None and self._run.job == job:
            self._run.progress = progress
            self.refresh()

    def classified(self, job: int, prediction: SlidePrediction) -> None:
        """Report of a job. One that was cancelled, or whose slide is gone, changes nothing."""
        if self._run is None or self._run.job != job:
            return
        slide, self._run = self._run.slide, None
        self._results[slide] = prediction
        self._ended[slide] = State.DONE
        self._canvas.show_heatmap(slide, prediction, self._evidence.look_for(prediction))
        self.refresh()

    def show_result(self, slide: Slide, prediction: SlidePrediction) -> None:
        """Show a prediction that was made elsewhere, or before: by the batch, or from the cache."""
        if slide in self._canvas.slides():
            self._results[slide] = prediction
            self._ended[slide] = State.DONE
            self._canvas.show_heatmap(slide, prediction, self._evidence.look_for(prediction))
        self.refresh()

    def classification_failed(self, job: int, message: str) -> None:
        """Report of a job."""
        if self._run is None or self._run.job != job:
            return
        self._ended[self._run.slide] = State.FAILED
        self._run, self._error = None, message
        self.refresh()

    def set_heatmap(self, *, visible: bool | None = None, opacity: float | None = None) -> None:
        """Show, hide or fade the current slide's heatmap."""
        if self._slide is not None and self.result is not None:
            if visible and not self._canvas.has_heatmap(self._slide):  # its layer was deleted
                self._canvas.show_heatmap(self._slide, self.result, self._evidence.look_for(self.result))
            self._canvas.set_heatmap(self._slide, visible=visible, opacity=opacity)
        self.refresh()

    def choose_evidence(self, **choices: Any) -> None:
        """Change what the heatmaps of all slides show; see `Evidence.choose`."""
        if self.result is not None:
            self._evidence.choose(self.result, **choices)
            for slide, result in self._results.items():
                if self._canvas.has_heatmap(slide):
                    self._canvas.show_heatmap(slide, result, self._evidence.look_for(result))
        self.refresh()

    def hovered(self, x_um: float, y_um: float) -> None:
        """The mouse is at this place in level-0 µm."""
        if self.result is not None:
            self._view.show_hover(self._evidence.text_at(self.result, x_um, y_um))

    def shutdown(self) -> None:
        """Stop what runs and render nothing from now on: the view is going."""
        self._stop()
        self._loading = None
        self.changed.disconnect()
        self._ended_for_good = True

    def _stop(self) -> None:
        if self._run is not None:
            job, self._run = self._run.job, None
            self._jobs.cancel(job)

    # ---- what others may ask

    @property
    def slide(self) -> Slide | None:
        """The current one."""
        return self._slide

    @property
    def bundle(self) -> ModelBundle | None:
        """The model in use."""
        return self._bundle

    @property
    def device(self) -> str:
        """The name of the device to compute on."""
        return self._device

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
        return self._ended.get(self._slide, State.READY)

    @property
    def result(self) -> SlidePrediction | None:
        """Of the current slide."""
        return self._results.get(self._slide) if self._slide is not None else None

    @property
    def devices(self) -> tuple[str, ...]:
        """Names that can be chosen."""
        return self._devices

    @property
    def slides(self) -> tuple[Slide, ...]:
        """Open ones."""
        return self._canvas.slides()

    @property
    def running_slide(self) -> Slide | None:
        """The one that is being classified."""
        return self._run.slide if self._run is not None else None

    @property
    def look(self) -> HeatmapLook | None:
        """Of the current slide's heatmap; None without a result."""
        return self._evidence.look_for(self.result) if self.result is not None else None

    @property
    def card(self) -> str:
        """The card of the model in use, as Markdown; empty without one."""
        return card_markdown(self._bundle.info) if self._bundle is not None else ""

    @property
    def results(self) -> dict[Slide, SlidePrediction]:
        """Of all open slides that have one."""
        return dict(self._results)

    @property
    def error(self) -> str:
        """What went wrong last, in a sentence; empty where nothing did."""
        return self._error

    def refresh(self) -> None:
        """Render the state."""
        if self._ended_for_good:
            return
        result = self.result
        self._canvas.show_text(overlay_text(result) if result is not None else "")
        self._view.show_panel(self._panel())
        before, self._before = self._before, self._snapshot()
        change = Change.NOTHING
        for kind, value in self._before.items():
            if value != before[kind]:
                change |= kind
        if change:
            self.changed.emit(change)

    @property
    def _student_mpp(self) -> float | None:
        return self._bundle.info.tiles.mpp if self._bundle is not None else None

    @property
    def _can_classify(self) -> bool:
        return self.state in (State.READY, State.DONE, State.CANCELLED, State.FAILED)

    def _panel(self) -> Panel:
        slides, slide, result = self._canvas.slides(), self._slide, self.result
        panel = Panel(
            state=self.state,
            devices=self._devices,
            device=self._device,
            can_classify=self._can_classify,
            hint=panels.HINTS.get(self.state, ""),
            error=self._error,
        )
        panel = panels.with_slides(panel, slides, slide)
        info = self._bundle.info if self._bundle is not None else None
        panel = panels.with_models(panel, self._bundle_paths, self._bundle_path, info)
        if self._run is not None:
            panel = panels.with_run(panel, self._run.slide.name, self._run.progress)
        if slide is None or result is None:
            return panel
        return replace(
            panel,
            result=result_panel(result),
            evidence=evidence_panel(result, self._evidence.look_for(result)),
            heatmap_visible=self._canvas.heatmap_visible(slide),
            heatmap_opacity=self._canvas.heatmap_opacity(slide),
        )

    def _snapshot(self) -> dict[Change, tuple[object, ...]]:
        """What each kind of change is told by; results are told apart by identity, they hold arrays."""
        slide = self._slide
        progress = self._run.progress if self._run is not None else None
        return {
            Change.SLIDES: self._canvas.slides(),
            Change.SLIDE: (slide,),
            Change.PIXELS: () if slide is None else (slide.mpp_override, slide.has_mpp, slide.icc),
            Change.MODEL: (id(self._bundle), self._device, self._devices),
            Change.RESULTS: tuple((each, id(result)) for each, result in self._results.items()),
            Change.RESULT: (id(self.result),),
            Change.LOOK: (self.look,),
            Change.RUN: (self.state, self._error, self._run and self._run.job, progress),
        }

"""What happens when: slides, model, classification and their results. No Qt, no torch.

The controller knows the window only by the three protocols in `protocols`, so it can be tested without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer import panel as panels
from napari_lrmil._viewer.panel import Panel, State
from napari_lrmil._viewer.protocols import Canvas, Jobs, View
from napari_lrmil.errors import LRMILError
from napari_lrmil.slide import Slide

if TYPE_CHECKING:  # they load torch, which the background does while the window is already there
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.predict import PredictProgress, SlidePrediction

DEMO_BUNDLE = "demo"


@dataclass
class _Run:
    job: int
    slide: Slide
    progress: PredictProgress | None = None


class Controller:
    """State and transitions.

    Parameters
    ----------
    view : View
    canvas : Canvas
    jobs : Jobs
    """

    def __init__(self, view: View, canvas: Canvas, jobs: Jobs) -> None:
        self._view, self._canvas, self._jobs = view, canvas, jobs
        self._job = 0
        self._slide: Slide | None = None
        self._results: dict[Slide, SlidePrediction] = {}
        self._ended: dict[Slide, State] = {}
        self._run: _Run | None = None
        self._bundle: ModelBundle | None = None
        self._bundle_paths: list[str] = [DEMO_BUNDLE]
        self._bundle_path = ""
        self._loading: tuple[int, str] | None = None
        self._devices: tuple[str, ...] = ("auto",)
        self._device = "auto"
        self._error = ""
        self._ended_for_good = False

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
    def error(self) -> str:
        """What went wrong last, in a sentence; empty where nothing did."""
        return self._error

    # ---- slides

    def open_slide(self, path: str | Path) -> None:
        """Open a slide and make it the current one."""
        try:
            self._slide = self._canvas.open_slide(Path(path))
            self._error = ""
        except LRMILError as error:
            self._error = str(error)
        self.refresh()

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
        self._run = _Run(self._job, self._slide)
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
        self._canvas.show_heatmap(slide, prediction)
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
                self._canvas.show_heatmap(self._slide, self.result)
            self._canvas.set_heatmap(self._slide, visible=visible, opacity=opacity)
        self.refresh()

    def shutdown(self) -> None:
        """Stop what runs and render nothing from now on: the view is going."""
        self._stop()
        self._loading = None
        self._ended_for_good = True

    # ---- what is shown

    def refresh(self) -> None:
        """Render the state."""
        if self._ended_for_good:
            return
        result = self.result
        self._canvas.show_text(panels.overlay_text(result) if result is not None else "")
        self._view.show_panel(self._panel())

    @property
    def _student_mpp(self) -> float | None:
        return self._bundle.info.tiles.mpp if self._bundle is not None else None

    @property
    def _can_classify(self) -> bool:
        return self.state in (State.READY, State.DONE, State.CANCELLED, State.FAILED)

    def _stop(self) -> None:
        if self._run is not None:
            job, self._run = self._run.job, None
            self._jobs.cancel(job)

    def _panel(self) -> Panel:
        slides, slide, result = self._canvas.slides(), self._slide, self.result
        info = self._bundle.info if self._bundle is not None else None
        run = self._run
        progress = run.progress if run is not None else None
        return Panel(
            state=self.state,
            slide_names=tuple(each.name for each in slides),
            slide_index=slides.index(slide) if slide in slides else -1,
            slide_facts=panels.slide_facts(slide) if slide is not None else "",
            icc_available=slide is not None and slide.has_icc_profile,
            icc_applied=slide is not None and slide.icc,
            bundle_names=tuple(
                panels.DEMO_BUNDLE_NAME if path == DEMO_BUNDLE else Path(path).name
                for path in self._bundle_paths
            ),
            bundle_index=self._bundle_paths.index(self._bundle_path) if self._bundle_path else -1,
            bundle_facts=panels.bundle_facts(info) if info is not None else "",
            bundle_is_demonstration=info.demonstration if info is not None else False,
            devices=self._devices,
            device=self._device,
            can_classify=self._can_classify,
            progress=None if run is None else (0, 0) if progress is None else progress[:2],
            progress_text=panels.progress_text(run.slide.name, progress) if run is not None else "",
            hint=panels.HINTS.get(self.state, ""),
            error=self._error,
            result=panels.result_panel(result) if result is not None else None,
            heatmap_visible=slide is not None and self._canvas.heatmap_visible(slide),
            heatmap_opacity=self._canvas.heatmap_opacity(slide) if slide is not None else 0.0,
        )

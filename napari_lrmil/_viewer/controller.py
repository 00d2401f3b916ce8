"""What happens when: slides, model, classification and their results. No Qt, no torch.

The controller knows the window only by the three protocols in `protocols`, so it can be tested without one.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil._viewer.panel import State
from napari_lrmil._viewer.window_state import DEMO_BUNDLE, Run, WindowState
from napari_lrmil.errors import LRMILError
from napari_lrmil.slide import Slide

if TYPE_CHECKING:  # they load torch, which the background does while the window is already there
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.predict import PredictProgress, SlidePrediction

__all__ = ["DEMO_BUNDLE", "Controller"]


class Controller(WindowState):
    """Transitions.

    Parameters
    ----------
    view : View
    canvas : Canvas
    jobs : Jobs
    """

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
        self._listeners.clear()
        self._ended_for_good = True

    def _stop(self) -> None:
        if self._run is not None:
            job, self._run = self._run.job, None
            self._jobs.cancel(job)

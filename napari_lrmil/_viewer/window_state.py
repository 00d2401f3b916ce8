"""What the window is in, as others may ask it, and how it is shown. No Qt, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from napari_lrmil._viewer import panel as panels
from napari_lrmil._viewer.evidence import Evidence, evidence_panel
from napari_lrmil._viewer.panel import Panel, State
from napari_lrmil._viewer.protocols import Canvas, Jobs, View
from napari_lrmil._viewer.result import card_markdown, overlay_text, result_panel
from napari_lrmil.slide import Slide

if TYPE_CHECKING:  # these load torch, which the background does while the window is already there
    from napari_lrmil.heatmap import HeatmapLook
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.predict import PredictProgress, SlidePrediction

DEMO_BUNDLE = "demo"


@dataclass
class Run:
    """A classification under way."""

    job: int
    slide: Slide
    progress: PredictProgress | None = None


class WindowState:
    """Slides, model, results and what is under way; `Controller` changes them.

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
        self._listeners: list[Callable[[], None]] = []

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

    def follow(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever slide, model, result or look may have changed; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

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
        for listener in tuple(self._listeners):
            listener()

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

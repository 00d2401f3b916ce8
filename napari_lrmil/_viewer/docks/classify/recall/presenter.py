"""When to look a result up and when to keep one. No Qt, no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_lrmil._viewer.docks.classify.panel import State
from napari_lrmil._viewer.settings import Settings
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo, ModelBundle
    from napari_lrmil.predict import SlidePrediction

_RESTING = (State.READY, State.DONE, State.CANCELLED, State.FAILED)


class RecallJobs(Protocol):
    """Work in the background; `found` is called in the window's thread."""

    def look_up(
        self,
        slide: Slide,
        info: BundleInfo,
        found: Callable[[SlidePrediction | None], None],
    ) -> None: ...
    def keep(
        self, slide_path: Path, prediction: SlidePrediction, info: BundleInfo, mpp: float | None
    ) -> None: ...
    def limit_cache(self, n_bytes: int) -> None: ...


class Recall:
    """Shows what the cache knows of the slides that are open, and keeps what is classified.

    Parameters
    ----------
    controller : Controller
    jobs : RecallJobs
    settings : Settings
    """

    def __init__(self, controller: Controller, jobs: RecallJobs, settings: Settings) -> None:
        self._controller, self._jobs = controller, jobs
        self._settings = settings
        self._kept: dict[Slide, SlidePrediction] = {}
        self._asked: dict[Slide, tuple[str, float | None]] = {}
        self._device_set = False
        if settings.cache_gb != Settings().cache_gb:
            jobs.limit_cache(settings.cache_bytes)
        controller.changed.connect(self._controller_changed)

    @property
    def settings(self) -> Settings:
        """In force now."""
        return self._settings

    def change_settings(self, settings: Settings) -> None:
        """Take new ones over."""
        before, self._settings = self._settings, settings
        if settings.cache_gb != before.cache_gb:
            self._jobs.limit_cache(settings.cache_bytes)
        if settings.device != before.device:
            self._device_set = False
        if settings.heatmap_opacity != before.heatmap_opacity:
            self._controller.set_heatmap(opacity=settings.heatmap_opacity)
        self._changed()

    def _controller_changed(self, _change: Change) -> None:
        self._changed()

    def _changed(self) -> None:
        controller = self._controller
        if not self._device_set and controller.bundle is not None:
            self._device_set = True  # first: choosing a device calls this again
            controller.choose_device(self._settings.device_among(controller.devices) or controller.device)
        results = controller.results
        open_now = controller.slides
        for slide in [slide for slide in self._kept.keys() | self._asked.keys() if slide not in open_now]:
            self._kept.pop(slide, None)
            self._asked.pop(slide, None)
        for slide, result in results.items():
            self._keep(slide, result)
        self._look_up()

    def _keep(self, slide: Slide, result: SlidePrediction) -> None:
        bundle = self._controller.bundle
        if self._kept.get(slide) is result or bundle is None:
            return
        self._kept[slide] = result
        if result.bundle_sha256 == bundle.info.weights_sha256:
            self._jobs.keep(slide.path, result, bundle.info, slide.mpp_override)

    def _look_up(self) -> None:
        controller = self._controller
        slide, bundle, result = controller.slide, controller.bundle, controller.result
        if not self._settings.show_cached_results or slide is None or bundle is None:
            return
        if controller.state not in _RESTING:
            return
        sha = bundle.info.weights_sha256
        asked = (sha, slide.mpp_override)
        if self._asked.get(slide) == asked or (result is not None and result.bundle_sha256 == sha):
            return
        self._asked[slide] = asked
        self._jobs.look_up(slide, bundle.info, lambda found: self._found(slide, bundle, asked, found))

    def _found(
        self,
        slide: Slide,
        bundle: ModelBundle,
        asked: tuple[str, float | None],
        found: SlidePrediction | None,
    ) -> None:
        controller = self._controller
        # Meanwhile the user may have chosen another model, closed the slide, or started to classify it.
        if found is None or self._asked.get(slide) != asked or controller.bundle is not bundle:
            return
        now = controller.results.get(slide)
        if controller.running_slide is slide or (now is not None and now.bundle_sha256 == asked[0]):
            return
        self._kept[slide] = found
        controller.show_result(slide, found)

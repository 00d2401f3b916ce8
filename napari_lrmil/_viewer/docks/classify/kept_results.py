"""Results kept on disk from before: shown when their slide is opened, kept when a slide is classified. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from napari_lrmil._viewer.background import Background, R, ignore, in_one_step
from napari_lrmil._viewer.models import import_models
from napari_lrmil._viewer.settings import Settings
from napari_lrmil._viewer.window import RESTING, Change, Controller
from napari_lrmil.cache import ResultCache, result_key
from napari_lrmil.errors import LRMILError
from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo, ModelBundle
    from napari_lrmil.predict import SlidePrediction

_Wanted = tuple[str, tuple[float, float]]
"""What a result is looked up by, beside its slide: the model's weights, and the µm/px in use."""


class KeptResults:
    """Shows what the cache knows of the slides that are open, and keeps what is classified.

    Parameters
    ----------
    controller : Controller
    background : Background
    settings : Settings
    warn : callable
        Gets a text where something can't be kept.
    """

    def __init__(
        self,
        controller: Controller,
        background: Background,
        settings: Settings,
        warn: Callable[[str], None],
    ) -> None:
        self._controller, self._background, self._settings, self._warn = (
            controller,
            background,
            settings,
            warn,
        )
        self._kept: dict[Slide, SlidePrediction] = {}
        self._looked_up: dict[Slide, _Wanted] = {}
        self._jobs = 0
        if settings.cache_gb != Settings().cache_gb:  # a limit set from the command line stays
            self._limit_cache()
        controller.changed.connect(self.refresh)

    def apply_settings(self, settings: Settings) -> None:
        """Take over what the user has changed in the Preferences."""
        before, self._settings = self._settings, settings
        if settings.cache_gb != before.cache_gb:
            self._limit_cache()
        self.refresh(Change.ALL)

    def refresh(self, change: Change) -> None:
        """Keep new results, and look up the one of the current slide, where that is due."""
        if not change & ~Change.LOOK:
            return
        slides = self._controller.slides
        for gone in [slide for slide in self._kept.keys() | self._looked_up.keys() if slide not in slides]:
            self._kept.pop(gone, None)
            self._looked_up.pop(gone, None)
        for slide, result in self._controller.results.items():
            self._keep(slide, result)
        self._look_up()

    def _keep(self, slide: Slide, result: SlidePrediction) -> None:
        bundle = self._controller.bundle
        if self._kept.get(slide) is result or bundle is None:
            return
        self._kept[slide] = result
        if result.bundle_sha256 == bundle.info.sha256:
            info = bundle.info
            self._start("keep", lambda: _keep(slide, result, info))

    def _look_up(self) -> None:
        controller = self._controller
        slide, bundle, result = controller.slide, controller.bundle, controller.result
        if not self._settings.show_cached_results or slide is None or bundle is None:
            return
        if controller.state not in RESTING:
            return
        wanted = (bundle.info.sha256, slide.mpp_xy)
        if self._looked_up.get(slide) == wanted or _is_of(result, bundle):
            return
        self._looked_up[slide] = wanted

        def found(kept: SlidePrediction | None) -> None:
            # Meanwhile the user may have chosen another model, closed the slide, or started to classify it.
            if kept is None or self._looked_up.get(slide) != wanted or controller.bundle is not bundle:
                return
            if controller.running_slide is slide or _is_of(controller.results.get(slide), bundle):
                return
            self._kept[slide] = kept
            controller.show_result(slide, kept)

        info, mpp_xy = bundle.info, slide.mpp_xy
        self._start("look up", lambda: _look_up(slide, info, mpp_xy), found)

    def _limit_cache(self) -> None:
        n_bytes = self._settings.cache_bytes
        self._start("limit", lambda: ResultCache().set_limit(n_bytes))

    def _start(self, what: str, work: Callable[[], R], done: Callable[[R], None] = ignore) -> None:
        self._jobs += 1  # a name of its own, so that none takes the place of another
        self._background.start(f"{what} {self._jobs}", in_one_step(work), done=done, failed=self._warn)


def _is_of(result: SlidePrediction | None, bundle: ModelBundle) -> bool:
    return result is not None and result.bundle_sha256 == bundle.info.sha256


def _look_up(slide: Slide, info: BundleInfo, mpp_xy: tuple[float, float]) -> SlidePrediction | None:
    """In a thread: the kept result of a slide, whose fingerprint is made where it isn't known yet."""
    import_models()
    cache = ResultCache()
    try:
        fingerprint = cache.fingerprint_of(slide)
    except LRMILError:  # classifying it will say what is wrong
        return None
    return cache.get(fingerprint, info.sha256, result_key(info, mpp_xy=mpp_xy), slide_name=slide.name)


def _keep(slide: Slide, result: SlidePrediction, info: BundleInfo) -> None:
    """In a thread: put a result into the cache."""
    cache = ResultCache()
    cache.remember_slide(slide, result.slide_fingerprint)
    cache.put(result, result_key(info, mpp_xy=result.mpp_xy))

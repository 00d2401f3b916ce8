"""The cache, asked and filled in threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.background import in_one_step
from napari_lrmil._viewer.model_imports import import_models
from napari_lrmil._viewer.qt.background import QtBackground
from napari_lrmil.cache import ResultCache, result_key
from napari_lrmil.errors import LRMILError
from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction


class QtRecallJobs:
    """`RecallJobs` on Qt's thread pool.

    Parameters
    ----------
    failed : callable
        Gets a text where something can't be kept.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._count = 0
        self.background = QtBackground()

    def look_up(
        self, slide: Slide, info: BundleInfo, found: Callable[[SlidePrediction | None], None]
    ) -> None:
        """Find the result of a slide; the fingerprint is made here, in the thread."""
        path, name, mpp = slide.path, slide.name, slide.mpp_override

        def work() -> SlidePrediction | None:
            import_models()
            cache = ResultCache()
            try:
                fingerprint = cache.known_fingerprint(path) or slide.fingerprint()
            except (OSError, LRMILError):  # classifying it will say what is wrong
                return None
            cache.remember_fingerprint(path, fingerprint)
            key = result_key(info, mpp=mpp)
            return cache.get(fingerprint, info.weights_sha256, key, slide_name=name)

        self._start(work, found)

    def keep(
        self, slide_path: Path, prediction: SlidePrediction, info: BundleInfo, mpp: float | None
    ) -> None:
        """Put a result into the cache."""

        def work() -> None:
            cache = ResultCache()
            cache.remember_fingerprint(slide_path, prediction.slide_fingerprint)
            cache.put(prediction, result_key(info, mpp=mpp))

        self._start(work)

    def limit_cache(self, n_bytes: int) -> None:
        """Keep the cache to a size, from now on and for the command line too."""
        self._start(lambda: ResultCache().set_limit(n_bytes))

    def _start(
        self, work: Callable[[], SlidePrediction | None], done: Callable[..., None] = lambda _: None
    ) -> None:
        self._count += 1  # a name of its own, so that none cancels another
        self.background.start(f"cache {self._count}", in_one_step(work), done=done, failed=self._failed)

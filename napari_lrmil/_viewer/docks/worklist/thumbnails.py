"""Thumbnails of the rows in sight, one after the other in one thread. No Qt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil._viewer.background import Background, Steps
from napari_lrmil.cache import ResultCache, ResultKeys, ResultSummary
from napari_lrmil.errors import LRMILError
from napari_lrmil.worklist import WorklistItem, thumbnail

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo

EDGE_PX = 128
_LOAD = "thumbnails"


class Thumbnail(NamedTuple):
    """What became of a slide's thumbnail.

    `pixels` (height, width, 3 uint8) is None where the slide has none. `summary` is the slide's result where the
    cache knew it, but not yet under this path.
    """

    path: Path
    pixels: NDArray[np.uint8] | None
    summary: ResultSummary | None


class Thumbnails:
    """Loads what is in sight and forgets what has left it.

    Parameters
    ----------
    background : Background
    loaded : callable
        Gets each `Thumbnail`, in the window's thread.
    info : callable
        The description of the bundle in use, None without one.
    """

    def __init__(
        self,
        background: Background,
        loaded: Callable[[Thumbnail], None],
        info: Callable[[], BundleInfo | None],
    ) -> None:
        self._background, self._loaded, self._info = background, loaded, info
        self._lock = threading.Lock()
        self._waiting: list[WorklistItem] = []
        self._at_work = False

    def want(self, items: Sequence[WorklistItem]) -> None:
        """Load these next, in the place of those that still wait."""
        with self._lock:
            self._waiting = list(items)
            start = bool(items) and not self._at_work
            self._at_work = self._at_work or start
        if start:
            self._background.start(_LOAD, self._steps(self._info()), progressed=self._loaded)

    def _next(self) -> WorklistItem | None:
        with self._lock:
            if self._waiting:
                return self._waiting.pop(0)
            self._at_work = False
            return None

    def _steps(self, info: BundleInfo | None) -> Steps[Thumbnail, None]:
        cache = ResultCache()
        keys = ResultKeys(info) if info is not None else None
        while (item := self._next()) is not None:
            pixels, is_new = _load(item, cache)
            summary = None
            if is_new and info is not None and keys is not None:
                summary = cache.known_summary(item.path, info.sha256, keys, mpp=item.mpp)
            yield Thumbnail(item.path, pixels, summary)


def _load(item: WorklistItem, cache: ResultCache) -> tuple[NDArray[np.uint8] | None, bool]:
    """A slide's picture, and whether the cache knows the slide only since it was made."""
    known = cache.known_fingerprint(item.path) is not None
    try:
        return thumbnail(item.path, EDGE_PX, cache=cache), not known
    except (LRMILError, OSError, RuntimeError, ValueError, MemoryError):
        return None, False  # opening the slide will say what is wrong with it

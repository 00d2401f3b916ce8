"""Quick changes of slides. No Qt."""

from __future__ import annotations

import gc


class SparedCollection:
    """Leaves what is long-lived out of garbage collection while slides are gone through.

    napari collects all garbage of the process whenever a layer is removed. With torch and its like loaded
    that takes longer than the slide itself, 0.2 to 0.7 s, and finds the layer only.
    """

    def __init__(self) -> None:
        self._spared = False

    def start(self) -> None:
        """Spare what is there now; again does nothing."""
        if not self._spared:
            self._spared = True
            gc.freeze()

    def end(self) -> None:
        """Everything counts again."""
        if self._spared:
            self._spared = False
            gc.unfreeze()

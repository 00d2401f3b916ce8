"""One contestant of `viewer.py`, in a process of its own: opens the slide, makes the moves, writes what it took."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _viewer_contestants import prepare
from _viewer_moves import Move, check_move, moves

if TYPE_CHECKING:
    from napari import Viewer

WINDOW_XY = (1600, 1000)
_QUIET_S, _QUIET_AFTER_OPENING_S = 0.1, 0.5
_GIVEN_UP_S = 30.0


@dataclass
class Took:
    """Seconds, counted from the moment before the action began.

    blocks
        Between two turns of the event loop, each of them: a key pressed meanwhile has to wait so long.
    first_paint, settled
        Until the event loop turned after the first and after the last time that the canvas was drawn.
    """

    blocks: list[float] = field(default_factory=list)
    first_paint: float = 0.0
    settled: float = 0.0


def make_watch(canvas: Any) -> Any:
    """Watches a canvas widget and the event loop. A function, so that Qt isn't loaded to look at the options."""
    from qtpy.QtCore import QEvent, QEventLoop, QObject, Qt, QTimer

    class Watch(QObject):
        def __init__(self) -> None:
            super().__init__()
            self._paints = 0
            self._loop = QEventLoop()
            self._clock = QTimer()
            self._clock.setTimerType(Qt.PreciseTimer)
            self._clock.setInterval(1)
            self._clock.timeout.connect(self._turn)
            canvas.installEventFilter(self)

        def eventFilter(self, watched: Any, event: Any) -> bool:
            if event.type() == QEvent.Paint and self._counts():
                self._paints += 1
            return False

        def run(self, action: Callable[[], None], quiet_s: float, counts: Callable[[], bool]) -> Took:
            """Do it, and wait until the canvas hasn't been drawn for `quiet_s`."""
            self._took, self._quiet_s, self._counts = Took(), quiet_s, counts
            self._paints = self._seen = 0
            QTimer.singleShot(0, lambda: self._begin(action))
            self._loop.exec_()
            self._clock.stop()
            return self._took

        def _begin(self, action: Callable[[], None]) -> None:
            self._start = self._last = time.perf_counter()
            self._clock.start()
            action()

        def _turn(self) -> None:
            now = time.perf_counter()
            since, self._last = now - self._last, now
            elapsed = now - self._start
            if self._took.settled == 0 or self._paints != self._seen or since > 0.005:
                self._took.blocks.append(since)
            if self._paints != self._seen:
                self._seen = self._paints
                self._took.settled = elapsed
                self._took.first_paint = self._took.first_paint or elapsed
            elif elapsed - self._took.settled > (self._quiet_s if self._paints else _GIVEN_UP_S):
                self._loop.quit()

    return Watch()


def run(name: str, path: Path, side_px: int, picture: Path | None, profile: bool) -> dict[str, object]:
    """All of it; times in seconds, memory in MB."""
    warnings.filterwarnings("ignore", message="System theme detection")
    open_slide = prepare(name, path)
    import napari
    from qtpy.QtWidgets import QApplication, QOpenGLWidget

    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW_XY)
    (canvas,) = [widget for widget in QApplication.allWidgets() if isinstance(widget, QOpenGLWidget)]
    watch = make_watch(canvas)
    # Everything of the window itself is on the screen before the slide comes.
    watch.run(canvas.update, _QUIET_AFTER_OPENING_S, lambda: True)
    canvas_xy = (canvas.width(), canvas.height())
    profiler = cProfile.Profile() if profile else None

    def timed(action: Callable[[], None], quiet_s: float, counts: Callable[[], bool]) -> Took:
        return watch.run(action, quiet_s, counts)

    opened = timed(lambda: open_slide(viewer), _QUIET_AFTER_OPENING_S, lambda: len(viewer.layers) > 0)
    took: dict[str, list[Took]] = defaultdict(list)
    for move in moves(side_px, canvas_xy):
        if profiler and move.kind:
            profiler.enable()
        one = watch.run(partial(_show, viewer, move), _QUIET_S, lambda: True)
        if profiler:
            profiler.disable()
        if move.kind:
            took[move.kind].append(one)
    if profiler:
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("cumulative").print_stats(60)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if picture is not None:
        watch.run(partial(_show, viewer, check_move(side_px)), _QUIET_S, lambda: True)
        np.save(picture, viewer.screenshot(canvas_only=True, flash=False))
    levels = [tuple(level.shape) for level in viewer.layers[0].data]
    viewer.close()
    return {
        "canvas_xy": canvas_xy,
        "levels": levels,
        "first_paint": opened.first_paint,
        "opened": opened.settled,
        "peak_mb": peak_mb,
        "moves": {
            kind: {
                "block": [max(one.blocks) for one in each],
                "settled": [one.settled for one in each],
            }
            for kind, each in took.items()
        },
    }


def _show(viewer: Viewer, move: Move) -> None:
    layer, camera = viewer.layers[0], viewer.scene.camera
    scale, translate = layer.scale[-2:], layer.translate[-2:]
    # napari's origin is the middle of the first pixel.
    centre_yx = np.array(move.centre_l0_xy[::-1]) - 0.5
    camera.zoom = move.zoom / float(scale[0])
    camera.center = tuple(float(value) for value in translate + centre_yx * scale)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant")
    parser.add_argument("slide", type=Path)
    parser.add_argument("side_px", type=int)
    parser.add_argument("--out", type=Path, help="JSON of the times")
    parser.add_argument("--picture", type=Path, help="NumPy file of the canvas at a set place")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    result = run(options.contestant, options.slide, options.side_px, options.picture, options.profile)
    text = json.dumps(result)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One contestant in a process of its own: opens the slide, makes the moves, writes what it took."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

import napari
import numpy as np
from napari import Viewer

from benchmarks.memory import peak_bytes
from benchmarks.viewer.contestants import prepare
from benchmarks.viewer.moves import Move, check_move, moves
from benchmarks.window import WINDOW_XY, Took, Watch, find_canvas

_QUIET_S, _QUIET_AFTER_OPENING_S = 0.1, 0.5
_GIVEN_UP_S = 30.0


class MoveTimes(TypedDict):
    """Seconds of each move of one kind."""

    block: list[float]
    """The longest time between two turns of the event loop."""
    settled: list[float]
    """Until the canvas was drawn for the last time."""


class TurnTimes(TypedDict):
    """What a turn writes as JSON: times in seconds, memory in MB."""

    canvas_xy: tuple[int, int]
    levels: list[tuple[int, ...]]
    first_paint: float
    opened: float
    peak_mb: float
    moves: dict[str, MoveTimes]


def run(name: str, path: Path, side_px: int, picture: Path | None, profile: bool) -> TurnTimes:
    """Open the slide and make all moves."""
    warnings.filterwarnings("ignore", message="System theme detection")
    open_slide = prepare(name, path)
    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW_XY)
    canvas = find_canvas()
    watch = Watch(canvas)

    def timed(
        action: Callable[[], object],
        quiet_s: float = _QUIET_S,
        until: Callable[[], bool] = lambda: True,
    ) -> Took:
        return watch.run(action, {"painted": until}, quiet_s=quiet_s, most_s=_GIVEN_UP_S)

    # Everything of the window itself is on the screen before the slide comes.
    timed(canvas.update, _QUIET_AFTER_OPENING_S)
    canvas_xy = (canvas.width(), canvas.height())
    profiler = cProfile.Profile() if profile else None
    opened = timed(lambda: open_slide(viewer), _QUIET_AFTER_OPENING_S, lambda: len(viewer.layers) > 0)
    took: dict[str, list[Took]] = defaultdict(list)
    for move in moves(side_px, canvas_xy):
        if profiler and move.kind:
            profiler.enable()
        one = timed(partial(_show, viewer, move))
        if profiler:
            profiler.disable()
        if move.kind:
            took[move.kind].append(one)
    if profiler:
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("cumulative").print_stats(60)
    peak_mb = peak_bytes() / 1e6
    if picture is not None:
        timed(partial(_show, viewer, check_move(side_px)))
        np.save(picture, viewer.screenshot(canvas_only=True, flash=False))
    levels = [tuple(level.shape) for level in viewer.layers[0].data]
    viewer.close()
    return {
        "canvas_xy": canvas_xy,
        "levels": levels,
        "first_paint": opened.shown["painted"],
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
    """Run one contestant; print or write what it took as JSON."""
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

"""A napari window that is watched: when its parts are painted, and how long its event loop stands still."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qtpy.QtCore import QEvent, QEventLoop, QObject, Qt, QTimer
from qtpy.QtWidgets import QApplication, QWidget

WINDOW_XY = (1600, 1000)
QUIET_S = 0.15


@dataclass
class Took:
    """Seconds, counted from the moment before the action began.

    Attributes
    ----------
    shown : dict
        Condition -> until the event loop turned after the first painting since it holds.
    settled : float
        Until the event loop turned after the last painting.
    blocks : list of float
        Between two turns of the event loop, each of them: a key pressed meanwhile has to wait so long.
    """

    shown: dict[str, float] = field(default_factory=dict)
    settled: float = 0.0
    blocks: list[float] = field(default_factory=list)


def find_canvas() -> QWidget:
    """Return the canvas of the only napari window."""
    (canvas,) = [widget for widget in QApplication.allWidgets() if "CanvasBackend" in type(widget).__name__]
    return canvas


class Watch(QObject):
    """Watches widgets being painted, and the event loop."""

    def __init__(self, *widgets: QWidget) -> None:
        super().__init__()
        self._paints = 0
        self._clock = QTimer()
        self._clock.setTimerType(Qt.TimerType.PreciseTimer)
        self._clock.setInterval(1)
        for widget in widgets:
            widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Count paintings; Qt's name."""
        if event.type() == QEvent.Type.Paint:
            self._paints += 1
        return False

    def run(
        self,
        action: Callable[[], object],
        until: Mapping[str, Callable[[], bool]],
        *,
        least_s: float = 0.0,
        quiet_s: float = QUIET_S,
        most_s: float = 8.0,
    ) -> Took:
        """Act, and wait until each condition held and was painted, and nothing has been painted for a while.

        Parameters
        ----------
        action : callable
        until : mapping
            Name -> condition, asked at each turn of the event loop.
        least_s, most_s : float
            Shortest and longest wait, whatever is painted.
        quiet_s : float
            How long nothing may have been painted.
        """
        took, loop = Took(), QEventLoop()
        paints_when_held: dict[str, int] = {}
        start = last_turn = last_paint = 0.0
        paints_before = self._paints

        def begin() -> None:
            nonlocal start, last_turn, last_paint
            start = last_turn = last_paint = time.perf_counter()
            self._clock.start()
            action()

        def turn() -> None:
            nonlocal last_turn, last_paint, paints_before
            now = time.perf_counter()
            took.blocks.append(now - last_turn)
            last_turn = now
            painted = self._paints != paints_before
            for name, condition in until.items():
                if name not in paints_when_held and condition():
                    # What made it hold asked for the painting; where that was done in the same turn, it counts.
                    paints_when_held[name] = self._paints - 1 if painted else self._paints
                if (
                    name in paints_when_held
                    and name not in took.shown
                    and self._paints > paints_when_held[name]
                ):
                    took.shown[name] = now - start
            if painted:
                paints_before, last_paint = self._paints, now
            done = len(took.shown) == len(until) and now - last_paint > quiet_s
            if (done and now - start > least_s) or now - start > most_s:
                loop.quit()

        self._clock.timeout.connect(turn)
        QTimer.singleShot(0, begin)
        loop.exec_()
        self._clock.stop()
        self._clock.timeout.disconnect(turn)
        took.settled = last_paint - start
        return took

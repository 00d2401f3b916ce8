"""What every contestant is made to show: the same places at the same zooms, in the same order."""

from __future__ import annotations

import math
from dataclasses import dataclass

FULL, BETWEEN, MID = 1.0, 1 / 3, 1 / 6
"""Canvas pixels per level-0 pixel. Of levels 1/4/16, MID shows a stored one (4) and BETWEEN falls in the gap
before it, where the next finer one, or a virtual level of x2, has to do."""

ZOOM_OUT = (1 / 3.9, 1 / 6, 1 / 15.6)
"""From full resolution to just before the jump from 1 to 4, past it, and to just before the one from 4 to 16: just
before a jump, a viewer that knows only stored levels reads 16 times the pixels that it shows."""

PAN_FULL, PAN_MID, PAN_BETWEEN = "pan at full resolution", "pan at 1:6", "pan at 1:3"
DRAG, OUT, JUMP = "drag by 24 px", "zoom out past 4x jumps", "jump to an unseen place"
KINDS = (PAN_FULL, PAN_MID, PAN_BETWEEN, DRAG, OUT, JUMP)

_STEP, _DRAG_PX = 0.3, 24
_DISC = 0.36
"""Jumps stay within this radius, as a share of the side: all of it is tissue."""


@dataclass(frozen=True)
class Move:
    """A view: its middle in level-0 pixels (x, y) and its zoom.

    `kind` is None where the move only leads to where the next ones begin: it isn't measured.
    """

    kind: str | None
    centre_l0_xy: tuple[float, float]
    zoom: float


def moves(side_px: int, canvas_xy: tuple[int, int]) -> list[Move]:
    """Return all moves for a square slide and a canvas of given size."""
    planned = [
        Move(None, (0.5 * side_px, 0.5 * side_px), zoom) for zoom in (FULL, MID, BETWEEN, *ZOOM_OUT, FULL)
    ]
    planned += _pan(PAN_FULL, (0.25, 0.35), FULL, side_px, canvas_xy)
    planned += _pan(PAN_MID, (0.3, 0.3), MID, side_px, canvas_xy)
    planned += _pan(PAN_BETWEEN, (0.4, 0.55), BETWEEN, side_px, canvas_xy)
    x, y = _at((0.6, 0.3), side_px)
    planned.append(Move(None, (x, y), FULL))
    planned += [Move(DRAG, (x + _DRAG_PX * step, y + _DRAG_PX * step / 2), FULL) for step in range(1, 13)]
    places = iter(_places(12))
    for _ in range(4):
        centre = _at(next(places), side_px)
        planned.append(Move(None, centre, FULL))
        planned += [Move(OUT, centre, zoom) for zoom in ZOOM_OUT]
    planned.append(Move(None, (0.5 * side_px, 0.5 * side_px), FULL))
    planned += [Move(JUMP, _at(place, side_px), FULL) for place in places]
    return planned


def check_move(side_px: int) -> Move:
    """Return where the contestants' pixels are compared, at full resolution.

    A quarter of a pixel off, so that no pixel of the canvas lies on the border of two of the slide's.
    """
    return Move(None, (round(0.62 * side_px) + 0.25, round(0.41 * side_px) + 0.25), FULL)


def _pan(
    kind: str, start: tuple[float, float], zoom: float, side_px: int, canvas_xy: tuple[int, int]
) -> list[Move]:
    """Pan twelve times by 0.3 of what is shown: right, down, and slantwise. A slide too small for it is a ring."""
    x, y = _at(start, side_px)
    planned = [Move(None, (x, y), zoom)]
    for right, down in [(1, 0)] * 4 + [(0, 1)] * 4 + [(1, 1), (1, -1)] * 2:
        x += right * _STEP * canvas_xy[0] / zoom
        y += down * _STEP * canvas_xy[1] / zoom
        planned.append(Move(kind, (x % side_px, y % side_px), zoom))
    return planned


def _places(count: int) -> list[tuple[float, float]]:
    """Return places far from each other: a sunflower's seeds, not one after its neighbour."""
    golden = math.pi * (3 - math.sqrt(5))
    return [
        (
            0.5 + _DISC * math.sqrt((i + 0.5) / count) * math.cos(i * golden),
            0.5 + _DISC * math.sqrt((i + 0.5) / count) * math.sin(i * golden),
        )
        for i in ((5 * number) % count for number in range(count))
    ]


def _at(place: tuple[float, float], side_px: int) -> tuple[float, float]:
    return (round(place[0] * side_px), round(place[1] * side_px))

"""Keys of the worklist: in the canvas and in the dock, docked or floating."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeyEvent

NEXT, PREVIOUS = "N", "Shift-N"
NEXT_UNSURE, NEXT_TO_REVIEW = "Q", "Shift-Q"
AGREE, DISAGREE, UNSURE, CLEAR = "G", "W", "U", "Shift-U"
NOTE = "J"
"""None of these is napari's, whatever kind of layer is chosen; A, D and P are."""

Actions = Mapping[str, Callable[[], None]]


def action_of(event: QKeyEvent, actions: Actions) -> Callable[[], None] | None:
    """The action that a key press in the dock means, if any."""
    shift = Qt.KeyboardModifier.ShiftModifier
    if event.modifiers() not in (Qt.KeyboardModifier.NoModifier, shift):
        return None
    key = int(event.key())
    if not ord("A") <= key <= ord("Z"):  # Qt numbers the letters so
        return None
    return actions.get(("Shift-" if event.modifiers() == shift else "") + chr(key))


def hint(text: str, key: str) -> str:
    """A tooltip with its key."""
    return f"{text} ({key.replace('-', '+')})"

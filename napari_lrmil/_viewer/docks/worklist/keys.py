"""Keys of the worklist: in the canvas and in the dock, docked or floating."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeyEvent

NEXT, PREVIOUS = "N", "Shift-N"
AGREE, DISAGREE, UNSURE, CLEAR = "G", "W", "U", "Shift-U"
NOTE = "J"
"""None of these is napari's, whatever kind of layer is chosen; A, D and P are."""

Actions = Mapping[str, Callable[[], None]]


def bind_keys(viewer: Any, actions: Actions) -> Callable[[], None]:
    """Bind actions to keys of the canvas; returns how to free them.

    Parameters
    ----------
    viewer : napari.Viewer
    actions : mapping of str to callable
    """
    for key, action in actions.items():
        viewer.bind_key(key, _for_napari(action), overwrite=True)

    def free() -> None:
        for key in actions:
            viewer.bind_key(key, None)

    return free


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


def _for_napari(action: Callable[[], None]) -> Callable[[Any], None]:
    def pressed(_viewer: Any) -> None:
        action()

    return pressed

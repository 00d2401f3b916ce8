"""Letters of the docks: all may be open at once, and each letter means one thing then."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from napari.utils.key_bindings import coerce_keybinding
from napari.utils.shortcuts import default_shortcuts
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QAbstractButton, QLabel, QMenu, QWidget
from real_windows import PLUGIN, further_docks

from napari_lrmil._viewer.docks.classify.widget import CLASSIFY_KEY, COPY_KEY
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.tiles.widget import FIRST_KEY
from napari_lrmil._viewer.docks.worklist import keys
from napari_lrmil._viewer.docks.worklist.widget import worklist_dock
from napari_lrmil._viewer.workspace import open_workspace
from napari_lrmil._viewer.workspace_key import WORKSPACE_KEY

pytestmark = pytest.mark.usefixtures("alone")


def letter(text: str) -> str:
    return QKeySequence.mnemonic(text).toString()


def naparis_keys(window: QWidget) -> set[str]:
    """Keys of what stands in napari's menus."""
    actions = [action for menu in window.findChildren(QMenu) for action in menu.actions()]
    return {key.toString() for action in actions for key in action.shortcuts() if not key.isEmpty()}


def test_the_keys_of_the_window_are_not_naparis(viewer: Any, qtbot: Any) -> None:
    """Whatever kind of layer is chosen, and whatever stands in its menus; each is bound once."""
    open_workspace(viewer)
    window = dock_widget(viewer).parent().parent()
    own = [keys.NEXT, keys.PREVIOUS, keys.AGREE, keys.DISAGREE, keys.UNSURE, keys.CLEAR, keys.NOTE]
    own += [keys.NEXT_UNSURE, keys.NEXT_TO_REVIEW, CLASSIFY_KEY, COPY_KEY, FIRST_KEY, WORKSPACE_KEY]
    own += [f"Alt-{number}" for number in range(1, 7)]
    bound = {str(coerce_keybinding(key)) for key in own}
    assert len(bound) == len(own)
    assert bound <= {str(coerce_keybinding(key)) for key in viewer.keymap}
    taken = {str(binding) for bindings in default_shortcuts.values() for binding in bindings}
    assert not bound & taken
    menus = naparis_keys(window)
    assert {"Alt+S", "Alt+C"} <= menus
    assert not {QKeySequence(key).toString() for key in bound} & menus
    qtbot.wait(600)  # a window that closes while docks find their places is held by them


def test_no_letter_is_taken_twice(viewer: Any) -> None:
    docks = [dock_widget(viewer), worklist_dock(viewer)]
    docks += [viewer.window.add_plugin_dock_widget(PLUGIN, name)[1] for name in further_docks()]
    texts = [action.text() for action in docks[0].window().menuBar().actions()]
    for dock in docks:
        texts += [button.text() for button in dock.findChildren(QAbstractButton)]
        texts += [label.text() for label in dock.findChildren(QLabel) if label.buddy() is not None]
    letters = Counter(letter(text) for text in texts if letter(text))
    assert len(letters) > 20
    assert not set(letters) & naparis_keys(docks[0].window()), "napari's menus take these first"
    assert not [(key, [text for text in texts if letter(text) == key]) for key, n in letters.items() if n > 1]

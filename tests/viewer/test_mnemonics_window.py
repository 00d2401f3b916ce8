"""Letters of the docks: all may be open at once, and each letter means one thing then."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QAbstractButton, QLabel
from real_windows import PLUGIN, further_docks

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.worklist.widget import worklist_dock

pytestmark = pytest.mark.usefixtures("alone")


def letter(text: str) -> str:
    return QKeySequence.mnemonic(text).toString()


def test_no_letter_is_taken_twice(viewer: Any) -> None:
    docks = [dock_widget(viewer), worklist_dock(viewer)]
    docks += [viewer.window.add_plugin_dock_widget(PLUGIN, name)[1] for name in further_docks()]
    texts = [action.text() for action in docks[0].window().menuBar().actions()]
    for dock in docks:
        texts += [button.text() for button in dock.findChildren(QAbstractButton)]
        texts += [label.text() for label in dock.findChildren(QLabel) if label.buddy() is not None]
    letters = Counter(letter(text) for text in texts if letter(text))
    assert len(letters) > 20
    assert not [(key, [text for text in texts if letter(text) == key]) for key, n in letters.items() if n > 1]

"""Real windows: the wheel over a control that wasn't chosen scrolls the dock and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import (
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QScrollArea,
    QScrollBar,
    QWidget,
)

from napari_lrmil._viewer.docks.docked import dock_widget

pytestmark = pytest.mark.usefixtures("alone")
DOCKS = ("LRMIL: worklist", "LRMIL: tiles", "LRMIL: overview", "LRMIL: annotations", "LRMIL: export")


def turn_wheel(control: QWidget, notches: int) -> None:
    """Over the middle of a control; what it ignores goes on to its parents, which Qt does for a mouse's wheel alone."""
    middle = control.rect().center()
    event = QWheelEvent(
        QPointF(middle),
        QPointF(control.mapToGlobal(middle)),
        QPoint(),
        QPoint(0, 120 * notches),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    under: QWidget | None = control
    while under is not None and not under.isWindow():
        event.ignore()
        QApplication.sendEvent(under, event)
        if event.isAccepted():
            break
        under = under.parentWidget()


def controls(dock: QWidget) -> list[Any]:
    found = [
        each for kind in (QComboBox, QAbstractSpinBox, QAbstractSlider) for each in dock.findChildren(kind)
    ]
    return [each for each in found if not isinstance(each, QScrollBar)]


def value(control: Any) -> object:
    return control.currentIndex() if isinstance(control, QComboBox) else control.value()


def test_it_scrolls_the_dock_and_changes_nothing(viewer: Any, main_dock: Any, qtbot: Any) -> None:
    viewer.window.resize(1300, 560)  # so low that the dock scrolls
    bar = main_dock.findChild(QScrollArea).verticalScrollBar()
    qtbot.waitUntil(lambda: bar.maximum() > 200)
    channel = main_dock.evidence_section.channel
    scaling, opacity = main_dock.evidence_section.scaling, main_dock.evidence_section.opacity
    for control in (main_dock.model_section.bundles, channel, scaling, opacity):
        main_dock.findChild(QScrollArea).ensureWidgetVisible(control)
        QApplication.processEvents()
        before, place = value(control), bar.value()
        down = place < bar.maximum()
        turn_wheel(control, -1 if down else 1)
        assert value(control) == before
        assert bar.value() != place
        assert not control.hasFocus()
    main_dock.findChild(QScrollArea).ensureWidgetVisible(channel)
    QApplication.setActiveWindow(channel.window())  # without a window manager nobody else does
    channel.setFocus()
    qtbot.waitUntil(channel.hasFocus)
    turn_wheel(channel, -1)
    assert channel.currentIndex() == 1  # one that was chosen takes it


def test_no_control_of_any_dock_takes_the_focus_by_the_wheel(
    viewer: Any, small_slide: Path, qtbot: Any
) -> None:
    main = dock_widget(viewer)
    docks = [main]
    for name in DOCKS:
        dock, widget = viewer.window.add_plugin_dock_widget("napari-lrmil", name)
        dock.raise_()
        docks.append(widget)
    main.controller.open_slide(small_slide)
    n_controls = 0
    for dock in docks:
        qtbot.waitUntil(lambda dock=dock: dock.testAttribute(Qt.WidgetAttribute.WA_WState_Polished))
        for control in controls(dock):
            n_controls += 1
            assert control.focusPolicy() != Qt.FocusPolicy.WheelFocus, control
            before = value(control)
            for notches in (1, -1):
                if not control.hasFocus():
                    turn_wheel(control, notches)
                    assert value(control) == before, control
    assert n_controls >= 10

"""The mouse wheel over a dock scrolls it; a control takes the wheel only once it was clicked or tabbed to."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QComboBox, QScrollBar, QWidget

_KINDS = (QComboBox, QAbstractSpinBox, QAbstractSlider)


class WheelGuard(QObject):
    """Has the wheel pass over controls that don't have the focus, to what scrolls around them.

    Otherwise scrolling a dock changes whatever comes under the mouse on the way: the model, the slide, a scale.

    Parameters
    ----------
    dock : QWidget
        All controls in it are guarded; the guard lives as long as it.
    """

    def __init__(self, dock: QWidget) -> None:
        super().__init__(dock)
        for kind in _KINDS:
            for control in dock.findChildren(kind):
                if isinstance(control, QScrollBar):
                    continue
                if (
                    control.focusPolicy() == Qt.FocusPolicy.WheelFocus
                ):  # Qt's default: the wheel would focus it first
                    control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
                control.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Leave the wheel to the parents of a control without the focus."""
        wheel = event is not None and event.type() == QEvent.Type.Wheel
        if event is not None and wheel and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))

"""napari's notices lie over scale bar and magnification: how long they do so."""

from __future__ import annotations

from typing import Any

from napari.utils.notifications import notification_manager
from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QDialog, QWidget

LONGEST_MS = 6000
"""napari takes them away after 4 s, but only those that came while the window was active: others stay."""
_SHOWN_MS = 200
"""By then napari shows what has come."""
_NOTICE = "NapariQtNotification"
"""What Qt knows them by."""


class ShortNotices(QObject):
    """Closes notices that have been read: they are also written in the terminal. One that was opened up stays.

    Parameters
    ----------
    docked : QWidget
        A widget in a dock of the window that they lie over.
    """

    came = Signal()
    """From whatever thread it came."""

    def __init__(self, docked: QWidget) -> None:
        super().__init__(docked)
        self._docked = docked
        self.came.connect(lambda: self._after(_SHOWN_MS, self._watch))
        notification_manager.notification_ready.connect(self._came)
        self._watch()

    def close(self) -> None:
        """Leave them as they are from now on."""
        notification_manager.notification_ready.disconnect(self._came)

    def _came(self, event: Any = None) -> None:
        self.came.emit()

    def _watch(self) -> None:
        there = self._notices()
        if there:
            self._after(LONGEST_MS, lambda: self._end(there))

    def _end(self, notices: list[QDialog]) -> None:
        for notice in self._notices():
            if notice in notices and not notice.property("expanded") and not notice.underMouse():
                notice.close()

    def _notices(self) -> list[QDialog]:
        dock = self._docked.parent()
        window = dock.parent() if dock is not None else None
        dialogs = window.findChildren(QDialog) if window is not None else []
        return [each for each in dialogs if each.metaObject().className() == _NOTICE]

    def _after(self, ms: int, action: Any) -> None:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.timeout.connect(action)
        timer.timeout.connect(timer.deleteLater)
        timer.start(ms)

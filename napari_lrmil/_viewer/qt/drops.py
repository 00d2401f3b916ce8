"""Files and folders dropped on a dock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QWidget


class DropTarget(QObject):
    """Lets a widget take the drop of one local file or folder.

    Parameters
    ----------
    widget : QWidget
    wanted : callable
        Whether a path can be dropped here; others go on to the window, which opens them as napari does.
    dropped : callable
        Gets the path.
    """

    def __init__(
        self, widget: QWidget, wanted: Callable[[Path], bool], dropped: Callable[[Path], None]
    ) -> None:
        super().__init__(widget)
        self._wanted, self._dropped = wanted, dropped
        widget.setAcceptDrops(True)
        widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Take what is wanted, leave the rest."""
        kind = event.type()
        if kind not in (QEvent.Type.DragEnter, QEvent.Type.DragMove, QEvent.Type.Drop):
            return False
        paths = [Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()]
        if len(paths) != 1 or not self._wanted(paths[0]):
            event.ignore()
            return True
        event.acceptProposedAction()
        if kind == QEvent.Type.Drop:
            self._dropped(paths[0])
        return True

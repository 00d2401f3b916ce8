"""What all docks share: a canvas, a background, a column that scrolls, and an end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from threading import Event
from typing import Any, TypeVar

from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QApplication, QScrollArea, QVBoxLayout, QWidget
from superqt.utils import QSignalThrottler

from napari_lrmil._viewer.napari_canvas import NapariCanvas
from napari_lrmil._viewer.qt.background import QtBackground
from napari_lrmil._viewer.qt.wheel import WheelGuard
from napari_lrmil._viewer.workspace_key import bind_workspace_key

_SOON_MS = 33


class Dock(QWidget):
    """A dock that scrolls, and that ends when it is closed or the application quits.

    A subclass fills `column`, and puts into `ending` what is to be done at the end, the last first.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The name of the parameter is how napari knows to pass it, to subclasses too.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.background = QtBackground()
        self.canvas = NapariCanvas(napari_viewer)
        self.ending = ExitStack()
        self.quitting = Event()
        """Set where the application quits, which ends its loop."""
        self.ending.callback(self.canvas.close)
        bind_workspace_key(napari_viewer)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(self._page())
        self.destroyed.connect(partial(_close, self.ending))
        QApplication.instance().aboutToQuit.connect(self._application_quits)

    def closing(self) -> None:
        """The dock was closed, and is about to end; the viewer stays."""

    def soon(self, show: Callable[[], None]) -> Callable[[], None]:
        """Return what shows something soon, once for the many events that a movement or a slider sends."""
        throttler = QSignalThrottler(QSignalThrottler.EmissionPolicy.Trailing, self)
        throttler.setTimeout(_SOON_MS)
        throttler.triggered.connect(show)
        self.ending.callback(throttler.cancel)
        return throttler.throttle

    def event(self, event: QEvent) -> bool:
        """End when the dock is closed: napari takes the widget out of it then, and drops it."""
        if event.type() == QEvent.Type.Polish:  # once, before it is first shown, when all of it is there
            WheelGuard(self)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.closing()
            self.ending.close()
            self.deleteLater()
        return bool(super().event(event))

    def _application_quits(self) -> None:
        self.quitting.set()
        self.ending.close()

    def _page(self) -> QWidget:
        """All that is seen of the dock: `column`, which scrolls."""
        inner = QWidget()
        self.column = QVBoxLayout(inner)
        self.column.setContentsMargins(8, 4, 8, 8)
        self.column.setSpacing(6)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setWidget(inner)
        return scroll


D = TypeVar("D", bound=Dock)


def find_docked(viewer: Any, kind: type[D]) -> D | None:
    """The dock of this kind, under whatever name it was docked; None where it isn't.

    Parameters
    ----------
    viewer : napari.Viewer
    kind : type
    """
    return next((each for each in viewer.window.dock_widgets.values() if isinstance(each, kind)), None)


def docked(viewer: Any, kind: type[D], display_name: str, *, tabify: bool = False) -> D:
    """The dock of this kind; where it isn't there yet, docked on the right as its entry in the menu would.

    Parameters
    ----------
    viewer : napari.Viewer
    kind : type
    display_name : str
        Of the manifest.
    tabify : bool
        As a tab over what stands there.
    """
    found = find_docked(viewer, kind)
    if found is None:
        found = kind(viewer)
        # napari's name for it, by which its entry in the menu is ticked and hides it.
        viewer.window.add_dock_widget(found, name=f"{display_name} (LRMIL)", area="right", tabify=tabify)
    return found


def _close(ending: ExitStack, *_: object) -> None:
    # A function of its own, not a method: Qt calls it when the widget is already gone.
    ending.close()

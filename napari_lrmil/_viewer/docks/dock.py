"""What all docks share: a canvas, a background, an end; and how those beside the main one find its controller."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import (
    QApplication,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil._viewer.napari_canvas import NapariCanvas
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.background import QtBackground
from napari_lrmil._viewer.window import Change

if TYPE_CHECKING:
    from napari_lrmil._viewer.window import Controller

_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX = 260, 200


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
        self.ending.callback(self.canvas.close)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(self._page())
        self.destroyed.connect(partial(_close, self.ending))
        QApplication.instance().aboutToQuit.connect(self._application_quits)

    def closing(self) -> None:
        """The dock was closed, and is about to end; the viewer stays."""

    def event(self, event: QEvent) -> bool:
        """End when the dock is closed: napari takes the widget out of it then, and drops it."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.closing()
            self.ending.close()
            self.deleteLater()
        return bool(super().event(event))

    def _application_quits(self) -> None:
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


class Presenter(Protocol):
    """What happens in a dock that follows the main dock's controller."""

    def attach(self, controller: Controller) -> None:
        """Follow this controller from now on; it may be another one than before."""
        ...

    def refresh(self, change: Change) -> None:
        """Something of the controller has changed; after `attach`, all of it."""
        ...


class DockedWidget(Dock):
    """A dock whose presenter follows the main dock's controller.

    A subclass calls `begin` last.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.controller: Controller | None = None
        self.setMinimumSize(_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX)
        # Otherwise napari puts a stretch under it, which takes half the dock's height.
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)

    def begin(self, presenter: Presenter) -> None:
        """Have the presenter follow the controller, and tidy up at the end whichever way it comes."""
        self._presenter = presenter
        self.ending.callback(self.background.shutdown)
        self.ending.callback(self._unfollow)
        self.link()

    def link(self) -> None:
        """Follow the controller of the main dock, which is docked again where it was closed."""
        from napari_lrmil._viewer.session import dock_widget  # it knows docks

        main = dock_widget(self.viewer)
        main.destroyed.connect(self._lost)
        self.controller = main.controller
        main.controller.changed.connect(self._presenter.refresh)
        self._pages.setCurrentIndex(0)
        self._presenter.attach(main.controller)
        self._presenter.refresh(Change.ALL)

    def _unfollow(self) -> None:
        if self.controller is not None:
            self.controller.changed.disconnect(self._presenter.refresh, missing_ok=True)

    def _lost(self, *_: object) -> None:
        self.controller = None
        self._pages.setCurrentIndex(1)

    def _page(self) -> QWidget:
        self._pages = QStackedWidget()
        self._pages.addWidget(super()._page())
        self._pages.addWidget(self._lost_page())
        return self._pages

    def _lost_page(self) -> QWidget:
        page = QWidget()
        column = QVBoxLayout(page)
        column.addWidget(
            parts.wrapped_label(
                "This panel works with the panel “LRMIL: classify slide”, which was closed.",
                style=parts.HINT_STYLE,
            )
        )
        self.open_again = QPushButton("Open it again")
        self.open_again.setToolTip("Dock the panel “LRMIL: classify slide” again")
        self.open_again.setAccessibleName("Open the panel “LRMIL: classify slide” again")
        self.open_again.clicked.connect(lambda: self.link())
        column.addWidget(self.open_again)
        column.addStretch(1)
        return page


def _close(ending: ExitStack, *_: object) -> None:
    # A function of its own, not a method: Qt calls it when the widget is already gone.
    ending.close()

"""The docks beside the main one: they find its controller and follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qtpy.QtWidgets import QPushButton, QSizePolicy, QStackedWidget, QVBoxLayout, QWidget

from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.dock import Dock, docked
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.window import Change

if TYPE_CHECKING:
    from napari_lrmil._viewer.session_keeper import SessionKeeper
    from napari_lrmil._viewer.window import Controller

MAIN_DOCK_NAME = "LRMIL: classify slide"
_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX = 260, 200


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
        self.session: SessionKeeper | None = None
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
        main = dock_widget(self.viewer)
        main.destroyed.connect(self._lost)
        self.controller, self.session = main.controller, main.session
        main.controller.changed.connect(self._presenter.refresh)
        self._pages.setCurrentIndex(0)
        self._presenter.attach(main.controller)
        self._presenter.refresh(Change.ALL)

    def _unfollow(self) -> None:
        if self.controller is not None:
            self.controller.changed.disconnect(self._presenter.refresh, missing_ok=True)

    def _lost(self, *_: object) -> None:
        self.controller = self.session = None
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


def dock_widget(viewer: Any) -> ClassifyWidget:
    """Return the main dock of a viewer; it is docked on the right where it isn't there yet.

    Parameters
    ----------
    viewer : napari.Viewer
    """
    return docked(viewer, ClassifyWidget, MAIN_DOCK_NAME)

"""The workspace: all docks at once, as tabs at fixed places. One command of the menu, and one key."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QTabBar, QWidget

from napari_lrmil._viewer.docks.annotations.widget import AnnotationsWidget
from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.dock import Dock, docked, find_docked
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.export.widget import ExportWidget
from napari_lrmil._viewer.docks.overview.widget import OverviewWidget
from napari_lrmil._viewer.docks.tiles.widget import TilesWidget
from napari_lrmil._viewer.docks.worklist.widget import WorklistWidget
from napari_lrmil._viewer.kept_session import Found
from napari_lrmil.errors import LRMILError

_FRONTS_MS = 300
"""After docks have come to the front or gone, when it is looked which stand there."""


class Place(NamedTuple):
    """A dock and where it stands: `name` is that of the manifest without "LRMIL: ", `tab` what its tab says."""

    kind: type[Dock]
    name: str
    tab: str


LEFT = (Place(WorklistWidget, "worklist", "worklist"), Place(OverviewWidget, "overview", "overview"))
RIGHT = (
    Place(ClassifyWidget, "classify slide", "classify"),  # as short as four tabs beside each other take
    Place(TilesWidget, "tiles", "tiles"),
    Place(AnnotationsWidget, "annotations", "annotations"),
    Place(ExportWidget, "export", "export"),
)
_CONTROLS, _LIST = "layer controls", "layer list"
"""What napari calls its own docks."""


def open_workspace(viewer: Any = None) -> None:
    """Open all docks, and put those that are open in their places: a command of the menu.

    Parameters
    ----------
    viewer : napari.Viewer, optional
        By default the one of the window that was active last.

    Raises
    ------
    LRMILError
        Where there is no window.
    """
    if viewer is None:
        from napari.viewer import current_viewer

        viewer = current_viewer()
    if viewer is None:
        raise LRMILError("the workspace opens in napari's window; there is none")
    new = find_docked(viewer, WorklistWidget) is None
    main = dock_widget(viewer)  # the others follow its controller
    window = _dock_of(main).parent()
    if not isinstance(window, QMainWindow):
        raise LRMILError("the panel “LRMIL: classify slide” isn't in napari's window; close it first")
    size, whole = window.size(), _seen_whole(main)
    sides = {
        Qt.DockWidgetArea.LeftDockWidgetArea: [_open(viewer, place) for place in LEFT],
        Qt.DockWidgetArea.RightDockWidgetArea: [_open(viewer, place) for place in RIGHT],
    }
    for area, docks in sides.items():
        _stack(window, area, docks)
    for number, place in enumerate((*LEFT, *RIGHT), start=1):
        viewer.bind_key(f"Alt-{number}", _to_front(place.kind), overwrite=True)
    timer = QTimer(main)  # napari hasn't finished docking yet, nor the worklist with finding its place
    timer.setSingleShot(True)
    timer.timeout.connect(timer.deleteLater)
    timer.timeout.connect(lambda: _settle(viewer, window, size))
    if whole:
        timer.timeout.connect(viewer.reset_view)
    if new:
        timer.timeout.connect(lambda: _go_on(viewer, main))
    timer.start(0)


def _go_on(viewer: Any, main: ClassifyWidget) -> None:
    """Have the workspace as it was left; a slide that is open already stays, with its model."""
    fronts = QTimer(main)
    fronts.setSingleShot(True)
    fronts.setInterval(_FRONTS_MS)
    fronts.timeout.connect(lambda: _note_fronts(viewer, main))
    docks = {place.name: dock for place, dock in _docks(viewer)}
    for name in main.session.recent.fronts:
        if name in docks:
            docks[name].raise_()
    for dock in docks.values():
        dock.visibilityChanged.connect(lambda _: fronts.start())
    if not main.controller.slides:
        main.session.look(partial(_resume, viewer, main))


def _resume(viewer: Any, main: ClassifyWidget, found: Found) -> None:
    controller, worklist = main.controller, find_docked(viewer, WorklistWidget)
    if controller.slides or worklist is None or worklist.presenter.worklist is not None:
        return  # the user was faster
    if found.model and found.model != controller.bundle_path:
        controller.load_bundle(found.model)
    if found.slide is not None and found.view is not None:
        main.session.show_view_of(found.slide, found.view)
    note, deeper = " ".join(found.notes), main.session.recent.deeper
    if found.listed is not None:
        worklist.presenter.open_list(found.listed, recursive=deeper, then_open=found.slide, note=note)
    elif found.slide is not None:
        controller.open_slide(found.slide)
    if found.listed is None and note:
        worklist.presenter.tell(note)


def _note_fronts(viewer: Any, main: ClassifyWidget) -> None:
    fronts = tuple(place.name for place, dock in _docks(viewer) if not dock.visibleRegion().isEmpty())
    if fronts:  # none of a window that is closing
        main.session.note_fronts(fronts)


def _docks(viewer: Any) -> list[tuple[Place, QDockWidget]]:
    found = [(place, find_docked(viewer, place.kind)) for place in (*LEFT, *RIGHT)]
    return [(place, _dock_of(widget)) for place, widget in found if widget is not None]


def _open(viewer: Any, place: Place) -> QDockWidget:
    # As a tab: stacked they would make the window higher, and it would stay so.
    dock = _dock_of(docked(viewer, place.kind, f"LRMIL: {place.name}", tabify=True))
    dock.setWindowTitle(place.tab)
    return dock


def _to_front(kind: type[Dock]) -> Callable[[Any], None]:
    """What the key of a dock does: show it, and have further keys go to it."""

    def pressed(viewer: Any) -> None:  # napari asks for its name: no partial
        widget = find_docked(viewer, kind)
        if widget is None:  # closed: the key of the workspace brings it back
            return
        dock = _dock_of(widget)
        dock.show()
        dock.raise_()
        controls = (each for each in widget.findChildren(QWidget) if each.isVisible() and each.isEnabled())
        first = next((each for each in controls if each.focusPolicy() & Qt.FocusPolicy.TabFocus), None)
        if first is not None:
            first.setFocus(Qt.FocusReason.ShortcutFocusReason)

    return pressed


def _seen_whole(main: ClassifyWidget) -> bool:
    """Whether the current slide is seen from edge to edge: then it shall be so in the room that is left, too."""
    slide, field = main.controller.slide, main.canvas.field
    if slide is None:
        return False
    (width, height), (mpp_x, mpp_y) = slide.level_dimensions_xy[0], slide.mpp_xy if slide.has_mpp else (1, 1)
    return field.height >= height * mpp_y and field.width >= width * mpp_x


def _dock_of(widget: Dock) -> QDockWidget:
    dock = widget.parent()
    assert isinstance(dock, QDockWidget)
    return dock


def _stack(window: QMainWindow, area: Qt.DockWidgetArea, docks: list[QDockWidget]) -> None:
    """Put docks behind each other on one side, the first in front; on the left in the place of napari's layer controls.

    These take more width than any of ours, also behind a tab. Window > Layer Controls brings them back, as a tab.
    """
    first, *others = docks
    for dock in docks:
        dock.setFloating(False)
    controls = window.findChild(QDockWidget, _CONTROLS)
    if controls is not None and window.dockWidgetArea(controls) == area:
        window.tabifyDockWidget(controls, first)
        controls.hide()
    elif window.dockWidgetArea(first) != area:
        window.addDockWidget(area, first)
    for before, dock in zip(docks, others, strict=False):
        window.tabifyDockWidget(before, dock)
    for dock in docks:
        dock.show()
    first.raise_()


def _settle(viewer: Any, window: QMainWindow, size: QSize) -> None:
    """Leave the room to the canvas: both sides as narrow, and napari's layer list as low, as they can be."""
    found = [find_docked(viewer, places[0].kind) for places in (LEFT, RIGHT)]
    fronts = [_dock_of(widget) for widget in found if widget is not None]
    if len(fronts) < len(found):  # closed meanwhile
        return
    left, right = fronts
    window.resizeDocks([left, right], [1, 1], Qt.Orientation.Horizontal)
    layers = window.findChild(QDockWidget, _LIST)
    if layers is not None and window.dockWidgetArea(layers) == window.dockWidgetArea(left):
        window.resizeDocks([left, layers], [window.height(), 1], Qt.Orientation.Vertical)
    for bar in window.findChildren(QTabBar, options=Qt.FindChildOption.FindDirectChildrenOnly):
        if not bar.count():  # Qt forgets one where a group of tabs moves to the other side
            bar.hide()
    if not (window.isMaximized() or window.isFullScreen()):
        window.resize(size)
    left.raise_()
    right.raise_()

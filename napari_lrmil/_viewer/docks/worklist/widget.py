"""The dock "LRMIL: worklist"."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ParamSpec

from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QKeyEvent, QShowEvent
from qtpy.QtWidgets import QApplication, QDockWidget, QFileDialog, QMainWindow, QMessageBox, QSizePolicy
from superqt.utils import QSignalThrottler

from napari_lrmil._viewer.docks.dock import docked
from napari_lrmil._viewer.docks.docked import DockedWidget
from napari_lrmil._viewer.docks.worklist import keys
from napari_lrmil._viewer.docks.worklist.panel import ListState, Show, WorklistPanel
from napari_lrmil._viewer.docks.worklist.presenter import WorklistPresenter
from napari_lrmil._viewer.docks.worklist.sections import (
    BatchSection,
    FilterSection,
    SourceSection,
    TableFileSection,
    VerdictSection,
)
from napari_lrmil._viewer.docks.worklist.start import StartPage
from napari_lrmil._viewer.docks.worklist.table import WorklistModel, WorklistTable
from napari_lrmil._viewer.docks.worklist.thumbnails import Thumbnail, Thumbnails
from napari_lrmil._viewer.kept_session import Session
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.drops import DropTarget
from napari_lrmil._viewer.reader import prefer_this_reader, this_reader_is_preferred
from napari_lrmil._viewer.settings import change_setting, read_settings
from napari_lrmil.memory import collect_only_new_objects
from napari_lrmil.model.naming import is_bundle
from napari_lrmil.worklist.listing import TABLE_SUFFIXES

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo

P = ParamSpec("P")

DOCK_NAME = "LRMIL: worklist"
_CONTROLS = "layer controls"
"""What napari calls the dock that a reviewer needs least."""
_REFRESH_MS = 25
_LEAST_TABLE_PX = 132
_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX = 312, 300


class WorklistWidget(DockedWidget):
    """A folder of slides to go through: what the model says of each, and what the reviewer says."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("lrmil_worklist")
        self.setMinimumSize(_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX)
        self._show_soon = QSignalThrottler(QSignalThrottler.EmissionPolicy.Trailing, self)
        self._show_soon.setTimeout(_REFRESH_MS)
        self._show_soon.triggered.connect(self.show_now)
        self.presenter = WorklistPresenter(self.background, reviewer=lambda: read_settings().reviewer)
        self.presenter.changed.connect(self._show_soon.throttle)
        self.thumbnails = Thumbnails(self.background, self._thumb_loaded, self._info)
        self._open_path: Path | None = None
        self._placed = False
        self._slides_came = False
        self._lay_out()
        self._connect()
        actions = {
            keys.NEXT: lambda: self._act(self.presenter.step, 1),
            keys.PREVIOUS: lambda: self._act(self.presenter.step, -1),
            keys.NEXT_UNSURE: lambda: self._act(self.presenter.step, 1, which=Show.DOUBTFUL),
            keys.NEXT_TO_REVIEW: lambda: self._act(self.presenter.step, 1, which=Show.TO_REVIEW),
            keys.AGREE: lambda: self._act(self.presenter.judge, "agree"),
            keys.DISAGREE: lambda: self._act(self.presenter.judge, "disagree"),
            keys.UNSURE: lambda: self._act(self.presenter.judge, "unsure"),
            keys.CLEAR: lambda: self._act(self.presenter.judge, None),
            keys.NOTE: self._to_note,
        }
        self._actions = actions
        for key, action in actions.items():
            self.canvas.bind_key(key, action)
        self.ending.callback(_end, self.presenter, self.quitting)
        self.begin(self.presenter)
        self.show_now()

    def show_now(self) -> None:
        """Show the presenter's panel without waiting for the next tick."""
        self._show_soon.cancel()
        panel = self.presenter.panel()
        has_list = panel.state is ListState.LISTED or bool(panel.folder)
        for section in (self.source, self.filter, self.verdict, self.batch):
            section.show_panel(panel)
        self.table_file.show_panel(panel.table_file)
        for widget in (self.filter, self.table, self.verdict, self.batch, self.table_file):
            widget.setVisible(has_list)
        self._show_start(panel)
        self._show_rows(panel)
        parts.show_text(self.hint, "Listing the slides …" if panel.state is ListState.LISTING else panel.hint)
        parts.show_text(self.error, panel.error)

    def showEvent(self, event: QShowEvent) -> None:
        """Find a place when first shown."""
        super().showEvent(event)
        if not self._placed:
            self._placed = True
            timer = QTimer(self)  # napari hasn't finished docking yet
            timer.setSingleShot(True)
            timer.timeout.connect(self._place)
            timer.start(0)

    def _place(self) -> None:
        """Left, and tall, over the layer controls: napari docks at the right, where the result needs the room."""
        dock, window = self.parent(), self.window()
        if not (isinstance(dock, QDockWidget) and isinstance(window, QMainWindow)):
            return
        left = Qt.DockWidgetArea.LeftDockWidgetArea
        if window.dockWidgetArea(dock) == Qt.DockWidgetArea.RightDockWidgetArea:
            window.addDockWidget(left, dock)
        docks = [other for other in window.findChildren(QDockWidget) if window.dockWidgetArea(other) == left]
        beside = [other for other in docks if other is not dock and other.isVisible()]
        controls = [other for other in beside if other.objectName() == _CONTROLS]
        if dock in docks and controls:
            window.tabifyDockWidget(controls[0], dock)
            dock.raise_()
            beside.remove(controls[0])
        heights = [window.height()] + [1] * len(beside)  # the others get their least
        window.resizeDocks([dock, *beside], heights, Qt.Orientation.Vertical)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """The dock's keys, wherever in it the focus is."""
        action = keys.action_of(event, self._actions)
        if action is None:
            super().keyPressEvent(event)
            return
        action()
        event.accept()

    def _lay_out(self) -> None:
        self.source, self.filter = SourceSection(), FilterSection()
        self.verdict, self.batch, self.table_file = VerdictSection(), BatchSection(), TableFileSection()
        self.start = StartPage()
        self.hint = parts.wrapped_label(style=parts.HINT_STYLE)
        self.error = parts.wrapped_label(style=parts.ERROR_STYLE)
        self.model = WorklistModel()
        self.table = WorklistTable(self.model)
        self.table.setMinimumHeight(_LEAST_TABLE_PX)
        self.table.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        for widget in (self.source, self.error, self.filter):
            self.column.addWidget(widget)
        self.column.addWidget(self.table, 1)
        for widget in (self.hint, self.start, self.verdict, self.batch, self.table_file):
            self.column.addWidget(widget)
        self.column.addStretch(0)

    def _connect(self) -> None:
        presenter = self.presenter
        self.source.folder_clicked.connect(self._browse_folder)
        self.source.table_clicked.connect(self._browse_table)
        self.filter.order_chosen.connect(lambda order: self._act(presenter.arrange, order=order))
        self.filter.shown_chosen.connect(lambda which: self._act(presenter.arrange, which=which))
        self.filter.text_typed.connect(lambda text: self._act(presenter.arrange, text=text))
        self.table.opened.connect(lambda path: self._act(presenter.open_slide, path))
        self.table.in_sight.connect(lambda rows: self.thumbnails.want(self.model.missing_thumbs(rows)))
        self.verdict.judged.connect(lambda verdict: self._act(presenter.judge, verdict))
        self.verdict.stepped.connect(lambda step: self._act(presenter.step, step))
        self.verdict.note.written.connect(presenter.write_note)
        self.verdict.note.left.connect(lambda: self.table.setFocus(Qt.FocusReason.OtherFocusReason))
        self.batch.start_clicked.connect(lambda: self._act(presenter.classify_all))
        self.batch.cancel_clicked.connect(lambda: self._act(presenter.cancel))
        self.table_file.save_clicked.connect(self._save_table)
        self.start.reader.answered.connect(self._reader_answered)
        self.start.recent.list_chosen.connect(lambda path: self._act(presenter.open_list, Path(path)))
        self.start.recent.slide_chosen.connect(self._open_recent_slide)
        self.start.recent.forget_clicked.connect(self._forget_recent)
        presenter.listed.connect(self._listed)
        DropTarget(self, _can_drop, presenter.dropped)

    def _act(self, action: Callable[P, None], *args: P.args, **options: P.kwargs) -> None:
        """Do something, and show what came of it without waiting for the next tick."""
        action(*args, **options)
        self.show_now()

    def _show_rows(self, panel: WorklistPanel) -> None:
        selected = self.table.currentIndex()
        kept = self.model.items[selected.row()].path if selected.isValid() else None
        self.model.show_items(panel.rows, panel.open_path)
        if panel.rows and not self._slides_came:  # before slides come: theirs must be collected
            self._slides_came = True
            self.ending.enter_context(collect_only_new_objects())
        if panel.open_path != self._open_path:
            self._open_path = panel.open_path
            self.table.select_path(panel.open_path)
        elif kept is not None and not self.table.currentIndex().isValid():  # the filter has changed
            self.table.select_path(kept)

    def _show_start(self, panel: WorklistPanel) -> None:
        self.start.setVisible(panel.state is ListState.EMPTY)
        if panel.state is ListState.EMPTY:
            ask = read_settings().offer_reader and not this_reader_is_preferred()
            self.start.reader.setVisible(ask)
            recent = self.session.recent if self.session is not None else Session()
            self.start.recent.show_paths(recent.recent_lists, recent.recent_slides)

    def _reader_answered(self, always: bool, shared_too: bool) -> None:
        change_setting("offer_reader", False)
        if always:
            prefer_this_reader(shared_too=shared_too)
        self.show_now()

    def _open_recent_slide(self, path: str) -> None:
        if self.controller is not None:
            self.controller.open_slide(path)

    def _forget_recent(self) -> None:
        if self.session is not None:
            self._act(self.session.forget)

    def _listed(self, path: Path, deeper: bool) -> None:
        if self.session is not None:
            self.session.note_list(path, deeper=deeper)

    def _to_note(self) -> None:
        if self.verdict.note.isEnabled():
            self.verdict.note.setFocus(Qt.FocusReason.ShortcutFocusReason)

    def _thumb_loaded(self, thumb: Thumbnail) -> None:
        self.model.set_thumb(thumb.path, thumb.pixels)
        if thumb.summary is not None:
            self.presenter.take_results([(thumb.path, thumb.summary)])

    def _info(self) -> BundleInfo | None:
        bundle = self.controller.bundle if self.controller is not None else None
        return bundle.info if bundle is not None else None

    def _browse_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Choose a folder of slides")
        if path:
            self._act(self.presenter.open_list, Path(path), recursive=self.source.deeper.isChecked())

    def _browse_table(self) -> None:
        kinds = " ".join(f"*{suffix}" for suffix in sorted(TABLE_SUFFIXES))
        path, _ = QFileDialog.getOpenFileName(
            self, "Choose a slide table: a CSV file with the column 'path'", "", f"Tables ({kinds})"
        )
        if path:
            self._act(self.presenter.open_list, Path(path))

    def _save_table(self) -> None:
        chosen, _ = QFileDialog.getSaveFileName(
            self, "Save the list as a table", str(self.presenter.table_path), "CSV (*.csv)"
        )
        if chosen:
            keep = self.table_file.identifiers.isChecked()
            self._act(self.presenter.save_table, Path(chosen), show_identifiers=keep)


def worklist_dock(viewer: Any) -> WorklistWidget:
    """The worklist dock of a viewer; docked where it isn't there yet.

    Parameters
    ----------
    viewer : napari.Viewer
    """
    return docked(viewer, WorklistWidget, DOCK_NAME)


def _end(presenter: WorklistPresenter, quitting: Event) -> None:
    report = presenter.shutdown()
    if not report:
        return
    # The dock can say nothing any more, and a script that closes its viewer may have nobody to look at a message.
    print(f"LRMIL: {report}", file=sys.stderr, flush=True)
    show = partial(QMessageBox.warning, None, "LRMIL: verdicts", report)
    if quitting.is_set():
        show()
    else:
        _once_the_window_is_gone(show)


def _once_the_window_is_gone(show: Callable[[], object]) -> None:
    """A message has a loop of its own, which must not turn while Qt takes a window down around it."""
    application, shown = QApplication.instance(), Event()

    def once() -> None:
        if not shown.is_set():
            shown.set()
            application.aboutToQuit.disconnect(once)
            show()

    application.aboutToQuit.connect(once)  # where that was the last window, the loop doesn't turn any more
    QTimer.singleShot(0, once)


def _can_drop(path: Path) -> bool:
    return path.is_dir() or is_bundle(path) or path.suffix.lower() in TABLE_SUFFIXES

"""The rows as a Qt model, and the view of them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QAbstractTableModel, QModelIndex, QSize, Qt, Signal
from qtpy.QtGui import QColor, QFont, QKeyEvent, QPainter, QPixmap, QResizeEvent, QShowEvent
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView
from superqt.utils import QSignalDebouncer

from napari_lrmil._viewer.docks.worklist.panel import HEADINGS, cells, tool_tip
from napari_lrmil._viewer.qt import parts
from napari_lrmil.worklist import WorklistItem

THUMB_PX = 54
ROW_PX = THUMB_PX + 8
_MAX_THUMBS = 512
_SETTLE_MS = 40
_VERDICT_PX = 96
_NONE = QModelIndex()


class WorklistModel(QAbstractTableModel):
    """Rows of the worklist."""

    def __init__(self) -> None:
        super().__init__()
        self.items: tuple[WorklistItem, ...] = ()
        self._row_of: dict[Path, int] = {}
        self._open: Path | None = None
        self._thumbs: OrderedDict[Path, QPixmap | None] = OrderedDict()
        self._blank: QPixmap | None = None

    def rowCount(self, parent: QModelIndex = _NONE) -> int:
        """Slides that are listed."""
        return 0 if parent.isValid() else len(self.items)

    def columnCount(self, parent: QModelIndex = _NONE) -> int:
        """Slide and verdict."""
        return 0 if parent.isValid() else len(HEADINGS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = 0) -> str | None:
        """Headings of the columns."""
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return HEADINGS[section]
        return None

    def data(self, index: QModelIndex, role: int = 0) -> str | QPixmap | QFont | None:
        """What a cell shows."""
        item, column = self.items[index.row()], index.column()
        if role == Qt.ItemDataRole.DisplayRole:
            return cells(item)[column]
        if role == Qt.ItemDataRole.DecorationRole and column == 0:
            return self._thumbs.get(item.path) or self._placeholder()
        if role in (Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleDescriptionRole):
            return tool_tip(item)
        if role == Qt.ItemDataRole.FontRole and item.path == self._open:
            font = QFont()
            font.setBold(True)
            return font
        return None

    def row_of(self, path: Path | None) -> int:
        """Of a slide; -1 where it isn't listed."""
        return -1 if path is None else self._row_of.get(path, -1)

    def show_items(self, items: tuple[WorklistItem, ...], open_path: Path | None) -> None:
        """Show these; rows that moved keep what is selected, and only rows that changed are drawn again."""
        before, self._open = self._open, open_path
        if items is not self.items:
            self._take(items)
        if before != open_path:
            for row in (self.row_of(before), self.row_of(open_path)):
                if row >= 0:
                    self._redraw(row)

    def missing_thumbs(self, rows: range) -> list[WorklistItem]:
        """Items of these rows that have none yet."""
        return [self.items[row] for row in rows if self.items[row].path not in self._thumbs]

    def set_thumb(self, path: Path, pixels: NDArray[np.uint8] | None) -> None:
        """Show a slide's picture, (height, width, 3); None: it has none."""
        self._thumbs[path] = None if pixels is None else _stamp(pixels)
        while len(self._thumbs) > _MAX_THUMBS:
            self._thumbs.popitem(last=False)
        row = self.row_of(path)
        if row >= 0:
            self._redraw(row)

    def _take(self, items: tuple[WorklistItem, ...]) -> None:
        if [item.path for item in items] == [item.path for item in self.items]:
            changed = [row for row, item in enumerate(items) if item != self.items[row]]
            self.items = items
            for row in changed:
                self._redraw(row)
            return
        row_of = {item.path: row for row, item in enumerate(items)}
        if row_of.keys() != self._row_of.keys():
            self.beginResetModel()
            self.items, self._row_of = items, row_of
            self.endResetModel()
            return
        self.layoutAboutToBeChanged.emit()
        old = self.persistentIndexList()
        new = [self.index(row_of[self.items[at.row()].path], at.column()) for at in old]
        self.items, self._row_of = items, row_of
        self.changePersistentIndexList(old, new)
        self.layoutChanged.emit()

    def _redraw(self, row: int) -> None:
        self.dataChanged.emit(self.index(row, 0), self.index(row, len(HEADINGS) - 1))

    def _placeholder(self) -> QPixmap:
        if self._blank is None:
            self._blank = QPixmap(THUMB_PX, THUMB_PX)
            self._blank.fill(QColor(128, 128, 128, 50))
        return self._blank


def _stamp(pixels: NDArray[np.uint8]) -> QPixmap:
    """The picture in the middle of a square, so that all names start at the same place."""
    small = parts.to_image(pixels).scaled(
        THUMB_PX,
        THUMB_PX,
        Qt.AspectRatioMode.KeepAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )
    stamp = QPixmap(THUMB_PX, THUMB_PX)
    stamp.fill(QColor(0, 0, 0, 0))
    painter = QPainter(stamp)
    painter.drawImage((THUMB_PX - small.width()) // 2, (THUMB_PX - small.height()) // 2, small)
    painter.end()
    return stamp


class WorklistTable(QTableView):
    """The rows; only those in sight are drawn and get thumbnails.

    Signals
    -------
    opened : Path
        Double click, Return or Enter.
    in_sight : range
        Rows that are seen, once scrolling has settled.
    """

    opened = Signal(object)
    in_sight = Signal(object)

    def __init__(self, model: WorklistModel) -> None:
        super().__init__()
        self.setModel(model)
        self._model = model
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setShowGrid(False)
        self.setWordWrap(True)
        self.setTabKeyNavigation(False)
        self.setIconSize(QSize(THUMB_PX, THUMB_PX))
        self.setAccessibleName("Worklist")
        self.setToolTip("Slides. Double click or Return opens one; N and Shift+N go to the next and back.")
        rows = self.verticalHeader()
        rows.hide()
        rows.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        rows.setDefaultSectionSize(ROW_PX)
        columns = self.horizontalHeader()
        columns.setSectionsClickable(False)
        columns.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        columns.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.setColumnWidth(1, _VERDICT_PX)
        self._settled = QSignalDebouncer(parent=self)
        self._settled.setTimeout(_SETTLE_MS)
        self._settled.triggered.connect(self._say_what_is_in_sight)
        self.verticalScrollBar().valueChanged.connect(self._moved)
        for signal in (model.modelReset, model.layoutChanged):
            signal.connect(self._moved)
        self.doubleClicked.connect(lambda index: self._open(index.row()))

    def select_path(self, path: Path | None) -> None:
        """Select a slide's row and bring it into sight."""
        row = self._model.row_of(path)
        if row >= 0:
            index = self._model.index(row, 0)
            self.setCurrentIndex(index)
            self.scrollTo(index)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Return opens; letters are keys of the dock, not a search."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self._open(self.currentIndex().row())
        elif event.text().isprintable() and event.text():
            event.ignore()
        else:
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """More rows may be in sight; the chosen one stays so."""
        super().resizeEvent(event)
        if self.currentIndex().isValid():
            self.scrollTo(self.currentIndex())
        self._moved()

    def showEvent(self, event: QShowEvent) -> None:
        """Rows come into sight."""
        super().showEvent(event)
        self._moved()

    def rows_in_sight(self) -> range:
        """First to last row that is seen at least in part."""
        count = len(self._model.items)
        top, bottom = self.rowAt(0), self.rowAt(self.viewport().height() - 1)
        if not count or top < 0:
            return range(0)
        return range(top, (bottom if bottom >= 0 else count - 1) + 1)

    def _open(self, row: int) -> None:
        if 0 <= row < len(self._model.items):
            self.opened.emit(self._model.items[row].path)

    def _moved(self, *_: object) -> None:
        self._settled.throttle()

    def _say_what_is_in_sight(self) -> None:
        if self.isVisible():
            self.in_sight.emit(self.rows_in_sight())

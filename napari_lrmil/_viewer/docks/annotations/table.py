"""The list of regions: name and class can be edited in place."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QModelIndex, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QKeyEvent, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHeaderView,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_lrmil._viewer.docks.annotations.classes import RGB
from napari_lrmil._viewer.docks.annotations.wording import RegionRow

NAME, CLASS, EXTENT = range(3)
_ID_ROLE = Qt.ItemDataRole.UserRole


class RegionTable(QTableWidget):
    """One row a region."""

    renamed = Signal(str, str)
    classed = Signal(str, str)
    jump_wanted = Signal(str)
    delete_wanted = Signal()

    def __init__(self) -> None:
        super().__init__(0, 3)
        self._shown: tuple[RegionRow, ...] = ()
        self.classes: tuple[str, ...] = ()
        self.setHorizontalHeaderLabels(["Name", "Class", "Area"])
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(
            QAbstractItemView.EditTrigger.EditKeyPressed | QAbstractItemView.EditTrigger.SelectedClicked
        )
        self.verticalHeader().hide()
        header = self.horizontalHeader()
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(CLASS, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(EXTENT, QHeaderView.ResizeMode.ResizeToContents)
        self.setTabKeyNavigation(False)  # Tab goes on to the buttons
        self.setItemDelegateForColumn(CLASS, _ClassDelegate(self))
        self.setMinimumHeight(160)
        self.setAccessibleName("Regions")
        self.setToolTip("Enter or double click: go there. F2: rename, or change the class. Delete: delete.")
        self.itemChanged.connect(self._item_changed)
        self.itemDoubleClicked.connect(lambda item: self.jump_wanted.emit(item.data(_ID_ROLE)))

    def show_rows(self, rows: tuple[RegionRow, ...], classes: tuple[str, ...]) -> None:
        """Show these; what was selected stays so."""
        self.classes = classes
        if rows == self._shown:
            return
        self._shown = rows
        selected, current = set(self.selected_ids()), self._current_id()
        self.blockSignals(True)
        self.setRowCount(len(rows))
        for at, row in enumerate(rows):
            for column, text in ((NAME, row.name), (CLASS, row.class_name), (EXTENT, row.extent)):
                item = QTableWidgetItem(text)
                item.setData(_ID_ROLE, row.region_id)
                item.setToolTip(text)
                if column == CLASS:
                    item.setIcon(_swatch(row.colour))
                if column == EXTENT:
                    item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
                self.setItem(at, column, item)
        self.clearSelection()
        mode = self.selectionMode()
        self.setSelectionMode(QAbstractItemView.SelectionMode.MultiSelection)
        for at, row in enumerate(rows):
            if row.region_id in selected:
                self.selectRow(at)
        self.setSelectionMode(mode)
        self.blockSignals(False)
        for at, row in enumerate(rows):
            if row.region_id == current and row.region_id in selected and len(selected) == 1:
                self.setCurrentCell(at, max(0, self.currentColumn()))

    def selected_ids(self) -> list[str]:
        """Ids of the selected regions, top to bottom."""
        rows = sorted({index.row() for index in self.selectedIndexes()})
        return [self.item(row, NAME).data(_ID_ROLE) for row in rows if self.item(row, NAME) is not None]

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter goes to the region, Delete deletes it."""
        editing = self.state() == QAbstractItemView.State.EditingState
        if not editing and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            region_id = self._current_id()
            if region_id:
                self.jump_wanted.emit(region_id)
        elif not editing and event.key() in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace):
            self.delete_wanted.emit()
        else:
            super().keyPressEvent(event)

    def _current_id(self) -> str:
        item = self.item(self.currentRow(), NAME)
        return str(item.data(_ID_ROLE)) if item is not None else ""

    def _item_changed(self, item: QTableWidgetItem) -> None:
        # The presenter's answer, or nothing where it changes nothing, must not find the old rows "shown".
        self._shown = ()
        signal = self.renamed if item.column() == NAME else self.classed
        signal.emit(item.data(_ID_ROLE), item.text())


class _ClassDelegate(QStyledItemDelegate):
    """Offers the classes there are, and takes a new one."""

    def __init__(self, table: RegionTable) -> None:
        super().__init__(table)
        self._table = table

    def createEditor(self, parent: QWidget, option: QStyleOptionViewItem, index: QModelIndex) -> QWidget:
        combo = QComboBox(parent)
        combo.setEditable(True)
        combo.addItems(["", *self._table.classes])
        return combo

    def setEditorData(self, editor: QWidget, index: QModelIndex) -> None:
        editor.setCurrentText(index.data(Qt.ItemDataRole.EditRole) or "")

    def setModelData(self, editor: QWidget, model: Any, index: QModelIndex) -> None:
        model.setData(index, editor.currentText(), Qt.ItemDataRole.EditRole)


def _swatch(colour: RGB) -> QIcon:
    pixmap = QPixmap(12, 12)
    pixmap.fill(QColor(*colour))
    return QIcon(pixmap)

"""The dock "LRMIL: annotations": tools, list, import and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.utils.notifications import show_warning
from qtpy.QtCore import QModelIndex, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QKeyEvent, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)
from superqt.utils import qdebounced, qthrottled

from napari_lrmil._viewer.docks.annotations.panel import PAN, RGB, AnnotationRow, AnnotationsPanel
from napari_lrmil._viewer.docks.annotations.presenter import AnnotationsPresenter
from napari_lrmil._viewer.docks.docked import DockedWidget
from napari_lrmil._viewer.qt import parts

NAME, CLASS, EXTENT = range(3)
"""Columns of the list."""
_SOON_MS, _THROTTLE_MS = 0, 120
_ID_ROLE = Qt.ItemDataRole.UserRole
_LEAST_WIDTH_PX = 300  # three columns and three buttons a row
_OPEN_FILTER = "Annotations (*.geojson *.json *.zip *.gz);;All files (*)"
_SAVE_FILTER = "GeoJSON (*.geojson)"
DEFAULT_NAME = "annotations.geojson"
_TOOLS = (
    ("rectangle", "&Rectangle", "Draw a rectangle: press, drag, let go"),
    ("ellipse", "&Ellipse", "Draw an ellipse: press, drag, let go"),
    ("polygon", "Pol&ygon", "Draw a polygon: a click a corner; double click, Enter or Escape ends it"),
    ("point", "Po&int", "Mark points: a click each"),
    (PAN, "&Move view", "Put the tool down: drag moves the view again (Escape ends a polygon first)"),
)


class AnnotationsWidget(DockedWidget):
    """Draw, name and class annotations; they save themselves beside the slide."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("lrmil_annotations")
        self.setMinimumWidth(_LEAST_WIDTH_PX)
        self.tools = {tool: QPushButton(text) for tool, text, _ in _TOOLS}
        self.new_class = QComboBox()
        self.table = AnnotationTable()
        self.go_to = QPushButton("&Jump to")
        self.delete = QPushButton("Delete")
        self.undo = QPushButton("Un&do")
        self.import_button = QPushButton("Import …")
        self.export_button = QPushButton("Export …")
        self.uncropped = QCheckBox("QuPath shows the slide uncropped")
        self.status = parts.wrapped_label()
        self.hint = parts.wrapped_label("Open a slide to draw on it.", style=parts.HINT_STYLE)
        self.error = parts.wrapped_label(style=parts.ERROR_STYLE)
        self._lay_out()
        self.presenter = AnnotationsPresenter(self, self.canvas, self.background)
        self._read_edits = qdebounced(self.presenter.read_edits, timeout=_SOON_MS, parent=self)
        self._camera_moved = qthrottled(
            self.presenter.camera_moved, timeout=_THROTTLE_MS, leading=False, parent=self
        )
        self._connect()
        self.begin(self.presenter)

    def read_edits_soon(self) -> None:
        """Take over what was drawn, once napari is done with it."""
        self._read_edits()

    def warn(self, text: str) -> None:
        """In the window, which outlives the dock."""
        show_warning(text)

    def show_panel(self, panel: AnnotationsPanel) -> None:
        """Show a panel."""
        self.hint.setVisible(not panel.has_slide)
        for tool, button in self.tools.items():
            button.setEnabled(panel.ready)
            button.setChecked(panel.has_slide and tool == panel.tool)
        self._fill_classes(panel)
        self.table.show_rows(panel.rows, panel.classes)
        for button in (self.go_to, self.delete):
            button.setEnabled(bool(panel.rows))
        self.export_button.setEnabled(bool(panel.rows))
        self.undo.setEnabled(panel.can_undo)
        self.import_button.setEnabled(panel.ready)
        self.uncropped.setVisible(panel.bounded)
        parts.show_text(self.status, panel.status)
        parts.show_text(self.error, panel.error)

    def _connect(self) -> None:
        presenter = self.presenter
        self.canvas.camera_moved.connect(self._camera_moved)
        self.ending.callback(presenter.shutdown)
        for tool, button in self.tools.items():
            button.clicked.connect(lambda _=False, tool=tool: presenter.draw(tool))
        self.new_class.activated.connect(lambda _: self._choose_class())
        self.new_class.lineEdit().editingFinished.connect(self._choose_class)
        self.table.renamed.connect(presenter.rename)
        self.table.classed.connect(lambda annotation_id, name: presenter.set_class([annotation_id], name))
        self.table.jump_wanted.connect(presenter.jump_to)
        self.table.delete_wanted.connect(self._delete)
        self.go_to.clicked.connect(lambda: self._go_to())
        self.delete.clicked.connect(lambda: self._delete())
        self.undo.clicked.connect(lambda: presenter.undo_delete())
        self.import_button.clicked.connect(lambda: self._import())
        self.export_button.clicked.connect(lambda: self._export())

    def _choose_class(self) -> None:
        self.presenter.choose_class(self.new_class.currentText())

    def _go_to(self) -> None:
        chosen = self.table.selected_ids() or [row.id for row in self.presenter.annotations[:1]]
        if chosen:
            self.presenter.jump_to(chosen[0])

    def _delete(self) -> None:
        self.presenter.delete(self.table.selected_ids())

    def _import(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Import annotations: GeoJSON as QuPath writes it", "", _OPEN_FILTER
        )
        if path:
            self.presenter.import_file(Path(path), cropped=not self.uncropped.isChecked())

    def _export(self) -> None:
        chosen, _ = QFileDialog.getSaveFileName(
            self,
            "Export annotations as GeoJSON, for QuPath and others",
            DEFAULT_NAME,
            _SAVE_FILTER,
            options=QFileDialog.Option.DontConfirmOverwrite,
        )
        if not chosen:
            return
        path = Path(chosen)
        if not path.suffix:
            path = path.with_suffix(".geojson")
        if path.exists() and not self._may_replace(path):
            return
        self.presenter.export_file(path, cropped=not self.uncropped.isChecked())

    def _may_replace(self, path: Path) -> bool:
        return parts.confirmed(self, "Replace?", f"{path.name} is already there. Replace it?")

    def _fill_classes(self, panel: AnnotationsPanel) -> None:
        combo = self.new_class
        combo.setEnabled(panel.ready)
        if combo.hasFocus() or combo.lineEdit().hasFocus():
            return  # somebody is typing
        combo.blockSignals(True)
        entries = ("", *panel.classes)
        if entries != tuple(combo.itemText(at) for at in range(combo.count())):
            combo.clear()
            combo.addItems(entries)
        combo.setCurrentText(panel.new_class)
        combo.blockSignals(False)

    def _lay_out(self) -> None:
        column = self.column
        column.addWidget(self.hint)
        grid = QGridLayout()
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(4)
        for at, (tool, _, tool_tip) in enumerate(_TOOLS):
            button = self.tools[tool]
            button.setCheckable(True)
            button.setToolTip(tool_tip)
            button.setAccessibleName(tool_tip.split(":")[0])
            grid.addWidget(button, at // 3, at % 3)
        tools = QWidget()
        tools.setLayout(grid)
        column.addWidget(tools)
        class_title = QLabel("Class of drawin&gs")
        class_title.setBuddy(self.new_class)
        self.new_class.setEditable(True)
        self.new_class.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.new_class.setMinimumContentsLength(8)
        self.new_class.lineEdit().setPlaceholderText("none")
        self.new_class.setToolTip(
            "Choose a class or type a new one; it is given to what you draw from now on"
        )
        self.new_class.setAccessibleName("Class of new annotations")
        column.addWidget(_row(class_title, self.new_class))
        column.addWidget(self.table)
        self.go_to.setToolTip("Show the selected annotation (Enter in the list)")
        self.delete.setToolTip("Delete the selected annotations (Delete in the list)")
        self.undo.setToolTip("Bring back what was deleted last, while the slide is open")
        column.addWidget(_row(self.go_to, self.delete, self.undo))
        self.import_button.setToolTip("Add annotations from a GeoJSON file, as QuPath exports it")
        self.export_button.setToolTip(
            "Write all annotations as GeoJSON; drag the file onto the image in QuPath"
        )
        column.addWidget(_row(self.import_button, self.export_button))
        self.uncropped.setToolTip(
            "This slide states the part that was scanned, and QuPath counts from its corner. Tick this only if "
            "you opened it in QuPath with --no-crop."
        )
        column.addWidget(self.uncropped)
        column.addWidget(self.error)
        self.status.setAccessibleName("Status of the annotations")
        column.addWidget(self.status)
        for button in (self.go_to, self.delete, self.undo, self.import_button, self.export_button):
            button.setAccessibleName(button.toolTip())


class AnnotationTable(QTableWidget):
    """The list: one row an annotation; name and class can be edited in place."""

    renamed = Signal(str, str)
    classed = Signal(str, str)
    jump_wanted = Signal(str)
    delete_wanted = Signal()

    def __init__(self) -> None:
        super().__init__(0, 3)
        self._shown: tuple[AnnotationRow, ...] = ()
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
        self.setAccessibleName("Annotations")
        self.setToolTip("Enter or double click: go there. F2: rename, or change the class. Delete: delete.")
        self.itemChanged.connect(self._item_changed)
        self.itemDoubleClicked.connect(lambda item: self.jump_wanted.emit(item.data(_ID_ROLE)))

    def show_rows(self, rows: tuple[AnnotationRow, ...], classes: tuple[str, ...]) -> None:
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
                item.setData(_ID_ROLE, row.annotation_id)
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
            if row.annotation_id in selected:
                self.selectRow(at)
        self.setSelectionMode(mode)
        self.blockSignals(False)
        for at, row in enumerate(rows):
            if row.annotation_id == current and row.annotation_id in selected and len(selected) == 1:
                self.setCurrentCell(at, max(0, self.currentColumn()))

    def selected_ids(self) -> list[str]:
        """Ids of the selected annotations, top to bottom."""
        rows = sorted({index.row() for index in self.selectedIndexes()})
        return [self.item(row, NAME).data(_ID_ROLE) for row in rows if self.item(row, NAME) is not None]

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter goes to the annotation, Delete deletes it."""
        editing = self.state() == QAbstractItemView.State.EditingState
        if not editing and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            annotation_id = self._current_id()
            if annotation_id:
                self.jump_wanted.emit(annotation_id)
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

    def __init__(self, table: AnnotationTable) -> None:
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


def _row(*widgets: QWidget) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return row


def _swatch(colour: RGB) -> QIcon:
    pixmap = QPixmap(12, 12)
    pixmap.fill(QColor(*colour))
    return QIcon(pixmap)

"""The dock "LRMIL: annotations": tools, list, import and export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QPushButton,
    QWidget,
)

from napari_lrmil._viewer.background import Steps
from napari_lrmil._viewer.docks.annotations.presenter import RegionsPresenter
from napari_lrmil._viewer.docks.annotations.table import RegionTable
from napari_lrmil._viewer.docks.annotations.wording import RegionsPanel
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.dock import DockedWidget
from napari_lrmil._viewer.window import Change, Controller

_SOON_MS, _THROTTLE_MS = 0, 120
_LEAST_WIDTH_PX = 320  # three columns and three buttons a row
_OPEN_FILTER = "Annotations (*.geojson *.json *.zip *.gz);;All files (*)"
_SAVE_FILTER = "GeoJSON (*.geojson)"
DEFAULT_NAME = "regions.geojson"
_TOOLS = (
    ("rectangle", "&Rectangle", "Draw a rectangle: press, drag, let go"),
    ("ellipse", "&Ellipse", "Draw an ellipse: press, drag, let go"),
    ("polygon", "Pol&ygon", "Draw a polygon: a click a corner; double click, Enter or Escape ends it"),
    ("point", "Po&int", "Mark points: a click each"),
    ("pan", "&Move view", "Put the tool down: drag moves the view again (Escape ends a polygon first)"),
)


class AnnotationsWidget(DockedWidget):
    """Draw, name and class regions; they save themselves beside the slide.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The name of the parameter is how napari knows to pass it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("lrmil_annotations")
        self.setMinimumWidth(_LEAST_WIDTH_PX)
        self.tools = {tool: QPushButton(text) for tool, text, _ in _TOOLS}
        self.new_class = QComboBox()
        self.table = RegionTable()
        self.go_to = QPushButton("&Go to")
        self.delete = QPushButton("Delete")
        self.undo = QPushButton("Un&do")
        self.import_button = QPushButton("Import …")
        self.export_button = QPushButton("Export …")
        self.uncropped = QCheckBox("QuPath shows the slide uncropped")
        self.status = parts.wrapped_label()
        self.hint = parts.wrapped_label("Open a slide to draw on it.", style=parts.HINT_STYLE)
        self.error = parts.wrapped_label(style=parts.ERROR_STYLE)
        self._lay_out()
        self._soon, self._throttle = QTimer(self), QTimer(self)
        self.presenter = RegionsPresenter(napari_viewer, self, self._run)
        self._connect()
        self.begin()

    def attach(self, controller: Controller) -> None:
        """Follow this controller."""
        self.presenter.attach(controller)

    def refresh(self, change: Change) -> None:
        """Show what is so now."""
        self.presenter.refresh()

    def schedule(self) -> None:
        """Take over what was drawn, once napari is done with it."""
        self._soon.start()

    def show_panel(self, panel: RegionsPanel) -> None:
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

    def _run(
        self, name: str, steps: Steps[Any, Any], done: Callable[[Any], None], failed: Callable[[str], None]
    ) -> None:
        self.background.start(name, steps, done=done, failed=failed)

    def _connect(self) -> None:
        presenter, camera = self.presenter, self.viewer.scene.camera
        for timer, wait_ms, then in (
            (self._soon, _SOON_MS, presenter.sync),
            (self._throttle, _THROTTLE_MS, presenter.camera_moved),
        ):
            timer.setSingleShot(True)
            timer.setInterval(wait_ms)
            timer.timeout.connect(then)
        camera.events.zoom.connect(self._zoomed)
        self.ending.callback(camera.events.zoom.disconnect, self._zoomed)
        self.ending.callback(presenter.shutdown)
        for tool, button in self.tools.items():
            button.clicked.connect(lambda _=False, tool=tool: presenter.draw(tool))
        self.new_class.activated.connect(lambda _: self._choose_class())
        self.new_class.lineEdit().editingFinished.connect(self._choose_class)
        self.table.renamed.connect(presenter.rename)
        self.table.classed.connect(lambda region_id, name: presenter.set_class([region_id], name))
        self.table.jump_wanted.connect(presenter.jump_to)
        self.table.delete_wanted.connect(self._delete)
        self.go_to.clicked.connect(lambda: self._go_to())
        self.delete.clicked.connect(lambda: self._delete())
        self.undo.clicked.connect(lambda: presenter.undo_delete())
        self.import_button.clicked.connect(lambda: self._import())
        self.export_button.clicked.connect(lambda: self._export())

    def _zoomed(self, event: Any = None) -> None:
        if not self._throttle.isActive():
            self._throttle.start()

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
            "Export regions as GeoJSON, for QuPath and others",
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
        answer = QMessageBox.question(
            self,
            "Replace?",
            f"{path.name} is already there. Replace it?",
            QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No,
            QMessageBox.StandardButton.No,
        )
        return bool(answer == QMessageBox.StandardButton.Yes)

    def _fill_classes(self, panel: RegionsPanel) -> None:
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
        class_title = QLabel("&Class of new regions")
        class_title.setBuddy(self.new_class)
        self.new_class.setEditable(True)
        self.new_class.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.new_class.setMinimumContentsLength(8)
        self.new_class.lineEdit().setPlaceholderText("none")
        self.new_class.setToolTip(
            "Choose a class or type a new one; it is given to what you draw from now on"
        )
        self.new_class.setAccessibleName("Class of new regions")
        column.addWidget(_row(class_title, self.new_class))
        column.addWidget(self.table)
        self.go_to.setToolTip("Show the selected region (Enter in the list)")
        self.delete.setToolTip("Delete the selected regions (Delete in the list)")
        self.undo.setToolTip("Bring back what was deleted last, while the slide is open")
        column.addWidget(_row(self.go_to, self.delete, self.undo))
        self.import_button.setToolTip("Add annotations from a GeoJSON file, as QuPath exports it")
        self.export_button.setToolTip("Write all regions as GeoJSON; drag the file onto the image in QuPath")
        column.addWidget(_row(self.import_button, self.export_button))
        self.uncropped.setToolTip(
            "This slide states the part that was scanned, and QuPath counts from its corner. Tick this only if "
            "you opened it in QuPath with --no-crop."
        )
        column.addWidget(self.uncropped)
        column.addWidget(self.error)
        self.status.setAccessibleName("Status of the regions")
        column.addWidget(self.status)
        for button in (self.go_to, self.delete, self.undo, self.import_button, self.export_button):
            button.setAccessibleName(button.toolTip())


def _row(*widgets: QWidget) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return row

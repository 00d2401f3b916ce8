"""The dock "LRMIL: overview": map, magnification, what the file says of the slide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.components.overlays import TextOverlay
from numpy.typing import NDArray
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil._viewer.background import Steps
from napari_lrmil._viewer.docks.dock import DockedWidget
from napari_lrmil._viewer.docks.overview.facts import MASKED_NOTE, confirmation_text
from napari_lrmil._viewer.docks.overview.field import MAGNIFICATIONS, UM_PER_PX_AT_1X, Area
from napari_lrmil._viewer.docks.overview.overview_map import OverviewMap, to_image
from napari_lrmil._viewer.docks.overview.picture import Overlay
from napari_lrmil._viewer.docks.overview.presenter import Orientation, OverviewPanel
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.window import Change, Controller

_THROTTLE_MS = 33
_OVERLAY = "lrmil_magnification"
_ASSOCIATED_MAX_PX = 700


class OverviewWidget(DockedWidget):
    """Where one is on the slide, and how much is magnified.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The name of the parameter is how napari knows to pass it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("lrmil_overview")
        self.map = OverviewMap()
        self.magnification = QLabel()
        self.presets = {value: QPushButton(f"{value}×") for value in MAGNIFICATIONS}
        self.whole = QPushButton("Whole slide")
        self.heatmap = QCheckBox("Heatmap o&n the map")
        self.error = parts.wrapped_label(style=parts.ERROR_STYLE)
        self.associated_buttons: dict[str, QPushButton] = {}
        self.associated_dialog: QDialog | None = None
        self.presenter = Orientation(napari_viewer, self, self._run)
        self._lay_out()
        self._throttle = QTimer(self)
        self._throttle.setSingleShot(True)
        self._throttle.setInterval(_THROTTLE_MS)
        self._throttle.timeout.connect(self.presenter.show_field)
        self._connect()
        self.begin()

    # ---- the presenter's view

    def attach(self, controller: Controller) -> None:
        """Follow this controller."""
        self.presenter.attach(controller)

    def refresh(self, change: Change) -> None:
        """Show what is so now."""
        self.presenter.refresh()

    def schedule(self) -> None:
        """Show the field soon, once for all the events of a movement."""
        if not self._throttle.isActive():
            self._throttle.start()

    def show_panel(self, panel: OverviewPanel) -> None:
        """Show words and switches."""
        for button in self.presets.values():
            button.setEnabled(panel.can_magnify)
        self.whole.setEnabled(panel.has_slide)
        self.map.setEnabled(panel.has_slide)
        self.hint.setVisible(not panel.has_slide or not panel.can_magnify)
        self.hint.setText(
            "Enter the slide's µm/px in the panel “LRMIL: classify slide” to see magnifications."
            if panel.has_slide
            else "Open a slide to see where you are on it."
        )
        self.heatmap.setVisible(panel.has_heatmap)
        self.heatmap.setChecked(panel.heatmap_shown)
        self.facts_heading.setVisible(panel.has_slide)
        self.masked.setVisible(panel.has_slide)
        self._show_facts(panel.facts)
        self._show_names(panel.associated if panel.has_slide else ())

    def show_picture(self, pixels: NDArray[Any] | None, area: Area | None) -> None:
        """Show the slide on the map."""
        self.map.show_picture(pixels, area)
        if area is None and self.associated_dialog is not None:
            self.associated_dialog.close()

    def show_overlay(self, overlay: Overlay | None) -> None:
        """Show a heatmap on the map."""
        self.map.show_overlay(overlay)

    def show_field(self, field: Area | None, magnification: str) -> None:
        """Show the field on the map, and the magnification here and on the canvas."""
        self.map.show_field(field)
        self.magnification.setText(magnification or "–")
        overlay = self.viewer.canvas.overlays.get(_OVERLAY)
        if overlay is not None and overlay.text != magnification:
            overlay.text = magnification
            overlay.visible = bool(magnification)

    def show_error(self, text: str) -> None:
        """Say what went wrong."""
        parts.show_text(self.error, text)

    def show_associated(self, name: str, pixels: NDArray[Any]) -> None:
        """Show an associated image in a window of its own; it is dropped when that closes."""
        if self.associated_dialog is not None:
            self.associated_dialog.close()
        dialog = QDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setWindowTitle(f"{name} – can show the patient's identity")
        picture = QLabel()
        image = QPixmap.fromImage(to_image(pixels, QImage.Format.Format_RGB888))
        if max(image.width(), image.height()) > _ASSOCIATED_MAX_PX:
            image = image.scaled(
                _ASSOCIATED_MAX_PX,
                _ASSOCIATED_MAX_PX,
                Qt.AspectRatioMode.KeepAspectRatio,
                Qt.TransformationMode.SmoothTransformation,
            )
        picture.setPixmap(image)
        picture.setAccessibleName(f"Associated image {name}")
        close = QPushButton("Close")
        close.setToolTip("Close; the image is dropped")
        close.clicked.connect(dialog.close)
        column = QVBoxLayout(dialog)
        column.addWidget(picture)
        column.addWidget(close)
        dialog.destroyed.connect(self._associated_closed)
        self.associated_dialog = dialog
        dialog.show()

    # ---- inside

    def _run(self, name: str, steps: Steps[Any, Any], done: Callable[[Any], None]) -> None:
        self.background.start(name, steps, done=done, failed=self._failed)

    def _failed(self, text: str) -> None:
        if self.presenter.has_slide:  # a slide that was closed meanwhile is no error
            self.show_error(text)

    def _associated_closed(self, *_: object) -> None:
        self.associated_dialog = None

    def _ask_associated(self, name: str) -> None:
        answer = QMessageBox.question(
            self,
            "Show an image that can identify the patient?",
            confirmation_text(name),
            QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No,
            QMessageBox.StandardButton.No,
        )
        if answer == QMessageBox.StandardButton.Yes:
            self.presenter.show_associated(name)

    def _connect(self) -> None:
        presenter, viewer, ending = self.presenter, self.viewer, self.ending
        self.map.place_chosen.connect(lambda y, x: presenter.centre_on((y, x)))
        self.map.moved.connect(presenter.move)
        self.map.zoomed.connect(presenter.magnify_by_step)
        self.map.whole_wanted.connect(presenter.whole_slide)
        self.whole.clicked.connect(lambda: presenter.whole_slide())
        self.heatmap.clicked.connect(presenter.toggle_heatmap)
        camera, canvas = viewer.scene.camera, viewer.canvas
        for event in (camera.events.center, camera.events.zoom, canvas.events.size):
            event.connect(self.schedule)
            ending.callback(event.disconnect, self.schedule)
        canvas.overlays[_OVERLAY] = TextOverlay(position="bottom_left", font_size=11, box=True)
        ending.callback(canvas.overlays.pop, _OVERLAY, None)
        for number, (value, button) in enumerate(self.presets.items(), start=1):
            button.clicked.connect(lambda _=False, value=value: presenter.magnify(value))
            key = f"Control-{number}"
            viewer.bind_key(key, lambda _, value=value: presenter.magnify(value), overwrite=True)
            ending.callback(viewer.bind_key, key, None)

    def _lay_out(self) -> None:
        column = self.column
        self.hint = parts.wrapped_label(style=parts.HINT_STYLE)
        column.addWidget(self.hint)
        column.addWidget(self.error)
        self.error.hide()
        column.addWidget(self.map)
        column.addWidget(self.heatmap)
        self.heatmap.setToolTip("Show the heatmap on the map too, with the colours it has on the slide")
        title = QLabel("Magnification")
        title.setStyleSheet(parts.HEADING_STYLE)
        self.magnification.setToolTip(
            "As a microscope's objective would show it: 10× is 1 µm a pixel. Pixels are device-independent: "
            "a HiDPI screen shows the same field at the same size."
        )
        self.magnification.setAccessibleName("Magnification")
        self.magnification.setAlignment(Qt.AlignmentFlag.AlignRight)
        column.addWidget(_row(title, self.magnification))
        for number, (value, button) in enumerate(self.presets.items(), start=1):
            button.setMinimumWidth(30)
            button.setToolTip(f"{value}×: {UM_PER_PX_AT_1X / value:g} µm a pixel (Ctrl+{number})")
            button.setAccessibleName(f"Magnify {value} times")
        column.addWidget(_row(*self.presets.values(), spacing=3))
        self.whole.setToolTip("Show the whole scanned area (Home on the map)")
        column.addWidget(self.whole)
        self.facts_heading = QLabel("About this slide")
        self.facts_heading.setStyleSheet(parts.HEADING_STYLE)
        column.addSpacing(4)
        column.addWidget(self.facts_heading)
        self._facts = QWidget()
        self._facts_shown: tuple[tuple[str, str], ...] = ()
        self._facts_grid = QGridLayout(self._facts)
        self._facts_grid.setContentsMargins(0, 0, 0, 0)
        self._facts_grid.setVerticalSpacing(2)
        self._facts_grid.setColumnStretch(1, 1)
        column.addWidget(self._facts)
        self.associated_title = parts.wrapped_label("Other images in the file (hidden):")
        column.addWidget(self.associated_title)
        self._names = QWidget()
        self._names_shown: tuple[str, ...] = ()
        self._names_column = QVBoxLayout(self._names)
        self._names_column.setContentsMargins(0, 0, 0, 0)
        self._names_column.setSpacing(3)
        column.addWidget(self._names)
        self.masked = parts.wrapped_label(MASKED_NOTE, style=parts.HINT_STYLE)
        column.addWidget(self.masked)
        column.addStretch(1)

    def _show_facts(self, facts: tuple[tuple[str, str], ...]) -> None:
        if facts == self._facts_shown:
            return
        self._facts_shown = facts
        _empty(self._facts_grid)
        for row, (what, value) in enumerate(facts):
            title = QLabel(what)
            self._facts_grid.addWidget(title, row, 0, Qt.AlignmentFlag.AlignTop)
            self._facts_grid.addWidget(parts.wrapped_label(value), row, 1)

    def _show_names(self, names: tuple[str, ...]) -> None:
        self.associated_title.setVisible(bool(names))
        if names == self._names_shown:
            return
        self._names_shown = names
        _empty(self._names_column)
        self.associated_buttons = {}
        for name in names:
            button = QPushButton(f"Show “{name}” …")
            button.setToolTip("It can show the patient's identity; you are asked before it is read")
            button.setAccessibleName(f"Show the image {name}")
            button.clicked.connect(lambda _=False, name=name: self._ask_associated(name))
            self.associated_buttons[name] = button
            self._names_column.addWidget(button)


def _row(*widgets: QWidget, spacing: int = 6) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    for widget in widgets:
        layout.addWidget(widget)
    return row


def _empty(layout: Any) -> None:
    while layout.count():
        widget = layout.takeAt(0).widget()
        widget.hide()  # and stays its parent's child: without one it could outlive the window
        widget.deleteLater()

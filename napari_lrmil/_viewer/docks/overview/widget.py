"""The dock "LRMIL: overview": map, magnification, what the file says of the slide."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QPixmap
from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil._viewer.canvas import UM_PER_PX_AT_1X, Area, DrawnHeatmap
from napari_lrmil._viewer.docks.docked import DockedWidget
from napari_lrmil._viewer.docks.overview.overview_map import OverviewMap
from napari_lrmil._viewer.docks.overview.panel import MASKED_NOTE, OverviewPanel
from napari_lrmil._viewer.docks.overview.presenter import OverviewPresenter, Pixels
from napari_lrmil._viewer.magnifier import MAGNIFICATIONS, Magnifier
from napari_lrmil._viewer.qt import parts

_ASSOCIATED_MAX_PX = 700


class OverviewWidget(DockedWidget):
    """Where one is on the slide, and how much is magnified."""

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
        self.presenter = OverviewPresenter(self, self.canvas, self.background)
        self._lay_out()
        self._connect()
        self.begin(self.presenter)

    # ---- the presenter's view

    def show_panel(self, panel: OverviewPanel) -> None:
        """Show words and switches."""
        for button in self.presets.values():
            button.setEnabled(panel.can_magnify)
        self.whole.setEnabled(panel.has_slide)
        self.map.setEnabled(panel.has_slide)
        parts.show_text(self.hint, panel.hint)
        self.heatmap.setVisible(panel.has_heatmap)
        self.heatmap.setChecked(panel.heatmap_shown)
        self.facts_heading.setVisible(panel.has_slide)
        self.masked.setVisible(panel.has_slide)
        self._show_facts(panel.facts)
        self._show_names(panel.associated)

    def show_picture(self, pixels: Pixels | None, area: Area | None) -> None:
        """Show the slide on the map."""
        self.map.show_picture(pixels, area)

    def show_heatmap(self, heatmap: DrawnHeatmap | None) -> None:
        """Show a heatmap on the map."""
        self.map.show_heatmap(heatmap)

    def show_field(self, field: Area | None, magnification: str) -> None:
        """Show the field on the map, and the magnification."""
        self.map.show_field(field)
        self.magnification.setText(magnification or "–")

    def show_error(self, text: str) -> None:
        """Say what went wrong."""
        parts.show_text(self.error, text)

    def may_show_associated(self, question: str) -> bool:
        """Ask whether an image that can identify the patient may be shown."""
        return parts.confirmed(self, "Show an image that can identify the patient?", question)

    def show_associated(self, name: str, pixels: Pixels) -> None:
        """Show an associated image in a window of its own; it is dropped when that closes."""
        self.close_associated()
        dialog = QDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setWindowTitle(f"{name} – can show the patient's identity")
        picture = QLabel()
        image = QPixmap.fromImage(parts.to_image(pixels))
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
        dialog.finished.connect(self._associated_closed)
        self.associated_dialog = dialog
        dialog.show()

    def close_associated(self) -> None:
        """Close the window of an associated image, where it is open."""
        if self.associated_dialog is not None:
            self.associated_dialog.close()

    # ---- inside

    def _associated_closed(self, *_: object) -> None:
        self.associated_dialog = None

    def _connect(self) -> None:
        presenter, canvas = self.presenter, self.canvas
        self.map.place_chosen.connect(lambda y, x: presenter.centre_on((y, x)))
        self.map.moved.connect(presenter.move)
        self.map.zoomed.connect(lambda steps: self._magnifier.by_step(steps))
        self.map.whole_wanted.connect(lambda: self._magnifier.whole_slide())
        self.whole.clicked.connect(lambda: self._magnifier.whole_slide())
        self.heatmap.clicked.connect(presenter.toggle_heatmap)
        for value, button in self.presets.items():
            button.clicked.connect(lambda _=False, value=value: self._magnifier.magnify(value))
        # A movement or a slider sends events by the hundred: what they are about is shown soon, once for all.
        canvas.camera_moved.connect(self.soon(presenter.field_changed))
        heatmap_changed = self.soon(presenter.heatmap_changed)
        canvas.heatmap_changed.connect(heatmap_changed)
        canvas.layers_changed.connect(heatmap_changed)

    @property
    def _magnifier(self) -> Magnifier:
        assert self.controller is not None  # else the page without it is shown
        return self.controller.magnifier

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
        parts.clear_layout(self._facts_grid)
        for row, (what, value) in enumerate(facts):
            title = QLabel(what)
            self._facts_grid.addWidget(title, row, 0, Qt.AlignmentFlag.AlignTop)
            self._facts_grid.addWidget(parts.wrapped_label(value), row, 1)

    def _show_names(self, names: tuple[str, ...]) -> None:
        self.associated_title.setVisible(bool(names))
        if names == self._names_shown:
            return
        self._names_shown = names
        parts.clear_layout(self._names_column)
        self.associated_buttons = {}
        for name in names:
            button = QPushButton(f"Show “{name}” …")
            button.setToolTip("It can show the patient's identity; you are asked before it is read")
            button.setAccessibleName(f"Show the image {name}")
            button.clicked.connect(lambda _=False, name=name: self.presenter.choose_associated(name))
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

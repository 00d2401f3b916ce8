"""What the parts of a dock have in common."""

from __future__ import annotations

from qtpy.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_lrmil._viewer.qt import parts


class Section(QWidget):
    """One under the other: headings, rows, widgets."""

    def __init__(self) -> None:
        super().__init__()
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(4)

    def add_heading(self, text: str, *buttons: QPushButton) -> None:
        """A title, with the buttons that belong to it at the right end."""
        title = QLabel(text)
        title.setStyleSheet(parts.HEADING_STYLE)
        self.column.addSpacing(4)
        row = self.add_row(title, *buttons)
        row.layout().setStretch(0, 1)

    def add_row(self, *widgets: QWidget) -> QWidget:
        """Side by side, in a widget that can be hidden."""
        row = QWidget()
        layout = QHBoxLayout(row)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in widgets:
            layout.addWidget(widget)
        self.column.addWidget(row)
        return row

    def add_field(self, title: str, widget: QWidget, *more: QWidget) -> QWidget:
        """A row with a title whose mnemonic leads to the widget."""
        label = QLabel(title)
        label.setBuddy(widget)
        row = self.add_row(label, widget, *more)
        row.layout().setStretch(1, 1)
        return row

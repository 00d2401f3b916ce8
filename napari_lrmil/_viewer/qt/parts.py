"""Small building blocks. Colours are fixed pairs that read well on napari's dark and light themes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage, QKeyEvent, QPaintEvent
from qtpy.QtWidgets import (
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QMessageBox,
    QProgressBar,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QWidget,
)

from napari_lrmil.wording import percent_text

_BOX = "QLabel {{ background: {back}; border-radius: 4px; padding: 6px; {more} }}"
BANNER_STYLE = _BOX.format(back="#f2b01e", more="color: #1a1a1a; font-weight: bold;")
ERROR_STYLE = _BOX.format(back="#8b1e1e", more="color: #ffffff;")
HINT_STYLE = _BOX.format(back="rgba(90, 140, 200, 60)", more="")  # thin: the theme's text colour shows on it
HEADING_STYLE = "QLabel { font-weight: bold; }"
PRIMARY_STYLE = (
    "QPushButton { background: #2c6fb3; color: white; font-weight: bold; padding: 6px; border-radius: 4px; }"
    "QPushButton:hover { background: #3a82cb; }"
    "QPushButton:focus { border: 2px solid #9cc7f0; }"
    "QPushButton:disabled { background: rgba(128, 128, 128, 70); color: rgba(128, 128, 128, 255); }"
)
_BAR_STYLE = (
    "QProgressBar {{ background: rgba(128, 128, 128, 60); border: none; border-radius: 3px; }}"
    "QProgressBar::chunk {{ background: {colour}; border-radius: 3px; }}"
)
_FIRST, _OTHERS = "#3d8fd1", "#8a949e"
_CLASS_NAME_PX = 120
_COMBO_PADDING_PX = 4


def wrapped_label(text: str = "", *, style: str = "") -> QLabel:
    """A label that wraps instead of widening the dock; its text can be copied."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setStyleSheet(style)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def show_text(label: QLabel, text: str) -> None:
    """Set a label's text, and hide it where there is none."""
    label.setText(text)
    label.setVisible(bool(text))


class Notice(QWidget):
    """A warning with its icon, hidden while it has no text.

    Parameters
    ----------
    style : str
        Of the text's label.
    """

    def __init__(self, *, style: str) -> None:
        super().__init__()
        self._icon = QLabel()
        size = self.style().pixelMetric(QStyle.PixelMetric.PM_LargeIconSize)
        icon = self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning)
        self._icon.setPixmap(icon.pixmap(size, size))
        self._icon.setAccessibleName("Warning")
        self.text = wrapped_label(style=style)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._icon)
        row.addWidget(self.text, 1)
        self.hide()

    def show_text(self, text: str) -> None:
        """Show a warning, or none."""
        self.text.setText(text)
        self.setVisible(bool(text))


class _Combo(QComboBox):
    """Elides in the middle: what tells entries apart may stand at their end, as the hash of a model does.

    Letters are left to the dock and the window, where they are keys: typed after a choice, they would choose something else.
    """

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Choose by arrows and the like; the open list takes letters."""
        if event.text().isalpha():
            event.ignore()
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the box as Qt does, with the entry elided."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        room = self.style().subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        option.currentText = self.fontMetrics().elidedText(
            option.currentText, Qt.TextElideMode.ElideMiddle, room.width() - _COMBO_PADDING_PX
        )
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)


def narrow_combo(*, tool_tip: str, name: str) -> QComboBox:
    """A combo box that elides long entries instead of widening the dock."""
    combo = _Combo()
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(8)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    combo.setToolTip(tool_tip)
    combo.setAccessibleName(name)
    return combo


def fill_combo(combo: QComboBox, entries: tuple[str, ...], index: int) -> None:
    """Show these entries; quietly, so that only the user's choice sends signals."""
    combo.blockSignals(True)
    if entries != tuple(combo.itemText(at) for at in range(combo.count())):
        combo.clear()
        for entry in entries:
            combo.addItem(entry)
            combo.setItemData(combo.count() - 1, entry, Qt.ItemDataRole.ToolTipRole)
    combo.setCurrentIndex(index)
    combo.blockSignals(False)


def confirmed(parent: QWidget, title: str, question: str) -> bool:
    """Ask; no is what Enter says."""
    yes, no = QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.No
    return bool(QMessageBox.question(parent, title, question, yes | no, no) == yes)


def clear_layout(layout: QLayout) -> None:
    """Take all widgets out, and drop them."""
    while (item := layout.takeAt(0)) is not None:
        widget = item.widget()
        widget.hide()  # and stays its parent's child: without one it could outlive the window
        widget.deleteLater()


def to_image(pixels: NDArray[np.uint8]) -> QImage:
    """An image with pixels of its own, from (height, width, 3) RGB or (height, width, 4) RGBA."""
    height, width, channels = pixels.shape
    kind = QImage.Format.Format_RGBA8888 if channels == 4 else QImage.Format.Format_RGB888
    return QImage(pixels.tobytes(), width, height, channels * width, kind).copy()


class ClassBars(QWidget):
    """One row a class: name, bar and percentage."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(1, 1)
        self._shown: tuple[tuple[str, float], ...] = ()

    def show_classes(self, classes: tuple[tuple[str, float], ...]) -> None:
        """Show (class, probability) pairs, the first one highlighted."""
        if classes == self._shown:
            return
        self._shown = classes
        clear_layout(self._grid)
        for row, (name, probability) in enumerate(classes):
            percent = percent_text(probability)
            title = wrapped_label(name)
            title.setMaximumWidth(_CLASS_NAME_PX)
            bar = QProgressBar()
            bar.setRange(0, 1000)
            bar.setValue(round(probability * 1000))
            bar.setTextVisible(False)
            bar.setFixedHeight(12)
            bar.setStyleSheet(_BAR_STYLE.format(colour=_OTHERS if row else _FIRST))
            bar.setAccessibleName(f"{name}: {percent}")
            bar.setToolTip(f"The model gives {name} a probability of {probability:.1%}")
            value = QLabel(percent)
            value.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            for column, widget in enumerate((title, bar, value)):
                self._grid.addWidget(widget, row, column)

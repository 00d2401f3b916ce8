"""The parts of the dock around the table. Each shows its share of a `WorklistPanel` and sends what was done."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QFocusEvent, QHideEvent, QKeyEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from napari_lrmil._viewer.docks.worklist import keys
from napari_lrmil._viewer.docks.worklist.panel import Show, TableFilePanel, WorklistPanel, judged_note
from napari_lrmil._viewer.qt import parts
from napari_lrmil.worklist import Order

_TIGHT = "QPushButton { padding: 4px 3px; }"
"""Four buttons a row in the narrowest dock."""


def button(text: str, tool_tip: str, name: str = "") -> QPushButton:
    """A button with its tooltip; `name` is for screen readers where the text alone says too little."""
    made = QPushButton(text)
    made.setToolTip(tool_tip)
    made.setAccessibleName(name or text.replace("&", ""))
    return made


def _row(*widgets: QWidget, stretch: int = -1) -> QHBoxLayout:
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    for at, widget in enumerate(widgets):
        row.addWidget(widget, 1 if at == stretch else 0)
    return row


class SourceSection(QWidget):
    """Which folder or table."""

    folder_clicked = Signal()
    table_clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.folder = button("Folder …", "List the slides of a folder", "Open a folder of slides")
        self.table = button(
            "Table …", "List the slides of a CSV table with the column 'path'", "Open a slide table"
        )
        self.deeper = QCheckBox("Subfolders too")
        self.deeper.setToolTip("List the slides of folders in the folder too")
        self.deeper.setAccessibleName("Folders in the folder too")
        self.name = QLabel()
        self.name.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(_row(self.folder, self.table, self.deeper, stretch=2))
        column.addWidget(self.name)
        self.folder.clicked.connect(lambda: self.folder_clicked.emit())
        self.table.clicked.connect(lambda: self.table_clicked.emit())

    def show_panel(self, panel: WorklistPanel) -> None:
        """Show the folder's name; the whole path is in the tooltip."""
        name = panel.folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
        self.name.setText(f"{name} · {panel.reviewed_text}" if name else "")
        self.name.setToolTip(panel.folder)
        self.name.setVisible(bool(name))


class FilterSection(QWidget):
    """Order, filter and text."""

    order_chosen = Signal(object)
    shown_chosen = Signal(object)
    text_typed = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.order = self._combo(Order, "How the slides are sorted", "Order")
        self.which = self._combo(Show, "Which slides are listed", "Listed slides")
        self.again = button(
            "The order is old: sort again", "Results have come since the slides were sorted", "Sort again"
        )
        self.text = QLineEdit()
        self.text.setPlaceholderText("Filter by name, class, verdict or note")
        self.text.setClearButtonEnabled(True)
        self.text.setToolTip("List only slides whose row holds these words")
        self.text.setAccessibleName("Filter")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(_row(self.order, self.which, stretch=1))
        column.addWidget(self.again)
        column.addWidget(self.text)
        self.again.clicked.connect(lambda: self.order_chosen.emit(list(Order)[self.order.currentIndex()]))
        self.order.activated.connect(lambda at: self.order_chosen.emit(list(Order)[at]))
        self.which.activated.connect(lambda at: self.shown_chosen.emit(list(Show)[at]))
        self.text.textEdited.connect(self.text_typed)
        self.text.textChanged.connect(lambda text: None if text else self.text_typed.emit(""))

    @staticmethod
    def _combo(values: type[Order] | type[Show], tool_tip: str, name: str) -> QComboBox:
        combo = parts.narrow_combo(tool_tip=tool_tip, name=name)
        combo.setMinimumContentsLength(8 if values is Order else 6)  # two side by side
        for value in values:
            combo.addItem(value.value.capitalize())
        return combo

    def show_panel(self, panel: WorklistPanel) -> None:
        """Show what is chosen."""
        self.order.setCurrentIndex(list(Order).index(panel.order))
        self.which.setCurrentIndex(list(Show).index(panel.which))
        self.again.setVisible(panel.order_is_old)


class NoteEdit(QLineEdit):
    """One line that is kept on Return and whenever it is left; Escape takes the change back.

    Signals
    -------
    written : Path, str
        The slide that the note is on, and the note.
    left
        Return or Escape was pressed.
    """

    written = Signal(object, str)
    left = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._about: Path | None = None
        self._kept = ""

    def show_note(self, about: Path | None, note: str) -> None:
        """Show the note on a slide, unless one is being written on it; one on another slide is kept first."""
        if about == self._about and self.isModified():
            return
        self._write()
        self._about, self._kept = about, note
        if note != self.text():
            self.setText(note)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Return keeps, Escape takes back."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self._write()
            self.left.emit()
        elif event.key() == Qt.Key.Key_Escape:
            self.setText(self._kept)  # which ends being modified, too
            self.left.emit()
        else:
            super().keyPressEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        """Leaving keeps."""
        self._write()
        super().focusOutEvent(event)

    def hideEvent(self, event: QHideEvent) -> None:
        """So does closing the dock or the window."""
        self._write()
        super().hideEvent(event)

    def _write(self) -> None:
        self.setModified(False)
        if self._about is not None and self.text() != self._kept:
            self._kept = self.text()
            self.written.emit(self._about, self._kept)


class VerdictSection(QWidget):
    """The verdict on the open slide."""

    judged = Signal(object)
    stepped = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.about = QElidingLabel()
        self.about.setElideMode(Qt.TextElideMode.ElideMiddle)
        self.about.setStyleSheet(parts.HEADING_STYLE)
        self.previous = button("◀", keys.hint("Open the previous slide", keys.PREVIOUS), "Previous slide")
        self.next = button("▶", keys.hint("Open the next slide", keys.NEXT), "Next slide")
        self.agree = button(
            "✓ Agree",
            keys.hint("The answer is right: the label, or that the slide is unlike training", keys.AGREE),
            "Agree",
        )
        self.disagree = button("✗ Disagree", keys.hint("The answer is wrong", keys.DISAGREE), "Disagree")
        self.unsure = button("? Unsure", keys.hint("It can't be told from this slide", keys.UNSURE), "Unsure")
        self.clear = button("Clear", keys.hint("Take the verdict back", keys.CLEAR), "Clear the verdict")
        self.verdicts = {"agree": self.agree, "disagree": self.disagree, "unsure": self.unsure}
        for each in self.verdicts.values():
            each.setCheckable(True)
            each.setStyleSheet(
                f"{_TIGHT} QPushButton:checked {{ background: #2c6fb3; color: white; }}"  # bold would not fit
            )
        self.clear.setStyleSheet(_TIGHT)
        self.note = NoteEdit()
        self.note.setPlaceholderText("Note on this slide")
        self.note.setToolTip(keys.hint("A note; Return keeps it", keys.NOTE))
        self.note.setAccessibleName("Note")
        for step in (self.previous, self.next):
            step.setFixedWidth(34)
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addLayout(_row(self.about, self.previous, self.next, stretch=0), 0, 0)
        verdicts = _row(self.agree, self.disagree, self.unsure, self.clear)
        verdicts.setSpacing(3)
        grid.addLayout(verdicts, 1, 0)
        self.judged_note = parts.wrapped_label()
        grid.addWidget(self.judged_note, 2, 0)
        grid.addWidget(self.note, 3, 0)
        for verdict, each in self.verdicts.items():
            each.clicked.connect(lambda _=False, verdict=verdict: self.judged.emit(verdict))
        self.clear.clicked.connect(lambda: self.judged.emit(None))
        self.previous.clicked.connect(lambda: self.stepped.emit(-1))
        self.next.clicked.connect(lambda: self.stepped.emit(1))

    def show_panel(self, panel: WorklistPanel) -> None:
        """Show whose verdict it is, and what it is."""
        item = panel.judged
        name = item.slide_id if item is not None else "No slide of the list is open"
        self.about.setText(name)
        self.about.setToolTip(name)
        parts.show_text(self.judged_note, judged_note(item) if item is not None else "")
        for verdict, each in self.verdicts.items():
            each.setEnabled(item is not None)
            each.setChecked(panel.verdict == verdict)
        self.clear.setEnabled(panel.verdict is not None)
        self.note.setEnabled(item is not None)
        self.note.show_note(panel.open_path, item.note if item is not None else "")


class BatchSection(QWidget):
    """Classify the folder."""

    start_clicked = Signal()
    cancel_clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.start = button(
            "Classify folder",
            "Classify every slide of the list that has no result yet; review goes on meanwhile",
        )
        self.cancel = button("Stop", "Stop classifying; what is done stays, and goes on from there next time")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(10)
        self.bar.setAccessibleName("Progress of the folder")
        self.bar.setToolTip("Slides classified")
        self.text = parts.wrapped_label()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.start, self.cancel, self.bar, self.text):
            column.addWidget(widget)
        self.start.clicked.connect(lambda: self.start_clicked.emit())
        self.cancel.clicked.connect(lambda: self.cancel_clicked.emit())

    def show_panel(self, panel: WorklistPanel) -> None:
        """Show the button that makes sense now, and the progress."""
        batch = panel.batch
        self.start.setVisible(not batch.running)
        self.start.setEnabled(batch.can_start)
        self.cancel.setVisible(batch.running)
        self.bar.setVisible(batch.running)
        self.bar.setRange(0, max(1, batch.total))
        self.bar.setValue(batch.done)
        parts.show_text(self.text, batch.text)


class TableFileSection(QWidget):
    """The list as a file."""

    save_clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.save = button(
            "Save table …",
            "Save results, verdicts and notes of all slides of the list as a CSV file",
            "Save the list as a CSV table",
        )
        self.identifiers = QCheckBox("Keep slide names")
        self.identifiers.setToolTip(
            "Off: the file calls slides by a short fingerprint. A slide's name can hold a patient's. "
            "Notes are written as they are."
        )
        self.identifiers.setAccessibleName("Keep slide names in the saved table")
        self.text, self.error = parts.wrapped_label(), parts.wrapped_label(style=parts.ERROR_STYLE)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(_row(self.save, self.identifiers, stretch=1))
        for label in (self.text, self.error):
            column.addWidget(label)
        self.save.clicked.connect(lambda: self.save_clicked.emit())

    def show_panel(self, panel: TableFilePanel) -> None:
        """Show whether it can be saved, and what came of it."""
        self.save.setEnabled(panel.can_save)
        parts.show_text(self.text, panel.text)
        parts.show_text(self.error, panel.error)

"""What the worklist dock shows before a list is open: what to do, and whether slides open without a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QPushButton

from napari_lrmil._viewer.docks.worklist.sections import button
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.section import Section
from napari_lrmil.errors import readable

_ENTRY_PX = 250
"""What an entry of the recent ones may be wide where the dock is narrowest."""
STEPS = (
    "1. Open a slide: File > Open, or drop it on the window. For many, open their folder above.\n"
    "2. Press Classify: label and heatmap appear on the slide.\n"
    "3. In a folder, N opens the next slide; G agrees, W disagrees with the answer."
)
QUESTION = (
    "napari asks which reader shall open a slide, and reads slides whole where another one does. "
    "Shall LRMIL open them from now on?"
)


class ReaderSection(Section):
    """Asks, once, whether LRMIL shall open slides without napari's question."""

    answered = Signal(bool, bool)
    """Whether it shall, and files that are called like ordinary images too."""

    def __init__(self) -> None:
        super().__init__()
        self.always = button(
            "Always open with LRMIL", "Slides (.svs, .ndpi, .mrxs …) open at once from now on"
        )
        self.ask = button(
            "Keep asking", "Ask no more here; File > IO Utilities has it too", "Let napari keep asking"
        )
        self.shared = QCheckBox("TIFF, DICOM and Zarr too")
        self.shared.setToolTip(
            "Slides and ordinary images are called so. Off: napari asks about these. On: it asks about those that are no slides"
        )
        self.shared.setAccessibleName("Open TIFF, DICOM and Zarr files with LRMIL too")
        self.column.addWidget(parts.wrapped_label(QUESTION, style=parts.HINT_STYLE))
        self.column.addWidget(self.shared)
        self.add_row(self.always, self.ask)
        self.always.clicked.connect(lambda: self.answered.emit(True, self.shared.isChecked()))
        self.ask.clicked.connect(lambda: self.answered.emit(False, False))


class RecentSection(Section):
    """Folders, tables and slides that were opened lately."""

    list_chosen = Signal(str)
    slide_chosen = Signal(str)
    forget_clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.forget = button("Forget", "Forget these, and where you stopped", "Forget what was opened lately")
        self.add_heading("Opened lately", self.forget)
        self.entries: dict[str, QPushButton] = {}
        """By their paths, as they are listed."""
        self.forget.clicked.connect(lambda: self.forget_clicked.emit())

    def show_paths(self, lists: Sequence[str], slides: Sequence[str]) -> None:
        """Show these, the folders first; nothing at all where there are none."""
        kinds = {**dict.fromkeys(lists, self.list_chosen), **dict.fromkeys(slides, self.slide_chosen)}
        self.setVisible(bool(kinds))
        if list(kinds) == list(self.entries):
            return
        for entry in self.entries.values():
            entry.hide()
            entry.deleteLater()
        self.entries.clear()
        for path, chosen in kinds.items():
            name = readable(Path(path).name)
            kind = "Slide" if path in slides else "List"
            entry = self.entries[path] = button("", f"{kind} {readable(path)}", f"Open {kind.lower()} {name}")
            text = entry.fontMetrics().elidedText(f"{kind}: {name}", Qt.TextElideMode.ElideMiddle, _ENTRY_PX)
            entry.setText(text.replace("&", "&&"))
            entry.setStyleSheet("QPushButton { text-align: left; padding: 4px 8px; }")
            entry.clicked.connect(lambda _=False, path=path, chosen=chosen: chosen.emit(path))
            self.column.addWidget(entry)


class StartPage(Section):
    """Shown while no list is open."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.recent = ReaderSection(), RecentSection()
        self.column.addWidget(parts.wrapped_label(STEPS))
        self.column.addWidget(self.recent)
        self.column.addWidget(self.reader)

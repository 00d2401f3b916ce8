"""What the worklist dock shows before a list is open: what to do, and whether slides open without a question."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox

from napari_lrmil._viewer.docks.worklist.sections import button
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.section import Section

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


class StartPage(Section):
    """Shown while no list is open."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = ReaderSection()
        self.column.addWidget(parts.wrapped_label(STEPS))
        self.column.addWidget(self.reader)

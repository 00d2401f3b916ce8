"""The model card in a window of its own."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QTextBrowser, QVBoxLayout, QWidget


class CardDialog(QDialog):
    """Text of a model card; the slide stays usable beside it.

    Parameters
    ----------
    markdown : str
    parent : QWidget
    """

    def __init__(self, markdown: str, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Model card")
        self.text = QTextBrowser()
        self.text.setMarkdown(markdown)
        self.text.setOpenLinks(False)  # a card comes from strangers, and nothing leaves the window unasked
        self.text.setAccessibleName("Model card")
        self.text.setToolTip("What the model is, what it was trained on, and how far to trust it")
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.close)
        column = QVBoxLayout(self)
        column.addWidget(self.text)
        column.addWidget(buttons)
        self.resize(620, 640)

"""The dock "LRMIL: export": files of the current slide's result."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QCheckBox, QFileDialog, QProgressBar, QPushButton

from napari_lrmil._viewer.docks.docked import DockedWidget
from napari_lrmil._viewer.docks.export.formats import FORMATS, Format, Options
from napari_lrmil._viewer.docks.export.panel import ExportPanel
from napari_lrmil._viewer.docks.export.presenter import ExportPresenter
from napari_lrmil._viewer.qt import parts


class ExportWidget(DockedWidget):
    """Reports, pictures, numbers and tables of the current slide."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("lrmil_exports")
        self.hint = parts.wrapped_label(style=parts.HINT_STYLE)
        self.buttons = {each.key: QPushButton(each.title) for each in FORMATS}
        self.over_slide = QCheckBox("Picture: heatmap over the slide")
        self.identifiers = QCheckBox("&Keep the slide's name in the files")
        self.bar = QProgressBar()
        self.progress_text = parts.wrapped_label()
        self.cancel = QPushButton("Cancel")
        self.success = parts.wrapped_label()
        self.open_folder = QPushButton("Open the folder")
        self.error = parts.wrapped_label(style=parts.ERROR_STYLE)
        self._folder = Path()
        self.presenter = ExportPresenter(self, self.background)
        self._lay_out()
        self._connect()
        self.begin(self.presenter)

    def show_panel(self, panel: ExportPanel) -> None:
        """Show a panel."""
        parts.show_text(self.hint, panel.hint)
        for each in FORMATS:
            self.buttons[each.key].setEnabled(panel.can_report if each.needs_bundle else panel.can_export)
        running = panel.progress is not None
        self.bar.setVisible(running)
        if panel.progress is not None:
            done, total = panel.progress
            self.bar.setRange(0, total)
            self.bar.setValue(done)
        self.cancel.setVisible(running)
        self.cancel.setEnabled(not panel.cancelling)
        parts.show_text(self.progress_text, panel.progress_text if running else "")
        parts.show_text(self.success, panel.success)
        self.open_folder.setVisible(bool(panel.folder))
        self._folder = Path(panel.folder)
        parts.show_text(self.error, panel.error)

    def ask_path(self, wanted: Format) -> Path | None:
        """Ask where to write."""
        chosen, _ = QFileDialog.getSaveFileName(
            self,
            wanted.name,
            wanted.default_name,
            wanted.filter,
            options=QFileDialog.Option.DontConfirmOverwrite,  # the presenter asks, for all files of the format
        )
        return Path(chosen) if chosen else None

    def may_replace(self, question: str) -> bool:
        """Ask whether files may be replaced."""
        return parts.confirmed(self, "Replace?", question)

    def _connect(self) -> None:
        for each in FORMATS:
            self.buttons[each.key].clicked.connect(partial(self._choose, each))
        self.cancel.clicked.connect(lambda: self.presenter.cancel())
        self.open_folder.clicked.connect(lambda: self._open_folder())

    def _choose(self, wanted: Format, checked: bool = False) -> None:
        options = Options(
            over_slide=self.over_slide.isChecked(), show_identifiers=self.identifiers.isChecked()
        )
        self.presenter.choose(wanted, options)

    def _open_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._folder)))

    def _lay_out(self) -> None:
        column = self.column
        column.addWidget(self.hint)
        for each in FORMATS:
            button = self.buttons[each.key]
            button.setToolTip(each.tool_tip)
            button.setAccessibleName(f"{each.name}: {each.tool_tip}")
            button.setStyleSheet("QPushButton { text-align: left; padding: 5px 8px; }")
            column.addWidget(button)
        self.over_slide.setChecked(True)
        self.over_slide.setToolTip("Off: the heatmap alone, clear where no tile was read")
        self.identifiers.setToolTip(
            "Off: files call the slide by a short fingerprint. A slide's name can hold a patient's."
        )
        column.addWidget(self.over_slide)
        column.addWidget(self.identifiers)
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(10)
        self.bar.setAccessibleName("Progress of the export")
        self.bar.setToolTip("Progress of the export")
        self.cancel.setToolTip("Stop; nothing is written")
        self.cancel.setAccessibleName("Cancel the export")
        self.open_folder.setToolTip("Show the folder in the system's file manager")
        self.open_folder.setAccessibleName("Open the folder of the exported files")
        self.success.setAccessibleName("Result of the export")
        for widget in (self.bar, self.progress_text, self.cancel, self.success, self.open_folder, self.error):
            column.addWidget(widget)
        column.addStretch(1)

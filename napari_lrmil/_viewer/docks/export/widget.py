"""The dock "LRMIL: export": files of the current slide's result."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QCheckBox, QFileDialog, QMessageBox, QProgressBar, QPushButton

from napari_lrmil._viewer.background import Background, Steps
from napari_lrmil._viewer.docks.export.formats import FORMATS, Format, Options, target_of
from napari_lrmil._viewer.docks.export.presenter import ExportPanel, ExportsPresenter
from napari_lrmil._viewer.layers import SLIDE_KEY
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.dock import DockedWidget
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.slide import Slide

_JOB = "export"


class ExportsWidget(DockedWidget):
    """Reports, pictures, numbers and tables of the current slide.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The name of the parameter is how napari knows to pass it.
    """

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
        self._lay_out()
        self.presenter = ExportsPresenter(self, _Jobs(self.background), self._is_open)
        self._connect()
        self.begin()

    def attach(self, controller: Controller) -> None:
        """Follow this controller."""
        self.presenter.attach(controller)

    def refresh(self, change: Change) -> None:
        """Show what is so now."""
        self.presenter.refresh()

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

    def _connect(self) -> None:
        for each in FORMATS:
            self.buttons[each.key].clicked.connect(partial(self._export, each))
        self.cancel.clicked.connect(lambda: self.presenter.cancel())
        self.open_folder.clicked.connect(lambda: self._open_folder())

    def _export(self, wanted: Format, checked: bool = False) -> None:
        chosen, _ = QFileDialog.getSaveFileName(
            self,
            wanted.title.removesuffix(" …"),
            wanted.default_name,
            wanted.filter,
            options=QFileDialog.Option.DontConfirmOverwrite,  # asked below, for all files of the format
        )
        if not chosen:
            return
        path = target_of(Path(chosen), wanted)
        there = [each.name for each in wanted.targets(path) if each.exists()]
        if there and not self._may_replace(there):
            return
        options = Options(
            over_slide=self.over_slide.isChecked(), show_identifiers=self.identifiers.isChecked()
        )
        self.presenter.export(wanted, path, options)

    def _may_replace(self, names: list[str]) -> bool:
        are, it = ("is", "it") if len(names) == 1 else ("are", "them")
        answer = QMessageBox.question(
            self,
            "Replace?",
            f"{' and '.join(names)} {are} already there. Replace {it}?",
            QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No,
            QMessageBox.StandardButton.No,
        )
        return bool(answer == QMessageBox.StandardButton.Yes)

    def _is_open(self, slide: Slide) -> bool:
        return any(layer.metadata.get(SLIDE_KEY) is slide for layer in self.viewer.layers)

    def _open_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._folder)))

    def _lay_out(self) -> None:
        column = self.column
        column.addWidget(self.hint)
        for each in FORMATS:
            button = self.buttons[each.key]
            button.setToolTip(each.tool_tip)
            button.setAccessibleName(f"{each.title.removesuffix(' …')}: {each.tool_tip}")
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


class _Jobs:
    """The presenter's `Jobs` on the dock's background."""

    def __init__(self, background: Background) -> None:
        self._background = background

    def start(
        self,
        steps: Steps[Any, Any],
        *,
        progressed: Callable[[Any], None],
        done: Callable[[Any], None],
        failed: Callable[[str], None],
        cancelled: Callable[[], None],
    ) -> None:
        """Run in the background."""
        self._background.start(
            _JOB, steps, progressed=progressed, done=done, failed=failed, cancelled=cancelled
        )

    def cancel(self) -> None:
        """Ask it to quit."""
        self._background.cancel(_JOB)

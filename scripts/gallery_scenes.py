"""The windows of the gallery: what is opened, docked and pressed in each before its picture is taken."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import napari
from gallery_files import Files
from qtpy.QtCore import QBuffer, Qt
from qtpy.QtGui import QPainter
from qtpy.QtWidgets import QApplication, QScrollArea, QWidget
from screenshot import dismiss_notices

from napari_lrmil._viewer.docks.classify.sections import CardDialog
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.export.formats import FORMATS, Options
from napari_lrmil._viewer.window import State
from napari_lrmil.predict import SlidePrediction

SIZE_PX, TALL_PX = (1440, 900), (1440, 1120)
_LONG_S, _SETTLE_S = 180.0, 1.2


class Picture(NamedTuple):
    """One of the gallery."""

    name: str
    text: str
    draw: Callable[[Stage], None]
    theme: str = "dark"


class Stage:
    """A window and what can be done with it."""

    def __init__(self, files: Files, theme: str) -> None:
        self.files = files
        self.viewer = napari.Viewer(show=False)
        self.viewer.show()
        self.viewer.theme = theme
        self.main = dock_widget(self.viewer)
        self.controller = self.main.controller
        self.over: list[QWidget] = []
        """Windows that lie over the main one."""

    @property
    def result(self) -> SlidePrediction:
        """What is shown; there must be one."""
        result = self.controller.result
        if result is None:
            raise SystemExit("there is no result to take a picture of")
        return result

    def load_model(self) -> None:
        """Load the model of the gallery."""
        self.wait(lambda: self.controller.state is not State.LOADING_BUNDLE)
        self.controller.load_bundle(str(self.files.bundle))
        self.wait(lambda: self.controller.state is not State.LOADING_BUNDLE)

    def classified(self, path: Path) -> None:
        """Open a slide and classify it."""
        self.load_model()
        self.controller.open_slide(path)
        self.settle(0.3)
        if self.controller.result is None:
            self.controller.classify()
        self.wait(lambda: self.controller.result is not None)
        self.fit()

    def fit(self, size_px: tuple[int, int] = SIZE_PX) -> None:
        """Give the window its size, once the docks are there, and show the whole slide."""
        self.settle(0.3)
        self.viewer.window.resize(*size_px)
        self.settle(0.5)
        self.viewer.reset_view()

    def dock(self, name: str) -> Any:
        """Open a dock of the plugin, as the Plugins menu does."""
        _, widget = self.viewer.window.add_plugin_dock_widget("napari-lrmil", name)
        self.settle(0.4)
        return widget

    def place_below(self, widget: QWidget, *, share: float) -> None:
        """Move a dock below the canvas, as dragging its title does; `share` is its part of the window's height."""
        dock, window = widget.parent(), self.window
        window.addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock)
        window.resizeDocks([dock], [round(share * window.height())], Qt.Orientation.Vertical)

    def only_right(self, widget: QWidget) -> None:
        """Lay a dock over the main one, as a tab."""
        self.window.tabifyDockWidget(self.main.parent(), widget.parent())
        widget.parent().raise_()

    @property
    def window(self) -> QWidget:
        """Qt's main window."""
        return self.main.window()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + _LONG_S
        while not condition():
            if time.monotonic() > end:
                raise SystemExit("the window didn't get there")
            QApplication.processEvents()
            time.sleep(0.002)

    def settle(self, seconds: float = _SETTLE_S) -> None:
        """Let tiles come in, notices fade, docks find their size."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)

    def dismiss_notices(self) -> None:
        """Close napari's pop-ups."""
        dismiss_notices(self.window, keep=self.over)

    def grab(self) -> bytes:
        """Return the window, and what lies over it, as PNG."""
        picture = self.window.grab()
        painter = QPainter(picture)
        for dialog in self.over:
            left = (self.window.width() - dialog.width()) // 2
            top = (self.window.height() - dialog.height()) // 2
            painter.drawPixmap(left, top, dialog.grab())
            painter.drawRect(left - 1, top - 1, dialog.width() + 1, dialog.height() + 1)
        painter.end()
        buffer = QBuffer()
        buffer.open(QBuffer.OpenModeFlag.WriteOnly)
        picture.save(buffer, "PNG")
        return bytes(buffer.data())

    def close(self) -> None:
        """Close the window and all that lies over it."""
        for dialog in self.over:
            dialog.close()
        self.viewer.close()
        self.settle(0.2)


def main_window(stage: Stage) -> None:
    stage.classified(stage.files.large)


def evidence(stage: Stage) -> None:
    stage.classified(stage.files.small_lesion)
    stage.main.presenter.choose_evidence(channel=1 + stage.result.class_names.index("lesion"))
    stage.settle(0.3)
    bar = stage.main.findChild(QScrollArea).verticalScrollBar()
    bar.setValue(bar.maximum())


def tiles(stage: Stage) -> None:
    stage.classified(stage.files.large)
    gallery = stage.dock("LRMIL: tiles")
    stage.fit(TALL_PX)
    stage.place_below(gallery, share=0.45)
    stage.settle(0.3)
    stage.viewer.reset_view()
    stage.settle(2.0)


def worklist(stage: Stage) -> None:
    files = stage.files
    late = files.late.exists()
    if late:
        files.late.unlink()
    stage.load_model()
    widget = stage.dock("LRMIL: worklist")
    presenter = widget.presenter
    presenter.open_list(files.folder)
    stage.wait(lambda: presenter.worklist is not None)
    presenter.classify_all()
    stage.wait(lambda: not presenter.panel().batch.running)
    for name, verdict in (("case-01", "agree"), ("case-04", "disagree"), ("case-06", "unsure")):
        presenter.open_slide(files.folder / f"{name}.tiff")
        stage.wait(lambda: stage.controller.result is not None)
        presenter.judge(verdict)
    presenter.write_note(files.folder / "case-04.tiff", "only crush artefact")
    shutil.copyfile(files.large, files.late)
    presenter.open_list(files.folder)
    stage.settle(0.5)
    presenter.open_slide(files.folder / "case-03.tiff")
    stage.wait(lambda: stage.controller.result is not None)
    stage.fit(TALL_PX)
    stage.settle()
    presenter.classify_all()
    stage.wait(lambda: presenter.worklist[files.late].status.value == "running")
    widget.show_now()
    stage.dismiss_notices()


def overview(stage: Stage) -> None:
    stage.classified(stage.files.large)
    widget = stage.dock("LRMIL: overview")
    stage.only_right(widget)
    stage.fit()
    widget.presenter.centre_on((900.0, 1300.0))
    widget.presenter.magnify(10)


def annotated(stage: Stage) -> None:
    stage.classified(stage.files.large)
    stage.controller.set_heatmap(visible=False)
    widget = stage.dock("LRMIL: annotations")
    stage.only_right(widget)
    stage.wait(lambda: len(widget.presenter.annotations) > 0)
    stage.fit()


def exports(stage: Stage) -> None:
    stage.classified(stage.files.large)
    widget = stage.dock("LRMIL: export")
    stage.only_right(widget)
    wanted = FORMATS[0]
    stage.fit()
    folder = stage.files.reports
    target = folder / wanted.default_name
    widget.presenter.export(wanted, target, Options(over_slide=True, show_identifiers=False))
    stage.wait(lambda: widget.success.isVisible() or widget.error.isVisible())


def missing_mpp(stage: Stage) -> None:
    stage.load_model()
    stage.controller.open_slide(stage.files.without_mpp)
    stage.fit()


def damaged(stage: Stage) -> None:
    stage.load_model()
    stage.controller.open_slide(stage.files.damaged)
    stage.fit()


def model_card(stage: Stage) -> None:
    stage.classified(stage.files.large)
    stage.main.model_section.card_clicked.emit()
    stage.wait(lambda: bool(stage.main.findChildren(CardDialog)))
    stage.over = stage.main.findChildren(CardDialog)


PICTURES = (
    Picture("main", "a slide, its label, probabilities and heatmap", main_window),
    Picture("main_light", "the same in napari's light theme", main_window, "light"),
    Picture(
        "evidence",
        "what each tile contributes to a class, and whether these tiles carry the result",
        evidence,
    ),
    Picture("tiles", "the tiles that count most and least, below the canvas", tiles),
    Picture(
        "worklist",
        "a folder of slides, with results, verdicts, a file that is damaged and one at work",
        worklist,
    ),
    Picture("worklist_light", "the same in the light theme", worklist, "light"),
    Picture("overview", "where one is on the slide, magnification, and what the file says of it", overview),
    Picture("annotations", "annotations with names and classes, which save themselves", annotated),
    Picture("annotations_light", "the same in the light theme", annotated, "light"),
    Picture("exports", "files for others; a report has just been written", exports),
    Picture("missing_mpp", "a slide that doesn't say how large its pixels are", missing_mpp),
    Picture("damaged", "a file that can't be read", damaged),
    Picture("model_card", "what the model is, in a window of its own", model_card),
)

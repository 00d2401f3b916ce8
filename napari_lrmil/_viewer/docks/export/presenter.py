"""What the export dock offers and does. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_lrmil._viewer.docks.export import panel as panels
from napari_lrmil._viewer.docks.export.formats import (
    Format,
    Options,
    Source,
    Step,
    of_unchanged,
    refuse_the_slide,
)
from napari_lrmil._viewer.docks.export.panel import ExportPanel
from napari_lrmil._viewer.window import Change
from napari_lrmil.errors import LRMILError

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Background
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.slide import Slide

_JOB = "export"
_CONCERNS = Change.SLIDES | Change.SLIDE | Change.RESULT | Change.MODEL


class ExportView(Protocol):
    """The dock."""

    def show_panel(self, panel: ExportPanel) -> None:
        """Show exactly this."""
        ...

    def ask_path(self, wanted: Format) -> Path | None:
        """Ask where to write; None where nobody wants to any more."""
        ...

    def may_replace(self, question: str) -> bool:
        """Ask whether files may be replaced."""
        ...


@dataclass
class _Export:
    """The one under way."""

    wanted: Format
    slide: Slide
    step: Step
    cancelling: bool = False


class ExportPresenter:
    """The state behind the export dock.

    Parameters
    ----------
    view : ExportView
    background : Background
    """

    _controller: Controller

    def __init__(self, view: ExportView, background: Background) -> None:
        self._view, self._background = view, background
        self._slide: Slide | None = None
        self._export: _Export | None = None
        self._success, self._folder, self._error = "", "", ""

    def attach(self, controller: Controller) -> None:
        """Follow this controller from now on; an export under way goes on. Comes before all else."""
        self._controller = controller

    def refresh(self, change: Change = Change.ALL) -> None:
        """Slide, result or model may have changed. The export of a slide that is gone ends."""
        if not change & _CONCERNS:
            return
        slide = self._controller.slide
        if slide is not self._slide:
            self._success, self._folder = "", ""
            if self._export is None:
                self._error = ""
        self._slide = slide
        if self._export is not None and self._export.slide not in self._controller.slides:
            self.cancel()
        self._show()

    def choose(self, wanted: Format, options: Options) -> None:
        """Ask for a name, and whether what is there may be replaced, then write."""
        chosen = self._view.ask_path(wanted)
        if chosen is None:
            return
        path = wanted.with_ending(chosen)
        there = [each.name for each in wanted.targets(path) if each.exists()]
        if not there or self._view.may_replace(panels.replace_text(there)):
            self.export(wanted, path, options)

    def export(self, wanted: Format, path: Path, options: Options) -> None:
        """Write a file in the background, in place of one that is there."""
        source = self._source
        if source is None or self._export is not None or (wanted.needs_bundle and source.info is None):
            return
        self._success, self._folder, self._error = "", "", ""
        try:
            refuse_the_slide(wanted.targets(path), source.slide)
        except LRMILError as error:
            self._error = str(error)
            self._show()
            return
        self._export = _Export(wanted, source.slide, Step(0, 0, ""))
        self._background.start(
            _JOB,
            of_unchanged(source.slide, wanted.steps(path, source, options)),
            progressed=self._progressed,
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
        )
        self._show()

    def cancel(self) -> None:
        """Stop after the step under way; there is no file then."""
        if self._export is not None and not self._export.cancelling:
            self._export.cancelling = True
            self._background.cancel(_JOB)
            self._show()

    @property
    def _source(self) -> Source | None:
        controller = self._controller
        if controller.slide is None or controller.result is None:
            return None
        bundle = controller.bundle
        same = bundle is not None and bundle.info.sha256 == controller.result.bundle_sha256
        return Source(
            controller.slide, controller.result, bundle.info if bundle is not None and same else None
        )

    def _progressed(self, step: Step) -> None:
        if self._export is not None:
            self._export.step = step
            self._show()

    def _done(self, paths: tuple[Path, ...]) -> None:
        self._export = None
        self._success, self._folder = panels.saved_text(paths), str(paths[0].parent)
        self._show()

    def _failed(self, text: str) -> None:
        if self._export is not None and self._export.cancelling:
            self._cancelled()
            return
        self._export, self._error = None, text
        self._show()

    def _cancelled(self) -> None:
        self._export, self._success = None, panels.CANCELLED
        self._show()

    def _show(self) -> None:
        self._view.show_panel(self._panel_at_rest() if self._export is None else _panel_of(self._export))

    def _panel_at_rest(self) -> ExportPanel:
        source = self._source
        if source is None:
            hint = panels.NO_SLIDE if self._controller.slide is None else panels.NO_RESULT
        else:
            hint = panels.NO_MODEL if source.info is None else ""
        return ExportPanel(
            can_export=source is not None,
            can_report=source is not None and source.info is not None,
            hint=hint,
            success=self._success,
            folder=self._folder,
            error=self._error,
        )


def _panel_of(export: _Export) -> ExportPanel:
    doing = f"{export.wanted.name}: {export.step.doing}" if export.step.doing else export.wanted.name
    return ExportPanel(
        progress=(export.step.done, export.step.total),
        progress_text=panels.CANCELLING if export.cancelling else doing,
        cancelling=export.cancelling,
    )

"""What the export dock offers, does and says. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from napari_lrmil._viewer.docks.export.formats import FORMATS, Format, Options, Source, Step, refuse_the_slide
from napari_lrmil._viewer.docks.export.verdicts import verdict_of
from napari_lrmil.errors import LRMILError

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Steps
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.slide import Slide


@dataclass(frozen=True)
class ExportPanel:
    """Everything the dock shows. `progress` is (done, total), (0, 0) where the end isn't known."""

    can_export: bool = False
    can_report: bool = False
    hint: str = ""
    progress: tuple[int, int] | None = None
    progress_text: str = ""
    cancelling: bool = False
    success: str = ""
    folder: str = ""
    error: str = ""


class View(Protocol):
    """The dock."""

    def show_panel(self, panel: ExportPanel) -> None: ...


class Jobs(Protocol):
    """Runs one export at a time; errors come back as text."""

    def start(
        self,
        steps: Steps[Any, Any],
        *,
        progressed: Callable[[Any], None],
        done: Callable[[Any], None],
        failed: Callable[[str], None],
        cancelled: Callable[[], None],
    ) -> None: ...

    def cancel(self) -> None: ...


class ExportsPresenter:
    """The state behind the export dock.

    Parameters
    ----------
    view : View
    jobs : Jobs
    is_open : callable
        Whether a slide is still among the layers.
    """

    def __init__(self, view: View, jobs: Jobs, is_open: Callable[[Slide], bool]) -> None:
        self._view, self._jobs, self._is_open = view, jobs, is_open
        self._controller: Controller | None = None
        self._slide: Slide | None = None
        self._exported: Slide | None = None
        self._format: Format | None = None
        self._step = Step(0, 0, "")
        self._cancelling = False
        self._success, self._folder, self._error = "", "", ""

    def attach(self, controller: Controller) -> None:
        """Follow this controller's slide from now on."""
        self._controller = controller

    def refresh(self) -> None:
        """Slide or result may have changed. The export of a slide that is gone ends."""
        slide = self._controller.slide if self._controller is not None else None
        if slide is not self._slide:
            self._success, self._folder = "", ""
            if self._format is None:
                self._error = ""
        if self._format is not None and self._exported is not None and not self._is_open(self._exported):
            self.cancel()
        self._slide = slide
        self._show()

    def export(self, wanted: Format, path: Path, options: Options) -> None:
        """Write a file in the background; whether it may be replaced has been asked."""
        source = self._source()
        if source is None or self._format is not None or (wanted.needs_bundle and source.info is None):
            return
        self._success, self._folder, self._error = "", "", ""
        try:
            refuse_the_slide(wanted.targets(path), source.slide)
        except LRMILError as error:
            self._error = str(error)
            self._show()
            return
        self._format, self._exported, self._cancelling = wanted, source.slide, False
        self._step = Step(0, 0, "")
        self._jobs.start(
            _with_verdict(wanted, path, source, options),
            progressed=self._progressed,
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
        )
        self._show()

    def cancel(self) -> None:
        """Stop after the step under way; there is no file then."""
        if self._format is not None and not self._cancelling:
            self._cancelling = True
            self._jobs.cancel()
            self._show()

    def _source(self) -> Source | None:
        controller = self._controller
        if controller is None or controller.slide is None or controller.result is None:
            return None
        bundle = controller.bundle
        same = bundle is not None and bundle.info.weights_sha256 == controller.result.bundle_sha256
        info = bundle.info if bundle is not None and same else None
        return Source(controller.slide, controller.result, info)

    def _progressed(self, step: Any) -> None:
        if isinstance(step, Step):
            self._step = step
            self._show()

    def _done(self, paths: tuple[Path, ...]) -> None:
        self._format = None
        names = " and ".join(path.name for path in paths)
        self._success, self._folder = f"Saved {names} in {paths[0].parent}.", str(paths[0].parent)
        self._show()

    def _failed(self, text: str) -> None:
        cancelled, self._format = self._cancelling, None
        self._error = "" if cancelled else text
        self._success = "Cancelled. Nothing was written." if cancelled else ""
        self._show()

    def _cancelled(self) -> None:
        self._format = None
        self._success = "Cancelled. Nothing was written."
        self._show()

    def _hint(self) -> str:
        controller = self._controller
        if controller is None or controller.slide is None:
            return "Open and classify a slide first."
        if controller.result is None:
            return "Classify the slide first: what is exported is its result."
        source = self._source()
        if source is not None and source.info is None:
            return "For reports, load the model that this result came from, or classify again."
        return ""

    def _show(self) -> None:
        running = self._format is not None
        source = None if running else self._source()
        doing = self._format.title.removesuffix(" …") if self._format is not None else ""
        step = f": {self._step.doing}" if self._step.doing else ""
        self._view.show_panel(
            ExportPanel(
                can_export=source is not None,
                can_report=source is not None and source.info is not None,
                hint="" if running else self._hint(),
                progress=(self._step.done, self._step.total) if running else None,
                progress_text="Cancelling …" if self._cancelling and running else f"{doing}{step}",
                cancelling=self._cancelling,
                success="" if running else self._success,
                folder="" if running else self._folder,
                error=self._error,
            )
        )


def _with_verdict(wanted: Format, path: Path, source: Source, options: Options) -> Steps[Any, Any]:
    """The steps of a format; reads the reviewer's verdict first, which is a file."""
    if wanted.needs_bundle:
        yield Step(0, 0, "looking for the verdict")
        source = source._replace(verdict=verdict_of(source.slide.path))
    return (yield from wanted.steps(path, source, options))


__all__ = ["FORMATS", "ExportPanel", "ExportsPresenter", "Jobs", "View"]

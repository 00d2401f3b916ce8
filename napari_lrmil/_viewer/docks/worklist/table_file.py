"""The worklist's results, verdicts and notes as one CSV file. No Qt, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.background import Background, Steps
from napari_lrmil._viewer.docks.worklist.panel import TableFilePanel
from napari_lrmil.cache import ResultCache, ResultKeys, ResultSummary, summarise
from napari_lrmil.errors import LRMILError
from napari_lrmil.export.tables import FolderRow, write_folder_table
from napari_lrmil.slide import Slide
from napari_lrmil.slide.identity import same_slide
from napari_lrmil.worklist import Worklist, WorklistError, WorklistItem

if TYPE_CHECKING:
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction

_SUFFIX = ".csv"
_SAVE = "save table"


@dataclass(frozen=True)
class TableRequest:
    """What goes into the file, as it was when it was asked for.

    Attributes
    ----------
    path : Path
        Where to write; an ending other than .csv gets one.
    items : tuple of WorklistItem
        A row each.
    info : BundleInfo or None
        Of the model whose results are meant; None: verdicts and notes alone.
    shown : mapping of Path to SlidePrediction
        Results of slides that are open.
    show_identifiers : bool
        Whether slides are called by their names.
    """

    path: Path
    items: tuple[WorklistItem, ...]
    info: BundleInfo | None
    shown: Mapping[Path, SlidePrediction]
    show_identifiers: bool


class TableFile:
    """One table at a time.

    Parameters
    ----------
    background : Background
    changed : callable
        Called when there is something new to show; `panel` says what.
    """

    def __init__(self, background: Background, changed: Callable[[], None]) -> None:
        self._background, self._changed = background, changed
        self._about: Worklist | None = None
        """The list that `_text` and `_error` are about."""
        self._total: int | None = None
        self._done = 0
        self._text = self._error = ""

    def save(
        self, path: Path, worklist: Worklist, controller: Controller | None, *, show_identifiers: bool
    ) -> None:
        """Write every slide of a list, whatever the filter; whether a file may be replaced has been asked.

        Closing the dock before it is written leaves no file.
        """
        if self._total is not None:
            return
        info = controller.bundle.info if controller is not None and controller.bundle is not None else None
        shown: dict[Path, SlidePrediction] = {}
        if controller is not None and info is not None:
            shown = {
                slide.path.absolute(): result
                for slide, result in controller.results.items()
                if result.bundle_sha256 == info.sha256
            }
        request = TableRequest(path, tuple(worklist), info, shown, show_identifiers)
        self._about, self._total, self._done = worklist, len(request.items), 0
        self._text = self._error = ""
        self._background.start(
            _SAVE,
            table_steps(request),
            progressed=self._progressed,
            done=self._saved,
            failed=self._failed,
        )
        self._changed()

    def panel(self, worklist: Worklist) -> TableFilePanel:
        """What is to be shown of it while a list is open."""
        if self._total is not None:
            return TableFilePanel(text=f"Saving the table: {self._done:,} of {self._total:,} slides …")
        if worklist is not self._about:  # said of another list
            return TableFilePanel(can_save=True)
        return TableFilePanel(True, self._text, self._error)

    def _progressed(self, done: int) -> None:
        self._done = done
        self._changed()

    def _saved(self, path: Path) -> None:
        self._total, self._text = None, f"Saved {path.name} in {path.parent}."
        self._changed()

    def _failed(self, text: str) -> None:
        self._total, self._error = None, text
        self._changed()


def table_steps(request: TableRequest) -> Steps[int, Path]:
    """Read what the cache holds of each slide, then write; yields how many slides are read."""
    path = _target_of(request)
    cache = ResultCache()
    keys = ResultKeys(request.info) if request.info is not None else None
    rows = []
    for number, item in enumerate(request.items):
        yield number
        now = _file_now(item, request, cache)
        rows.append(_row_of(item, _result_of(item, request, cache, keys, now), now))
    return write_folder_table(
        path,
        rows,
        class_names=request.info.class_names if request.info is not None else (),
        show_identifiers=request.show_identifiers,
    )


def _target_of(request: TableRequest) -> Path:
    path = request.path.absolute()
    if path.suffix.lower() == _SUFFIX:
        return path
    path = path.with_name(path.name + _SUFFIX)  # keeps slides from being replaced, too
    if path.exists():
        raise WorklistError(f"{path.name} is already there. Choose it by its full name to replace it.")
    return path


def _result_of(
    item: WorklistItem, request: TableRequest, cache: ResultCache, keys: ResultKeys | None, now: str | None
) -> ResultSummary | None:
    info = request.info
    if info is None or keys is None:
        return None
    shown = request.shown.get(item.path)
    if shown is not None and (now is None or same_slide(shown.slide_fingerprint, now)):
        return summarise(shown)
    return cache.known_summary(item.path, info.sha256, keys, mpp=item.mpp)


def _file_now(item: WorklistItem, request: TableRequest, cache: ResultCache) -> str | None:
    """The fingerprint of what is at a slide's path now; None where nothing hangs on it, or nobody can tell."""
    if item.judged_fingerprint is None and item.path not in request.shown:
        return None
    known = cache.known_fingerprint(item.path)
    if known is None:
        with suppress(LRMILError, OSError), Slide(item.path) as slide:
            known = cache.fingerprint_of(slide)
    return known


def _row_of(item: WorklistItem, result: ResultSummary | None, now: str | None) -> FolderRow:
    if now is not None and item.judged_fingerprint and not same_slide(item.judged_fingerprint, now):
        return FolderRow(
            item.slide_id, result, "", "", item.error
        )  # verdict and note are on a file that was there before
    verdict: str = item.verdict or ""
    if item.verdict_outdated:  # it isn't one on the answer in this row
        verdict += f" (with {item.judged_answer or 'no label'})"
    return FolderRow(item.slide_id, result, verdict, item.note, item.error)

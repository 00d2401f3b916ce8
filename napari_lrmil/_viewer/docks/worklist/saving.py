"""The worklist's results, verdicts and notes as one CSV file. No Qt, no torch before it is written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_lrmil._viewer.models import import_models
from napari_lrmil.cache import ResultCache, ResultKeys
from napari_lrmil.export.tables import FolderRow, write_folder_table
from napari_lrmil.worklist import Worklist, WorklistError, WorklistItem

if TYPE_CHECKING:
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction

TABLE_NAME = "predictions.csv"
_SUFFIX = ".csv"


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


@dataclass(frozen=True)
class SavingPanel:
    """What the dock shows of it."""

    can_save: bool = False
    text: str = ""
    error: str = ""


class TableJobs(Protocol):
    """Writes in the background; reports come in the window's thread."""

    def save_table(
        self,
        request: TableRequest,
        *,
        progressed: Callable[[int], None],
        done: Callable[[Path], None],
        failed: Callable[[str], None],
    ) -> None: ...


class TableSaving:
    """One table at a time.

    Parameters
    ----------
    jobs : TableJobs
    worklist : callable
        The list that is open, or None.
    controller : callable
        The main dock's controller, or None.
    changed : callable
        Called when there is something new to show; `panel` says what.
    """

    def __init__(
        self,
        jobs: TableJobs,
        worklist: Callable[[], Worklist | None],
        controller: Callable[[], Controller | None],
        changed: Callable[[], None],
    ) -> None:
        self._jobs, self._worklist, self._controller, self._changed = jobs, worklist, controller, changed
        self._about: Worklist | None = None
        self._total: int | None = None
        self._done = 0
        self._text = self._error = ""

    @property
    def default_path(self) -> Path:
        """Beside the slides, where their verdicts are kept too."""
        worklist = self._worklist()
        folder = worklist.reviews.beside.parent if worklist is not None else Path()
        return folder / TABLE_NAME

    def save(self, path: Path, *, show_identifiers: bool) -> None:
        """Write every slide of the list, whatever the filter; whether a file may be replaced has been asked."""
        worklist, controller = self._worklist(), self._controller()
        if worklist is None or self._total is not None:
            return
        info = controller.bundle.info if controller is not None and controller.bundle is not None else None
        shown: dict[Path, SlidePrediction] = {}
        if controller is not None and info is not None:
            shown = {
                slide.path.absolute(): result
                for slide, result in controller.results.items()
                if result.bundle_sha256 == info.weights_sha256
            }
        request = TableRequest(path, tuple(worklist), info, shown, show_identifiers)
        self._about, self._total, self._done = worklist, len(request.items), 0
        self._text = self._error = ""
        self._jobs.save_table(request, progressed=self._progressed, done=self._saved, failed=self._failed)
        self._changed()

    def panel(self) -> SavingPanel:
        """What is to be shown of it."""
        worklist = self._worklist()
        if self._total is not None:
            return SavingPanel(text=f"Saving the table: {self._done:,} of {self._total:,} slides …")
        if worklist is not self._about:  # said of another list
            return SavingPanel(can_save=worklist is not None)
        return SavingPanel(worklist is not None, self._text, self._error)

    def _progressed(self, done: int) -> None:
        self._done = done
        self._changed()

    def _saved(self, path: Path) -> None:
        self._total, self._text = None, f"Saved {path.name} in {path.parent}."
        self._changed()

    def _failed(self, text: str) -> None:
        self._total, self._error = None, text
        self._changed()


def table_steps(request: TableRequest) -> Generator[int, None, Path]:
    """Read what the cache holds of each slide, then write; yields how many slides are read."""
    path = _target_of(request)
    if request.info is not None:
        import_models()  # reading a result loads torch
    cache = ResultCache()
    keys = ResultKeys(request.info) if request.info is not None else None
    rows = []
    for number, item in enumerate(request.items):
        yield number
        rows.append(_row_of(item, _result_of(item, request, cache, keys)))
    return write_folder_table(path, rows, show_identifiers=request.show_identifiers)


def _target_of(request: TableRequest) -> Path:
    path = request.path.absolute()
    if path.suffix.lower() == _SUFFIX:
        return path
    path = path.with_name(path.name + _SUFFIX)  # keeps slides from being replaced, too
    if path.exists():
        raise WorklistError(f"{path.name} is already there. Choose it by its full name to replace it.")
    return path


def _result_of(
    item: WorklistItem, request: TableRequest, cache: ResultCache, keys: ResultKeys | None
) -> SlidePrediction | None:
    info = request.info
    if info is None or keys is None:
        return None
    found = request.shown.get(item.path)
    if found is None:
        key = keys(item.mpp)
        found = cache.known_result(item.path, info.weights_sha256, key, slide_name=item.slide_id)
    return _light(found) if found is not None else None


def _light(prediction: SlidePrediction) -> SlidePrediction:
    """Without its values per tile: those of a thousand slides would fill the memory."""
    import numpy as np

    none = np.empty(0)
    return replace(
        prediction,
        attention_scores=none,
        attention_logits=none,
        class_contributions=np.empty((0, len(prediction.class_names))),
    )


def _row_of(item: WorklistItem, prediction: SlidePrediction | None) -> FolderRow:
    verdict: str = item.verdict or ""
    if item.verdict_outdated:  # it isn't one on the label in this row
        verdict += f" (with {item.judged_label or 'no label'})"
    return FolderRow(item.slide_id, prediction, verdict, item.note, item.error)

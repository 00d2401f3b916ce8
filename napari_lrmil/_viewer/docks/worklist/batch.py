"""The classification of a folder in the background, and what it says to the list. No Qt, no torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.background import Background, Steps
from napari_lrmil._viewer.docks.worklist.panel import BatchPanel, Pace
from napari_lrmil._viewer.models import import_models
from napari_lrmil.batch import BatchEvent, Kind, classify, follow
from napari_lrmil.cache import ResultCache
from napari_lrmil.wording import counted_answer
from napari_lrmil.worklist import Status, Worklist, WorklistItem

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.predict import SlidePrediction

_CLASSIFY = "classify"
_BATCH_ON_CPU, _BATCH_ON_GPU = 16, 128


class FolderClassification:
    """One batch at a time.

    Parameters
    ----------
    background : Background
    changed : callable
        Called when there is news; gets whether any row of the list is another one.
    finished : callable
        Gets path and prediction of each finished slide.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        background: Background,
        changed: Callable[[bool], None],
        finished: Callable[[Path, SlidePrediction], None],
        clock: Callable[[], float],
    ) -> None:
        self._background, self._changed, self._finished, self._clock = background, changed, finished, clock
        self._list: Worklist | None = None
        self._pace: Pace | None = None
        """Of the batch under way, and by which its reports are known from those of one that was cancelled."""
        self._outcome = ""
        self._note = ""

    def start(
        self, worklist: Worklist, items: Sequence[WorklistItem], bundle: ModelBundle, device: str
    ) -> None:
        """Begin; nothing happens while one is under way."""
        if self._pace is not None:
            return
        pace = Pace(len(items), self._clock())
        self._list, self._pace, self._outcome, self._note = worklist, pace, "", ""
        for item in items:
            worklist.set_status(item.path, Status.QUEUED)
        self._background.start(
            _CLASSIFY,
            classify_steps(items, bundle, device),
            progressed=lambda event: self._happened(pace, event),
            done=lambda _: self._ended(pace, ""),
            failed=lambda text: self._ended(pace, text),
        )

    def cancel(self) -> None:
        """Stop after the tiles under way; slides that are not done wait no more."""
        if self._pace is None:
            return
        self._background.cancel(_CLASSIFY)
        self._close(self._pace.end_text(cancelled=True))

    def forget(self) -> None:
        """Say no more of a batch that has ended: it was another model's."""
        if self._pace is None:
            self._outcome = self._note = ""

    def panel(self, *, can_start: bool) -> BatchPanel:
        """What is to be shown of it."""
        pace = self._pace
        if pace is None:
            return BatchPanel(can_start=can_start, text=" ".join(filter(None, (self._outcome, self._note))))
        return BatchPanel(
            can_start=False, running=True, done=pace.done, total=pace.total, text=pace.text(self._clock())
        )

    def _happened(self, pace: Pace, event: BatchEvent) -> None:
        if pace is not self._pace or self._list is None:
            return
        if event.progress is not None and event.progress.tiles_total:
            pace.slide_share(event.progress.tiles_done / event.progress.tiles_total)
        if event.kind in (Kind.FINISHED, Kind.FAILED):
            found = event.prediction
            pace.slide_over(
                None if found is None else counted_answer(found.answer, found.label, unsure=found.unsure)
            )
            self._note = event.note or self._note
        follow(self._list, event)
        if event.prediction is not None:
            self._finished(event.path, event.prediction)
        self._changed(event.kind is not Kind.PROGRESS)

    def _ended(self, pace: Pace, error: str) -> None:
        if pace is self._pace:
            self._close(error or pace.end_text(cancelled=False))

    def _close(self, outcome: str) -> None:
        self._outcome, self._pace = outcome, None
        worklist = self._list
        if worklist is not None:
            for item in list(worklist):
                if item.status in (Status.QUEUED, Status.RUNNING):
                    worklist.set_status(item.path, Status.NEW)
        self._changed(True)


def classify_steps(
    items: Sequence[WorklistItem], bundle: ModelBundle, device_name: str
) -> Steps[BatchEvent, None]:
    """Classify slides one after the other with a copy of the model; results go into the cache."""
    import_models()
    from napari_lrmil.model.device import resolve_device

    device = resolve_device(device_name)
    # A copy: the main dock may move its model to another device meanwhile.
    own = replace(bundle, encoder=deepcopy(bundle.encoder).to(device), mil=deepcopy(bundle.mil).to(device))
    batch_size = _BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU
    with closing(classify(items, own, cache=ResultCache(), device=device, batch_size=batch_size)) as events:
        yield from events

"""The classification of a worklist in the background: what it says to the list. No Qt, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.docks.worklist.panel import BatchPanel, Pace
from napari_lrmil._viewer.docks.worklist.protocols import BatchJobs
from napari_lrmil.batch import BatchEvent, Kind, follow
from napari_lrmil.worklist import Status, Worklist, WorklistItem

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.predict import SlidePrediction


class Batching:
    """One batch at a time.

    Parameters
    ----------
    jobs : BatchJobs
    changed : callable
        Called when there is news; gets whether any row of the list is another one.
    finished : callable
        Gets path and prediction of each finished slide.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        jobs: BatchJobs,
        changed: Callable[[bool], None],
        finished: Callable[[Path, SlidePrediction], None],
        clock: Callable[[], float],
    ) -> None:
        self._jobs, self._changed, self._finished, self._clock = jobs, changed, finished, clock
        self._list: Worklist | None = None
        self._pace: Pace | None = None
        self._run = 0
        self._told = ""
        self._note = ""

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._pace is not None

    def start(
        self, worklist: Worklist, items: Sequence[WorklistItem], bundle: ModelBundle, device: str
    ) -> None:
        """Begin; nothing happens while one is under way."""
        if self._pace is not None:
            return
        self._list, self._pace, self._told, self._note = worklist, Pace(len(items), self._clock()), "", ""
        for item in items:
            worklist.set_status(item.path, Status.QUEUED)
        self._run += 1
        run = self._run
        self._jobs.classify(
            items,
            bundle,
            device,
            happened=lambda event: self._happened(run, event),
            done=lambda: self._ended(run, ""),
            failed=lambda text: self._ended(run, text),
        )

    def cancel(self) -> None:
        """Stop; slides that are not done wait no more."""
        if self._pace is None:
            return
        self._jobs.cancel_batch()
        self._settle()
        self._told, self._pace = self._pace.end_text(cancelled=True), None
        self._run += 1
        self._changed(True)

    def panel(self, *, can_start: bool) -> BatchPanel:
        """What is to be shown of it."""
        pace = self._pace
        if pace is None:
            return BatchPanel(can_start=can_start, text=" ".join(filter(None, (self._told, self._note))))
        return BatchPanel(
            can_start=False, running=True, done=pace.done, total=pace.total, text=pace.text(self._clock())
        )

    def _happened(self, run: int, event: BatchEvent) -> None:
        if run != self._run or self._pace is None or self._list is None:
            return
        if event.progress is not None and event.progress.tiles_total:
            self._pace.slide_share(event.progress.tiles_done / event.progress.tiles_total)
        if event.kind in (Kind.FINISHED, Kind.FAILED):
            self._pace.slide_over(failed=event.kind is Kind.FAILED)
            self._note = event.note or self._note
        follow(self._list, event)
        if event.prediction is not None:
            self._finished(event.path, event.prediction)
        self._changed(event.kind is not Kind.PROGRESS)

    def _ended(self, run: int, error: str) -> None:
        if run != self._run or self._pace is None:
            return
        self._settle()
        self._told = error or self._pace.end_text(cancelled=False)
        self._pace = None
        self._changed(True)

    def _settle(self) -> None:
        if self._list is None:
            return
        for item in list(self._list):
            if item.status in (Status.QUEUED, Status.RUNNING):
                self._list.set_status(item.path, Status.NEW)

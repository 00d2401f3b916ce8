"""What the worklist dock shows, as plain values. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from napari_lrmil._viewer.docks.worklist.rows import Show
from napari_lrmil.wording import duration_text
from napari_lrmil.worklist import Order, WorklistItem
from napari_lrmil.worklist.reviews import Verdict


class ListState(StrEnum):
    """Where the worklist is."""

    EMPTY = "empty"
    LISTING = "listing"
    LISTED = "listed"


@dataclass(frozen=True)
class BatchPanel:
    """The classification of the folder.

    `done` and `total` count slides; `running` is False before and after.
    """

    can_start: bool = False
    running: bool = False
    done: int = 0
    total: int = 0
    text: str = ""


@dataclass(frozen=True)
class WorklistPanel:
    """Everything the dock shows.

    Attributes
    ----------
    rows : tuple of WorklistItem
        Ordered and filtered.
    open_path : Path or None
        The slide of the list that is open.
    judged : WorklistItem or None
        The same as item, which the verdict is about.
    """

    state: ListState = ListState.EMPTY
    folder: str = ""
    rows: tuple[WorklistItem, ...] = ()
    open_path: Path | None = None
    judged: WorklistItem | None = None
    reviewed_text: str = ""
    order: Order = Order.UNSURE_FIRST
    which: Show = Show.ALL
    text: str = ""
    hint: str = ""
    error: str = ""
    batch: BatchPanel = BatchPanel()

    @property
    def verdict(self) -> Verdict | None:
        """On the open slide."""
        return self.judged.verdict if self.judged is not None else None


class Pace:
    """How far a batch is, and how long it will take.

    Parameters
    ----------
    total : int
        Slides.
    started_s : float
        By the clock that `text` gets.
    """

    def __init__(self, total: int, started_s: float) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self._started_s = started_s
        self._share = 0.0

    def slide_share(self, share: float) -> None:
        """How much of the slide under way is done, 0 to 1."""
        self._share = share

    def slide_over(self, *, failed: bool) -> None:
        """A slide is finished, or has failed."""
        self.done += 1
        self.failed += failed
        self._share = 0.0

    def seconds_left(self, now_s: float) -> float | None:
        """At the pace so far; None before anything is done."""
        over = self.done + self._share
        if over <= 0:
            return None
        return (now_s - self._started_s) / over * (self.total - over)

    def text(self, now_s: float) -> str:
        """Slides done, and the time left."""
        text = f"{self.done:,} of {self.total:,} classified"
        if self.failed:
            text += f", {self.failed:,} failed"
        left = self.seconds_left(now_s)
        return text if left is None else f"{text}, {duration_text(left)} left"

    def end_text(self, *, cancelled: bool) -> str:
        """What came of it."""
        good = self.done - self.failed
        text = f"{good:,} of {self.total:,} classified"
        if self.failed:
            text += f"; {self.failed:,} failed: point at them to see why"
        return f"Stopped: {text}. Classify again to go on." if cancelled else f"Done: {text}."

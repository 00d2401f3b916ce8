"""What the worklist dock shows, as plain values, and the words of its rows. No Qt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from napari_lrmil.model.card import UNLIKE_TRAINING
from napari_lrmil.wording import counts_text, duration_text, percent_text
from napari_lrmil.worklist import Order, Saved, Status, Verdict, WorklistItem

HEADINGS = ("Slide, prediction, status", "Verdict")

_STATUS = {
    Status.NEW: "not classified",
    Status.QUEUED: "waiting",
    Status.RUNNING: "classifying …",
    Status.DONE: "classified",
    Status.FAILED: "failed",
    Status.REVIEWED: "reviewed",
}
_VERDICT = {"agree": "✓ agree", "disagree": "✗ disagree", "unsure": "? unsure"}
SAVED_TEXT = {Saved.YES: "", Saved.SAVING: "saving …", Saved.NO: "not saved"}
_TOOL_TIP_CHARACTERS = 80
NEEDS_MPP = "needs µm/px"
REPLACED = "another file by now: classify it anew"
UNSURE, STRANGE = "◆ unsure", f"▲ {UNLIKE_TRAINING}"
"""Marks differ in shape and say what they mean, so that no colour is needed."""


class ListState(StrEnum):
    """Where the worklist is."""

    EMPTY = "empty"
    LISTING = "listing"
    LISTED = "listed"


class Show(StrEnum):
    """Which slides are listed."""

    ALL = "all slides"
    TO_REVIEW = "to review"
    DOUBTFUL = "unsure or unlike training"
    NOT_CLASSIFIED = "not classified"
    FAILED = "failed"
    DISAGREED = "disagreed"


@dataclass(frozen=True)
class TableFilePanel:
    """The list as a file."""

    can_save: bool = False
    text: str = ""
    error: str = ""


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
    order_is_old : bool
        Sorting again would move rows.
    """

    state: ListState = ListState.EMPTY
    folder: str = ""
    rows: tuple[WorklistItem, ...] = ()
    open_path: Path | None = None
    judged: WorklistItem | None = None
    reviewed_text: str = ""
    order: Order = Order.UNSURE_FIRST
    order_is_old: bool = False
    which: Show = Show.ALL
    text: str = ""
    hint: str = ""
    error: str = ""
    batch: BatchPanel = BatchPanel()
    table_file: TableFilePanel = TableFilePanel()

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
        self._answers: list[str] = []

    def slide_share(self, share: float) -> None:
        """How much of the slide under way is done, 0 to 1."""
        self._share = share

    def slide_over(self, answer: str | None) -> None:
        """A slide is finished with this answer, or has failed: None."""
        self.done += 1
        self.failed += answer is None
        self._answers += [answer] if answer is not None else []
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
        if self._answers:
            text += f": {counts_text(self._answers)}"
        if self.failed:
            text += f"; {self.failed:,} failed: point at them to see why"
        return f"Stopped: {text}. Classify again to go on." if cancelled else f"Done: {text}."


def is_shown(item: WorklistItem, which: Show, text: str) -> bool:
    """Whether an item is listed: `which`, and all words of `text` found in what its row says."""
    if which is Show.TO_REVIEW and item.status is Status.REVIEWED:
        return False
    if which is Show.DOUBTFUL and not (item.unsure or item.ood):
        return False
    if which is Show.NOT_CLASSIFIED and item.answer is not None:
        return False
    if which is Show.FAILED and item.status is not Status.FAILED:
        return False
    if which is Show.DISAGREED and item.verdict != "disagree":
        return False
    words = text.casefold().split()
    if not words:
        return True
    row_text = " ".join((item.slide_id, *cells(item), _marks(item), item.note)).casefold()
    return all(word in row_text for word in words)


def cells(item: WorklistItem) -> tuple[str, str]:
    """The texts of a row: name, prediction and status in one cell, for a dock is narrow; verdict and note."""
    resting = item.status in (Status.DONE, Status.REVIEWED)  # which prediction and verdict say too
    lines = (item.slide_id, prediction_text(item), (resting and _marks(item)) or status_text(item))
    verdict = (_verdict_word(item), _judged_text(item), SAVED_TEXT[item.saved], item.note)
    return "\n".join(line for line in lines if line), "\n".join(line for line in verdict if line)


def status_text(item: WorklistItem) -> str:
    """How far a slide is, or what it waits for."""
    if item.needs_mpp and item.status in (Status.NEW, Status.FAILED):
        return NEEDS_MPP
    if item.replaced and item.status is Status.NEW:
        return REPLACED
    reason = item.error.removeprefix(item.path.name).lstrip(": ")  # whose it is, the row says already
    return f"{_STATUS[item.status]}: {reason}" if reason else _STATUS[item.status]


def _marks(item: WorklistItem) -> str:
    """On a line of its own: behind a long class name it would be cut. An answer without a label is its own mark."""
    return UNSURE if item.unsure else ""


def prediction_text(item: WorklistItem) -> str:
    """The answer, a label with its probability."""
    if item.answer is None:
        return ""
    if item.label is None or item.probability is None:
        return STRANGE
    return f"{item.label}  {percent_text(item.probability)}"


def verdict_text(item: WorklistItem) -> str:
    """The verdict, and that it was on another answer than the row has."""
    judged = _judged_text(item)
    return f"{_verdict_word(item)} ({judged})" if judged else _verdict_word(item)


def _verdict_word(item: WorklistItem) -> str:
    return "" if item.verdict is None else _VERDICT[item.verdict]


def _judged_text(item: WorklistItem) -> str:
    """What the verdict is about where that isn't the answer of the row, which may have none by now."""
    if item.verdict_outdated:
        return f"with {item.judged_answer or 'no label'}"
    return f"with {item.judged_answer}" if item.verdict and item.answer is None and item.judged_answer else ""


def judged_note(item: WorklistItem) -> str:
    """Beside the verdict's buttons: that it isn't about what is shown."""
    if item.verdict is None or not _judged_text(item):
        return ""
    shown = "no result of the chosen model is shown" if item.answer is None else f"now {item.answer} is shown"
    return f"This verdict was given on {item.judged_answer or 'no label'}; {shown}."


def tool_tip(item: WorklistItem) -> str:
    """All of a row, for those who can't see it whole."""
    lines = [item.slide_id, status_text(item)]
    if item.answer is not None:
        lines.append(f"Prediction: {prediction_text(item)}")
    if item.unsure:
        lines.append("The model is unsure: more than one class is left, or none.")
    if item.ood:
        lines.append("Unlike the training slides: the model has no answer for it.")
    if item.known_label:
        lines.append(f"In the table: {item.known_label}")
    if item.verdict is not None:
        lines.append(f"Verdict: {verdict_text(item)}")
    if item.note:
        lines.append(f"Note: {item.note}")
    if item.saved is not Saved.YES:
        lines.append(f"Verdict and note: {SAVED_TEXT[item.saved]}")
    if item.error and item.needs_mpp:
        lines.append(item.error)
    return "\n".join(textwrap.fill(line, _TOOL_TIP_CHARACTERS) for line in lines)


def notes_text(notes: Sequence[str], most: int = 3) -> str:
    """What looks odd in the table of the list."""
    more = [f"And {len(notes) - most:,} more like it."] if len(notes) > most else []
    return " ".join([*(f"{note}." for note in notes[:most]), *more])

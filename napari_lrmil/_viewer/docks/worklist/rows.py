"""What the rows of the worklist say, and which of them are shown. No Qt."""

from __future__ import annotations

from enum import StrEnum

from napari_lrmil.wording import percent_text
from napari_lrmil.worklist import Status, WorklistItem

HEADINGS = ("Slide: name, prediction, status", "Verdict")

_STATUS = {
    Status.NEW: "not classified",
    Status.QUEUED: "waiting",
    Status.RUNNING: "classifying …",
    Status.DONE: "classified",
    Status.FAILED: "failed",
    Status.REVIEWED: "reviewed",
}
_VERDICT = {"agree": "✓ agree", "disagree": "✗ disagree", "unsure": "? unsure"}
UNSURE, STRANGE = "◆ unsure", "▲ unlike training"
"""Marks differ in shape and say what they mean, so that no colour is needed."""


class Show(StrEnum):
    """Which slides are listed."""

    ALL = "all slides"
    TO_REVIEW = "to review"
    DOUBTFUL = "unsure or unlike training"
    NOT_CLASSIFIED = "not classified"
    FAILED = "failed"
    DISAGREED = "disagreed"


def shown(item: WorklistItem, which: Show, text: str) -> bool:
    """Whether an item is listed: `which`, and all words of `text` found in what its row says."""
    if which is Show.TO_REVIEW and item.status is Status.REVIEWED:
        return False
    if which is Show.DOUBTFUL and not (item.unsure or item.ood):
        return False
    if which is Show.NOT_CLASSIFIED and item.label is not None:
        return False
    if which is Show.FAILED and item.status is not Status.FAILED:
        return False
    if which is Show.DISAGREED and item.verdict != "disagree":
        return False
    words = text.casefold().split()
    if not words:
        return True
    said = " ".join((item.slide_id, *cells(item), _marks(item), item.note)).casefold()
    return all(word in said for word in words)


def cells(item: WorklistItem) -> tuple[str, str]:
    """The texts of a row: name, prediction and status in one cell, for a dock is narrow; verdict and note."""
    resting = item.status in (Status.DONE, Status.REVIEWED)  # which prediction and verdict say too
    lines = (item.slide_id, prediction_text(item), (resting and _marks(item)) or _STATUS[item.status])
    verdict = (verdict_text(item), item.note)
    return "\n".join(line for line in lines if line), "\n".join(line for line in verdict if line)


def _marks(item: WorklistItem) -> str:
    """On a line of their own: behind a long class name they would be cut."""
    return "  ".join(mark for mark, holds in ((UNSURE, item.unsure), (STRANGE, item.ood)) if holds)


def prediction_text(item: WorklistItem) -> str:
    """Label and probability, where there are any."""
    if item.label is None or item.probability is None:
        return ""
    return f"{item.label}  {percent_text(item.probability)}"


def verdict_text(item: WorklistItem) -> str:
    """The verdict, and that it was on another label."""
    if item.verdict is None:
        return ""
    text = _VERDICT[item.verdict]
    return f"{text} (with {item.judged_label or 'no label'})" if item.verdict_outdated else text


def tool_tip(item: WorklistItem) -> str:
    """All of a row, for those who can't see it whole."""
    lines = [item.slide_id, _STATUS[item.status]]
    if item.label is not None:
        lines.append(f"Prediction: {prediction_text(item)}")
    if item.unsure:
        lines.append("The model is unsure: more than one class is left, or none.")
    if item.ood:
        lines.append("Unlike the training slides: take the prediction with care.")
    if item.known_label:
        lines.append(f"In the table: {item.known_label}")
    if item.verdict is not None:
        lines.append(f"Verdict: {verdict_text(item)}")
    if item.note:
        lines.append(f"Note: {item.note}")
    if item.error:
        lines.append(item.error)
    return "\n".join(lines)

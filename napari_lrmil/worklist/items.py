"""A slide of a worklist: how far it is, and what comes first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from napari_lrmil.worklist.reviews import Saved, Verdict


class Status(StrEnum):
    """How far a slide is."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REVIEWED = "reviewed"


class Order(StrEnum):
    """How a worklist is sorted."""

    UNSURE_FIRST = "unsure first"
    NAME = "name"
    STATUS = "status"


STATUS_RANK = {status: rank for rank, status in enumerate(
    (Status.FAILED, Status.RUNNING, Status.QUEUED, Status.NEW, Status.DONE, Status.REVIEWED)
)}  # fmt: skip


@dataclass(frozen=True)
class WorklistItem:
    """A slide of the list.

    Attributes
    ----------
    path : Path
    slide_id : str
    status : Status
    label, probability : str, float or None
        The predicted class and its probability; None without a result.
    unsure, ood : bool
        More than one class is left, and out of the training's distribution.
    verdict : 'agree', 'disagree', 'unsure' or None
    saved : Saved
        Whether verdict and note are on the disk.
    note, error : str
    mpp : float or None
        µm per level-0 pixel where a table gives it.
    known_label : str or None
        The table's.
    judged_label : str or None
        The label that the verdict is about.
    fingerprint, bundle_sha256 : str or None
        Of the slide and of the bundle's weights, where known.
    """

    path: Path
    slide_id: str
    status: Status = Status.NEW
    label: str | None = None
    probability: float | None = None
    unsure: bool = False
    ood: bool = False
    verdict: Verdict | None = None
    saved: Saved = Saved.YES
    note: str = ""
    error: str = ""
    mpp: float | None = None
    known_label: str | None = None
    judged_label: str | None = None
    fingerprint: str | None = None
    bundle_sha256: str | None = None

    @property
    def verdict_outdated(self) -> bool:
        """Whether the verdict is about another label than the one predicted now."""
        return self.verdict is not None and self.label is not None and self.judged_label != self.label


def settled(item: WorklistItem) -> WorklistItem:
    """With the status that result, error and verdict give. A verdict on another label isn't one on this."""
    if item.verdict is not None and not item.verdict_outdated:
        status = Status.REVIEWED
    elif item.error:
        status = Status.FAILED
    else:
        status = Status.NEW if item.label is None else Status.DONE
    return replace(item, status=status)


def doubt_of(item: WorklistItem) -> tuple[float, ...]:
    """Sorts what most needs a human first."""
    if item.probability is None:
        return (3, 0.0)
    return (0 if item.unsure else 1 if item.ood else 2, item.probability)


def differ(known: str | None, now: str | None) -> bool:
    """Whether both are known and not the same."""
    return known is not None and now is not None and known != now

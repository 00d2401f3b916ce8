"""What a batch tells while it runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_lrmil.cache import ResultCache, ResultKeys, summarise
from napari_lrmil.errors import UnknownMppError, readable, reason_of
from napari_lrmil.slide.tiles import MAX_DAMAGED_SHARE
from napari_lrmil.worklist import Status, Worklist

if TYPE_CHECKING:
    from napari_lrmil.predict import PredictProgress, SlidePrediction


class BatchItem(Protocol):
    """What a batch needs to know of a slide; `ListedSlide` and `WorklistItem` say it."""

    @property
    def path(self) -> Path:
        """A slide file or folder."""
        ...

    @property
    def mpp(self) -> float | None:
        """µm per level-0 pixel, where the slide's own isn't to be used."""
        ...


class Kind(StrEnum):
    """What happened to a slide."""

    STARTED = "started"
    PROGRESS = "progress"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class BatchEvent:
    """Something that happened to a slide of a batch.

    Attributes
    ----------
    kind : Kind
    path : Path
        The slide.
    prediction : SlidePrediction or None
        Of a finished one.
    cached : bool
        Whether the prediction was there already.
    progress : PredictProgress or None
    error : str
        Of a failed one.
    needs_mpp : bool
        Whether a failed one only lacks its µm/px.
    note : str
        What else the user should know of a finished one.
    """

    kind: Kind
    path: Path
    prediction: SlidePrediction | None = None
    cached: bool = False
    progress: PredictProgress | None = None
    error: str = ""
    needs_mpp: bool = False
    note: str = ""

    @classmethod
    def failed(cls, path: Path, error: BaseException) -> BatchEvent:
        """Of a slide that raised this."""
        return cls(Kind.FAILED, path, error=reason_of(error), needs_mpp=isinstance(error, UnknownMppError))


def follow(worklist: Worklist, event: BatchEvent) -> None:
    """Take an event into a worklist."""
    if event.prediction is not None:
        worklist.set_result(event.path, summarise(event.prediction))
    elif event.kind is Kind.FAILED:
        worklist.set_status(event.path, Status.FAILED, error=event.error, needs_mpp=event.needs_mpp)
    elif event.kind is Kind.STARTED:
        worklist.set_status(event.path, Status.RUNNING)


def known_results(
    items: Iterable[BatchItem],
    cache: ResultCache | None,
    bundle_sha256: str,
    keys: ResultKeys,
    max_damaged: float = MAX_DAMAGED_SHARE,
) -> Generator[BatchEvent, None, list[BatchItem]]:
    """Yield the kept results of slides, none of which is opened, as finished events; return the other slides."""
    others: list[BatchItem] = []
    for item in items:
        prediction = None
        if cache is not None:
            name = readable(item.path.stem)
            # A slide that fails here is opened like any other, and then says what is wrong.
            with suppress(Exception):
                prediction = cache.known_result(item.path, bundle_sha256, keys, mpp=item.mpp, slide_name=name)
        if prediction is None or not whole_enough(prediction, max_damaged):
            others.append(item)
        else:
            yield BatchEvent(Kind.FINISHED, item.path, prediction=prediction, cached=True)
    return others


def whole_enough(prediction: SlidePrediction, max_damaged: float) -> bool:
    """Whether a kept result has no larger share of damaged tiles than allowed."""
    return prediction.damaged_tiles <= max_damaged * len(prediction.tiles)


def unique(items: Sequence[BatchItem]) -> list[BatchItem]:
    """Return each path once, in order."""
    return list({item.path: item for item in items}.values())

"""A folder or table of slides with what is known of each: result, verdict, errors. Knows no window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from napari_lrmil.cache import ResultSummary
from napari_lrmil.errors import WorklistError
from napari_lrmil.slide.identity import same_slide
from napari_lrmil.worklist.listing import ListedSlide, list_slides, natural
from napari_lrmil.worklist.reviews import VERDICTS, Check, Review, ReviewFile, Saved, Verdict


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


_STATUS_RANK = {status: rank for rank, status in enumerate(
    (Status.FAILED, Status.RUNNING, Status.QUEUED, Status.NEW, Status.DONE, Status.REVIEWED)
)}  # fmt: skip


UNKNOWN_FILE = ""
"""A fingerprint that no file has."""


@dataclass(frozen=True)
class WorklistItem:
    """A slide of the list.

    Attributes
    ----------
    path : Path
    slide_id : str
    status : Status
    answer : str or None
        The label, or that the slide is unlike those of training; None without a result.
    label, probability : str, float or None
        The predicted class and its probability; None without a label.
    unsure, ood : bool
        More than one class is left; out of the training's distribution, so that there is no label.
    prediction_set : tuple of str, or None
        The classes that are left; None without a label, or where the bundle states no level.
    verdict : 'agree', 'disagree', 'unsure' or None
    saved : Saved
        Whether verdict and note are on the disk.
    note, error : str
    needs_mpp : bool
        Whether nobody has said how many µm its pixels measure.
    mpp : float or None
        µm per level-0 pixel where a table gives it.
    known_label : str or None
        The table's.
    judged_answer, judged_fingerprint : str or None
        The answer that the verdict is about, and the slide that verdict and note are about, where known.
    fingerprint, bundle_sha256 : str or None
        Of the slide and of the bundle's weights, where known.
    replaced : bool
        Whether the slide's file was seen to be another one than result or verdict were about, which were put away.
    """

    path: Path
    slide_id: str
    status: Status = Status.NEW
    answer: str | None = None
    label: str | None = None
    probability: float | None = None
    unsure: bool = False
    ood: bool = False
    prediction_set: tuple[str, ...] | None = None
    verdict: Verdict | None = None
    saved: Saved = Saved.YES
    note: str = ""
    error: str = ""
    needs_mpp: bool = False
    mpp: float | None = None
    known_label: str | None = None
    judged_answer: str | None = None
    judged_fingerprint: str | None = None
    fingerprint: str | None = None
    bundle_sha256: str | None = None
    replaced: bool = False

    @property
    def verdict_outdated(self) -> bool:
        """Whether the verdict is about another answer than the one given now."""
        return self.verdict is not None and self.answer is not None and self.judged_answer != self.answer


class Worklist:
    """Slides in the order of their names, and what is known of each.

    For one thread: workers hand over what they find. Verdicts are noted here (`note_verdict`) and may be written by
    another thread (`reviews.write_waiting`).

    Parameters
    ----------
    slides : iterable of ListedSlide
    reviews : ReviewFile
    notes : iterable of str
        What looks odd in the table that lists them.
    """

    def __init__(
        self, slides: Iterable[ListedSlide], reviews: ReviewFile, *, notes: Iterable[str] = ()
    ) -> None:
        self.reviews = reviews
        self.notes = tuple(notes)
        self._items: dict[Path, WorklistItem] = {
            slide.path: WorklistItem(slide.path, slide.slide_id, mpp=slide.mpp, known_label=slide.known_label)
            for slide in slides
        }
        self.reload_reviews()

    @classmethod
    def open(cls, path: str | Path, *, recursive: bool = False) -> Worklist:
        """The slides of a folder or table, with the verdicts kept beside them.

        Parameters
        ----------
        path : path-like
            A folder, or a CSV with the column path and optionally slide_id, mpp and label.
        recursive : bool
            Folders in folders too.

        Raises
        ------
        WorklistError
        """
        where = Path(path).absolute()
        notes: list[str] = []
        slides = list_slides(where, recursive=recursive, note=notes.append)
        alone = where.is_dir() and [slide.path for slide in slides] == [where]
        return cls(
            slides, ReviewFile.of(where if where.is_dir() and not alone else where.parent), notes=notes
        )

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[WorklistItem]:
        return iter(self._items.values())

    def __getitem__(self, path: Path) -> WorklistItem:
        try:
            return self._items[path]
        except KeyError as error:
            raise WorklistError(f"{path.name} is not in the worklist") from error

    def ordered(self, order: Order = Order.UNSURE_FIRST) -> list[WorklistItem]:
        """The items sorted.

        Unsure first: slides that the model is unsure of, then those unlike its training, by name, then the rest, in
        the others the least probable label first; those without a result come last. A verdict moves no
        slide, so that the list stays still under the reviewer's hands.
        """
        keys: dict[Order, Callable[[WorklistItem], tuple[float, ...]]] = {
            Order.UNSURE_FIRST: _doubt_of,
            Order.NAME: lambda item: (),
            Order.STATUS: lambda item: (_STATUS_RANK[item.status],),
        }
        key = keys[order]
        return sorted(self, key=lambda item: (key(item), natural(item.slide_id)))

    def neighbour(
        self,
        path: Path | None,
        step: int = 1,
        *,
        order: Order = Order.UNSURE_FIRST,
        to_review: bool = False,
    ) -> WorklistItem | None:
        """The next slide (`step` 1) or the previous one (-1); None at the end.

        Parameters
        ----------
        path : Path, optional
            Where to start; None or an unknown one: before the first, or behind the last.
        step : int
        order : Order
        to_review : bool
            Pass over slides that have a verdict.
        """
        items = self.ordered(order)
        here = next((place for place, item in enumerate(items) if item.path == path), None)
        end, stop = (0, len(items)) if step > 0 else (len(items) - 1, -1)
        for place in range(end if here is None else here + step, stop, step):
            if not (to_review and items[place].status is Status.REVIEWED):
                return items[place]
        return None

    def counts(self) -> dict[Status, int]:
        """Slides of each status."""
        counts = dict.fromkeys(Status, 0)
        for item in self:
            counts[item.status] += 1
        return counts

    def set_status(
        self, path: Path, status: Status, *, error: str = "", needs_mpp: bool = False
    ) -> WorklistItem:
        """Queued, running, failed, or back to what result and verdict say (`Status.NEW`)."""
        item = replace(self[path], status=status, error=error, needs_mpp=needs_mpp)
        return self._keep(_settled(item) if status is Status.NEW else item)

    def set_result(self, path: Path, result: ResultSummary) -> WorklistItem:
        """Take in a result."""
        labelled = result.label is not None
        item = replace(
            self[path],
            answer=result.answer,
            label=result.label,
            probability=result.probability if labelled else None,
            unsure=result.unsure and labelled,
            ood=result.out_of_distribution,
            prediction_set=result.prediction_set if labelled else None,
            error="",
            needs_mpp=False,
            fingerprint=result.fingerprint,
            bundle_sha256=result.bundle_sha256,
            replaced=False,
        )
        return self._keep(_settled(self._with_review(item)))

    def forget_result(self, path: Path, *, needs_mpp: bool) -> WorklistItem:
        """Drop the result of one slide, as when its µm/px is another now; its verdict stays."""
        bare = replace(_without_result(self[path]), needs_mpp=needs_mpp)
        return self._keep(bare if bare.status in (Status.QUEUED, Status.RUNNING) else _settled(bare))

    def note_file(self, path: Path, fingerprint: str) -> bool:
        """Note which file a path holds now: result, verdict and note of another one aren't of this slide.

        Parameters
        ----------
        path : Path
        fingerprint : str
            `UNKNOWN_FILE`: another one than before, and nobody knows which.

        Returns
        -------
        bool
            Whether something of another file was put away.
        """
        item = self[path]
        before = (item.answer, item.verdict, item.note)
        if _differ(item.fingerprint, fingerprint):
            item = _without_result(item)
        item = self._with_review(replace(item, fingerprint=fingerprint))
        put_away = before != (item.answer, item.verdict, item.note)
        item = replace(item, replaced=item.replaced or put_away)
        self._keep(item if item.status in (Status.QUEUED, Status.RUNNING) else _settled(item))
        return put_away

    def forget_results(self) -> None:
        """Drop all results, as when another bundle is chosen; verdicts stay."""
        for item in list(self):
            self._keep(_settled(_without_result(item)))

    def note_verdict(
        self,
        path: Path,
        verdict: Verdict | None,
        note: str | None = None,
        *,
        reviewer: str = "",
        revealed: ResultSummary | None = None,
        check: Check | None = None,
    ) -> WorklistItem:
        """Take in what the reviewer says of a slide, in memory, at once.

        The item is `Saved.SAVING` until `reviews.write_waiting` has brought it to the disk, which any thread may do,
        and `look_what_is_saved` has been called here.

        Parameters
        ----------
        path : Path
        verdict : 'agree', 'disagree', 'unsure' or None
            None takes an earlier one back.
        note : str, optional
            None leaves the note as it is.
        reviewer : str
        revealed : ResultSummary, optional
            Of a slide unlike those of training, where the screen shows what the model would say of it.
        check : callable, optional
            Has the last word before it is written, see `ReviewFile.add`.

        Raises
        ------
        WorklistError
        """
        if verdict is not None and verdict not in VERDICTS:
            raise WorklistError(f"{verdict!r} is no verdict; there are {', '.join(VERDICTS)}")
        item = self[path]
        review = Review(
            slide=self.reviews.relative(path),
            verdict=verdict,
            note=item.note if note is None else note,
            label_shown=item.label,
            bundle_sha256=item.bundle_sha256,
            fingerprint=item.fingerprint,
            reviewer=reviewer,
            set_shown=item.prediction_set if revealed is None else revealed.prediction_set,
            unsure_shown=revealed.unsure if revealed else None if item.label is None else item.unsure,
            unlike_training_shown=None if item.answer is None else item.ood,
            answer_shown=item.answer,
            revealed_label=None if revealed is None else revealed.called,
        )
        self.reviews.add(review, check)
        return self._keep(self._reviewed(item))

    def write_note(
        self, path: Path, note: str, *, reviewer: str = "", check: Check | None = None
    ) -> WorklistItem:
        """Take in a note; the verdict stays, on the label that it was given on. See `note_verdict`."""
        item, before = self[path], self.reviews.latest(path)
        if item.verdict is None or before is None:
            return self.note_verdict(path, item.verdict, note, reviewer=reviewer, check=check)
        self.reviews.add(replace(before, note=note, reviewer=reviewer), check)
        return self._keep(self._reviewed(item))

    def look_what_is_saved(self) -> list[WorklistItem]:
        """Look how far the verdicts are that were not on the disk.

        Returns
        -------
        list of WorklistItem
            Those that are further than before, or could not be written.
        """
        changed = []
        for item in [item for item in self if item.saved is not Saved.YES]:
            now = self._keep(self._reviewed(item))
            if now != item:
                changed.append(now)
        return changed

    def reload_reviews(self) -> None:
        """Read the verdicts again: another program may have added some."""
        self.reviews.reload()
        for item in list(self):
            self._keep(self._reviewed(item))

    def _reviewed(self, item: WorklistItem) -> WorklistItem:
        """With the verdict on this slide and the status that it gives; a verdict stops no work."""
        reviewed = self._with_review(item)
        return reviewed if item.status in (Status.QUEUED, Status.RUNNING) else _settled(reviewed)

    def _with_review(self, item: WorklistItem) -> WorklistItem:
        """With the verdict on this slide, if its file is still the one that was judged."""
        saved = self.reviews.saved(item.path)  # asked first: one that is written just now is looked up again
        review = self.reviews.latest(item.path)
        if review is None or _differ(review.fingerprint, item.fingerprint):
            return replace(
                item, verdict=None, note="", judged_answer=None, judged_fingerprint=None, saved=saved
            )
        return replace(
            item,
            verdict=review.verdict,
            note=review.note,
            judged_answer=review.answer_shown,
            judged_fingerprint=review.fingerprint,
            saved=saved,
        )

    def _keep(self, item: WorklistItem) -> WorklistItem:
        self._items[item.path] = item
        return item


def _without_result(item: WorklistItem) -> WorklistItem:
    return replace(
        item,
        answer=None,
        label=None,
        probability=None,
        unsure=False,
        ood=False,
        prediction_set=None,
        error="",
        bundle_sha256=None,
    )


def _settled(item: WorklistItem) -> WorklistItem:
    """With the status that result, error and verdict give. A verdict on another answer isn't one on this."""
    if item.verdict is not None and not item.verdict_outdated:
        status = Status.REVIEWED
    elif item.error:
        status = Status.FAILED
    else:
        status = Status.NEW if item.answer is None else Status.DONE
    return replace(item, status=status)


def _doubt_of(item: WorklistItem) -> tuple[float, ...]:
    """Sorts what most needs a human first."""
    if item.answer is None:
        return (3, 0.0)
    return (0 if item.unsure else 1 if item.ood else 2, item.probability or 0.0)


def _differ(known: str | None, now: str | None) -> bool:
    """Whether both fingerprints are known and not of one slide."""
    return known is not None and now is not None and not same_slide(known, now)

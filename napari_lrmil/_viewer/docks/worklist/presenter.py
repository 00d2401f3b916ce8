"""What happens when in the worklist dock. No Qt, no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_lrmil._viewer.background import Background, Steps, in_one_step
from napari_lrmil._viewer.docks.worklist.batch import FolderClassification
from napari_lrmil._viewer.docks.worklist.opened_file import OpenedFile, look_steps
from napari_lrmil._viewer.docks.worklist.panel import ListState, Show, WorklistPanel, is_shown, notes_text
from napari_lrmil._viewer.docks.worklist.table_file import TableFile
from napari_lrmil._viewer.docks.worklist.verdicts import VerdictWriter
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.cache import ResultCache, ResultKeys, ResultSummary, summarise
from napari_lrmil.errors import LRMILError, SlideChangedError
from napari_lrmil.export.tables import PREDICTIONS_NAME
from napari_lrmil.model.naming import bundle_folder, is_bundle
from napari_lrmil.slide import Slide
from napari_lrmil.slide.identity import same_slide
from napari_lrmil.worklist import UNKNOWN_FILE, Check, Order, Status, Verdict, Worklist, WorklistItem

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction

EMPTY_HINT = (
    "Open a folder of slides, or a slide table: a CSV file with the column 'path'. You can also drop a folder "
    "here. Results that are known from before appear at once."
)
_LIKE = {Show.DOUBTFUL: "unsure or unlike training", Show.TO_REVIEW: "without a verdict"}
CONCERNS = Change.SLIDES | Change.SLIDE | Change.PIXELS | Change.MODEL | Change.RESULTS | Change.RESULT
"""What of the controller the dock shows."""
_LIST, _LOOK_UP, _LOOK_AT = "list", "look up", "look at the file"
_LOOK_UP_CHUNK = 64
_PASSING_S = 2.0
"""How long one key press goes on over slides that can't be opened."""

FoundResults = Sequence[tuple[Path, ResultSummary]]
"""Results by the path of their slide."""


class WorklistPresenter:
    """State and transitions of the worklist dock.

    Parameters
    ----------
    background : Background
    reviewer : callable
        Gives the name that is kept with verdicts.
    clock : callable
        Seconds.
    """

    changed = Signal()
    """There is something new to show; `panel` says what."""
    listed = Signal(object, bool)
    """A folder or table was opened as the list, and whether with the folders in it."""

    def __init__(
        self,
        background: Background,
        *,
        reviewer: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._background, self._reviewer = background, reviewer
        self._controller: Controller | None = None
        self._batch = FolderClassification(background, self._batch_changed, self._batch_result, clock)
        self._verdicts = VerdictWriter(background, self._verdicts_changed)
        self._table_file = TableFile(background, self.changed.emit)
        self._list: Worklist | None = None
        self._paths: frozenset[Path] = frozenset()
        self._opening: Path | None = None
        """The folder or table that is being listed."""
        self._source: Path | None = None
        """The folder or table of the list."""
        self._rows = VisibleRows()
        self._info: BundleInfo | None = None
        """Of the model that the results of the list are by."""
        self._cursor: Path | None = None
        """Where the reader is in the list: the slide that was opened last, or that could not be."""
        self._unopened: set[Path] = set()
        """Slides whose rows say why they can't be opened."""
        self._clock = clock
        self._opened: dict[Path, Slide] = {}
        self._shown_results: dict[Path, SlidePrediction] = {}
        """Results of open slides that the list has taken over."""
        self._files: dict[Path, OpenedFile] = {}
        """Of the slide of the list that is open, and of the one before: a note may be kept as it is left."""
        self._open_at_first: Slide | None = None
        """The slide that was open when the list was: its rows may still be sorted, by the results that are looked up."""
        self._mpp_in_use: tuple[Slide, float | None] | None = None
        """The open slide and the µm/px that was given for it."""
        self._hint = self._error = ""

    def attach(self, controller: Controller) -> None:
        """Work with this controller from now on."""
        self._controller = controller
        self.refresh()

    @property
    def worklist(self) -> Worklist | None:
        """The one that is open."""
        return self._list

    def shutdown(self) -> str:
        """Stop the batch, and wait until all verdicts are on the disk: the dock is going.

        Returns
        -------
        str
            What the reviewer must know of verdicts that could not be kept beside the slides; mostly empty.
        """
        self.changed.disconnect()
        self.listed.disconnect()
        self._batch.cancel()
        self._controller = None
        return self._verdicts.close()

    # ---- the list

    def open_list(
        self, path: Path, *, recursive: bool = False, then_open: Path | None = None, note: str = ""
    ) -> None:
        """List a folder or table in the background, in the place of the one that is open.

        Once it is there, its slide `then_open` is opened, by its absolute path, and `note` is said.
        """
        self._opening, self._hint, self._error = path, "", ""
        self._background.start(
            _LIST,
            in_one_step(lambda: Worklist.open(path, recursive=recursive)),
            done=lambda worklist: self._list_opened(path, worklist, recursive, then_open, note),
            failed=lambda text: self._list_failed(path, text),
        )
        self.changed.emit()

    def dropped(self, path: Path) -> None:
        """A folder, table or model was dropped on the dock."""
        if is_bundle(path):
            if self._controller is not None:
                self._controller.load_bundle(str(bundle_folder(path)))
            return
        self.open_list(path)

    def arrange(
        self, *, order: Order | None = None, which: Show | None = None, text: str | None = None
    ) -> None:
        """Sort, by the order given or, without any, as things are now; and filter."""
        self._rows.choose(order, which, text)
        self.changed.emit()

    def take_results(self, results: FoundResults) -> None:
        """Show results that the cache had."""
        if self._list is None:
            return
        for path, summary in results:
            if not self._is_of_this_model(summary.bundle_sha256) or path not in self._paths:
                continue
            known = self._files[path].known if path in self._files else None
            if known is None or same_slide(
                summary.fingerprint, known
            ):  # else of a file that was there before
                self._list.set_result(path, summary)
        self._list_changed()

    # ---- slides

    def open_slide(self, path: Path) -> None:
        """Show a slide in the place of the one that is shown; where it can't be opened, its row says why."""
        if self._controller is None or self._list is None:
            return
        self._hint = self._error = ""
        if not self._open(path):
            self._hint = self._reason(path)
        self.changed.emit()

    def step(self, step: int, *, which: Show = Show.ALL) -> None:
        """Open the next slide of the list (1) or the one before (-1) that is like `which` and can be opened.

        The reader's place moves over those that can't, whose rows say why; it stays where there is none like that.
        """
        if self._controller is None or self._list is None or not self._rows.items:
            return
        self._hint = self._error = ""
        passed: list[Path] = []
        started = self._clock()
        here = self._cursor or self.open_path
        while (target := self._rows.neighbour(here, step)) is not None:
            here = target.path
            if not is_shown(target, which, ""):
                continue
            if self._open(target.path):
                break
            passed.append(target.path)
            if self._clock() - started > _PASSING_S:
                break
        parts = [f"{len(passed):,} slides can't be opened, see their rows."] if len(passed) > 1 else []
        parts += [self._reason(path) for path in passed] if len(passed) == 1 else []
        if target is None:
            end = "That was the last slide of the list." if step > 0 else "This is the first slide."
            parts.append(end if which is Show.ALL else f"No slide after this one is {_LIKE[which]}.")
        self._hint = " ".join(parts)
        self.changed.emit()

    def _open(self, path: Path) -> bool:
        """Open a slide of the list and be there, or note in its row why it can't be opened and be there all the same."""
        controller, worklist = self._controller, self._list
        if controller is None or worklist is None:
            return False
        now, is_open = controller.slide, path == self.open_path
        self._cursor = path
        self._rows.freeze()
        if is_open and now is not None:
            controller.choose_slide(controller.slides.index(now))
            return True
        there = self._open_elsewhere(path)
        if there is not None:
            controller.choose_slide(controller.slides.index(there))
            self._opened[path] = there
            return True
        old = [slide for slide in {now, *self._opened.values()} if slide in controller.slides]
        try:
            slide = controller.replace_slide(
                path, [each for each in old if each is not None], mpp=worklist[path].mpp
            )
        except LRMILError as error:
            status = worklist[path].status
            kept = status if status in (Status.QUEUED, Status.RUNNING) else Status.FAILED
            worklist.set_status(path, kept, error=str(error))
            self._unopened.add(path)
            self._rows.list_changed()
            return False
        self._opened = {path: slide}
        if path in self._unopened:  # it could not be opened before
            self._unopened.discard(path)
            if worklist[path].status is Status.FAILED:
                worklist.set_status(path, Status.NEW)
            self._rows.list_changed()
        return True

    def _open_elsewhere(self, path: Path) -> Slide | None:
        """The slide of a file that was opened by a drop or from the menu, with the µm/px that the list has for it."""
        if self._controller is None or self._list is None:
            return None
        mpp = self._list[path].mpp
        fitting = (
            one
            for one in self._controller.slides
            if one.path.absolute() == path and mpp in (None, one.mpp_override)
        )
        return next(fitting, None)

    def _reason(self, path: Path) -> str:
        item = self._list[path] if self._list is not None else None
        return f"{item.slide_id} can't be opened: {item.error}" if item is not None else ""

    @property
    def open_path(self) -> Path | None:
        """The open slide, where it is one of the list."""
        slide = self._controller.slide if self._controller is not None else None
        if slide is None or self._list is None:
            return None
        path = slide.path.absolute()
        return path if path in self._paths else None

    # ---- verdicts

    def judge(self, verdict: Verdict | None) -> None:
        """Give a verdict on the open slide; None takes it back. The row shows it at once; it is written meanwhile.

        To agree or disagree takes a result, and the slide must be in view. It is written only if the slide's file is still
        the one that is shown.
        """
        path, worklist, controller = self.open_path, self._list, self._controller
        self._error = ""
        if path is None or worklist is None or controller is None:
            self._hint = "Open a slide of the list first: the verdict is about the slide that is shown."
            self.changed.emit()
            return
        if verdict is not None and not controller.slide_visible:
            self._hint = f"{worklist[path].slide_id} is hidden: show it by its eye in the layer list before you judge it."
            self.changed.emit()
            return
        if controller.result is not None:  # what the screen says is what the verdict is about
            self._take_result(path, controller.result)
        if verdict in ("agree", "disagree") and worklist[path].answer is None:
            self._hint = (
                f"{worklist[path].slide_id} has no result to {verdict} with: classify it first. "
                "A note, or Unsure, can be kept without one."
            )
            self.changed.emit()
            return
        self._hint = ""
        revealed = (
            summarise(controller.result)
            if controller.result is not None and controller.label_revealed
            else None
        )
        worklist.note_verdict(
            path, verdict, reviewer=self._reviewer(), check=self._check_of(path), revealed=revealed
        )
        self._verdicts.write(worklist.reviews)
        self._list_changed()

    def write_note(self, path: Path, note: str) -> None:
        """Keep a note on a slide."""
        if self._list is not None and path in self._paths and note != self._list[path].note:
            self._list.write_note(path, note, reviewer=self._reviewer(), check=self._check_of(path))
            self._error = ""
            self._verdicts.write(self._list.reviews)
            self._list_changed()

    def _check_of(self, path: Path) -> Check | None:
        return self._files[path].check if path in self._files else None

    def _verdicts_changed(self) -> None:
        if self._list is not None:
            self._list.look_what_is_saved()
        for review, reason in self._verdicts.take_refused():
            self._hint = f"The verdict on {review.slide} was not kept: {reason}"
            for path, file in list(self._files.items()):
                if self._list is None or self._list.reviews.relative(path) != review.slide:
                    continue
                if file.changed:
                    self._file_changed(path, file, reason)
                elif file.known is not None:
                    self._list.note_file(path, file.known)
                    self._shown_results.pop(path, None)
        self._list_changed()

    # ---- which file the open slide is

    def _look_at_file(self) -> None:
        """See, behind the window, whether the open slide's file is the one that its row speaks of."""
        slide = self._controller.slide if self._controller is not None else None
        path = self.open_path
        before = self._files.get(path) if path is not None else None
        if path is None or slide is None or (before is not None and before.slide is slide):
            return
        if slide is not self._open_at_first:
            self._rows.freeze()  # however it was opened: the reader is on the way through the list
        file = OpenedFile(slide)
        self._files.pop(path, None)
        self._files = {**dict(list(self._files.items())[-1:]), path: file}
        self._background.start(
            _LOOK_AT, look_steps(file), done=lambda found: self._file_looked_at(path, file, found)
        )

    def _file_looked_at(self, path: Path, file: OpenedFile, found: str | SlideChangedError | None) -> None:
        if self._list is None or self._files.get(path) is not file or found is None:
            return
        if isinstance(found, SlideChangedError):
            self._file_changed(path, file, str(found))
        elif self._list.note_file(path, found):
            self._shown_results.pop(path, None)
            self._hint = (
                f"{self._list[path].slide_id} is another file by now than the one its result or verdict was about: "
                "both were put away."
            )
            controller = self._controller
            if controller is not None and controller.result is not None and path == self.open_path:
                self._take_result(path, controller.result)  # one of the file that is shown
        self._list_changed()

    def _file_changed(self, path: Path, file: OpenedFile, message: str) -> None:
        """The open slide's file was replaced: nothing that was said of it is about the one that is there now."""
        if self._list is not None and path in self._paths:
            self._list.note_file(path, UNKNOWN_FILE)
        self._shown_results.pop(path, None)
        if self._controller is not None:
            self._controller.note_replaced(file.slide, message)

    # ---- batch

    def classify_all(self) -> None:
        """Classify what has no result yet, in the background, in the order of the list."""
        controller = self._controller
        if self._list is None or controller is None or controller.bundle is None:
            return
        wanted = [item for item in self._list.ordered(self._rows.order) if item.answer is None]
        self._hint = "" if wanted else "Every slide of the list is classified."
        if wanted:
            self._rows.freeze()
            self._batch.start(self._list, wanted, controller.bundle, controller.device)
        self._list_changed()

    def cancel(self) -> None:
        """Stop the batch; what is done stays."""
        self._batch.cancel()

    def _batch_changed(self, rows_too: bool) -> None:
        if rows_too:
            self._rows.list_changed()
        self.changed.emit()

    def _batch_result(self, path: Path, prediction: SlidePrediction) -> None:
        """Where the slide of a result of the batch is open, it shows."""
        controller = self._controller
        if controller is None or path != self.open_path or controller.slide is None:
            return
        slide = controller.slide
        if not slide.has_mpp or slide.mpp_xy != prediction.mpp_xy:  # corrected while the batch read it
            if self._list is not None:
                self._list.forget_result(path, needs_mpp=not slide.has_mpp)
            return
        self._shown_results[path] = prediction
        if controller.result is None and controller.running_slide is not controller.slide:
            controller.show_result(controller.slide, prediction)

    # ---- the table as a file

    @property
    def table_path(self) -> Path:
        """Where the list is saved if nobody says otherwise: beside its verdicts."""
        return (self._list.reviews.folder if self._list is not None else Path()) / PREDICTIONS_NAME

    def save_table(self, path: Path, *, show_identifiers: bool) -> None:
        """Write every slide of the list, whatever the filter; whether a file may be replaced has been asked."""
        if self._list is not None:
            self._table_file.save(path, self._list, self._controller, show_identifiers=show_identifiers)

    # ---- what is shown

    def panel(self) -> WorklistPanel:
        """All of it."""
        worklist, controller = self._list, self._controller
        errors = " ".join(error for error in (self._error, self._verdicts.error) if error)
        if worklist is None:
            state = ListState.LISTING if self._opening else ListState.EMPTY
            return WorklistPanel(state, hint=self._hint or EMPTY_HINT, error=errors)
        can_start = controller is not None and controller.bundle is not None and not self._opening
        rows, open_path = self._rows.items, self.open_path
        self._rows.note_place(self._cursor or open_path)
        reviewed = sum(item.verdict is not None for item in worklist)
        hint = self._hint
        if not hint and not rows:
            hint = "No slide of the list is like that. Empty the filter to see all."
        return WorklistPanel(
            state=ListState.LISTING if self._opening else ListState.LISTED,
            folder=str(self._source or ""),
            rows=rows,
            open_path=open_path,
            judged=worklist[open_path] if open_path is not None else None,
            reviewed_text=f"{reviewed:,} of {len(worklist):,} reviewed",
            order=self._rows.order,
            order_is_old=self._rows.order_is_old,
            which=self._rows.which,
            text=self._rows.text,
            hint=" ".join(part for part in (hint, notes_text(worklist.notes), worklist.reviews.note) if part),
            error=errors,
            batch=self._batch.panel(can_start=can_start),
            table_file=self._table_file.panel(worklist),
        )

    def refresh(self, change: Change = Change.ALL) -> None:
        """Slide, model or result may be others now."""
        controller = self._controller
        if controller is None or not change & CONCERNS:
            return
        if Change.SLIDE in change and self.open_path is not None:
            self._cursor = self.open_path  # it may have been opened or chosen elsewhere
        info = controller.bundle.info if controller.bundle is not None else None
        if info != self._info:
            self._info = info
            self._batch.forget()
            self._batch.cancel()
            self._shown_results.clear()
            if self._list is not None:
                reasons = {path: self._list[path].error for path in self._unopened}
                self._list.forget_results()
                for path, reason in reasons.items():  # which is the slide's, whatever the model
                    self._list.set_status(path, Status.FAILED, error=reason)
                self._look_up()
            self._rows.list_changed()
        if self._list is not None:
            self._look_at_file()
            self._look_at_mpp(controller)
            for slide, result in controller.results.items():
                self._take_result(slide.path.absolute(), result)
        self.changed.emit()

    # ---- inside

    def _list_opened(
        self, path: Path, worklist: Worklist, recursive: bool, then_open: Path | None, note: str
    ) -> None:
        if self._opening != path:
            return
        self._batch.cancel()
        self._opening, self._source, self._list = None, path, worklist
        self._cursor = None
        self._unopened.clear()
        self._paths = frozenset(item.path for item in worklist)
        self._rows.show_list(worklist)
        self._open_at_first = self._controller.slide if self._controller is not None else None
        self._shown_results.clear()
        self._files.clear()
        self._look_up()
        self.refresh()
        self.listed.emit(path, recursive)
        if then_open in self._paths and then_open is not None:
            self.open_slide(then_open)
        self._hint = self._hint or note
        self.changed.emit()

    def tell(self, hint: str) -> None:
        """Say something above the verdict, until something else is done."""
        self._hint = hint
        self.changed.emit()

    def _list_failed(self, path: Path, text: str) -> None:
        if self._opening == path:
            self._opening, self._error = None, text
            self.changed.emit()

    def _look_up(self) -> None:
        controller = self._controller
        if self._list is not None and controller is not None and controller.bundle is not None:
            steps = look_up_steps(tuple(self._list), controller.bundle.info)
            self._background.start(_LOOK_UP, steps, progressed=self.take_results)

    def _look_at_mpp(self, controller: Controller) -> None:
        """The open slide lacks its µm/px, or has another one than before: then its result is none any more."""
        slide, path = controller.slide, self.open_path
        if self._list is None or slide is None or path is None:
            return
        before, self._mpp_in_use = self._mpp_in_use, (slide, slide.mpp_override)
        item = self._list[path]
        corrected = before is not None and before[0] is slide and before[1] != slide.mpp_override
        if corrected or item.needs_mpp == slide.has_mpp:
            self._shown_results.pop(path, None)
            self._list.forget_result(path, needs_mpp=not slide.has_mpp)
            self._rows.list_changed()
            self._look_up()

    def _take_result(self, path: Path, result: SlidePrediction) -> None:
        """Show a result of the main dock in its row."""
        if self._list is None or path not in self._paths or self._shown_results.get(path) is result:
            return
        if not self._is_of_this_model(result.bundle_sha256):
            return
        self._shown_results[path] = result
        self._list.set_result(path, summarise(result))
        self._rows.list_changed()

    def _is_of_this_model(self, bundle_sha256: str) -> bool:
        return self._info is not None and self._info.sha256 == bundle_sha256

    def _list_changed(self) -> None:
        self._rows.list_changed()
        self.changed.emit()


class VisibleRows:
    """The items of a worklist that are shown: sorted, filtered, made anew only when something changed.

    From when the reader has begun to go through them, or a batch has, they are sorted only when the reader says so:
    rows that moved under the hands would be passed over.
    """

    def __init__(self) -> None:
        self.order, self.which, self.text = Order.UNSURE_FIRST, Show.ALL, ""
        self._worklist: Worklist | None = None
        self._order_now: tuple[Path, ...] | None = None
        """How sorting now would put them; None where that isn't known."""
        self._frozen: tuple[Path, ...] | None = None
        """How they stand until the reader sorts them."""
        self._items: tuple[WorklistItem, ...] | None = None
        self._last_row = -1

    def choose(self, order: Order | None, which: Show | None, text: str | None) -> None:
        """Change what is given; an order, the same one too, sorts."""
        self.order = self.order if order is None else order
        self.which = self.which if which is None else which
        self.text = self.text if text is None else text
        self._items = None
        if order is not None:
            self._order_now = None
            self._frozen = None if self._frozen is None else self._sorted_now()

    def list_changed(self) -> None:
        """Look at the items of the list again."""
        self._items = self._order_now = None

    def show_list(self, worklist: Worklist) -> None:
        """Show another list."""
        self._worklist, self._last_row, self._frozen = worklist, -1, None
        self.list_changed()

    def freeze(self) -> None:
        """Keep the rows where they are until an order is chosen."""
        if self._frozen is None:
            self._frozen = self._sorted_now()

    @property
    def order_is_old(self) -> bool:
        """Whether sorting again would move rows."""
        return self._frozen is not None and self._frozen != self._sorted_now()

    def _sorted_now(self) -> tuple[Path, ...]:
        if self._order_now is None:
            ordered = self._worklist.ordered(self.order) if self._worklist is not None else []
            self._order_now = tuple(item.path for item in ordered)
        return self._order_now

    @property
    def items(self) -> tuple[WorklistItem, ...]:
        """The rows from top to bottom; the same object as long as nothing has changed."""
        worklist = self._worklist
        if self._items is None:
            order = self._sorted_now() if self._frozen is None else self._frozen
            items = (worklist[path] for path in order) if worklist is not None else ()
            self._items = tuple(item for item in items if is_shown(item, self.which, self.text))
        return self._items

    def note_place(self, path: Path | None) -> None:
        """Remember in which row the reader is, for when that row goes away."""
        row = self._row_of(path)
        self._last_row = row if row >= 0 else self._last_row

    def neighbour(self, path: Path | None, step: int) -> WorklistItem | None:
        """Return the row after (1) or before (-1) a slide; None at the end.

        A slide whose row went away, as by a verdict that the filter leaves out, still has its neighbours.
        """
        items = self.items
        here = self._row_of(path)
        if here >= 0:
            target = here + step
        elif path is not None and self._last_row >= 0:
            target = self._last_row if step > 0 else self._last_row - 1
        else:
            target = 0 if step > 0 else len(items) - 1
        return items[target] if 0 <= target < len(items) else None

    def _row_of(self, path: Path | None) -> int:
        if path is None:
            return -1
        return next((row for row, item in enumerate(self.items) if item.path == path), -1)


def look_up_steps(items: Sequence[WorklistItem], info: BundleInfo) -> Steps[FoundResults, None]:
    """Look up results that the cache holds of slides it has seen; yields those of some slides at a time."""
    cache, keys, sha = ResultCache(), ResultKeys(info), info.sha256
    for start in range(0, len(items), _LOOK_UP_CHUNK):
        chunk = items[start : start + _LOOK_UP_CHUNK]
        results = [(item.path, cache.known_summary(item.path, sha, keys, mpp=item.mpp)) for item in chunk]
        yield [(path, summary) for path, summary in results if summary is not None]

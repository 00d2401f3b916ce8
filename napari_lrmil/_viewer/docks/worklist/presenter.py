"""What happens when in the worklist dock. No Qt, no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.docks.worklist.arranged import Arranged
from napari_lrmil._viewer.docks.worklist.batching import Batching
from napari_lrmil._viewer.docks.worklist.panel import ListState, WorklistPanel
from napari_lrmil._viewer.docks.worklist.protocols import BatchJobs, Found, ListJobs
from napari_lrmil._viewer.docks.worklist.rows import Show
from napari_lrmil._viewer.models import bundle_folder, is_bundle
from napari_lrmil._viewer.window import Controller
from napari_lrmil.cache import summarise
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import Order, Worklist, WorklistError, WorklistItem
from napari_lrmil.worklist.reviews import Verdict

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction

EMPTY_HINT = (
    "Open a folder of slides, or a slide table: a CSV file with the column 'path'. You can also drop a folder "
    "here. Results that are known from before appear at once."
)


class Presenter:
    """State and transitions of the worklist dock.

    Parameters
    ----------
    jobs : ListJobs
    batch_jobs : BatchJobs
    changed : callable
        Called when there is something new to show; `panel` says what.
    reviewer : callable
        Gives the name that is kept with verdicts.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        jobs: ListJobs,
        batch_jobs: BatchJobs,
        changed: Callable[[], None],
        *,
        reviewer: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs, self._changed, self._reviewer = jobs, changed, reviewer
        self._controller: Controller | None = None
        self._batch = Batching(batch_jobs, self._batch_changed, self._batch_result, clock)
        self._list: Worklist | None = None
        self._paths: frozenset[Path] = frozenset()
        self._listing: Path | None = None
        self._where: Path | None = None
        self._arranged = Arranged()
        self._bundle_sha: str | None = None
        self._opened: dict[Path, Slide] = {}
        self._seen: dict[Path, SlidePrediction] = {}
        self._hint = self._error = ""

    def attach(self, controller: Controller) -> None:
        """Work with this controller from now on."""
        self._controller = controller
        self.controller_changed()

    @property
    def worklist(self) -> Worklist | None:
        """The one that is open."""
        return self._list

    # ---- the list

    def open_list(self, path: Path, *, recursive: bool = False) -> None:
        """List a folder or table in the background, in the place of the one that is open."""
        self._listing, self._hint, self._error = path, "", ""
        self._jobs.open_list(
            path,
            recursive=recursive,
            done=lambda worklist: self._listed(path, worklist),
            failed=lambda text: self._list_failed(path, text),
        )
        self._changed()

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
        """Sort and filter."""
        self._arranged.choose(order, which, text)
        self._changed()

    def found(self, results: Found) -> None:
        """Results that the cache had."""
        if self._list is None:
            return
        for path, summary in results:
            if summary.bundle_sha256 == self._bundle_sha and path in self._paths:
                self._list.set_result(path, summary)
        self._dirty()

    # ---- slides

    def open_slide(self, path: Path) -> None:
        """Show a slide in the place of the one that is shown."""
        controller = self._controller
        if controller is None or self._list is None:
            return
        self._hint = ""
        now = controller.slide
        if path == self.open_path:
            if now is not None:
                controller.choose_slide(controller.slides.index(now))
            return
        old = {slide for slide in (now, *self._opened.values()) if slide in controller.slides}
        controller.replace_slide(
            path, [slide for slide in old if slide is not None], mpp=self._list[path].mpp
        )
        self._error = controller.error
        if not self._error and controller.slide is not None:
            self._opened = {path: controller.slide}
        self._changed()

    def step(self, step: int) -> None:
        """Open the next slide of the list (1) or the one before (-1)."""
        if not self._arranged.rows(self._list):
            return
        target = self._arranged.neighbour(self._list, self.open_path, step)
        if target is not None:
            self.open_slide(target.path)
            return
        self._hint = "That was the last slide of the list." if step > 0 else "This is the first slide."
        self._changed()

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
        """Keep a verdict on the open slide; None takes it back."""
        path = self.open_path
        if path is None:
            self._hint = "Open a slide of the list first: the verdict is about the slide that is shown."
            self._changed()
            return
        self._review(path, verdict, None)

    def write_note(self, path: Path, note: str) -> None:
        """Keep a note on a slide."""
        if self._list is not None and path in self._paths and note != self._list[path].note:
            self._review(path, self._list[path].verdict, note)

    def _review(self, path: Path, verdict: Verdict | None, note: str | None) -> None:
        if self._list is None:
            return
        try:
            self._list.set_verdict(path, verdict, note, reviewer=self._reviewer())
            self._error = ""
        except WorklistError as error:
            self._error = str(error)
        self._dirty()

    # ---- batch

    def classify_all(self) -> None:
        """Classify what has no result yet, in the background, in the order of the list."""
        controller = self._controller
        if self._list is None or controller is None or controller.bundle is None:
            return
        wanted = [item for item in self._list.ordered(self._arranged.order) if item.label is None]
        self._hint = "" if wanted else "Every slide of the list is classified."
        if wanted:
            self._batch.start(self._list, wanted, controller.bundle, controller.device)
        self._dirty()

    def cancel(self) -> None:
        """Stop the batch; what is done stays."""
        self._batch.cancel()

    # ---- what is shown

    def panel(self) -> WorklistPanel:
        """All of it."""
        worklist, controller = self._list, self._controller
        state = (
            ListState.LISTING if self._listing else ListState.EMPTY if worklist is None else ListState.LISTED
        )
        if worklist is None:
            return WorklistPanel(state, hint=self._hint or EMPTY_HINT, error=self._error)
        can_start = controller is not None and controller.bundle is not None and not self._listing
        rows, judged = self._arranged.rows(worklist), self._judged
        self._arranged.remember(worklist, self.open_path)
        reviewed = sum(item.verdict is not None for item in worklist)
        hint = self._hint
        if not hint and not rows:
            hint = "No slide of the list is like that. Empty the filter to see all."
        return WorklistPanel(
            state=state,
            folder=str(self._where or ""),
            rows=rows,
            open_path=self.open_path,
            judged=judged,
            reviewed_text=f"{reviewed:,} of {len(worklist):,} reviewed",
            order=self._arranged.order,
            which=self._arranged.which,
            text=self._arranged.text,
            hint=" ".join(part for part in (hint, worklist.reviews.note) if part),
            error=self._error,
            batch=self._batch.panel(can_start=can_start),
        )

    def controller_changed(self) -> None:
        """Slide, model or result may be others now."""
        controller = self._controller
        if controller is None:
            return
        bundle = controller.bundle
        sha = bundle.info.weights_sha256 if bundle is not None else None
        if sha != self._bundle_sha:
            self._bundle_sha = sha
            self._batch.cancel()
            self._seen.clear()
            if self._list is not None:
                self._list.forget_results()
                self._look_up()
            self._arranged.stale()
        if self._list is not None:
            for slide, result in controller.results.items():
                self._take_result(slide.path.absolute(), result)
        self._changed()

    def shutdown(self) -> None:
        """Stop the batch and say nothing more: the dock is going."""
        self._changed = _nothing
        self._batch.cancel()
        self._controller = None

    # ---- inside

    @property
    def _judged(self) -> WorklistItem | None:
        path = self.open_path
        return self._list[path] if self._list is not None and path is not None else None

    def _listed(self, path: Path, worklist: Worklist) -> None:
        if self._listing != path:
            return
        self._batch.cancel()
        self._listing, self._where, self._list = None, path, worklist
        self._paths = frozenset(item.path for item in worklist)
        self._arranged.start_over()
        self._seen.clear()
        self._look_up()
        self.controller_changed()

    def _list_failed(self, path: Path, text: str) -> None:
        if self._listing == path:
            self._listing, self._error = None, text
            self._changed()

    def _look_up(self) -> None:
        controller = self._controller
        if self._list is not None and controller is not None and controller.bundle is not None:
            self._jobs.look_up(tuple(self._list), controller.bundle.info, self.found)

    def _take_result(self, path: Path, result: SlidePrediction) -> None:
        """Of the main dock: the row shows it too."""
        if self._list is None or path not in self._paths or self._seen.get(path) is result:
            return
        if result.bundle_sha256 != self._bundle_sha:
            return
        self._seen[path] = result
        self._list.set_result(path, summarise(result))
        self._arranged.stale()

    def _batch_changed(self, rows_too: bool) -> None:
        if rows_too:
            self._arranged.stale()
        self._changed()

    def _batch_result(self, path: Path, prediction: SlidePrediction) -> None:
        """Of the batch: where its slide is open, it shows."""
        controller = self._controller
        if controller is None or path != self.open_path or controller.slide is None:
            return
        self._seen[path] = prediction
        if controller.result is None and controller.running_slide is not controller.slide:
            controller.show_result(controller.slide, prediction)

    def _dirty(self) -> None:
        self._arranged.stale()
        self._changed()


def _nothing() -> None:
    return

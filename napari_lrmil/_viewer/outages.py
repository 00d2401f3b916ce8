"""Slides of a window whose files can't be read for a while: said once each, and looked for until they are back. No Qt."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial

from psygnal import Signal

from napari_lrmil._viewer.background import Background, Steps, ignore
from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil.errors import SlideAwayError, SlideChangedError, SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.pyramid import Unread

LOOK_EVERY_S = 2.0
_NOTICE_S = 0.1
"""How soon a job ends that was cancelled."""


class Outages:
    """Follows what a canvas couldn't read.

    Parameters
    ----------
    canvas : Canvas
    background : Background
        A slide that is away is looked for there, see `LOOK_EVERY_S`.
    """

    begun = Signal(object)
    """A slide can't be read, see `text`; once for an outage, however often it is shown meanwhile."""
    over = Signal(object)
    """A slide can be read again; what it shows was drawn anew."""
    replaced = Signal(object, str)
    """A slide in whose place another file is, and what that means."""

    def __init__(self, canvas: Canvas, background: Background) -> None:
        self._canvas, self._background = canvas, background
        self._texts: dict[Slide, str] = {}
        self._looked_for: dict[Slide, str] = {}
        """Those that are away, with the names of the jobs that look for them."""
        self._drawn: dict[Slide, Unread] = {}
        self._replaced: set[Slide] = set()
        self._n_jobs = 0
        canvas.slide_unread.connect(self._unread)

    def text(self, slide: Slide) -> str:
        """What is wrong with a slide that can't be read, and what to do; empty where nothing is known to be."""
        return self._texts.get(slide, "")

    def note(self, slide: Slide, *, try_again: Callable[[], object] = ignore) -> None:
        """A slide couldn't be reached or read; it is again once `try_again` raises nothing."""
        if slide in self._looked_for or slide not in self._canvas.slides():
            return
        self._n_jobs += 1
        name = self._looked_for[slide] = f"look for a slide ({self._n_jobs})"
        self._texts[slide] = away_text(slide)
        self._background.start(
            name,
            look_for(slide, try_again),
            done=partial(self._found, slide),
            failed=partial(self._lost, slide),
        )
        self.begun.emit(slide)

    def forget_all_but(self, slides: Collection[Slide]) -> None:
        """Those that were closed are looked for no more."""
        self._replaced &= set(slides)
        self._drawn = {slide: unread for slide, unread in self._drawn.items() if slide in slides}
        for slide in [each for each in self._texts if each not in slides]:
            del self._texts[slide]
            if slide in self._looked_for:
                self._background.cancel(self._looked_for.pop(slide))

    def _unread(self, slide: Slide, unread: Unread) -> None:
        error, self._drawn[slide] = unread.error, unread
        if isinstance(error, SlideAwayError):
            self.note(slide, try_again=unread.try_again)
        elif isinstance(error, SlideChangedError):
            self._tell_replaced(slide, error)
        elif error is not None and slide not in self._texts:
            self._texts[slide] = str(error)
            self.begun.emit(slide)

    def _found(self, slide: Slide, changed: SlideChangedError | None) -> None:
        if self._looked_for.pop(slide, None) is None:
            return
        self._texts.pop(slide, None)
        if changed is not None:
            self._tell_replaced(slide, changed)
        elif slide in self._canvas.slides():
            if slide in self._drawn:
                self._drawn[slide].error = None  # drawing it tells anew
            self._canvas.redraw(slide)
            self.over.emit(slide)

    def _tell_replaced(self, slide: Slide, error: SlideChangedError) -> None:
        if slide not in self._replaced:
            self._replaced.add(slide)
            self.replaced.emit(slide, str(error))

    def _lost(self, slide: Slide, text: str) -> None:
        """It is back, but can't be read for another reason."""
        if self._looked_for.pop(slide, None) is not None:
            self._texts[slide] = text
            self.begun.emit(slide)


def away_text(slide: Slide) -> str:
    """What a slide that can't be reached means, for people."""
    return (
        f"{slide.path.name} can't be read at the moment: it was moved or deleted, or the disk or share that it is on can't "
        "be reached. Grey stripes are what couldn't be read. Put it back or connect again: the slide then goes on by itself."
    )


def look_for(slide: Slide, try_again: Callable[[], object]) -> Steps[None, SlideChangedError | None]:
    """Wait until a slide can be read again; returns the error where another file came in its place.

    Raises
    ------
    SlideError
        Where it is there, but can't be read all the same.
    """
    while not slide.closed:
        looked = time.monotonic()
        while time.monotonic() - looked < LOOK_EVERY_S:
            yield
            time.sleep(_NOTICE_S)
        try:
            slide.check_unchanged()
            try_again()
        except SlideAwayError:
            continue
        except SlideChangedError as error:
            return error
        except SlideError:
            if slide.closed:
                break
            raise
        break
    return None

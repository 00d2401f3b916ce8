"""Verdicts on their way to the disk, behind the window. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from napari_lrmil._viewer.background import Background, Steps
from napari_lrmil.worklist import Refused, ReviewFile, WorklistError

_WRITE = "write verdicts"
_TRIED_AGAIN = "It is tried again with the next verdict, and before the list is closed."


class VerdictWriter:
    """Writes what was noted in review files, in the order in which it was noted; nothing noted is dropped.

    A file with something that could not be written stays here, whichever list is open, and is tried again with
    every later verdict and by `close`.

    Parameters
    ----------
    background : Background
    changed : callable
        Called when something became of verdicts: they are written, or could not be.
    """

    def __init__(self, background: Background, changed: Callable[[], None]) -> None:
        self._background, self._changed = background, changed
        self._files: list[ReviewFile] = []
        """Those in which something waits."""
        self._refused: list[Refused] = []
        self._noted_meanwhile = False
        self._closed = False
        self._error = ""

    @property
    def error(self) -> str:
        """Why verdicts are not saved; empty where all are, or are being written."""
        return self._error

    def take_refused(self) -> tuple[Refused, ...]:
        """Verdicts that were not written because their slides' files are others by now; each is told once."""
        refused, self._refused = tuple(self._refused), []
        return refused

    def write(self, reviews: ReviewFile) -> None:
        """Write soon what was noted in a file; after `close`, at once."""
        if reviews not in self._files:
            self._files.append(reviews)
        if self._closed:
            self.close()
        elif self._background.running(_WRITE):
            self._noted_meanwhile = True
        else:
            self._start()

    def close(self) -> str:
        """Write what is left and wait for it, at worst into the user's data folder.

        Returns
        -------
        str
            What the reviewer must know: what is kept elsewhere, and what could be kept nowhere. Empty where all is
            beside the slides.
        """
        self._closed = True
        files, self._files = self._files, []
        reports = [_write_before_the_end(reviews) for reviews in files]
        return "\n\n".join(report for report in reports if report)

    def _start(self) -> None:
        self._noted_meanwhile = False
        self._background.start(
            _WRITE, write_steps(tuple(self._files)), done=lambda _: self._ended(""), failed=self._ended
        )

    def _ended(self, error: str) -> None:
        self._error = f"{error[:1].upper()}{error[1:]} {_TRIED_AGAIN}" if error else ""
        self._refused += [refused for reviews in self._files for refused in reviews.take_refused()]
        self._files = [reviews for reviews in self._files if reviews.waiting]
        if self._noted_meanwhile and self._files:
            self._start()
        self._changed()


def write_steps(files: Sequence[ReviewFile]) -> Steps[None, None]:
    """Write what waits in review files, one file a step.

    Raises
    ------
    WorklistError
        Naming those that can't be written, once the others are.
    """
    errors: list[str] = []
    for reviews in files:
        yield None
        try:
            reviews.write_waiting()
        except WorklistError as error:
            errors.append(str(error))
    if errors:
        raise WorklistError(" ".join(errors))


def _write_before_the_end(reviews: ReviewFile) -> str:
    try:
        reviews.write_waiting(last_chance=True)
    except WorklistError as error:
        lost = "\n".join(
            f"{review.slide}: {review.verdict or 'verdict taken back'} {review.note}".rstrip()
            for review in reviews.waiting
        )
        return f"{error}\n\nThese verdicts are not saved:\n{lost}"
    refused = [
        f"The verdict on {review.slide} is not saved: {reason}" for review, reason in reviews.take_refused()
    ]
    return "\n".join([*refused, *([reviews.note] if reviews.where == reviews.fallback else [])])

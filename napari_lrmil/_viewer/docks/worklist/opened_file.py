"""Which file an open slide of the list is, looked at behind the window: what is said of it must be about that one. No Qt."""

from __future__ import annotations

from dataclasses import replace

from napari_lrmil._viewer.background import Steps
from napari_lrmil.cache import ResultCache
from napari_lrmil.errors import LRMILError, SlideAwayError, SlideChangedError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.identity import same_slide
from napari_lrmil.worklist import Review


class OpenedFile:
    """The file that a slide was opened from; asked in any thread, also once the slide is closed.

    Parameters
    ----------
    slide : Slide
    """

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.known: str | None = None
        """Its fingerprint, once somebody has asked for it."""
        self.changed = False
        """Whether another file was seen in its place."""

    def fingerprint(self) -> str:
        """Return the fingerprint of the file, which is still there.

        Raises
        ------
        SlideChangedError
            Where it is another one by now; `SlideAwayError` where it can't be reached.
        """
        try:
            if self.known is None:
                self.known = ResultCache().fingerprint_of(self.slide)
            else:
                self.slide.check_unchanged()
        except SlideAwayError:
            raise
        except SlideChangedError:
            self.changed = True
            raise
        return self.known

    def check(self, review: Review) -> Review:
        """Return a review with the fingerprint of the slide that was judged, see `napari_lrmil.worklist.Check`."""
        fingerprint = self.fingerprint()
        if review.label_shown is not None and not same_slide(review.fingerprint or "", fingerprint):
            raise SlideChangedError(
                f"{self.slide.path.name} was replaced by another file since its result was made. Classify it anew."
            )
        return replace(review, fingerprint=fingerprint)


def look_steps(file: OpenedFile) -> Steps[None, str | SlideChangedError | None]:
    """Look which file it is: its fingerprint, that another one is there by now, or None where nobody can tell."""
    yield None
    try:
        return file.fingerprint()
    except SlideAwayError:
        return None
    except SlideChangedError as error:
        return error
    except (LRMILError, OSError):  # reading the slide will say what is wrong
        return None

"""What the user types for µm/px: used for the slide, kept for the next time, and for the rest of the folder. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from napari_lrmil._viewer.background import Background, Steps
from napari_lrmil._viewer.window import Controller
from napari_lrmil.cache import keep_typed_mpp, open_slide
from napari_lrmil.errors import LRMILError, reason_of
from napari_lrmil.slide.pixel_size import is_plausible
from napari_lrmil.worklist.listing import find_slides

_JOB = "µm/px of the folder"


class TypedMpp:
    """Takes what is typed in the dock.

    Parameters
    ----------
    controller : Controller
    background : Background
    warn : callable
        Gets a text where something can't be kept.
    tell : callable
        Gets a text of what was done for the folder.
    """

    def __init__(
        self,
        controller: Controller,
        background: Background,
        warn: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self._controller, self._background, self._warn, self._tell = controller, background, warn, tell

    def give(self, mpp: float | None, *, folder_too: bool = False) -> None:
        """Use a value for the current slide, and keep it; None goes back to what the file says.

        It is on the disk before anybody hears of the change: who looks for results then asks for those of this value.

        Parameters
        ----------
        mpp : float, optional
        folder_too : bool
            Keep it for the other slides of the folder, too, that don't say how large their pixels are.
        """
        slide = self._controller.slide
        if slide is None:
            return
        if mpp is None or is_plausible(mpp):
            try:
                keep_typed_mpp(slide.fingerprint(), mpp)
            except (LRMILError, OSError) as error:
                self._warn(f"What was typed for µm/px can't be kept for the next time: {reason_of(error)}")
        self._controller.set_mpp(mpp)  # which refuses what isn't plausible
        if folder_too and mpp is not None and is_plausible(mpp):
            self._background.start(
                _JOB,
                _for_folder(slide.path.absolute(), mpp),
                done=lambda n: self._tell(
                    f"{mpp:g} µm/px is kept for {n} other {'slide' if n == 1 else 'slides'} of the folder."
                ),
                failed=self._warn,
            )


def _for_folder(slide_path: Path, mpp: float) -> Steps[None, int]:
    """Keep a value for the slides beside one that don't say theirs; returns how many they are."""
    n = 0
    for path in find_slides(slide_path.parent):
        yield None
        if path.absolute() == slide_path:
            continue
        try:
            with open_slide(path) as slide:
                if not slide.has_mpp:
                    keep_typed_mpp(slide.fingerprint(), mpp)
                    n += 1
        except (LRMILError, OSError, RuntimeError, ValueError, MemoryError):
            continue  # opening it will say what is wrong with it
    return n

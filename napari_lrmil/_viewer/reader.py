"""npe2 reader: whole slides as lazy layers. No Qt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari_lrmil._viewer.handles import close_with_layers
from napari_lrmil._viewer.layers import LayerData, slide_layer
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.suffixes import SLIDE_SUFFIXES, TIFF_SUFFIXES

SHARED_SUFFIXES = TIFF_SUFFIXES | {".dcm", ".zarr"}
"""Ordinary images are called so too: what is no slide is left to other readers."""

Reader = Callable[[str | Sequence[str]], list[LayerData]]


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """The reader for `path`, or None where it is no slide.

    Parameters
    ----------
    path : str or sequence of str
        A sequence is a stack of slides, which has no meaning here.
    """
    if not isinstance(path, str):
        return None
    suffix = Path(path).suffix.lower()
    if suffix in SLIDE_SUFFIXES:  # a file that fails to open deserves its error
        return read_slide
    if suffix in SHARED_SUFFIXES:
        return read_slide if _is_slide(path) else None
    return None


def _is_slide(path: str) -> bool:
    """Whether a file of a shared suffix is a slide: a pyramid, or something OpenSlide knows and measures."""
    try:
        with Slide(path) as slide:
            pyramid = len(slide.level_dimensions_xy) > 1
            return pyramid or (slide.has_mpp and slide.metadata["vendor"] != "tiff")
    except SlideError:
        return False


def read_slide(path: str | Sequence[str]) -> list[LayerData]:
    """Open a slide; its pixels are read as they are looked at.

    Raises
    ------
    SlideError
        Where the file can't be opened or decoded.
    """
    layer = slide_layer(Slide(str(path)))
    viewer = _current_viewer()
    if viewer is not None:
        close_with_layers(viewer)
    return [layer]


def _current_viewer() -> Any:
    """The window that the slide will appear in, if there is one."""
    if "qtpy" not in sys.modules:  # no window can exist, and asking napari would load Qt
        return None
    from napari.viewer import current_viewer

    return current_viewer()


def prefer_this_reader() -> None:
    """Make napari open slides with this plugin without asking each time; a menu command.

    napari's own reader claims most endings of slides and would load them whole.
    """
    from napari.settings import get_settings
    from napari.utils.notifications import show_info

    plugins = get_settings().plugins
    wanted = {f"*{suffix}": "napari-lrmil" for suffix in SLIDE_SUFFIXES}
    plugins.extension2reader = {**plugins.extension2reader, **wanted}
    show_info(f"Slides ({', '.join(sorted(SLIDE_SUFFIXES))}) now open with LRMIL.")

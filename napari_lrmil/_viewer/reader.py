"""npe2 reader: whole slides as lazy layers. No Qt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari_lrmil._viewer.layers import (
    LayerData,
    close_with_layers,
    measured_as_others,
    prepare_for_slides,
    slide_layer,
)
from napari_lrmil._viewer.settings import PLUGIN_NAME
from napari_lrmil.cache import open_slide
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.files import SHARED_SUFFIXES, SLIDE_SUFFIXES

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
    if suffix in SLIDE_SUFFIXES or suffix in SHARED_SUFFIXES:
        prepare_for_slides()
    if suffix in SLIDE_SUFFIXES:  # a file that fails to open deserves its error
        return read_slide
    if suffix in SHARED_SUFFIXES:  # ordinary images are called so too: they are left to other readers
        return _reader_of_slide(path)
    return None


def _reader_of_slide(path: str) -> Reader | None:
    """A reader that holds the slide which opening `path` gave; None where it is no slide.

    A slide is a pyramid, or something OpenSlide knows and measures. The reader hands the open slide on when it is
    called; a reader that is dropped uncalled gives the handle back, as a dropped `Slide` does.
    """
    try:
        slide = open_slide(path)
    except SlideError:
        return None
    pyramid = len(slide.level_dimensions_xy) > 1
    if not (pyramid or (slide.has_mpp and slide.metadata["vendor"] != "tiff")):
        slide.close()
        return None
    opened = [slide]
    del slide

    def read(path: str | Sequence[str]) -> list[LayerData]:
        return _layers_of(opened.pop() if opened else open_slide(str(path)))

    return read


def read_slide(path: str | Sequence[str]) -> list[LayerData]:
    """Open a slide; its pixels are read as they are looked at.

    Raises
    ------
    SlideError
        Where the file can't be opened or decoded.
    """
    return _layers_of(open_slide(str(path)))


def _layers_of(slide: Slide) -> list[LayerData]:
    layer = slide_layer(slide)
    viewer = _current_viewer()
    if viewer is not None:
        from napari_lrmil._viewer.undocked import keep_one_current
        from napari_lrmil._viewer.workspace_key import bind_workspace_key

        bind_workspace_key(viewer)
        close_with_layers(viewer)
        keep_one_current(viewer)
        layer = measured_as_others(viewer, layer)
    return [layer]


def _current_viewer() -> Any:
    """The window that the slide will appear in, if there is one."""
    if "qtpy" not in sys.modules:  # no window can exist, and asking napari would load Qt
        return None
    from napari.viewer import current_viewer

    return current_viewer()


def prefer_this_reader(*, shared_too: bool = False) -> None:
    """Make napari open slides with this plugin without asking each time; a menu command.

    napari's own reader claims most endings of slides and would load them whole.

    Parameters
    ----------
    shared_too : bool
        Files too that are called like ordinary images: about one that is no slide napari asks.
    """
    from napari.settings import get_settings
    from napari.utils.notifications import show_info

    plugins = get_settings().plugins
    suffixes = SLIDE_SUFFIXES | (SHARED_SUFFIXES if shared_too else frozenset())
    wanted = {f"*{suffix}": PLUGIN_NAME for suffix in suffixes}
    plugins.extension2reader = {**plugins.extension2reader, **wanted}
    show_info(f"Slides ({', '.join(sorted(suffixes))}) now open with LRMIL.")


def this_reader_is_preferred() -> bool:
    """Whether napari opens files that only slides are called like with this plugin, without asking."""
    from napari.settings import get_settings

    chosen = get_settings().plugins.extension2reader
    return all(chosen.get(f"*{suffix}") == PLUGIN_NAME for suffix in SLIDE_SUFFIXES)

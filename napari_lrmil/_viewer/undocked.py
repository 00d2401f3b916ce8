"""Windows without a dock of ours, where slides come by File > Open or are dropped: one is current, and outages are told."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from napari_lrmil._viewer.current import CurrentSlide
from napari_lrmil._viewer.napari_canvas import NapariCanvas
from napari_lrmil._viewer.outages import Outages

_canvases: WeakValueDictionary[int, NapariCanvas] = WeakValueDictionary()
"""By the id of their viewer, which alone keeps them alive."""
_docked: set[int] = set()
"""Viewers with a main dock, whose controller keeps to the rule."""


def keep_one_current(viewer: Any) -> None:
    """Have the newest slide of a viewer alone be seen, from now on, and tell of slides that can't be read any more.

    Asking again changes nothing.

    Parameters
    ----------
    viewer : napari.Viewer
        Or napari's public proxy of one.
    """
    key = _id(viewer)
    if key in _docked or key in _canvases:
        return
    canvas = NapariCanvas(viewer)
    rule = CurrentSlide(canvas)
    canvas.layers_changed.connect(lambda: rule.follow())
    _tell_of_outages(canvas)
    _canvases[key] = canvas
    rule.begin()


def _tell_of_outages(canvas: NapariCanvas) -> None:
    """As a notice, for there is no dock to say it in."""
    from napari.utils.notifications import show_warning

    from napari_lrmil._viewer.qt.background import QtBackground  # this is called in windows only

    outages = Outages(canvas, QtBackground())
    outages.begun.connect(lambda slide: show_warning(outages.text(slide)))
    outages.replaced.connect(lambda _, text: show_warning(text))
    canvas.layers_changed.connect(lambda: outages.forget_all_but(canvas.slides()))


def dock_takes_over(viewer: Any) -> None:
    """A main dock was opened: its controller says from now on which slide is the current one."""
    key = _id(viewer)
    _docked.add(key)
    canvas = _canvases.pop(key, None)
    if canvas is not None:
        canvas.close()


def dock_is_gone(viewer: Any) -> None:
    """The main dock was closed, perhaps with the viewer."""
    _docked.discard(_id(viewer))


def _id(viewer: Any) -> int:
    return id(getattr(viewer, "__wrapped__", viewer))

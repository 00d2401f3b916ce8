"""Widgets: they show a `Panel` and pass clicks on; what happens is decided in `controller`."""

from napari_lrmil._viewer.widgets.dock import ClassifyWidget

__all__ = ["ClassifyWidget"]

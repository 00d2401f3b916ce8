"""Close a slide's file when nothing shows it any more. No Qt."""

from __future__ import annotations

from typing import Any

from napari_lrmil._viewer.layers import SLIDE_KEY


def close_with_layers(viewer: Any) -> None:
    """Have `viewer` close a slide once the last layer that shows it is removed, or the viewer closes.

    Asking again for the same viewer changes nothing. A slide layer that never was in a viewer holds the
    only reference to its slide, and the file ends with it.

    Parameters
    ----------
    viewer : napari.Viewer
    """
    viewer.layers.events.removed.connect(_close_removed, position="last")


def _close_removed(event: Any) -> None:
    slide = event.value.metadata.get(SLIDE_KEY)
    # A duplicated layer shares the slide of its original.
    if slide is not None and not any(layer.metadata.get(SLIDE_KEY) is slide for layer in event.source):
        slide.close()

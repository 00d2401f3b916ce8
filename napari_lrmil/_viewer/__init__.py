"""The napari plugin: the only folder that knows napari and Qt.

World coordinates of every layer are level-0 micrometres, (0, 0) at the top left corner of the slide's
first pixel, in napari's order (y, x).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_lrmil._viewer.session import open_slide_with_result

__all__ = ["open_slide_with_result"]


def __getattr__(name: str) -> Any:
    # Reader and controller live in this package too and must load no Qt; `session` does.
    if name == "open_slide_with_result":
        from napari_lrmil._viewer.session import open_slide_with_result

        return open_slide_with_result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

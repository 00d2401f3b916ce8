"""The dock "LRMIL: worklist": slides of a folder or table, their results, and the reviewer's verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_lrmil._viewer.docks.worklist.widget import WorklistWidget, worklist_dock

__all__ = ["WorklistWidget", "worklist_dock"]


def __getattr__(name: str) -> object:
    # The presenter lives in this package too and must load no Qt; `widget` does.
    if name in __all__:
        from napari_lrmil._viewer.docks.worklist import widget

        return getattr(widget, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

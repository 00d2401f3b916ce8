"""What the annotations dock's state consists of, and what it needs of the dock. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from napari_lrmil._viewer.docks.annotations.layers import RegionLayers
from napari_lrmil._viewer.docks.annotations.store import RegionStore
from napari_lrmil._viewer.docks.annotations.wording import RegionsPanel
from napari_lrmil.export.annotation import Annotation

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Steps
    from napari_lrmil.slide import Slide

TOOLS = {"rectangle": "add_rectangle", "ellipse": "add_ellipse", "polygon": "add_polygon", "point": "add"}
"""Tools and the modes of napari's layers that they are."""


class View(Protocol):
    """The dock."""

    def show_panel(self, panel: RegionsPanel) -> None: ...
    def schedule(self) -> None: ...


Run = Callable[[str, "Steps[Any, Any]", Callable[[Any], None], Callable[[str], None]], None]
"""Runs steps in the background: (name, steps, done, failed with a text)."""


@dataclass
class Regions:
    """Of one open slide. `version` counts the changes, `saved` says which of them is in the file."""

    slide: Slide
    layers: RegionLayers
    store: RegionStore | None = None
    annotations: dict[str, Annotation] = field(default_factory=dict)
    drawn: dict[Any, Any] = field(default_factory=dict)
    deleted: list[list[Annotation]] = field(default_factory=list)
    version: int = 0
    saved: int = 0
    saving: bool = False
    note: str = ""
    error: str = ""

"""What the overview dock does: it shows where one is on the slide, and moves. No Qt."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_lrmil._viewer.background import in_one_step
from napari_lrmil._viewer.docks.overview.panel import OverviewPanel, confirmation_text, overview_panel
from napari_lrmil._viewer.magnifier import scanned_area
from napari_lrmil._viewer.window import Change
from napari_lrmil.slide import picture

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Background, Steps
    from napari_lrmil._viewer.canvas import Area, Canvas, DrawnHeatmap
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.slide import Slide

MAP_EDGE_PX = 640
_STRIP_PX = 2**22
_MAX_LEVEL_PX = 2**28
"""Of a level without a coarser one: more can't be decoded in seconds."""
_GREY = 225
_CONCERNS = Change.SLIDE | Change.PIXELS | Change.RESULT
_STEP = 0.5
"""Of the field, by an arrow key."""

Pixels = NDArray[np.uint8]


class OverviewView(Protocol):
    """The dock."""

    def show_panel(self, panel: OverviewPanel) -> None:
        """Show words and switches."""
        ...

    def show_picture(self, pixels: Pixels | None, area: Area | None) -> None:
        """Show the slide on the map: where it lies, and its pixels once they are read. Neither without a slide."""
        ...

    def show_heatmap(self, heatmap: DrawnHeatmap | None) -> None:
        """Show a heatmap on the map."""
        ...

    def show_field(self, field: Area | None, magnification: str) -> None:
        """Show what the canvas shows, and how much is magnified; the text is empty where that isn't known."""
        ...

    def may_show_associated(self, question: str) -> bool:
        """Ask whether an image that can identify the patient may be shown."""
        ...

    def show_associated(self, name: str, pixels: Pixels) -> None:
        """Show an associated image in a window of its own, until `close_associated`."""
        ...

    def close_associated(self) -> None:
        """Close that window, where it is open."""
        ...

    def show_error(self, text: str) -> None:
        """Say what went wrong; nothing where empty."""
        ...


class OverviewPresenter:
    """The state behind the overview dock.

    Parameters
    ----------
    view : OverviewView
    canvas : Canvas
    background : Background
    """

    _controller: Controller

    def __init__(self, view: OverviewView, canvas: Canvas, background: Background) -> None:
        self._view, self._canvas, self._background = view, canvas, background
        self._slide: Slide | None = None
        self._heatmap_shown = True

    # ---- what changed

    def attach(self, controller: Controller) -> None:
        """Follow this controller from now on. Comes before all else."""
        self._controller = controller

    def refresh(self, change: Change = Change.ALL) -> None:
        """The slide, its pixel size, its colours or the heatmap may have changed."""
        if not change & _CONCERNS:
            return
        self._slide = self._controller.slide
        if change & Change.SLIDE:  # one patient's label must not stand beside another's slide
            self._view.close_associated()
        if change & (Change.SLIDE | Change.PIXELS):
            self._view.show_error("")
            self._view.show_picture(None, scanned_area(self._slide) if self._slide is not None else None)
            if self._slide is not None:
                self._read_picture(self._slide)
        self.heatmap_changed()
        self.field_changed()

    def heatmap_changed(self) -> None:
        """The heatmap came, went, or is drawn in other colours."""
        slide, heatmap = self._slide, None
        if slide is not None and self._heatmap_shown:
            heatmap = self._canvas.drawn_heatmap(slide)
        self._view.show_heatmap(heatmap)
        has_heatmap = slide is not None and self._canvas.has_heatmap(slide)
        self._view.show_panel(
            overview_panel(slide, has_heatmap=has_heatmap, heatmap_shown=self._heatmap_shown)
        )

    def field_changed(self) -> None:
        """The camera moved, or the canvas got another size."""
        field = self._canvas.field if self._slide is not None else None
        self._view.show_field(field, self._controller.magnifier.text)

    # ---- what the user does

    def centre_on(self, world_yx: tuple[float, float]) -> None:
        """Move the field there, within the slide."""
        if self._slide is None:
            return
        area = scanned_area(self._slide)
        y = min(max(world_yx[0], area.top), area.top + area.height)
        x = min(max(world_yx[1], area.left), area.left + area.width)
        self._canvas.go_to((y, x))

    def move(self, down: int, right: int) -> None:
        """By half a field."""
        field = self._canvas.field
        y, x = field.center_yx
        self.centre_on((y + down * _STEP * field.height, x + right * _STEP * field.width))

    def toggle_heatmap(self, shown: bool) -> None:
        """Over the map; the canvas has a switch of its own."""
        self._heatmap_shown = shown
        self.heatmap_changed()

    def choose_associated(self, name: str) -> None:
        """Read and show a label, macro or thumbnail image, once somebody has confirmed that it may be seen."""
        slide = self._slide
        if slide is None or not self._view.may_show_associated(confirmation_text(name)):
            return

        def read(pixels: Pixels) -> None:
            if self._slide is slide:
                self._view.show_associated(name, pixels)

        steps = in_one_step(partial(slide.read_associated, name))
        self._background.start("associated", steps, done=read, failed=partial(self._failed, slide))

    # ---- inside

    def _read_picture(self, slide: Slide) -> None:
        icc = slide.icc

        def read(pixels: Pixels) -> None:
            if self._slide is slide and slide.icc == icc:
                self._view.show_picture(pixels, scanned_area(slide))

        self._background.start(
            "overview", overview_steps(slide), done=read, failed=partial(self._failed, slide)
        )

    def _failed(self, slide: Slide, text: str) -> None:
        if self._slide is slide:  # a slide that was closed meanwhile is no error
            self._view.show_error(text)


def overview_steps(slide: Slide) -> Steps[None, Pixels]:
    """The picture of the map, (height, width, 3); grey where too many pixels would have to be read."""
    if picture.overview_level_px(slide, MAP_EDGE_PX) > _MAX_LEVEL_PX:
        width, height = picture.overview_size_xy(slide, MAP_EDGE_PX)
        return np.full((height, width, 3), _GREY, np.uint8)
    return (yield from picture.overview_steps(slide, MAP_EDGE_PX, strip_px=_STRIP_PX))

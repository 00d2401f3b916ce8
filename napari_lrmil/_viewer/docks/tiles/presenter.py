"""What the tiles dock does: it ranks tiles, has their close-ups read, and goes to them. No Qt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_lrmil._viewer.canvas import Area
from napari_lrmil._viewer.docks.tiles.panel import (
    CLOSE_UP_MAX_PX,
    DEFAULT_K,
    MAX_K,
    NO_RESULT,
    NO_SLIDE,
    WITHHELD,
    TilesPanel,
    tiles_panel,
)
from napari_lrmil._viewer.window import Change
from napari_lrmil.heatmap import channels_of
from napari_lrmil.slide.picture import close_up

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Background, Steps
    from napari_lrmil._viewer.canvas import Canvas
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide

CLOSE_UPS_JOB = "close-ups"
_CONCERNS = Change.SLIDE | Change.PIXELS | Change.RESULT | Change.LOOK
_SHARE = 1 / 3
"""Of the canvas, that a tile fills once one has gone there."""

Pixels = NDArray[np.uint8]


class TilesView(Protocol):
    """The dock."""

    def show_panel(self, panel: TilesPanel) -> None:
        """Show exactly this, without images."""
        ...

    def show_image(self, n: int, pixels: Pixels) -> None:
        """Show the image of a tile of the panel."""
        ...

    def show_error(self, text: str) -> None:
        """Say why images are missing; the next panel takes it away."""
        ...

    def select(self, n: int) -> None:
        """Choose a tile in the lists."""
        ...


class TilesPresenter:
    """The state behind the tiles dock.

    Parameters
    ----------
    view : TilesView
    canvas : Canvas
    background : Background
    """

    _controller: Controller

    def __init__(self, view: TilesView, canvas: Canvas, background: Background) -> None:
        self._view, self._canvas, self._background = view, canvas, background
        self._channel: str | None = None
        self._k = DEFAULT_K
        self._slide: Slide | None = None
        self._result: SlidePrediction | None = None
        self._icc = False
        self._panel: TilesPanel | None = None
        self._tiles: list[int] = []
        self._at: int | None = None
        self._images: dict[int, Pixels] = {}

    def attach(self, controller: Controller) -> None:
        """Follow this controller from now on. Comes before all else."""
        self._controller = controller

    def refresh(self, change: Change = Change.ALL) -> None:
        """Slide, its colours, the result or the unit of contributions may have changed; nothing is done where they haven't."""
        if change & _CONCERNS:
            missing = any(n not in self._images for n in self._tiles)
            if Change.PIXELS in change and missing and not self._background.running(CLOSE_UPS_JOB):
                self._panel = None  # what couldn't be read, perhaps can be now
            self._update()

    def choose_channel(self, index: int) -> None:
        """Rank by attention or by a class's contribution: the place in the panel's list."""
        if self._controller.result is not None:
            self._channel = channels_of(self._controller.result)[index]
        self._update()

    def choose_k(self, k: int) -> None:
        """How many tiles of each kind."""
        self._k = min(max(k, 1), MAX_K)
        self._update()

    def go_to(self, n: int) -> None:
        """Show a tile on the canvas, in the middle, with an outline."""
        result = self._controller.result
        if result is not None and n in self._tiles:
            self._at = self._tiles.index(n)
            area = _tile_area(result, n)
            self._canvas.fit(area, share=_SHARE)
            self._canvas.mark_tile(n, area)
            self._view.select(n)

    def go_to_first(self) -> None:
        """Go to the tile that speaks most, by what they are ranked by; nothing where none does."""
        if self._panel is not None and self._panel.top:
            self.go_to(self._panel.top[0].n)

    def step(self, by: int) -> None:
        """Go to the next tile shown, or the one before; from the last on to the first."""
        if self._tiles:
            start = self._at if self._at is not None else -1 if by > 0 else 0
            self.go_to(self._tiles[(start + by) % len(self._tiles)])

    def _update(self) -> None:
        slide, result = self._controller.slide, self._controller.result
        icc = slide is not None and slide.icc
        same_images = self._slide is slide and self._result is result and self._icc == icc
        panel = self._new_panel(slide, result)
        if same_images and panel == self._panel:
            return
        if not same_images:
            self._images.clear()
            self._at = None
            self._canvas.clear_tile_mark()
        self._slide, self._result, self._icc, self._panel = slide, result, icc, panel
        gone_to = self._tiles[self._at] if self._at is not None else None
        self._tiles = [entry.n for entry in (*panel.top, *panel.bottom)]
        self._at = self._tiles.index(gone_to) if gone_to in self._tiles else None
        self._images = {n: pixels for n, pixels in self._images.items() if n in self._tiles}
        self._view.show_panel(panel)
        for n, pixels in self._images.items():
            self._view.show_image(n, pixels)
        self._read([n for n in self._tiles if n not in self._images])

    def _new_panel(self, slide: Slide | None, result: SlidePrediction | None) -> TilesPanel:
        if slide is None or result is None:
            return TilesPanel(hint=NO_SLIDE if slide is None else NO_RESULT, k=self._k)
        if not self._controller.evidence_shown:
            return TilesPanel(hint=WITHHELD, k=self._k)
        channel = self._channel if self._channel in channels_of(result) else result.called
        look = self._controller.look
        return tiles_panel(slide, result, channel, self._k, look.unit if look is not None else None)

    def _read(self, numbers: list[int]) -> None:
        self._background.cancel(CLOSE_UPS_JOB)
        slide, result = self._slide, self._result
        if slide is None or result is None or not numbers:
            return

        def is_shown() -> bool:
            return self._slide is slide and self._result is result

        def failed(text: str) -> None:
            if is_shown():  # a slide that was closed meanwhile is no error
                self._view.show_error(text)

        def progressed(read: tuple[int, Pixels]) -> None:
            n, pixels = read
            if is_shown() and n in self._tiles:
                self._images[n] = pixels
                self._view.show_image(n, pixels)

        self._background.start(
            CLOSE_UPS_JOB, _close_ups(slide, result, numbers), progressed=progressed, failed=failed
        )


def _close_ups(
    slide: Slide, result: SlidePrediction, numbers: Iterable[int]
) -> Steps[tuple[int, Pixels], None]:
    tiles = result.tiles
    for n in numbers:
        row, col = int(tiles.rows[n]), int(tiles.cols[n])
        yield n, close_up(slide, tiles.grid, row, col, max_px=CLOSE_UP_MAX_PX, keep_tiles=True)


def _tile_area(result: SlidePrediction, n: int) -> Area:
    tiles, (mpp_x, mpp_y) = result.tiles, result.mpp_xy
    left, top = tiles.grid.corner_l0_xy(int(tiles.rows[n]), int(tiles.cols[n]))
    width, height = tiles.grid.tile_l0_xy
    return Area(top * mpp_y, left * mpp_x, height * mpp_y, width * mpp_x)

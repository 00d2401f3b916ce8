"""What the gallery shows, and what happens when. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from napari_lrmil._viewer.docks.tiles.close_up import Pixels, close_up_text
from napari_lrmil._viewer.docks.tiles.ranking import ranked_tiles
from napari_lrmil.heatmap import ATTENTION, channel_titles, channel_values, channels_of, tile_text, value_text
from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction

DEFAULT_K, MAX_K = 6, 24
NO_SLIDE = "Open a slide and classify it: its tiles that count most and least appear here."
NO_RESULT = (
    "Classify this slide (panel “LRMIL: classify slide”): its tiles that count most and least appear here."
)


@dataclass(frozen=True)
class TileEntry:
    """One tile: its number in the prediction, its value, and all about it."""

    n: int
    caption: str
    tool_tip: str


@dataclass(frozen=True)
class GalleryPanel:
    """Everything the gallery shows but the images; `hint` says what to do where there is nothing."""

    hint: str = ""
    channels: tuple[str, ...] = ()
    channel_index: int = -1
    k: int = DEFAULT_K
    top_title: str = ""
    top: tuple[TileEntry, ...] = ()
    bottom_title: str = ""
    bottom: tuple[TileEntry, ...] = ()
    note: str = ""


class GalleryView(Protocol):
    """The dock."""

    def show_gallery(self, panel: GalleryPanel) -> None: ...
    def show_image(self, n: int, pixels: Pixels) -> None: ...
    def show_error(self, text: str) -> None: ...
    def select(self, n: int) -> None: ...


class Stage(Protocol):
    """The canvas."""

    def go_to(self, prediction: SlidePrediction, n: int) -> None: ...
    def clear(self) -> None: ...


class Source(Protocol):
    """What the gallery asks of the controller."""

    @property
    def slide(self) -> Slide | None: ...
    @property
    def result(self) -> SlidePrediction | None: ...


Read = Callable[[Slide, "SlidePrediction", Sequence[int]], None]
"""Reads close-ups in the background and hands each to `GalleryPresenter.image_read`; a new call ends the last."""


class GalleryPresenter:
    """Ranks tiles, has them read, and goes to them.

    Parameters
    ----------
    view : GalleryView
    stage : Stage
    source : Source
    read : callable
        See `Read`.
    """

    def __init__(self, view: GalleryView, stage: Stage, source: Source, read: Read) -> None:
        self._view, self._stage, self._source, self._read = view, stage, source, read
        self._channel: str | None = None
        self._k = DEFAULT_K
        self._of: tuple[object, ...] | None = None
        self._ranked: tuple[str | None, int] | None = None
        self._tiles: list[int] = []
        self._at: int | None = None
        self._images: dict[int, Pixels] = {}

    def refresh(self) -> None:
        """Slide or result may have changed; nothing is done where they haven't."""
        slide, result = self._source.slide, self._source.result
        channel = None if result is None else self._channel_of(result)
        of, ranked = (slide, result, slide is not None and slide.icc), (channel, self._k)
        same = self._of is not None and all(a is b for a, b in zip(of, self._of, strict=True))
        if same and ranked == self._ranked:
            return
        if not same:
            self._images.clear()
            self._at = None
            self._stage.clear()
        self._of, self._ranked = of, ranked
        if slide is None or result is None or channel is None:
            self._tiles = []
            self._view.show_gallery(GalleryPanel(hint=NO_SLIDE if slide is None else NO_RESULT, k=self._k))
            return
        self._show(slide, result, channel)

    def choose_channel(self, index: int) -> None:
        """Rank by attention or by a class's contribution: the place in the panel's list."""
        if self._source.result is not None:
            self._channel = channels_of(self._source.result)[index]
        self.refresh()

    def choose_k(self, k: int) -> None:
        """How many tiles of each kind."""
        self._k = min(max(k, 1), MAX_K)
        self.refresh()

    def image_read(self, n: int, pixels: Pixels) -> None:
        """Report of the background."""
        if n in self._tiles:
            self._images[n] = pixels
            self._view.show_image(n, pixels)

    def reading_failed(self, message: str) -> None:
        """Report of the background."""
        self._view.show_error(message)

    def go_to(self, n: int) -> None:
        """Show a tile on the canvas."""
        result = self._source.result
        if result is not None and n in self._tiles:
            self._at = self._tiles.index(n)
            self._stage.go_to(result, n)
            self._view.select(n)

    def step(self, by: int) -> None:
        """Go to the next tile of the gallery, or the one before; from the last on to the first."""
        if self._tiles:
            start = self._at if self._at is not None else -1 if by > 0 else 0
            self.go_to(self._tiles[(start + by) % len(self._tiles)])

    def _channel_of(self, result: SlidePrediction) -> str:
        return self._channel if self._channel in channels_of(result) else result.label

    def _show(self, slide: Slide, result: SlidePrediction, channel: str) -> None:
        values = channel_values(result, channel)
        top, bottom = ranked_tiles(values, self._k)
        on_screen = self._tiles[self._at] if self._at is not None else None
        self._tiles = top + bottom
        self._at = self._tiles.index(on_screen) if on_screen in self._tiles else None
        self._images = {n: pixels for n, pixels in self._images.items() if n in self._tiles}

        def entries(numbers: list[int]) -> tuple[TileEntry, ...]:
            return tuple(
                TileEntry(
                    n,
                    value_text(float(values[n]), channel),
                    f"{tile_text(result, n)}\nClick or press Enter to go there",
                )
                for n in numbers
            )

        attention = channel == ATTENTION
        self._view.show_gallery(
            GalleryPanel(
                channels=channel_titles(result),
                channel_index=channels_of(result).index(channel),
                k=self._k,
                top_title="Most attention" if attention else f"Most for {channel}",
                top=entries(top),
                bottom_title="Least attention" if attention else f"Least for {channel}, or against it",
                bottom=entries(bottom),
                note=close_up_text(slide, result),
            )
        )
        for n, pixels in self._images.items():
            self._view.show_image(n, pixels)
        missing = [n for n in self._tiles if n not in self._images]
        if missing:
            self._read(slide, result, missing)

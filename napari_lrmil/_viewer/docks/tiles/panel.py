"""What the tiles dock shows, as plain values: which tiles, in which order, in which words. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_lrmil._viewer.canvas import magnification_of
from napari_lrmil.heatmap import (
    Unit,
    channel_titles,
    channel_values,
    channels_of,
    is_attention,
    speaking_tiles,
    tile_text,
    unit_of,
    value_text,
)
from napari_lrmil.slide.picture import close_up_mpp
from napari_lrmil.wording import evidence_notes

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide

DEFAULT_K, MAX_K = 6, 24
"""How many tiles of each kind."""
CLOSE_UP_MAX_PX = 640
NO_SLIDE = "Open a slide and classify it: its tiles that count most and least appear here."
NO_RESULT = (
    "Classify this slide (panel “LRMIL: classify slide”): its tiles that count most and least appear here."
)

WITHHELD = (
    "This slide is unlike those that the model was trained on, so no tile speaks for an answer. “Show what it would say” in "
    "the panel “LRMIL: classify slide” shows them."
)


@dataclass(frozen=True)
class TileEntry:
    """One tile: its number in the prediction, its value, and all about it."""

    n: int
    caption: str
    tool_tip: str


@dataclass(frozen=True)
class TilesPanel:
    """Everything the dock shows but the images; `hint` says what to do where there is nothing."""

    hint: str = ""
    channels: tuple[str, ...] = ()
    channel_index: int = -1
    k: int = DEFAULT_K
    top_title: str = ""
    top: tuple[TileEntry, ...] = ()
    bottom_title: str = ""
    bottom: tuple[TileEntry, ...] = ()
    note: str = ""


def tiles_panel(
    slide: Slide, result: SlidePrediction, channel: str, k: int, unit: Unit | None = None
) -> TilesPanel:
    """The k tiles of highest and of lowest value in a channel of the result; `unit` as in `HeatmapLook`."""
    unit = unit_of(result, unit)
    values = channel_values(result, channel, unit)
    attention = is_attention(channel) and channel not in result.class_names
    most_top = None
    if not attention:
        most_top = int((values > 0).sum()) if unit is Unit.ALONE else len(speaking_tiles(result, channel))
    top, bottom = ranked_tiles(values, k, most_top=most_top)

    def entries(numbers: list[int]) -> tuple[TileEntry, ...]:
        return tuple(
            TileEntry(
                n,
                value_text(float(values[n]), channel, unit),
                f"{tile_text(result, n)}\nClick or press Enter to go there",
            )
            for n in numbers
        )

    most_for = f"Most for {channel}" if top else f"No tile speaks for {channel}"
    return TilesPanel(
        channels=channel_titles(result),
        channel_index=channels_of(result).index(channel),
        k=k,
        top_title="Most attention" if attention else most_for,
        top=entries(top),
        bottom_title="Least attention" if attention else f"Least for {channel}, or against it",
        bottom=entries(bottom),
        note=" ".join(
            (
                _close_up_text(slide, result),
                *(() if attention and result.label is not None else evidence_notes(result)),
            )
        ),
    )


def ranked_tiles(
    values: NDArray[np.float64], k: int, *, most_top: int | None = None
) -> tuple[list[int], list[int]]:
    """The k tiles of highest value, highest first, and the k of lowest, lowest first.

    None is in both: of fewer than 2 k tiles the larger half counts as high. Ties keep the order of the tiles.

    Parameters
    ----------
    values : (N,) array
    k : int
    most_top : int, optional
        How many may count as high: of contributions, as many as speak for the class.
    """
    order = np.argsort(-values, kind="stable")
    n_top = min(k, (len(order) + 1) // 2, len(order) if most_top is None else most_top)
    n_bottom = min(k, len(order) - n_top)
    return order[:n_top].tolist(), order[len(order) - n_bottom :][::-1].tolist()


def _close_up_text(slide: Slide, result: SlidePrediction) -> str:
    mpp = close_up_mpp(slide, result.tiles.grid, max_px=CLOSE_UP_MAX_PX)
    return (
        f"Shown at {mpp:.2g} µm/px ({magnification_of(mpp):.2g}×); "
        f"the model reads {result.tiles.grid.spec.mpp:.2g} µm/px."
    )

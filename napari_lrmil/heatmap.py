"""A prediction's evidence as an image on the tile grid: values, scales and colours. No Qt.

Attention is counted in multiples of the slide's average, a contribution in percentage points of probability or in
log-odds, which tell tiles apart where the probability is saturated. All scales reach a fixed height at least, so that
a slide without evidence looks cold. Percentiles always show something hot; they are there to compare tiles within a
slide, and are marked as relative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.model.card import ATTENTION as _ATTENTION
from napari_lrmil.model.card import ATTENTION_FOR
from napari_lrmil.wording import with_minus_sign

if TYPE_CHECKING:  # it loads torch, which showing a result doesn't need
    from napari_lrmil.predict import SlidePrediction

Array = NDArray[np.float64]

ATTENTION = _ATTENTION
"""The channel of attention, see `is_attention`; every other channel is the name of a class."""
AVERAGE = 1.0
LEAST_ATTENTION_TOP = 4.0
LEAST_POINTS = 1.0
LEAST_LOG_ODDS = 0.05
LEAST_ALONE = 1.0
"""What the scales reach at least: times the average, percentage points, and log-odds of a contribution and of a tile alone."""
SEQUENTIAL = ("viridis", "cividis", "magma", "inferno", "plasma")
DIVERGING = ("BrBG", "PuOr", "RdBu")
"""Perceptual maps that hold for colour-blind readers; the diverging ones have their light middle at 0."""

_MOST_SMOOTH_PX = 4_000_000
_SMOOTH_TIMES = 8
"""Pixels along the edge of a tile where a heatmap is smooth, fewer in one that would have more pixels than that."""
_ROUNDING = 1e-9
"""Log-odds by which equal values may differ: contributions are worked out in float64."""


class Scaling(StrEnum):
    """How values become colours."""

    RAW = "raw"
    PERCENTILE = "percentile"


class Unit(StrEnum):
    """What is counted of a tile and a class."""

    POINTS = "percentage points"
    """Probability of the slide minus that without the tile."""
    LOG_ODDS = "log-odds"
    """The same in log-odds of the class against all others."""
    ALONE = "log-odds alone"
    """Log-odds of the class where the tile is the whole slide."""


class Heatmap(NamedTuple):
    """One value a tile, NaN where no tile was read.

    `corner_um_xy` is the top left corner of the first pixel in level-0 µm, `pixel_um_xy` the size of one.
    """

    values: NDArray[np.float32]
    corner_um_xy: tuple[float, float]
    pixel_um_xy: tuple[float, float]


@dataclass(frozen=True)
class HeatmapLook:
    """What a heatmap shows, and how.

    Attributes
    ----------
    channel : str
        `ATTENTION`, or a class: what each tile does to its probability.
    scaling : Scaling
    threshold : float
        0 to 1, as a share of the scale's upper end: tiles below are clear. Of contributions their size counts,
        whatever the sign.
    sequential, diverging : str
        Colormaps for attention and for contributions.
    unit : Unit, optional
        Of contributions. None: percentage points, log-odds where the probability is saturated.
    smooth : bool
        Whether values run from the middle of a tile to that of the next; else each tile has its own, all over.
    """

    channel: str = ATTENTION
    scaling: Scaling = Scaling.RAW
    threshold: float = 0.0
    sequential: str = SEQUENTIAL[0]
    diverging: str = DIVERGING[0]
    unit: Unit | None = None
    smooth: bool = False

    @property
    def signed(self) -> bool:
        """Whether 0 is the middle of the scale instead of its low end."""
        return not is_attention(self.channel)

    @property
    def colormap(self) -> str:
        """The one that fits the channel."""
        return self.diverging if self.signed else self.sequential


class ShownHeatmap(NamedTuple):
    """A heatmap as it is drawn: `limits` are the ends of the colour bar, all in the scale's unit."""

    heatmap: Heatmap
    limits: tuple[float, float]
    threshold: float


def is_attention(channel: str) -> bool:
    """Whether a channel is of attention: of all classes alike, or of one."""
    return channel == ATTENTION or channel.startswith(ATTENTION_FOR)


def unit_of(prediction: SlidePrediction, wanted: Unit | None) -> Unit:
    """The unit that is wanted, else the one that tells the tiles of this slide apart."""
    if wanted is not None:
        return wanted
    return Unit.LOG_ODDS if prediction.saturated else Unit.POINTS


def channel_values(prediction: SlidePrediction, channel: str, unit: Unit = Unit.POINTS) -> Array:
    """(N,) values of the tiles.

    Parameters
    ----------
    prediction : SlidePrediction
    channel : str
        'attention': score * N, so that 1 is a tile that matters as much as any other; 'attention for <class>': the same,
        where each class has its own, the other being that of the class that is called. A class: the probability of the
        slide minus that without the tile, in percentage points; positive where the tile speaks for the class.
    unit : Unit
        Of a class, in place of percentage points.

    Raises
    ------
    ValueError
        Where `channel` is neither, or of an attention that the model doesn't have.
    """
    if is_attention(channel) and channel not in prediction.class_names:
        return _attention(prediction, channel) * len(prediction.tiles)
    if channel not in prediction.class_names:
        raise ValueError(f"no class {channel!r}; there are {', '.join(prediction.class_names)}")
    number = prediction.class_names.index(channel)
    if unit is Unit.LOG_ODDS:
        return prediction.log_odds_contributions[:, number]
    if unit is Unit.ALONE:
        return prediction.log_odds_alone[:, number]
    return prediction.class_contributions[:, number] * 100


def _attention(prediction: SlidePrediction, channel: str) -> Array:
    """(N,) attention scores."""
    if prediction.attention_scores is None:
        raise ValueError("this model's head has no attention")
    if channel == ATTENTION:
        return prediction.attention_scores
    name = channel.removeprefix(ATTENTION_FOR)
    if prediction.class_attention is None or name not in prediction.class_names:
        raise ValueError(f"no attention for {name!r} alone")
    scores: Array = prediction.class_attention[prediction.class_names.index(name)]
    return scores


def speaking_tiles(prediction: SlidePrediction, class_name: str, *, against: bool = False) -> list[int]:
    """Numbers of the tiles that speak for a class, or against it, those that do most first.

    A tile that changes nothing, or not more than rounding does, is in neither list. Ties keep the order of the tiles.
    """
    # Probability and log-odds order the tiles alike, but log-odds still do where the probability is saturated.
    values = channel_values(prediction, class_name, Unit.LOG_ODDS)
    values = -values if against else values
    order = np.argsort(-values, kind="stable")
    speaking: list[int] = order[values[order] > _ROUNDING].tolist()
    return speaking


def on_grid(prediction: SlidePrediction, values: Array) -> Heatmap:
    """(N,) values of the tiles as an image of shape (rows, cols) of the tile grid."""
    tiles = prediction.tiles
    image = np.full(tiles.grid.shape_yx, np.nan, np.float32)
    image[tiles.rows, tiles.cols] = values
    mpp_x, mpp_y = prediction.mpp_xy
    left, top = tiles.grid.origin_l0_xy
    width, height = tiles.grid.tile_l0_xy
    return Heatmap(image, (left * mpp_x, top * mpp_y), (width * mpp_x, height * mpp_y))


def attention_heatmap(prediction: SlidePrediction) -> Heatmap:
    """Attention relative to uniform: score * N, so that 1 is a tile that matters as much as any other.

    Raw scores shrink with the bag and percentiles always show something hot; this scale does neither: a
    slide on which no tile stands out is 1 everywhere.

    Parameters
    ----------
    prediction : SlidePrediction

    Returns
    -------
    Heatmap
        `values` of shape (rows, cols) of the tile grid.
    """
    return on_grid(prediction, channel_values(prediction, ATTENTION))


def percentile_ranks(values: Array) -> Array:
    """Share of the tiles below each one, in percent; ties share their middle. Shape (N,), from 0 to 100."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    ranks: Array = middle[place] / len(values) * 100
    return ranks


def signed_percentile_ranks(values: Array) -> Array:
    """Percentile of each value's size, with its sign: -100 to 100, and 0 stays 0."""
    ranks: Array = np.sign(values) * percentile_ranks(np.abs(values))
    return ranks


def scale_limits(
    values: Array, *, signed: bool, scaling: Scaling, unit: Unit = Unit.POINTS
) -> tuple[float, float]:
    """Ends of the colour bar.

    Raw scales fit the 99th percentile, so that one tile can't hide the others, and reach `LEAST_ATTENTION_TOP`,
    or what their unit has: noise is never stretched to full colour.
    """
    if scaling is Scaling.PERCENTILE:
        return (-100.0, 100.0) if signed else (0.0, 100.0)
    if signed:
        reach = max(_LEAST[unit], float(np.percentile(np.abs(values), 99)))
        return -reach, reach
    return AVERAGE, max(LEAST_ATTENTION_TOP, float(np.percentile(values, 99)))


_LEAST = {Unit.POINTS: LEAST_POINTS, Unit.LOG_ODDS: LEAST_LOG_ODDS, Unit.ALONE: LEAST_ALONE}


def channels_of(prediction: SlidePrediction) -> tuple[str, ...]:
    """What can be shown: attention where the model has one, by class where each has its own, and each class."""
    attention: tuple[str, ...] = () if prediction.attention_scores is None else (ATTENTION,)
    if prediction.class_attention is not None:
        attention += tuple(
            f"{ATTENTION_FOR}{name}" for name in prediction.class_names if name != prediction.called
        )
    return (*attention, *prediction.class_names)


def channel_titles(prediction: SlidePrediction) -> tuple[str, ...]:
    """The channels in words, in the order of `channels_of`."""
    of_called = "" if prediction.class_attention is None else f" for {prediction.called}"
    return tuple(
        f"Attention{of_called}"
        if channel == ATTENTION
        else f"Contribution to {channel}"
        if channel in prediction.class_names
        else channel[0].upper() + channel[1:]
        for channel in channels_of(prediction)
    )


def fitting_look(prediction: SlidePrediction, look: HeatmapLook) -> HeatmapLook:
    """The look, or attention where this model doesn't know the class; where it has none, the class that is called."""
    if look.channel in channels_of(prediction):
        return look
    return replace(look, channel=main_channel(prediction))


def main_channel(prediction: SlidePrediction) -> str:
    """What is shown where nothing is asked for: attention, or the class that is called where there is none."""
    return prediction.called if prediction.attention_scores is None else ATTENTION


def shown_heatmap(prediction: SlidePrediction, look: HeatmapLook) -> ShownHeatmap:
    """What to draw, tiles below the threshold NaN as those that weren't read.

    Parameters
    ----------
    prediction : SlidePrediction
    look : HeatmapLook
        Of a channel that the prediction has, see `fitting_look`.
    """
    unit = unit_of(prediction, look.unit)
    values = channel_values(prediction, look.channel, unit)
    limits = scale_limits(values, signed=look.signed, scaling=look.scaling, unit=unit)
    if look.scaling is Scaling.PERCENTILE:
        values = signed_percentile_ranks(values) if look.signed else percentile_ranks(values)
    threshold = look.threshold * limits[1]
    heatmap = on_grid(prediction, values)
    if look.smooth:
        heatmap = smoothed(heatmap)
    size = np.abs(heatmap.values) if look.signed else heatmap.values
    drawn = np.where(size >= threshold, heatmap.values, np.float32(np.nan))
    return ShownHeatmap(heatmap._replace(values=drawn), limits, threshold)


def smoothed(heatmap: Heatmap) -> Heatmap:
    """Return finer pixels, whose values run linearly from the middle of a tile to those of its neighbours.

    Tiles that weren't read have no say in it. The whole of each tile that was read stays covered, and nothing else.
    """
    from scipy.ndimage import zoom

    rows, cols = heatmap.values.shape
    times = min(_SMOOTH_TIMES, math.isqrt(_MOST_SMOOTH_PX // (rows * cols)))
    if times < 2:
        return heatmap
    read = np.isfinite(heatmap.values)
    sums, weights = (
        zoom(one, times, order=1, mode="nearest", grid_mode=True)
        for one in (np.where(read, heatmap.values, 0), read.astype(np.float32))
    )
    covered = read.repeat(times, axis=0).repeat(times, axis=1)
    values = np.divide(sums, weights, out=np.full_like(sums, np.nan), where=covered & (weights > 0))
    width, height = heatmap.pixel_um_xy
    return Heatmap(values, heatmap.corner_um_xy, (width / times, height / times))


def heat_opacity(heat: Array, *, signed: bool) -> Array:
    """How opaque a colour is over tissue: the clearer the colder, and cold is clear; of a signed scale the middle is cold.

    Parameters
    ----------
    heat : array of any shape
        Place on the scale, 0 at its low end and 1 at its high end.
    signed : bool
    """
    strength = np.abs(2 * heat - 1) if signed else heat
    opacity: Array = np.sqrt(strength)
    return opacity


@lru_cache(maxsize=16)
def colour_table(colormap: str, *, signed: bool) -> NDArray[np.float32]:
    """(256, 4) RGBA from the low to the high end, the clearer the colder.

    Ordinary tissue stays visible under it; of a diverging map the middle is cold.
    """
    from matplotlib import colormaps

    heat = np.linspace(0, 1, 256)
    table = np.asarray(colormaps[colormap](heat), np.float32)
    table[:, 3] = heat_opacity(heat, signed=signed)
    table.setflags(write=False)
    return table


class TileFinder:
    """Which tile lies at a place on the slide, at the cost of a look into an array.

    Parameters
    ----------
    prediction : SlidePrediction
    """

    def __init__(self, prediction: SlidePrediction) -> None:
        tiles = prediction.tiles
        self._index = np.full(tiles.grid.shape_yx, -1, np.int64)
        self._index[tiles.rows, tiles.cols] = np.arange(len(tiles))
        image = on_grid(prediction, np.zeros(len(tiles)))
        self._corner_um_xy, self._tile_um_xy = image.corner_um_xy, image.pixel_um_xy

    def at(self, x_um: float, y_um: float) -> int | None:
        """Number of the tile at a place in level-0 µm; None where none was read."""
        col = int((x_um - self._corner_um_xy[0]) // self._tile_um_xy[0])
        row = int((y_um - self._corner_um_xy[1]) // self._tile_um_xy[1])
        rows, cols = self._index.shape
        if not (0 <= row < rows and 0 <= col < cols):
            return None
        n = int(self._index[row, col])
        return n if n >= 0 else None


def value_text(value: float, channel: str, unit: Unit = Unit.POINTS) -> str:
    """One tile's value with its unit."""
    if is_attention(channel):
        return f"{value:.2f}×"
    return f"{_signed(value)} {'pp' if unit is Unit.POINTS else 'log-odds'}"


def tile_text(prediction: SlidePrediction, n: int) -> str:
    """All values of one tile: where it lies, attention, and what it does to each class."""
    row, col = int(prediction.tiles.rows[n]), int(prediction.tiles.cols[n])
    values = [
        f"{title[0].lower()}{title[1:]} {value_text(float(channel_values(prediction, channel)[n]), channel)}"
        for channel, title in zip(channels_of(prediction), channel_titles(prediction), strict=True)
        if channel not in prediction.class_names
    ]
    for name in prediction.class_names:
        points, in_log_odds, alone = (
            float(channel_values(prediction, name, unit)[n])
            for unit in (Unit.POINTS, Unit.LOG_ODDS, Unit.ALONE)
        )
        values.append(
            f"{name} {value_text(points, name)} ({_signed(in_log_odds)} log-odds, alone {_signed(alone)})"
        )
    estimate = "" if prediction.exact_tiles is None or prediction.exact_tiles[n] else " (estimated)"
    return f"Tile in row {row}, column {col}{estimate}\n{', '.join(values)}"


def _signed(value: float) -> str:
    """With its sign; a small value keeps one digit, so that it can be told from none."""
    if abs(value) < 1e-4:
        return "≈ 0"
    return with_minus_sign(f"{value:+.2f}" if abs(value) >= 0.01 else f"{value:+.4f}")

"""Values of tiles as colours over an area of the slide. One scale for PNG, reports and their colour bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from napari_lrmil.heatmap import (
    DIVERGING,
    LEAST_POINTS,
    SEQUENTIAL,
    Scaling,
    Unit,
    channel_values,
    heat_opacity,
    is_attention,
    on_grid,
    scale_limits,
)

if TYPE_CHECKING:  # predict loads torch
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide, TileGrid

Area = tuple[float, float, float, float]

_POINTS = 100
"""The window counts contributions in percentage points, files in probability."""
LEAST_CONTRIBUTION = LEAST_POINTS / _POINTS
"""What the scale of contributions reaches at least, so that a slide without evidence looks cold."""

OVERLAY_OPACITY = 0.7
"""Of the hottest tile over a picture of the slide."""
_STRIP_PX = 58


@dataclass(frozen=True)
class Scale:
    """Which value gets which colour.

    Attributes
    ----------
    low, high : float
        Values at the ends of the colour bar.
    colormap : str
        A perceptual map of matplotlib.
    label : str
        What the values are, for people.
    """

    low: float
    high: float
    colormap: str
    label: str

    @property
    def diverging(self) -> bool:
        """Whether 0 is the middle and clear, instead of the low end."""
        return self.low < 0

    def colours(self, values: NDArray[np.floating], *, thin: bool) -> NDArray[np.uint8]:
        """(..., 4) uint8 RGBA; clear where a value is NaN, and with `thin` the clearer the colder."""
        from matplotlib import colormaps

        known = np.isfinite(values)
        heat = np.clip((np.where(known, values, self.low) - self.low) / (self.high - self.low), 0, 1)
        colours = np.asarray(colormaps[self.colormap](heat), np.float64)
        if thin:
            colours[..., 3] = heat_opacity(heat, signed=self.diverging)
        colours[..., 3] *= known
        painted: NDArray[np.uint8] = np.rint(colours * 255).astype(np.uint8)
        return painted


def values_of(prediction: SlidePrediction, channel: str, unit: Unit = Unit.POINTS) -> NDArray[np.float64]:
    """(N,) values of the tiles: attention relative to uniform, or what each does to the probability of a class.

    Raises
    ------
    ValueError
        Where `channel` is neither 'attention' nor a class.
    """
    values = channel_values(prediction, channel, unit)
    return values / _POINTS if not is_attention(channel) and unit is Unit.POINTS else values


def grid_values(prediction: SlidePrediction, channel: str, unit: Unit = Unit.POINTS) -> NDArray[np.float32]:
    """(rows, cols) of `values_of` on the tile grid, NaN where no tile was read."""
    return on_grid(prediction, values_of(prediction, channel, unit)).values


def scale_of(prediction: SlidePrediction, channel: str, unit: Unit = Unit.POINTS) -> Scale:
    """The scale that fits the 99th percentile, and never stretches noise to full colour."""
    values = channel_values(prediction, channel, unit)
    if is_attention(channel):
        return attention_scale(values)
    low, high = scale_limits(values, signed=True, scaling=Scaling.RAW, unit=unit)
    if unit is Unit.POINTS:
        low, high = low / _POINTS, high / _POINTS
    label = {
        Unit.POINTS: f"contribution of a tile to p({channel})",
        Unit.LOG_ODDS: f"contribution of a tile to the log-odds of {channel}",
        Unit.ALONE: f"log-odds of {channel} by a tile alone",
    }[unit]
    return Scale(low, high, DIVERGING[0], label)


def contribution_scale(values: NDArray[np.float64]) -> Scale:
    """The scale of contributions to the class that is called, from the values of the tiles of several slides."""
    low, high = scale_limits(values * _POINTS, signed=True, scaling=Scaling.RAW)
    return Scale(
        low / _POINTS, high / _POINTS, DIVERGING[0], "contribution of a tile to the class that is called"
    )


def attention_scale(values: NDArray[np.float64]) -> Scale:
    """The scale of attention relative to uniform, from the values of the tiles of one slide or of several."""
    low, high = scale_limits(values, signed=False, scaling=Scaling.RAW)
    return Scale(low, high, SEQUENTIAL[0], "attention, times average")


def paint(
    values: NDArray[np.float32],
    grid: TileGrid,
    scale: Scale,
    *,
    area_l0_xywh: Area,
    size_px: tuple[int, int],
    thin: bool,
) -> NDArray[np.uint8]:
    """(height, width, 4) RGBA of an area: each pixel takes the tile that its centre lies in."""
    rows, cols = (
        np.floor((start + (np.arange(n) + 0.5) * length / n - origin) / step).astype(np.int64)
        for start, length, n, origin, step in (
            (area_l0_xywh[1], area_l0_xywh[3], size_px[1], grid.origin_l0_xy[1], grid.tile_l0_xy[1]),
            (area_l0_xywh[0], area_l0_xywh[2], size_px[0], grid.origin_l0_xy[0], grid.tile_l0_xy[0]),
        )
    )
    padded = np.pad(values, 1, constant_values=np.nan)
    rows = np.clip(rows + 1, 0, values.shape[0] + 1)
    cols = np.clip(cols + 1, 0, values.shape[1] + 1)
    return scale.colours(padded[rows[:, None], cols[None]], thin=thin)


def overlay(
    picture: Image.Image,
    values: NDArray[np.float32],
    grid: TileGrid,
    scale: Scale,
    *,
    area_l0_xywh: Area,
    opacity: float = OVERLAY_OPACITY,
) -> Image.Image:
    """The picture of an area (RGBA) under the values of its tiles: the clearer the colder, as it is where none was read.

    Parameters
    ----------
    picture : PIL.Image.Image
        Of the area, such as `thumbnail` gives it.
    values : (rows, cols) float32 array
        Of the tile grid, NaN where no tile was read.
    grid : TileGrid
    scale : Scale
    area_l0_xywh : (float, float, float, float)
    opacity : float
        Of the hottest tile, 0 to 1.
    """
    colours = paint(values, grid, scale, area_l0_xywh=area_l0_xywh, size_px=picture.size, thin=True)
    colours[..., 3] = np.rint(colours[..., 3] * opacity).astype(np.uint8)
    return Image.alpha_composite(picture.convert("RGBA"), Image.fromarray(colours, "RGBA"))


def thumbnail(slide: Slide, *, max_px: int) -> Image.Image:
    """The scanned area, its longer side `max_px` (less where level 0 has less). Never a stored image.

    A thumbnail in the file may show the label.
    """
    from napari_lrmil.slide.picture import overview

    return Image.fromarray(overview(slide, max_px))


def nice_length(limit: float) -> float:
    """The greatest 1, 2 or 5 times a power of ten that isn't above `limit`."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1, 2, 5) if step * power <= limit * (1 + 1e-9))


def length_text(um: float) -> str:
    """``500 µm``, ``2 mm``."""
    return f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm"


@lru_cache(maxsize=4)
def font_path(bold: bool = False) -> Path:
    """DejaVu Sans, which matplotlib brings along on every system: µ, ≥, umlauts, Greek, Cyrillic."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


def legend_strip(width_px: int, um_per_px: float | None, scale: Scale | None) -> Image.Image:
    """A strip to put under an image: scale bar on the left, colour bar on the right."""
    unit = min(3.0, max(1.0, width_px / 640))
    strip = Image.new("RGBA", (width_px, round(_STRIP_PX * unit)), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.truetype(font_path(), round(13 * unit))
    margin, top, below = round(10 * unit), round(8 * unit), round(22 * unit)
    if um_per_px is not None:
        um = nice_length(um_per_px * (width_px * (0.3 if scale else 0.6)))
        draw.rectangle(
            (margin, top + 4, margin + round(um / um_per_px) - 1, top + round(8 * unit)), fill="black"
        )
        draw.text((margin, below), length_text(um), fill="black", font=font)
    if scale is not None:
        bar = max(40, min(round(260 * unit), width_px // 2 - 2 * margin))
        left = width_px - margin - bar
        ramp = scale.colours(np.linspace(scale.low, scale.high, bar)[None].repeat(top + 4, 0), thin=False)
        strip.paste(Image.fromarray(ramp), (left, top))
        ends = (f"{scale.low:+.2g}", f"{scale.high:+.2g}") if scale.diverging else ("1", f"{scale.high:.2g}")
        draw.text((left, below), ends[0], fill="black", font=font)
        draw.text((left + bar, below), ends[1], fill="black", font=font, anchor="ra")
        if draw.textlength(scale.label, font=font) <= width_px - 2 * margin:
            draw.text(
                (width_px - margin, round(39 * unit)), scale.label, fill="black", font=font, anchor="ra"
            )
    return strip

"""Read any rectangle of a slide at any size, antialiased."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.slide.geometry import level_to_l0
from napari_lrmil.slide.reader import Slide


def read_area(
    slide: Slide,
    *,
    level: int,
    corner_l0_xy: tuple[float, float],
    size_l0_xy: tuple[float, float],
    out_px_xy: tuple[int, int],
    keep_tiles: bool = True,
) -> NDArray[np.uint8]:
    """Read a rectangle from `level` and resample it to `out_px_xy`; see `resample_area`.

    Parameters
    ----------
    slide : Slide
    level : int
        Level to read; see `geometry.choose_level`.
    corner_l0_xy, size_l0_xy : (float, float)
        In level-0 pixels; may reach outside the slide (white).
    out_px_xy : (int, int)
        Width and height of the result.
    keep_tiles : bool
        See `Slide.read_region`.

    Returns
    -------
    (height, width, 3) uint8 array
    """
    downsample = slide.level_downsamples[level]

    def read(left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        location = (level_to_l0(left, downsample), level_to_l0(top, downsample))
        return slide.read_region(location, level, (width, height), keep_tiles=keep_tiles)

    return resample_area(
        read, downsample=downsample, corner_l0_xy=corner_l0_xy, size_l0_xy=size_l0_xy, out_px_xy=out_px_xy
    )


def resample_area(
    read: Callable[[int, int, int, int], NDArray[np.uint8]],
    *,
    downsample: float,
    corner_l0_xy: tuple[float, float],
    size_l0_xy: tuple[float, float],
    out_px_xy: tuple[int, int],
) -> NDArray[np.uint8]:
    """A rectangle of a level of any kind, resampled to `out_px_xy`.

    Whole factors are averaged over their area as scanners do when they build a pyramid; what remains
    (below 2) goes through a Lanczos filter with sub-pixel position. A rectangle that falls on whole
    pixels at the wanted size comes back untouched.

    Parameters
    ----------
    read : callable
        (left, top, width, height) in pixels of the level -> (height, width, 3) uint8 array.
    downsample : float
        Level-0 pixels per pixel of the level.
    corner_l0_xy, size_l0_xy : (float, float)
    out_px_xy : (int, int)

    Returns
    -------
    (height, width, 3) uint8 array
    """
    left, top, right, bottom = _on_level(downsample, corner_l0_xy, size_l0_xy)
    first_x, first_y, width, height = _whole_pixels(left, top, right, bottom)
    region = read(first_x, first_y, width, height)
    if (width, height) == out_px_xy and left == first_x and top == first_y:
        return region
    resized = Image.fromarray(region).resize(
        out_px_xy,
        Image.Resampling.LANCZOS,
        box=(left - first_x, top - first_y, right - first_x, bottom - first_y),
        reducing_gap=1.0,
    )
    return np.asarray(resized)


def pixels_of_area(
    *, downsample: float, corner_l0_xy: tuple[float, float], size_l0_xy: tuple[float, float]
) -> int:
    """Return how many pixels of a level `resample_area` reads."""
    _, _, width, height = _whole_pixels(*_on_level(downsample, corner_l0_xy, size_l0_xy))
    return width * height


def _on_level(
    downsample: float, corner_l0_xy: tuple[float, float], size_l0_xy: tuple[float, float]
) -> tuple[float, float, float, float]:
    left, top = (_snap(value / downsample) for value in corner_l0_xy)
    right, bottom = (
        _snap((corner + size) / downsample) for corner, size in zip(corner_l0_xy, size_l0_xy, strict=True)
    )
    return left, top, right, bottom


def _whole_pixels(left: float, top: float, right: float, bottom: float) -> tuple[int, int, int, int]:
    first_x, first_y = math.floor(left), math.floor(top)
    return first_x, first_y, math.ceil(right) - first_x, math.ceil(bottom) - first_y


def _snap(value: float) -> float:
    """To the whole pixel where it lies within a twentieth of one: below that, resampling only blurs."""
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < 0.05 else value

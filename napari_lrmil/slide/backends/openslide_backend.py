"""OpenSlide, the reference backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError

CACHE_BYTES = 128 * 2**20
"""Decoded tiles kept a slide. OpenSlide's own 32 MiB is less than one screen of a large monitor at 3 levels."""


class OpenSlideBackend:
    """One shared handle: OpenSlide's reads are thread-safe and release the GIL."""

    name = "openslide"

    def __init__(self, path: Path) -> None:
        try:
            self._handle = openslide.OpenSlide(path)
            self._handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{path.name} is not a slide OpenSlide can read ({error})") from error
        properties = self._handle.properties
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.level_dimensions_xy: tuple[tuple[int, int], ...] = self._handle.level_dimensions
        self.level_downsamples: tuple[float, ...] = self._handle.level_downsamples
        mpp_x = _positive(properties.get(openslide.PROPERTY_NAME_MPP_X))
        mpp_y = _positive(properties.get(openslide.PROPERTY_NAME_MPP_Y))
        self.mpp_xy = (mpp_x, mpp_y) if mpp_x and mpp_y else None
        self.objective_power = _positive(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.bounds_l0_xywh = self._bounds()

    def _bounds(self) -> tuple[int, int, int, int]:
        width, height = self.level_dimensions_xy[0]
        properties = self._handle.properties
        try:
            left, top, right, bottom = (
                int(properties[openslide.PROPERTY_NAME_BOUNDS_X]),
                int(properties[openslide.PROPERTY_NAME_BOUNDS_Y]),
                int(properties[openslide.PROPERTY_NAME_BOUNDS_X])
                + int(properties[openslide.PROPERTY_NAME_BOUNDS_WIDTH]),
                int(properties[openslide.PROPERTY_NAME_BOUNDS_Y])
                + int(properties[openslide.PROPERTY_NAME_BOUNDS_HEIGHT]),
            )
        except (KeyError, ValueError):
            return (0, 0, width, height)
        left, top = max(0, left), max(0, top)
        right, bottom = min(width, right), min(height, bottom)
        if right <= left or bottom <= top:
            return (0, 0, width, height)
        return (left, top, right - left, bottom - top)

    def read_region(
        self, location_l0_xy: tuple[int, int], level: int, size_xy: tuple[int, int]
    ) -> NDArray[np.uint8]:
        try:
            rgba = np.asarray(self._handle.read_region(location_l0_xy, level, size_xy))
        except openslide.OpenSlideError as error:
            raise SlideError(f"a region of the slide can't be decoded ({error})") from error
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        # Nothing was scanned where alpha is 0: glass, so white.
        blended = rgba[..., :3] * (alpha / 255.0) + (255 - alpha)
        return np.asarray(np.rint(blended), np.uint8)

    def close(self) -> None:
        self._handle.close()


def _positive(text: str | None) -> float | None:
    """A property as a positive finite number, else None: scanners write 0, -1 and 'unknown'."""
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None

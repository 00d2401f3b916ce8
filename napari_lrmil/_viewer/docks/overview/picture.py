"""The pictures of the overview map: the slide from its coarse levels, and the heatmap as it is shown. No Qt."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil._viewer.docks.overview.field import Area
from napari_lrmil._viewer.layers import HEATMAP_KEY
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import picture

if TYPE_CHECKING:
    from napari_lrmil.slide import Slide

EDGE_PX = 640
_STRIP_PX = 2**22
_MAX_LEVEL_PX = 2**28


class Overlay(NamedTuple):
    """A heatmap as (rows, cols, 4) uint8 RGBA, and where it lies."""

    rgba: NDArray[np.uint8]
    area: Area


def overview_steps(slide: Slide) -> Generator[None, None, NDArray[np.uint8]]:
    """A (height, width, 3) picture of the scanned area, strip by strip, so that it can be cancelled.

    A slide of which more pixels would be read than can be decoded in seconds gives a grey picture instead.
    """
    if picture.overview_level_px(slide, EDGE_PX) > _MAX_LEVEL_PX:
        width, height = picture.overview_size_xy(slide, EDGE_PX)
        return np.full((height, width, 3), 225, np.uint8)
    return (yield from picture.overview_steps(slide, EDGE_PX, strip_px=_STRIP_PX))


def associated_steps(slide: Slide, name: str) -> Generator[None, None, NDArray[np.uint8]]:
    """An associated image; read only once somebody has confirmed that it may be seen."""
    yield
    if name not in slide.associated_images:
        raise SlideError(f"this slide has no image “{name}”")
    return slide.read_associated(name)


def heatmap_overlay(viewer: Any, slide: Slide) -> Overlay | None:
    """The slide's heatmap with the colours that the canvas gives it, whether it is shown there or not."""
    layers = [layer for layer in viewer.layers if layer.metadata.get(HEATMAP_KEY) is slide]
    for layer in reversed(layers):
        if getattr(layer, "multiscale", True) or np.ndim(layer.data) != 2 or not hasattr(layer, "colormap"):
            continue
        values = np.asarray(layer.data, np.float64)
        low, high = layer.contrast_limits
        heat = (np.clip(values, low, high) - low) / ((high - low) or 1.0)
        colours = np.asarray(layer.colormap.map(heat.ravel()), np.float64).reshape(*values.shape, 4)
        colours[..., 3] *= np.isfinite(values) * float(layer.opacity)
        rgba = np.ascontiguousarray(np.rint(colours * 255).astype(np.uint8))
        pixel_y, pixel_x = (float(each) for each in layer.scale)
        middle_y, middle_x = (float(each) for each in layer.translate)  # of the first pixel
        area = Area(
            middle_y - pixel_y / 2,
            middle_x - pixel_x / 2,
            pixel_y * values.shape[0],
            pixel_x * values.shape[1],
        )
        return Overlay(rgba, area)
    return None

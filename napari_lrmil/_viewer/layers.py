"""Slides and predictions as napari layers; the one place where (x, y) becomes (y, x). No Qt.

napari puts the world position of a layer at the *centre* of its first pixel. Level-0 µm count from the
pixel's corner, so every layer is translated by half of one of its own pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import AVAILABLE_COLORMAPS, Colormap

from napari_lrmil.slide import Slide
from napari_lrmil.slide.pyramid import dask_pyramid

if TYPE_CHECKING:  # heatmap and predict load torch, which opening a slide doesn't need
    from napari_lrmil.predict import SlidePrediction

LayerData = tuple[Any, dict[str, Any], str]

SLIDE_KEY = "lrmil_slide"
"""``layer.metadata`` of a slide layer: its open `Slide`."""
MPP_UNKNOWN_KEY = "lrmil_mpp_unknown"
"""``layer.metadata`` of a slide layer: True where its scale is in pixels, not µm."""
HEATMAP_KEY = "lrmil_heatmap_of"
"""``layer.metadata`` of a heatmap layer: the `Slide` that it lies on."""

DEFAULT_STUDENT_MPP = 2.0
HEATMAP_OPACITY = 0.7

_AVERAGE, _LEAST_TOP = 1.0, 4.0
_COLD_ALPHA = 0.18


def slide_levels(slide: Slide, *, student_mpp: float = DEFAULT_STUDENT_MPP) -> list[Any]:
    """Lazy levels of a slide for display, finest first.

    Parameters
    ----------
    slide : Slide
    student_mpp : float
        µm/px that the model reads; added as a virtual level where no native one has it.
    """
    return list(dask_pyramid(slide, extra_mpps=(student_mpp,)))


def slide_placement(slide: Slide) -> dict[str, Any]:
    """``scale``, ``translate`` and ``units`` of a slide layer, (y, x); in pixels where mpp is unknown."""
    scale_x, scale_y = slide.mpp_xy if slide.has_mpp else (1.0, 1.0)
    return {
        "scale": (scale_y, scale_x),
        "translate": (scale_y / 2, scale_x / 2),
        "units": ("µm", "µm") if slide.has_mpp else ("pixel", "pixel"),
    }


def slide_layer(slide: Slide, *, student_mpp: float = DEFAULT_STUDENT_MPP) -> LayerData:
    """A slide as a lazy multiscale RGB layer.

    Returns
    -------
    (levels, attributes, "image")
        As npe2 readers return them.
    """
    attributes = {
        "name": slide.name,
        "rgb": True,
        "multiscale": True,
        "contrast_limits": (0, 255),
        # napari's cache of dask results may grow to a quarter of the memory; OpenSlide keeps its own.
        "cache": False,
        "metadata": {SLIDE_KEY: slide, MPP_UNKNOWN_KEY: not slide.has_mpp, "lrmil": slide.metadata},
        **slide_placement(slide),
    }
    return slide_levels(slide, student_mpp=student_mpp), attributes, "image"


def heatmap_layer(
    slide: Slide, prediction: SlidePrediction, *, opacity: float = HEATMAP_OPACITY
) -> LayerData:
    """The attention of a prediction as a translucent layer over its slide.

    Values are relative to uniform attention. The scale starts at 1, a tile that counts as much as any
    other, and reaches at least to 4: percentiles alone would show something hot on every slide.

    Returns
    -------
    (values, attributes, "image")
    """
    from napari_lrmil.heatmap import attention_heatmap

    heatmap = attention_heatmap(prediction)
    (corner_x, corner_y), (pixel_x, pixel_y) = heatmap.corner_um_xy, heatmap.pixel_um_xy
    read = heatmap.values[np.isfinite(heatmap.values)]
    top = max(_LEAST_TOP, float(np.percentile(read, 99)))
    attributes = {
        "name": f"{slide.name} attention",
        "scale": (pixel_y, pixel_x),
        "translate": (corner_y + pixel_y / 2, corner_x + pixel_x / 2),
        "units": ("µm", "µm"),
        "colormap": attention_colormap(),
        "contrast_limits": (_AVERAGE, top),
        "opacity": opacity,
        "blending": "translucent",
        "interpolation2d": "nearest",
        "metadata": {HEATMAP_KEY: slide},
    }
    return heatmap.values, attributes, "image"


def attention_colormap() -> Colormap:
    """A perceptual map that thins out towards cold, so that ordinary tissue stays visible under it.

    Yellow and green don't occur in H&E, so hot tiles stand out; tiles that weren't read are clear.
    """
    colors = np.array(AVAILABLE_COLORMAPS["viridis"].colors, np.float32)
    heat = np.linspace(0, 1, len(colors))
    colors[:, 3] = _COLD_ALPHA + (1 - _COLD_ALPHA) * np.sqrt(heat)
    return Colormap(colors, name="lrmil attention", nan_color=(0, 0, 0, 0))

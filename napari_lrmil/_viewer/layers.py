"""Slides and predictions as napari layers; the one place where (x, y) becomes (y, x). No Qt.

napari puts the world position of a layer at the *centre* of its first pixel. Level-0 µm count from the
pixel's corner, so every layer is translated by half of one of its own pixels.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

from napari.utils.colormaps import Colormap

from napari_lrmil.heatmap import HeatmapLook, Unit, colour_table, shown_heatmap
from napari_lrmil.slide import Slide
from napari_lrmil.slide.pyramid import Unread

if TYPE_CHECKING:  # it loads torch, which opening a slide doesn't need
    from napari_lrmil.predict import SlidePrediction

LayerData = tuple[Any, dict[str, Any], str]

SLIDE_KEY = "lrmil_slide"
"""``layer.metadata`` of a slide layer: its open `Slide`."""
UNREAD_KEY = "lrmil_unread"
"""``layer.metadata`` of a slide layer: an `Unread`, what of the slide couldn't be read as it was drawn."""
MPP_UNKNOWN_KEY = "lrmil_mpp_unknown"
"""``layer.metadata`` of a slide layer: True where its scale is in pixels, not µm."""
HEATMAP_KEY = "lrmil_heatmap_of"
"""``layer.metadata`` of a heatmap layer: the `Slide` that it lies on."""
ANNOTATIONS_KEY = "lrmil_annotations_of"
"""``layer.metadata`` of a layer of annotations: its `Slide`."""
PUT_AWAY_KEY = "lrmil_put_away"
"""``layer.metadata`` of a layer that is hidden because another slide is the current one: True."""
TILE_MARK_KEY = "lrmil_tile_mark"
"""``layer.metadata`` of a tile's outline: the number of the tile."""

DEFAULT_STUDENT_MPP = 2.0
HEATMAP_OPACITY = 0.7


def slide_of(layer: Any) -> Slide | None:
    """The slide that a layer shows or lies on; None for layers of other kinds."""
    for key in (SLIDE_KEY, HEATMAP_KEY, ANNOTATIONS_KEY):
        slide = layer.metadata.get(key)
        if isinstance(slide, Slide):
            return slide
    return None


def prepare_for_slides() -> None:
    """Import in the background what layers of slides are made of: dask.array, 0.4 s, while a file is opened."""
    module = "napari_lrmil.slide.views"
    if module not in sys.modules:
        threading.Thread(
            target=importlib.import_module, args=(module,), name="lrmil-import", daemon=True
        ).start()


def slide_levels(
    slide: Slide, *, student_mpp: float = DEFAULT_STUDENT_MPP, unread: Unread | None = None
) -> list[Any]:
    """Lazy levels of a slide for display, finest first.

    Parameters
    ----------
    slide : Slide
    student_mpp : float
        µm/px that the model reads; added as a virtual level where no native one has it.
    unread : Unread, optional
        Where what can't be read is noted, see `dask_pyramid`.
    """
    from napari_lrmil.slide.views import dask_pyramid

    return list(dask_pyramid(slide, extra_mpps=(student_mpp,), unread=unread))


def slide_placement(slide: Slide) -> dict[str, Any]:
    """``scale``, ``translate`` and ``units`` of a slide layer, (y, x); in pixels where mpp is unknown."""
    scale_x, scale_y = slide.mpp_xy if slide.has_mpp else (1.0, 1.0)
    return {
        "scale": (scale_y, scale_x),
        "translate": (scale_y / 2, scale_x / 2),
        "units": ("µm", "µm") if slide.has_mpp else ("pixel", "pixel"),
    }


def measured_as_others(viewer: Any, layer: LayerData) -> LayerData:
    """A layer in the unit that the slides of a window have by now, until it is known which of them is seen.

    napari warns of layers that differ, and draws while a layer comes.
    """
    units = next((other.units for other in viewer.layers if slide_of(other) is not None), None)
    data, attributes, kind = layer
    return data, attributes if units is None else {**attributes, "units": units}, kind


def slide_layer(slide: Slide, *, student_mpp: float = DEFAULT_STUDENT_MPP) -> LayerData:
    """A slide as a lazy multiscale RGB layer.

    Returns
    -------
    (levels, attributes, "image")
        As npe2 readers return them.
    """
    unread = Unread()
    attributes = {
        "name": slide.name,
        "rgb": True,
        "multiscale": True,
        "contrast_limits": (0, 255),
        # napari's cache of dask results may grow to a quarter of the memory; OpenSlide keeps its own.
        "cache": False,
        "metadata": {
            SLIDE_KEY: slide,
            UNREAD_KEY: unread,
            MPP_UNKNOWN_KEY: not slide.has_mpp,
            "lrmil": slide.metadata,
        },
        **slide_placement(slide),
    }
    return slide_levels(slide, student_mpp=student_mpp, unread=unread), attributes, "image"


def heatmap_name(slide: Slide, look: HeatmapLook) -> str:
    """Of the layer: what it shows of which slide."""
    if look.signed and look.unit is Unit.ALONE:
        return f"{slide.name} {look.channel} by tile alone"
    return (
        f"{slide.name} {look.channel}" if not look.signed else f"{slide.name} contribution to {look.channel}"
    )


def heatmap_layer(
    slide: Slide, prediction: SlidePrediction, look: HeatmapLook, *, opacity: float = HEATMAP_OPACITY
) -> LayerData:
    """The evidence of a prediction as a translucent layer over its slide.

    Parameters
    ----------
    slide : Slide
    prediction : SlidePrediction
    look : HeatmapLook
        Of a channel that the prediction has.
    opacity : float

    Returns
    -------
    (values, attributes, "image")
    """
    shown = shown_heatmap(prediction, look)
    (corner_x, corner_y), (pixel_x, pixel_y) = shown.heatmap.corner_um_xy, shown.heatmap.pixel_um_xy
    attributes = {
        "name": heatmap_name(slide, look),
        "scale": (pixel_y, pixel_x),
        "translate": (corner_y + pixel_y / 2, corner_x + pixel_x / 2),
        "units": ("µm", "µm"),
        "colormap": heatmap_colormap(look),
        "contrast_limits": shown.limits,
        "opacity": opacity,
        "blending": "translucent",
        "interpolation2d": "nearest",
        "metadata": {HEATMAP_KEY: slide},
    }
    return shown.heatmap.values, attributes, "image"


def heatmap_colormap(look: HeatmapLook) -> Colormap:
    """A perceptual map that thins out towards cold; tiles that weren't read, or are below the threshold, are clear."""
    return Colormap(
        colour_table(look.colormap, signed=look.signed),
        name=f"lrmil {look.colormap}",
        nan_color=(0, 0, 0, 0),
    )


def close_with_layers(viewer: Any) -> None:
    """Have `viewer` close a slide once the last layer that shows it is removed, or the viewer closes.

    Asking again for the same viewer changes nothing. A slide layer that never was in a viewer holds the
    only reference to its slide, and the file ends with it.

    Parameters
    ----------
    viewer : napari.Viewer
    """
    viewer.layers.events.removed.connect(_close_removed, position="last")


def _close_removed(event: Any) -> None:
    slide = event.value.metadata.get(SLIDE_KEY)
    # A duplicated layer shares the slide of its original.
    if slide is not None and not any(layer.metadata.get(SLIDE_KEY) is slide for layer in event.source):
        slide.close()

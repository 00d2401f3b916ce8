"""A prediction's heatmap as PNG, and as OME-Zarr with its numbers kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, PngImagePlugin

from napari_lrmil import __version__
from napari_lrmil.atomic import replacing, replacing_folder
from napari_lrmil.export.errors import ExportError
from napari_lrmil.export.painting import (
    OVERLAY_OPACITY,
    grid_values,
    legend_strip,
    overlay,
    paint,
    scale_of,
    thumbnail,
)
from napari_lrmil.heatmap import Unit, channels_of, main_channel
from napari_lrmil.wording import slide_warnings, status_of

if TYPE_CHECKING:  # predict loads torch
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide

# Told apart by colour-blind eyes too (Okabe and Ito).
_CHANNEL_COLOURS = ("F0E442", "56B4E9", "E69F00", "009E73", "CC79A7", "D55E00", "0072B2")


def heatmap_image(
    prediction: SlidePrediction,
    *,
    slide: Slide | None = None,
    channel: str | None = None,
    max_px: int = 2048,
    opacity: float = OVERLAY_OPACITY,
    legend: bool = True,
) -> Image.Image:
    """The heatmap as a picture, clear where no tile was read.

    Parameters
    ----------
    prediction : SlidePrediction
    slide : Slide, optional
        Lay it over a thumbnail of the scanned area. Without one the picture shows the tile grid.
    channel : str, optional
        'attention' (relative to uniform), or a class: the exact change of its probability by each tile. Default: attention, of
        a model without one the class that is called.
    max_px : int
        Of the longer side.
    opacity : float
        Over a thumbnail, 0 to 1.
    legend : bool
        A strip below with a scale bar and a colour bar.

    Returns
    -------
    PIL.Image.Image
        RGBA.

    Raises
    ------
    ValueError
        Where `channel` is neither.
    SlideError
    """
    channel = channel or main_channel(prediction)
    grid, scale = prediction.tiles.grid, scale_of(prediction, channel)
    values = grid_values(prediction, channel)
    if slide is None:
        (left, top), (tile_x, tile_y) = grid.origin_l0_xy, grid.tile_l0_xy
        rows, cols = grid.shape_yx
        area = (left, top, tile_x * cols, tile_y * rows)
        # Whole pixels a tile, so that every tile is as large as the others. A tile is square in µm.
        step = max(1, min(64, max_px // max(rows, cols)))
        size = (cols * step, rows * step)
        picture = Image.fromarray(
            paint(values, grid, scale, area_l0_xywh=area, size_px=size, thin=False), "RGBA"
        )
    else:
        x, y, width, height = slide.bounds_l0_xywh
        area = (float(x), float(y), float(width), float(height))
        picture = overlay(
            thumbnail(slide, max_px=max_px), values, grid, scale, area_l0_xywh=area, opacity=opacity
        )
    if not legend:
        return picture
    width = max(picture.width, 240)
    strip = legend_strip(width, area[2] * prediction.mpp_xy[0] / picture.width, scale)
    whole = Image.new("RGBA", (width, picture.height + strip.height), (255, 255, 255, 0))
    whole.paste(picture, (0, 0))
    whole.paste(strip, (0, picture.height))
    return whole


def write_heatmap_png(
    path: str | Path,
    prediction: SlidePrediction,
    *,
    slide: Slide | None = None,
    channel: str | None = None,
    max_px: int = 2048,
    opacity: float = OVERLAY_OPACITY,
    legend: bool = True,
) -> Path:
    """`heatmap_image` as a PNG, whole or not at all.

    The file says which bundle and program made it, and its status as the result's JSON has it; nothing of the slide's name.
    """
    path = Path(path)
    channel = channel or main_channel(prediction)
    picture = heatmap_image(
        prediction, slide=slide, channel=channel, max_px=max_px, opacity=opacity, legend=legend
    )
    said = PngImagePlugin.PngInfo()
    said.add_text("Software", f"napari-lrmil {__version__}")
    said.add_itxt(
        "Comment",
        f"{scale_of(prediction, channel).label}; bundle {prediction.bundle_sha256}; classified by napari-lrmil "
        f"{prediction.version}; status: {', '.join(status_of(prediction))}",
    )
    if slide_warnings(prediction):
        said.add_itxt("Warning", " ".join(slide_warnings(prediction)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=said, optimize=True)
    with replacing(path) as scratch:
        scratch.write_bytes(buffer.getvalue())
    return path


def write_heatmap_zarr(path: str | Path, prediction: SlidePrediction, *, overwrite: bool = False) -> Path:
    """The heatmap as an OME-Zarr 0.5 image, one pixel a tile, float32, NaN where no tile was read.

    Channels: attention relative to uniform, then per class the exact change of its probability by the tile, that of its
    log-odds, and its log-odds where the tile is the whole slide.
    Axes c, y, x; y and x in µm from the top left corner of the slide's first pixel, where the translation
    names the *centre* of the first tile, as OME-Zarr has it.

    Parameters
    ----------
    path : path-like
        A folder, usually ending in ``.ome.zarr``; there is none there until it is complete.
    prediction : SlidePrediction
    overwrite : bool
        Replace an OME-Zarr that is already there.

    Raises
    ------
    ExportError
        Where something is there already, and `overwrite` isn't set or it is no OME-Zarr.
    """
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise ExportError(f"{path.name} is already there. Choose another name, or replace it.")
        if not (path / "zarr.json").is_file():
            raise ExportError(f"{path.name} is there and is no OME-Zarr, so it is not replaced.")
    with replacing_folder(path) as scratch:
        _write_zarr(scratch, prediction)
    return path


def _write_zarr(folder: Path, prediction: SlidePrediction) -> None:
    import zarr

    channels = (
        *((one, Unit.POINTS) for one in channels_of(prediction) if one not in prediction.class_names),
        *((name, unit) for unit in Unit for name in prediction.class_names),
    )
    pixels = np.stack([grid_values(prediction, channel, unit) for channel, unit in channels])
    group = zarr.create_group(folder, zarr_format=3, attributes=_attributes(prediction, channels))
    array = group.create_array(
        "0",
        shape=pixels.shape,
        dtype=pixels.dtype,
        chunks=(1, *(min(512, length) for length in pixels.shape[1:])),
        fill_value=float("nan"),
        dimension_names=("c", "y", "x"),
    )
    array[:] = pixels


def _attributes(prediction: SlidePrediction, channels: tuple[tuple[str, Unit], ...]) -> dict[str, object]:
    grid, (mpp_x, mpp_y) = prediction.tiles.grid, prediction.mpp_xy
    step_x_um, step_y_um = grid.tile_l0_xy[0] * mpp_x, grid.tile_l0_xy[1] * mpp_y
    corner_x_um, corner_y_um = grid.origin_l0_xy[0] * mpp_x, grid.origin_l0_xy[1] * mpp_y
    described = []
    for number, (channel, unit) in enumerate(channels):
        scale = scale_of(prediction, channel, unit)
        described.append(
            {
                "label": scale.label,
                "color": _CHANNEL_COLOURS[number % len(_CHANNEL_COLOURS)],
                "active": number == 0,
                "window": {"min": scale.low, "max": scale.high, "start": scale.low, "end": scale.high},
            }
        )
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [
                {
                    "name": "heatmap",
                    "axes": [
                        {"name": "c", "type": "channel"},
                        {"name": "y", "type": "space", "unit": "micrometer"},
                        {"name": "x", "type": "space", "unit": "micrometer"},
                    ],
                    "datasets": [
                        {
                            "path": "0",
                            "coordinateTransformations": [
                                {"type": "scale", "scale": [1.0, step_y_um, step_x_um]},
                                {
                                    "type": "translation",
                                    "translation": [
                                        0.0,
                                        corner_y_um + step_y_um / 2,
                                        corner_x_um + step_x_um / 2,
                                    ],
                                },
                            ],
                        }
                    ],
                }
            ],
            "omero": {"channels": described},
        },
        "napari_lrmil": {
            "version": prediction.version,
            "channels": [
                channel if unit is Unit.POINTS else f"{unit} {channel}" for channel, unit in channels
            ],
            "bundle_sha256": prediction.bundle_sha256,
            "slide_fingerprint": prediction.slide_fingerprint,
            "status": [str(each) for each in status_of(prediction)],
            "warnings": list(slide_warnings(prediction)),
        },
    }

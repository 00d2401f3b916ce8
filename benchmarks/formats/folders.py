"""Writers of folders of chunks and tiles: OME-Zarr and DeepZoom."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import zarr
from PIL import Image

from benchmarks.formats.writing import JPEG, LAYOUT, MPP, Layout, Pixels, Plant, exif


def write_ome_zarr(
    folder: Path,
    stem: str,
    pixels: Pixels,
    plant: Plant,
    layout: Layout = LAYOUT,
    *,
    zarr_format: Literal[2, 3] = 2,
) -> Path:
    """Write an OME-Zarr, lossless, with planted attributes of group and arrays, and OME-XML as bioformats2raw's.

    Zarr's format 2 is that of OME-Zarr 0.4, 3 that of 0.5.
    """
    path = folder / f"{stem}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    datasets = []
    for level, image in enumerate(layout.levels(pixels)):
        array = root.create_array(
            str(level),
            data=np.ascontiguousarray(image.transpose(2, 0, 1)),
            chunks=(3, layout.tile_px, layout.tile_px),
        )
        array.attrs["note"] = plant(f"Zarr array attribute {level}")
        mpp = MPP * layout.downsamples[level]
        scale = {"type": "scale", "scale": [1.0, mpp, mpp]}
        datasets.append(
            {"path": plant("Zarr dataset path", str(level)), "coordinateTransformations": [scale]}
        )
    axes = [{"name": plant("Zarr axis name", "c"), "type": plant("Zarr axis type", "channel")}] + [
        {"name": each, "type": "space", "unit": plant("Zarr axis unit", "micrometer")} for each in "yx"
    ]
    version = plant("Zarr version", "0.4" if zarr_format == 2 else "0.5")
    image_attrs = {
        "axes": axes,
        "datasets": datasets,
        "name": plant("Zarr multiscales name"),
        "metadata": {"patient": plant("Zarr multiscales metadata")},
    }
    channels = [{"label": plant("Zarr channel"), "color": "FF0000"}] * 3
    omero = {"name": plant("Zarr omero name"), "channels": channels}
    if zarr_format == 2:
        root.attrs.update({"multiscales": [{"version": version, **image_attrs}], "omero": omero})
    else:
        root.attrs["ome"] = {"version": version, "multiscales": [image_attrs], "omero": omero}
    root.attrs["patient"] = {"name": plant("Zarr patient"), plant("Zarr key"): 1}
    (path / "OME").mkdir()
    (path / "OME" / "METADATA.ome.xml").write_text(f"<OME><Image Name='{plant('Zarr OME-XML')}'/></OME>")
    return path


def write_deepzoom(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write a DeepZoom image with comments, an element and an attribute more, and EXIF in its tiles."""
    path, tile_px = folder / f"{stem}.dzi", layout.tile_px - 2
    height, width = pixels.shape[:2]
    path.write_text(
        f'<?xml version="1.0"?><!-- {plant("DeepZoom comment")} --><Image TileSize="{plant("DeepZoom TileSize", str(tile_px))}" '
        f'Overlap="{plant("DeepZoom Overlap", "1")}" Format="{plant("DeepZoom Format", "jpg")}" '
        f'Patient="{plant("DeepZoom attribute")}" xmlns="http://schemas.microsoft.com/deepzoom/2008">'
        f'<Size Width="{plant("DeepZoom Width", str(width))}" Height="{height}"/><Note>{plant("DeepZoom element")}</Note></Image>'
    )
    own = exif("DeepZoom tile", plant)
    for number in range(math.ceil(math.log2(max(width, height))), -1, -1):
        level = path.with_name(f"{stem}_files") / str(number)
        level.mkdir(parents=True)
        for row in range(-(-pixels.shape[0] // tile_px)):
            for col in range(-(-pixels.shape[1] // tile_px)):
                top, left = max(0, row * tile_px - 1), max(0, col * tile_px - 1)
                tile = pixels[top : (row + 1) * tile_px + 1, left : (col + 1) * tile_px + 1]
                Image.fromarray(tile).save(level / f"{col}_{row}.jpg", quality=JPEG, exif=own)
        half = (-(-pixels.shape[1] // 2), -(-pixels.shape[0] // 2))
        pixels = np.asarray(Image.fromarray(pixels).resize(half, Image.Resampling.BOX))
    return path

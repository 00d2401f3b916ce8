"""Slides made for the tests, of any shape in any layout and without patient data; and which files are open."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

APERIO = (
    "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] ({t}x{t}) JPEG/RGB Q=85|AppMag = 20|MPP = 0.5"
)


def smooth_pixels(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured noise that stays itself when it is averaged down: no two places look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 12 + 2), max(2, width // 12 + 2), 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_pyramid(
    path: Path,
    pixels: NDArray[np.uint8],
    level_sizes_xy: Sequence[tuple[int, int]],
    *,
    tile_px: int = 64,
    compression: str = "jpeg",
    mpp: float | None = 0.5,
    aperio: bool = False,
    ome: bool = False,
    bigtiff: bool = False,
    planar: bool = False,
    iccprofile: bytes | None = None,
) -> Path:
    """A tiled TIFF with the levels `level_sizes_xy`, finest (the size of `pixels`) first.

    `aperio` writes what OpenSlide takes for a slide of that vendor, `ome` a SubIFD pyramid; else generic.
    """
    options: dict[str, object] = {
        "tile": (tile_px, tile_px),
        "compression": compression,
        "compressionargs": {"level": 85} if compression == "jpeg" else None,
        "photometric": "rgb",
        "planarconfig": "separate" if planar else "contig",
    }
    if mpp is not None and not aperio:
        options.update(resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER")
    with tifffile.TiffWriter(path, bigtiff=bigtiff, ome=ome) as writer:
        for level, (width, height) in enumerate(level_sizes_xy):
            image = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
            extra: dict[str, object] = {}
            if level == 0 and iccprofile is not None:
                extra["iccprofile"] = iccprofile
            if aperio:
                extra.update(description=APERIO.format(w=width, h=height, t=tile_px), metadata=None)
            elif ome:
                if level == 0:
                    extra["subifds"] = len(level_sizes_xy) - 1
                    extra["metadata"] = {
                        "axes": "SYX" if planar else "YXS",
                        "PhysicalSizeX": mpp,
                        "PhysicalSizeXUnit": "µm",
                        "PhysicalSizeY": mpp,
                        "PhysicalSizeYUnit": "µm",
                    }
                else:
                    extra["subfiletype"] = 1
            else:
                extra.update(subfiletype=1 if level else 0, metadata=None)
            if planar:
                image = np.ascontiguousarray(image.transpose(2, 0, 1))
            writer.write(image, **options, **extra)
    return path


def leave_out_tiles(path: Path, level: int, tiles: Sequence[int]) -> None:
    """Set tiles' offset and length to 0 in a classic little-endian TIFF, as scanners do for empty glass."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[level].aspage()
        places = [
            (tag.valueoffset, tag.dtype, tag.count)
            for tag in (page.tags["TileOffsets"], page.tags["TileByteCounts"])
        ]
    with path.open("r+b") as file:
        for offset, kind, count in places:
            size = {3: 2, 4: 4}[int(kind)]
            for tile in tiles:
                assert tile < count
                file.seek(offset + tile * size)
                file.write(struct.pack("<H" if size == 2 else "<I", 0))


def damage_tiles(path: Path, tiles: Iterable[int]) -> None:
    """Write zeros over the beginning of tiles (or strips) of a TIFF's first image."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        places = [(page.dataoffsets[tile], page.databytecounts[tile]) for tile in tiles]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(bytes(min(count, 4000)))


def open_files() -> list[str]:
    """Regular files that this process holds open."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return []
    found = []
    for link in folder.iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:  # the listing's own handle
            continue
        if target.startswith("/") and Path(target.removesuffix(" (deleted)")).suffix:
            found.append(target)
    return sorted(found)

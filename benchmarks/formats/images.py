"""Writers of plain images."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image, PngImagePlugin

from benchmarks.formats.writing import LAYOUT, Layout, Pixels, Plant, exif, xmp


def write_png(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write a PNG with text chunks of all three kinds, a time and EXIF."""
    path, info = folder / f"{stem}.png", PngImagePlugin.PngInfo()
    info.add_text("Author", plant("PNG tEXt"))
    info.add_text("Description", plant("PNG zTXt"), zip=True)
    info.add_itxt("Title", plant("PNG iTXt"), zip=True)
    info.add_itxt("XML:com.adobe.xmp", xmp(plant("PNG XMP")))
    info.add(b"tIME", struct.pack(">HBBBBB", 1953, 12, 17, 10, 11, 12))
    Image.fromarray(pixels).save(path, pnginfo=info, exif=exif("PNG", plant))
    return path


def write_jpeg(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write a JPEG with a comment and EXIF."""
    path = folder / f"{stem}.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=exif("JPEG", plant), comment=plant("JPEG comment"))
    return path

"""A small whole slide in each format that the program reads: what the attack on slides breaks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.formats import FORMATS, Layout, Writer, stained, unplanted, write_tiff

SIZE_XY = (768, 512)
SMALL = Layout(tile_px=128, downsamples=(1, 2, 4))
_CODECS = ("adobe_deflate", "lzw", "jpeg2000", "webp", "zstd", "jpegxl", "packbits", "lerc", "png")
_MORE: dict[str, Writer] = {
    **{f"tiff {codec}": partial(write_tiff, compression=codec) for codec in _CODECS},
    "tiff rgb": partial(write_tiff, jpeg_rgb=True),
    "tiff predictor": partial(write_tiff, compression="adobe_deflate", predictor=True),
    "bigtiff": partial(write_tiff, bigtiff=True),
    "tiff big-endian": partial(write_tiff, byteorder=">"),
    "tiff planar": partial(write_tiff, compression="adobe_deflate", planar=True),
    "tiff strips": partial(write_tiff, compression="adobe_deflate", tile=None, rowsperstrip=64),
}
"""Layouts of TIFF that are no formats of their own."""


def write_whole(write: Writer, folder: Path, stem: str = "slide", **options: Any) -> Path:
    """Write a slide of 768 x 512 px and up to three levels, in tiles of 128 px; options are those of the writer."""
    width, height = SIZE_XY
    return write(folder, stem, stained(width, 0, height_px=height), unplanted, SMALL, **options)


def write_all(folder: Path) -> dict[str, Path]:
    """Write every format into a folder of its own.

    Returns
    -------
    dict of str to Path
        What is opened, by the name of the format.
    """
    made = {}
    for name, write in (FORMATS | _MORE).items():
        place = folder / name.replace(" ", "-")
        place.mkdir(parents=True)
        made[name] = write_whole(write, place)
    return made

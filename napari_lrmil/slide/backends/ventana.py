"""Whether a Ventana slide (BIF) says the same of its tiles twice: OpenSlide writes outside of its memory where it doesn't."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import tifffile

from napari_lrmil.slide.backends.tiff_layout import UnfitImageError

_XMP = 700
_LEVEL = re.compile(r"level=(\d+) mag=([0-9.]+)")


def check_tile_places(path: Path) -> None:
    """Refuse a slide whose XML places tiles outside of the grid that a level's directory has.

    What OpenSlide refuses itself isn't looked for.

    Raises
    ------
    UnfitImageError
    """
    with tifffile.TiffFile(path) as tif:
        pages = [page.aspage() for page in tif.pages]
        said = [(page, _LEVEL.search(page.description)) for page in pages]
        levels = [(page, float(match[2])) for page, match in said if match]
        if not levels:
            return
        xml = levels[0][0].tags.valueof(_XMP, b"")
        for page, magnification in levels:
            downsample = levels[0][1] / magnification if magnification else 1.0
            columns, rows = (math.ceil(tiles / downsample) for tiles in _tiles_placed(xml))
            across, down = (
                -(-size // max(1, tile))
                for size, tile in ((page.imagewidth, page.tilewidth), (page.imagelength, page.tilelength))
            )
            if columns > across or rows > down:
                raise UnfitImageError(
                    f"{path.name} is damaged: it places {columns} x {rows} tiles in an image of {across} x {down}"
                )


def _tiles_placed(xml: bytes) -> tuple[int, int]:
    """Columns and rows of level 0 that its XML needs."""
    try:
        root = ET.fromstring(xml.rstrip(b"\0"))
        areas = list(
            zip(root.iterfind("SlideStitchInfo/ImageInfo"), root.iterfind("AoiOrigin/*"), strict=False)
        )
        scanned = [(info, origin) for info, origin in areas if info.get("AOIScanned") != "0"]
        return (
            max((int(i.get("NumCols", 0)) + int(o.get("OriginX", 0)) // int(i.get("Width", 1)) for i, o in scanned), default=0),
            max((int(i.get("NumRows", 0)) + int(o.get("OriginY", 0)) // int(i.get("Height", 1)) for i, o in scanned), default=0),
        )  # fmt: skip
    except (ET.ParseError, ValueError, ArithmeticError):
        return (0, 0)

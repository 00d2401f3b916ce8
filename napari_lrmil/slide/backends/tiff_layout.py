"""Where a TIFF's tiles lie in the file and how each is decoded."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError

TIFF_ERRORS = (
    tifffile.TiffFileError,
    ValueError,
    RuntimeError,
    OSError,
    struct.error,
    LookupError,
    TypeError,
)
"""What tifffile and the codecs raise on damaged files."""

MAX_SEGMENT_PIXELS = 2**26
"""The largest tile or strip that is decoded at once: 200 MB of RGB."""

_YCBCR_JPEG2000 = 33003
_UNIT_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


@dataclass(frozen=True)
class TiffLevel:
    """One level: a grid of tiles (or strips), row by row.

    `decode` turns a segment's bytes and number into its pixels, (1, height, width, samples).
    `planes` is 3 where each colour has its own tiles, else 1.
    """

    size_xy: tuple[int, int]
    tile_xy: tuple[int, int]
    planes: int
    white_is_zero: bool
    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    decode: Callable[[bytes, int], NDArray[np.uint8]]

    @property
    def tiles_across(self) -> int:
        """Columns of tiles."""
        return -(-self.size_xy[0] // self.tile_xy[0])

    @property
    def tiles_down(self) -> int:
        """Rows of tiles."""
        return -(-self.size_xy[1] // self.tile_xy[1])


@dataclass(frozen=True)
class TiffLayout:
    """Everything that a TIFF says of its tiles.

    Attributes
    ----------
    pages : tuple of TiffLevel
        Every tiled page that can be decoded, of whatever image, in the file's order.
    levels : tuple of TiffLevel
        The pyramid of the largest image, finest first; empty where `refusal` says why it can't be read.
    refusal : str
    mpp_xy : (float, float) or None
        From OME-XML only.
    icc_profile : bytes or None
    is_ome : bool
    """

    pages: tuple[TiffLevel, ...]
    levels: tuple[TiffLevel, ...]
    refusal: str
    mpp_xy: tuple[float, float] | None
    icc_profile: bytes | None
    is_ome: bool


def read_layout(path: Path) -> TiffLayout:
    """Read the directories of a TIFF; no pixels.

    Raises
    ------
    SlideError
        Where it isn't a TIFF.
    """
    try:
        with tifffile.TiffFile(path) as tif:
            levels: tuple[TiffLevel, ...] = ()
            refusal = ""
            try:
                levels = _largest_image(tif, path.name)
            except SlideError as error:
                refusal = str(error)
            profile = tif.pages.first.tags.get("InterColorProfile")
            return TiffLayout(
                pages=tuple(_understood_pages(tif, path.name)),
                levels=levels,
                refusal=refusal,
                mpp_xy=_ome_mpp(tif.ome_metadata) if tif.is_ome else None,
                icc_profile=bytes(profile.value) if profile is not None else None,
                is_ome=bool(tif.is_ome),
            )
    except TIFF_ERRORS as error:
        raise SlideError(f"{path.name} is not a TIFF that tifffile can read ({error})") from error


def _largest_image(tif: tifffile.TiffFile, name: str) -> tuple[TiffLevel, ...]:
    images = [series for series in tif.series if len(series.pages)]
    if not images:
        raise SlideError(f"{name} holds no image")
    # OME-XML may name other files too. Each is opened by its own name: what is read here lies here.
    images = [series for series in images if series.keyframe.parent is tif]
    if not images:
        raise SlideError(f"{name} only names the files that hold its images. Open one of those")
    image = max(images, key=lambda series: series.size)
    if len(image.pages) > 1:
        raise SlideError(
            f"{name} holds {len(image.pages)} planes of {image.dtype} ({image.axes} {image.shape}), "
            "but a slide needs one image of 8-bit RGB"
        )
    return tuple(_level_of(series.keyframe, name) for series in image.levels)


def _understood_pages(tif: tifffile.TiffFile, name: str) -> list[TiffLevel]:
    understood = []
    for page in tif.pages:
        whole = page.aspage()
        if whole.is_tiled:
            try:
                understood.append(_level_of(whole, name))
            except SlideError:
                continue  # another image's: only what matches a level is asked for
    return understood


def _level_of(page: tifffile.TiffPage, name: str) -> TiffLevel:
    samples, photometric = page.samplesperpixel, page.photometric
    known = photometric in (
        tifffile.PHOTOMETRIC.RGB,
        tifffile.PHOTOMETRIC.MINISBLACK,
        tifffile.PHOTOMETRIC.MINISWHITE,
    ) or (photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression == tifffile.COMPRESSION.JPEG)
    if page.dtype != np.uint8 or samples not in (1, 3) or page.imagedepth != 1 or not known:
        raise SlideError(
            f"{name} holds {samples} sample(s) of {page.dtype} ({tifffile.PHOTOMETRIC(photometric).name}) a pixel, "
            "but a slide needs 8-bit RGB or grey"
        )
    if page.compression == _YCBCR_JPEG2000:
        raise SlideError(f"{name} holds JPEG 2000 tiles with colour differences (compression 33003)")
    tile_xy = (
        (page.tilewidth, page.tilelength)
        if page.is_tiled
        else (page.imagewidth, min(page.rowsperstrip, page.imagelength))
    )
    if tile_xy[0] * tile_xy[1] > MAX_SEGMENT_PIXELS:
        raise SlideError(
            f"{name} holds its image in pieces of {tile_xy[0]} x {tile_xy[1]} px, too large to decode one by "
            "one. Convert it to a tiled TIFF."
        )
    tables, header, decode_segment = page.jpegtables, page.jpegheader, page.decode

    def decode(data: bytes, index: int) -> NDArray[np.uint8]:
        pixels = decode_segment(data, index, jpegtables=tables, jpegheader=header)[0]
        return np.asarray(pixels, np.uint8)

    return TiffLevel(
        size_xy=(page.imagewidth, page.imagelength),
        tile_xy=tile_xy,
        planes=samples if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1,
        white_is_zero=photometric == tifffile.PHOTOMETRIC.MINISWHITE,
        offsets=np.asarray(page.dataoffsets, np.int64),
        byte_counts=np.asarray(page.databytecounts, np.int64),
        decode=decode,
    )


def _ome_mpp(xml: str | None) -> tuple[float, float] | None:
    """µm per pixel of the first image in OME-XML; its default unit is µm."""
    if not xml:
        return None
    try:
        pixels = ET.fromstring(xml).find(".//{*}Pixels")
    except ET.ParseError:
        return None
    if pixels is None:
        return None
    mpp = []
    for axis in "XY":
        unit = _UNIT_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            size = float(pixels.get(f"PhysicalSize{axis}", "0"))
        except ValueError:
            return None
        if unit is None or not 0 < size < float("inf"):
            return None
        mpp.append(size * unit)
    return (mpp[0], mpp[1])

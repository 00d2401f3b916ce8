"""Where a TIFF's tiles lie in the file and how each is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.backends.base import unquoted
from napari_lrmil.slide.pixel_size import Evidence, ome_evidence, tag_evidence

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
_SAMPLES = (1, 3, 4)
"""Grey, RGB, and RGB with alpha or cyan, magenta, yellow and black. What has more isn't a picture; of grey with alpha,
OpenSlide shows other grey than is stored."""
_COLOURS = tuple(
    tifffile.PHOTOMETRIC[name]
    for name in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "SEPARATED", "YCBCR")
)
"""Of which OpenSlide's colours are proven by tests; those of CIELAB, for one, are not."""


class UnfitImageError(SlideError):
    """A file is understood, and what it holds is no slide: no other decoder may show it as one."""


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
    largest_xy : (int, int) or None
        Size of the largest image, whether it can be read or not.
    refusal : SlideError or None
        An `UnfitImageError` is final, with another decoder may do better.
    evidence : tuple of Evidence
        What is said of the pixel size of the largest image: by OME-XML, then by the resolution tags.
    ome_xml : str or None
    shown_image : str
        Which of several images the largest is; empty where there is one.
    icc_profile : bytes or None
    is_ome : bool
    """

    pages: tuple[TiffLevel, ...]
    levels: tuple[TiffLevel, ...]
    largest_xy: tuple[int, int] | None
    refusal: SlideError | None
    evidence: tuple[Evidence, ...]
    ome_xml: str | None
    shown_image: str
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
            evidence: tuple[Evidence, ...] = ()
            shown_image = ""
            largest_xy: tuple[int, int] | None = None
            refusal: SlideError | None = None
            ome_xml = tif.ome_metadata if tif.is_ome else None
            try:
                images = _images(tif, path.name)
                image = max(images, key=lambda series: series.size)
                largest_xy = (image.keyframe.imagewidth, image.keyframe.imagelength)
                levels = _levels_of(image, path.name)
                evidence = _evidence_of(image.keyframe, ome_xml)
                shown_image = _shown_image(images, image)
            except SlideError as error:
                refusal = error
            profile = tif.pages.first.tags.get("InterColorProfile")
            return TiffLayout(
                pages=tuple(_understood_pages(tif, path.name)),
                levels=levels,
                largest_xy=largest_xy,
                refusal=refusal,
                evidence=evidence,
                ome_xml=ome_xml,
                shown_image=shown_image,
                icc_profile=bytes(profile.value) if profile is not None else None,
                is_ome=bool(tif.is_ome),
            )
    except TIFF_ERRORS as error:
        raise SlideError(
            f"{path.name} is not a TIFF that tifffile can read ({unquoted(error, path)})"
        ) from error


def is_cut_short(path: Path) -> bool:
    """Whether a TIFF lists tiles beyond its end, or can't be followed; False where the system can't read it."""
    try:
        size = path.stat().st_size
        with tifffile.TiffFile(path) as tif:
            for page in tif.pages:
                whole = page.aspage()
                ends = np.asarray(whole.dataoffsets, np.int64) + np.asarray(whole.databytecounts, np.int64)
                if ends.size and ends.max() > size:
                    return True
    except OSError as error:
        return error.errno is None
    except TIFF_ERRORS:
        return True
    return False


def _images(tif: tifffile.TiffFile, name: str) -> list[tifffile.TiffPageSeries]:
    images = [series for series in tif.series if len(series.pages)]
    if not images:
        raise SlideError(f"{name} holds no image")
    # OME-XML may name other files too. Each is opened by its own name: what is read here lies here.
    images = [series for series in images if series.keyframe.parent is tif]
    if not images:
        raise SlideError(f"{name} only names the files that hold its images. Open one of those")
    return images


def _levels_of(image: tifffile.TiffPageSeries, name: str) -> tuple[TiffLevel, ...]:
    # A plane in another file is read when that file is opened.
    here = [page for page in image.pages if page is not None and page.parent is image.keyframe.parent]
    if len(here) > 1:
        raise UnfitImageError(
            f"{name} holds {len(here)} planes of {image.dtype} ({image.axes} {image.shape}), "
            "but a slide needs one image of 8-bit RGB, its colours together"
        )
    return tuple(_level_of(series.keyframe, name) for series in image.levels)


def _evidence_of(page: tifffile.TiffPage, ome_xml: str | None) -> tuple[Evidence, ...]:
    """What is said of the pixel size of an image, whose finest level is this page."""
    tags = (page.tags.get(name) for name in ("XResolution", "YResolution", "ResolutionUnit"))
    x, y, unit = (None if tag is None else tag.value for tag in tags)
    found = ome_evidence(ome_xml, (page.imagewidth, page.imagelength), ifd=page.index)
    # Without the unit's tag, it is the inch.
    found += tag_evidence(_ratio(x), _ratio(y), 2 if unit is None else int(unit))
    return tuple(found)


def _ratio(value: object) -> float | None:
    """A rational of a TIFF tag, which is stored as two whole numbers."""
    if not isinstance(value, tuple) or len(value) < 2 or not value[1]:
        return None
    return float(value[0]) / float(value[1])


def _shown_image(images: list[tifffile.TiffPageSeries], shown: tifffile.TiffPageSeries) -> str:
    """Say which image is read, by place and size: names can hold a patient's."""
    if len(images) == 1:
        return ""
    sizes = [f"{image.keyframe.imagewidth} x {image.keyframe.imagelength} px" for image in images]
    number = next(place for place, image in enumerate(images) if image is shown)
    others = [size for place, size in enumerate(sizes) if place != number]
    sizes_of_others = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
    return f"{number + 1} of {len(images)}, the largest ({sizes[number]}); not shown: {sizes_of_others}"


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
    turned = page.tags.valueof("Orientation", 1)
    if turned != 1:
        raise UnfitImageError(
            f"{name} is stored turned or mirrored (Orientation {int(turned)}), but a slide must be stored upright"
        )
    if page.imagedepth != 1:
        raise UnfitImageError(
            f"{name} holds {page.imagedepth} planes of {page.dtype} in one image, but a slide needs one plane"
        )
    if page.dtype is not None and (
        page.dtype.itemsize > 1
        or page.dtype.kind == "i"
        or samples not in _SAMPLES
        or photometric not in _COLOURS
    ):
        raise UnfitImageError(
            f"{name} holds {samples} sample(s) of {page.dtype} ({tifffile.PHOTOMETRIC(photometric).name}) a pixel, "
            "but a slide needs 8-bit RGB or grey"
        )
    if page.dtype != np.uint8 or samples not in (1, 3) or not known:
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
    size_xy = (page.imagewidth, page.imagelength)
    if min(*size_xy, *tile_xy) < 1:
        raise SlideError(
            f"{name} is damaged: it says that it holds {size_xy[0]} x {size_xy[1]} px in pieces of "
            f"{tile_xy[0]} x {tile_xy[1]} px"
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

    level = TiffLevel(
        size_xy=size_xy,
        tile_xy=tile_xy,
        planes=samples if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1,
        white_is_zero=photometric == tifffile.PHOTOMETRIC.MINISWHITE,
        offsets=np.asarray(page.dataoffsets, np.int64),
        byte_counts=np.asarray(page.databytecounts, np.int64),
        decode=decode,
    )
    needed, there = (
        level.tiles_across * level.tiles_down * level.planes,
        min(len(level.offsets), len(level.byte_counts)),
    )
    if there < needed:  # OpenSlide would open the file anew for each piece that isn't there
        raise UnfitImageError(
            f"{name} is damaged: {size_xy[0]} x {size_xy[1]} px take {needed:,} pieces of {tile_xy[0]} x {tile_xy[1]} px, "
            f"and it lists {there:,}"
        )
    return level

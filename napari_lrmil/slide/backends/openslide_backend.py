"""OpenSlide, the reference backend."""

from __future__ import annotations

import errno
import functools
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.errors import SlideAwayError, SlideError
from napari_lrmil.slide.backends.base import away, changed, check_request, check_sizes, file_key, unquoted
from napari_lrmil.slide.backends.ventana import check_tile_places
from napari_lrmil.slide.damage import Place, damage_of, hatch
from napari_lrmil.slide.files import Chunk, pixel_files
from napari_lrmil.slide.identity import states_of
from napari_lrmil.slide.pixel_size import DICOM, TIFF_TAG, Evidence, ome_evidence, tag_evidence

CACHE_BYTES = 128 * 2**20
"""Decoded tiles kept by OpenSlide for all slides together. Its own 32 MiB a slide is less than one screen
of a large monitor at 3 levels."""

_Read = TypeVar("_Read")

_PIECE_XY = (256, 256)
"""What is tried at once beside a damaged place, where stored tiles are no plain grid."""


@functools.cache
def _shared_openslide_cache() -> openslide.OpenSlideCache:
    return openslide.OpenSlideCache(CACHE_BYTES)


class OpenSlideBackend:
    """One shared handle: OpenSlide's reads are thread-safe and release the GIL.

    OpenSlide interpolates where a level-0 location falls between two pixels of the level that is read,
    which happens at downsamples that aren't whole: up to half a pixel of blur that no other backend has.
    """

    name = "openslide"
    chunks: tuple[Chunk, ...] = ()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reopening = threading.Lock()
        self._is_cut: bool | None = None
        self._handle = self._opened()
        self.damage = damage_of(file_key(path))
        self.reason = "OpenSlide's format"
        properties = self._handle.properties
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        if self.vendor == "ventana":
            check_tile_places(path)
        paths = properties.get("dicom.NumberOfOpticalPaths", "1")
        if paths != "1":
            raise SlideError(
                f"{path.name} holds {paths} optical paths (channels), but a slide needs one RGB image"
            )
        self._series_uid: str | None = properties.get("dicom.SeriesInstanceUID")
        self.level_dimensions_xy: tuple[tuple[int, int], ...] = self._handle.level_dimensions
        check_sizes(path.name, self.level_dimensions_xy)
        self.level_downsamples: tuple[float, ...] = self._handle.level_downsamples
        self.level_tiles_xy = _tiles_of(properties, len(self.level_dimensions_xy))
        self.evidence = _evidence_in(properties, self.vendor, self.level_dimensions_xy[0])
        self.shown_image = ""
        self.objective_power = _positive(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.bounds_l0_xywh = self._bounds()
        self.associated_images: tuple[str, ...] = tuple(sorted(self._handle.associated_images))
        self._opened_files = self.files
        self._states = states_of(self._opened_files)

    def _opened(self) -> openslide.OpenSlide:
        path = self._path
        try:
            handle = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise SlideError(f"{path.name} is not a slide that OpenSlide can read") from error
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(
                f"{path.name} is not a slide that OpenSlide can read ({self._said(error)})"
            ) from error
        handle.set_cache(_shared_openslide_cache())
        return handle

    def _said(self, error: Exception) -> str:
        """What OpenSlide says, without what it quotes and the folders of the files that it names."""
        return unquoted(error, self._path)

    def _reopen(self, failed: openslide.OpenSlide) -> None:
        """Replace a handle that failed: after its first error, OpenSlide's handle fails for good.

        The old one is let go of, not closed: other threads may be reading through it.
        """
        with self._reopening:
            if self._handle is failed:
                self._handle = self._opened_again()

    def _opened_again(self) -> openslide.OpenSlide:
        """A new handle, if the files are those that were opened.

        Raises
        ------
        SlideChangedError
            `SlideAwayError`, which is one, where they can't be reached or read.
        """
        try:
            same = states_of(self._opened_files) == self._states
        except OSError as error:
            raise away(self._path, error) from error
        if not same:
            raise changed(self._path)
        try:
            return self._opened()
        except SlideError as error:  # it was opened before
            raise self._unreadable() from error

    def _unreadable(self) -> SlideAwayError:
        return away(self._path, OSError(errno.EIO, os.strerror(errno.EIO)))

    def _is_unreadable(self, error: openslide.OpenSlideError) -> bool:
        """Whether the system couldn't read a file that is there, which says nothing of what stands in it."""
        said = str(error)
        if "Read error" in said:  # libtiff's, also of a file that ends too early
            if self._is_cut is None:
                from napari_lrmil.slide.backends.tiff_layout import is_cut_short  # loads tifffile

                self._is_cut = is_cut_short(self._path)
            return not self._is_cut
        return "I/O error" in said

    def _twice(self, read: Callable[[openslide.OpenSlide], _Read]) -> _Read:
        """Read through the shared handle, and after an error, which may be another thread's, through one of its own.

        Raises
        ------
        openslide.OpenSlideError
        """
        shared = self._handle
        try:
            return read(shared)
        except openslide.OpenSlideError:
            self._reopen(shared)
        with self._opened_again() as own:
            return read(own)

    @property
    def files(self) -> tuple[Path, ...]:
        """All parts of the slide."""
        return pixel_files(self._path, series_uid=self._series_uid)

    @property
    def icc_profile(self) -> bytes | None:
        """The slide's colour profile, where it has one that can be read."""
        try:
            profile = self._twice(lambda handle: handle.color_profile)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"the slide's ICC profile can't be read ({self._said(error)})") from error
        return None if profile is None else bytes(profile.tobytes())

    def _bounds(self) -> tuple[int, int, int, int]:
        width, height = self.level_dimensions_xy[0]
        properties = self._handle.properties
        try:
            left, top, right, bottom = (
                int(properties[openslide.PROPERTY_NAME_BOUNDS_X]),
                int(properties[openslide.PROPERTY_NAME_BOUNDS_Y]),
                int(properties[openslide.PROPERTY_NAME_BOUNDS_X])
                + int(properties[openslide.PROPERTY_NAME_BOUNDS_WIDTH]),
                int(properties[openslide.PROPERTY_NAME_BOUNDS_Y])
                + int(properties[openslide.PROPERTY_NAME_BOUNDS_HEIGHT]),
            )
        except (KeyError, ValueError):
            return (0, 0, width, height)
        left, top = max(0, left), max(0, top)
        right, bottom = min(width, right), min(height, bottom)
        if right <= left or bottom <= top:
            return (0, 0, width, height)
        return (left, top, right - left, bottom - top)

    def read_region(
        self,
        location_l0_xy: tuple[int, int],
        level: int,
        size_xy: tuple[int, int],
        *,
        keep_tiles: bool = True,
    ) -> NDArray[np.uint8]:
        # Asked for a level that isn't there, OpenSlide answers with an empty picture.
        check_request(level, len(self.level_dimensions_xy), size_xy)
        scale = self.level_downsamples[level]
        left, top = (math.floor(place / scale) for place in location_l0_xy)
        if not self.damage.touches(level, left, top, size_xy[0] + 1, size_xy[1] + 1):
            handle = self._handle
            try:
                return _on_white(handle.read_region(location_l0_xy, level, size_xy))
            except openslide.OpenSlideError:
                self._reopen(handle)
        return self._read_piecewise(location_l0_xy, level, size_xy)

    def _read_piecewise(
        self, location_l0_xy: tuple[int, int], level: int, size_xy: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A region stored tile by stored tile, those that can't be decoded hatched."""
        scale, (width, height) = self.level_downsamples[level], size_xy
        left, top = (math.floor(place / scale) for place in location_l0_xy)
        tile_x, tile_y = self.level_tiles_xy[level] or _PIECE_XY
        region: NDArray[np.uint8] = np.full((height, width, 3), 255, np.uint8)
        for y in range(top // tile_y * tile_y, top + height, tile_y):
            y0, y1 = max(y, top), min(y + tile_y, top + height)
            for x in range(left // tile_x * tile_x, left + width, tile_x):
                x0, x1 = max(x, left), min(x + tile_x, left + width)
                corner = (
                    location_l0_xy[0] + round((x0 - left) * scale),
                    location_l0_xy[1] + round((y0 - top) * scale),
                )
                place = (level, x, y, tile_x, tile_y)
                region[y0 - top : y1 - top, x0 - left : x1 - left] = self._read_piece(
                    corner, place, (x0, y0, x1 - x0, y1 - y0)
                )
        return region

    def _read_piece(
        self, corner_l0_xy: tuple[int, int], place: Place, piece_xywh: tuple[int, int, int, int]
    ) -> NDArray[np.uint8]:
        """What of a region lies in one stored tile."""
        if place in self.damage.places:
            return hatch(*piece_xywh)
        level, size_xy = place[0], piece_xywh[2:]
        try:
            return _on_white(self._twice(lambda handle: handle.read_region(corner_l0_xy, level, size_xy)))
        except openslide.OpenSlideError as error:
            if self._is_unreadable(error):
                raise self._unreadable() from error
            self.damage.add(place, self._said(error))
            return hatch(*piece_xywh)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        try:
            return _on_white(self._twice(lambda handle: handle.associated_images[name]))
        except openslide.OpenSlideError as error:
            raise SlideError(f"the {name} image can't be decoded ({self._said(error)})") from error

    def close(self) -> None:
        self._handle.close()


def _tiles_of(properties: Mapping[str, str], n_levels: int) -> tuple[tuple[int, int] | None, ...]:
    """Stored tiles' width and height at each level; None where they are no plain grid."""
    sizes = (
        [properties.get(f"openslide.level[{level}].tile-{side}") for side in ("width", "height")]
        for level in range(n_levels)
    )
    return tuple((int(width), int(height)) if width and height else None for width, height in sizes)


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """RGB of an RGBA image: nothing was scanned where alpha is 0, which is glass, so white."""
    rgba = np.asarray(image)
    alpha = rgba[..., 3:]
    if not alpha.size or alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    blended = rgba[..., :3] * (alpha / 255.0) + (255 - alpha)
    return np.asarray(np.rint(blended), np.uint8)


def _evidence_in(
    properties: Mapping[str, str], vendor: str, size_xy: tuple[int, int]
) -> tuple[Evidence, ...]:
    """Pixel sizes in the order of trust: OME-XML, the scanner's own header, the resolution tags of a TIFF."""
    found = ome_evidence(properties.get("tiff.ImageDescription"), size_xy)
    mpp_x = _positive(properties.get(openslide.PROPERTY_NAME_MPP_X))
    mpp_y = _positive(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    if mpp_x and mpp_y:
        # Of a TIFF of no vendor, OpenSlide knows the tags only.
        source = {"generic-tiff": TIFF_TAG, "dicom": DICOM}.get(vendor, f"the {vendor} header")
        found.append(Evidence(source, (mpp_x, mpp_y)))
    if vendor != "generic-tiff":
        found += tag_evidence(
            _positive(properties.get("tiff.XResolution")),
            _positive(properties.get("tiff.YResolution")),
            properties.get("tiff.ResolutionUnit"),
        )
    return tuple(found)


def _positive(text: str | None) -> float | None:
    """A property as a positive finite number, else None: scanners write 0, -1 and 'unknown'."""
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None

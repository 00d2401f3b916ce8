"""TIFF tiles decoded where they lie: no canvas between the codec and the reader."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.backends.base import (
    DamagedTileError,
    away,
    changed,
    check_request,
    check_sizes,
    downsamples_of,
    file_key,
    read_stored,
)
from napari_lrmil.slide.backends.openslide_backend import OpenSlideBackend
from napari_lrmil.slide.backends.tiff_layout import (
    MAX_SEGMENT_PIXELS,
    TIFF_ERRORS,
    TiffLayout,
    TiffLevel,
)
from napari_lrmil.slide.damage import damage_of
from napari_lrmil.slide.files import Chunk, pixel_files
from napari_lrmil.slide.geometry import l0_to_level, level_to_l0

AGREEMENT_GREY_LEVELS = 2
"""How far a pixel may be from OpenSlide's. With the same JPEG library nothing differs; another one may
round a colour conversion the other way."""

_SAMPLE_PX = 64


class TiffBackend:
    """Reads a TIFF's tiles through the process's shared cache of decoded tiles.

    Regions fall on whole pixels of their level: a level-0 location between two of them goes to the nearest.

    Parameters
    ----------
    path : Path
    layout : TiffLayout
        Its `levels` are the slide's.
    reason : str
    reference : OpenSlideBackend, optional
        Says what the slide is and draws the tiles that the file leaves out. Closed with this one.
    """

    name = "tiff"
    chunks: tuple[Chunk, ...] = ()

    def __init__(
        self, path: Path, layout: TiffLayout, *, reason: str, reference: OpenSlideBackend | None = None
    ) -> None:
        if not layout.levels:
            raise layout.refusal or SlideError(f"{path.name} holds no image")
        check_sizes(path.name, [level.size_xy for level in layout.levels])
        self._levels = layout.levels
        self._icc_profile = layout.icc_profile
        self._reference = reference
        self._path = path
        self._key = file_key(path)
        self.damage = damage_of(self._key)
        self._file = _RandomAccessFile(path)
        self.reason = reason
        if reference is None:
            self.vendor = "ome-tiff" if layout.is_ome else "tiff"
            self.level_dimensions_xy = tuple(level.size_xy for level in layout.levels)
            self.level_downsamples = downsamples_of(self.level_dimensions_xy)
            self.evidence = layout.evidence
            self.shown_image = layout.shown_image
            self.bounds_l0_xywh = (0, 0, *self.level_dimensions_xy[0])
            self.objective_power: float | None = None
            self.associated_images: tuple[str, ...] = ()
        else:
            self.vendor = reference.vendor
            self.level_dimensions_xy = reference.level_dimensions_xy
            self.level_downsamples = reference.level_downsamples
            self.evidence = reference.evidence
            self.shown_image = reference.shown_image
            self.bounds_l0_xywh = reference.bounds_l0_xywh
            self.objective_power = reference.objective_power
            self.associated_images = reference.associated_images

    @property
    def files(self) -> tuple[Path, ...]:
        """All parts of the slide."""
        return pixel_files(self._path)

    @property
    def icc_profile(self) -> bytes | None:
        return self._icc_profile if self._reference is None else self._reference.icc_profile

    @classmethod
    def with_reference(cls, path: Path, layout: TiffLayout, reference: OpenSlideBackend) -> TiffBackend:
        """Decode directly what OpenSlide knows as plain grids of tiles.

        Raises
        ------
        SlideError
            Saying why not: a level has no one page, or its pixels aren't those of OpenSlide. `reference`
            stays open.
        """
        levels = tuple(
            _page_of(level, reference, layout.pages) for level in range(len(reference.level_dimensions_xy))
        )
        backend = cls(
            path, replace(layout, levels=levels), reason="plain grids of tiles", reference=reference
        )
        try:
            backend.compare_with(reference)
        except SlideError:
            backend._file.close()
            raise
        return backend

    def compare_with(self, reference: OpenSlideBackend) -> None:
        """Compare a piece of each level that OpenSlide has, too.

        Raises
        ------
        SlideError
            Where the pixels differ.
        """
        # Whatever a vendor's colours or tables may be: a backend that isn't the reference has to agree
        # with it on this very file. The middle of a level is the likeliest place for tissue.
        for number, level in enumerate(self._levels[: len(reference.level_dimensions_xy)]):
            if reference.level_dimensions_xy[number] != self.level_dimensions_xy[number]:
                continue
            scale = self.level_downsamples[number]
            middle = (
                size // 2 // tile * tile
                for size, tile in zip(self.level_dimensions_xy[number], level.tile_xy, strict=True)
            )
            x, y = middle
            location = (level_to_l0(x, scale), level_to_l0(y, scale))
            theirs = reference.read_region(location, number, (_SAMPLE_PX, _SAMPLE_PX)).astype(np.int16)
            before = (level_to_l0(x - 1, scale), level_to_l0(y - 1, scale))
            around = self.read_region(before, number, (_SAMPLE_PX + 2, _SAMPLE_PX + 2)).astype(np.int16)
            # OpenSlide interpolates where a downsample isn't whole: then its pixels lie among those around.
            reach = 1 if scale == round(scale) else 3
            low, high = (
                rank(around, size=(reach, reach, 1))[1:-1, 1:-1]
                for rank in (ndimage.minimum_filter, ndimage.maximum_filter)
            )
            if max((low - theirs).max(), (theirs - high).max()) > AGREEMENT_GREY_LEVELS:
                raise SlideError(f"level {number} decodes to other pixels than OpenSlide's")

    def read_region(
        self,
        location_l0_xy: tuple[int, int],
        level: int,
        size_xy: tuple[int, int],
        *,
        keep_tiles: bool = True,
    ) -> NDArray[np.uint8]:
        check_request(level, len(self._levels), size_xy)
        scale = self.level_downsamples[level]
        stored = self._levels[level]
        return read_stored(
            lambda col, row: self._decode(level, row * stored.tiles_across + col),
            file=self._key,
            level=level,
            damage=self.damage,
            keep_tiles=keep_tiles,
            tile_xy=stored.tile_xy,
            level_size_xy=self.level_dimensions_xy[level],
            corner_xy=(l0_to_level(location_l0_xy[0], scale), l0_to_level(location_l0_xy[1], scale)),
            size_xy=size_xy,
        )

    def _decode(self, level: int, index: int) -> NDArray[np.uint8]:
        stored = self._levels[level]
        per_plane = stored.tiles_across * stored.tiles_down
        segments = [index + plane * per_plane for plane in range(stored.planes)]
        counts = [int(stored.byte_counts[segment]) for segment in segments]
        if not all(counts):
            return self._left_out(level, index)
        try:
            data = [
                self._file.read(int(stored.offsets[segment]), count)
                for segment, count in zip(segments, counts, strict=True)
            ]
        except OSError as error:
            raise away(self._path, error) from error
        except ValueError as error:
            raise DamagedTileError(str(error)) from error
        try:
            planes = [stored.decode(each, segment)[0] for each, segment in zip(data, segments, strict=True)]
        except TIFF_ERRORS as error:
            # Some writers leave rubbish for empty tiles; what that means is the reference's to say.
            if self._reference is None:
                raise DamagedTileError(str(error)) from error
            return self._left_out(level, index)
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        return 255 - pixels if stored.white_is_zero else pixels

    def _left_out(self, level: int, index: int) -> NDArray[np.uint8]:
        """A tile that the file doesn't hold: OpenSlide fills some vendors' from the next finer level."""
        stored = self._levels[level]
        width, height = stored.tile_xy
        if self._reference is None:
            return np.full((height, width, 3), 255, np.uint8)
        row, col = divmod(index, stored.tiles_across)
        scale = self.level_downsamples[level]
        location = (level_to_l0(col * width, scale), level_to_l0(row * height, scale))
        return self._reference.read_region(location, level, (width, height))

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        if self._reference is None:
            raise SlideError(f"there is no associated image {name!r}")
        return self._reference.read_associated(name)

    def close(self) -> None:
        self._file.close()
        if self._reference is not None:
            self._reference.close()


def _page_of(level: int, reference: OpenSlideBackend, pages: tuple[TiffLevel, ...]) -> TiffLevel:
    """The one page that holds a level of OpenSlide's."""
    size_xy, tile_xy = reference.level_dimensions_xy[level], reference.level_tiles_xy[level]
    if tile_xy is None:
        raise SlideError(f"level {level} is no plain grid of tiles")
    # Philips pads the pages' sizes to whole tiles.
    padded = tuple(-(-size // tile) * tile for size, tile in zip(size_xy, tile_xy, strict=True))
    wanted = (size_xy, padded) if reference.vendor == "philips" else (size_xy,)
    fits = [page for page in pages if page.size_xy in wanted and page.tile_xy == tile_xy]
    if len(fits) != 1:
        raise SlideError(f"level {level} is on {len(fits)} pages that can be decoded directly, not on one")
    return fits[0]


class _RandomAccessFile:
    """Reads at offsets from many threads through one descriptor.

    After an error the file is opened anew: a descriptor on a share that went away stays broken when the share is back.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = FileIO(path)
        self._size, self._mtime_ns = _size_and_time(self._file)
        self._given_up: list[FileIO] = []
        """Others may be reading through them, so they are closed at the end."""
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes, or fewer where the file ended before them when it was opened.

        Raises
        ------
        OSError
            Where the file can't be reached or read, or has become shorter.
        SlideChangedError
            Where another one is in its place.
        """
        if not 0 <= count <= 4 * MAX_SEGMENT_PIXELS:
            raise ValueError(f"a tile of {count} bytes")
        broken = self._file
        try:
            return self._read(broken, offset, count)
        except OSError:
            anew = FileIO(self._path)
        try:
            if _size_and_time(anew) != (self._size, self._mtime_ns):
                raise changed(self._path)
            data = self._read(anew, offset, count)
        except BaseException:
            anew.close()
            raise
        with self._lock:
            superfluous = broken
            if self._file is broken:
                self._file = anew
            else:  # another thread was faster
                superfluous = anew
            self._given_up.append(superfluous)
        return data

    def _read(self, file: FileIO, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            data = os.pread(file.fileno(), count, offset)
        else:
            with self._lock:  # Windows has no read that leaves the shared position alone
                file.seek(offset)
                data = file.read(count)
        if len(data) < min(count, self._size - offset):
            raise OSError(errno.EIO, "it is shorter than it was")
        return data

    def close(self) -> None:
        for file in (self._file, *self._given_up):
            file.close()


def _size_and_time(file: FileIO) -> tuple[int, int]:
    """What `identity.states_of` compares; inodes are left out there and here, since some shares number them anew."""
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns

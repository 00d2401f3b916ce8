"""OME-Zarr images, 0.4 (zarr v2) and 0.5 (zarr v3)."""

from __future__ import annotations

import itertools
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError, reason_of
from napari_lrmil.slide.backends.base import (
    DamagedTileError,
    away,
    check_request,
    check_sizes,
    downsamples_of,
    read_stored,
    unquoted,
)
from napari_lrmil.slide.damage import damage_of
from napari_lrmil.slide.files import is_inside, pixel_files, stored_chunks, zarr_images, zarr_metadata
from napari_lrmil.slide.geometry import l0_to_level
from napari_lrmil.slide.pixel_size import OME_ZARR, Evidence, unit_um

_MAX_CHUNK_PIXELS = 2**26
_MAX_LISTED = 4
_BLANK = 2.0
"""Grey levels by which pixels differ from the fill value on average where there is nothing."""
_GLASS = 200
"""A fill value from here on stands for glass."""
_MAX_FINER = 4.0
_MAX_GROWTH, _SLACK_BYTES = 4, 2**16
_DEFLATE_GROWTH = 1032
"""How much deflate can pack a byte at most."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_YOUNG_NS = 60 * 10**9
_Area = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of a level."""
_ZARR_ERRORS = (zarr.errors.BaseZarrError, OSError, ValueError, LookupError, TypeError, RuntimeError)


class _LevelArray(Protocol):
    """What is used of a `zarr.Array`."""

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    compressors: tuple[object, ...]
    fill_value: object
    metadata: Any
    ndim: int
    dtype: np.dtype[np.generic]

    def __getitem__(self, index: tuple[slice | int, ...]) -> object: ...


class ZarrBackend:
    """The first multiscale image of a folder, chunk by chunk through the shared cache of decoded tiles; more are said.

    A container as bioformats2raw writes it, with the image in a group of its own, is read as that image where it is the
    only one.

    Axes are found by their names, so both `tczyx` and `yxc` will do; time and z must have one plane.
    """

    name = "ome-zarr"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            group = zarr.open_group(path, mode="r")
            images = zarr_images(path)
            if len(images) > 1:
                raise SlideError(
                    f"{path.name} holds {len(images)} images: open one of {_listed(path, images)}"
                )
            inner = "".join(f"{name}/" for name in images)
            described = group[inner[:-1]] if inner else group
            image, shown_image = _multiscale_of(described.attrs.asdict(), path.name)
            self._axes = [
                str(axis["name"]) if isinstance(axis, Mapping) else str(axis)
                for axis in image.get("axes", "tczyx")
            ]
            names = [f"{inner}{dataset['path']}" for dataset in image["datasets"]]
            for name in names:
                if not is_inside(path, name):
                    raise SlideError(
                        f"{path.name} names a level outside of its folder: nothing there is read"
                    )
            arrays = [group[name] for name in names]
        except _ZARR_ERRORS as error:
            raise SlideError(
                f"{path.name} is not an OME-Zarr image that can be read ({unquoted(error, path)})"
            ) from error
        self._arrays = [self._checked(array) for array in arrays]
        self._chunks = _ChunkFiles(path)
        self.chunks = self._chunks.found
        # Of all files: a chunk that comes later makes another slide.
        self._key = (str(path.resolve()), self._chunks.state)
        self.damage = damage_of(self._key)
        self.reason = "OME-Zarr"
        self.vendor = f"ome-zarr (zarr v{group.metadata.zarr_format})"
        self.level_dimensions_xy = tuple(
            (int(array.shape[self._axes.index("x")]), int(array.shape[self._axes.index("y")]))
            for array in self._arrays
        )
        check_sizes(path.name, self.level_dimensions_xy)
        if list(self.level_dimensions_xy) != sorted(self.level_dimensions_xy, reverse=True):
            raise SlideError(f"{path.name} lists its levels in no order from fine to coarse")
        self.level_downsamples = downsamples_of(self.level_dimensions_xy)
        mpp_xy = self._mpp(image)
        self.evidence: tuple[Evidence, ...] = () if mpp_xy is None else (Evidence(OME_ZARR, mpp_xy),)
        self.shown_image = shown_image
        self.bounds_l0_xywh = (0, 0, *self.level_dimensions_xy[0])
        self.objective_power: float | None = None
        self.associated_images: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The metadata and the coarsest level: few files, and another slide differs in them."""
        return pixel_files(self._path)

    @property
    def icc_profile(self) -> bytes | None:
        return None

    def _checked(self, array: object) -> _LevelArray:
        name = self._path.name
        if not isinstance(array, zarr.Array):
            raise SlideError(f"{name} names a level that is no array")
        if array.ndim != len(self._axes) or not {"x", "y"} <= set(self._axes):
            raise SlideError(
                f"{name} doesn't say which of the {array.ndim} dimensions of a level are x and y"
            )
        for axis, size in zip(self._axes, array.shape, strict=True):
            if axis not in "xyc" and size > 1:
                along = f"its axis {axis}" if len(axis) == 1 else "another axis"
                raise SlideError(f"{name} holds {size} planes along {along}, but a slide needs one")
        channels = array.shape[self._axes.index("c")] if "c" in self._axes else 1
        if array.dtype != np.uint8 or channels not in (1, 3):
            raise SlideError(
                f"{name} holds {channels} channel(s) of {array.dtype}, but a slide needs 8-bit RGB or grey"
            )
        x, y = (array.chunks[self._axes.index(axis)] for axis in "xy")
        if min(array.chunks) < 1:
            raise SlideError(f"{name} is damaged: it says that its chunks measure {x} x {y} px")
        if x * y > _MAX_CHUNK_PIXELS:
            raise SlideError(f"{name} has chunks of {x} x {y} px, too large to decode one by one")
        checked: _LevelArray = array
        return checked

    def _mpp(self, image: Mapping[str, Any]) -> tuple[float, float] | None:
        """From the scales of level 0 and of the whole image; unknown where the axes have no unit."""
        scales = [1.0] * len(self._axes)
        first = image["datasets"][0].get("coordinateTransformations", [])
        for transform in [*first, *image.get("coordinateTransformations", [])]:
            if transform.get("type") == "scale":
                scales = [a * float(b) for a, b in zip(scales, transform["scale"], strict=True)]
        mpp = []
        for name in "xy":
            number = self._axes.index(name)
            axis = image["axes"][number] if "axes" in image else None
            unit = unit_um(axis.get("unit")) if isinstance(axis, Mapping) else None
            if unit is None or not scales[number]:
                return None
            mpp.append(scales[number] * unit)
        return (mpp[0], mpp[1])

    def read_region(
        self,
        location_l0_xy: tuple[int, int],
        level: int,
        size_xy: tuple[int, int],
        *,
        keep_tiles: bool = True,
    ) -> NDArray[np.uint8]:
        check_request(level, len(self._arrays), size_xy)
        array, scale = self._arrays[level], self.level_downsamples[level]
        tile_x, tile_y = (int(array.chunks[self._axes.index(axis)]) for axis in "xy")

        def decode(col: int, row: int) -> NDArray[np.uint8]:
            if self._is_missing(level, col, row):
                raise DamagedTileError("a chunk is missing")
            cols, rows = slice(col * tile_x, (col + 1) * tile_x), slice(row * tile_y, (row + 1) * tile_y)
            return self._decode(level, cols, rows)

        return read_stored(
            decode,
            file=self._key,
            level=level,
            damage=self.damage,
            keep_tiles=keep_tiles,
            tile_xy=(tile_x, tile_y),
            level_size_xy=self.level_dimensions_xy[level],
            corner_xy=(l0_to_level(location_l0_xy[0], scale), l0_to_level(location_l0_xy[1], scale)),
            size_xy=size_xy,
        )

    def _is_missing(self, level: int, col: int, row: int) -> bool:
        """Whether a chunk is absent that should be there.

        Writers leave out chunks that hold the fill value alone, so absence by itself says nothing. The levels show the
        same picture: where another one holds something else than the fill value there, the chunk is missing. Where
        none holds anything, it is blank; unless there is no other level and the fill value is no glass, or the
        slide was being written a moment ago.
        """
        array = self._arrays[level]
        width, height = (int(array.chunks[self._axes.index(axis)]) for axis in "xy")
        left, top = col * width, row * height
        area = (left, top, left + width, top + height)
        if self._is_there(level, area):
            return False
        fill = int(cast(int, array.fill_value) or 0)
        for other in sorted(set(range(len(self._arrays))) - {level}, key=lambda at: (abs(at - level), at)):
            scale = self.level_downsamples[level] / self.level_downsamples[other]
            if scale > _MAX_FINER:  # too many pixels to decode for a look
                continue
            seen = self._inner(other, [edge * scale for edge in area])
            if seen is not None and self._is_there(other, seen):
                pixels = self._decode(other, slice(seen[0], seen[2]), slice(seen[1], seen[3]))
                return float(np.abs(pixels.astype(np.int16) - fill).mean()) > _BLANK
        return self._chunks.young or (len(self._arrays) == 1 and fill < _GLASS)

    def _inner(self, level: int, area: Sequence[float]) -> _Area | None:
        """The pixels of a level that lie wholly in an area of it, its border left out where it is large enough."""
        width, height = self.level_dimensions_xy[level]
        left, top = math.ceil(area[0]), math.ceil(area[1])
        right, bottom = min(width, math.floor(area[2])), min(height, math.floor(area[3]))
        if right - left > 2 and bottom - top > 2:  # neighbours were averaged into the border
            left, top, right, bottom = left + 1, top + 1, right - 1, bottom - 1
        return (left, top, right, bottom) if right > left and bottom > top else None

    def _is_there(self, level: int, area: _Area) -> bool:
        """Whether the files of all chunks are there that an area of a level needs."""
        return all(name in self._chunks.sizes for name in self._stored_in(level, area))

    def _stored_in(self, level: int, area: _Area) -> list[str]:
        """The files of an area of a level."""
        array = self._arrays[level]
        stored = array.shards or array.chunks
        spans = {"x": (area[0], area[2]), "y": (area[1], area[3])}
        places = []
        for axis, size, length in zip(self._axes, stored, array.shape, strict=True):
            first, end = spans.get(axis, (0, length if axis == "c" else 1))
            places.append(range(first // size, (min(end, length) - 1) // size + 1))
        return [
            f"{array.path}/{array.metadata.encode_chunk_key(place)}" for place in itertools.product(*places)
        ]

    def _refuse_bombs(self, level: int, area: _Area) -> None:
        """Refuse chunks that would unpack to far more than a chunk holds; a shard's inner chunks aren't looked at."""
        array = self._arrays[level]
        if array.shards is not None:
            return
        most = _MAX_GROWTH * math.prod(array.chunks) + _SLACK_BYTES
        codec = type(array.compressors[-1]).__name__.lower() if array.compressors else ""
        for name in self._stored_in(level, area):
            size = self._chunks.sizes.get(name)
            if size is None:  # left out by its writer
                continue
            if max(size, _unpacked_bytes(self._path / name, codec, most)) > most:
                raise DamagedTileError(f"a chunk holds more than the {most:,} bytes that it can have")

    def _decode(self, level: int, cols: slice, rows: slice) -> NDArray[np.uint8]:
        array = self._arrays[level]
        where: dict[str, slice | int] = {"x": cols, "y": rows, "c": slice(None)}
        try:
            self._refuse_bombs(level, (cols.start, rows.start, cols.stop, rows.stop))
            pixels = np.asarray(array[tuple(where.get(axis, 0) for axis in self._axes)])
            for name in self._stored_in(level, (cols.start, rows.start, cols.stop, rows.stop)):
                if name in self._chunks.sizes:  # zarr fills in what it doesn't find, as when a share is away
                    (self._path / name).stat()
        except OSError as error:
            raise away(self._path, error) from error
        except _ZARR_ERRORS as error:
            raise DamagedTileError(str(error)) from error
        kept = [axis for axis in self._axes if axis in where]
        if "c" not in kept:
            pixels, kept = pixels[..., None], [*kept, "c"]
        pixels = pixels.transpose([kept.index(axis) for axis in "yxc"])
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        return np.ascontiguousarray(pixels, np.uint8)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        raise SlideError(f"there is no associated image {name!r}")

    def close(self) -> None:
        """Nothing is held open: each chunk is a file."""


class _ChunkFiles:
    """Which chunks an OME-Zarr folder held when it was opened."""

    def __init__(self, folder: Path) -> None:
        try:
            self.found = tuple(stored_chunks(folder))
            metadata = [
                (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in zarr_metadata(folder)
            ]
        except OSError as error:
            raise SlideError(f"{folder.name} can't be read ({reason_of(error)})") from error
        self.sizes = {chunk.name: chunk.size for chunk in self.found}
        newest_ns = max((chunk.mtime_ns for chunk in self.found), default=0)
        self.young = 0 <= time.time_ns() - newest_ns < _YOUNG_NS
        """Whether one was written a moment ago."""
        self.state = hash((self.young, *metadata, self.found))


def _unpacked_bytes(file: Path, codec: str, most: int) -> int:
    """What a stored chunk unpacks to, as its header says, or up to `most` + 1 where one has to see; 0 if nobody knows."""
    with file.open("rb") as stream:
        head = stream.read(18)
        if codec.startswith("blosc"):
            return int.from_bytes(head[4:8], "little")
        if codec.startswith("lz4"):
            return int.from_bytes(head[:4], "little")
        if codec.startswith("zstd") and head[:4] == _ZSTD_MAGIC:
            return _zstd_bytes(head)
        if codec.startswith(("zlib", "gzip")) and _DEFLATE_GROWTH * file.stat().st_size > most:
            try:
                return len(zlib.decompressobj(wbits=47).decompress(head + stream.read(most), most + 1))
            except zlib.error:  # decoding says so
                return 0
    return 0


def _zstd_bytes(head: bytes) -> int:
    """The content size in a zstd frame's header (RFC 8878); 0 where it isn't said."""
    descriptor = head[4]
    single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    length = (int(single), 2, 4, 8)[size_flag]
    return int.from_bytes(head[at : at + length], "little") + (256 if length == 2 else 0)


def _listed(path: Path, names: Sequence[str]) -> str:
    """The first few images of a container, as they are opened."""
    return ", ".join(f"{path.name}/{name}" for name in names[:_MAX_LISTED]) + ", …" * (
        len(names) > _MAX_LISTED
    )


def _multiscale_of(attributes: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], str]:
    """The first image of a group, which is the one meant where nothing else is said, and which of several that is."""
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not isinstance(images, Sequence) or not images:
        raise SlideError(f"{name} is a zarr group without OME-Zarr multiscales")
    first = cast(Mapping[str, Any], images[0])
    if len(images) == 1:
        return first, ""
    return first, f"1 of {len(images)}, the first; the others are not shown"

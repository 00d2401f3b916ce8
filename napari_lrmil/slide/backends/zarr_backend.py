"""OME-Zarr images, 0.4 (zarr v2) and 0.5 (zarr v3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError, reason_of
from napari_lrmil.slide.backends.base import assemble, check_request, downsamples_of, file_key
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.damage import damage_of, hatch
from napari_lrmil.slide.files import pixel_files, zarr_metadata
from napari_lrmil.slide.geometry import l0_to_level
from napari_lrmil.slide.pixel_size import OME_ZARR, Evidence

_UNIT_UM = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
_MAX_CHUNK_PIXELS = 2**26
_ZARR_ERRORS = (zarr.errors.BaseZarrError, OSError, ValueError, LookupError, TypeError, RuntimeError)


class _LevelArray(Protocol):
    """What is used of a `zarr.Array`."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    ndim: int
    dtype: np.dtype[np.generic]

    def __getitem__(self, index: tuple[slice | int, ...]) -> object: ...


class ZarrBackend:
    """The first multiscale image of a folder, chunk by chunk through the shared cache of decoded tiles.

    Axes are found by their names, so both `tczyx` and `yxc` will do; time and z must have one plane.
    """

    name = "ome-zarr"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            group = zarr.open_group(path, mode="r")
            image = _multiscale_of(group.attrs.asdict(), path.name)
            self._axes = [
                str(axis["name"]) if isinstance(axis, Mapping) else str(axis)
                for axis in image.get("axes", "tczyx")
            ]
            arrays = [group[str(dataset["path"])] for dataset in image["datasets"]]
        except _ZARR_ERRORS as error:
            raise SlideError(f"{path.name} is not an OME-Zarr image that can be read ({error})") from error
        self._arrays = [self._checked(array) for array in arrays]
        self._key = file_key(zarr_metadata(path)[0])
        self.damage = damage_of(self._key)
        self.reason = "OME-Zarr"
        self.vendor = f"ome-zarr (zarr v{group.metadata.zarr_format})"
        self.level_dimensions_xy = tuple(
            (int(array.shape[self._axes.index("x")]), int(array.shape[self._axes.index("y")]))
            for array in self._arrays
        )
        if list(self.level_dimensions_xy) != sorted(self.level_dimensions_xy, reverse=True):
            raise SlideError(f"{path.name} lists its levels in no order from fine to coarse")
        self.level_downsamples = downsamples_of(self.level_dimensions_xy)
        mpp_xy = self._mpp(image)
        self.evidence: tuple[Evidence, ...] = () if mpp_xy is None else (Evidence(OME_ZARR, mpp_xy),)
        self.shown_image = ""
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
            raise SlideError(f"{name} has axes {self._axes}, but arrays of {array.ndim} dimensions")
        for axis, size in zip(self._axes, array.shape, strict=True):
            if axis not in "xyc" and size > 1:
                raise SlideError(f"{name} holds {size} planes along its axis {axis}, but a slide needs one")
        channels = array.shape[self._axes.index("c")] if "c" in self._axes else 1
        if array.dtype != np.uint8 or channels not in (1, 3):
            raise SlideError(
                f"{name} holds {channels} channel(s) of {array.dtype}, but a slide needs 8-bit RGB or grey"
            )
        x, y = (array.chunks[self._axes.index(axis)] for axis in "xy")
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
            unit = _UNIT_UM.get(axis.get("unit", "")) if isinstance(axis, Mapping) else None
            if unit is None or not 0 < scales[number] < float("inf"):
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
        cache = shared_cache()

        def tile(col: int, row: int, whole: bool) -> NDArray[np.uint8]:
            cols, rows = slice(col * tile_x, (col + 1) * tile_x), slice(row * tile_y, (row + 1) * tile_y)
            try:
                return cache.get(
                    (self._key, level, col, row),
                    lambda: self._decode(array, cols, rows),
                    keep=keep_tiles or not whole,
                )
            except _DamagedChunkError as error:
                place = (col * tile_x, row * tile_y, tile_x, tile_y)
                self.damage.add((level, *place), error)
                return hatch(*place)

        return assemble(
            tile,
            tile_xy=(tile_x, tile_y),
            level_size_xy=self.level_dimensions_xy[level],
            corner_xy=(l0_to_level(location_l0_xy[0], scale), l0_to_level(location_l0_xy[1], scale)),
            size_xy=size_xy,
        )

    def _decode(self, array: _LevelArray, cols: slice, rows: slice) -> NDArray[np.uint8]:
        where: dict[str, slice | int] = {"x": cols, "y": rows, "c": slice(None)}
        try:
            pixels = np.asarray(array[tuple(where.get(axis, 0) for axis in self._axes)])
        except OSError as error:  # the file can't be read, which says nothing of the chunk
            raise SlideError(f"{self._path.name} can't be read ({reason_of(error)})") from error
        except _ZARR_ERRORS as error:
            raise _DamagedChunkError(str(error)) from error
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


class _DamagedChunkError(Exception):
    """A chunk that can't be decoded. Raised through the cache, which keeps no error."""


def _multiscale_of(attributes: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not isinstance(images, Sequence) or not images:
        raise SlideError(f"{name} is a zarr group without OME-Zarr multiscales")
    return cast(Mapping[str, Any], images[0])

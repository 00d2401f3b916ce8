"""DeepZoom: a `.dzi` file that says the size, and a folder of JPEG or PNG tiles beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.errors import SlideError, reason_of
from napari_lrmil.slide.backends.base import DamagedTileError, away, check_request, file_key, read_stored
from napari_lrmil.slide.damage import damage_of
from napari_lrmil.slide.files import deepzoom_of, pixel_files, stored_chunks
from napari_lrmil.slide.geometry import l0_to_level
from napari_lrmil.slide.pixel_size import Evidence


class DeepZoomBackend:
    """Reads tiles as they are asked for; each level has half the pixels of the finer one, rounded up.

    Levels that fit in one tile but for the first of them are left out. The format knows no pixel size. A tile whose file is
    absent counts as damaged: the format leaves none out.
    """

    name = "deepzoom"

    def __init__(self, path: Path) -> None:
        try:
            found = deepzoom_of(path)
            self.chunks = tuple(stored_chunks(path))
            self._there = frozenset(chunk.name for chunk in self.chunks)
            # Of all tiles: one that comes later makes another slide.
            self._key = (file_key(path), hash(self.chunks))
        except OSError as error:
            raise SlideError(f"{path.name} can't be read ({reason_of(error)})") from error
        if found is None:
            raise SlideError(f"{path.name} is not a DeepZoom image of JPEG or PNG tiles that can be read")
        if not found.folder.is_dir():
            raise SlideError(f"{path.name} lacks the folder {found.folder.name} with its tiles beside it")
        self._image = found
        self._path = path
        self.damage = damage_of(self._key)
        self.reason = "DeepZoom"
        self.vendor = "deepzoom"
        self.level_dimensions_xy = found.sizes_xy
        self.level_downsamples = tuple(2.0**level for level in range(len(found.sizes_xy)))
        self.evidence: tuple[Evidence, ...] = ()
        self.shown_image = ""
        self.bounds_l0_xywh = (0, 0, *found.sizes_xy[0])
        self.objective_power: float | None = None
        self.associated_images: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The `.dzi` file and the tiles of the coarser levels."""
        return pixel_files(self._path)

    @property
    def icc_profile(self) -> bytes | None:
        return None

    def read_region(
        self,
        location_l0_xy: tuple[int, int],
        level: int,
        size_xy: tuple[int, int],
        *,
        keep_tiles: bool = True,
    ) -> NDArray[np.uint8]:
        check_request(level, len(self.level_dimensions_xy), size_xy)
        scale, tile_px = self.level_downsamples[level], self._image.tile_px
        return read_stored(
            lambda col, row: self._decode(level, col, row),
            file=self._key,
            level=level,
            damage=self.damage,
            keep_tiles=keep_tiles,
            tile_xy=(tile_px, tile_px),
            level_size_xy=self.level_dimensions_xy[level],
            corner_xy=(l0_to_level(location_l0_xy[0], scale), l0_to_level(location_l0_xy[1], scale)),
            size_xy=size_xy,
        )

    def _decode(self, level: int, col: int, row: int) -> NDArray[np.uint8]:
        """A tile without what it repeats of its neighbours."""
        found, (width, height) = self._image, self.level_dimensions_xy[level]
        before_x, before_y = (found.overlap_px if place else 0 for place in (col, row))
        here_x = min(found.tile_px, width - col * found.tile_px)
        here_y = min(found.tile_px, height - row * found.tile_px)
        file = found.tile_file(level, col, row)
        try:
            with file.open("rb") as stream, Image.open(stream, formats=("JPEG", "PNG")) as image:
                if max(image.size) > found.tile_px + 2 * found.overlap_px:
                    raise DamagedTileError(f"a tile of {image.width} x {image.height} px")
                if "A" in image.getbands() or "transparency" in image.info:
                    rgba = image.convert("RGBA")
                    white = Image.new("RGBA", rgba.size, "white")
                    pixels = np.array(Image.alpha_composite(white, rgba).convert("RGB"))
                else:
                    pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            absent = file.relative_to(found.folder).as_posix() not in self._there
            if (
                isinstance(error, OSError) and error.errno is not None and not absent
            ):  # Pillow's own have no number
                raise away(self._path, error) from error
            raise DamagedTileError(reason_of(error)) from error
        own = pixels[before_y : before_y + here_y, before_x : before_x + here_x]
        if own.shape[:2] != (here_y, here_x):
            raise DamagedTileError(f"a tile of {pixels.shape[1]} x {pixels.shape[0]} px")
        return np.ascontiguousarray(own)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        raise SlideError(f"there is no associated image {name!r}")

    def close(self) -> None:
        """Nothing is held open: each tile is a file."""

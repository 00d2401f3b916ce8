"""What `Slide` needs from a library that decodes slide files, and what the decoders share."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import LRMILError, SlideAwayError, SlideChangedError, SlideError, reason_of
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.damage import Damage, hatch
from napari_lrmil.slide.files import Chunk, pixel_files
from napari_lrmil.slide.identity import states_of
from napari_lrmil.slide.pixel_size import Evidence

_QUIET = {"PIL": logging.WARNING, "zarr": logging.WARNING, "tifffile": logging.CRITICAL}
_QUOTED = re.compile(r"(?<!\w)b?(?:'[^']*'|\"[^\"]*\"|“[^”]*”)(?!\w)")


def quiet_decoders() -> None:
    """Have the libraries' logs leave out what stands in a file: EXIF, texts of the scanner, paths.

    Whoever has set the level of such a log gets it all the same.
    """
    for name, level in _QUIET.items():
        log = logging.getLogger(name)
        if log.level == logging.NOTSET:
            log.setLevel(level)


quiet_decoders()


def unquoted(text: object, path: Path | None = None) -> str:
    """Return what a decoder says of a file, without what it quotes from it, and without the path of its folder.

    A number that can't be read may be a patient's.
    """
    said = " ".join(str(text).split())
    if path is not None:
        said = said.replace(f"{path.parent}{os.sep}", "")
    return _QUOTED.sub("…", said)


def away(path: Path, error: OSError) -> SlideAwayError:
    """What to raise where the system can't reach or read a file: that says nothing of what stands in it."""
    return SlideAwayError(
        f"{path.name} can't be read any more ({reason_of(error)}): it was taken away, or the disk or share that it is on "
        "can't be reached. Try again once it is back."
    )


def changed(path: Path) -> SlideChangedError:
    """What to raise where other files are in the place of those that were opened."""
    return SlideChangedError(
        f"{path.name} changed while it was read: it was replaced, or is still being written. Open it again once it is "
        "complete."
    )


MAX_EDGE_PX = 2**24
"""Pixels along a level: what a scan of half a metre would have at 0.03 µm/px."""


class Backend(Protocol):
    """A decoder of one open slide. Reads may come from several threads at once; `close` comes last.

    Attributes
    ----------
    name : str
        'openslide', 'tiff', 'ome-zarr', 'deepzoom' or 'image'.
    reason : str
        Why this backend reads the slide, in a few words.
    evidence : tuple of Evidence
        What is said of the pixel size, the most trusted first; `pixel_size.decide` makes one of it.
    shown_image : str
        Which image of several is read, and that there are others; empty where there is one.
    associated_images : tuple of str
        Names only. Labels and macro images can show a patient's name: pixels come on request.
    damage : Damage
        What couldn't be decoded so far; reads show it hatched.
    chunks : tuple of Chunk
        Of a slide with a file a chunk, those that were there when it was opened; empty for any other.
    """

    name: str
    reason: str
    vendor: str
    level_dimensions_xy: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    evidence: tuple[Evidence, ...]
    shown_image: str
    bounds_l0_xywh: tuple[int, int, int, int]
    objective_power: float | None
    associated_images: tuple[str, ...]
    damage: Damage
    chunks: tuple[Chunk, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with the slide's pixels, looked for when asked: a folder can hold thousands."""
        ...

    @property
    def icc_profile(self) -> bytes | None:
        """The slide's colour profile, read when asked for."""
        ...

    def read_region(
        self,
        location_l0_xy: tuple[int, int],
        level: int,
        size_xy: tuple[int, int],
        *,
        keep_tiles: bool = True,
    ) -> NDArray[np.uint8]:
        """RGB pixels (height, width, 3); white where the slide holds nothing.

        Without `keep_tiles`, tiles of which all is handed over now don't enter the shared cache.
        """
        ...

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """RGB pixels (height, width, 3) of one of `associated_images`."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@contextmanager
def decoder_errors(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into SlideError, so that one bad file is the matter of that file alone.

    All calls of a backend go through here: damaged files make decoders raise anything.
    """
    try:
        yield
    except LRMILError:
        raise
    except Exception as error:
        raise SlideError(f"{path.name} can't be read ({unquoted(reason_of(error), path)})") from error


def check_sizes(name: str, sizes_xy: Sequence[tuple[int, int]]) -> None:
    """Refuse levels of a size that none of a slide has.

    Raises
    ------
    SlideError
    """
    if not sizes_xy:
        raise SlideError(f"{name} holds no level")
    for width, height in sizes_xy:
        if min(width, height) < 1 or max(width, height) > MAX_EDGE_PX:
            raise SlideError(f"{name} is damaged: it says that a level measures {width:,} x {height:,} px")


def downsamples_of(sizes_xy: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Level-0 pixels per pixel of each level: the mean of both axes, as OpenSlide has it.

    Sizes are rounded to whole pixels, so the axes can differ in the fourth digit.
    """
    width, height = sizes_xy[0]
    return tuple((width / w + height / h) / 2 for w, h in sizes_xy)


def assemble(
    read_tile: Callable[[int, int, bool], NDArray[np.uint8]],
    *,
    tile_xy: tuple[int, int],
    level_size_xy: tuple[int, int],
    corner_xy: tuple[int, int],
    size_xy: tuple[int, int],
) -> NDArray[np.uint8]:
    """A rectangle of a tiled level; white outside it.

    Parameters
    ----------
    read_tile : callable
        (column, row, whether all of it is wanted) -> (height, width, 3) uint8 array, at least as large as
        what the level has there. A writable one may be handed on as it is.
    tile_xy, level_size_xy : (int, int)
    corner_xy, size_xy : (int, int)
        The rectangle, in pixels of the level.
    """
    (left, top), (width, height) = corner_xy, size_xy
    first_x, first_y = max(0, left), max(0, top)
    last_x, last_y = min(level_size_xy[0], left + width), min(level_size_xy[1], top + height)
    inside = first_x == left and first_y == top and last_x == left + width and last_y == top + height
    if inside and size_xy == tile_xy and not (left % tile_xy[0] or top % tile_xy[1]):
        tile = read_tile(left // tile_xy[0], top // tile_xy[1], True)
        return tile if tile.flags.writeable else tile.copy()
    region: NDArray[np.uint8] = (
        np.empty((height, width, 3), np.uint8) if inside else np.full((height, width, 3), 255, np.uint8)
    )
    if last_x <= first_x or last_y <= first_y:
        return region
    for row in range(first_y // tile_xy[1], (last_y - 1) // tile_xy[1] + 1):
        y0, y1 = max(first_y, row * tile_xy[1]), min(last_y, (row + 1) * tile_xy[1])
        for col in range(first_x // tile_xy[0], (last_x - 1) // tile_xy[0] + 1):
            x0, x1 = max(first_x, col * tile_xy[0]), min(last_x, (col + 1) * tile_xy[0])
            tile = read_tile(col, row, (x1 - x0, y1 - y0) == tile_xy)
            region[y0 - top : y1 - top, x0 - left : x1 - left] = tile[
                y0 - row * tile_xy[1] : y1 - row * tile_xy[1], x0 - col * tile_xy[0] : x1 - col * tile_xy[0]
            ]
    return region


class DamagedTileError(Exception):
    """A stored tile that can't be decoded. Raised through the cache, which keeps no error."""


def read_stored(
    decode: Callable[[int, int], NDArray[np.uint8]],
    *,
    file: Hashable,
    level: int,
    damage: Damage,
    keep_tiles: bool,
    tile_xy: tuple[int, int],
    level_size_xy: tuple[int, int],
    corner_xy: tuple[int, int],
    size_xy: tuple[int, int],
) -> NDArray[np.uint8]:
    """A rectangle of a level, of stored tiles out of the shared cache; those that are damaged noted and hatched.

    Parameters
    ----------
    decode : callable
        (column, row) -> a stored tile, (height, width, 3) uint8; raises DamagedTileError.
    file : hashable
        What names the file in its state, see `file_key`.
    level : int
    damage : Damage
    keep_tiles : bool
        See `Backend.read_region`.
    tile_xy, level_size_xy, corner_xy, size_xy : (int, int)
        As in `assemble`.
    """

    def tile(col: int, row: int, whole: bool) -> NDArray[np.uint8]:
        try:
            return shared_cache().get(
                (file, level, col, row), lambda: decode(col, row), keep=keep_tiles or not whole
            )
        except DamagedTileError as error:
            place = (col * tile_xy[0], row * tile_xy[1], *tile_xy)
            damage.add((level, *place), unquoted(error))
            return hatch(*place)

    return assemble(tile, tile_xy=tile_xy, level_size_xy=level_size_xy, corner_xy=corner_xy, size_xy=size_xy)


def check_request(level: int, n_levels: int, size_xy: tuple[int, int]) -> None:
    """Refuse a level that isn't there and a size below nothing, as OpenSlide does."""
    if not 0 <= level < n_levels:
        raise SlideError(f"the slide has levels 0 to {n_levels - 1}, not {level}")
    if min(size_xy) < 0:
        raise SlideError(f"a region can't be {size_xy[0]} x {size_xy[1]} px")


def file_key(path: Path) -> Hashable:
    """What names the files of a slide in the shared cache: where they are, and their state, so that new ones aren't the old.

    Of a DICOM slide, all files beside it count.
    """
    return (str(path.resolve()), states_of(pixel_files(path)))

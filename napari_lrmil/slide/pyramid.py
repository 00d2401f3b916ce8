"""A slide as lazy arrays, one a level, for a viewer."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.backends.base import assemble
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.damage import hatch
from napari_lrmil.slide.geometry import level_to_l0
from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.resample import read_area

_Key = slice | SupportsIndex | EllipsisType

CHUNK_PX = 512
"""Edge of what a thread reads at once. 512 px were the fastest cold of those tried."""

AVERAGED_PX = 256
"""Edge of what a virtual level averages, and keeps, at once. With 512 px a new view took a fifth longer, as more of
what is read isn't shown; with 128 px panning took a tenth longer."""

SHOWN_PX = 256
"""A viewer that knows of chunks reads whole ones of this edge. Small moves then find their pixels on the screen."""

COARSEST_PX = 1024
"""Levels go on until the whole slide fits in this: a viewer holds all of the coarsest one."""

_SAME_LEVEL = 1.05
_MIN_PIECES, _MAX_THREADS = 4, 4


@dataclass(frozen=True)
class PyramidLevel:
    """One level: its size and where its pixels come from.

    A native level is read as stored. A virtual one is averaged down: from the native level `source` if it has
    no `parent`, else 2 x 2 from its parent, which in the end comes from `source`.
    """

    size_xy: tuple[int, int]
    downsample: float
    source: int
    virtual: bool
    parent: PyramidLevel | None = None


def plan_levels(slide: Slide, *, extra_mpps: tuple[float, ...] = ()) -> tuple[PyramidLevel, ...]:
    """The levels of a slide with steps of about 2, finest first.

    Native levels; a virtual one for each of `extra_mpps` that none of them has; and virtual ones wherever the
    step to the next is 3 or more, and after the last until the slide fits in `COARSEST_PX`. A viewer shows
    the coarsest level with a data pixel for each of the screen's, so a step of 4 would make it read 16
    times what it shows.

    What a virtual level costs: one of x2 reads 4 pixels for each of its own. An overview of a slide that has only
    level 0 has to decode all of it (some 10 s for 40,000 px), piece by piece and with no more than the cache and
    some chunks in memory; its coarse levels are kept, so that happens once. Views at x4 or x8 of such a
    slide decode 16 or 64 pixels for each that they show. A pyramid in the file is better than any of this.

    Parameters
    ----------
    slide : Slide
    extra_mpps : tuple of float
        µm/px that should be shown as they will be read, for instance a model's. Left out where the
        slide's own mpp is unknown, or coarser than wanted.
    """
    levels = [
        PyramidLevel(size_xy, downsample, level, virtual=False)
        for level, (size_xy, downsample) in enumerate(
            zip(slide.level_dimensions_xy, slide.level_downsamples, strict=True)
        )
    ]
    levels += _wanted_levels(slide, levels, extra_mpps)
    levels.sort(key=lambda level: level.downsample)
    planned: list[PyramidLevel] = []
    for level, following in zip(levels, [*levels[1:], None], strict=True):
        planned.append(level)
        if following is not None:
            n_missing = round(math.log2(following.downsample / level.downsample)) - 1
        else:
            n_missing = math.ceil(math.log2(max(level.size_xy) / COARSEST_PX))
        for _ in range(n_missing):
            halved = _half_of(planned[-1])
            if min(halved.size_xy) < 1:
                break
            planned.append(halved)
    return tuple(planned)


def _wanted_levels(slide: Slide, native: list[PyramidLevel], mpps: tuple[float, ...]) -> list[PyramidLevel]:
    width, height = slide.level_dimensions_xy[0]
    wanted: list[PyramidLevel] = []
    for mpp in mpps:
        if not slide.has_mpp:
            break
        downsample = mpp / max(slide.mpp_xy)
        near = any(
            max(downsample / level.downsample, level.downsample / downsample) < _SAME_LEVEL
            for level in [*native, *wanted]
        )
        size_xy = (int(width / downsample), int(height / downsample))
        if downsample <= 1 or near or min(size_xy) < 1:
            continue
        source = max(
            (level for level in native if level.downsample <= downsample), key=lambda level: level.downsample
        )
        wanted.append(PyramidLevel(size_xy, downsample, source.source, virtual=True))
    return wanted


def _half_of(level: PyramidLevel) -> PyramidLevel:
    size_xy = (level.size_xy[0] // 2, level.size_xy[1] // 2)
    return PyramidLevel(size_xy, level.downsample * 2, level.source, virtual=True, parent=level)


def lazy_pyramid(slide: Slide, *, extra_mpps: tuple[float, ...] = ()) -> list[LevelArray]:
    """The levels of `plan_levels` as array-likes (height, width, 3) uint8, finest first.

    Slicing one reads just that rectangle, in the calling thread. Cheaper than dask where the caller has
    its own threads, and nothing is kept beyond the process's one bounded tile cache.
    """
    return [LevelArray(slide, level) for level in plan_levels(slide, extra_mpps=extra_mpps)]


class Unread:
    """What of a slide couldn't be read when it was last shown, because its file can't be reached or decoded.

    Attributes
    ----------
    error : SlideError or None
        Why; None where all was read, or by now can be.
    """

    def __init__(self) -> None:
        self.error: SlideError | None = None
        self._read: Callable[[], object] = bool

    def note(self, error: SlideError, read: Callable[[], object]) -> None:
        """A piece that `read` reads couldn't be."""
        self._read, self.error = read, error

    def try_again(self) -> None:
        """Read the last piece that couldn't be, which takes the error away.

        Raises
        ------
        SlideError
            Where it still can't.
        """
        self._read()
        self.error = None


class LevelArray:
    """One level as an array-like: rectangles are read when it is sliced.

    Attributes
    ----------
    plan : PyramidLevel
    shape : (int, int, int)
        Height, width, 3.
    chunks : (int, int, int)
        What to read at once; anything else can be read, too.
    """

    chunks = (SHOWN_PX, SHOWN_PX, 3)
    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, slide: Slide, plan: PyramidLevel, unread: Unread | None = None) -> None:
        self.plan = plan
        self._unread = unread
        self.shape = (plan.size_xy[1], plan.size_xy[0], 3)
        self._slide = slide
        self._parent = None if plan.parent is None else LevelArray(slide, plan.parent)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all of it would take."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: _Key | tuple[_Key, ...]) -> NDArray[np.uint8]:
        """Pixels of (rows, columns, channels), each a slice or an int; left out ones are whole."""
        given = index if isinstance(index, tuple) else (index,)
        keys: list[slice | SupportsIndex] = []
        for key in given:
            keys += [slice(None)] * (4 - len(given)) if isinstance(key, EllipsisType) else [key]
        keys += [slice(None)] * (3 - len(keys))
        (top, bottom), rows = _span(keys[0], self.shape[0])
        (left, right), cols = _span(keys[1], self.shape[1])
        if bottom <= top or right <= left:  # dask's meta of an empty array
            pixels: NDArray[np.uint8] = np.empty((max(0, bottom - top), max(0, right - left), 3), np.uint8)
        else:
            pixels = self._read_or_hatched(left, top, right, bottom)
        return np.asarray(pixels[rows, cols, keys[2]])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """All of the level: meant for coarse ones."""
        if copy is False:
            raise ValueError("a level's pixels are read from the file, so they can't be had without a copy")
        pixels = self[:, :, :]
        return pixels if dtype is None else pixels.astype(dtype)

    def _read_or_hatched(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        try:
            return self.read(left, top, right, bottom)
        except SlideError as error:
            if self._unread is None or self._slide.closed:
                raise
            self._unread.note(error, partial(self.read, left, top, right, bottom))
            return hatch(left, top, right - left, bottom - top)

    def read(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """Pixels (bottom - top, right - left, 3) of a rectangle; white outside the level.

        A large one is read by several threads: a viewer asks for a whole screen in one of its own.
        """
        pieces = [
            (max(left, x), max(top, y), min(right, x + CHUNK_PX), min(bottom, y + CHUNK_PX))
            for y in range(top // CHUNK_PX * CHUNK_PX, bottom, CHUNK_PX)
            for x in range(left // CHUNK_PX * CHUNK_PX, right, CHUNK_PX)
        ]
        if len(pieces) < _MIN_PIECES:
            return self._read(left, top, right, bottom)
        pixels: NDArray[np.uint8] = np.empty((bottom - top, right - left, 3), np.uint8)

        def fill(piece: tuple[int, int, int, int]) -> None:
            x0, y0, x1, y1 = piece
            pixels[y0 - top : y1 - top, x0 - left : x1 - left] = self._read(x0, y0, x1, y1)

        # Not kept between calls: starting threads takes far less than what they read.
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), "lrmil-level") as pool:
            list(pool.map(fill, pieces))
        return pixels

    def _read(
        self, left: int, top: int, right: int, bottom: int, *, keep_tiles: bool = True
    ) -> NDArray[np.uint8]:
        if not self.plan.virtual:
            scale = self.plan.downsample
            return self._slide.read_region(
                (level_to_l0(left, scale), level_to_l0(top, scale)),
                self.plan.source,
                (right - left, bottom - top),
                keep_tiles=keep_tiles,
            )
        cache = shared_cache()
        key = (self._slide.cache_key, self.plan.source, self.plan.downsample)
        # One pass over a fine level must not sweep the cache, but a coarse level fits in it as a whole.
        keep = keep_tiles or self.nbytes <= cache.max_bytes // 4
        return assemble(
            lambda col, row, whole: cache.get(
                (key, col, row), lambda: self._average(col, row), keep=keep or not whole
            ),
            tile_xy=(AVERAGED_PX, AVERAGED_PX),
            level_size_xy=self.plan.size_xy,
            corner_xy=(left, top),
            size_xy=(right - left, bottom - top),
        )

    def _average(self, col: int, row: int) -> NDArray[np.uint8]:
        """One square of a virtual level."""
        left, top = col * AVERAGED_PX, row * AVERAGED_PX
        right, bottom = min(left + AVERAGED_PX, self.shape[1]), min(top + AVERAGED_PX, self.shape[0])
        if self._parent is not None:
            finer = self._parent._read(2 * left, 2 * top, 2 * right, 2 * bottom, keep_tiles=False)
            return _halved(finer)
        scale = self.plan.downsample
        return np.array(
            read_area(
                self._slide,
                level=self.plan.source,
                corner_l0_xy=(left * scale, top * scale),
                size_l0_xy=((right - left) * scale, (bottom - top) * scale),
                out_px_xy=(right - left, bottom - top),
                keep_tiles=False,
            )
        )


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2 x 2 pixels, as Pillow's `reduce` rounds them and in half its time; both sides are even."""
    rows = np.add(pixels[::2], pixels[1::2], dtype=np.uint16)
    sums: NDArray[np.uint16] = np.empty((rows.shape[0], rows.shape[1] // 2, 3), np.uint16)
    for channel in range(3):
        np.add(rows[:, ::2, channel], rows[:, 1::2, channel], out=sums[:, :, channel])
    sums += 2
    sums >>= 2
    return sums.astype(np.uint8)


def _span(key: slice | SupportsIndex, length: int) -> tuple[tuple[int, int], slice | int]:
    """The whole range [first, last) that a key touches, and the key within it."""
    if isinstance(key, slice):
        first, last, step = key.indices(length)
        if step < 1:
            raise IndexError("a level can't be sliced backwards")
        return (first, last), slice(None, None, step)
    place = range(length)[operator.index(key)]
    return (place, place + 1), 0

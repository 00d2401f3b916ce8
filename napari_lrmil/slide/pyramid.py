"""A slide as lazy dask arrays, one a level, for a viewer."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.resample import read_area

CHUNK_PX = 512
"""Edge of a chunk. 512 px were the fastest cold of those tried; smaller ones cost scheduling."""

_SAME_LEVEL = 1.05


@dataclass(frozen=True)
class PyramidLevel:
    """One level: its size and where its pixels come from.

    A native level is read as stored. A virtual one is averaged down from the native level `source`.
    """

    size_xy: tuple[int, int]
    downsample: float
    source: int
    virtual: bool


def plan_levels(slide: Slide, *, extra_mpps: tuple[float, ...] = ()) -> tuple[PyramidLevel, ...]:
    """The native levels of a slide plus a virtual one for each of `extra_mpps` that none of them has.

    Parameters
    ----------
    slide : Slide
    extra_mpps : tuple of float
        µm/px that should be shown as they will be read, for instance a model's. Left out where the
        slide's own mpp is unknown, or coarser than wanted.
    """
    width, height = slide.level_dimensions_xy[0]
    levels = [
        PyramidLevel(size_xy, downsample, level, virtual=False)
        for level, (size_xy, downsample) in enumerate(
            zip(slide.level_dimensions_xy, slide.level_downsamples, strict=True)
        )
    ]
    for mpp in extra_mpps:
        if not slide.has_mpp:
            break
        downsample = mpp / max(slide.mpp_xy)
        near = any(
            max(downsample / level.downsample, level.downsample / downsample) < _SAME_LEVEL
            for level in levels
        )
        size_xy = (int(width / downsample), int(height / downsample))
        if downsample <= 1 or near or min(size_xy) < 1:
            continue
        native = [level for level in levels if not level.virtual and level.downsample <= downsample]
        source = max(native, key=lambda level: level.downsample).source
        levels.append(PyramidLevel(size_xy, downsample, source, virtual=True))
    return tuple(sorted(levels, key=lambda level: level.downsample))


def dask_pyramid(slide: Slide, *, extra_mpps: tuple[float, ...] = ()) -> list[da.Array]:
    """Lazy levels (height, width, 3) uint8, finest first. Nothing is read until a chunk is asked for."""
    return [
        da.from_array(
            _LevelArray(slide, level),
            chunks=(CHUNK_PX, CHUNK_PX, 3),
            asarray=False,
            fancy=False,
            name=f"{slide.path.name}-{id(slide)}-{level.downsample:.6g}",
        )
        for level in plan_levels(slide, extra_mpps=extra_mpps)
    ]


class _LevelArray:
    """The array-like that dask slices: rectangles of one level."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, slide: Slide, level: PyramidLevel) -> None:
        self._slide = slide
        self._level = level
        self.shape = (level.size_xy[1], level.size_xy[0], 3)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        rows, cols, channels = index
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = cols.indices(self.shape[1])
        if bottom <= top or right <= left:  # dask's meta of an empty array
            return np.empty((max(0, bottom - top), max(0, right - left), 3), np.uint8)[:, :, channels]
        scale = self._level.downsample
        if not self._level.virtual:
            pixels = self._slide.read_region(
                (round(left * scale), round(top * scale)), self._level.source, (right - left, bottom - top)
            )
        else:
            pixels = read_area(
                self._slide,
                level=self._level.source,
                corner_l0_xy=(left * scale, top * scale),
                size_l0_xy=((right - left) * scale, (bottom - top) * scale),
                out_px_xy=(right - left, bottom - top),
            )
        return pixels[:, :, channels]

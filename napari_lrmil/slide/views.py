"""Levels of a slide as dask arrays of which a rectangle is one task: what a viewer asks for a view.

A module of its own since `dask.array` takes 0.4 s to import, which masks and predictions don't need.
"""

from __future__ import annotations

import operator
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import DTypeLike, NDArray

from napari_lrmil.slide.pyramid import LevelArray, Unread, plan_levels
from napari_lrmil.slide.reader import Slide


class LevelView(da.Array):  # type: ignore[misc]  # dask has no types
    """One level as a dask array.

    A rectangle of it (slices of step 1) is an array of one chunk, read by one task: the level has threads of its own, and
    scheduling a chunk costs more than reading it warm. Whatever else is asked of the array works on its chunks, those of
    `LevelArray.chunks`.

    Parameters
    ----------
    level : LevelArray
    name : str
        Of the array in dask's graphs, another for each level of each open slide.
    """

    def __new__(cls, level: LevelArray, name: str) -> LevelView:
        """Return the array; nothing is read."""
        chunked = da.from_array(level, chunks=level.chunks, asarray=False, fancy=False, name=name)
        self: LevelView = super().__new__(
            cls, chunked.dask, chunked.name, chunked.chunks, dtype=level.dtype, meta=chunked._meta
        )
        self._level = level
        return self

    def __getitem__(self, index: Any) -> da.Array:
        """As of any dask array."""
        keys = index if isinstance(index, tuple) else (index,)
        if len(keys) > 3 or not all(isinstance(key, slice) and key.step in (None, 1) for key in keys):
            return super().__getitem__(index)
        spans = [
            range(length)[key]
            for key, length in zip((*keys, *(slice(None),) * 3)[:3], self.shape, strict=True)
        ]
        sizes = tuple(map(len, spans))
        if 0 in sizes or sizes == self.shape:  # the whole stays in chunks
            return super().__getitem__(index)
        slices = tuple(slice(span.start, span.stop) for span in spans)
        name = "-".join((self.name, *(f"{one.start}:{one.stop}" for one in slices)))
        task = {(name, 0, 0, 0): (operator.getitem, self._level, slices)}
        return da.Array(task, name, tuple((size,) for size in sizes), meta=self._meta)

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None, **kwargs: Any
    ) -> NDArray[np.uint8]:
        """All of it, read at once."""
        level: LevelArray = self._level
        return level.__array__(dtype, copy)


def dask_pyramid(
    slide: Slide, *, extra_mpps: tuple[float, ...] = (), unread: Unread | None = None
) -> list[LevelView]:
    """As `lazy_pyramid`, as dask arrays of which a rectangle is one task. Nothing is read until it is computed.

    Parameters
    ----------
    slide : Slide
    extra_mpps : tuple of float
        See `plan_levels`.
    unread : Unread, optional
        For a viewer: a piece that can't be read is noted here and hatched as a damaged place is, which raises SlideError
        without it.
    """
    return [
        LevelView(LevelArray(slide, plan, unread), f"{slide.path.name}-{id(slide)}-{plan.downsample:.6g}")
        for plan in plan_levels(slide, extra_mpps=extra_mpps)
    ]

"""How each contestant of `viewer.py` puts the slide into napari."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from napari import Viewer

OURS, FLOOR = "ours", "floor"
WSI, TIFFSLIDE, PLAIN = "napari-wsi", "tiffslide", "dask+openslide"
PEERS = (WSI, TIFFSLIDE)

_FLOOR_COLUMNS = 3072
_CHUNK_PX = 256

Open = Callable[["Viewer"], None]
"""Adds the slide to a viewer; this is what is timed."""


def installed() -> list[str]:
    """Those that can run here."""
    needs = {OURS: "napari_lrmil", WSI: "napari_wsi", TIFFSLIDE: "tiffslide", PLAIN: "openslide"}
    return [FLOOR, *(name for name, module in needs.items() if importlib.util.find_spec(module))]


def prepare(name: str, path: Path) -> Open:
    """What opens `path` the way of `name`. Only the floor does anything before it is timed."""
    if name == FLOOR:
        levels = in_memory_levels(path)
        return lambda viewer: _add(viewer, levels)
    if name == TIFFSLIDE:
        return lambda viewer: _add(viewer, _tiffslide_levels(path))
    if name == PLAIN:
        return lambda viewer: _add(viewer, _plain_levels(path))
    plugin = {OURS: "napari-lrmil", WSI: "napari-wsi"}[name]
    return lambda viewer: _open_with(viewer, path, plugin)


def in_memory_levels(path: Path) -> list[NDArray[np.uint8]]:
    """Arrays of the shapes of our levels, virtual ones among them; no copy is made when they are sliced.

    Level 0 alone would take 5 GB. So of a level wider than 3,072 px only its middle 3,072 columns are held, and
    the level is a view of them whose rows overlap: to the right of column 3,071 comes column 0 of the row below. It is an
    ordinary strided array, each pixel has an address, and no view is so wide that it shows one twice; so
    reading costs what it costs from 5 GB.
    """
    from napari_lrmil._viewer.layers import SLIDE_KEY, slide_layer
    from napari_lrmil.slide import Slide
    from napari_lrmil.slide.pyramid import lazy_pyramid

    levels, attributes, _ = slide_layer(Slide(path))
    shapes = [level.shape for level in levels]
    with attributes["metadata"][SLIDE_KEY] as slide:
        lazy = {level.shape: level for level in lazy_pyramid(slide, extra_mpps=(2.0,))}
        return [_wide_view(lazy[shape]) for shape in shapes]


def _wide_view(level: Any) -> NDArray[np.uint8]:
    height, width, _ = level.shape
    if width <= _FLOOR_COLUMNS:
        return np.asarray(level)
    extra = -(-width // _FLOOR_COLUMNS)
    held = np.empty((height + extra, _FLOOR_COLUMNS, 3), np.uint8)
    left = (width - _FLOOR_COLUMNS) // 2
    for top in range(0, height, 2048):
        held[top : min(height, top + 2048)] = level[top : top + 2048, left : left + _FLOOR_COLUMNS]
    held[height:] = held[height - extra : height]
    return np.lib.stride_tricks.as_strided(
        held, (height, width, 3), (3 * _FLOOR_COLUMNS, 3, 1), writeable=False
    )


def _open_with(viewer: Viewer, path: Path, plugin: str) -> None:
    viewer.open(str(path), plugin=plugin)


def _add(viewer: Viewer, levels: list[Any]) -> None:
    viewer.add_image(levels, multiscale=True, rgb=True, contrast_limits=(0, 255))


def _tiffslide_levels(path: Path) -> list[Any]:
    import tiffslide

    slide = tiffslide.TiffSlide(path)
    return [slide.zarr_group[str(level)] for level in range(slide.level_count)]


def _plain_levels(path: Path) -> list[Any]:
    """The recipe of many a notebook: a block of dask for each 256 px, read by OpenSlide."""
    import dask.array as da
    import openslide

    slide = openslide.OpenSlide(path)

    def read(level: int, block_info: Any = None) -> NDArray[np.uint8]:
        (top, bottom), (left, right), _ = block_info[None]["array-location"]
        scale = slide.level_downsamples[level]
        corner = (int(left * scale), int(top * scale))
        return np.asarray(slide.read_region(corner, level, (right - left, bottom - top)).convert("RGB"))

    levels = []
    for level, (width, height) in enumerate(slide.level_dimensions):
        chunks = da.core.normalize_chunks((_CHUNK_PX, _CHUNK_PX, 3), (height, width, 3))
        levels.append(
            da.map_blocks(read, level, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
        )
    return levels

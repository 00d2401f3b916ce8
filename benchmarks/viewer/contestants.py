"""How each contestant puts the slide into napari."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from napari import Viewer

OURS, DIRECT, FLOOR = "ours", "ours, no dask", "floor"
WSI, TIFFSLIDE, PLAIN = "napari-wsi", "tiffslide", "dask+openslide"
PEERS = (WSI, TIFFSLIDE)

_FLOOR_COLUMNS = 3072
_CHUNK_PX = 256

Open = Callable[["Viewer"], None]
"""Adds the slide to a viewer; this is what is timed."""


Levels = Sequence[Any]
"""Arrays of NumPy, dask or zarr, or our own: whatever napari can slice."""

LayerData = tuple[Levels, dict[str, object], str]


def installed() -> list[str]:
    """Return those that can run here; peers that aren't installed are left out."""
    peers = {WSI: "napari_wsi", TIFFSLIDE: "tiffslide"}
    return [FLOOR, OURS, DIRECT, *(name for name in PEERS if importlib.util.find_spec(peers[name])), PLAIN]


def prepare(name: str, path: Path) -> Open:
    """Return what opens `path` the way of `name`. Only the floor does something untimed before: it loads its arrays.

    All are opened as a user opens a file, through a reader plugin; those that have none get one here.
    """
    plugin = {OURS: "napari-lrmil", WSI: "napari-wsi"}.get(name)
    if plugin is None:
        plugin = "lrmil-benchmark"
        if name == FLOOR:
            levels = _floor_levels(path)
            _register(plugin, lambda _: (levels, {}))
        else:
            _register(
                plugin, {DIRECT: _direct_levels, TIFFSLIDE: _tiffslide_levels, PLAIN: _plain_levels}[name]
            )
    return lambda viewer: _open_with(viewer, path, plugin)


def _register(plugin: str, read: Callable[[Path], tuple[Levels, dict[str, object]]]) -> None:
    """Make napari read slides by `read`, which gives levels and attributes of the layer."""
    from npe2 import DynamicPlugin

    contributor = DynamicPlugin(plugin)
    contributor.register()

    def read_layers(path: str) -> list[LayerData]:
        levels, attributes = read(Path(path))
        return [
            (levels, {"multiscale": True, "rgb": True, "contrast_limits": (0, 255), **attributes}, "image")
        ]

    def get_reader(path: str) -> Callable[[str], list[LayerData]]:
        return read_layers

    contributor.contribute.reader(filename_patterns=["*.svs"])(get_reader)


def write_floor(path: Path) -> None:
    """Write the floor's pixels beside the slide, so that its process imports no more than napari does.

    Level 0 alone would take 5 GB. So of a level wider than 3,072 px only its middle 3,072 columns are held, and
    the level is a view of them whose rows overlap: to the right of column 3,071 comes column 0 of the row below. It is
    an ordinary strided array, each pixel has an address, and no view is so wide that it shows one twice; so
    showing it costs what it costs from 5 GB.
    """
    from napari_lrmil._viewer.layers import DEFAULT_STUDENT_MPP
    from napari_lrmil.atomic import replacing_folder
    from napari_lrmil.slide import Slide
    from napari_lrmil.slide.pyramid import lazy_pyramid

    folder = _floor_folder(path)
    if folder.exists():
        return
    with Slide(path) as slide, replacing_folder(folder) as unfinished:
        # The levels that our reader shows, virtual ones among them.
        for number, level in enumerate(lazy_pyramid(slide, extra_mpps=(DEFAULT_STUDENT_MPP,))):
            height, width, _ = level.shape
            columns = min(width, _FLOOR_COLUMNS)
            extra = -(-width // columns) if width > columns else 0
            held = np.empty((height + extra, columns, 3), np.uint8)
            left = (width - columns) // 2
            for top in range(0, height, 2048):
                held[top : min(height, top + 2048)] = level[top : top + 2048, left : left + columns]
            held[height:] = held[height - extra : height]
            np.save(unfinished / f"{number}-{height}-{width}.npy", held)


def _floor_levels(path: Path) -> list[NDArray[np.uint8]]:
    levels = []
    for file in sorted(_floor_folder(path).iterdir()):
        held = np.load(file)
        _, height, width = map(int, file.stem.split("-"))
        levels.append(
            np.lib.stride_tricks.as_strided(
                held, (height, width, 3), (held.strides[0], 3, 1), writeable=False
            )
        )
    return levels


def _floor_folder(path: Path) -> Path:
    return path.with_suffix(".floor")


def _direct_levels(path: Path) -> tuple[Levels, dict[str, object]]:
    from napari_lrmil._viewer.layers import DEFAULT_STUDENT_MPP, slide_placement
    from napari_lrmil.slide import Slide
    from napari_lrmil.slide.pyramid import lazy_pyramid

    slide = Slide(path)
    levels = lazy_pyramid(slide, extra_mpps=(DEFAULT_STUDENT_MPP,))
    return list(levels), {"cache": False, **slide_placement(slide)}


def _open_with(viewer: Viewer, path: Path, plugin: str) -> None:
    viewer.open(str(path), plugin=plugin)


def _tiffslide_levels(path: Path) -> tuple[Levels, dict[str, object]]:
    import tiffslide

    slide = tiffslide.TiffSlide(path)
    return [slide.zarr_group[str(level)] for level in range(slide.level_count)], {}


def _plain_levels(path: Path) -> tuple[Levels, dict[str, object]]:
    """Read by the recipe of many a notebook: a block of dask for each 256 px, read by OpenSlide."""
    import dask.array as da
    import openslide

    slide = openslide.OpenSlide(path)

    def read(level: int, block_info: dict[None, dict[str, list[tuple[int, int]]]]) -> NDArray[np.uint8]:
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
    return levels, {}

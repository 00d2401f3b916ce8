"""Slides: geometry, reading, lazy pyramids, tissue and tiles. Knows no model and no window."""

from napari_lrmil.slide.geometry import TileGrid, TileSpec, choose_level, make_tile_grid
from napari_lrmil.slide.reader import Slide
from napari_lrmil.slide.tiles import (
    NestedTiles,
    TileSet,
    find_nested_tiles,
    find_tiles,
    iter_tiles,
    read_tile,
    tile_grid,
)

__all__ = [
    "NestedTiles",
    "Slide",
    "TileGrid",
    "TileSet",
    "TileSpec",
    "choose_level",
    "find_nested_tiles",
    "find_tiles",
    "iter_tiles",
    "make_tile_grid",
    "read_tile",
    "tile_grid",
]

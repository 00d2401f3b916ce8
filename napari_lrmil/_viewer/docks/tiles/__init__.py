"""The dock "LRMIL: tiles": the tiles that count most and least, at higher power, and how to get to them."""

from napari_lrmil._viewer.docks.tiles.widget import GalleryDock

__all__ = ["GalleryDock"]

"""The canvas as the gallery uses it: it goes to a tile, and outlines it. No Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction

MARK_KEY = "lrmil_tile_mark"
"""``layer.metadata`` of the outline: the number of the tile in it."""

_SHARE = 3.0
_DARK, _BRIGHT = "#000000", "#ffd400"


class TileStage:
    """One viewer.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer

    def go_to(self, prediction: SlidePrediction, n: int) -> None:
        """Centre the canvas on a tile, which then fills about a third of it, and outline it."""
        tiles = prediction.tiles
        left, top = tiles.grid.corner_l0_xy(int(tiles.rows[n]), int(tiles.cols[n]))
        mpp_x, mpp_y = prediction.mpp_xy
        corner_um_yx = np.array([top * mpp_y, left * mpp_x])
        size_um_yx = np.array([tiles.grid.tile_l0_xy[1] * mpp_y, tiles.grid.tile_l0_xy[0] * mpp_x])
        camera = self._viewer.scene.camera
        camera.center = tuple((corner_um_yx + size_um_yx / 2).tolist())
        camera.zoom = min(self._viewer.canvas.size) / _SHARE / float(size_um_yx.max())
        self._outline(n, corner_um_yx, size_um_yx)

    def clear(self) -> None:
        """Take the outline away, where there is one."""
        mark = self._mark()
        if mark is not None:
            self._viewer.layers.remove(mark)

    def _outline(self, n: int, corner_um_yx: Any, size_um_yx: Any) -> None:
        """Bright on dark, so that it shows on white glass, on dark nuclei and on any heatmap."""
        width = float(size_um_yx.max()) / 60
        boxes = [_box(corner_um_yx, size_um_yx, width * grown) for grown in (1.5, 0.5)]
        chosen = self._viewer.layers.selection.active
        mark = self._mark()
        if mark is not None:
            self._viewer.layers.remove(mark)
        self._viewer.add_shapes(
            boxes,
            shape_type="rectangle",
            edge_color=[_DARK, _BRIGHT],
            face_color="transparent",
            edge_width=[width, width],
            opacity=1.0,
            name="tile",
            units=("µm", "µm"),
            metadata={MARK_KEY: n},
        ).editable = False
        self._viewer.layers.selection.active = chosen

    def _mark(self) -> Any:
        return next((layer for layer in self._viewer.layers if MARK_KEY in layer.metadata), None)


def _box(corner_yx: Any, size_yx: Any, grown: float) -> Any:
    top, left = corner_yx - grown
    bottom, right = corner_yx + size_yx + grown
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)])

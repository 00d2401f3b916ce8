"""The two napari layers that hold a slide's regions: shapes and points. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_lrmil._viewer.docks.annotations.classes import RGB, UNCLASSED
from napari_lrmil._viewer.docks.annotations.pieces import OUTLINE, Piece, pieces_of
from napari_lrmil._viewer.layers import slide_placement

if TYPE_CHECKING:
    from napari_lrmil.export.annotation import Annotation
    from napari_lrmil.slide import Slide

REGIONS_KEY = "lrmil_regions_of"
"""``layer.metadata`` of a layer of regions: its `Slide`."""

_EDGE_PX, _POINT_PX, _TEXT_PT = 3.0, 12.0, 11
_FACE_ALPHA = 0.12
_FINAL = ("added", "removed", "changed")
_TEXT = {"string": "{label}", "size": _TEXT_PT, "color": "black", "anchor": "upper_left"}

Look = Callable[["Annotation"], tuple[str, RGB]]
"""Label and colour of a region."""


class RegionLayers:
    """Shapes and points of one slide; made when they are first wanted.

    Parameters
    ----------
    viewer : napari.Viewer
    slide : Slide
    on_change : callable
        Called when the user has drawn, moved, pasted or deleted something.
    """

    def __init__(self, viewer: Any, slide: Slide, on_change: Callable[[], None]) -> None:
        self._viewer, self._slide, self._on_change = viewer, slide, on_change
        self._shapes: Any = None
        self._points: Any = None
        self._silent = False
        self._zoom = 0.0

    @property
    def shapes(self) -> Any:
        """The layer of shapes, if it is there."""
        return self._shapes

    @property
    def points(self) -> Any:
        """The layer of points, if it is there."""
        return self._points

    def layers(self) -> list[Any]:
        """Those that are there."""
        return [layer for layer in (self._shapes, self._points) if layer is not None]

    def need_shapes(self) -> Any:
        """The layer of shapes, made where missing."""
        if self._shapes is None:
            self._shapes = self._viewer.add_shapes(
                ndim=2,
                name=f"{self._slide.name} regions",
                features={"region": [], "part": [], "hole": [], "label": []},
                text=_TEXT,
                opacity=1.0,
                metadata={REGIONS_KEY: self._slide},
                **self._placement(),
            )
            self._shapes.current_face_color = (*(each / 255 for each in UNCLASSED), _FACE_ALPHA)
            self._watch(self._shapes)
            self.fit_edges(self._viewer.scene.camera.zoom)
        return self._shapes

    def need_points(self) -> Any:
        """The layer of points, made where missing."""
        if self._points is None:
            self._points = self._viewer.add_points(
                ndim=2,
                name=f"{self._slide.name} points",
                features={"region": [], "part": [], "hole": [], "label": []},
                text=_TEXT,
                size=1.0,
                # The size on the screen is the same at any magnification.
                canvas_size_limits=(_POINT_PX, _POINT_PX),
                border_color="white",
                metadata={REGIONS_KEY: self._slide},
                **self._placement(),
            )
            self._watch(self._points)
        return self._points

    def show(self, annotations: Sequence[Annotation], look: Look) -> None:
        """Draw exactly these."""
        pieces = [(piece, annotation) for annotation in annotations for piece in pieces_of(annotation)]
        drawn = [pair for pair in pieces if pair[0].kind != "point"]
        dots = [pair for pair in pieces if pair[0].kind == "point"]
        self._silent = True
        try:
            if drawn or self._shapes is not None:
                self._show_shapes(drawn, look)
            if dots or self._points is not None:
                self._show_points(dots, look)
        finally:
            self._silent = False

    def read(self) -> list[Piece]:
        """What the layers hold now. The region of something new is empty or that of what it was copied from."""
        pieces: list[Piece] = []
        if self._shapes is not None:
            rows = self._shapes.features.to_dict("records")
            for row, kind, vertices in zip(rows, self._shapes.shape_type, self._shapes.data, strict=True):
                shape = "path" if kind in ("line", "path") else kind
                pieces.append(_piece(row, shape, np.asarray(vertices, np.float64)))
        if self._points is not None:
            rows = self._points.features.to_dict("records")
            for row, vertex in zip(rows, self._points.data, strict=True):
                pieces.append(_piece(row, "point", np.asarray(vertex, np.float64)[None]))
        return pieces

    def label(self, pieces: Sequence[Piece], annotations: Mapping[str, Annotation], look: Look) -> None:
        """Say which region each shape and point belongs to, without touching how they lie.

        Parameters
        ----------
        pieces : sequence of Piece
            As `read` gave them, in its order; a region that isn't in `annotations` stays unlabelled.
        """
        pairs = [(piece, annotations.get(piece.region_id)) for piece in pieces]
        self._silent = True
        try:
            for layer, points in ((self._shapes, False), (self._points, True)):
                mine = [pair for pair in pairs if (pair[0].kind == "point") is points]
                if layer is not None:
                    self._dress(layer, mine, look)
        finally:
            self._silent = False

    def drop(self, places: Sequence[int]) -> None:
        """Take shapes out that are no region: `places` in the order of `read`, shapes first."""
        if self._shapes is not None:
            wanted = [at for at in places if at < self._shapes.nshapes]
            self._silent = True
            try:
                self._shapes.remove(wanted)
            finally:
                self._silent = False

    @property
    def drawing(self) -> bool:
        """Whether a tool that makes something new is in the user's hand."""
        return any(str(layer.mode).startswith("add") for layer in self.layers())

    def place(self) -> None:
        """Put the layers on the slide again: its pixel size may have become known."""
        placement = self._placement()
        for layer in self.layers():
            if tuple(layer.scale) != placement["scale"]:
                layer.scale, layer.units = placement["scale"], placement["units"]
                self._zoom = 0.0

    def set_visible(self, visible: bool) -> None:
        """Show or hide them."""
        for layer in self.layers():
            if layer.visible != visible:
                layer.visible = visible

    def fit_edges(self, zoom: float) -> None:
        """Keep outlines as thick on the screen as they are, at any magnification."""
        layer = self._shapes
        if layer is None or zoom <= 0 or (self._zoom and 0.8 < zoom / self._zoom < 1.25):
            return
        self._zoom = zoom
        width = _EDGE_PX / zoom / float(np.mean(layer.scale))
        self._silent = True
        try:
            layer.edge_width = width
            layer.current_edge_width = width
        finally:
            self._silent = False

    def select(self, region_id: str) -> None:
        """Mark a region's pieces in their layer."""
        for layer in self.layers():
            wanted = {at for at, each in enumerate(layer.features["region"]) if each == region_id}
            layer.selected_data = wanted

    def forget(self, layer: Any) -> bool:
        """The layer was taken out of the window; returns whether it was one of these."""
        # napari hands plugins wrappers of its layers: equal, but not the same object.
        if self._shapes is not None and layer == self._shapes:
            self._shapes, self._zoom = None, 0.0
            return True
        if self._points is not None and layer == self._points:
            self._points = None
            return True
        return False

    def remove(self) -> None:
        """Take the layers out of the window."""
        for layer in self.layers():
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        self._shapes = self._points = None

    def _placement(self) -> dict[str, Any]:
        placement = slide_placement(self._slide)
        # Vertices count from the corner of the first pixel, as the world does: no half pixel here.
        return {"scale": placement["scale"], "units": placement["units"]}

    def _watch(self, layer: Any) -> None:
        layer.events.data.connect(self._data_changed)
        layer.events.features.connect(self._features_changed)

    def _data_changed(self, event: Any) -> None:
        action = getattr(event, "action", None)
        if not self._silent and (action is None or str(getattr(action, "value", action)) in _FINAL):
            self._on_change()

    def _features_changed(self, event: Any = None) -> None:
        if not self._silent:  # pasting says nothing of the data
            self._on_change()

    def _show_shapes(self, pairs: list[tuple[Piece, Annotation]], look: Look) -> None:
        layer = self.need_shapes()
        self._silent = True
        mode = layer.mode
        layer.data = []
        if pairs:
            layer.add(
                [piece.vertices_l0_yx for piece, _ in pairs],
                shape_type=[piece.kind for piece, _ in pairs],
                edge_width=layer.current_edge_width,
            )
        self._dress(layer, list(pairs), look)
        layer.mode = mode

    def _show_points(self, pairs: list[tuple[Piece, Annotation]], look: Look) -> None:
        layer = self.need_points()
        self._silent = True
        mode = layer.mode
        layer.selected_data = set()
        layer.data = np.array([piece.vertices_l0_yx[0] for piece, _ in pairs]).reshape(-1, 2)
        self._dress(layer, list(pairs), look)
        layer.mode = mode

    def _dress(self, layer: Any, pairs: Sequence[tuple[Piece, Annotation | None]], look: Look) -> None:
        looks = [("", UNCLASSED) if annotation is None else look(annotation) for _, annotation in pairs]
        layer.features = _features([piece for piece, _ in pairs], [label for label, _ in looks])
        layer.feature_defaults = dict(_NEW)
        if not pairs:
            return
        face = np.array(
            [
                _rgba(colour, 1.0 if layer is self._points else _FACE_ALPHA if piece.hole == OUTLINE else 0.0)
                for (piece, _), (_, colour) in zip(pairs, looks, strict=True)
            ]
        )
        layer.face_color = face
        if layer is self._shapes:
            layer.edge_color = np.array([_rgba(colour, 1.0) for _, colour in looks])


_NEW: Mapping[str, Any] = {"region": "", "part": 0, "hole": OUTLINE, "label": ""}


def _features(pieces: Sequence[Piece], labels: Sequence[str]) -> dict[str, Any]:
    firsts = [piece.hole == OUTLINE and piece.part == 0 for piece in pieces]
    shown = [label if first else "" for label, first in zip(labels, firsts, strict=True)]
    return {
        "region": np.array([piece.region_id for piece in pieces], dtype=object),
        "part": np.array([piece.part for piece in pieces], dtype=int),
        "hole": np.array([piece.hole for piece in pieces], dtype=int),
        "label": np.array(shown, dtype=object),
    }


def _piece(row: dict[str, Any], kind: Any, vertices: Any) -> Piece:
    region, part, hole = row.get("region"), row.get("part"), row.get("hole")
    known = isinstance(region, str) and region
    # A shape of another kind's features, or of none, has NaN here.
    whole = all(isinstance(each, int | float) and each == each for each in (part, hole))
    if not known or not whole:
        return Piece("", kind, 0, OUTLINE, vertices)
    return Piece(str(region), kind, int(part or 0), int(hole if hole is not None else OUTLINE), vertices)


def _rgba(colour: RGB, alpha: float) -> tuple[float, float, float, float]:
    red, green, blue = colour
    return (red / 255, green / 255, blue / 255, alpha)

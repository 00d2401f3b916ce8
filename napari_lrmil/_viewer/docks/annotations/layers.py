"""The two napari layers that hold a slide's annotations: shapes and points. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil._viewer.docks.annotations.panel import PAN, RGB, UNCLASSED
from napari_lrmil._viewer.docks.annotations.pieces import OUTLINE, Piece, PieceKind, pieces_of
from napari_lrmil._viewer.layers import ANNOTATIONS_KEY, slide_placement

if TYPE_CHECKING:
    from napari_lrmil._viewer.canvas import Canvas
    from napari_lrmil.export.annotation import Annotation
    from napari_lrmil.slide import Slide

MODES = {"rectangle": "add_rectangle", "ellipse": "add_ellipse", "polygon": "add_polygon", "point": "add"}
"""Tools, and the modes of napari's layers that they are."""

_EDGE_PX, _POINT_PX, _TEXT_PT = 3.0, 12.0, 11
_FACE_ALPHA = 0.12
_FINAL = ("added", "removed", "changed")
_TEXT = {"string": "{label}", "size": _TEXT_PT, "color": "black", "anchor": "upper_left"}
_ID = "annotation"  # the column that napari's table of features shows
_NEW: Mapping[str, Any] = {_ID: "", "part": 0, "hole": OUTLINE, "label": ""}

Look = Callable[["Annotation"], tuple[str, RGB]]
"""Label and colour of an annotation."""


class AnnotationLayers:
    """Shapes and points of one slide; made when they are first wanted.

    Parameters
    ----------
    canvas : Canvas
    slide : Slide
    on_edit : callable
        Called when the user has drawn, moved, pasted or deleted something.
    on_tool : callable
        Called when another tool is in the user's hand, by napari's own keys and buttons too.
    """

    def __init__(
        self,
        canvas: Canvas,
        slide: Slide,
        *,
        on_edit: Callable[[], None],
        on_tool: Callable[[], None],
    ) -> None:
        self._canvas, self._slide = canvas, slide
        self._on_edit, self._on_tool = on_edit, on_tool
        self._shapes: Any = None
        self._points: Any = None
        self._own_edit = False
        self._edge_zoom = 0.0

    @property
    def shapes(self) -> Any:
        """The layer of shapes, if it is there."""
        return self._shapes

    @property
    def points(self) -> Any:
        """The layer of points, if it is there."""
        return self._points

    def present(self) -> list[Any]:
        """The layers that are there."""
        return [layer for layer in (self._shapes, self._points) if layer is not None]

    # ---- what they hold

    def show(self, annotations: Sequence[Annotation], look: Look) -> None:
        """Draw exactly these."""
        pairs = [(piece, annotation) for annotation in annotations for piece in pieces_of(annotation)]
        shapes = [pair for pair in pairs if pair[0].kind != "point"]
        points = [pair for pair in pairs if pair[0].kind == "point"]
        if shapes or self._shapes is not None:
            layer = self._need_shapes()
            with self._editing(layer):
                layer.data = []
                if shapes:
                    layer.add(
                        [piece.vertices_l0_yx for piece, _ in shapes],
                        shape_type=[piece.kind for piece, _ in shapes],
                        edge_width=layer.current_edge_width,
                    )
                self._dress(layer, shapes, look)
        if points or self._points is not None:
            layer = self._need_points()
            with self._editing(layer):
                layer.selected_data = set()
                layer.data = np.array([piece.vertices_l0_yx[0] for piece, _ in points]).reshape(-1, 2)
                self._dress(layer, points, look)

    def read(self) -> list[Piece]:
        """What they hold now; the annotation of something new is empty, or that of what it was copied from."""
        pieces: list[Piece] = []
        if self._shapes is not None:
            rows = self._shapes.features.to_dict("records")
            for row, kind, vertices in zip(rows, self._shapes.shape_type, self._shapes.data, strict=True):
                shape: PieceKind = "path" if kind in ("line", "path") else kind
                pieces.append(_piece(row, shape, np.asarray(vertices, np.float64)))
        if self._points is not None:
            rows = self._points.features.to_dict("records")
            for row, vertex in zip(rows, self._points.data, strict=True):
                pieces.append(_piece(row, "point", np.asarray(vertex, np.float64)[None]))
        return pieces

    def label(self, pieces: Sequence[Piece], annotations: Mapping[str, Annotation], look: Look) -> None:
        """Say which annotation each shape and point belongs to, without touching how they lie.

        Parameters
        ----------
        pieces : sequence of Piece
            As `read` gave them, in its order; one whose annotation isn't in `annotations` stays unlabelled.
        annotations : mapping of id to Annotation
        look : callable
        """
        pairs = [(piece, annotations.get(piece.annotation_id)) for piece in pieces]
        for layer in self.present():
            is_points = layer is self._points
            with self._editing(layer):
                self._dress(layer, [pair for pair in pairs if (pair[0].kind == "point") is is_points], look)

    def drop(self, places: Sequence[int]) -> None:
        """Take shapes out that are no annotation: `places` in the order of `read`, shapes first."""
        if self._shapes is not None:
            with self._editing(self._shapes):
                self._shapes.remove([at for at in places if at < self._shapes.nshapes])

    # ---- tools

    def take(self, tool: str) -> None:
        """Take a tool in hand; `PAN` puts it down."""
        if tool == PAN:
            for layer in self.present():
                layer.mode = "pan_zoom"
            return
        layer = self._need_points() if tool == "point" else self._need_shapes()
        self.set_visible(True)
        self._canvas.choose_layer(layer)
        layer.mode = MODES[tool]

    @property
    def tool(self) -> str:
        """The one in the user's hand."""
        chosen = self._canvas.chosen_layer()
        for tool, mode in MODES.items():
            layer = self._points if tool == "point" else self._shapes
            if layer is not None and layer == chosen and str(layer.mode) == mode:
                return tool
        return PAN

    @property
    def drawing(self) -> bool:
        """Whether a tool that makes something new is in the user's hand."""
        return any(str(layer.mode).startswith("add") for layer in self.present())

    # ---- how they lie and look

    def place(self) -> None:
        """Put the layers on the slide again: its pixel size may have become known."""
        placement = self._placement()
        for layer in self.present():
            if tuple(layer.scale) != placement["scale"]:
                layer.scale, layer.units = placement["scale"], placement["units"]
                self._edge_zoom = 0.0

    def set_visible(self, visible: bool) -> None:
        """Show or hide them."""
        for layer in self.present():
            if layer.visible != visible:
                layer.visible = visible

    def fit_edges(self) -> None:
        """Keep outlines as thick on the screen as they are, at any magnification."""
        layer, zoom = self._shapes, self._canvas.zoom
        if layer is None or zoom <= 0 or (self._edge_zoom and 0.8 < zoom / self._edge_zoom < 1.25):
            return
        self._edge_zoom = zoom
        width = _EDGE_PX / zoom / float(np.mean(layer.scale))
        with self._editing(layer):
            layer.edge_width = width
            layer.current_edge_width = width

    def select(self, annotation_id: str) -> None:
        """Mark an annotation's pieces in their layer."""
        for layer in self.present():
            wanted = {at for at, each in enumerate(layer.features[_ID]) if each == annotation_id}
            layer.selected_data = wanted

    # ---- their end

    def forget(self, layer: Any) -> None:
        """The layer was taken out of the window."""
        # napari hands plugins wrappers of its layers: equal, but not the same object.
        if self._shapes is not None and layer == self._shapes:
            self._shapes, self._edge_zoom = None, 0.0
        elif self._points is not None and layer == self._points:
            self._points = None

    def remove(self) -> None:
        """Take the layers out of the window."""
        for layer in self.present():
            self._canvas.remove_layer(layer)
        self._shapes = self._points = None

    # ---- inside

    def _need_shapes(self) -> Any:
        if self._shapes is None:
            self._shapes = self._canvas.add_shapes(**self._attributes("annotations"), opacity=1.0)
            self._shapes.current_face_color = _rgba(UNCLASSED, _FACE_ALPHA)
            self._watch(self._shapes)
            self.fit_edges()
        return self._shapes

    def _need_points(self) -> Any:
        if self._points is None:
            self._points = self._canvas.add_points(
                **self._attributes("points"),
                size=1.0,
                # The size on the screen is the same at any magnification.
                canvas_size_limits=(_POINT_PX, _POINT_PX),
                border_color="white",
            )
            self._watch(self._points)
        return self._points

    def _attributes(self, what: str) -> dict[str, Any]:
        return {
            "ndim": 2,
            "name": f"{self._slide.name} {what}",
            "features": {name: [] for name in _NEW},
            "text": _TEXT,
            "metadata": {ANNOTATIONS_KEY: self._slide},
            **self._placement(),
        }

    def _placement(self) -> dict[str, Any]:
        placement = slide_placement(self._slide)
        # Vertices count from the corner of the first pixel, as the world does: no half pixel here.
        return {"scale": placement["scale"], "units": placement["units"]}

    def _watch(self, layer: Any) -> None:
        layer.events.data.connect(self._data_changed)
        layer.events.features.connect(self._features_changed)
        layer.events.mode.connect(self._mode_changed)

    def _data_changed(self, event: Any) -> None:
        action = getattr(event, "action", None)
        if not self._own_edit and (action is None or str(getattr(action, "value", action)) in _FINAL):
            self._on_edit()

    def _features_changed(self, event: Any = None) -> None:
        if not self._own_edit:  # pasting says nothing of the data
            self._on_edit()

    def _mode_changed(self, event: Any = None) -> None:
        if not self._own_edit:
            self._on_tool()

    @contextmanager
    def _editing(self, layer: Any) -> Iterator[None]:
        """Change a layer from here: it isn't told as the user's doing, and the tool stays in hand."""
        before, mode = self._own_edit, layer.mode
        self._own_edit = True
        try:
            yield
        finally:
            if layer.mode != mode:
                layer.mode = mode
            self._own_edit = before

    def _dress(self, layer: Any, pairs: Sequence[tuple[Piece, Annotation | None]], look: Look) -> None:
        looks = [("", UNCLASSED) if annotation is None else look(annotation) for _, annotation in pairs]
        layer.features = _features([piece for piece, _ in pairs], [label for label, _ in looks])
        layer.feature_defaults = dict(_NEW)
        if not pairs:
            return
        is_points = layer is self._points
        layer.face_color = np.array(
            [
                _rgba(colour, 1.0 if is_points else _FACE_ALPHA if piece.hole == OUTLINE else 0.0)
                for (piece, _), (_, colour) in zip(pairs, looks, strict=True)
            ]
        )
        if not is_points:
            layer.edge_color = np.array([_rgba(colour, 1.0) for _, colour in looks])


def _features(pieces: Sequence[Piece], labels: Sequence[str]) -> dict[str, NDArray[Any]]:
    firsts = [piece.hole == OUTLINE and piece.part == 0 for piece in pieces]
    shown = [label if first else "" for label, first in zip(labels, firsts, strict=True)]
    return {
        _ID: np.array([piece.annotation_id for piece in pieces], dtype=object),
        "part": np.array([piece.part for piece in pieces], dtype=int),
        "hole": np.array([piece.hole for piece in pieces], dtype=int),
        "label": np.array(shown, dtype=object),
    }


def _piece(row: Mapping[str, Any], kind: PieceKind, vertices: NDArray[np.float64]) -> Piece:
    annotation_id, part, hole = row.get(_ID), row.get("part"), row.get("hole")
    known = isinstance(annotation_id, str) and annotation_id
    # A shape of another kind's features, or of none, has NaN here.
    whole = all(isinstance(each, int | float) and each == each for each in (part, hole))
    if not known or not whole:
        return Piece("", kind, 0, OUTLINE, vertices)
    return Piece(
        str(annotation_id), kind, int(part or 0), int(hole if hole is not None else OUTLINE), vertices
    )


def _rgba(colour: RGB, alpha: float) -> tuple[float, float, float, float]:
    red, green, blue = colour
    return (red / 255, green / 255, blue / 255, alpha)

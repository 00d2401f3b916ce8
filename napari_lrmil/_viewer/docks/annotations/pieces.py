"""Annotations as what napari draws, and back. No Qt, no napari.

napari knows no polygon with holes or of several parts, so every outline, hole, line and point is a piece of
its own, and pieces of one annotation carry its id. Coordinates are level-0 pixels, in napari's order (y, x):
napari keeps them in single precision, which at 100,000 px is exact to 0.004 px; µm would not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.export.annotation import Annotation, Ring

PieceKind = Literal["rectangle", "ellipse", "polygon", "path", "point"]

OUTLINE = -1
"""``Piece.hole`` of what isn't a hole."""
ELLIPSE_VERTICES = 128
"""Divisible by 4, so that the outline touches its box; the area is 0.04 % too small."""
_IS_ELLIPSE = "isEllipse"


class Piece(NamedTuple):
    """One shape or point of a layer.

    `vertices_l0_yx` is (N, 2); of an ellipse the four corners of its box, as napari has it.
    """

    region_id: str
    kind: PieceKind
    part: int
    hole: int
    vertices_l0_yx: NDArray[np.float64]

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from the others."""
        return (self.region_id, self.part, self.hole)


def pieces_of(annotation: Annotation) -> list[Piece]:
    """The shapes or points that draw an annotation."""
    if annotation.kind == "points":
        points = [vertex for ring in annotation.rings_l0_xy for vertex in ring]
        return [
            Piece(annotation.id, "point", part, OUTLINE, _flipped((point,)))
            for part, point in enumerate(points)
        ]
    if annotation.kind == "line":
        return [
            Piece(annotation.id, "path", part, OUTLINE, _flipped(ring))
            for part, ring in enumerate(annotation.rings_l0_xy)
        ]
    simple = len(annotation.rings_l0_xy) == 1 and not annotation.holes_l0_xy
    pieces = []
    for part, ring in enumerate(annotation.rings_l0_xy):
        outline = _flipped(ring)
        kind: PieceKind = "polygon"
        if simple and annotation.geometry_extras.get(_IS_ELLIPSE) is True:
            kind, outline = "ellipse", _box(outline)
        elif simple and _is_upright_rectangle(outline):
            kind = "rectangle"
        pieces.append(Piece(annotation.id, kind, part, OUTLINE, outline))
        for hole, inner in enumerate(annotation.holes_l0_xy[part] if annotation.holes_l0_xy else ()):
            pieces.append(Piece(annotation.id, "polygon", part, hole, _flipped(inner)))
    return pieces


def annotation_of(pieces: Sequence[Piece], base: Annotation | None) -> Annotation | None:
    """What pieces of one id are now; all that isn't shape is taken from `base`.

    Returns
    -------
    Annotation or None
        None where nothing with an extent is left.
    """
    if not pieces:
        return None
    ordered = sorted(pieces, key=lambda piece: (piece.part, piece.hole))
    kinds = {piece.kind for piece in ordered}
    extras = dict(base.geometry_extras) if base is not None else {}
    extras.pop(_IS_ELLIPSE, None)
    common = base if base is not None else None
    region_id = ordered[0].region_id
    if kinds == {"point"}:
        rings = (tuple(vertex for piece in ordered for vertex in _ring(piece.vertices_l0_yx)),)
        return _made(common, region_id, "points", rings, (), extras)
    if kinds == {"path"}:
        lines = tuple(ring for piece in ordered if len(ring := _ring(piece.vertices_l0_yx)) >= 2)
        return _made(common, region_id, "line", lines, (), extras) if lines else None
    outlines, holes = [], []
    for outline in (piece for piece in ordered if piece.hole == OUTLINE):
        vertices = outline.vertices_l0_yx
        if outline.kind == "ellipse":
            if len(ordered) == 1 and _is_upright_rectangle(vertices):
                extras[_IS_ELLIPSE] = True
            vertices = _ellipse(vertices)
        ring = _without_repeats(_ring(vertices))
        if len(ring) < 3:
            continue
        inner = [
            found
            for piece in ordered
            if piece.part == outline.part and piece.hole != OUTLINE
            if len(found := _without_repeats(_ring(piece.vertices_l0_yx))) >= 3
        ]
        outlines.append(ring)
        holes.append(tuple(inner))
    if not outlines:
        return None
    return _made(common, region_id, "polygon", tuple(outlines), tuple(holes), extras)


def box_of(annotation: Annotation) -> tuple[float, float, float, float]:
    """Left, top, width, height in level-0 pixels."""
    points = np.array([vertex for ring in annotation.rings_l0_xy for vertex in ring])
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return (float(left), float(top), float(right - left), float(bottom - top))


def area_l0_px2(annotation: Annotation) -> float:
    """Of a polygon, less its holes; 0 for lines and points."""
    if annotation.kind != "polygon":
        return 0.0
    holes = [hole for part in annotation.holes_l0_xy for hole in part]
    return sum(map(_shoelace, annotation.rings_l0_xy)) - sum(map(_shoelace, holes))


def alike(one: Annotation, other: Annotation) -> bool:
    """Whether two annotations say the same, as far as a file keeps coordinates."""
    if (one.kind, one.name, one.class_name) != (other.kind, other.name, other.class_name):
        return False
    first, second = pieces_of(one), pieces_of(other)
    return len(first) == len(second) and all(
        (a.part, a.hole) == (b.part, b.hole)
        and a.vertices_l0_yx.shape == b.vertices_l0_yx.shape
        and np.allclose(a.vertices_l0_yx, b.vertices_l0_yx, rtol=0, atol=0.01)
        for a, b in zip(first, second, strict=True)
    )


def _made(
    base: Annotation | None,
    region_id: str,
    kind: Literal["polygon", "line", "points"],
    rings: tuple[Ring, ...],
    holes: tuple[tuple[Ring, ...], ...],
    extras: dict[str, object],
) -> Annotation:
    if base is None:
        return Annotation(kind, rings, holes, id=region_id, geometry_extras=extras)
    return replace(
        base, kind=kind, rings_l0_xy=rings, holes_l0_xy=holes, id=region_id, geometry_extras=extras
    )


def _flipped(ring: Ring) -> NDArray[np.float64]:
    return np.array(ring, np.float64)[:, ::-1]


def _ring(vertices_l0_yx: NDArray[np.float64]) -> Ring:
    return tuple((float(x), float(y)) for y, x in np.asarray(vertices_l0_yx, np.float64))


def _without_repeats(ring: Ring) -> Ring:
    kept = [vertex for at, vertex in enumerate(ring) if vertex != ring[at - 1]]
    return tuple(kept)


def _box(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    (top, left), (bottom, right) = vertices.min(0), vertices.max(0)
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)])


def _is_upright_rectangle(vertices: NDArray[np.float64]) -> bool:
    if len(vertices) != 4:
        return False
    steps = np.roll(vertices, -1, axis=0) - vertices
    # Single precision: what was upright when drawn may be a few thousandths of a pixel off.
    flat = np.abs(steps) < max(1e-3, 1e-6 * float(np.abs(vertices).max()))
    return bool((flat.sum(1) == 1).all() and (flat[0] != flat[1]).all() and (flat[0] == flat[2]).all())


def _ellipse(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vertices of the ellipse in a parallelogram, as napari may have turned it."""
    centre = box.mean(0)
    half_a, half_b = (box[1] - box[0]) / 2, (box[3] - box[0]) / 2
    angles = np.arange(ELLIPSE_VERTICES) * (2 * math.pi / ELLIPSE_VERTICES)
    cosines, sines = np.round(np.cos(angles), 15), np.round(np.sin(angles), 15)
    ellipse: NDArray[np.float64] = centre + cosines[:, None] * half_a + sines[:, None] * half_b
    return ellipse


def _shoelace(ring: Ring) -> float:
    points = np.array(ring)
    x, y = (points - points[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2

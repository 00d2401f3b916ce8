"""Annotations as the shapes and points that napari draws, and back after the user's edits. No Qt, no napari.

napari knows no polygon with holes or of several parts, so every outline, hole, line and point is a piece of
its own, and pieces of one annotation carry its id. Coordinates are level-0 pixels, in napari's order (y, x):
napari keeps them in single precision, which at 100,000 px is exact to 0.004 px; µm would not be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.export.annotation import Annotation, Ring

PieceKind = Literal["rectangle", "ellipse", "polygon", "path", "point"]
PieceKey = tuple[str, int, int]
"""Id of the annotation, number of its part, number of the part's hole or `OUTLINE`."""

OUTLINE = -1
"""``Piece.hole`` of what isn't a hole."""
ELLIPSE_VERTICES = 128
"""Divisible by 4, so that the outline touches its box; the area is 0.04 % too small."""
_IS_ELLIPSE = "isEllipse"

Drawn = Mapping[PieceKey, tuple[PieceKind, NDArray[np.float32]]]
"""Kind and vertices of each piece as they were drawn last, in napari's single precision."""


class Piece(NamedTuple):
    """One shape or point of a layer.

    `vertices_l0_yx` is (N, 2); of an ellipse the four corners of its box, as napari has it.
    """

    annotation_id: str
    kind: PieceKind
    part: int
    hole: int
    vertices_l0_yx: NDArray[np.float64]

    @property
    def key(self) -> PieceKey:
        """What tells it from the others."""
        return (self.annotation_id, self.part, self.hole)


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
    annotation_id = ordered[0].annotation_id
    if kinds == {"point"}:
        rings = (tuple(vertex for piece in ordered for vertex in _ring(piece.vertices_l0_yx)),)
        return _made(base, annotation_id, "points", rings, (), extras)
    if kinds == {"path"}:
        lines = tuple(ring for piece in ordered if len(ring := _ring(piece.vertices_l0_yx)) >= 2)
        return _made(base, annotation_id, "line", lines, (), extras) if lines else None
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
    return _made(base, annotation_id, "polygon", tuple(outlines), tuple(holes), extras)


class Edits(NamedTuple):
    """The annotations after what the user did in the layers.

    `pieces` are the layers' in their order, each with the annotation it now belongs to; `without_extent` are the
    places in it of shapes that are no annotation, such as a rectangle of a click.
    """

    annotations: dict[str, Annotation]
    pieces: list[Piece]
    without_extent: list[int]
    removed: list[Annotation]
    changed: bool


def as_drawn(pieces: Iterable[Piece]) -> dict[PieceKey, tuple[PieceKind, NDArray[np.float32]]]:
    """What `read_edits` compares with next time."""
    return {piece.key: (piece.kind, piece.vertices_l0_yx.astype(np.float32)) for piece in pieces}


def read_edits(
    annotations: Mapping[str, Annotation],
    drawn: Drawn,
    pieces: Sequence[Piece],
    *,
    make: Callable[[Annotation | None], Annotation],
) -> Edits:
    """Compare annotations with what the layers hold now.

    An annotation that wasn't touched stays the same object, to the last digit: napari rounds what it is given.

    Parameters
    ----------
    annotations : mapping of id to Annotation
    drawn : mapping
        See `as_drawn`. An annotation with no entry isn't in any layer, and is left alone.
    pieces : sequence of Piece
        What the layers hold.
    make : callable
        A new annotation, whose shape doesn't matter, for something drawn (None) or pasted (its original): new id,
        name, class.
    """
    made: dict[str, Annotation] = {}
    assigned, groups = _assign(annotations, drawn, pieces, made, make)
    drawn_keys: dict[str, set[PieceKey]] = {}
    for key in drawn:
        drawn_keys.setdefault(key[0], set()).add(key)
    after: dict[str, Annotation] = {}
    removed: list[Annotation] = []
    for annotation_id, annotation in annotations.items():
        keys, now = drawn_keys.get(annotation_id), groups.get(annotation_id, [])
        if keys is None or _untouched(keys, drawn, now):
            after[annotation_id] = annotation
        elif (rebuilt := annotation_of(now, annotation)) is not None:
            after[annotation_id] = rebuilt
        else:
            removed.append(annotation)
    for annotation_id, base in made.items():
        built = annotation_of(groups[annotation_id], base)
        if built is not None:
            after[annotation_id] = built
    without_extent = [at for at, piece in enumerate(assigned) if piece.annotation_id not in after]
    same = after.keys() == annotations.keys() and all(after[key] is annotations[key] for key in after)
    return Edits(after, assigned, without_extent, removed, not same)


def _assign(
    annotations: Mapping[str, Annotation],
    drawn: Drawn,
    pieces: Sequence[Piece],
    made: dict[str, Annotation],
    make: Callable[[Annotation | None], Annotation],
) -> tuple[list[Piece], dict[str, list[Piece]]]:
    """Give each piece its annotation; new ones are put into `made`. Returns pieces, in order and by annotation."""
    assigned: list[Piece] = []
    groups: dict[str, list[Piece]] = {}
    met: set[PieceKey] = set()
    copy_ids: dict[str, str] = {}
    for piece in pieces:
        original_id = piece.annotation_id
        if original_id not in annotations:
            base = make(None)
            made[base.id] = base
            piece = Piece(base.id, piece.kind, 0, OUTLINE, piece.vertices_l0_yx)
        elif piece.key in met or piece.key not in drawn:  # pasted: pieces of one annotation are one again
            copy_id = copy_ids.get(original_id)
            if copy_id is None or any(each.key[1:] == piece.key[1:] for each in groups[copy_id]):
                base = make(annotations[original_id])
                made[base.id] = base
                copy_id = copy_ids[original_id] = base.id
            piece = piece._replace(annotation_id=copy_id)
        else:
            met.add(piece.key)
        assigned.append(piece)
        groups.setdefault(piece.annotation_id, []).append(piece)
    return assigned, groups


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


def _untouched(keys: set[PieceKey], drawn: Drawn, now: Sequence[Piece]) -> bool:
    if {piece.key for piece in now} != keys:
        return False
    return all(
        drawn[piece.key][0] == piece.kind
        and np.array_equal(drawn[piece.key][1], piece.vertices_l0_yx.astype(np.float32))
        for piece in now
    )


def _made(
    base: Annotation | None,
    annotation_id: str,
    kind: Literal["polygon", "line", "points"],
    rings: tuple[Ring, ...],
    holes: tuple[tuple[Ring, ...], ...],
    extras: dict[str, object],
) -> Annotation:
    if base is None:
        return Annotation(kind, rings, holes, id=annotation_id, geometry_extras=extras)
    return replace(
        base, kind=kind, rings_l0_xy=rings, holes_l0_xy=holes, id=annotation_id, geometry_extras=extras
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

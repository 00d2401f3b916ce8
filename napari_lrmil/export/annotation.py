"""What was drawn on a slide, whatever file it came from."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Vertex = tuple[float, float]
Ring = tuple[Vertex, ...]
Kind = Literal["polygon", "line", "points"]

_LEAST_VERTICES: dict[Kind, int] = {"polygon": 3, "line": 2, "points": 1}


def _new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Annotation:
    """An area, a line or some points drawn on a slide.

    Attributes
    ----------
    kind : {'polygon', 'line', 'points'}
    rings_l0_xy : tuple of tuples of (x, y)
        Level-0 pixels of the whole slide, (0, 0) at the top left corner of the first pixel. Outlines of a
        polygon's parts (the first vertex isn't repeated at the end), or lines, or one tuple with all points.
    holes_l0_xy : tuple of tuples of tuples of (x, y)
        Of each part of a polygon, its holes; empty where there are none at all.
    name, class_name : str, optional
        What the user called it, and its class. QuPath joins the parts of a derived class by ``": "``.
    class_color_rgb : (int, int, int), optional
        0 to 255.
    id : str
        A UUID; QuPath keeps it.
    object_type : str
        'annotation', or 'detection', 'tile', 'cell', ... for what a program found.
    locked : bool
    measurements : mapping of str to float
    properties, geometry_extras, feature_extras : mapping
        Whatever else a GeoJSON file said of the object, of its geometry (plane, isEllipse) and beside both
        (nucleusGeometry): handed back on export.
    notes : tuple of str
        What was odd about it on import, for the user to read. Not part of equality.

    Raises
    ------
    ValueError
        Where a coordinate isn't finite, there are too few vertices or holes that belong to no part.
    """

    kind: Kind
    rings_l0_xy: tuple[Ring, ...]
    holes_l0_xy: tuple[tuple[Ring, ...], ...] = ()
    name: str | None = None
    class_name: str | None = None
    class_color_rgb: tuple[int, int, int] | None = None
    id: str = field(default_factory=_new_id)
    object_type: str = "annotation"
    locked: bool = False
    measurements: Mapping[str, float] = field(default_factory=dict)
    properties: Mapping[str, object] = field(default_factory=dict)
    geometry_extras: Mapping[str, object] = field(default_factory=dict)
    feature_extras: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.rings_l0_xy:
            raise ValueError("an annotation needs at least one ring, line or point")
        if self.holes_l0_xy and (self.kind != "polygon" or len(self.holes_l0_xy) != len(self.rings_l0_xy)):
            raise ValueError("holes belong to the parts of a polygon: give one tuple of holes for each ring")
        holes = self.holes_l0_xy if any(self.holes_l0_xy) else ()
        tidy = {
            "rings_l0_xy": tuple(_checked(ring, self.kind) for ring in self.rings_l0_xy),
            "holes_l0_xy": tuple(tuple(_checked(hole, self.kind) for hole in part) for part in holes),
        }
        for name, value in tidy.items():
            object.__setattr__(self, name, value)


def _checked(ring: Ring, kind: Kind) -> Ring:
    vertices = tuple((float(x), float(y)) for x, y in ring)
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in vertices):
        raise ValueError("a coordinate is not a finite number")
    if kind == "polygon" and len(vertices) > 1 and vertices[0] == vertices[-1]:
        vertices = vertices[:-1]
    if len(vertices) < _LEAST_VERTICES[kind]:
        raise ValueError(f"a {kind} needs {_LEAST_VERTICES[kind]} or more vertices, not {len(vertices)}")
    return vertices

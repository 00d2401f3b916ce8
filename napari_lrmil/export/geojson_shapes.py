"""Geometries of GeoJSON as rings of level-0 vertices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import shapely

from napari_lrmil.export.annotation import Kind, Ring, Vertex
from napari_lrmil.export.errors import GeoJSONError

GEOMETRY_KINDS: dict[str, Kind] = {
    "Point": "points",
    "MultiPoint": "points",
    "LineString": "line",
    "MultiLineString": "line",
    "Polygon": "polygon",
    "MultiPolygon": "polygon",
}


class Shape(NamedTuple):
    kind: Kind
    rings: tuple[Ring, ...]
    holes: tuple[tuple[Ring, ...], ...]
    notes: tuple[str, ...]


def merged(kind: Kind, shapes: list[Shape]) -> Shape:
    same = [shape for shape in shapes if shape.kind == kind]
    rings = tuple(ring for shape in same for ring in shape.rings)
    if kind == "points":
        rings = (tuple(point for ring in rings for point in ring),)
    holes = tuple(part for shape in same for part in shape.holes)
    return Shape(kind, rings, holes, tuple(note for shape in same for note in shape.notes))


def shapes_of(geometry: Any, where: str, offset: Vertex, *, check: bool, depth: int) -> list[Shape]:
    if not isinstance(geometry, Mapping):
        raise GeoJSONError(f"{where}: its geometry is not an object")
    name = geometry.get("type")
    if name == "GeometryCollection":
        members = geometry.get("geometries")
        if not isinstance(members, list) or depth > 50:
            raise GeoJSONError(f"{where}: a GeometryCollection without a readable list of geometries")
        return [
            shape
            for member in members
            for shape in shapes_of(member, where, offset, check=check, depth=depth + 1)
        ]
    if not isinstance(name, str) or name not in GEOMETRY_KINDS:
        raise GeoJSONError(f"{where}: unknown geometry {str(name)[:40]!r}")
    coordinates = geometry.get("coordinates")
    if not isinstance(coordinates, list):
        raise GeoJSONError(f"{where}: its {name} has no coordinates")
    if not coordinates:
        return []
    kind = GEOMETRY_KINDS[name]
    if kind == "points":
        points = coordinates if name == "MultiPoint" else [coordinates]
        return [Shape(kind, (_ring(points, where, offset),), (), ())]
    parts = coordinates if name.startswith("Multi") else [coordinates]
    if kind == "line":
        return [Shape(kind, tuple(_ring(part, where, offset) for part in parts), (), ())]
    return [_polygon(part, where, offset, check) for part in parts if part]


def _polygon(part: Any, where: str, offset: Vertex, check: bool) -> Shape:
    if not isinstance(part, list):
        raise GeoJSONError(f"{where}: a polygon without rings")
    rings = [_ring(ring, where, offset) for ring in part]
    notes = []
    if any(ring and ring[0] != ring[-1] for ring in rings):
        notes.append("An outline was not closed; it is now.")
    if check and all(len(ring) > 3 for ring in rings):
        outline = shapely.Polygon(rings[0], rings[1:])
        if not outline.is_valid:
            reason = shapely.is_valid_reason(outline).split("[")[0].lower()
            notes.append(f"The outline is odd ({reason}); it was kept as it is. Check its area before use.")
    return Shape("polygon", (rings[0],), (tuple(rings[1:]),), tuple(notes))


def _ring(values: Any, where: str, offset: Vertex) -> Ring:
    if not isinstance(values, list):
        raise GeoJSONError(f"{where}: a list of coordinates was expected, found {str(values)[:40]!r}")
    vertices = []
    for value in values:
        if not isinstance(value, list) or len(value) < 2:
            raise GeoJSONError(f"{where}: {str(value)[:40]!r} is not a pair of coordinates")
        x, y = value[0], value[1]
        if type(x) not in (int, float) or type(y) not in (int, float):
            raise GeoJSONError(f"{where}: {str(value)[:40]!r} is not a pair of numbers")
        if abs(x) > 1e12 or abs(y) > 1e12 or not (math.isfinite(x) and math.isfinite(y)):
            raise GeoJSONError(f"{where}: the coordinate {str(value)[:40]} is no place on a slide")
        vertices.append((float(x) + offset[0], float(y) + offset[1]))
    return tuple(vertices)


def moved(geometry: Mapping[str, Any], offset: Vertex) -> dict[str, Any]:
    """A geometry as it is, `offset` added to each of its coordinates."""

    def shift(value: Any) -> Any:
        if isinstance(value, list) and len(value) >= 2 and type(value[0]) in (int, float):
            return [round(value[0] + offset[0], 3), round(value[1] + offset[1], 3), *value[2:]]
        return [shift(item) for item in value] if isinstance(value, list) else value

    return {key: shift(value) if key == "coordinates" else value for key, value in geometry.items()}

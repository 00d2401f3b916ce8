"""GeoJSON of QuPath 0.2 to 0.6, and of others, into annotations."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from napari_lrmil.export.annotation import Annotation, Vertex
from napari_lrmil.export.errors import GeoJSONError
from napari_lrmil.export.geojson_shapes import GEOMETRY_KINDS, merged, moved, shapes_of

_log = logging.getLogger(__name__)

# QuPath 0.2 kept the type of an object in its id.
_LEGACY_TYPES = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathTileObject": "tile",
    "PathCellObject": "cell",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
_KNOWN_PROPERTIES = {
    "objectType",
    "object_type",
    "name",
    "classification",
    "isLocked",
    "measurements",
    "childObjects",
    "children",
}


def annotations_of(
    document: Any, offset_l0_xy: Vertex, object_types: Collection[str] | None
) -> list[Annotation]:
    """See `napari_lrmil.export.geojson.annotations_from_geojson`."""
    found: list[Annotation] = []
    try:
        for where, feature in _features(document):
            for one_where, one in _with_children(where, feature, 0):
                found += _annotations_of_feature(one, one_where, offset_l0_xy, object_types)
    except RecursionError as error:
        raise GeoJSONError("this is no GeoJSON of annotations: it is nested too deeply") from error
    return found


def _features(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(document, Mapping) and document.get("type") == "FeatureCollection":
        listed = document.get("features")
        if not isinstance(listed, list):
            raise GeoJSONError("this FeatureCollection has no list of features")
    elif isinstance(document, list):
        listed = document
    elif isinstance(document, Mapping):
        listed = [document]
    else:
        raise GeoJSONError("this is JSON, but not GeoJSON: it holds neither an object nor a list of features")
    for number, item in enumerate(listed, start=1):
        where = f"feature {number}"
        if not isinstance(item, Mapping):
            raise GeoJSONError(f"{where} is not a GeoJSON object")
        kind = item.get("type")
        if kind == "Feature":
            yield where, item
        elif isinstance(kind, str) and (kind in GEOMETRY_KINDS or kind == "GeometryCollection"):
            yield where, {"type": "Feature", "geometry": item}
        else:
            raise GeoJSONError(
                f"this is JSON, but not GeoJSON that can be read: {where} has the type {str(kind)[:40]!r}, "
                "not 'Feature' or a geometry"
            )


def _with_children(
    where: str, feature: Mapping[str, Any], depth: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield where, feature
    properties = feature.get("properties")
    if not isinstance(properties, Mapping):
        return
    children = properties.get("childObjects", properties.get("children"))
    if isinstance(children, list) and depth < 50:
        for number, child in enumerate(children, start=1):
            if isinstance(child, Mapping):
                yield from _with_children(f"{where}, child {number}", child, depth + 1)


def _annotations_of_feature(
    feature: Mapping[str, Any],
    where: str,
    offset: Vertex,
    object_types: Collection[str] | None,
) -> list[Annotation]:
    properties = feature.get("properties") or {}
    if not isinstance(properties, Mapping):
        raise GeoJSONError(f"{where}: its properties are not an object")
    given_id = feature.get("id")
    object_type = properties.get("objectType", properties.get("object_type"))
    if object_type is None and properties.get("type") in _LEGACY_TYPES.values():
        object_type = properties["type"]
    if not isinstance(object_type, str):
        object_type = _LEGACY_TYPES.get(str(given_id), "annotation")
    object_type = _LEGACY_TYPES.get(object_type, object_type)
    if object_type == "root" or (object_types is not None and object_type not in object_types):
        return []
    geometry = feature.get("geometry")
    if geometry is None:
        _log.warning("%s has no shape and was left out", where)
        return []
    shapes = shapes_of(geometry, where, offset, check=object_type == "annotation", depth=0)
    if not shapes:
        _log.warning("%s has an empty shape and was left out", where)
        return []
    class_name, color = _class_of(properties.get("classification"))
    name = properties.get("name")
    by_kind = [merged(kind, shapes) for kind in dict.fromkeys(shape.kind for shape in shapes)]
    made = []
    for number, shape in enumerate(by_kind):
        notes = shape.notes
        if len(by_kind) > 1:
            notes = (*notes, "One object of unlike shapes became one annotation a kind of shape.")
        keeps_id = number == 0 and given_id is not None and str(given_id) not in _LEGACY_TYPES
        try:
            annotation = Annotation(
                kind=shape.kind,
                rings_l0_xy=shape.rings,
                holes_l0_xy=shape.holes,
                name=None if name is None else str(name),
                class_name=class_name,
                class_color_rgb=color,
                id=str(given_id) if keeps_id else str(uuid.uuid4()),
                object_type=object_type,
                locked=properties.get("isLocked") is True,
                measurements=_measurements_of(properties.get("measurements")),
                properties=_strict_items(properties, _KNOWN_PROPERTIES),
                geometry_extras=_strict_items(geometry, {"type", "coordinates", "geometries"}),
                feature_extras=_feature_extras(feature, offset),
                notes=notes,
            )
        except ValueError as error:
            raise GeoJSONError(f"{where}: {error}") from error
        made.append(annotation)
    return made


def _class_of(value: Any) -> tuple[str | None, tuple[int, int, int] | None]:
    """Name and colour of a class: an object since 0.2 (colorRGB until 0.3), or a name alone."""
    if isinstance(value, str):
        return value, None
    if not isinstance(value, Mapping):
        return None, None
    name = value.get("name")
    if not isinstance(name, str):
        names = value.get("names")
        # A class derived from others; QuPath shows it so.
        name = ": ".join(str(part) for part in names) if isinstance(names, list) and names else None
    color, packed = value.get("color"), value.get("colorRGB")
    if isinstance(color, list) and len(color) >= 3 and all(type(part) is int for part in color):
        red, green, blue = (min(255, max(0, part)) for part in color[:3])
        return name, (red, green, blue)
    if type(packed) is int:
        return name, ((packed >> 16) & 255, (packed >> 8) & 255, packed & 255)
    return name, None


def _measurements_of(value: Any) -> dict[str, float]:
    """An object since QuPath 0.4, a list of names and values before. NaN, which QuPath writes, is left out."""
    if isinstance(value, list):
        value = {
            item["name"]: item.get("value") for item in value if isinstance(item, Mapping) and "name" in item
        }
    if not isinstance(value, Mapping):
        return {}
    return {
        str(name): float(number)
        for name, number in value.items()
        if type(number) in (int, float) and abs(number) < 1e300
    }


def _feature_extras(feature: Mapping[str, Any], offset: Vertex) -> dict[str, Any]:
    extras = _strict_items(feature, {"type", "id", "geometry", "properties"})
    if isinstance(extras.get("nucleusGeometry"), Mapping):
        extras["nucleusGeometry"] = moved(extras["nucleusGeometry"], offset)
    return extras


def _strict_items(value: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    return {key: _strict(item) for key, item in value.items() if key not in known}


def _strict(value: Any) -> Any:
    """NaN and infinity as null: QuPath writes them, but they aren't JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return value

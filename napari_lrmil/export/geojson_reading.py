"""GeoJSON of QuPath 0.2 to 0.6, and of others, into annotations: the file, its features, their shapes."""

from __future__ import annotations

import gzip
import json
import logging
import math
import re
import uuid
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import shapely

from napari_lrmil.errors import refuse_pipe
from napari_lrmil.export.annotation import Annotation, Kind, Ring, Vertex
from napari_lrmil.export.errors import GeoJSONError

MAX_FILE_BYTES = 512 * 2**20
_GEOMETRY_KINDS: dict[str, Kind] = {
    "Point": "points",
    "MultiPoint": "points",
    "LineString": "line",
    "MultiLineString": "line",
    "Polygon": "polygon",
    "MultiPolygon": "polygon",
}
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


def read_geojson(path: Path, max_bytes: int) -> object:
    """The JSON value of a file, plain or within .gz or .zip.

    Raises
    ------
    GeoJSONError
    """
    try:
        refuse_pipe(path)
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.lower().endswith((".geojson", ".json"))]
                if len(names) != 1:
                    raise GeoJSONError(
                        f"{path.name} holds {len(names)} GeoJSON files instead of one. Unpack it, and open one."
                    )
                with archive.open(names[0]) as file:
                    data = _at_most(file, max_bytes, path.name)
        elif path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                data = _at_most(file, max_bytes, path.name)
        else:
            with path.open("rb") as file:
                data = _at_most(file, max_bytes, path.name)
    except OSError as error:
        raise GeoJSONError(f"{path.name} can't be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise GeoJSONError(f"{path.name} can't be unpacked: {error}") from error
    return parse_geojson(data)


def _at_most(file: IO[bytes] | gzip.GzipFile, max_bytes: int, name: str) -> bytes:
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise GeoJSONError(
            f"{name} holds more than {max_bytes / 2**20:.0f} MiB. Export fewer objects, such as "
            "the annotations without the detections."
        )
    return data


def parse_geojson(data: str | bytes) -> object:
    """The JSON value of a text.

    Raises
    ------
    GeoJSONError
    """
    try:
        document: object = json.loads(data)
    except UnicodeDecodeError as error:
        raise GeoJSONError("this is not JSON: it isn't UTF-8 text. Export it from QuPath again.") from error
    except json.JSONDecodeError as error:
        raise GeoJSONError(
            f"this is not JSON: line {error.lineno}, column {error.colno}: {error.msg}. A file cut short "
            "says so too: export it again."
        ) from error
    except RecursionError as error:
        raise GeoJSONError("this is no GeoJSON of annotations: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise GeoJSONError(f"this is not JSON that can be read: {error}") from error
    # JSON can spell half a character, which no file can hold again.
    try:
        return _whole_characters(document) if _has_escaped_halves(data) else document
    except RecursionError as error:
        raise GeoJSONError("this is no GeoJSON of annotations: it is nested too deeply") from error


def _has_escaped_halves(data: str | bytes) -> bool:
    if isinstance(data, str):
        return "\\ud" in data or "\\uD" in data
    # The json module decodes halves that UTF-8 forbids, too.
    return b"\\ud" in data or b"\\uD" in data or re.search(rb"\xed[\xa0-\xbf]", data) is not None


def _whole_characters(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    return [_whole_characters(item) for item in value] if isinstance(value, list) else value


def annotations_of(
    document: object,
    offset_l0_xy: Vertex,
    object_types: Collection[str] | None,
    left_out: Callable[[str], None] | None,
) -> list[Annotation]:
    """See `napari_lrmil.export.geojson.annotations_from_geojson`."""
    left_out = left_out or _log_left_out
    found: list[Annotation] = []
    wrong: list[str] = []
    n_read = 0
    for where, item in _items(document):
        try:
            features = list(_with_children(where, _feature(where, item), 0))
        except GeoJSONError as error:
            wrong.append(str(error))
            continue
        for one_where, one in features:
            try:
                found += _annotations_of_feature(one, one_where, offset_l0_xy, object_types, left_out)
            except GeoJSONError as error:
                wrong.append(str(error))
            except RecursionError:
                wrong.append(f"{one_where} is nested too deeply")
            else:
                n_read += 1
    if wrong and not n_read:
        more = f"; {len(wrong) - 1:,} more features can't be read either" if len(wrong) > 1 else ""
        raise GeoJSONError(wrong[0] + more)
    for text in wrong:
        left_out(text)
    return found


def _log_left_out(text: str) -> None:
    _log.warning("left out: %s", text)


def _items(document: object) -> Iterator[tuple[str, object]]:
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
        yield f"feature {number}", item


def _feature(where: str, item: object) -> Mapping[str, object]:
    if not isinstance(item, Mapping):
        raise GeoJSONError(f"{where} is not a GeoJSON object")
    kind = item.get("type")
    if kind == "Feature":
        return item
    if isinstance(kind, str) and (kind in _GEOMETRY_KINDS or kind == "GeometryCollection"):
        return {"type": "Feature", "geometry": item}
    raise GeoJSONError(
        f"this is JSON, but not GeoJSON that can be read: {where} has the type {str(kind)[:40]!r}, not 'Feature' or a "
        "geometry"
    )


def _with_children(
    where: str, feature: Mapping[str, object], depth: int
) -> Iterator[tuple[str, Mapping[str, object]]]:
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
    feature: Mapping[str, object],
    where: str,
    offset: Vertex,
    object_types: Collection[str] | None,
    left_out: Callable[[str], None],
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
        left_out(f"{where} has no shape")
        return []
    shapes = _shapes_of(geometry, where, offset, check=object_type == "annotation", depth=0)
    if not shapes:
        left_out(f"{where} has an empty shape")
        return []
    class_name, color = _class_of(properties.get("classification"))
    name = properties.get("name")
    by_kind = [_merged(kind, shapes) for kind in dict.fromkeys(shape.kind for shape in shapes)]
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


def _class_of(value: object) -> tuple[str | None, tuple[int, int, int] | None]:
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


def _measurements_of(value: object) -> dict[str, float]:
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


def _feature_extras(feature: Mapping[str, object], offset: Vertex) -> dict[str, object]:
    extras = _strict_items(feature, {"type", "id", "geometry", "properties"})
    nucleus = extras.get("nucleusGeometry")
    if isinstance(nucleus, Mapping):
        extras["nucleusGeometry"] = moved(nucleus, offset)
    return extras


def _strict_items(value: object, known: set[str]) -> dict[str, object]:
    """What an object holds beside the known keys, to be handed back on export."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {key: _strict(item) for key, item in items if key not in known}


def _strict(value: object) -> object:
    """NaN and infinity as null: QuPath writes them, but they aren't JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return value


class _Shape(NamedTuple):
    kind: Kind
    rings: tuple[Ring, ...]
    holes: tuple[tuple[Ring, ...], ...]
    notes: tuple[str, ...]


def _merged(kind: Kind, shapes: list[_Shape]) -> _Shape:
    same = [shape for shape in shapes if shape.kind == kind]
    rings = tuple(ring for shape in same for ring in shape.rings)
    if kind == "points":
        rings = (tuple(point for ring in rings for point in ring),)
    holes = tuple(part for shape in same for part in shape.holes)
    return _Shape(kind, rings, holes, tuple(note for shape in same for note in shape.notes))


def _shapes_of(geometry: object, where: str, offset: Vertex, *, check: bool, depth: int) -> list[_Shape]:
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
            for shape in _shapes_of(member, where, offset, check=check, depth=depth + 1)
        ]
    if not isinstance(name, str) or name not in _GEOMETRY_KINDS:
        raise GeoJSONError(f"{where}: unknown geometry {str(name)[:40]!r}")
    coordinates = geometry.get("coordinates")
    if not isinstance(coordinates, list):
        raise GeoJSONError(f"{where}: its {name} has no coordinates")
    if not coordinates:
        return []
    kind = _GEOMETRY_KINDS[name]
    if kind == "points":
        points = coordinates if name == "MultiPoint" else [coordinates]
        return [_Shape(kind, (_ring(points, where, offset),), (), ())]
    parts = coordinates if name.startswith("Multi") else [coordinates]
    if kind == "line":
        return [_Shape(kind, tuple(_ring(part, where, offset) for part in parts), (), ())]
    return [_polygon(part, where, offset, check) for part in parts if part]


def _polygon(part: object, where: str, offset: Vertex, check: bool) -> _Shape:
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
    return _Shape("polygon", (rings[0],), (tuple(rings[1:]),), tuple(notes))


def _ring(values: object, where: str, offset: Vertex) -> Ring:
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


def moved(geometry: Mapping[str, object], offset: Vertex) -> dict[str, object]:
    """A geometry as it is, `offset` added to each of its coordinates."""

    def shift(value: object) -> object:
        if isinstance(value, list) and len(value) >= 2 and type(value[0]) in (int, float):
            return [round(value[0] + offset[0], 3), round(value[1] + offset[1], 3), *value[2:]]
        return [shift(item) for item in value] if isinstance(value, list) else value

    return {key: shift(value) if key == "coordinates" else value for key, value in geometry.items()}

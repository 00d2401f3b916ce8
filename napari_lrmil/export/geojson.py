"""Annotations and heatmaps as GeoJSON, the way QuPath writes and reads it.

QuPath counts from the top left corner of the image *as it shows it*. Where its OpenSlide reader opens a
slide that states bounds (MIRAX, Leica SCN, ...), it shows only the area within them, so its (0, 0) is our
(bounds x, bounds y). Started with ``--no-crop`` it shows the whole slide, and both frames are one. Every
function here takes the bounds and says by `cropped` which of the two is meant.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil import __version__
from napari_lrmil.atomic import write_text
from napari_lrmil.export.annotation import Annotation, Ring, Vertex
from napari_lrmil.export.geojson_reading import (
    MAX_FILE_BYTES,
    annotations_of,
    moved,
    parse_geojson,
    read_geojson,
)
from napari_lrmil.wording import slide_warnings, status_of

if TYPE_CHECKING:  # predict loads torch
    from napari_lrmil.predict import SlidePrediction

Bounds = tuple[int, int, int, int]

DECIMALS = 3
"""Of a coordinate, in level-0 pixels. QuPath itself keeps two."""

_TILE_NAMESPACE = uuid.UUID("6f0b6f3e-5d0c-5d0e-9a63-3b0f2a1c7d11")


def annotations_to_geojson(
    annotations: Sequence[Annotation], *, bounds_l0_xywh: Bounds, cropped: bool = True
) -> dict[str, object]:
    """A FeatureCollection that QuPath imports by drag and drop.

    Parameters
    ----------
    annotations : sequence of Annotation
    bounds_l0_xywh : (int, int, int, int)
        `Slide.bounds_l0_xywh`.
    cropped : bool
        Whether QuPath shows the slide cropped to these bounds (its default) or whole (``--no-crop``).

    Returns
    -------
    dict
        Ready for `json.dumps`; coordinates in QuPath's frame, to a thousandth of a pixel.
    """
    offset = _offset(bounds_l0_xywh, cropped)
    features = [_feature(annotation, offset) for annotation in annotations]
    return _collection(features, bounds_l0_xywh, cropped, {"version": __version__})


def annotations_from_geojson(
    data: object,
    *,
    bounds_l0_xywh: Bounds,
    cropped: bool = True,
    object_types: Collection[str] | None = None,
    left_out: Callable[[str], None] | None = None,
) -> list[Annotation]:
    """Annotations out of GeoJSON: a FeatureCollection, a Feature, a list of Features, or bare geometries.

    Child objects come out beside their parents. A collection of unlike shapes becomes one annotation a
    kind. Unclosed rings are closed and self-intersections kept; both are said in `Annotation.notes`. A feature
    that can't be read is left out, the others are not.

    Parameters
    ----------
    data : str, bytes, dict or list
        The text of a file, or the same already parsed.
    bounds_l0_xywh : (int, int, int, int)
        `Slide.bounds_l0_xywh`.
    cropped : bool
        Whether the file counts from the corner of these bounds, as QuPath does by default.
    object_types : collection of str, optional
        Keep these alone, such as ``{"annotation"}``; a file of QuPath can hold half a million cells.
    left_out : callable, optional
        Called with each feature that was left out, and why: "feature 2: ...". Default: the log.

    Raises
    ------
    GeoJSONError
        Where it is not JSON, not GeoJSON, or no feature in it can be read.
    """
    document = parse_geojson(data) if isinstance(data, str | bytes) else data
    return annotations_of(document, _offset(bounds_l0_xywh, cropped), object_types, left_out)


def write_annotations(
    path: str | Path, annotations: Sequence[Annotation], *, bounds_l0_xywh: Bounds, cropped: bool = True
) -> Path:
    """`annotations_to_geojson` as a file, whole or not at all."""
    return _write(path, annotations_to_geojson(annotations, bounds_l0_xywh=bounds_l0_xywh, cropped=cropped))


def read_annotations(
    path: str | Path,
    *,
    bounds_l0_xywh: Bounds,
    cropped: bool = True,
    object_types: Collection[str] | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    left_out: Callable[[str], None] | None = None,
) -> list[Annotation]:
    """`annotations_from_geojson` of a file: ``.geojson``, ``.json``, or either within ``.zip`` or ``.gz``.

    Raises
    ------
    GeoJSONError
        As there, and where the file can't be opened or holds more than `max_bytes` once unpacked.
    """
    document = read_geojson(Path(path), max_bytes)
    return annotations_of(document, _offset(bounds_l0_xywh, cropped), object_types, left_out)


def heatmap_to_geojson(
    prediction: SlidePrediction,
    *,
    bounds_l0_xywh: Bounds,
    cropped: bool = True,
    top_fraction: float = 1.0,
) -> dict[str, object]:
    """The tiles that were read as QuPath detections with measurements, highest attention first.

    Of a model without attention: those first that speak most for the class that is called.

    In QuPath, Measure > Show measurement maps colours them.

    Parameters
    ----------
    prediction : SlidePrediction
    bounds_l0_xywh, cropped
        See `annotations_to_geojson`.
    top_fraction : float
        Of the tiles, in this order; above 0, at most 1. At least one tile is kept.

    Returns
    -------
    dict
        Measurements of a tile: attention relative to uniform (1: as much as any other), attention score
        (they sum to 1 over the slide), and by class the exact change of its probability that the tile
        makes, p(all tiles) - p(all but this one), the same in log-odds, and the log-odds of the tile alone.

    Raises
    ------
    ValueError
        Where `top_fraction` lies outside (0, 1].
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction must lie above 0 and not above 1, got {top_fraction}")
    tiles, scores = prediction.tiles, prediction.attention_scores
    weight = prediction.log_odds_contributions[:, prediction.called_index] if scores is None else scores
    x0, y0 = _offset(bounds_l0_xywh, cropped)
    kept = np.argsort(-weight, kind="stable")[: max(1, math.ceil(top_fraction * len(tiles)))]
    contributions = prediction.class_contributions
    features: list[dict[str, object]] = []
    for index in kept.tolist():
        row, col = int(tiles.rows[index]), int(tiles.cols[index])
        left, top = tiles.grid.corner_l0_xy(row, col)
        right, bottom = tiles.grid.corner_l0_xy(row + 1, col + 1)
        measurements: dict[str, float] = {}
        if scores is not None:
            measurements["Attention relative to uniform"] = float(scores[index] * len(tiles))
            measurements["Attention score"] = float(scores[index])
        if prediction.class_attention is not None:
            for number, name in enumerate(prediction.class_names):
                measurements[f"Attention score for {name}"] = float(prediction.class_attention[number, index])
        for number, name in enumerate(prediction.class_names):
            measurements[f"Contribution to p({name})"] = float(contributions[index, number])
            measurements[f"Contribution to log-odds({name})"] = float(
                prediction.log_odds_contributions[index, number]
            )
            measurements[f"Log-odds({name}) alone"] = float(prediction.log_odds_alone[index, number])
        place = f"{prediction.slide_fingerprint}/{prediction.bundle_sha256}/{row}/{col}"
        features.append(
            {
                "type": "Feature",
                # The same tile of the same slide and bundle keeps its id, so files can be compared.
                "id": str(uuid.uuid5(_TILE_NAMESPACE, place)),
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [
                        _closed(((left, top), (right, top), (right, bottom), (left, bottom)), (x0, y0))
                    ],
                },
                "properties": {"objectType": "detection", "measurements": measurements},
            }
        )
    made_by: dict[str, object] = {
        "version": prediction.version,
        "bundle_sha256": prediction.bundle_sha256,
        "status": [str(each) for each in status_of(prediction)],
        "warnings": list(slide_warnings(prediction)),
    }
    return _collection(features, bounds_l0_xywh, cropped, made_by)


def write_heatmap_geojson(
    path: str | Path,
    prediction: SlidePrediction,
    *,
    bounds_l0_xywh: Bounds,
    cropped: bool = True,
    top_fraction: float = 1.0,
) -> Path:
    """`heatmap_to_geojson` as a file, whole or not at all."""
    document = heatmap_to_geojson(
        prediction, bounds_l0_xywh=bounds_l0_xywh, cropped=cropped, top_fraction=top_fraction
    )
    return _write(path, document)


def _write(path: str | Path, document: dict[str, object]) -> Path:
    path = Path(path)
    write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _offset(bounds_l0_xywh: Bounds, cropped: bool) -> Vertex:
    """Where QuPath's (0, 0) lies in our frame."""
    return (float(bounds_l0_xywh[0]), float(bounds_l0_xywh[1])) if cropped else (0.0, 0.0)


def _collection(
    features: list[dict[str, object]], bounds_l0_xywh: Bounds, cropped: bool, made_by: Mapping[str, object]
) -> dict[str, object]:
    return {
        "type": "FeatureCollection",
        "features": features,
        # A foreign member, as RFC 7946 allows: QuPath passes over it, a reader of the file is told its frame.
        "napari_lrmil": {
            **made_by,
            "origin_l0_xy": list(_offset(bounds_l0_xywh, cropped)),
            "unit": "level-0 pixel",
        },
    }


def _feature(annotation: Annotation, offset: Vertex) -> dict[str, object]:
    # QuPath reads a present null as text and fails, so what is absent stays out altogether.
    properties: dict[str, object] = {"objectType": annotation.object_type}
    if annotation.name is not None:
        properties["name"] = annotation.name
    if annotation.class_name is not None:
        classification: dict[str, object] = {"name": annotation.class_name}
        if annotation.class_color_rgb is not None:
            classification["color"] = list(annotation.class_color_rgb)
        properties["classification"] = classification
    if annotation.locked:
        properties["isLocked"] = True
    if annotation.measurements:
        properties["measurements"] = dict(annotation.measurements)
    properties |= annotation.properties
    geometry = _geometry(annotation, offset) | dict(annotation.geometry_extras)
    extras = dict(annotation.feature_extras)
    nucleus = extras.get("nucleusGeometry")
    if isinstance(nucleus, Mapping):
        extras["nucleusGeometry"] = moved(nucleus, (-offset[0], -offset[1]))
    return {
        "type": "Feature",
        "id": annotation.id,
        "geometry": geometry,
        "properties": properties,
        **extras,
    }


def _geometry(annotation: Annotation, offset: Vertex) -> dict[str, object]:
    rings = annotation.rings_l0_xy
    parts: list[object]
    if annotation.kind == "polygon":
        holes = annotation.holes_l0_xy or ((),) * len(rings)
        parts = [
            [_closed(ring, offset) for ring in (outline, *inner)]
            for outline, inner in zip(rings, holes, strict=True)
        ]
        single = "Polygon"
    elif annotation.kind == "line":
        parts, single = [_shifted(ring, offset) for ring in rings], "LineString"
    else:
        parts, single = [point for ring in rings for point in _shifted(ring, offset)], "Point"
    if len(parts) == 1:
        return {"type": single, "coordinates": parts[0]}
    return {"type": f"Multi{single}", "coordinates": parts}


def _shifted(ring: Ring, offset: Vertex) -> list[list[float]]:
    return [[round(x - offset[0], DECIMALS), round(y - offset[1], DECIMALS)] for x, y in ring]


def _closed(ring: Ring, offset: Vertex) -> list[list[float]]:
    shifted = _shifted(ring, offset)
    return [*shifted, list(shifted[0])]

"""GeoJSON out and in, against the format that QuPath documents and with slide bounds."""

from __future__ import annotations

import gzip
import json
import math
import uuid
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lrmil.export.annotation import Annotation
from napari_lrmil.export.errors import GeoJSONError
from napari_lrmil.export.geojson import (
    annotations_from_geojson,
    annotations_to_geojson,
    heatmap_to_geojson,
    read_annotations,
    write_annotations,
    write_heatmap_geojson,
)
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.slide import Slide

BOUNDS = (2220, 1483, 2220, 2967)
NO_BOUNDS = (0, 0, 2220, 2967)
SQUARE = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
HOLE = ((2.0, 2.0), (4.0, 2.0), (4.0, 4.0))

# As QuPath 0.5 and 0.6 export it ("Export as GeoJSON", FeatureCollection): UUIDs, measurements as an object,
# colours as lists, NaN where a measurement couldn't be made.
QUPATH_05 = """{"type":"FeatureCollection","features":[
{"type":"Feature","id":"3f1c1b52-1de1-4c73-9d35-1f6a0e3f5a10",
 "geometry":{"type":"Polygon","coordinates":[[[100,200],[300.5,200],[300.5,400.25],[100,400.25],[100,200]],
   [[150,250],[200,250],[200,300],[150,250]]]},
 "properties":{"objectType":"annotation","name":"Region 1","color":[255,0,255],
   "classification":{"name":"Tumor","color":[200,0,0]},"isLocked":true,
   "measurements":{"Area µm^2":9996.5,"Circularity":NaN},"metadata":{"who":"AB"}}},
{"type":"Feature","id":"b6f8cf0c-5b5b-4f7f-8b4f-0d4b3b2a9f11",
 "geometry":{"type":"MultiPolygon","coordinates":[[[[0,0],[1,0],[1,1],[0,0]]],[[[5,5],[6,5],[6,6],[5,5]]]],
   "plane":{"c":-1,"z":2,"t":0}},
 "properties":{"objectType":"annotation","classification":{"names":["CD3","CD8"],"color":[1,2,3]}}},
{"type":"Feature","id":"c0a80101-0000-4000-8000-000000000012",
 "geometry":{"type":"LineString","coordinates":[[0,0],[10,10]]},"properties":{"objectType":"annotation"}},
{"type":"Feature","id":"c0a80101-0000-4000-8000-000000000013",
 "geometry":{"type":"MultiPoint","coordinates":[[1,2],[3,4]]},"properties":{"objectType":"annotation"}},
{"type":"Feature","id":"c0a80101-0000-4000-8000-000000000014",
 "geometry":{"type":"Polygon","coordinates":[[[1,1],[2,1],[2,2],[1,1]]]},
 "nucleusGeometry":{"type":"Polygon","coordinates":[[[1.2,1.2],[1.4,1.2],[1.4,1.4],[1.2,1.2]]]},
 "properties":{"objectType":"cell","measurements":{"Nucleus: Area":3.5}}}]}"""

# QuPath 0.2 and 0.3: a list of features, the type in the id, packed colours, measurements as a list.
QUPATH_02 = [
    {
        "type": "Feature",
        "id": "PathAnnotationObject",
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 0]]]},
        "properties": {
            "classification": {"name": "Stroma", "colorRGB": -6895466},
            "isLocked": False,
            "measurements": [{"name": "Mean", "value": 1.5}],
        },
    }
]


def polygon(*rings: list[list[float]], **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": properties,
    }


def test_file_of_qupath_0_5() -> None:
    first, second, line, points, cell = annotations_from_geojson(QUPATH_05, bounds_l0_xywh=NO_BOUNDS)
    assert first.kind == "polygon"
    assert first.rings_l0_xy == (((100, 200), (300.5, 200), (300.5, 400.25), (100, 400.25)),)
    assert first.holes_l0_xy == ((((150, 250), (200, 250), (200, 300)),),)
    assert (first.name, first.class_name, first.class_color_rgb) == ("Region 1", "Tumor", (200, 0, 0))
    assert first.id == "3f1c1b52-1de1-4c73-9d35-1f6a0e3f5a10"
    assert first.locked
    assert first.measurements == {"Area µm^2": 9996.5}
    assert first.properties == {"color": [255, 0, 255], "metadata": {"who": "AB"}}
    assert first.notes == ()
    assert second.class_name == "CD3: CD8"
    assert len(second.rings_l0_xy) == 2
    assert second.geometry_extras == {"plane": {"c": -1, "z": 2, "t": 0}}
    assert (line.kind, line.rings_l0_xy) == ("line", (((0, 0), (10, 10)),))
    assert (points.kind, points.rings_l0_xy) == ("points", (((1, 2), (3, 4)),))
    assert cell.object_type == "cell"
    assert "nucleusGeometry" in cell.feature_extras


def test_everything_of_qupath_0_5_survives_the_way_back() -> None:
    found = annotations_from_geojson(QUPATH_05, bounds_l0_xywh=BOUNDS)
    again = annotations_to_geojson(found, bounds_l0_xywh=BOUNDS)
    for before, after in zip(json.loads(QUPATH_05)["features"], again["features"], strict=True):
        before["properties"].get("measurements", {}).pop("Circularity", None)
        if "names" in before["properties"].get("classification", {}):
            before["properties"]["classification"] = {"name": "CD3: CD8", "color": [1, 2, 3]}
        assert after == before


def test_list_of_features_of_qupath_0_2() -> None:
    (found,) = annotations_from_geojson(json.dumps(QUPATH_02), bounds_l0_xywh=NO_BOUNDS)
    assert found.object_type == "annotation"
    assert uuid.UUID(found.id)
    assert (found.class_name, found.class_color_rgb) == ("Stroma", (150, 200, 150))
    assert found.measurements == {"Mean": 1.5}
    assert not found.locked


def test_bounds_shift_into_the_frame_that_qupath_shows() -> None:
    here = Annotation("polygon", (((2320.0, 1683.0), (2330.0, 1683.0), (2330.0, 1693.5)),))
    cropped = annotations_to_geojson([here], bounds_l0_xywh=BOUNDS)
    whole = annotations_to_geojson([here], bounds_l0_xywh=BOUNDS, cropped=False)
    ring = cropped["features"][0]["geometry"]["coordinates"][0]
    assert ring == [[100, 200], [110, 200], [110, 210.5], [100, 200]]
    assert whole["features"][0]["geometry"]["coordinates"][0][0] == [2320, 1683]
    assert annotations_from_geojson(cropped, bounds_l0_xywh=BOUNDS) == [here]
    assert annotations_from_geojson(whole, bounds_l0_xywh=BOUNDS, cropped=False) == [here]


def test_cropped_coordinates_show_the_same_pixels_in_a_real_slide(leica: Slide) -> None:
    """What QuPath reads at its (x, y): OpenSlide's bounds added, as its OpenSlide reader does."""
    place = (2220 + 1000, 1483 + 1500)
    square = Annotation(
        "polygon",
        (
            (
                (place[0], place[1]),
                (place[0] + 64, place[1]),
                (place[0] + 64, place[1] + 64),
                (place[0], place[1] + 64),
            ),
        ),
    )
    document = annotations_to_geojson([square], bounds_l0_xywh=leica.bounds_l0_xywh)
    x, y = document["features"][0]["geometry"]["coordinates"][0][0]
    with openslide.OpenSlide(leica.path) as reference:
        bounds = [int(reference.properties[f"openslide.bounds-{axis}"]) for axis in "xy"]
        seen = np.asarray(reference.read_region((int(x) + bounds[0], int(y) + bounds[1]), 0, (64, 64)))[
            ..., :3
        ]
    assert (x, y) == (1000, 1500)
    assert np.array_equal(leica.read_region(place, 0, (64, 64)), seen)
    assert seen.std() > 10


def test_both_frames_are_one_without_bounds(aperio: Slide) -> None:
    here = Annotation("points", (((5.0, 6.0),),))
    both = [
        annotations_to_geojson([here], bounds_l0_xywh=aperio.bounds_l0_xywh, cropped=cropped)
        for cropped in (True, False)
    ]
    assert both[0] == both[1]
    assert both[0]["features"][0]["geometry"] == {"type": "Point", "coordinates": [5, 6]}


def test_nothing_absent_is_written_as_null() -> None:
    """QuPath reads a null name as text, and fails."""
    document = annotations_to_geojson([Annotation("polygon", (SQUARE,))], bounds_l0_xywh=NO_BOUNDS)
    assert document["features"][0]["properties"] == {"objectType": "annotation"}
    assert "null" not in json.dumps(document)


coordinate = st.integers(-(10**8), 10**9).map(lambda value: value / 1000)
vertex = st.tuples(coordinate, coordinate)
ring = st.lists(vertex, min_size=3, max_size=8, unique=True).map(tuple)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def annotations(draw: st.DrawFn) -> Annotation:
    kind = draw(st.sampled_from(["polygon", "line", "points"]))
    rings = tuple(draw(st.lists(ring, min_size=1, max_size=1 if kind == "points" else 3)))
    holes = ()
    if kind == "polygon" and draw(st.booleans()):
        holes = tuple(tuple(draw(st.lists(ring, max_size=2))) for _ in rings)
    colour = st.integers(0, 255)
    named = draw(st.none() | text)
    return Annotation(
        kind=kind,
        rings_l0_xy=rings,
        holes_l0_xy=holes,
        name=draw(st.none() | text),
        class_name=named,
        class_color_rgb=None if named is None else draw(st.none() | st.tuples(colour, colour, colour)),
        id=str(draw(st.uuids())),
        object_type=draw(st.sampled_from(["annotation", "detection", "tile"])),
        locked=draw(st.booleans()),
        measurements=draw(st.dictionaries(text, st.floats(-1e9, 1e9), max_size=3)),
        properties={"metadata": draw(st.dictionaries(text, text, max_size=2))},
    )


@given(
    st.lists(annotations(), max_size=4),
    st.tuples(*[st.integers(0, 200_000)] * 2, *[st.integers(1, 200_000)] * 2),
    st.booleans(),
)
def test_round_trip(drawn: list[Annotation], bounds: tuple[int, int, int, int], cropped: bool) -> None:
    written = json.dumps(
        annotations_to_geojson(drawn, bounds_l0_xywh=bounds, cropped=cropped), allow_nan=False
    )
    again = annotations_from_geojson(written, bounds_l0_xywh=bounds, cropped=cropped)
    assert len(again) == len(drawn)
    for before, after in zip(drawn, again, strict=True):
        for name in before.__dataclass_fields__.keys() - {"notes", "rings_l0_xy", "holes_l0_xy"}:
            assert getattr(after, name) == getattr(before, name), name
        # Level 0 of the largest slides has a million pixels: a thousandth of one is far above rounding.
        for mine, theirs in (
            (before.rings_l0_xy, after.rings_l0_xy),
            (sum(before.holes_l0_xy, ()), sum(after.holes_l0_xy, ())),
        ):
            assert [len(ring) for ring in mine] == [len(ring) for ring in theirs]
            for one, other in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


def test_unclosed_ring_is_closed_and_told() -> None:
    (found,) = annotations_from_geojson([polygon([[0, 0], [4, 0], [4, 4]])], bounds_l0_xywh=NO_BOUNDS)
    assert found.rings_l0_xy == (((0, 0), (4, 0), (4, 4)),)
    assert "closed" in found.notes[0]
    ring_back = annotations_to_geojson([found], bounds_l0_xywh=NO_BOUNDS)["features"][0]["geometry"][
        "coordinates"
    ][0]
    assert ring_back[0] == ring_back[-1]


def test_self_intersection_is_kept_and_told() -> None:
    bow = [[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]]
    (found,) = annotations_from_geojson(polygon(bow), bounds_l0_xywh=NO_BOUNDS)
    assert found.rings_l0_xy == (((0, 0), (4, 4), (4, 0), (0, 4)),)
    assert "self-intersection" in found.notes[0]


def test_collection_of_unlike_shapes_becomes_one_annotation_a_kind() -> None:
    feature = {
        "type": "Feature",
        "id": "c0a80101-0000-4000-8000-000000000015",
        "geometry": {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 0]]]},
                {"type": "Point", "coordinates": [1, 1]},
                {"type": "Polygon", "coordinates": [[[10, 0], [14, 0], [14, 4], [10, 0]]]},
            ],
        },
        "properties": {"name": "both"},
    }
    area, point = annotations_from_geojson(feature, bounds_l0_xywh=NO_BOUNDS)
    assert (area.kind, len(area.rings_l0_xy), point.kind) == ("polygon", 2, "points")
    assert area.id == feature["id"] != point.id
    assert area.name == point.name == "both"
    assert "unlike shapes" in point.notes[-1]


def test_children_come_out_beside_their_parents() -> None:
    child = polygon([[1, 1], [2, 1], [2, 2], [1, 1]], objectType="detection")
    parent = polygon([[0, 0], [4, 0], [4, 4], [0, 0]], objectType="annotation", childObjects=[child])
    found = annotations_from_geojson([parent], bounds_l0_xywh=NO_BOUNDS)
    assert [one.object_type for one in found] == ["annotation", "detection"]
    assert "childObjects" not in found[0].properties
    kept = annotations_from_geojson([parent], bounds_l0_xywh=NO_BOUNDS, object_types={"detection"})
    assert [one.object_type for one in kept] == ["detection"]


def test_bare_geometry_and_a_feature_without_shape() -> None:
    assert (
        len(annotations_from_geojson({"type": "Point", "coordinates": [1, 2]}, bounds_l0_xywh=NO_BOUNDS)) == 1
    )
    shapeless = {"type": "Feature", "geometry": None, "properties": None}
    assert annotations_from_geojson([shapeless], bounds_l0_xywh=NO_BOUNDS) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ('{"type": "FeatureCollection", "features": [', "cut short"),
        (b"\xff\xfe\xfa", "UTF-8"),
        ("[" * 200_000, "nested too deeply"),
        ("17", "not GeoJSON"),
        ('{"slides": []}', "not GeoJSON"),
        ('{"type": "FeatureCollection"}', "no list of features"),
        ('{"type": "FeatureCollection", "features": [7]}', "feature 1 is not"),
        ('[{"type": "Feature", "geometry": 3}]', "geometry is not an object"),
        ('[{"type": "Feature", "geometry": {"type": "Circle"}}]', "'Circle'"),
        ('[{"type": "Feature", "geometry": {"type": "Polygon"}}]', "no coordinates"),
        ('[{"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [1, 1]]]}]', "feature 1"),
        ('[{"type": "Polygon", "coordinates": [[[0, 0], [Infinity, 1], [1, 1]]]}]', "no place on a slide"),
        ('[{"type": "Polygon", "coordinates": [[[0, 0], [1e999, 1], [1, 1]]]}]', "no place on a slide"),
        ('[{"type": "Polygon", "coordinates": [[[0, 0], ["1", 1], [1, 1]]]}]', "pair of numbers"),
        ('[{"type": "Polygon", "coordinates": [[[0, 0], [true, 1], [1, 1]]]}]', "pair of numbers"),
        ('[{"type": "Polygon", "coordinates": [[[0, 0], [1], [1, 1]]]}]', "pair of coordinates"),
        ('[{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]}]', "3 or more vertices"),
        ('[{"type": "Polygon", "coordinates": [0, 1]}]', "feature 1"),
    ],
)
def test_errors_say_where(text: str | bytes, said: str) -> None:
    with pytest.raises(GeoJSONError, match=said):
        annotations_from_geojson(text, bounds_l0_xywh=NO_BOUNDS)


def test_one_bad_feature_leaves_the_others() -> None:
    def square(x: float) -> dict[str, Any]:
        return polygon([[x, 0], [x + 9, 0], [x + 9, 9], [x, 9], [x, 0]])

    features = [
        square(0),
        polygon([[1, 1], [2, 2], [1, 1]]),
        7,
        {"type": "Feature", "geometry": None},
        square(20),
    ]
    child = {**square(40), "properties": {"childObjects": [{"type": "Feature", "geometry": 3}, square(60)]}}
    left_out: list[str] = []
    found = annotations_from_geojson(
        {"type": "FeatureCollection", "features": [*features, child]},
        bounds_l0_xywh=NO_BOUNDS,
        left_out=left_out.append,
    )
    assert [one.rings_l0_xy[0][0][0] for one in found] == [0, 20, 40, 60]
    assert len(left_out) == 4
    for number, said in (
        ("2", "3 or more vertices"),
        ("3", "is not"),
        ("4", "no shape"),
        ("6, child 1", "geometry"),
    ):
        assert any(text.startswith(f"feature {number}") and said in text for text in left_out), (
            number,
            left_out,
        )


def test_what_is_left_out_is_logged_where_nobody_asks(caplog: pytest.LogCaptureFixture) -> None:
    found = annotations_from_geojson(
        [polygon([[0, 0], [4, 0], [4, 4]]), polygon([[1, 1]])], bounds_l0_xywh=NO_BOUNDS
    )
    assert len(found) == 1
    assert "left out: feature 2" in caplog.text


def test_a_file_of_which_nothing_can_be_read_is_an_error() -> None:
    with pytest.raises(GeoJSONError, match=r"feature 1: .*; 2 more features can't be read either"):
        annotations_from_geojson([polygon([[1, 1]])] * 3, bounds_l0_xywh=NO_BOUNDS)


def test_half_characters_can_be_written_again(tmp_path: Path) -> None:
    text = json.dumps([{**polygon([[0, 0], [4, 0], [4, 4]]), "properties": {"name": "a\ud800b"}}])
    (found,) = annotations_from_geojson(text, bounds_l0_xywh=NO_BOUNDS)
    assert found.name == "a?b"
    write_annotations(tmp_path / "a.geojson", [found], bounds_l0_xywh=NO_BOUNDS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "features", "geometry", "geometries", "coordinates", "properties", "id", "x"]
            )
            | st.sampled_from(["objectType", "classification", "measurements", "childObjects", "name"]),
            inner
            | st.sampled_from(
                ["Feature", "FeatureCollection", "Polygon", "Point", "MultiPolygon", "GeometryCollection"]
            ),
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_gives_annotations_or_a_clear_error(value: Any) -> None:
    try:
        found = annotations_from_geojson(json.dumps(value), bounds_l0_xywh=BOUNDS)
    except GeoJSONError:
        return
    json.dumps(annotations_to_geojson(found, bounds_l0_xywh=BOUNDS), allow_nan=False)


def test_files_plain_zipped_and_gzipped(tmp_path: Path) -> None:
    here = [Annotation("polygon", (SQUARE,), ((HOLE,),), name="Überlappung – µm")]
    plain = write_annotations(tmp_path / "a.geojson", here, bounds_l0_xywh=BOUNDS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(plain, "a.geojson")
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(plain.read_bytes()))
    for name in ("a.geojson", "a.zip", "a.geojson.gz"):
        assert read_annotations(tmp_path / name, bounds_l0_xywh=BOUNDS) == here
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.geojson", "a.geojson.gz", "a.zip"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b" " * 2_000_000))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.json", "[]")
        archive.writestr("b.json", "[]")
    for name, said in (
        ("none.geojson", "can't be read"),
        ("bad.zip", "can't be unpacked"),
        ("bad.gz", "can't be"),
        ("bomb.gz", "more than 1 MiB"),
        ("two.zip", "2 GeoJSON files"),
    ):
        with pytest.raises(GeoJSONError, match=said):
            read_annotations(tmp_path / name, bounds_l0_xywh=NO_BOUNDS, max_bytes=2**20)


@pytest.mark.parametrize("cropped", [True, False])
def test_heatmap_tiles_are_exact(leica: Slide, leica_prediction: SlidePrediction, cropped: bool) -> None:
    earlier = replace(leica_prediction, version="0.0.9")
    document = heatmap_to_geojson(earlier, bounds_l0_xywh=leica.bounds_l0_xywh, cropped=cropped)
    tiles = leica_prediction.tiles
    assert len(document["features"]) == len(tiles)
    edge = 64 * 2 / 0.499  # 128 µm in pixels of the slide
    origin = (0, 0) if cropped else (2220, 1483)
    places = {
        (int(row), int(col)): n for n, (row, col) in enumerate(zip(tiles.rows, tiles.cols, strict=True))
    }
    uniform = []
    for feature in document["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0])
        col, row = np.rint((ring[0] - origin) / edge).astype(int)
        index = places.pop((int(row), int(col)))
        wanted = [[col, row], [col + 1, row], [col + 1, row + 1], [col, row + 1], [col, row]]
        np.testing.assert_allclose(ring, np.array(wanted) * edge + origin, rtol=0, atol=0.01)
        assert feature["properties"]["objectType"] == "detection"
        measured = feature["properties"]["measurements"]
        assert measured["Attention score"] == leica_prediction.attention_scores[index]
        assert measured["Contribution to p(lesion)"] == leica_prediction.class_contributions[index, 1]
        assert (
            measured["Contribution to log-odds(lesion)"] == leica_prediction.log_odds_contributions[index, 1]
        )
        assert measured["Log-odds(lesion) alone"] == leica_prediction.log_odds_alone[index, 1]
        uniform.append(measured["Attention relative to uniform"])
    assert not places
    about = document["napari_lrmil"]
    assert (about["version"], about["bundle_sha256"]) == ("0.0.9", leica_prediction.bundle_sha256)
    assert uniform == sorted(uniform, reverse=True)
    assert math.isclose(sum(uniform), len(tiles))


def test_top_fraction_and_stable_ids(
    aperio: Slide, aperio_prediction: SlidePrediction, tmp_path: Path
) -> None:
    def wanted(fraction: float) -> list[dict[str, Any]]:
        document = heatmap_to_geojson(
            aperio_prediction, bounds_l0_xywh=aperio.bounds_l0_xywh, top_fraction=fraction
        )
        found: list[dict[str, Any]] = document["features"]
        return found

    every = wanted(1.0)
    assert wanted(0.1) == every[: math.ceil(len(every) * 0.1)]
    assert len(wanted(1e-9)) == 1
    assert len({feature["id"] for feature in every}) == len(every)
    for fraction in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="top_fraction"):
            wanted(fraction)
    path = write_heatmap_geojson(
        tmp_path / "h.geojson", aperio_prediction, bounds_l0_xywh=aperio.bounds_l0_xywh, top_fraction=0.1
    )
    again = read_annotations(path, bounds_l0_xywh=aperio.bounds_l0_xywh)
    assert {one.object_type for one in again} == {"detection"}
    assert aperio_prediction.slide_name not in path.read_text(encoding="utf-8")


def test_annotations_refuse_what_cannot_be_drawn() -> None:
    for kind, rings in (
        ("polygon", (SQUARE[:2],)),
        ("line", (SQUARE[:1],)),
        ("points", ((),)),
        ("polygon", ()),
    ):
        with pytest.raises(ValueError, match="needs"):
            Annotation(kind, rings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        Annotation("points", (((math.nan, 1.0),),))
    with pytest.raises(ValueError, match="holes"):
        Annotation("line", (SQUARE,), ((HOLE,),))
    assert Annotation("polygon", ((*SQUARE, SQUARE[0]),), id="1") == Annotation("polygon", (SQUARE,), id="1")

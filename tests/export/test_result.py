"""A prediction as JSON and CSV: complete, described, and read back bit for bit."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_lrmil.evidence import DeletionCurve
from napari_lrmil.export.errors import ExportError, ResultFileError
from napari_lrmil.export.result import (
    read_document,
    read_prediction,
    result_document,
    result_schema,
    tile_columns,
    write_prediction,
)
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.slide import TileGrid, TileSet, TileSpec
from napari_lrmil.wording import curve_text, use_note

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "result.schema.json"


def assert_same(found: Any, wanted: Any, where: str = "prediction") -> None:
    """Equal field for field, down to the type of an array's numbers."""
    if dataclasses.is_dataclass(wanted):
        for field in dataclasses.fields(wanted):
            assert_same(getattr(found, field.name), getattr(wanted, field.name), f"{where}.{field.name}")
    elif hasattr(wanted, "_fields"):
        for name in wanted._fields:
            assert_same(getattr(found, name), getattr(wanted, name), f"{where}.{name}")
    elif isinstance(wanted, np.ndarray):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), where
        assert np.array_equal(found, wanted), where
    else:
        both_nan = isinstance(wanted, float) and math.isnan(wanted) and math.isnan(found)
        assert both_nan or found == wanted, where
        assert type(found) is type(wanted), where


def trusted(prediction: SlidePrediction, **more: Any) -> SlidePrediction:
    """As of a bundle that states how far to trust it."""
    stated: dict[str, Any] = {
        "prediction_set": ("benign", "lesion"),
        "coverage": 0.9,
        "ood_score": 4.25,
        "ood_threshold": 2.5,
    }
    return replace(prediction, **(stated | more))


def called_and_other(prediction: SlidePrediction) -> tuple[str, str]:
    """The class that is called and the one that isn't, of two."""
    (other,) = set(prediction.class_names) - {prediction.called}
    return prediction.called, other


def other_class(raw: dict[str, Any]) -> str:
    """The class that a document with a label doesn't name, of two."""
    (other,) = set(raw["class_names"]) - {raw["label"]}
    return str(other)


def raw_of(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return raw


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain,
        trusted,
        lambda plain: trusted(plain, prediction_set=()),
        lambda plain: trusted(plain, ood_score=math.nan),
        lambda plain: trusted(plain, ood_score=math.inf),
        lambda plain: replace(plain, demonstration=False, slide_name='a "name", µ\n=1'),
        lambda plain: replace(plain, class_names=("be,nign\r", 'le"sion\n')),
    ],
)
def test_what_is_written_is_read_back(
    leica_prediction: SlidePrediction, tmp_path: Path, change: Callable[[SlidePrediction], SlidePrediction]
) -> None:
    prediction = change(leica_prediction)
    paths = write_prediction(prediction, tmp_path, stem="one.svs")
    assert [path.name for path in paths] == ["one.svs.json", "one.svs.csv"]
    found = read_prediction(paths[0])
    assert_same(found, prediction)
    assert (found.label, found.unsure, found.out_of_distribution) == (
        prediction.label,
        prediction.unsure,
        prediction.out_of_distribution,
    )
    again = write_prediction(found, tmp_path / "again", stem="one.svs")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


number = st.floats(allow_nan=False, allow_infinity=False)
share = st.floats(0, 1)
small = st.integers(1, 5)
name = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def predictions(draw: st.DrawFn) -> SlidePrediction:
    """Any numbers and names, in a grid of any shape."""
    shape = draw(st.tuples(small, small))
    tissue = np.array(draw(st.lists(st.floats(0, 1, width=32), min_size=math.prod(shape), max_size=25)))
    tissue = tissue[: math.prod(shape)].reshape(shape).astype(np.float32)
    chosen = sorted(draw(st.sets(st.integers(0, math.prod(shape) - 1), min_size=1)))
    rows, cols = (part.astype(np.int64) for part in np.divmod(np.array(chosen), shape[1]))
    names = tuple(draw(st.lists(name, min_size=2, max_size=4, unique=True)))
    n_tiles, n_classes = len(chosen), len(names)

    def array(values: st.SearchStrategy[float], *wanted: int) -> np.ndarray:
        size = math.prod(wanted)
        return np.array(draw(st.lists(values, min_size=size, max_size=size))).reshape(wanted)

    length = st.floats(-1e9, 1e9)
    place = st.tuples(length, length)
    size = st.floats(1e-9, 1e9)
    sizes = st.tuples(size, size)
    stated = draw(st.booleans())
    weights = array(st.floats(0.001, 1), n_classes)
    probabilities = weights / weights.sum()
    of_class = draw(st.integers(0, n_classes - 1))
    fractions, by_evidence, *random_orders = (array(share, 4) for _ in range(5))
    by_evidence[0] = probabilities[of_class]
    return SlidePrediction(
        slide_name=draw(name),
        class_names=names,
        class_probabilities=probabilities,
        attention_scores=array(share, n_tiles),
        attention_logits=array(number, n_tiles),
        class_contributions=array(st.floats(-1, 1), n_tiles, n_classes),
        log_odds_contributions=array(number, n_tiles, n_classes),
        log_odds_alone=array(number, n_tiles, n_classes),
        deletion=DeletionCurve(fractions, by_evidence, *random_orders, of_class),
        tiles=TileSet(
            TileGrid(
                TileSpec(draw(st.integers(1, 999)), draw(st.floats(0.1, 9))), draw(place), draw(sizes), shape
            ),
            level := draw(st.integers(0, 9)),
            rows,
            cols,
            tissue,
            draw(share),
        ),
        mpp_xy=draw(sizes),
        level=level,
        level_mpp=draw(size),
        seconds=draw(st.floats(0, 1e6)),
        bundle_name=draw(name),
        bundle_sha256="0" * 64,
        demonstration=draw(st.booleans()),
        device="cpu",
        slide_fingerprint="1" * 64,
        version="0.1.0",
        prediction_set=tuple(draw(st.sets(st.sampled_from(names)))) if stated else None,
        coverage=draw(share) if stated else None,
        ood_score=draw(st.floats(0)) if stated else None,
        ood_threshold=draw(number) if stated else None,
    )


@given(predictions())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prediction_is_read_back(tmp_path: Path, prediction: SlidePrediction) -> None:
    path, _ = write_prediction(prediction, tmp_path, stem="any")
    assert_same(read_prediction(path), prediction)


def test_only_tiles_that_speak_for_a_class_are_named_as_such(leica_prediction: SlidePrediction) -> None:
    nothing = np.zeros_like(leica_prediction.class_contributions)
    told = result_document(replace(leica_prediction, log_odds_contributions=nothing)).contributions["lesion"]
    assert (told.highest, told.lowest) == (None, None)
    against = np.tile([0.01, -0.01], (len(nothing), 1))
    told = result_document(replace(leica_prediction, log_odds_contributions=against)).contributions["lesion"]
    assert told.highest is None
    assert told.lowest is not None


def test_label_and_status_stand_together(leica_prediction: SlidePrediction) -> None:
    text = result_document(trusted(leica_prediction)).model_dump(mode="json")
    assert list(text)[3:8] == ["answer", "label", "withheld", "status", "class_probabilities"]
    assert text["status"] == ["unsure", "unlike training", "demonstration"]
    called, other = called_and_other(leica_prediction)
    sure = trusted(leica_prediction, prediction_set=(called,), ood_score=1.0, demonstration=False)
    assert result_document(sure).status == ("ok",)
    assert result_document(replace(sure, prediction_set=(other,))).status == ("unsure",)
    assert result_document(sure).note == use_note(demonstration=False)


def test_the_document_has_what_the_result_panel_shows(
    leica_prediction: SlidePrediction, tmp_path: Path
) -> None:
    prediction = trusted(leica_prediction, version="0.0.9", ood_score=1.25)
    told = raw_of(write_prediction(prediction, tmp_path)[0])
    assert told["version"] == "0.0.9"  # that made it, whichever writes it
    assert told["class_probabilities"] == dict(
        zip(prediction.class_names, prediction.class_probabilities.tolist(), strict=True)
    )
    assert (told["prediction_set"], told["coverage"]) == (["benign", "lesion"], 0.9)
    assert (told["ood_score"], told["ood_threshold"]) == (1.25, 2.5)
    curve = told["deletion_curve"]
    assert curve["area_gain"] == prediction.deletion.area_gain
    assert curve["meaning"] == curve_text(prediction.deletion)
    assert curve["by_evidence"] == prediction.deletion.by_evidence.tolist()
    lesion = prediction.class_contributions[:, 1]
    strongest = int(lesion.argmax())
    assert told["contributions"]["lesion"]["highest"] == {
        "row": int(prediction.tiles.rows[strongest]),
        "col": int(prediction.tiles.cols[strongest]),
        "contribution": lesion.max(),
        "log_odds_contribution": prediction.log_odds_contributions[strongest, 1],
        "log_odds_alone": prediction.log_odds_alone[strongest, 1],
    }
    assert told["contributions"]["lesion"]["lowest"]["contribution"] == lesion.min()
    assert (told["read_level"], told["read_level_mpp"]) == (prediction.level, prediction.level_mpp)
    assert told["seconds"] == prediction.seconds
    assert told["slide_fingerprint"] == prediction.slide_fingerprint


def test_a_slide_unlike_those_of_training_has_an_answer_and_no_label(
    leica_prediction: SlidePrediction, tmp_path: Path
) -> None:
    prediction = trusted(leica_prediction)
    path = write_prediction(prediction, tmp_path)[0]
    told = raw_of(path)
    assert told["answer"] == "unlike training"
    assert (
        told["label"]
        is told["class_probabilities"]
        is told["prediction_set"]
        is told["deletion_curve"]
        is None
    )
    withheld = told["withheld"]
    called = prediction.class_names[
        (prediction.class_probabilities / (prediction.thresholds or 1.0)).argmax()
    ]
    assert withheld["deletion_curve"]["class_name"] == called
    rest = json.dumps({name: part for name, part in told.items() if name != "withheld"})
    for share in withheld["class_probabilities"].values():
        assert str(share) not in rest
    assert withheld["label"] == prediction.called == called
    assert list(withheld["class_probabilities"].values()) == prediction.class_probabilities.tolist()
    assert withheld["prediction_set"] == ["benign", "lesion"]
    assert withheld["note"].startswith("Not to be used")
    assert told["evidence_notes"][0] == withheld["note"]
    for change in (
        {"class_probabilities": withheld["class_probabilities"]},
        {"prediction_set": [called]},
        {"deletion_curve": withheld["deletion_curve"]},
    ):
        path.write_text(json.dumps(told | change))
        with pytest.raises(ResultFileError, match="withholds a label and gives its probability"):
            read_document(path)


def test_the_first_files_of_version_3_are_read(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    prediction = trusted(leica_prediction)
    path = write_prediction(prediction, tmp_path)[0]
    told = raw_of(path)
    curve = told["withheld"].pop("deletion_curve")
    path.write_text(json.dumps(told | {"deletion_curve": curve}))
    assert read_document(path) == result_document(prediction)
    assert_same(read_prediction(path), prediction)


@pytest.mark.parametrize("ood_score", [1.25, 4.25])
def test_a_file_of_version_2_is_read_and_gives_no_label_to_an_unlike_slide(
    leica_prediction: SlidePrediction, tmp_path: Path, ood_score: float
) -> None:
    prediction = trusted(leica_prediction, ood_score=ood_score)
    path = write_prediction(prediction, tmp_path)[0]
    told = raw_of(path)
    said = told.pop("withheld") or told
    before = {
        name: said[name] for name in ("label", "class_probabilities", "prediction_set", "deletion_curve")
    }
    told.pop("answer")
    path.write_text(json.dumps(told | before | {"format_version": 2}))
    document = read_document(path)
    called = prediction.called
    assert (document.answer, document.label, document.called) == (
        (called, called, called) if ood_score < 2.5 else ("unlike training", None, called)
    )
    assert_same(read_prediction(path), prediction)


def test_the_table_has_every_value_of_every_tile(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    _, path = write_prediction(leica_prediction, tmp_path)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == tile_columns(("benign", "lesion"))
        rows = list(reader)
    tiles = leica_prediction.tiles
    assert len(rows) == len(tiles)
    for name, values in {
        "x_l0_px": tiles.corners_l0_xy[:, 0],
        "attention_score": leica_prediction.attention_scores,
        "contribution_benign": leica_prediction.class_contributions[:, 0],
        "contribution_lesion": leica_prediction.class_contributions[:, 1],
        "log_odds_contribution_lesion": leica_prediction.log_odds_contributions[:, 1],
        "log_odds_alone_benign": leica_prediction.log_odds_alone[:, 0],
        "tissue_fraction": tiles.tissue_fraction[tiles.rows, tiles.cols],
    }.items():
        assert [float(row[name]) for row in rows] == values.tolist()


def test_the_schema_is_that_of_the_code(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    assert SCHEMA.read_text(encoding="utf-8") == result_schema(), "run: make schema"
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for prediction in (leica_prediction, trusted(leica_prediction, ood_score=math.inf)):
        told = raw_of(write_prediction(prediction, tmp_path)[0])
        jsonschema.validate(told, schema)
        for key in ("status", "label", "deletion_curve"):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({name: part for name, part in told.items() if name != key}, schema)


def test_every_field_is_described_in_the_docs(leica_prediction: SlidePrediction) -> None:
    page = (SCHEMA.parent / "exports.md").read_text(encoding="utf-8")
    document = result_document(leica_prediction)
    for field in (*type(document).model_fields, *tile_columns(())):
        assert f"`{field}`" in page, field


def test_numbers_that_are_none_are_not_written(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    broken = replace(leica_prediction, class_probabilities=np.array([math.nan, 0.5]))
    with pytest.raises(ExportError, match=r"can't be written: class_probabilities.*Check the model"):
        write_prediction(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: json.dumps(raw)[:-30], "r.json is damaged: it is not JSON"),
        (lambda raw: "[" * 100_000, "r.json is damaged: it is not JSON"),
        (lambda raw: '{"type": "FeatureCollection"}', "r.json is not the result of a slide"),
        (lambda raw: "[1]", "r.json is not the result of a slide"),
        (lambda raw: json.dumps(raw | {"format": "lrmil-review"}), "is not the result of a slide"),
        (
            lambda raw: json.dumps({key: raw[key] for key in raw if not key.startswith("format")}),
            "was written before results could be read back",
        ),
        (
            lambda raw: json.dumps(raw | {"format_version": 4}),
            r"has format version 4; this program reads up to 3\. Update",
        ),
        (
            lambda raw: json.dumps(raw | {"format_version": 1}),
            "before log-odds were part of results.* --overwrite",
        ),
        (lambda raw: json.dumps(raw | {"format_version": 0}), "damaged: format_version"),
        (lambda raw: json.dumps(raw | {"extra": 1}), "damaged: extra"),
        (lambda raw: json.dumps(raw | {"seconds": "1"}), "damaged: seconds"),
        (lambda raw: json.dumps(raw | {"seconds": math.nan}), "damaged: seconds"),
        (lambda raw: json.dumps(raw | {"status": []}), "damaged: status"),
        (
            lambda raw: json.dumps(raw | {"class_probabilities": dict.fromkeys(raw["class_names"], 0.9)}),
            "don't sum to 1",
        ),
        (
            lambda raw: json.dumps(raw | {"tiles": raw["tiles"] | {"grid_shape_yx": [10**9, 10**9]}}),
            "no slide has a grid",
        ),
        (lambda raw: json.dumps(raw | {"tiles": raw["tiles"] | {"tile_px": 0}}), "negative or 0"),
        (lambda raw: json.dumps(raw | {"slide_mpp_xy": [-0.5, 0.5]}), "negative or 0"),
        (
            lambda raw: json.dumps(
                raw
                | {
                    "deletion_curve": raw["deletion_curve"]
                    | {
                        "by_evidence": [
                            1 - raw["deletion_curve"]["by_evidence"][0],
                            *raw["deletion_curve"]["by_evidence"][1:],
                        ]
                    }
                }
            ),
            "doesn't begin with the probability",
        ),
        (lambda raw: json.dumps(raw | {"status": ["ok"]}), "answer and status don't follow"),
        (
            lambda raw: json.dumps(raw | dict.fromkeys(("answer", "label"), other_class(raw))),
            "answer and status don't follow",
        ),
        (lambda raw: json.dumps(raw | {"label": other_class(raw)}), "answer doesn't follow"),
        (lambda raw: json.dumps(raw | {"answer": "unlike training"}), "answer doesn't follow"),
        (
            lambda raw: json.dumps(raw | {"status": ["unlike training"]}),
            "has a label and withholds one, or neither",
        ),
        (lambda raw: json.dumps(raw | {"label": None}), "has a label and withholds one, or neither"),
        (lambda raw: json.dumps(raw | {"label": "other"}), "a class that the model doesn't have"),
        (lambda raw: json.dumps(raw | {"class_names": ["benign", "x"]}), "name different classes"),
        (lambda raw: json.dumps(raw | {"contributions": {}}), "contributions name different classes"),
        (
            lambda raw: json.dumps(
                raw | {"tiles": raw["tiles"] | {"left_out": [{"row": 999, "col": 0, "tissue_fraction": 0.1}]}}
            ),
            "outside of the grid",
        ),
        (
            lambda raw: json.dumps(raw | {"deletion_curve": raw["deletion_curve"] | {"fractions": [0.0]}}),
            "differ in length",
        ),
        (
            lambda raw: json.dumps(raw | {"tiles": raw["tiles"] | {"count": 1}}),
            "r.csv is damaged: it hasn't 1 tiles",
        ),
    ],
)
def test_a_damaged_or_foreign_json_is_told(
    leica_prediction: SlidePrediction,
    tmp_path: Path,
    damage: Callable[[dict[str, Any]], str],
    said: str,
) -> None:
    path, _ = write_prediction(leica_prediction, tmp_path, stem="r")
    path.write_text(damage(raw_of(path)), encoding="utf-8")
    with pytest.raises(ResultFileError, match=said) as told:
        read_prediction(path)
    assert any(cure in str(told.value) for cure in ("xport", "Update napari-lrmil"))


def test_a_damaged_or_foreign_table_is_told(
    leica_prediction: SlidePrediction, aperio_prediction: SlidePrediction, tmp_path: Path
) -> None:
    path, table = write_prediction(leica_prediction, tmp_path, stem="r")
    _, other = write_prediction(aperio_prediction, tmp_path, stem="other")
    sound = table.read_bytes()
    with pytest.raises(ResultFileError, match=r"other\.csv belongs to another result.*written with r\.json"):
        read_prediction(path, other)
    for damaged, said in (
        (sound.replace(b"0.", b"1.", 1), "belongs to another result, or was changed"),
        (sound[:-1], "belongs to another result, or was changed"),
        (sound.replace(b"row", b"line", 1), "other columns"),
        (b"", "other columns"),
        (b"\xff\xfe" + sound, "not UTF-8"),
    ):
        table.write_bytes(damaged)
        with pytest.raises(ResultFileError, match=said):
            read_prediction(path)
    table.unlink()
    with pytest.raises(ResultFileError, match=r"r\.csv can't be read: No such file"):
        read_prediction(path)
    with pytest.raises(ResultFileError, match=r"absent\.json can't be read"):
        read_document(tmp_path / "absent.json")
    assert read_document(path).tiles.count == len(leica_prediction.tiles)  # it needs no table
    table.write_bytes(sound)
    assert_same(read_prediction(path), leica_prediction)


def test_reading_a_document_loads_no_torch(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    path, _ = write_prediction(leica_prediction, tmp_path)
    code = (
        "import sys\nfrom napari_lrmil.export.result import read_document\n"
        "print(read_document(sys.argv[1]).label, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [leica_prediction.label, "False"]

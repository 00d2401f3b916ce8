"""A bundle that calls a class at a threshold: the same label in JSON, tables, reports, the window and kept results."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from napari_lrmil._viewer.docks.classify.panel import earlier_text, overlay_text, result_panel
from napari_lrmil.cache.summary import summarise
from napari_lrmil.cli.main import app
from napari_lrmil.errors import BundleError
from napari_lrmil.export.errors import ResultFileError
from napari_lrmil.export.result import read_prediction, write_prediction
from napari_lrmil.export.slide_report import write_slide_report
from napari_lrmil.model.bundle import load_bundle, resolve_bundle, save_bundle
from napari_lrmil.model.calibration import OperatingPoint, VectorScaling, called_class
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.wording import Status, operating_text, status_of


@pytest.fixture
def with_point(tiny_bundle: Path, tmp_path: Path) -> Callable[[float | None], Path]:
    """The tiny bundle with a threshold of the lesion; None: without an operating point."""

    def make(threshold: float | None) -> Path:
        model = load_bundle(tiny_bundle)
        point = None
        if threshold is not None:
            point = OperatingPoint(
                rule="sensitivity",
                thresholds=(1 - threshold, threshold),
                positive="lesion",
                wanted=0.95,
            )
        info = model.info.model_copy(update={"format_version": 3, "operating_point": point})
        save_bundle(tmp_path / "bundle", info=info, encoder=model.encoder, mil=model.mil)
        return tmp_path / "bundle"

    return make


def classify(slide: Path, bundle: Path) -> SlidePrediction:
    with Slide(slide) as opened:
        return run_to_end(predict_slide(opened, load_bundle(bundle), device=torch.device("cpu")))


@pytest.fixture
def turned(
    generated_slide: Path, with_point: Callable[[float | None], Path]
) -> tuple[SlidePrediction, SlidePrediction, Path]:
    """A slide's result without an operating point, with one that calls its less probable class, and that bundle."""
    plain = classify(generated_slide, with_point(None))
    lesion = float(plain.class_probabilities[1])
    bundle = with_point((1 + lesion) / 2 if lesion > 0.5 else lesion / 2)
    return plain, classify(generated_slide, bundle), bundle


def test_called_by_hand() -> None:
    p = np.array([[0.7, 0.3], [0.79, 0.21], [0.81, 0.19]])
    assert called_class(p, None).tolist() == [0, 0, 0]
    assert called_class(p, (0.8, 0.2)).tolist() == [1, 1, 0]
    three = np.array([0.5, 0.3, 0.2])
    assert int(called_class(three, (0.6, 0.3, 0.1))) == 2  # multiples 0.83, 1, 2


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0.001, 0.999))
def test_the_second_of_two_classes_is_called_from_its_threshold_on(p: float, threshold: float) -> None:
    if abs(p - threshold) > 1e-9:
        assert bool(called_class(np.array([1 - p, p]), (1 - threshold, threshold))) == (p > threshold)


def test_the_label_is_the_called_class_and_the_numbers_stay(
    turned: tuple[SlidePrediction, SlidePrediction, Path],
) -> None:
    plain, called, _ = turned
    np.testing.assert_array_equal(plain.class_probabilities, called.class_probabilities)
    assert plain.label != called.label
    assert called.called_probability == pytest.approx(1 - plain.called_probability)
    assert called.called_probability < 0.5
    # The deletion curve is of the label, too.
    assert called.class_names[called.deletion.class_index] == called.label
    assert called.deletion.by_evidence[0] == pytest.approx(called.called_probability)


def test_a_label_that_the_set_of_classes_rules_out_is_unsure(
    turned: tuple[SlidePrediction, SlidePrediction, Path],
) -> None:
    plain, called, _ = turned
    against = replace(called, prediction_set=(plain.label,), coverage=0.9)
    assert against.unsure
    assert Status.UNSURE in status_of(against)
    assert not replace(against, prediction_set=(called.label,)).unsure


def test_json_table_window_and_report_say_the_same_label(
    turned: tuple[SlidePrediction, SlidePrediction, Path], generated_slide: Path, tmp_path: Path
) -> None:
    _, called, bundle = turned
    share = f"{100 * called.called_probability:.0f} %"
    json_path, _ = write_prediction(called, tmp_path / "out", stem="one")
    document = json.loads(json_path.read_text())
    assert document["label"] == called.label == read_prediction(json_path).label
    assert document["thresholds"] == dict(zip(called.class_names, called.thresholds or (), strict=True))
    assert document["deletion_curve"]["class_name"] == called.label
    summary = summarise(called)
    assert (summary.label, summary.probability) == (called.label, called.called_probability)
    panel = result_panel(called)
    assert (panel.headline, panel.classes[0][0]) == (called.label,) * 2
    assert operating_text(called) in panel.details
    assert overlay_text(called).splitlines()[0] == f"{called.label}  {share}"
    assert f"{called.label} {share}" in earlier_text(called)
    with Slide(generated_slide) as slide:
        (page,) = run_to_end(
            write_slide_report(called, slide, load_bundle(bundle).info, html=tmp_path / "page.html")
        )
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert f"{called.label}, {100 * called.called_probability:.1f} %" in text
    assert operating_text(called) in text
    # A label that doesn't follow from the thresholds beside it is a damaged file.
    for change in ({"thresholds": None}, {"thresholds": {"benign": 0.5}}):
        json_path.write_text(json.dumps(document | change))
        with pytest.raises(ResultFileError, match="damaged"):
            read_prediction(json_path)


def lrmil(*args: object) -> Result:
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    return done


def test_results_kept_with_other_thresholds_do_not_pass_for_this_bundles(
    generated_slide: Path,
    with_point: Callable[[float | None], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LRMIL_CACHE_DIR", str(tmp_path / "cache"))
    slide = shutil.copy(generated_slide, tmp_path / "one.tif")
    labels = []
    for number, threshold in enumerate((0.001, 0.999)):
        out = tmp_path / str(number)
        lrmil("predict", slide, "--bundle", with_point(threshold), "--out", out, "--device", "cpu")
        with (out / "predictions.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        labels.append(row["label"])
        assert json.loads((out / "one.json").read_text())["label"] == row["label"]
    assert labels == ["lesion", "benign"]


def test_older_bundles_are_read_and_written_as_they_were(tiny_bundle: Path, tmp_path: Path) -> None:
    model = load_bundle(tiny_bundle)
    assert (model.info.format_version, model.info.operating_point) == (1, None)
    scaling = model.info.vector_scaling
    assert (set(scaling.temperatures), set(scaling.biases)) == ({model.info.temperature}, {0.0})
    save_bundle(tmp_path / "again", info=model.info, encoder=model.encoder, mil=model.mil)
    for name in ("bundle.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny_bundle / name).read_bytes()
    raw = json.loads((tiny_bundle / "bundle.json").read_text())
    assert not {"scaling", "operating_point", "trust"} & set(raw)


def test_the_demonstration_model_has_an_operating_point_and_its_card_states_it() -> None:
    info = load_bundle("demo").info
    assert (info.format_version, info.temperature) == (3, None)
    assert len(info.vector_scaling.biases) == len(info.class_names)
    point = info.operating_point
    assert point is not None
    assert (point.rule, point.positive) == ("youden", "lesion")
    card = (resolve_bundle("demo") / "README.md").read_text(encoding="utf-8")
    assert "sensitivity" in card
    assert "specificity" in card


def test_scaling_and_point_come_back_and_the_card_states_them(tiny_bundle: Path, tmp_path: Path) -> None:
    model = load_bundle(tiny_bundle)
    metrics = {
        "test_auc": 0.91,
        **{f"test_sensitivity{part}": value for part, value in _share(0.875, 0.53, 0.98, 8)},
        **{f"test_specificity{part}": value for part, value in _share(1.0, 0.68, 1.0, 8)},
    }
    info = model.info.model_copy(
        update={
            "format_version": 3,
            "temperature": None,
            "scaling": VectorScaling(temperatures=(2.0, 1.5), biases=(0.25, -0.25)),
            "operating_point": OperatingPoint(rule="youden", thresholds=(0.7, 0.3), positive="lesion"),
            "provenance": model.info.provenance.model_copy(update={"metrics": metrics}),
        }
    )
    written = save_bundle(tmp_path / "new", info=info, encoder=model.encoder, mil=model.mil)
    loaded = load_bundle(tmp_path / "new").info
    assert loaded == written
    assert loaded.format_version == 3
    np.testing.assert_allclose(
        loaded.vector_scaling.scaled(np.array([[2.0, 3.0]])), [[2 / 2 + 0.25, 3 / 1.5 - 0.25]]
    )
    card = " ".join((tmp_path / "new" / "README.md").read_text().split())
    assert "benign: over 2, plus +0.25; lesion: over 1.5, plus -0.25" in card
    assert "lesion from a probability of 0.3 on; chosen on validation, by patient" in card
    assert "sensitivity for lesion 0.88 [0.53, 0.98] (8 patients)" in card
    assert "specificity 1.00 [0.68, 1.00] (8 patients)" in card
    assert "| test_auc | 0.91 |" in card
    assert "test_sensitivity" not in card


def _share(value: float, low: float, high: float, n: int) -> list[tuple[str, float]]:
    return [("", value), ("_low", low), ("_high", high), ("_patients", float(n))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, r"'operating_point' in format version 2; it came with 3"),
        ({"temperature": None}, r"either 'temperature' or 'scaling'"),
        ({"scaling": {"temperatures": [1, 1], "biases": [0, 0]}}, r"either 'temperature' or 'scaling'"),
        ({"operating_point.thresholds": [0.5, 0.6]}, r"above 0 and sum to 1"),
        ({"operating_point.thresholds": [0.2, 0.3, 0.5]}, r"3 thresholds for 2 classes"),
        ({"operating_point.positive": "zebra"}, r"'zebra' isn't one of the classes"),
    ],
)
def test_a_point_that_cannot_be_is_refused(
    with_point: Callable[[float | None], Path], change: dict[str, object], message: str
) -> None:
    bundle = with_point(0.3)
    raw = json.loads((bundle / "bundle.json").read_text())
    for key, value in change.items():
        *sections, name = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        place[name] = value
    (bundle / "bundle.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)

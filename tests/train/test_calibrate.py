"""What validation slides decide of a head: scaling and thresholds, against values by hand and heads made to fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import absolute_rows, read_rows, rerun, write_config

from napari_lrmil.cache.store import result_key
from napari_lrmil.errors import ConfigError
from napari_lrmil.evidence import softmax
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from training.config import load_config
from training.metrics import auc
from training.stages.calibrate import (
    CalibrateSection,
    fit_calibration,
    fit_point,
    fit_scaling,
    patient_weights,
)

TWO = ("benign", "lesion")
YOUDEN = CalibrateSection()


def two(positive: list[float]) -> np.ndarray:
    p = np.asarray(positive, float)
    return np.stack([1 - p, p], axis=1)


def names(n: int) -> list[str]:
    return [f"p{place}" for place in range(n)]


def test_a_head_that_ranks_perfectly_and_calls_every_slide_one_class_is_put_right() -> None:
    """As one fold of a run did: every slide a lesion for its softmax, each lesion more so than each benign slide."""
    rng = np.random.default_rng(0)

    def slides(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 2
        margin = 2.0 + 0.5 * labels + rng.uniform(-0.2, 0.2, n)
        return np.stack([-margin / 2, margin / 2], axis=1), labels

    logits, labels = slides(20)
    assert auc(labels, softmax(logits)) == 1
    assert set(softmax(logits).argmax(axis=1)) == {1}
    found = fit_calibration(logits, labels, names(20), TWO, YOUDEN)
    test_logits, test_labels = slides(200)
    probabilities = found.probabilities(test_logits)
    assert found.called(probabilities).tolist() == test_labels.tolist()
    # The bias brings the probabilities themselves to both sides of a half, so that they can be read as such.
    assert 0.3 < probabilities[:, 1].mean() < 0.7


def test_youden_by_hand() -> None:
    # Above 0.25: lesions 4 of 4, benign slides below it 3 of 4; above 0.65: 3 of 4, and 4 of 4; the first is ...
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    p = [0.05, 0.1, 0.2, 0.6, 0.3, 0.7, 0.8, 0.9]
    point = fit_point(two(p), labels, names(8), TWO, YOUDEN)
    called = two(p)[:, 1] > point.thresholds[1]
    assert called[labels == 1].mean() + (~called)[labels == 0].mean() == pytest.approx(1.75)
    assert 0.2 < point.thresholds[1] < 0.7
    assert sum(point.thresholds) == pytest.approx(1)
    assert (point.rule, point.positive, point.wanted) == ("youden", "lesion", None)


def test_patients_count_alike_not_slides() -> None:
    """One patient with nine lesions of a low probability doesn't outweigh two patients with one each."""
    labels = np.array([0, 0, 0, 0, *[1] * 9, 1, 1])
    p = [0.1, 0.45, 0.46, 0.47, *[0.4] * 9, 0.8, 0.9]
    patients = ["a", "b", "c", "d", *["many"] * 9, "e", "f"]
    point = fit_point(two(p), labels, patients, TWO, YOUDEN)
    # Calling from 0.4 on: lesions 3 of 3 patients, benign 1 of 4. From above 0.47 on: 2 of 3, and 4 of 4.
    assert point.thresholds[1] > 0.47
    assert fit_point(two(p), labels, names(15), TWO, YOUDEN).thresholds[1] < 0.4
    np.testing.assert_allclose(patient_weights(["a", "b", "a"]), [0.5, 1, 0.5])


@pytest.mark.parametrize(
    ("rule", "wanted", "positive", "between"),
    [
        ("sensitivity", 0.75, None, (0.6, 0.7)),  # the highest that keeps three of the four lesions
        ("sensitivity", 0.95, None, (0.2, 0.3)),  # all four
        ("specificity", 0.75, None, (0.2, 0.3)),  # the lowest that keeps three of the four benign slides
        ("specificity", 0.95, None, (0.6, 0.7)),
        ("sensitivity", 0.95, "benign", (0.6, 0.7)),  # of benign slides: all four below
    ],
)
def test_a_wanted_sensitivity_or_specificity_by_hand(
    rule: str, wanted: float, positive: str | None, between: tuple[float, float]
) -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    p = two([0.05, 0.1, 0.2, 0.6, 0.3, 0.7, 0.8, 0.9])
    section = CalibrateSection(rule=rule, wanted=wanted, positive=positive)  # type: ignore[arg-type]
    point = fit_point(p, labels, names(8), TWO, section)
    low, high = between
    assert low < point.thresholds[1] < high
    assert point.positive == (positive or "lesion")


def test_a_rare_class_of_three_is_called_where_that_helps_more_than_it_harms() -> None:
    """The third class never has the largest probability, but a larger one on its own slides."""
    rng = np.random.default_rng(3)
    labels = np.array([0] * 20 + [1] * 20 + [2] * 5)
    p = np.full((45, 3), 0.05)
    p[np.arange(40), labels[:40]] = 0.9
    p[40:] = [0.5, 0.3, 0.2]
    p += rng.uniform(0, 0.01, p.shape)
    p /= p.sum(axis=1, keepdims=True)
    assert 2 not in p.argmax(axis=1)
    point = fit_point(p, labels, names(45), ("a", "b", "c"), YOUDEN)
    assert (p / np.asarray(point.thresholds)).argmax(axis=1).tolist() == labels.tolist()
    assert point.positive is None


def test_scaling_finds_an_overconfident_heads_temperature_and_bias() -> None:
    rng = np.random.default_rng(0)
    logits = np.stack([np.zeros(4000), rng.normal(size=4000) * 2], axis=1)
    labels = (rng.random(4000) < softmax(logits)[:, 1]).astype(int)
    right = fit_scaling(logits, labels, np.ones(4000))
    assert right.temperatures[1] == pytest.approx(1.0, abs=0.1)
    moved = logits * 3 + np.array([0, 5.0])
    found = fit_scaling(moved, labels, np.ones(4000))
    assert found.temperatures[1] == pytest.approx(3.0, rel=0.15)
    np.testing.assert_allclose(softmax(found.scaled(moved))[:, 1], softmax(logits)[:, 1], atol=0.05)


def test_scaling_stays_in_its_bounds() -> None:
    logits = np.array([[5.0, -5.0], [-5.0, 5.0]])
    right = fit_scaling(logits, np.array([0, 1]), np.ones(2))
    assert right.temperatures == pytest.approx((1, 1))  # perfect: not colder than it came
    assert right.biases == pytest.approx((0, 0), abs=1e-4)
    wrong = fit_scaling(logits, np.array([1, 0]), np.ones(2))
    assert wrong.temperatures == pytest.approx((10, 10))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.tuples(*[st.floats(-30, 30)] * 3)), min_size=0, max_size=20),
    st.integers(0, 99),
)
def test_calibration_never_likes_validation_slides_less_than_the_head_did(
    slides: list[tuple[int, tuple[float, float, float]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1, 2] + [label for label, _ in slides])
    logits = np.concatenate([rng.normal(size=(3, 3)), np.array([row for _, row in slides]).reshape(-1, 3)])
    found = fit_calibration(logits, labels, names(len(labels)), tuple("abc"), YOUDEN)

    def sensitivity(called: np.ndarray) -> float:
        return float(np.mean([(called[labels == one] == one).mean() for one in range(3)]))

    def loss(scaled: np.ndarray) -> float:
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())

    assert loss(found.scaling.scaled(logits)) <= loss(logits) + 1e-3
    p = found.probabilities(logits)
    assert sensitivity(found.called(p)) >= sensitivity(p.argmax(axis=1)) - 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibrate.rule", "sensitivity"], "needs 'wanted'"),
        (["--calibrate.wanted", "0.9"], "takes no 'wanted'"),
        (["--calibrate.rule", "specificity", "--calibrate.wanted", "1.5"], r"calibrate\.wanted"),
    ],
)
def test_half_a_wish_is_refused(cohort: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path, cohort), options)


def test_a_wish_that_the_classes_do_not_suit_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of the classes: benign, lesion"):
        CalibrateSection(positive="tumour").positive_class(TWO)
    with pytest.raises(ConfigError, match="for two classes; there are 3"):
        CalibrateSection(rule="sensitivity", wanted=0.9).positive_class(("a", "b", "c"))


@pytest.mark.slow
def test_a_run_with_a_wanted_sensitivity_says_the_same_label_everywhere(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    write_config(tmp_path, cohort)
    options = ["--evaluate.methods", '["lrmil"]', "--evaluate.shortcuts", '["rgb"]']
    options += [
        "--calibrate.rule",
        "sensitivity",
        "--calibrate.wanted",
        "0.99",
        "--calibrate.positive",
        "benign",
    ]
    path, said = rerun(tmp_path, *options)
    bundle = load_bundle(path)
    point = bundle.info.operating_point
    assert point is not None
    assert (point.rule, point.wanted, point.positive) == ("sensitivity", 0.99, "benign")
    told = {
        row["slide_id"]: row for row in read_rows(tmp_path / "run" / "fold0" / "predictions" / "lrmil.csv")
    }
    for row in absolute_rows(cohort):
        if row["slide_id"] in told:
            with Slide(row["path"]) as slide:
                result = run_to_end(predict_slide(slide, bundle, device=torch.device("cpu")))
            assert result.called == told[row["slide_id"]]["called"]
            assert result.class_probabilities[1] == pytest.approx(
                float(told[row["slide_id"]]["p_lesion"]), abs=2e-3
            )
    results = json.loads((tmp_path / "run" / "results.json").read_text())["lrmil"]
    right = [row["called"] == row["label"] for row in told.values() if row["label"] == "benign"]
    share, low, high = results["sensitivity"]["benign"]
    assert share == pytest.approx(np.mean(right))
    card = (path / "README.md").read_text()
    line = f"sensitivity for benign {share:.2f} [{low:.2f}, {high:.2f}]"
    assert line in " ".join(card.split())
    for text in (said, (tmp_path / "run" / "report.html").read_text()):
        assert f"sensitivity {share:.2f} [{low:.2f}, {high:.2f}]" in " ".join(text.split())
        assert "hold it of" in " ".join(text.split())
    # Another wish trains nothing anew, and what is kept of the first bundle's results doesn't pass for the other's.
    before = result_key(bundle.info, mpp_xy=(0.5, 0.5))
    _, said = rerun(tmp_path, *options[:4])
    assert "Stage 1: tiles" not in said
    after = load_bundle(path).info
    assert after.weights_sha256 == bundle.info.weights_sha256
    assert result_key(after, mpp_xy=(0.5, 0.5)) != before

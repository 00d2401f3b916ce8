"""The words of a result, on predictions of the packaged model and slides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_lrmil.evidence import DeletionCurve
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.wording import (
    NOT_CLEARED_NOTE,
    Status,
    curve_text,
    evidence_notes,
    other_stain_text,
    percent_text,
    set_text,
    slide_warnings,
    status_of,
    time_taken_text,
    unlike_training_text,
    use_note,
)

LESION = Path(__file__).resolve().parents[1] / "napari_lrmil" / "demo" / "slides" / "lesion.tiff"


@pytest.fixture(scope="module")
def prediction() -> SlidePrediction:
    with Slide(LESION) as slide:
        return run_to_end(predict_slide(slide, load_bundle("demo"), device=torch.device("cpu")))


def test_status_says_all_that_holds(prediction: SlidePrediction) -> None:
    sure = replace(
        prediction,
        demonstration=False,
        prediction_set=("lesion",),
        coverage=0.9,
        ood_score=1.0,
        ood_threshold=2.0,
    )
    assert status_of(sure) == (Status.OK,)
    assert status_of(replace(sure, prediction_set=None, coverage=None, ood_score=None)) == (Status.OK,)
    assert status_of(replace(sure, prediction_set=())) == (Status.UNSURE,)
    assert status_of(replace(sure, ood_score=2.1)) == (Status.UNLIKE_TRAINING,)
    assert status_of(replace(sure, ood_score=float("nan"))) == (Status.UNLIKE_TRAINING,)
    assert status_of(replace(sure, demonstration=True)) == (Status.DEMONSTRATION,)
    brown = replace(sure, tiles=replace(sure.tiles, brown_share=0.57))
    assert status_of(brown) == (Status.OTHER_STAIN,)
    assert slide_warnings(brown) == (other_stain_text(brown),)
    assert "looks immunostained (57 % of its tissue is brown)" in other_stain_text(brown)
    assert slide_warnings(sure) == ()
    both = replace(brown, ood_score=2.1)
    assert slide_warnings(both) == (other_stain_text(both), unlike_training_text(both))
    worst = replace(sure, prediction_set=("benign", "lesion"), ood_score=9.0, demonstration=True)
    assert [*map(str, status_of(worst))] == ["unsure", "unlike training", "demonstration"]


@pytest.mark.parametrize(
    ("probability", "whole", "tenths"),
    [
        (0.0, "0 %", "0 %"),
        (1e-9, "< 1 %", "< 0.1 %"),
        (0.004, "< 1 %", "0.4 %"),
        (0.5, "50 %", "50.0 %"),
        (0.994, "> 99 %", "99.4 %"),
        (0.9996, "> 99 %", "> 99.9 %"),
        (1.0, "100 %", "100 %"),
    ],
)
def test_percent_claims_no_certainty(probability: float, whole: str, tenths: str) -> None:
    assert (percent_text(probability), percent_text(probability, decimals=1)) == (whole, tenths)


def test_sets_distances_and_use(prediction: SlidePrediction) -> None:
    both = replace(prediction, prediction_set=("benign", "lesion"), coverage=0.9)
    assert set_text(both) == "Unsure: benign or lesion at 90 %"
    assert set_text(replace(both, prediction_set=())) == "Unsure: no class is probable enough at 90 %"
    assert set_text(replace(both, prediction_set=None)) == "No set of classes: this model states none."
    assert unlike_training_text(replace(both, ood_score=1.0, ood_threshold=2.0)) == ""
    assert "(warning above 2)" in unlike_training_text(replace(both, ood_score=3.0, ood_threshold=2.0))
    assert use_note(demonstration=False) == NOT_CLEARED_NOTE
    assert [time_taken_text(seconds) for seconds in (1.26, 12.6, 200.0)] == ["1.3 s", "13 s", "3 min"]


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.1, "Area gained over random: +0.10, these tiles carry the result."),
        (0.01, "Area gained over random: +0.01, no tile matters much more than another."),
        (
            -0.1,
            "Area gained over random: −0.10, these tiles matter less than tiles by chance: don't rely on the heatmap.",
        ),
    ],
)
def test_a_curve_says_whether_to_rely_on_the_heatmap(gain: float, said: str) -> None:
    flat = np.full(11, 0.5)
    curve = DeletionCurve(np.linspace(0, 1, 11), flat - gain, flat, flat, flat, 0)
    assert curve_text(curve) == said


def test_a_saturated_probability_cannot_clear_or_blame_the_tiles(prediction: SlidePrediction) -> None:
    ones = np.full(11, 0.9999)
    curve = DeletionCurve(np.linspace(0, 1, 11), ones, ones, ones, ones, 0)
    assert "saturated and hardly falls" in curve_text(curve)
    sure = replace(prediction, class_probabilities=np.array([0.0001, 0.9999]), deletion=curve)
    assert evidence_notes(sure) == (
        "The probability is saturated (> 99 %): percentage points can't tell the tiles apart; log-odds can.",
    )
    open_ = replace(sure, class_probabilities=np.array([0.2, 0.8]))
    assert evidence_notes(open_) == ()
    worse = replace(open_, deletion=curve._replace(by_evidence=ones, random_mean=ones - 0.2))
    assert evidence_notes(worse) == (
        "These tiles matter less than tiles by chance: don't rely on the heatmap.",
    )

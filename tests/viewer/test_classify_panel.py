"""How evidence and the model card are worded: no window."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_predictions import make_prediction
from tiny_models import write_bundle

from napari_lrmil._viewer.docks.classify.evidence import changed_look, evidence_panel
from napari_lrmil._viewer.docks.classify.panel import card_markdown
from napari_lrmil.heatmap import ATTENTION, HeatmapLook, Scaling, Unit, value_text
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.encoder import EncoderSpec


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234, "+1.23 pp"),
        (-0.01, "−0.01 pp"),
        (0.0042, "+0.0042 pp"),
        (-0.00014, "−0.0001 pp"),
        (1e-6, "≈ 0 pp"),
        (0.0, "≈ 0 pp"),
    ],
)
def test_points(value: float, text: str) -> None:
    assert value_text(value, "lesion") == text
    assert value_text(2.25, ATTENTION) == "2.25×"


def test_the_colour_bar_has_real_units() -> None:
    prediction = make_prediction(shape_yx=(4, 5))
    bar = evidence_panel(prediction, HeatmapLook(threshold=0.5)).bar
    assert (bar.low, bar.high, bar.unit) == ("≤ 1×", "4.0×", "attention, × the average tile")
    assert bar.threshold == pytest.approx(1 / 3)  # 2x between 1x and 4x
    bar = evidence_panel(prediction, HeatmapLook("lesion")).bar
    assert (bar.low, bar.middle, bar.high) == ("−9.8", "0", "+9.8")
    assert bar.unit == "percentage points of p(lesion)"
    assert bar.threshold == 0
    bar = evidence_panel(prediction, HeatmapLook("lesion", unit=Unit.LOG_ODDS)).bar
    assert (bar.low, bar.middle, bar.high) == ("−0.49", "0", "+0.49")
    assert bar.unit == "log-odds of lesion"
    bar = evidence_panel(prediction, HeatmapLook("lesion", unit=Unit.ALONE)).bar
    assert (bar.low, bar.high, bar.unit) == ("−4.9", "+4.9", "log-odds of lesion, tile alone")
    bar = evidence_panel(prediction, HeatmapLook(ATTENTION, Scaling.PERCENTILE)).bar
    assert (bar.low, bar.high) == ("0", "100")


def test_a_saturated_probability_is_said_and_counted_in_log_odds() -> None:
    plain = evidence_panel(make_prediction(0.9), HeatmapLook("lesion"))
    assert (plain.unit_index, plain.unit_applies, plain.notes) == (0, True, "")
    saturated = evidence_panel(make_prediction(0.9999), HeatmapLook("lesion"))
    assert saturated.units[saturated.unit_index] == "log-odds"
    assert "saturated (> 99 %)" in saturated.notes
    chosen = changed_look(make_prediction(0.9999), HeatmapLook("lesion"), unit=0)
    assert evidence_panel(make_prediction(0.9999), chosen).bar.unit == "percentage points of p(lesion)"
    assert not evidence_panel(make_prediction(0.9), HeatmapLook()).unit_applies


def test_what_not_to_rely_on_is_said() -> None:
    panel = evidence_panel(make_prediction(0.9, gain=-0.1), HeatmapLook("lesion"))
    assert panel.notes == "These tiles matter less than tiles by chance: don't rely on the heatmap."


def test_the_card_is_without_its_head_for_machines(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "b", EncoderSpec(options={"image_px": 64}), tile_px=64))
    card = card_markdown(bundle.info)
    assert card.startswith("# Tiny")
    assert "How far to trust a result" in card
    assert "library_name" not in card

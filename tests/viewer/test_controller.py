"""The controller against mocks of view, canvas and background: every state and transition, no window."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import call, create_autospec

import pytest
import torch
from fakes import Job, all_started, fake, fake_background, fake_canvas, fake_slide, started
from made_predictions import make_prediction
from made_slides import write_slide

from napari_lrmil._viewer.docks.classify.panel import ClassifyPanel
from napari_lrmil._viewer.docks.classify.presenter import ClassifyPresenter, ClassifyView
from napari_lrmil._viewer.models import LoadedModel, classification, load_model
from napari_lrmil._viewer.settings import Settings
from napari_lrmil._viewer.window import Change, Controller, State
from napari_lrmil.errors import SlideError
from napari_lrmil.heatmap import ATTENTION, HeatmapLook, Scaling
from napari_lrmil.predict import PredictProgress, SlidePrediction
from napari_lrmil.slide import Slide
from napari_lrmil.wording import duration_text, percent_text

SHA = make_prediction().bundle_sha256


def fake_bundle(*, demonstration: bool = True, mpp: float = 2.0, sha: str = SHA, name: str = "Mine") -> Any:
    info = SimpleNamespace(
        name=name,
        sha256=sha,
        class_names=("benign", "lesion"),
        tiles=SimpleNamespace(mpp=mpp, tile_px=64),
        mpps=(mpp,),
        encoder=SimpleNamespace(architecture="vit"),
        demonstration=demonstration,
    )
    return SimpleNamespace(info=info)


def fake_prediction(lesion: float = 0.8, *, demonstration: bool = True, **more: Any) -> SlidePrediction:
    return make_prediction(lesion, shape_yx=(5, 8), demonstration=demonstration, **more)


class Stage:
    """Controller and presenter of the main dock, with fakes around them."""

    def __init__(self, settings: Settings) -> None:
        self.view, self.canvas, self.background = fake(ClassifyView), fake_canvas(), fake_background()
        self.controller = Controller(self.canvas, self.background, settings)
        self.presenter = ClassifyPresenter(self.view, self.controller, self.canvas)
        self.canvas.layers_changed.connect(self.controller.layers_changed)
        self.presenter.refresh(Change.ALL)

    @property
    def panel(self) -> ClassifyPanel:
        """What the dock shows now."""
        panel = self.view.show_panel.call_args.args[0]
        assert isinstance(panel, ClassifyPanel)
        return panel

    @property
    def text(self) -> str:
        """What stands on the canvas now."""
        return str(self.canvas.show_text.call_args.args[0])

    @property
    def hover(self) -> str:
        """The values under the cursor that the dock shows."""
        calls = self.view.show_hover.call_args_list
        return calls[-1].args[0] if calls else ""

    def with_slide(self, name: str = "a") -> Any:
        self.controller.open_slide(f"{name}.svs")
        return self.canvas.opened[-1]

    def with_bundle(self, **options: Any) -> None:
        self.controller.load_bundle("/models/mine")
        started(self.background, "load model").finish(LoadedModel(fake_bundle(**options), ("cuda:0", "cpu")))

    def running(self) -> Job:
        self.controller.classify()
        return started(self.background, "classify")


@pytest.fixture
def stage() -> Stage:
    return Stage(Settings())


@pytest.fixture
def ready(stage: Stage) -> Stage:
    stage.with_slide()
    stage.with_bundle()
    return stage


def test_starts_without_slide(stage: Stage) -> None:
    assert stage.panel.state is State.NO_SLIDE
    assert not stage.panel.can_classify
    assert "Open a slide" in stage.panel.hint


def test_slide_then_bundle_makes_ready(stage: Stage) -> None:
    stage.with_slide()
    assert stage.panel.state is State.NO_BUNDLE
    assert stage.panel.slide_facts == (
        "2,000 × 1,000 px · 1.0 × 0.5 mm · 0.5 µm/px · 20×\nµm/px: 0.5 from the value given"
    )
    stage.controller.load_bundle("/models/mine")
    assert stage.panel.state is State.LOADING_BUNDLE
    started(stage.background, "load model").finish(LoadedModel(fake_bundle(), ("cpu",)))
    panel = stage.panel
    assert panel.state is State.READY
    assert panel.can_classify
    assert panel.bundle_names[panel.bundle_index] == "Mine (abcdef01)"
    assert panel.bundle_is_demonstration
    assert "benign, lesion" in panel.bundle_facts
    assert panel.devices == ("auto", "cpu")


def test_slides_show_the_level_that_the_bundle_reads(stage: Stage) -> None:
    slide = stage.with_slide()
    stage.with_bundle(mpp=4.0)
    assert stage.canvas.place_slide.call_args_list == [call(slide, student_mpp=4.0)]


def test_classify_shows_progress_and_result(ready: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = create_autospec(classification)
    monkeypatch.setattr("napari_lrmil._viewer.window.classification", steps)
    ready.controller.choose_device("cpu")
    job = ready.running()
    steps.assert_called_once_with(ready.canvas.opened[0], ready.controller.bundle, "cpu")
    assert job.steps is steps.return_value
    assert ready.panel.state is State.RUNNING
    assert ready.panel.progress == (0, 0)
    job.progress(PredictProgress(10, 40, 5.0))
    assert ready.panel.progress == (10, 40)
    assert ready.panel.progress_text == "a: 10 of 40 tiles, 15 s left"
    prediction = fake_prediction()
    job.finish(prediction)
    panel = ready.panel
    assert panel.state is State.DONE
    assert panel.result is not None
    assert panel.result.headline == "lesion"
    assert panel.result.classes == (("lesion", 0.8), ("benign", pytest.approx(0.2)))
    assert "40 tiles in 1.3 s on cpu" in panel.result.details
    assert ready.canvas.heatmaps == {ready.canvas.opened[0]: prediction}
    assert ready.text.splitlines() == [
        "lesion  80 %",
        "benign  20 %",
        "demonstration only",
        "not for diagnosis",
    ]


def test_deleted_heatmap_comes_back_when_shown(ready: Stage) -> None:
    ready.running().finish(fake_prediction())
    ready.canvas.heatmaps.clear()
    ready.canvas.layers_changed.emit()
    assert not ready.panel.heatmap_visible
    ready.controller.set_heatmap(visible=True)
    assert ready.panel.heatmap_visible


def test_real_model_carries_no_demonstration_notice(ready: Stage) -> None:
    ready.with_bundle(demonstration=False)
    ready.running().finish(fake_prediction(demonstration=False))
    assert "demonstration" not in ready.text
    assert not ready.panel.bundle_is_demonstration


def test_cancel_keeps_nothing(ready: Stage) -> None:
    job = ready.running()
    ready.controller.cancel()
    ready.background.cancel.assert_called_once_with("classify")
    assert ready.panel.state is State.CANCELLED
    assert ready.panel.can_classify
    job.finish(fake_prediction())  # it was faster than the cancel
    assert ready.panel.result is None
    assert not ready.canvas.heatmaps


def test_failure_is_told_and_can_be_retried(ready: Stage) -> None:
    ready.running().fail("no tissue")
    assert ready.panel.state is State.FAILED
    assert ready.panel.error == "no tissue"
    ready.running()
    assert ready.panel.error == ""


def test_one_classification_at_a_time(ready: Stage) -> None:
    ready.running()
    ready.controller.classify()
    ready.controller.load_bundle("/models/other")
    assert len(all_started(ready.background, "classify")) == 1
    assert len(all_started(ready.background, "load model")) == 1


def test_result_of_a_removed_slide_lands_nowhere(ready: Stage) -> None:
    job = ready.running()
    other = ready.with_slide("b")
    del ready.canvas.opened[0]
    ready.canvas.layers_changed.emit()
    ready.background.cancel.assert_called_once_with("classify")
    job.progress(PredictProgress(1, 2, 1.0))
    job.finish(fake_prediction())
    assert not ready.canvas.heatmaps
    assert ready.panel.result is None
    assert ready.panel.slide_names[ready.panel.slide_index] == other.name


def test_result_lands_on_its_own_slide_after_a_switch(ready: Stage) -> None:
    first = ready.canvas.opened[0]
    job = ready.running()
    second = ready.with_slide("b")
    ready.canvas.active = second
    ready.canvas.layers_changed.emit()
    job.finish(fake_prediction())
    assert list(ready.canvas.heatmaps) == [first]
    assert ready.panel.result is None
    assert ready.text == ""
    ready.controller.choose_slide(0)
    assert ready.panel.result is not None
    assert ready.text.startswith("lesion")


def test_unknown_mpp_blocks_until_given(stage: Stage) -> None:
    stage.with_bundle()
    slide = fake_slide("x", mpp=None)
    stage.canvas.opened.append(slide)
    stage.canvas.layers_changed.emit()
    assert stage.panel.state is State.NEEDS_MPP
    assert "0.25 at 40×" in stage.panel.hint
    stage.controller.classify()
    assert not all_started(stage.background, "classify")
    stage.controller.set_mpp(0.25)
    assert slide.mpp_override == 0.25
    assert stage.canvas.place_slide.call_args == call(slide, student_mpp=2.0)
    assert stage.panel.state is State.READY


def test_a_corrected_mpp_puts_the_result_away(ready: Stage) -> None:
    slide = ready.canvas.opened[0]
    ready.running().finish(fake_prediction())
    assert ready.panel.result is not None
    ready.controller.set_mpp(0.25)
    assert slide.mpp_override == 0.25
    assert ready.panel.result is None
    assert ready.panel.state is State.READY
    assert ready.text == ""
    assert ready.canvas.remove_heatmap.call_args == call(slide)


def test_a_corrected_mpp_stops_the_classification_with_the_old_one(ready: Stage) -> None:
    job = ready.running()
    ready.controller.set_mpp(0.25)
    ready.background.cancel.assert_called_once_with("classify")
    job.finish(fake_prediction())
    assert ready.panel.result is None


def test_a_result_of_another_mpp_is_not_shown(ready: Stage) -> None:
    ready.controller.show_result(ready.canvas.opened[0], fake_prediction(mpp_xy=(0.25, 0.25)))
    assert ready.panel.result is None
    assert not ready.canvas.heatmaps


def test_an_mpp_that_no_slide_has_is_told(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_slide(path, size_xy=(256, 128))
    with Slide(path) as slide:
        stage.canvas.opened.append(slide)
        stage.canvas.layers_changed.emit()
        stage.controller.set_mpp(353)
        assert "353 µm/px isn't plausible" in stage.panel.error
        assert slide.mpp_xy == (0.5, 0.5)


def test_bad_slide_is_told_and_the_other_stays(ready: Stage) -> None:
    ready.controller.open_slide("x.bad")
    assert ready.panel.error == "x.bad is no slide"
    assert ready.panel.slide_names == ("a",)


def test_bad_bundle_is_told_and_the_other_stays(ready: Stage) -> None:
    ready.controller.load_bundle("/models/broken")
    started(ready.background, "load model").fail("damaged")
    assert ready.panel.error == "damaged"
    assert ready.panel.state is State.READY
    assert ready.panel.bundle_names[ready.panel.bundle_index] == "Mine (abcdef01)"


def test_only_the_last_bundle_asked_for_is_taken(stage: Stage) -> None:
    stage.controller.load_bundle("/models/slow")
    stage.controller.load_bundle("/models/quick")
    slow, quick = all_started(stage.background, "load model")
    quick.finish(LoadedModel(fake_bundle(mpp=2.0, name="Quick"), ("cpu",)))
    slow.finish(LoadedModel(fake_bundle(mpp=8.0, name="Slow"), ("cpu",)))
    assert stage.panel.bundle_names[stage.panel.bundle_index] == "Quick (abcdef01)"


def test_nothing_is_rendered_after_shutdown(ready: Stage) -> None:
    job = ready.running()
    before = ready.panel
    ready.controller.shutdown()
    job.finish(fake_prediction())
    ready.background.cancel.assert_called_once_with("classify")
    assert ready.panel is before


def test_percentages_never_claim_more_than_the_model() -> None:
    assert [percent_text(value) for value in (0.0, 0.004, 0.5, 0.994, 0.999, 1.0)] == [
        "0 %",
        "< 1 %",
        "50 %",
        "> 99 %",
        "> 99 %",
        "100 %",
    ]
    assert [duration_text(value) for value in (0.2, 42.4, 200.0)] == ["under 1 s", "42 s", "3 min"]


def test_the_colour_toggle_redraws_the_slide_once(stage: Stage) -> None:
    stage.controller.open_slide("a.svs")
    slide = stage.canvas.opened[0]
    assert stage.panel.icc_available
    assert not stage.panel.icc_applied
    stage.controller.set_icc(True)
    assert slide.icc
    assert stage.canvas.redraw.call_args_list == [call(slide)]
    assert stage.panel.icc_applied
    stage.controller.set_icc(True)
    assert stage.canvas.redraw.call_args_list == [call(slide)]


# --- the words of a result


def test_a_set_of_one_class_is_named(ready: Stage) -> None:
    ready.running().finish(fake_prediction(prediction_set=("lesion",), coverage=0.9))
    result = ready.panel.result
    assert result is not None
    assert result.headline == "lesion"
    assert result.set_text == "Only lesion fits at 90 %"
    assert not result.unsure


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (("benign", "lesion"), "Unsure: benign or lesion at 90 %"),
        ((), "Unsure: no class is probable enough at 90 %"),
    ],
)
def test_unsure_is_the_headline_and_stands_on_the_slide(
    ready: Stage, left: tuple[str, ...], text: str
) -> None:
    ready.running().finish(fake_prediction(prediction_set=left, coverage=0.9))
    result = ready.panel.result
    assert result is not None
    assert (result.headline, result.set_text, result.unsure) == ("Unsure", text, True)
    assert "unsure" in ready.text.splitlines()


def test_a_model_without_trust_says_so(ready: Stage) -> None:
    ready.running().finish(fake_prediction())
    result = ready.panel.result
    assert result is not None
    assert result.set_text == "No set of classes: this model states none."
    assert result.strange_text == ""
    assert result.headline == "lesion"
    assert "states none" in result.distance_text


@pytest.mark.parametrize("score", [7.5, float("nan")])
def test_a_strange_slide_is_warned_of(ready: Stage, score: float) -> None:
    ready.running().finish(fake_prediction(ood_score=score, ood_threshold=2.5))
    result = ready.panel.result
    assert result is not None
    assert "unlike the training slides" in result.strange_text
    assert "warning above 2.5" in result.strange_text
    assert ready.text.splitlines()[0] == "unlike training"
    ready.running().finish(fake_prediction(ood_score=2.5, ood_threshold=2.5))
    assert ready.panel.result is not None
    assert ready.panel.result.strange_text == ""
    assert "unlike" not in ready.text


def test_what_a_strange_slide_would_be_called_is_shown_on_request_and_for_that_slide_alone(
    ready: Stage,
) -> None:
    first = ready.controller.slide
    ready.running().finish(fake_prediction(0.93, ood_score=9.0, ood_threshold=2.5))
    assert first not in ready.canvas.heatmaps
    result = ready.panel.result
    assert result is not None
    assert (result.headline, result.classes, result.set_text, result.withheld) == (
        "unlike training",
        (),
        "",
        True,
    )
    assert ready.panel.evidence is None
    ready.canvas.hovered.emit(10.0, 10.0)
    assert ready.hover == ""
    ready.controller.set_heatmap(visible=True)
    assert first not in ready.canvas.heatmaps  # the switch doesn't bring it either
    ready.controller.reveal_label(True)
    assert first in ready.canvas.heatmaps
    result = ready.panel.result
    assert result is not None
    assert (result.headline, result.revealed, len(result.classes)) == ("unlike training", True, 2)
    assert result.withheld_text.startswith("It would say: lesion 93 %. Not to be used")
    assert ready.panel.evidence is not None
    assert "Not to be used" in ready.panel.evidence.notes
    assert ready.text.splitlines()[:2] == ["unlike training", "heatmap not to be used"]
    assert "lesion" not in ready.text
    ready.canvas.hovered.emit(10.0, 10.0)
    assert "lesion" in ready.hover
    ready.controller.reveal_label(False)  # the mouse rests
    assert ready.hover == ""
    ready.controller.reveal_label(True)
    ready.canvas.hovered.emit(10.0, 10.0)
    assert "lesion" in ready.hover

    ready.with_slide("b")
    assert ready.hover == ""  # a resting mouse tells no tile of the slide before
    ready.running().finish(fake_prediction(0.93, ood_score=9.0, ood_threshold=2.5))
    result = ready.panel.result
    assert result is not None
    assert (result.withheld, result.revealed) == (True, False)
    assert ready.canvas.heatmaps == {}
    ready.controller.choose_slide(0)
    assert ready.controller.slide is first
    assert ready.panel.result is not None
    assert not ready.panel.result.revealed
    assert ready.canvas.heatmaps == {}

    ready.controller.reveal_label(True)
    ready.running().finish(fake_prediction(0.93, ood_score=9.0, ood_threshold=2.5))  # another result
    assert not ready.controller.label_revealed
    assert ready.canvas.heatmaps == {}
    ready.controller.reveal_label(True)
    ready.controller.reveal_label(False)
    assert ready.canvas.heatmaps == {}
    ready.running().finish(fake_prediction(0.93, ood_score=2.5, ood_threshold=2.5))
    ready.controller.reveal_label(True)  # nothing is withheld
    assert not ready.controller.label_revealed
    assert first in ready.canvas.heatmaps


def test_details_name_tiles_level_model_and_version(ready: Stage) -> None:
    ready.running().finish(fake_prediction())
    assert ready.panel.result is not None
    assert ready.panel.result.details.splitlines() == [
        "40 tiles in 1.3 s on cpu",
        "Level 1 at 2 µm/px",
        "Model: Fake (abcdef01)",
        "LRMIL 9.9.9",
    ]


# --- evidence


def test_a_look_holds_for_all_slides(ready: Stage) -> None:
    first = ready.canvas.opened[0]
    ready.running().finish(fake_prediction())
    ready.presenter.choose_evidence(channel=2)
    ready.presenter.choose_evidence(scaling=1)
    ready.presenter.choose_evidence(colormap=1)
    ready.presenter.choose_evidence(threshold=0.25)
    look = HeatmapLook("lesion", Scaling.PERCENTILE, 0.25, diverging="PuOr")
    assert ready.canvas.looks[first] == ready.controller.look == look
    evidence = ready.panel.evidence
    assert evidence is not None
    assert evidence.channels == ("Attention", "Contribution to benign", "Contribution to lesion")
    assert (evidence.channel_index, evidence.scaling_index, evidence.colormap_index) == (2, 1, 1)
    assert evidence.threshold_text == "from 25 %"
    assert "leaving each one out" in evidence.legend
    assert "some are always hot" in evidence.legend
    assert "percentile" in evidence.bar.unit

    second = ready.with_slide("b")
    ready.canvas.active = second
    ready.canvas.layers_changed.emit()
    assert ready.panel.evidence is None
    ready.running().finish(fake_prediction(0.3))
    assert ready.canvas.looks[second] == look
    ready.presenter.choose_evidence(channel=0)  # colours of attention are chosen apart
    assert {look.channel for look in ready.canvas.looks.values()} == {ATTENTION}
    assert ready.panel.evidence is not None
    assert ready.panel.evidence.colormaps[0] == "viridis"
    assert ready.panel.evidence.colormap_index == 0


def test_a_class_that_a_model_lacks_falls_back_to_attention(ready: Stage) -> None:
    ready.running().finish(fake_prediction())
    ready.presenter.choose_evidence(channel=2)
    ready.running().finish(fake_prediction(class_names=("low", "high")))
    assert ready.canvas.looks[ready.canvas.opened[0]].channel == ATTENTION


def test_the_value_under_the_cursor(ready: Stage) -> None:
    """Tiles of 128 µm from (0, 0); the one in row 1, column 2 is number 1 * 8 + 2."""
    ready.canvas.hovered.emit(300.0, 200.0)
    assert ready.hover == ""
    prediction = fake_prediction()
    ready.running().finish(prediction)
    ready.canvas.hovered.emit(300.0, 200.0)
    assert prediction.attention_scores[10] * 40 == pytest.approx(11 / 20.5)
    assert ready.hover == (
        "Tile in row 1, column 2\nattention 0.54×, benign −1.00 pp (−0.05 log-odds, alone −0.50), "
        "lesion +1.00 pp (+0.05 log-odds, alone +0.50)"
    )
    ready.canvas.hovered.emit(-1.0, 200.0)
    assert ready.hover == ""


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.3, "carry the result"), (0.0, "no tile matters much more"), (-0.3, "don't rely on the heatmap")],
)
def test_the_deletion_curve_says_what_it_means(ready: Stage, gain: float, words: str) -> None:
    ready.running().finish(fake_prediction(gain=gain))
    assert ready.panel.evidence is not None
    curve = ready.panel.evidence.curve
    assert curve.gain == pytest.approx(gain)
    assert curve.class_name == "lesion"
    assert words in curve.text


# --- reports that come too late


def test_a_run_that_was_cancelled_does_not_disturb_the_next(ready: Stage) -> None:
    old = ready.running()
    ready.controller.cancel()
    new = ready.running()
    old.progress(PredictProgress(1, 2, 1.0))
    assert ready.panel.progress == (0, 0)
    old.fail("too late")
    assert ready.panel.state is State.RUNNING
    assert ready.panel.error == ""
    prediction = fake_prediction()
    new.finish(prediction)
    assert ready.controller.result is prediction


def test_a_model_that_failed_to_load_does_not_disturb_a_later_one(stage: Stage) -> None:
    stage.with_slide()
    stage.controller.load_bundle("/models/broken")
    stage.controller.load_bundle("/models/good")
    broken, good = all_started(stage.background, "load model")
    broken.fail("damaged")
    assert stage.panel.state is State.LOADING_BUNDLE
    assert stage.panel.error == ""
    good.finish(LoadedModel(fake_bundle(), ("cpu",)))
    assert stage.panel.state is State.READY


# --- what listeners are told


def test_listeners_are_told_what_changed(ready: Stage) -> None:
    told: list[Change] = []
    ready.controller.changed.connect(told.append)

    def since() -> Change:
        change = Change.NOTHING
        while told:
            change |= told.pop(0)
        return change

    ready.canvas.layers_changed.emit()
    assert since() is Change.NOTHING
    job = ready.running()
    assert since() is Change.RUN
    job.progress(PredictProgress(1, 2, 1.0))
    assert since() is Change.RUN
    job.finish(fake_prediction())
    assert since() == Change.RESULT | Change.RESULTS | Change.LOOK | Change.RUN
    ready.controller.set_heatmap(opacity=0.25)
    assert since() is Change.LOOK
    ready.controller.choose_device("cpu")
    assert since() is Change.MODEL
    ready.controller.set_icc(True)
    assert since() is Change.PIXELS
    ready.with_slide("b")
    assert Change.SLIDE | Change.SLIDES | Change.RESULT in since()
    ready.controller.shutdown()
    ready.with_slide("c")
    assert since() is Change.NOTHING


def test_the_same_error_twice_is_shown_twice(ready: Stage) -> None:
    """A click has ticked the box already: it has to be shown unticked again, though nothing else has changed."""
    slide = ready.canvas.opened[0]

    def refuse(self: Any, applied: bool) -> None:
        raise SlideError("the colour profile is damaged")

    type(slide).icc = property(lambda self: False, refuse)
    for _ in range(2):
        before = ready.view.show_panel.call_count
        ready.controller.set_icc(True)
        assert ready.view.show_panel.call_count > before
        assert ready.panel.error == "the colour profile is damaged"
        assert not ready.panel.icc_applied


# --- settings


def test_the_preferred_device_is_taken_with_the_first_model_and_when_it_is_set() -> None:
    stage = Stage(Settings(device="cuda", heatmap_opacity=0.4))
    stage.canvas.set_new_heatmaps.assert_called_once_with(opacity=0.4)
    stage.with_slide()
    stage.with_bundle()
    assert stage.controller.device == "cuda:0"
    stage.controller.choose_device("auto")
    stage.with_bundle()
    assert stage.controller.device == "auto"  # the user's choice holds
    stage.controller.apply_settings(Settings(device="cpu", heatmap_opacity=0.4))
    assert stage.controller.device == "cpu"
    assert stage.panel.device == "cpu"


def test_a_preferred_device_that_is_not_there_leaves_the_choice() -> None:
    stage = Stage(Settings(device="mps"))
    stage.with_bundle()
    assert stage.controller.device == "auto"


def test_another_opacity_in_the_settings_holds_for_this_heatmap_and_new_ones(ready: Stage) -> None:
    ready.running().finish(fake_prediction())
    ready.controller.apply_settings(Settings(heatmap_opacity=0.25))
    assert ready.panel.heatmap_opacity == 0.25
    assert ready.canvas.set_new_heatmaps.call_args == call(opacity=0.25)


def test_a_model_whose_speed_cant_be_measured_loads_all_the_same(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_model(str(tiny_bundle)).speed is not None

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("napari_lrmil.model.speed.measured_speed", full)
    assert load_model(str(tiny_bundle)).speed is None

"""The controller against mocks of view, canvas and background: every state and transition, no window."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_predictions import make_prediction

from napari_lrmil._viewer.docks.classify.panel import Panel, State
from napari_lrmil._viewer.window import Controller
from napari_lrmil.errors import SlideError
from napari_lrmil.heatmap import ATTENTION, HeatmapLook, Scaling
from napari_lrmil.predict import PredictProgress, SlidePrediction
from napari_lrmil.wording import duration_text, percent_text


class FakeSlide:
    """What the controller asks of a slide."""

    def __init__(self, name: str, mpp: float | None = 0.5) -> None:
        self.name = name
        self.mpp_override: float | None = mpp
        self.level_dimensions_xy = ((2000, 1000),)
        self.metadata = {"objective_power": 20.0}
        self.has_icc_profile = True
        self.icc = False

    @property
    def has_mpp(self) -> bool:
        return self.mpp_override is not None

    @property
    def mpp_xy(self) -> tuple[float, float]:
        assert self.mpp_override is not None
        return (self.mpp_override, self.mpp_override)


@dataclass
class FakeCanvas:
    open_: list[FakeSlide] = field(default_factory=list)
    active: FakeSlide | None = None
    heatmaps: dict[FakeSlide, Any] = field(default_factory=dict)
    looks: dict[FakeSlide, HeatmapLook] = field(default_factory=dict)
    placed: list[tuple[FakeSlide, float | None]] = field(default_factory=list)
    redrawn: list[FakeSlide] = field(default_factory=list)
    text: str = ""
    opacity: float = 0.5

    def slides(self) -> tuple[FakeSlide, ...]:
        return tuple(self.open_)

    def active_slide(self) -> FakeSlide | None:
        return self.active

    def open_slide(self, path: Path, *, mpp: float | None = None) -> FakeSlide:
        if path.suffix == ".bad":
            raise SlideError(f"{path.name} is no slide")
        self.open_.append(FakeSlide(path.stem, mpp or 0.5))
        return self.open_[-1]

    def remove_slide(self, slide: FakeSlide) -> None:
        self.open_.remove(slide)

    def bring_forward(self, slide: FakeSlide) -> None:
        self.active = slide

    def place_slide(self, slide: FakeSlide, *, student_mpp: float | None) -> None:
        self.placed.append((slide, student_mpp))

    def redraw(self, slide: FakeSlide) -> None:
        self.redrawn.append(slide)

    def show_heatmap(self, slide: FakeSlide, prediction: Any, look: HeatmapLook) -> None:
        self.heatmaps[slide] = prediction
        self.looks[slide] = look

    def has_heatmap(self, slide: FakeSlide) -> bool:
        return slide in self.heatmaps

    def heatmap_visible(self, slide: FakeSlide) -> bool:
        return slide in self.heatmaps

    def heatmap_opacity(self, slide: FakeSlide) -> float:
        return self.opacity

    def set_heatmap(self, slide: FakeSlide, *, visible: bool | None, opacity: float | None) -> None:
        self.opacity = self.opacity if opacity is None else opacity

    def show_text(self, text: str) -> None:
        self.text = text


@dataclass
class FakeJobs:
    loads: list[tuple[int, str]] = field(default_factory=list)
    runs: list[tuple[int, FakeSlide, str]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)

    def load_bundle(self, job: int, bundle_path: str) -> None:
        self.loads.append((job, bundle_path))

    def classify(self, job: int, slide: FakeSlide, bundle: Any, device: str) -> None:
        self.runs.append((job, slide, device))

    def cancel(self, job: int) -> None:
        self.cancelled.append(job)


class FakeView:
    panel: Panel
    hover: str = ""

    def show_panel(self, panel: Panel) -> None:
        self.panel = panel

    def show_hover(self, text: str) -> None:
        self.hover = text


def fake_bundle(*, demonstration: bool = True, mpp: float = 2.0) -> Any:
    info = SimpleNamespace(
        class_names=("benign", "lesion"),
        tiles=SimpleNamespace(mpp=mpp, tile_px=64),
        encoder=SimpleNamespace(architecture="vit"),
        demonstration=demonstration,
    )
    return SimpleNamespace(info=info)


def fake_prediction(lesion: float = 0.8, *, demonstration: bool = True, **more: Any) -> SlidePrediction:
    return make_prediction(lesion, shape_yx=(5, 8), demonstration=demonstration, **more)


@dataclass
class Stage:
    view: FakeView = field(default_factory=FakeView)
    canvas: FakeCanvas = field(default_factory=FakeCanvas)
    jobs: FakeJobs = field(default_factory=FakeJobs)

    def __post_init__(self) -> None:
        self.controller = Controller(self.view, self.canvas, self.jobs)  # type: ignore[arg-type]
        self.controller.refresh()

    def with_slide(self, name: str = "a") -> FakeSlide:
        self.controller.open_slide(f"{name}.svs")
        return self.canvas.open_[-1]

    def with_bundle(self, **options: Any) -> None:
        self.controller.load_bundle("/models/mine")
        self.controller.bundle_loaded(self.jobs.loads[-1][0], fake_bundle(**options), ("cuda:0", "cpu"))

    def running(self) -> int:
        self.controller.classify()
        return self.jobs.runs[-1][0]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def ready(stage: Stage) -> Stage:
    stage.with_slide()
    stage.with_bundle()
    return stage


def test_starts_without_slide(stage: Stage) -> None:
    assert stage.view.panel.state is State.NO_SLIDE
    assert not stage.view.panel.can_classify
    assert "Open a slide" in stage.view.panel.hint


def test_slide_then_bundle_makes_ready(stage: Stage) -> None:
    stage.with_slide()
    assert stage.view.panel.state is State.NO_BUNDLE
    assert stage.view.panel.slide_facts == "2,000 × 1,000 px · 1.0 × 0.5 mm · 0.5 µm/px · 20×"
    stage.controller.load_bundle("/models/mine")
    assert stage.view.panel.state is State.LOADING_BUNDLE
    stage.controller.bundle_loaded(stage.jobs.loads[0][0], fake_bundle(), ("cpu",))
    panel = stage.view.panel
    assert panel.state is State.READY
    assert panel.can_classify
    assert panel.bundle_names[panel.bundle_index] == "mine"
    assert panel.bundle_is_demonstration
    assert "benign, lesion" in panel.bundle_facts
    assert panel.devices == ("auto", "cpu")


def test_slides_show_the_level_that_the_bundle_reads(stage: Stage) -> None:
    slide = stage.with_slide()
    stage.with_bundle(mpp=4.0)
    assert stage.canvas.placed == [(slide, 4.0)]


def test_classify_shows_progress_and_result(ready: Stage) -> None:
    ready.controller.choose_device("cpu")
    job = ready.running()
    assert ready.jobs.runs == [(job, ready.canvas.open_[0], "cpu")]
    assert ready.view.panel.state is State.RUNNING
    assert ready.view.panel.progress == (0, 0)
    ready.controller.progressed(job, PredictProgress(10, 40, 5.0))
    assert ready.view.panel.progress == (10, 40)
    assert ready.view.panel.progress_text == "a: 10 of 40 tiles, 15 s left"
    prediction = fake_prediction()
    ready.controller.classified(job, prediction)
    panel = ready.view.panel
    assert panel.state is State.DONE
    assert panel.result is not None
    assert panel.result.label == "lesion"
    assert panel.result.classes == (("lesion", 0.8), ("benign", pytest.approx(0.2)))
    assert "40 tiles in 1.3 s on cpu" in panel.result.details
    assert ready.canvas.heatmaps == {ready.canvas.open_[0]: prediction}
    assert ready.canvas.text.splitlines() == [
        "lesion  80 %",
        "benign  20 %",
        "demonstration only",
        "not for diagnosis",
    ]


def test_deleted_heatmap_comes_back_when_shown(ready: Stage) -> None:
    ready.controller.classified(ready.running(), fake_prediction())
    ready.canvas.heatmaps.clear()
    ready.controller.slides_changed()
    assert not ready.view.panel.heatmap_visible
    ready.controller.set_heatmap(visible=True)
    assert ready.view.panel.heatmap_visible


def test_real_model_carries_no_demonstration_notice(ready: Stage) -> None:
    ready.with_bundle(demonstration=False)
    ready.controller.classified(ready.running(), fake_prediction(demonstration=False))
    assert "demonstration" not in ready.canvas.text
    assert not ready.view.panel.bundle_is_demonstration


def test_cancel_keeps_nothing(ready: Stage) -> None:
    job = ready.running()
    ready.controller.cancel()
    assert ready.jobs.cancelled == [job]
    assert ready.view.panel.state is State.CANCELLED
    assert ready.view.panel.can_classify
    ready.controller.classified(job, fake_prediction())  # it was faster than the cancel
    assert ready.view.panel.result is None
    assert not ready.canvas.heatmaps


def test_failure_is_told_and_can_be_retried(ready: Stage) -> None:
    ready.controller.classification_failed(ready.running(), "no tissue")
    assert ready.view.panel.state is State.FAILED
    assert ready.view.panel.error == "no tissue"
    ready.running()
    assert ready.view.panel.error == ""


def test_one_classification_at_a_time(ready: Stage) -> None:
    ready.running()
    ready.controller.classify()
    ready.controller.load_bundle("/models/other")
    assert len(ready.jobs.runs) == 1
    assert len(ready.jobs.loads) == 1


def test_result_of_a_removed_slide_lands_nowhere(ready: Stage) -> None:
    job = ready.running()
    other = ready.with_slide("b")
    del ready.canvas.open_[0]
    ready.controller.slides_changed()
    assert ready.jobs.cancelled == [job]
    ready.controller.progressed(job, PredictProgress(1, 2, 1.0))
    ready.controller.classified(job, fake_prediction())
    assert not ready.canvas.heatmaps
    assert ready.view.panel.result is None
    assert ready.view.panel.slide_names[ready.view.panel.slide_index] == other.name


def test_result_lands_on_its_own_slide_after_a_switch(ready: Stage) -> None:
    first = ready.canvas.open_[0]
    job = ready.running()
    second = ready.with_slide("b")
    ready.canvas.active = second
    ready.controller.slides_changed()
    ready.controller.classified(job, fake_prediction())
    assert list(ready.canvas.heatmaps) == [first]
    assert ready.view.panel.result is None
    assert ready.canvas.text == ""
    ready.controller.choose_slide(0)
    assert ready.view.panel.result is not None
    assert ready.canvas.text.startswith("lesion")


def test_unknown_mpp_blocks_until_given(stage: Stage) -> None:
    stage.with_bundle()
    slide = FakeSlide("x", mpp=None)
    stage.canvas.open_.append(slide)
    stage.controller.slides_changed()
    assert stage.view.panel.state is State.NEEDS_MPP
    assert "0.25 at 40×" in stage.view.panel.hint
    stage.controller.classify()
    assert not stage.jobs.runs
    stage.controller.set_mpp(0.25)
    assert slide.mpp_override == 0.25
    assert stage.canvas.placed[-1] == (slide, 2.0)
    assert stage.view.panel.state is State.READY


def test_mpp_from_the_file_is_not_overridden(ready: Stage) -> None:
    ready.controller.set_mpp(0.25)
    assert ready.canvas.open_[0].mpp_override == 0.5


def test_bad_slide_is_told_and_the_other_stays(ready: Stage) -> None:
    ready.controller.open_slide("x.bad")
    assert ready.view.panel.error == "x.bad is no slide"
    assert ready.view.panel.slide_names == ("a",)


def test_bad_bundle_is_told_and_the_other_stays(ready: Stage) -> None:
    ready.controller.load_bundle("/models/broken")
    ready.controller.bundle_failed(ready.jobs.loads[-1][0], "damaged")
    assert ready.view.panel.error == "damaged"
    assert ready.view.panel.state is State.READY
    assert ready.view.panel.bundle_names[ready.view.panel.bundle_index] == "mine"


def test_only_the_last_bundle_asked_for_is_taken(stage: Stage) -> None:
    stage.controller.load_bundle("/models/slow")
    stage.controller.load_bundle("/models/quick")
    (slow, _), (quick, _) = stage.jobs.loads
    stage.controller.bundle_loaded(quick, fake_bundle(mpp=2.0), ("cpu",))
    stage.controller.bundle_loaded(slow, fake_bundle(mpp=8.0), ("cpu",))
    assert stage.view.panel.bundle_names[stage.view.panel.bundle_index] == "quick"


def test_nothing_is_rendered_after_shutdown(ready: Stage) -> None:
    job = ready.running()
    before = ready.view.panel
    ready.controller.shutdown()
    ready.controller.classified(job, fake_prediction())
    assert ready.jobs.cancelled == [job]
    assert ready.view.panel is before


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
    slide = stage.canvas.open_[0]
    assert stage.view.panel.icc_available
    assert not stage.view.panel.icc_applied
    stage.controller.set_icc(True)
    assert slide.icc
    assert stage.canvas.redrawn == [slide]
    assert stage.view.panel.icc_applied
    stage.controller.set_icc(True)
    assert stage.canvas.redrawn == [slide]


# --- the words of a result


def test_a_set_of_one_class_is_named(ready: Stage) -> None:
    ready.controller.classified(ready.running(), fake_prediction(prediction_set=("lesion",), coverage=0.9))
    result = ready.view.panel.result
    assert result is not None
    assert result.headline == "lesion"
    assert result.set_text == "Set at 90 %: {lesion}"
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
    ready.controller.classified(ready.running(), fake_prediction(prediction_set=left, coverage=0.9))
    result = ready.view.panel.result
    assert result is not None
    assert (result.headline, result.set_text, result.unsure) == ("Unsure", text, True)
    assert "unsure" in ready.canvas.text.splitlines()


def test_a_model_without_trust_says_so(ready: Stage) -> None:
    ready.controller.classified(ready.running(), fake_prediction())
    result = ready.view.panel.result
    assert result is not None
    assert result.set_text == "No set of classes: this model states none."
    assert result.strange_text == ""
    assert result.headline == "lesion"
    assert "states none" in result.distance_text


@pytest.mark.parametrize("score", [7.5, float("nan")])
def test_a_strange_slide_is_warned_of(ready: Stage, score: float) -> None:
    ready.controller.classified(ready.running(), fake_prediction(ood_score=score, ood_threshold=2.5))
    result = ready.view.panel.result
    assert result is not None
    assert "unlike the training slides" in result.strange_text
    assert "warning above 2.5" in result.strange_text
    assert "unlike the training slides" in ready.canvas.text
    ready.controller.classified(ready.running(), fake_prediction(ood_score=2.5, ood_threshold=2.5))
    assert ready.view.panel.result is not None
    assert ready.view.panel.result.strange_text == ""
    assert "unlike" not in ready.canvas.text


def test_details_name_tiles_level_model_and_version(ready: Stage) -> None:
    ready.controller.classified(ready.running(), fake_prediction())
    assert ready.view.panel.result is not None
    assert ready.view.panel.result.details.splitlines() == [
        "40 tiles in 1.3 s on cpu",
        "Level 1 at 2 µm/px",
        "Model: Fake (abcdef01)",
        "LRMIL 9.9.9",
    ]


# --- evidence


def test_a_look_holds_for_all_slides(ready: Stage) -> None:
    first = ready.canvas.open_[0]
    ready.controller.classified(ready.running(), fake_prediction())
    ready.controller.choose_evidence(channel=2)
    ready.controller.choose_evidence(scaling=1)
    ready.controller.choose_evidence(colormap=1)
    ready.controller.choose_evidence(threshold=0.25)
    look = HeatmapLook("lesion", Scaling.PERCENTILE, 0.25, diverging="PuOr")
    assert ready.canvas.looks[first] == ready.controller.look == look
    evidence = ready.view.panel.evidence
    assert evidence is not None
    assert evidence.channels == ("Attention", "Contribution to benign", "Contribution to lesion")
    assert (evidence.channel_index, evidence.scaling_index, evidence.colormap_index) == (2, 1, 1)
    assert evidence.threshold_text == "from 25 %"
    assert "leaving each one out" in evidence.legend
    assert "some are always hot" in evidence.legend
    assert "percentile" in evidence.bar.unit

    second = ready.with_slide("b")
    ready.canvas.active = second
    ready.controller.slides_changed()
    assert ready.view.panel.evidence is None
    ready.controller.classified(ready.running(), fake_prediction(0.3))
    assert ready.canvas.looks[second] == look
    ready.controller.choose_evidence(channel=0)  # colours of attention are chosen apart
    assert {look.channel for look in ready.canvas.looks.values()} == {ATTENTION}
    assert ready.view.panel.evidence is not None
    assert ready.view.panel.evidence.colormaps[0] == "viridis"
    assert ready.view.panel.evidence.colormap_index == 0


def test_a_class_that_a_model_lacks_falls_back_to_attention(ready: Stage) -> None:
    ready.controller.classified(ready.running(), fake_prediction())
    ready.controller.choose_evidence(channel=2)
    ready.controller.classified(ready.running(), fake_prediction(class_names=("low", "high")))
    assert ready.canvas.looks[ready.canvas.open_[0]].channel == ATTENTION


def test_the_value_under_the_cursor(ready: Stage) -> None:
    """Tiles of 128 µm from (0, 0); the one in row 1, column 2 is number 1 * 8 + 2."""
    ready.controller.hovered(300.0, 200.0)
    assert ready.view.hover == ""
    prediction = fake_prediction()
    ready.controller.classified(ready.running(), prediction)
    ready.controller.hovered(300.0, 200.0)
    assert prediction.attention_scores[10] * 40 == pytest.approx(11 / 20.5)
    assert ready.view.hover == "Tile in row 1, column 2\nattention 0.54×, benign −1.00 pp, lesion +1.00 pp"
    ready.controller.hovered(-1.0, 200.0)
    assert ready.view.hover == ""


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.3, "carry the result"), (0.0, "no tile matters much more"), (-0.3, "don't rely on the heatmap")],
)
def test_the_deletion_curve_says_what_it_means(ready: Stage, gain: float, words: str) -> None:
    ready.controller.classified(ready.running(), fake_prediction(gain=gain))
    assert ready.view.panel.evidence is not None
    curve = ready.view.panel.evidence.curve
    assert curve.gain == pytest.approx(gain)
    assert curve.class_name == "lesion"
    assert words in curve.text

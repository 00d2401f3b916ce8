"""Results kept from before, on a real slide and a real cache; the jobs run when the test says so. No window."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from fakes import Job, all_started, fake_background, fake_canvas, run_all, started
from made_predictions import make_prediction
from made_slides import write_slide

from napari_lrmil._viewer.docks.classify.kept_results import KeptResults
from napari_lrmil._viewer.models import LoadedModel
from napari_lrmil._viewer.settings import Settings
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.cache import ResultCache, result_key
from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.slide import Slide


class Stage:
    """One open slide and the model in use; `background` is the controller's, `disk` that of the kept results."""

    def __init__(self, slide: Slide, bundle: ModelBundle, settings: Settings) -> None:
        self.slide, self.bundle = slide, bundle
        self.canvas, self.background, self.disk = fake_canvas(), fake_background(), fake_background()
        self.warnings: list[str] = []
        self.controller = Controller(self.canvas, self.background, settings)
        self.kept = KeptResults(self.controller, self.disk, settings, self.warnings.append)
        self.canvas.layers_changed.connect(self.controller.layers_changed)
        self.canvas.opened.append(slide)
        self.canvas.active = slide
        self.controller.layers_changed()
        self.load(bundle)

    def load(self, bundle: ModelBundle) -> None:
        self.controller.load_bundle("/models/mine")
        started(self.background, "load model").finish(LoadedModel(bundle, ("cuda:0", "cpu")))

    def prediction(self, lesion: float = 0.8) -> SlidePrediction:
        info = self.bundle.info
        return make_prediction(
            lesion,
            bundle_sha256=info.sha256,
            slide_fingerprint=self.slide.fingerprint(),
            mpp_xy=self.slide.mpp_xy,
        )

    def classified(self, prediction: SlidePrediction) -> None:
        self.controller.classify()
        started(self.background, "classify").finish(prediction)

    def in_cache(self, mpp: float = 0.5) -> SlidePrediction | None:
        info = self.bundle.info
        return ResultCache().get(
            self.slide.fingerprint(),
            info.sha256,
            result_key(info, mpp_xy=(mpp, mpp)),
            slide_name=self.slide.name,
        )

    def jobs(self, what: str) -> list[Job]:
        return [job for job in all_started(self.disk) if job.name.startswith(what)]


@pytest.fixture
def bundle(bundle_dir: Path) -> ModelBundle:
    return load_bundle(bundle_dir)


@pytest.fixture
def slide(small_slide: Path) -> Iterator[Slide]:
    with Slide(small_slide) as opened:
        yield opened


@pytest.fixture
def stage(slide: Slide, bundle: ModelBundle) -> Stage:
    return Stage(slide, bundle, Settings())


def another_model(bundle: ModelBundle) -> ModelBundle:
    other: Any = create_autospec(ModelBundle, instance=True)
    other.info = bundle.info.model_copy(update={"weights_sha256": "b" * 64})
    return other


def test_a_model_that_shares_the_weights_is_another_one(stage: Stage) -> None:
    run_all(stage.disk)
    warmer: Any = create_autospec(ModelBundle, instance=True)
    warmer.info = stage.bundle.info.model_copy(update={"temperature": 2.5})
    before = make_prediction(
        0.6,
        bundle_sha256=warmer.info.sha256,
        slide_fingerprint=stage.slide.fingerprint(),
        mpp_xy=stage.slide.mpp_xy,
    )
    ResultCache().put(before, result_key(warmer.info, mpp_xy=stage.slide.mpp_xy))
    stage.load(warmer)
    assert stage.controller.result is None
    stage.controller.show_result(stage.slide, stage.prediction(0.9))  # the first one's, too late
    assert stage.controller.result is None
    run_all(stage.disk)
    assert stage.controller.result is not None
    assert stage.controller.result.bundle_sha256 == warmer.info.sha256


def test_a_result_of_before_is_shown_and_not_kept_again(slide: Slide, bundle: ModelBundle) -> None:
    before = make_prediction(0.9, bundle_sha256=bundle.info.sha256, slide_fingerprint=slide.fingerprint())
    ResultCache().put(before, result_key(bundle.info, mpp_xy=slide.mpp_xy))
    stage = Stage(slide, bundle, Settings())
    assert stage.controller.result is None
    run_all(stage.disk)
    result = stage.controller.result
    assert result is not None
    assert result.class_probabilities.tolist() == before.class_probabilities.tolist()
    assert result.slide_name == slide.name
    assert stage.canvas.heatmaps == {slide: result}
    stage.canvas.layers_changed.emit()
    assert [job.name.split()[0] for job in all_started(stage.disk)] == ["look"]
    assert not stage.warnings


def test_a_new_result_is_kept_once_with_the_pixel_size_that_was_given(stage: Stage) -> None:
    run_all(stage.disk)
    stage.slide.mpp_override = 0.25
    prediction = stage.prediction()
    stage.classified(prediction)
    stage.canvas.layers_changed.emit()
    run_all(stage.disk)
    assert len(stage.jobs("keep")) == 1
    assert stage.in_cache() is None  # not that of the slide's own pixel size
    kept = stage.in_cache(0.25)
    assert kept is not None
    assert kept.class_probabilities.tolist() == prediction.class_probabilities.tolist()
    assert ResultCache().known_fingerprint(stage.slide.path) == prediction.slide_fingerprint


def test_a_result_of_another_model_is_not_kept(stage: Stage) -> None:
    stage.controller.show_result(stage.slide, make_prediction())
    assert not stage.jobs("keep")


def test_what_cannot_be_kept_is_told(stage: Stage, own_cache: Path) -> None:
    run_all(stage.disk)
    stage.classified(stage.prediction())
    (job,) = stage.jobs("keep")
    job.fail("The disk is full.")
    assert stage.warnings == ["The disk is full."]


@pytest.mark.parametrize("meanwhile", ["another model", "closed", "running", "classified", "absent"])
def test_what_is_found_too_late_changes_nothing(stage: Stage, meanwhile: str) -> None:
    (job,) = stage.jobs("look up")
    own = stage.prediction(0.7)
    if meanwhile == "another model":
        stage.load(another_model(stage.bundle))
    elif meanwhile == "closed":
        stage.canvas.opened.clear()
        stage.canvas.active = None
        stage.controller.layers_changed()
    elif meanwhile == "running":
        stage.controller.classify()
    elif meanwhile == "classified":
        stage.classified(own)
    job.finish(None if meanwhile == "absent" else stage.prediction(0.9))
    assert stage.controller.results.get(stage.slide) is (own if meanwhile == "classified" else None)


def test_another_model_or_pixel_size_is_looked_up_anew(stage: Stage) -> None:
    other = another_model(stage.bundle)
    stage.load(other)
    assert len(stage.jobs("look up")) == 2
    run_all(stage.disk)
    assert stage.controller.result is None
    before = make_prediction(
        bundle_sha256=other.info.sha256, slide_fingerprint=stage.slide.fingerprint(), mpp_xy=(0.25, 0.25)
    )
    ResultCache().put(before, result_key(other.info, mpp_xy=(0.25, 0.25)))
    stage.slide.mpp_override = 0.25
    stage.canvas.layers_changed.emit()
    stage.canvas.layers_changed.emit()
    assert len(stage.jobs("look up")) == 3
    run_all(stage.disk)
    assert stage.controller.result is not None
    assert stage.controller.result.bundle_sha256 == other.info.sha256


def test_a_heatmap_that_fades_asks_nothing(stage: Stage) -> None:
    asked = stage.canvas.slides.call_count
    stage.kept.refresh(Change.LOOK)
    assert stage.canvas.slides.call_count == asked
    stage.kept.refresh(Change.LOOK | Change.RESULT)
    assert stage.canvas.slides.call_count > asked


def test_a_damaged_slide_is_found_nothing_for(stage: Stage) -> None:
    stage.slide.path.unlink()
    run_all(stage.disk)
    assert stage.controller.result is None
    assert not stage.warnings


@pytest.mark.parametrize("known", [False, True])
def test_a_slide_replaced_while_open_is_not_shown_the_result_of_the_new_one(
    slide: Slide, bundle: ModelBundle, tmp_path: Path, known: bool
) -> None:
    """Nor is its own kept for it; the window says so and opens the new one on request."""
    new = write_slide(tmp_path / "new.tiff", size_xy=(1536, 1024))
    with Slide(new) as other:
        of_new = make_prediction(bundle_sha256=bundle.info.sha256, slide_fingerprint=other.fingerprint())
    ResultCache().put(of_new, result_key(bundle.info, mpp_xy=(0.5, 0.5)))
    os.replace(new, slide.path)
    if known:  # the batch has been there
        with Slide(slide.path) as other:
            ResultCache().remember_slide(other, other.fingerprint())
    stage = Stage(slide, bundle, Settings())
    run_all(stage.disk)
    assert stage.controller.result is None
    stage.controller.show_result(slide, of_new)  # as the batch does
    assert stage.controller.result is None
    assert "changed while it was read" in stage.controller.error
    assert stage.controller.slide_replaced
    stage.controller.reopen_slide()
    assert stage.canvas.open_slide.call_args.args == (slide.path,)
    assert slide not in stage.controller.slides
    assert not stage.controller.slide_replaced
    assert not stage.controller.error


def test_settings_are_followed(slide: Slide, bundle: ModelBundle) -> None:
    stage = Stage(slide, bundle, Settings(show_cached_results=False, cache_gb=3.0))
    assert not stage.jobs("look up")
    run_all(stage.disk)
    assert ResultCache().size().limit_bytes == 3_000_000_000
    stage.kept.apply_settings(Settings(cache_gb=1.5))
    assert len(stage.jobs("look up")) == 1
    run_all(stage.disk)
    assert ResultCache().size().limit_bytes == 1_500_000_000


def test_a_limit_set_from_the_command_line_stays(slide: Slide, bundle: ModelBundle) -> None:
    ResultCache().set_limit(7_000_000)
    stage = Stage(slide, bundle, Settings())
    assert not stage.jobs("limit")
    run_all(stage.disk)
    assert ResultCache().size().limit_bytes == 7_000_000


def test_it_loads_no_qt_no_napari_and_no_torch() -> None:
    code = (
        "import sys, napari_lrmil._viewer.docks.classify.kept_results, napari_lrmil._viewer.docks.classify.presenter;"
        "assert not {'qtpy', 'torch', 'napari'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The worklist's presenter, kept results and settings against mocks: every transition, no window."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call, create_autospec

import pytest
from fakes import Job, all_started, fake, fake_background, run_all, started
from made_predictions import make_prediction

from napari_lrmil._viewer.docks.worklist import batch as batch_module
from napari_lrmil._viewer.docks.worklist import presenter as presenter_module
from napari_lrmil._viewer.docks.worklist.panel import (
    ListState,
    Pace,
    Show,
    cells,
    judged_note,
    tool_tip,
)
from napari_lrmil._viewer.docks.worklist.presenter import WorklistPresenter
from napari_lrmil._viewer.models import hub_name
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.batch import BatchEvent, Kind
from napari_lrmil.cache import ResultSummary
from napari_lrmil.errors import SlideError, UnknownMppError
from napari_lrmil.model.hub import parse_hub_name
from napari_lrmil.model.naming import bundle_folder, is_bundle
from napari_lrmil.predict import PredictProgress, SlidePrediction
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import Order, Saved, Status, Worklist, WorklistItem, reviews

SHA = "a" * 64


def bundle(sha: str = SHA) -> Any:
    return SimpleNamespace(info=SimpleNamespace(sha256=sha))


def summary(label: str = "lesion", probability: float = 0.9, **options: Any) -> ResultSummary:
    values: dict[str, Any] = {
        "called": label,
        "probability": probability,
        "class_names": ("benign", "lesion"),
        "class_probabilities": (1 - probability, probability),
        "prediction_set": None,
        "unsure": False,
        "out_of_distribution": False,
        "ood_score": None,
        "n_tiles": 3,
        "seconds": 1.0,
        "fingerprint": "f" * 64,
        "bundle_name": "b",
        "bundle_sha256": SHA,
    }
    return ResultSummary(**values | options)


def opened(path: Path, mpp: float | None = None) -> Any:
    """A slide that is open."""
    slide = fake(Slide)
    slide.path, slide.name, slide.mpp_override = path, path.stem, mpp
    slide.has_mpp, slide.mpp_xy = True, (mpp or 0.5, mpp or 0.5)
    slide.stated_mpp_xy = (0.5, 0.5)
    slide.fingerprint.return_value = "f" * 64
    return slide


def prediction_of_it() -> SlidePrediction:
    """Lesion, 80 %, by the model in use."""
    return make_prediction(0.8, bundle_sha256=SHA)


def controller_with(model: Any) -> Any:
    """A controller that opens slides as the real one does, as far as the worklist asks."""
    controller = fake(Controller)
    controller.slides, controller.slide, controller.results = (), None, {}
    controller.bundle, controller.device, controller.error = model, "auto", ""
    controller.result = controller.running_slide = None
    controller.label_revealed, controller.slide_visible = False, True

    def replace_slide(path: Path, old: Any, *, mpp: float | None = None) -> Any:
        if path.stem.startswith("bad") and path.stat().st_size == 0:
            raise SlideError(f"{path.stem} is no slide")
        controller.slide = opened(path, mpp)
        controller.slides = (*(slide for slide in controller.slides if slide not in old), controller.slide)
        controller.changed.emit(Change.SLIDES | Change.SLIDE)
        return controller.slide

    def open_slide(path: Path, *, mpp: float | None = None) -> None:
        replace_slide(path, (), mpp=mpp)

    def choose_slide(index: int) -> None:
        controller.slide = controller.slides[index]
        controller.changed.emit(Change.SLIDE)

    controller.replace_slide.side_effect = replace_slide
    controller.open_slide.side_effect, controller.choose_slide.side_effect = open_slide, choose_slide
    return controller


@dataclass
class Stage:
    presenter: WorklistPresenter
    controller: Any
    background: Any
    folder: Path
    changes: list[int]
    now: list[float]
    clock: Any

    @property
    def panel(self) -> Any:
        return self.presenter.panel()

    def names(self) -> list[str]:
        return [item.slide_id for item in self.panel.rows]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.svs"

    def item(self, name: str) -> WorklistItem:
        assert self.presenter.worklist is not None
        return self.presenter.worklist[self.path(name)]

    def found(self, **results: ResultSummary) -> None:
        """The cache has results."""
        self.job("look up").progress([(self.path(name), result) for name, result in results.items()])

    def job(self, name: str) -> Job:
        return started(self.background, name)

    def looked_up(self) -> list[tuple[int, str]]:
        """How many slides were looked up, for which model."""
        calls: Any = presenter_module.look_up_steps
        return [(len(items), info.sha256) for items, info in (each.args for each in calls.mock_calls)]

    def lines(self) -> list[tuple[str, str | None, str]]:
        """What is on the disk."""
        text = (self.folder / "lrmil-review.jsonl").read_text()
        return [(line["slide"], line["verdict"], line["note"]) for line in map(json.loads, text.splitlines())]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A folder of four empty files called slides, with a model."""
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("s1", "s2", "s3", "s10"):
        (folder / f"{name}.svs").touch()
    for module, name in ((presenter_module, "look_up_steps"), (batch_module, "classify_steps")):
        steps = create_autospec(getattr(module, name), side_effect=lambda *_: (each for each in ()))
        monkeypatch.setattr(module, name, steps)
    background, controller, changes, now = fake_background(), controller_with(bundle()), [0], [0.0]
    clock = Mock(side_effect=lambda: now[0])
    presenter = WorklistPresenter(background, reviewer=lambda: "Ada", clock=clock)
    presenter.changed.connect(lambda: changes.append(0))
    controller.changed.connect(presenter.refresh)
    presenter.attach(controller)
    presenter.open_list(folder)
    assert presenter.panel().state is ListState.LISTING
    started(background, "list").run()
    return Stage(presenter, controller, background, folder, changes, now, clock)


def test_nothing_is_open_at_first() -> None:
    presenter = WorklistPresenter(fake_background())
    panel = presenter.panel()
    assert panel.state is ListState.EMPTY
    assert "Open a folder" in panel.hint
    presenter.step(1)
    presenter.judge("agree")
    assert "Open a slide" in presenter.panel().hint


def test_what_looks_odd_in_a_table_is_said_beside_the_list(stage: Stage, tmp_path: Path) -> None:
    table = tmp_path / "odd.csv"
    table.write_text("path,slide_id,label\na.svs,7,Tumor\nb.svs,7.0,tumor\n")
    stage.presenter.open_list(table)
    started(stage.background, "list").run()
    assert stage.names() == ["7", "7.0"]
    assert stage.panel.hint.startswith(
        "odd.csv: slide_id '7' (line 2) and '7.0' (line 3) look like one. odd.csv: label 'Tumor' (line 2)"
    )
    assert stage.panel.error == ""


def test_a_folder_that_cant_be_listed_says_why_and_the_old_list_stays(stage: Stage) -> None:
    stage.presenter.open_list(Path("/nowhere"))
    stage.job("list").fail("/nowhere holds no slides.")
    assert stage.panel.error == "/nowhere holds no slides."
    assert stage.panel.state is ListState.LISTED
    assert stage.names() == ["s1", "s2", "s3", "s10"]


def test_only_the_last_folder_that_was_asked_for_is_shown(stage: Stage, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.svs").touch()
    stage.presenter.open_list(stage.folder)
    late = stage.job("list")
    stage.presenter.open_list(other)
    stage.job("list").run()
    late.run()
    assert stage.names() == ["x"]


def test_results_are_looked_up_and_the_unsure_come_first(stage: Stage) -> None:
    assert stage.looked_up() == [(4, SHA)]
    stage.found(s1=summary(probability=0.99), s3=summary(unsure=True), s10=summary(out_of_distribution=True))
    assert stage.names() == ["s3", "s10", "s1", "s2"]
    stage.presenter.arrange(order=Order.NAME)
    assert stage.names() == ["s1", "s2", "s3", "s10"]


def test_results_of_another_model_are_left_alone(stage: Stage) -> None:
    stage.found(s1=summary(bundle_sha256="b" * 64))
    assert all(item.label is None for item in stage.panel.rows)


def test_another_model_forgets_results_and_stops_the_batch(stage: Stage) -> None:
    stage.found(s1=summary())
    stage.presenter.classify_all()
    stage.controller.bundle = bundle("b" * 64)
    stage.controller.changed.emit(Change.ALL)
    stage.background.cancel.assert_called_once_with("classify")
    assert stage.looked_up() == [(4, SHA), (4, "b" * 64)]
    assert {item.status for item in stage.panel.rows} == {Status.NEW}


def test_another_model_has_nothing_of_the_batch_before_but_a_broken_file_stays_broken(stage: Stage) -> None:
    with_slides(stage, "bad")
    stage.presenter.classify_all()
    happened = stage.job("classify").progress
    happened(BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=prediction_of_it()))
    happened(BatchEvent(Kind.FAILED, stage.path("s2"), error="no tissue"))
    stage.job("classify").finish()
    stage.presenter.open_slide(stage.path("bad"))
    assert stage.panel.batch.text.startswith("Done: ")
    stage.controller.bundle = bundle("b" * 64)
    stage.controller.changed.emit(Change.MODEL)
    assert stage.panel.batch.text == ""
    assert (stage.item("s2").status, stage.item("s2").error) == (Status.NEW, "")
    assert cells(stage.item("bad"))[0] == "bad\nfailed: bad is no slide"


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (Show.ALL, {"s1", "s2", "s3", "s10"}),
        (Show.TO_REVIEW, {"s2", "s3", "s10"}),
        (Show.DOUBTFUL, {"s3", "s10"}),
        (Show.NOT_CLASSIFIED, {"s2"}),
        (Show.FAILED, set()),
        (Show.DISAGREED, {"s1"}),
    ],
)
def test_filter(stage: Stage, which: Show, left: set[str]) -> None:
    stage.found(s1=summary(), s3=summary(unsure=True), s10=summary(out_of_distribution=True))
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("disagree")
    stage.presenter.arrange(which=which)
    assert set(stage.names()) == left
    assert stage.panel.hint or left


def test_filter_by_words(stage: Stage) -> None:
    stage.found(s1=summary("benign"), s10=summary("lesion", unsure=True))
    stage.presenter.arrange(text="LESION unsure")
    assert stage.names() == ["s10"]
    stage.presenter.arrange(text="")
    assert len(stage.names()) == 4


def test_stepping_opens_and_replaces(stage: Stage) -> None:
    stage.presenter.step(1)
    assert stage.presenter.open_path == stage.path("s1")
    stage.presenter.step(1)
    assert stage.presenter.open_path == stage.path("s2")
    assert [slide.name for slide in stage.controller.slides] == ["s2"]
    stage.presenter.step(-1)
    stage.presenter.step(-1)
    assert stage.presenter.open_path == stage.path("s1")
    assert "first" in stage.panel.hint
    for _ in range(4):
        stage.presenter.step(1)
    assert stage.presenter.open_path == stage.path("s10")
    assert "last" in stage.panel.hint


def test_a_slide_that_cant_be_opened_leaves_the_open_one(stage: Stage) -> None:
    (stage.folder / "bad.svs").touch()
    stage.presenter.open_list(stage.folder)
    stage.job("list").run()
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.open_slide(stage.path("bad"))
    assert stage.panel.error == ""  # nothing stands over the result of s1
    assert stage.panel.hint == "bad can't be opened: bad is no slide"
    assert "failed: bad is no slide" in cells(stage.item("bad"))[0]
    assert stage.presenter.open_path == stage.path("s1")
    stage.presenter.step(1)
    assert stage.panel.hint == ""


def with_slides(stage: Stage, *names: str) -> None:
    """The folder listed again with these in it too."""
    for name in names:
        (stage.folder / f"{name}.svs").touch()
    stage.presenter.open_list(stage.folder)
    stage.job("list").run()


def test_stepping_passes_slides_that_cant_be_opened(stage: Stage) -> None:
    with_slides(stage, "bad0", "bad1", "z")
    opened_in_turn = []
    stage.presenter.arrange(order=Order.NAME)
    assert stage.names() == ["bad0", "bad1", "s1", "s2", "s3", "s10", "z"]
    for _ in range(5):
        stage.presenter.step(1)
        opened_in_turn.append(stage.presenter.open_path.stem if stage.presenter.open_path else "")
    assert opened_in_turn == ["s1", "s2", "s3", "s10", "z"]
    assert {stage.item(name).error for name in ("bad0", "bad1")} == {"bad0 is no slide", "bad1 is no slide"}
    assert {stage.item(name).status for name in ("bad0", "bad1")} == {Status.FAILED}


def test_the_reader_goes_on_behind_unreadable_slides_at_the_end(stage: Stage) -> None:
    with_slides(stage, "bad8", "bad9")
    stage.presenter.arrange(order=Order.NAME)
    stage.presenter.open_slide(stage.path("s2"))
    stage.presenter.step(-1)
    assert stage.presenter.open_path == stage.path("s1")
    stage.presenter.step(-1)
    assert stage.presenter.open_path == stage.path("s1")
    assert stage.panel.hint == "2 slides can't be opened, see their rows. This is the first slide."
    stage.presenter.step(1)  # from the first row, where the reader is now
    assert stage.presenter.open_path == stage.path("s1")


def test_a_slide_that_can_be_opened_again_loses_its_reason(stage: Stage) -> None:
    with_slides(stage, "bad")
    stage.presenter.open_slide(stage.path("bad"))
    stage.path("bad").write_bytes(b"copied to the end")
    stage.presenter.open_slide(stage.path("bad"))
    assert (stage.item("bad").status, stage.item("bad").error) == (Status.NEW, "")
    assert stage.presenter.open_path == stage.path("bad")


def test_stepping_ends_after_a_while_among_unreadable_slides(stage: Stage) -> None:
    with_slides(stage, *(f"bad{number}" for number in range(4)))
    stage.presenter.arrange(order=Order.NAME)
    ticks = iter([0.0, 1.0, 3.0, 10.0, 11.0, 12.0])
    stage.clock.side_effect = lambda: next(ticks)
    stage.presenter.step(1)
    assert stage.panel.hint == "2 slides can't be opened, see their rows."
    stage.presenter.step(1)
    assert stage.presenter.open_path == stage.path("s1")


def test_a_row_that_waits_in_a_batch_keeps_waiting(stage: Stage) -> None:
    with_slides(stage, "bad")
    stage.presenter.classify_all()
    stage.presenter.open_slide(stage.path("bad"))
    assert stage.item("bad").status is Status.QUEUED
    assert "bad is no slide" in tool_tip(stage.item("bad"))


def test_rows_stay_where_they_are_during_a_batch(stage: Stage) -> None:
    stage.presenter.classify_all()
    before = stage.names()
    happened = stage.job("classify").progress
    visited = []
    for doubt, name in enumerate(("s1", "s2", "s3", "s10")):
        stage.presenter.step(1)
        visited.append(stage.presenter.open_path)
        unsure = make_prediction(0.9 - doubt / 10, bundle_sha256=SHA)
        happened(BatchEvent(Kind.FINISHED, stage.path(name), prediction=unsure))
        assert stage.names() == before
    assert visited == [stage.path(name) for name in ("s1", "s2", "s3", "s10")]
    stage.job("classify").finish()
    assert stage.names() == before
    assert stage.panel.order_is_old
    stage.presenter.arrange(order=Order.UNSURE_FIRST)
    assert stage.names() == ["s10", "s3", "s2", "s1"]
    assert not stage.panel.order_is_old


def test_a_slide_that_is_hidden_gets_no_verdict(stage: Stage) -> None:
    stage.presenter.step(1)
    stage.controller.slide_visible = False  # its eye in the layer list
    stage.presenter.judge("unsure")
    assert stage.item("s1").verdict is None
    assert stage.panel.hint == "s1 is hidden: show it by its eye in the layer list before you judge it."
    stage.controller.slide_visible = True
    stage.presenter.judge("unsure")
    assert stage.item("s1").verdict == "unsure"


def test_rows_stay_also_where_a_slide_is_opened_past_the_list(stage: Stage) -> None:
    before = stage.names()
    stage.controller.open_slide(stage.path("s2"))  # a drop, File > Open
    assert stage.presenter.open_path == stage.path("s2")
    stage.found(s10=summary(unsure=True), s3=summary())
    assert stage.names() == before
    assert stage.panel.order_is_old


def test_a_list_opened_beside_a_slide_is_sorted_by_the_results_that_are_found(stage: Stage) -> None:
    stage.controller.open_slide(stage.path("s2"))
    stage.presenter.open_list(stage.folder)
    stage.job("list").run()
    stage.found(s10=summary(unsure=True))
    assert stage.names()[0] == "s10"
    assert not stage.panel.order_is_old


def test_a_slide_that_was_dropped_is_brought_forward_and_not_opened_twice(stage: Stage) -> None:
    for name in ("s1", "s3"):
        stage.controller.open_slide(stage.path(name))
    dropped = list(stage.controller.slides)
    stage.presenter.open_slide(stage.path("s1"))
    assert stage.controller.slide is dropped[0]
    assert list(stage.controller.slides) == dropped
    stage.presenter.step(1)  # s2, in the place of s1
    assert stage.presenter.open_path == stage.path("s2")
    stage.presenter.step(1)
    assert stage.controller.slide is dropped[1]
    assert [one.path.stem for one in stage.controller.slides].count("s3") == 1


def test_filters_leave_the_frozen_order(stage: Stage) -> None:
    stage.presenter.step(1)
    stage.found(s10=summary(unsure=True), s3=summary())
    assert stage.names() == ["s1", "s2", "s3", "s10"]
    stage.presenter.arrange(text="lesion")
    assert stage.names() == ["s3", "s10"]


SHOWN = (
    *("answer_shown", "label_shown", "revealed_label", "set_shown", "unsure_shown", "unlike_training_shown"),
)


@pytest.mark.parametrize("revealed", [False, True])
def test_a_verdict_on_a_slide_unlike_training_is_on_that_answer(stage: Stage, revealed: bool) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.controller.result = make_prediction(
        0.6,
        bundle_sha256=SHA,
        prediction_set=("benign", "lesion"),
        coverage=0.9,
        ood_score=3.0,
        ood_threshold=1.0,
    )
    stage.controller.label_revealed = revealed
    stage.presenter.judge("agree")
    run_all(stage.background)
    (line,) = map(json.loads, (stage.folder / "lrmil-review.jsonl").read_text().splitlines())
    assert {name: line[name] for name in SHOWN} == {
        "answer_shown": "unlike training",
        "label_shown": None,
        "revealed_label": "lesion" if revealed else None,
        "set_shown": ["benign", "lesion"] if revealed else None,
        "unsure_shown": True if revealed else None,
        "unlike_training_shown": True,
    }
    again = Worklist.open(stage.folder)
    path = stage.path("s1")
    assert again.set_result(path, summary(out_of_distribution=True)).status is Status.REVIEWED
    outdated = again.set_result(path, summary())  # by a model that knows such slides
    assert (outdated.status, outdated.verdict_outdated) == (Status.DONE, True)
    assert "with unlike training" in cells(outdated)[1]


def test_a_verdict_on_the_label_of_a_strange_slide_by_an_earlier_version_is_outdated(stage: Stage) -> None:
    line = {
        "format": "lrmil-review", "version": 1, "slide": "s1.svs", "verdict": "agree", "label_shown": "lesion",
        "set_shown": None, "unsure_shown": False, "unlike_training_shown": True,
    }  # fmt: skip
    (stage.folder / "lrmil-review.jsonl").write_text(json.dumps(line) + "\n")
    worklist = Worklist.open(stage.folder)
    item = worklist.set_result(stage.path("s1"), summary(out_of_distribution=True))
    assert (item.status, item.verdict_outdated, item.judged_answer) == (Status.DONE, True, "lesion")
    assert judged_note(item) == "This verdict was given on lesion; now unlike training is shown."
    item = worklist.set_result(stage.path("s1"), summary())
    assert item.status is Status.REVIEWED


def test_a_verdict_keeps_what_the_screen_said(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.controller.result = make_prediction(
        0.6,
        bundle_sha256=SHA,
        prediction_set=("benign", "lesion"),
        coverage=0.9,
        ood_score=0.5,
        ood_threshold=1.0,
    )  # on the screen, and not in the list yet
    stage.presenter.judge("agree")
    run_all(stage.background)
    (line,) = map(json.loads, (stage.folder / "lrmil-review.jsonl").read_text().splitlines())
    assert {name: line[name] for name in SHOWN} == {
        "answer_shown": "lesion",
        "label_shown": "lesion",
        "revealed_label": None,
        "set_shown": ["benign", "lesion"],
        "unsure_shown": True,
        "unlike_training_shown": False,
    }
    assert line["bundle_sha256"] == SHA
    again = Worklist.open(stage.folder)
    review = again.reviews.latest(stage.path("s1"))
    assert review is not None
    assert (review.set_shown, review.unsure_shown) == (("benign", "lesion"), True)


def test_a_verdict_says_on_which_label_it_was_given(stage: Stage) -> None:
    stage.found(s1=summary())
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    assert cells(stage.item("s1"))[1].splitlines()[0] == "✓ agree"
    assert "with" not in cells(stage.item("s1"))[1]
    assert judged_note(stage.item("s1")) == ""
    stage.controller.bundle = bundle("b" * 64)
    stage.controller.changed.emit(Change.MODEL)
    assert cells(stage.item("s1"))[1].splitlines()[:2] == ["✓ agree", "with lesion"]
    said = "This verdict was given on lesion; no result of the chosen model is shown."
    assert judged_note(stage.item("s1")) == said
    stage.found(s1=summary("benign", bundle_sha256="b" * 64))
    assert cells(stage.item("s1"))[1].splitlines()[:2] == ["✓ agree", "with lesion"]
    assert judged_note(stage.item("s1")) == "This verdict was given on lesion; now benign is shown."
    assert "Verdict: ✓ agree (with lesion)" in tool_tip(stage.item("s1"))


def test_a_row_says_why_its_slide_failed_without_its_name_and_once() -> None:
    error = "a.svs opens, but its pixels can't be read: the middle of its coarsest level is damaged. Copy it again"
    item = WorklistItem(Path("/x/a.svs"), "a", Status.FAILED, error=error)
    assert cells(item)[0].startswith("a\nfailed: opens, but its pixels can't be read")
    lines = tool_tip(item).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).count("pixels can't be read") == 1
    assert " ".join(lines).endswith("Copy it again")
    assert cells(replace(item, error="a.svs: no tissue found."))[0] == "a\nfailed: no tissue found."


def test_verdicts_of_earlier_versions_are_read(stage: Stage) -> None:
    old = {
        "format": "lrmil-review",
        "version": 1,
        "slide": "s2.svs",
        "verdict": "agree",
        "label_shown": "lesion",
    }
    (stage.folder / "lrmil-review.jsonl").write_text(json.dumps(old) + "\n")
    review = Worklist.open(stage.folder).reviews.latest(stage.path("s2"))
    assert review is not None
    assert (review.verdict, review.set_shown, review.unsure_shown) == ("agree", None, None)


def test_stepping_goes_on_where_a_verdict_took_the_row_away(stage: Stage) -> None:
    stage.found(**dict.fromkeys(("s1", "s2", "s3", "s10"), summary()))
    stage.presenter.arrange(which=Show.TO_REVIEW)
    stage.presenter.step(1)
    assert stage.panel.open_path == stage.path("s1")
    stage.presenter.judge("agree")
    assert stage.names() == ["s2", "s3", "s10"]
    stage.presenter.step(1)
    assert stage.panel.open_path == stage.path("s2")
    stage.presenter.step(1)
    assert stage.panel.open_path == stage.path("s3")
    stage.presenter.judge("agree")
    stage.presenter.step(-1)
    assert stage.panel.open_path == stage.path("s2")


def test_verdict_and_note_are_shown_at_once_and_written_behind_the_window(stage: Stage) -> None:
    stage.found(s1=summary())
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    stage.presenter.write_note(stage.path("s1"), "clear case")
    assert (stage.panel.verdict, stage.panel.judged.note) == ("agree", "clear case")
    assert stage.panel.reviewed_text == "1 of 4 reviewed"
    assert cells(stage.panel.judged)[1] == "✓ agree\nsaving …\nclear case"
    assert not (stage.folder / "lrmil-review.jsonl").exists()
    run_all(stage.background)
    assert cells(stage.panel.judged)[1] == "✓ agree\nclear case"
    assert stage.lines() == [("s1.svs", "agree", ""), ("s1.svs", "agree", "clear case")]
    again = Worklist.open(stage.folder)
    review = again.reviews.latest(stage.path("s1"))
    assert review is not None
    assert [item.path for item in again if item.verdict or item.note] == [stage.path("s1")]
    assert (review.slide, review.verdict, review.note, review.label_shown, review.reviewer) == (
        "s1.svs",
        "agree",
        "clear case",
        "lesion",
        "Ada",
    )
    stage.presenter.judge(None)
    assert cells(stage.panel.judged)[1] == "saving …\nclear case"
    run_all(stage.background)
    assert Worklist.open(stage.folder)[stage.path("s1")].verdict is None
    assert stage.panel.reviewed_text == "0 of 4 reviewed"


def test_verdicts_given_while_others_are_written_follow_in_their_order(stage: Stage) -> None:
    stage.found(**dict.fromkeys(("s1", "s2", "s3", "s10"), summary()))
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    first = stage.job("write verdicts")
    stage.presenter.judge("disagree")
    stage.presenter.open_slide(stage.path("s2"))
    stage.presenter.judge("unsure")
    assert all_started(stage.background, "write verdicts") == [first]  # one thread is enough
    first.run()
    run_all(stage.background)
    assert stage.lines() == [("s1.svs", "agree", ""), ("s1.svs", "disagree", ""), ("s2.svs", "unsure", "")]
    assert {item.saved for item in stage.panel.rows} == {Saved.YES}


def test_a_verdict_given_just_as_the_others_are_done_is_written_too(stage: Stage) -> None:
    stage.found(**dict.fromkeys(("s1", "s2", "s3", "s10"), summary()))
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    job = stage.job("write verdicts")
    assert list(job.steps) == [None]  # the thread is done, but the window hasn't heard of it yet
    stage.presenter.judge("disagree")
    job.finish()
    assert stage.job("write verdicts") is not job
    assert stage.item("s1").saved is Saved.SAVING
    run_all(stage.background)
    assert [verdict for _, verdict, _ in stage.lines()] == ["agree", "disagree"]
    assert stage.item("s1").saved is Saved.YES


def test_a_note_that_didnt_change_is_not_written(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.write_note(stage.path("s1"), "")
    assert not (stage.folder / "lrmil-review.jsonl").exists()


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line can be written whole any more."""
    really = os.write
    monkeypatch.setattr(reviews.os, "write", lambda handle, data: really(handle, data[:10]))


def test_verdicts_that_cant_be_kept_say_so_and_are_tried_again_with_the_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.found(**dict.fromkeys(("s1", "s2", "s3", "s10"), summary()))
    stage.presenter.open_slide(stage.path("s1"))
    with monkeypatch.context() as disk:
        full_disk(disk)
        stage.presenter.judge("agree")
        run_all(stage.background)
    assert "The verdict on s1.svs could not be kept in" in stage.panel.error
    assert "tried again with the next verdict" in stage.panel.error
    assert stage.panel.verdict == "agree"
    assert cells(stage.panel.judged)[1] == "✓ agree\nnot saved"
    assert "Verdict and note: not saved" in tool_tip(stage.panel.judged)
    stage.presenter.open_slide(stage.path("s2"))
    assert "s1.svs could not be kept" in stage.panel.error  # going on to another slide hides it from nobody
    stage.presenter.judge("unsure")
    run_all(stage.background)
    assert stage.panel.error == ""
    assert {item.saved for item in stage.panel.rows} == {Saved.YES}
    assert stage.lines() == [("s1.svs", "agree", ""), ("s2.svs", "unsure", "")]


def test_verdicts_that_cant_be_kept_outlive_their_list(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.found(**dict.fromkeys(("s1", "s2", "s3", "s10"), summary()))
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.svs").touch()
    stage.presenter.open_slide(stage.path("s1"))
    with monkeypatch.context() as disk:
        full_disk(disk)
        stage.presenter.judge("agree")
        run_all(stage.background)
        stage.presenter.open_list(other)
        run_all(stage.background)
    assert stage.names() == ["x"]
    assert "s1.svs could not be kept" in stage.panel.error
    stage.presenter.open_list(stage.folder)  # and back: the verdict is still there
    run_all(stage.background)
    assert (stage.item("s1").verdict, stage.item("s1").saved) == ("agree", Saved.NO)
    assert stage.presenter.shutdown() == ""  # closing is the last try
    assert stage.lines() == [("s1.svs", "agree", "")]


def test_closing_writes_what_no_thread_has_begun(stage: Stage) -> None:
    stage.found(**dict.fromkeys(("s1", "s2", "s3", "s10"), summary()))
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    assert stage.presenter.shutdown() == ""
    assert stage.lines() == [("s1.svs", "agree", "")]
    stage.presenter.write_note(stage.path("s1"), "as the dock was hidden")
    assert stage.lines()[1:] == [("s1.svs", "agree", "as the dock was hidden")]


def test_closing_says_what_could_not_be_written(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.found(**dict.fromkeys(("s1", "s2", "s3", "s10"), summary()))
    stage.presenter.open_slide(stage.path("s1"))
    with monkeypatch.context() as disk:
        full_disk(disk)
        stage.presenter.judge("agree")
        stage.presenter.write_note(stage.path("s1"), "clear case")
        report = stage.presenter.shutdown()
    assert "could not be kept" in report
    assert "No space left on device" in report
    assert "These verdicts are not saved:\ns1.svs: agree\ns1.svs: agree clear case" in report


def test_changes_that_dont_concern_the_list_are_passed_over(stage: Stage) -> None:
    before = len(stage.changes)
    stage.controller.changed.emit(Change.LOOK | Change.RUN)
    assert len(stage.changes) == before
    stage.controller.changed.emit(Change.SLIDE | Change.RUN)
    assert len(stage.changes) == before + 1


def test_slides_opened_elsewhere_count_when_they_are_listed(stage: Stage) -> None:
    stage.controller.slide = opened(stage.path("s3"))
    assert stage.presenter.open_path == stage.path("s3")
    stage.controller.slide = opened(Path("/elsewhere/s3.svs"))
    assert stage.presenter.open_path is None
    stage.presenter.judge("agree")
    assert stage.panel.reviewed_text == "0 of 4 reviewed"


def test_batch(stage: Stage) -> None:
    stage.found(s2=summary())
    stage.presenter.classify_all()
    calls: Any = batch_module.classify_steps
    items, model, device = calls.call_args.args
    assert ([item.slide_id for item in items], model, device) == (
        ["s1", "s3", "s10"], stage.controller.bundle, "auto"
    )  # fmt: skip
    statuses = {item.slide_id: item.status for item in stage.panel.rows}
    assert statuses == {"s1": "queued", "s3": "queued", "s10": "queued", "s2": "done"}
    happened = stage.job("classify").progress
    happened(BatchEvent(Kind.STARTED, stage.path("s1")))
    assert stage.presenter.worklist is not None
    assert stage.presenter.worklist[stage.path("s1")].status is Status.RUNNING
    stage.now[0] = 10.0
    happened(BatchEvent(Kind.PROGRESS, stage.path("s1"), progress=PredictProgress(5, 10, 10.0)))
    assert stage.panel.batch.text == "0 of 3 classified, 50 s left"  # half a slide took 10 s
    prediction = prediction_of_it()
    happened(BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=prediction))
    happened(BatchEvent(Kind.FAILED, stage.path("s3"), error="no tissue"))
    stage.now[0] = 20.0
    assert stage.panel.batch.text == "2 of 3 classified, 1 failed, 10 s left"
    assert "no tissue" in tool_tip(stage.presenter.worklist[stage.path("s3")])
    stage.job("classify").finish()
    assert stage.panel.batch.text == "Done: 1 of 3 classified: 1 lesion; 1 failed: point at them to see why."
    assert stage.presenter.worklist[stage.path("s10")].status is Status.NEW


def test_cancelled_batch_leaves_nothing_waiting_and_hears_nothing_more(stage: Stage) -> None:
    stage.presenter.classify_all()
    happened = stage.job("classify").progress
    stage.presenter.cancel()
    assert {item.status for item in stage.panel.rows} == {Status.NEW}
    happened(BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=prediction_of_it()))
    assert all(item.label is None for item in stage.panel.rows)
    assert stage.panel.batch.text.startswith("Stopped: 0 of 4")
    assert stage.panel.batch.can_start


def test_batch_that_fails_as_a_whole_says_why(stage: Stage) -> None:
    stage.presenter.classify_all()
    stage.job("classify").fail("the device isn't there")
    assert stage.panel.batch.text == "the device isn't there"
    assert not stage.panel.batch.running


def test_batch_result_of_the_open_slide_shows(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.classify_all()
    prediction = prediction_of_it()
    stage.job("classify").progress(BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=prediction))
    stage.controller.show_result.assert_called_once_with(stage.controller.slide, prediction)


def test_batch_result_of_another_pixel_size_is_none(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.classify_all()
    stage.controller.slide.mpp_xy = (0.25, 0.25)  # corrected while the batch read it
    event = BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=prediction_of_it())
    stage.job("classify").progress(event)
    stage.controller.show_result.assert_not_called()
    assert next(item for item in stage.panel.rows if item.slide_id == "s1").label is None


def test_a_row_says_that_its_slide_needs_a_pixel_size(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.controller.slide.has_mpp = False
    stage.controller.changed.emit(Change.SLIDE)
    row = next(item for item in stage.panel.rows if item.slide_id == "s1")
    assert cells(row)[0] == "s1\nneeds µm/px"
    stage.controller.slide.has_mpp, stage.controller.slide.mpp_override = True, 0.25
    stage.controller.changed.emit(Change.PIXELS)
    row = next(item for item in stage.panel.rows if item.slide_id == "s1")
    assert cells(row)[0] == "s1\nnot classified"


def test_a_corrected_pixel_size_takes_the_result_out_of_the_row(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.found(s1=summary())
    stage.controller.changed.emit(Change.SLIDE)
    looked_up = len(all_started(stage.background, "look up"))
    stage.controller.slide.mpp_override = 0.25
    stage.controller.changed.emit(Change.PIXELS)
    assert next(item for item in stage.panel.rows if item.slide_id == "s1").label is None
    assert len(all_started(stage.background, "look up")) == looked_up + 1


def test_a_batch_says_which_slides_need_a_pixel_size(stage: Stage) -> None:
    stage.presenter.classify_all()
    event = BatchEvent.failed(stage.path("s2"), UnknownMppError("s2 doesn't say"))
    stage.job("classify").progress(event)
    row = next(item for item in stage.panel.rows if item.slide_id == "s2")
    assert cells(row)[0] == "s2\nneeds µm/px"
    assert "s2 doesn't say" in tool_tip(row)


def test_result_of_the_main_dock_shows_in_the_row(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.controller.results[stage.controller.slide] = prediction_of_it()
    stage.controller.changed.emit(Change.ALL)
    item = next(item for item in stage.panel.rows if item.slide_id == "s1")
    assert (item.label, item.probability) == ("lesion", 0.8)


def test_nothing_to_classify(stage: Stage) -> None:
    stage.found(**{name: summary() for name in ("s1", "s2", "s3", "s10")})
    stage.presenter.classify_all()
    assert "classified" in stage.panel.hint
    stage.controller.bundle = None
    assert not stage.panel.batch.can_start


def test_dropped(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "bundle.json").touch()
    stage.presenter.dropped(tmp_path / "model")
    stage.presenter.dropped(tmp_path / "model" / "bundle.json")
    assert stage.controller.load_bundle.mock_calls == [call(str(tmp_path / "model"))] * 2
    assert len(all_started(stage.background, "list")) == 1
    stage.presenter.dropped(tmp_path / "folder")
    run_all(stage.background)
    assert stage.panel.folder == str(tmp_path / "folder")


def test_pace() -> None:
    pace = Pace(4, 100.0)
    assert pace.seconds_left(110.0) is None
    pace.slide_over("lesion")
    assert pace.seconds_left(110.0) == 30.0
    pace.slide_share(0.5)
    assert pace.seconds_left(115.0) == 25.0  # 1.5 slides in 15 s; 2.5 are left
    for answer in ("unlike training", "lesion", None):
        pace.slide_over(answer)
    assert pace.end_text(cancelled=False) == (
        "Done: 3 of 4 classified: 2 lesion, 1 unlike training; 1 failed: point at them to see why."
    )


def test_marks_differ_in_shape_and_text() -> None:
    item = WorklistItem(
        Path("a.svs"), "a", Status.DONE, answer="lesion", label="lesion", probability=0.5, unsure=True
    )
    assert cells(item)[0] == "a\nlesion  50 %\n◆ unsure"
    assert "more than one class" in tool_tip(item)
    strange = WorklistItem(Path("a.svs"), "a", Status.DONE, answer="unlike training", ood=True)
    assert cells(strange)[0] == "a\n▲ unlike training\nclassified"
    assert "Unlike the training slides" in tool_tip(strange)


@pytest.mark.parametrize(
    "typed",
    ["owner/name", " hf-hub:owner/name ", "https://huggingface.co/owner/name", "owner/name@v1"],
)
def test_hub_names_as_people_type_them(typed: str) -> None:
    assert parse_hub_name(hub_name(typed)).repo_id == "owner/name"


def test_what_is_a_bundle(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    (tmp_path / "bundle.json").touch()
    assert is_bundle(tmp_path)
    assert bundle_folder(tmp_path / "bundle.json") == bundle_folder(tmp_path) == tmp_path


def test_presenters_load_no_qt_and_no_torch() -> None:
    docks = "napari_lrmil._viewer.docks"
    modules = f"{docks}.worklist.presenter, {docks}.worklist.thumbnails, {docks}.classify.kept_results"
    code = f"import sys, {modules}; assert not {{'qtpy', 'torch', 'napari'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_agreeing_takes_a_result_and_a_note_or_unsure_does_not(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    for verdict in ("agree", "disagree"):
        stage.presenter.judge(verdict)
        assert f"s1 has no result to {verdict} with: classify it first." in stage.panel.hint
        assert stage.item("s1").verdict is None
    stage.presenter.write_note(stage.path("s1"), "look again")
    stage.presenter.judge("unsure")
    run_all(stage.background)
    assert stage.lines() == [("s1.svs", None, "look again"), ("s1.svs", "unsure", "look again")]
    assert stage.panel.hint == ""
    stage.found(s1=summary())
    stage.presenter.judge("agree")
    run_all(stage.background)
    assert stage.lines()[-1] == ("s1.svs", "agree", "look again")


def test_a_note_leaves_the_verdict_on_the_label_that_it_was_given_on(stage: Stage) -> None:
    stage.found(s1=summary())
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    stage.controller.bundle = bundle("b" * 64)
    stage.controller.changed.emit(Change.MODEL)
    stage.presenter.write_note(stage.path("s1"), "by the other model")
    run_all(stage.background)
    text = (stage.folder / "lrmil-review.jsonl").read_text()
    told = [
        (line["verdict"], line["label_shown"], line["note"]) for line in map(json.loads, text.splitlines())
    ]
    assert told == [("agree", "lesion", ""), ("agree", "lesion", "by the other model")]

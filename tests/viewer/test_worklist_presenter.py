"""The worklist's presenter against mocks: every transition, no window."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from psygnal import Signal

from napari_lrmil._viewer.docks.worklist.panel import ListState, Pace
from napari_lrmil._viewer.docks.worklist.presenter import Presenter
from napari_lrmil._viewer.docks.worklist.rows import Show, cells, tool_tip
from napari_lrmil._viewer.models import bundle_folder, hub_name, is_bundle
from napari_lrmil._viewer.window import Change, State
from napari_lrmil.batch import BatchEvent, Kind
from napari_lrmil.cache import ResultSummary
from napari_lrmil.model.hub import parse_hub_name
from napari_lrmil.predict import PredictProgress
from napari_lrmil.worklist import Order, Status, Worklist, WorklistItem

SHA = "a" * 64


def bundle(sha: str = SHA) -> Any:
    return SimpleNamespace(info=SimpleNamespace(weights_sha256=sha))


def summary(label: str = "lesion", probability: float = 0.9, **options: Any) -> ResultSummary:
    values: dict[str, Any] = {
        "label": label,
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


class FakeSlide:
    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self.mpp_override = path, mpp
        self.name = path.stem


@dataclass(eq=False)
class FakePrediction:
    """As much of a prediction as `summarise` reads."""

    label: str = "lesion"
    bundle_sha256: str = SHA
    slide_fingerprint: str = "f" * 64
    class_names: tuple[str, ...] = ("benign", "lesion")
    prediction_set: Any = None
    unsure: bool = False
    out_of_distribution: bool = False
    ood_score: Any = None
    tiles: tuple[int, ...] = ()
    seconds: float = 1.0
    bundle_name: str = "b"

    @property
    def class_probabilities(self) -> Any:
        import numpy as np

        return np.array([0.2, 0.8])


class Signals:
    changed = Signal(Change)


@dataclass
class FakeController:
    """What presenter and recall ask of the controller."""

    slides: list[FakeSlide] = field(default_factory=list)
    slide: FakeSlide | None = None
    bundle: Any = None
    device: str = "auto"
    devices: tuple[str, ...] = ("auto", "cuda:0", "cuda:1", "cpu")
    error: str = ""
    state: State = State.READY
    results: dict[Any, Any] = field(default_factory=dict)
    running_slide: Any = None
    loaded: list[str] = field(default_factory=list)
    opacities: list[float] = field(default_factory=list)
    signals: Signals = field(default_factory=Signals)

    @property
    def result(self) -> Any:
        return self.results.get(self.slide)

    @property
    def changed(self) -> Any:
        return self.signals.changed

    def choose_slide(self, index: int) -> None:
        self.slide = self.slides[index]

    def choose_device(self, device: str) -> None:
        self.device = device
        self.changed.emit(Change.ALL)

    def set_heatmap(self, *, opacity: float) -> None:
        self.opacities.append(opacity)

    def load_bundle(self, path: str) -> None:
        self.loaded.append(path)

    def replace_slide(self, path: Path, old: Any, *, mpp: float | None = None) -> None:
        self.error = "" if path.stem != "bad" else "bad is no slide"
        if not self.error:
            self.slide = FakeSlide(path, mpp)
            self.slides = [slide for slide in self.slides if slide not in old] + [self.slide]
        self.changed.emit(Change.ALL)

    def show_result(self, slide: FakeSlide, prediction: Any) -> None:
        self.results[slide] = prediction
        self.changed.emit(Change.ALL)


@dataclass
class FakeJobs:
    """List, cache and batch; `calls` tells what was asked."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    handlers: dict[str, Any] = field(default_factory=dict)

    def open_list(self, path: Path, *, recursive: bool, done: Any, failed: Any) -> None:
        self.calls.append(("open", path, recursive))
        self.handlers.update(done=done, failed=failed)

    def look_up(self, items: Sequence[WorklistItem], info: Any, found: Any) -> None:
        self.calls.append(("look up", len(items), info.weights_sha256))

    def classify(
        self,
        items: Sequence[WorklistItem],
        bundle: Any,
        device: str,
        *,
        happened: Any,
        done: Any,
        failed: Any,
    ) -> None:
        self.calls.append(("classify", [item.slide_id for item in items], device))
        self.handlers.update(happened=happened, over=done, broke=failed)

    def cancel_batch(self) -> None:
        self.calls.append(("cancel",))


@dataclass
class Stage:
    presenter: Presenter
    controller: FakeController
    jobs: FakeJobs
    folder: Path
    changes: list[int]
    now: list[float]

    @property
    def panel(self) -> Any:
        return self.presenter.panel()

    def names(self) -> list[str]:
        return [item.slide_id for item in self.panel.rows]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.svs"

    def found(self, **results: ResultSummary) -> None:
        self.presenter.found([(self.path(name), result) for name, result in results.items()])


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A folder of four empty files called slides, with a model."""
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("s1", "s2", "s3", "s10"):
        (folder / f"{name}.svs").touch()
    jobs, controller, changes, now = FakeJobs(), FakeController(bundle=bundle()), [0], [0.0]
    presenter = Presenter(jobs, jobs, lambda: changes.append(0), reviewer=lambda: "Ada", clock=lambda: now[0])
    controller.changed.connect(lambda _: presenter.controller_changed())
    presenter.attach(controller)  # type: ignore[arg-type]
    presenter.open_list(folder)
    assert presenter.panel().state is ListState.LISTING
    jobs.handlers["done"](Worklist.open(folder))
    return Stage(presenter, controller, jobs, folder, changes, now)


def test_nothing_is_open_at_first() -> None:
    presenter = Presenter(FakeJobs(), FakeJobs(), lambda: None)
    panel = presenter.panel()
    assert panel.state is ListState.EMPTY
    assert "Open a folder" in panel.hint
    presenter.step(1)
    presenter.judge("agree")
    assert "Open a slide" in presenter.panel().hint


def test_a_folder_that_cant_be_listed_says_why_and_the_old_list_stays(stage: Stage) -> None:
    stage.presenter.open_list(Path("/nowhere"))
    stage.jobs.handlers["failed"]("/nowhere holds no slides.")
    assert stage.panel.error == "/nowhere holds no slides."
    assert stage.panel.state is ListState.LISTED
    assert stage.names() == ["s1", "s2", "s3", "s10"]


def test_only_the_last_folder_that_was_asked_for_is_shown(stage: Stage, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.svs").touch()
    stage.presenter.open_list(stage.folder)
    late = stage.jobs.handlers["done"]
    stage.presenter.open_list(other)
    stage.jobs.handlers["done"](Worklist.open(other))
    late(Worklist.open(stage.folder))
    assert stage.names() == ["x"]


def test_results_are_looked_up_and_the_unsure_come_first(stage: Stage) -> None:
    assert ("look up", 4, SHA) in stage.jobs.calls
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
    assert ("cancel",) in stage.jobs.calls
    assert ("look up", 4, "b" * 64) in stage.jobs.calls
    assert {item.status for item in stage.panel.rows} == {Status.NEW}


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
    stage.jobs.handlers["done"](Worklist.open(stage.folder))
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.open_slide(stage.path("bad"))
    assert stage.panel.error == "bad is no slide"
    assert stage.presenter.open_path == stage.path("s1")


def test_stepping_goes_on_where_a_verdict_took_the_row_away(stage: Stage) -> None:
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


def test_verdict_and_note_are_on_the_disk_at_once(stage: Stage) -> None:
    stage.found(s1=summary())
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    stage.presenter.write_note(stage.path("s1"), "clear case")
    assert stage.panel.reviewed_text == "1 of 4 reviewed"
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
    assert Worklist.open(stage.folder)[stage.path("s1")].verdict is None
    assert stage.panel.reviewed_text == "0 of 4 reviewed"


def test_a_note_that_didnt_change_is_not_written(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.write_note(stage.path("s1"), "")
    assert not (stage.folder / "lrmil-review.jsonl").exists()


def test_verdicts_that_cant_be_kept_say_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import napari_lrmil.worklist.reviews as reviews

    def full(path: Path, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reviews, "_append_line", full)
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.judge("agree")
    assert "could not be kept" in stage.panel.error
    assert stage.panel.verdict is None


def test_slides_opened_elsewhere_count_when_they_are_listed(stage: Stage) -> None:
    stage.controller.slide = FakeSlide(stage.path("s3"))
    assert stage.presenter.open_path == stage.path("s3")
    stage.controller.slide = FakeSlide(Path("/elsewhere/s3.svs"))
    assert stage.presenter.open_path is None
    stage.presenter.judge("agree")
    assert stage.panel.reviewed_text == "0 of 4 reviewed"


def test_batch(stage: Stage) -> None:
    stage.found(s2=summary())
    stage.presenter.classify_all()
    assert ("classify", ["s1", "s3", "s10"], "auto") in stage.jobs.calls
    statuses = {item.slide_id: item.status for item in stage.panel.rows}
    assert statuses == {"s1": "queued", "s3": "queued", "s10": "queued", "s2": "done"}
    happened = stage.jobs.handlers["happened"]
    happened(BatchEvent(Kind.STARTED, stage.path("s1")))
    assert stage.presenter.worklist is not None
    assert stage.presenter.worklist[stage.path("s1")].status is Status.RUNNING
    stage.now[0] = 10.0
    happened(BatchEvent(Kind.PROGRESS, stage.path("s1"), progress=PredictProgress(5, 10, 10.0)))
    assert stage.panel.batch.text == "0 of 3 classified, 50 s left"  # half a slide took 10 s
    prediction: Any = FakePrediction()
    happened(BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=prediction))
    happened(BatchEvent(Kind.FAILED, stage.path("s3"), error="no tissue"))
    stage.now[0] = 20.0
    assert stage.panel.batch.text == "2 of 3 classified, 1 failed, 10 s left"
    assert "no tissue" in tool_tip(stage.presenter.worklist[stage.path("s3")])
    stage.jobs.handlers["over"]()
    assert stage.panel.batch.text == "Done: 1 of 3 classified; 1 failed: point at them to see why."
    assert stage.presenter.worklist[stage.path("s10")].status is Status.NEW


def test_cancelled_batch_leaves_nothing_waiting_and_hears_nothing_more(stage: Stage) -> None:
    stage.presenter.classify_all()
    happened = stage.jobs.handlers["happened"]
    stage.presenter.cancel()
    assert {item.status for item in stage.panel.rows} == {Status.NEW}
    happened(BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=FakePrediction()))  # type: ignore[arg-type]
    assert all(item.label is None for item in stage.panel.rows)
    assert stage.panel.batch.text.startswith("Stopped: 0 of 4")
    assert stage.panel.batch.can_start


def test_batch_that_fails_as_a_whole_says_why(stage: Stage) -> None:
    stage.presenter.classify_all()
    stage.jobs.handlers["broke"]("the device isn't there")
    assert stage.panel.batch.text == "the device isn't there"
    assert not stage.panel.batch.running


def test_batch_result_of_the_open_slide_shows(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.presenter.classify_all()
    prediction = FakePrediction()
    stage.jobs.handlers["happened"](BatchEvent(Kind.FINISHED, stage.path("s1"), prediction=prediction))  # type: ignore[arg-type]
    assert stage.controller.result is prediction


def test_result_of_the_main_dock_shows_in_the_row(stage: Stage) -> None:
    stage.presenter.open_slide(stage.path("s1"))
    stage.controller.results[stage.controller.slide] = FakePrediction()
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
    assert stage.controller.loaded == [str(tmp_path / "model")] * 2
    stage.presenter.dropped(tmp_path / "folder")
    assert stage.jobs.calls[-1] == ("open", tmp_path / "folder", False)


def test_pace() -> None:
    pace = Pace(4, 100.0)
    assert pace.seconds_left(110.0) is None
    pace.slide_over(failed=False)
    assert pace.seconds_left(110.0) == 30.0
    pace.slide_share(0.5)
    assert pace.seconds_left(115.0) == 25.0  # 1.5 slides in 15 s; 2.5 are left


def test_marks_differ_in_shape_and_text() -> None:
    item = WorklistItem(
        Path("a.svs"), "a", Status.DONE, label="lesion", probability=0.5, unsure=True, ood=True
    )
    assert cells(item)[0] == "a\nlesion  50 %\n◆ unsure  ▲ unlike training"
    assert "more than one class" in tool_tip(item)
    assert "Unlike the training slides" in tool_tip(item)


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


def test_presenter_loads_no_qt_and_no_torch() -> None:
    code = (
        "import sys, napari_lrmil._viewer.docks.worklist.presenter, napari_lrmil._viewer.docks.classify.kept_results;"
        "assert not {'qtpy', 'torch', 'napari'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The export dock without a window: what it offers, does and says, and its table of formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from made_predictions import make_prediction

from napari_lrmil._viewer.background import Background
from napari_lrmil._viewer.docks.export.formats import FORMATS, Format, Options, Step, verdict_of
from napari_lrmil._viewer.docks.export.panel import ExportPanel
from napari_lrmil._viewer.docks.export.presenter import ExportPresenter, ExportView
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.worklist import Review, ReviewFile


def format_of(key: str) -> Format:
    return next(each for each in FORMATS if each.key == key)


class Dock:
    """A presenter with its surroundings; a slide with a result is open, without its model."""

    def __init__(self, folder: Path) -> None:
        self.view = create_autospec(ExportView, instance=True)
        self.background = create_autospec(Background, instance=True)
        self.controller = create_autospec(Controller, instance=True)
        slide = SimpleNamespace(path=folder / "slide.tiff")
        self.controller.slide, self.controller.slides = slide, (slide,)
        self.controller.result, self.controller.bundle = make_prediction(), None
        self.presenter = ExportPresenter(self.view, self.background)
        self.presenter.attach(self.controller)
        self.presenter.refresh()

    @property
    def panel(self) -> ExportPanel:
        return self.view.show_panel.call_args.args[0]

    def report(self, kind: str, *values: Any) -> None:
        """As the background reports of the last export."""
        self.background.start.call_args.kwargs[kind](*values)


@pytest.fixture
def dock(tmp_path: Path) -> Dock:
    return Dock(tmp_path)


def test_nothing_open_nothing_offered(dock: Dock) -> None:
    """What to do is said."""
    dock.controller.slide = dock.controller.result = None
    dock.presenter.refresh(Change.SLIDE)
    assert dock.panel == ExportPanel(hint="Open and classify a slide first.")
    dock.presenter.export(format_of("png"), Path("heatmap.png"), Options())
    dock.background.start.assert_not_called()


def test_reports_need_the_model_of_the_result(dock: Dock, tmp_path: Path) -> None:
    assert dock.panel.can_export
    assert not dock.panel.can_report
    assert "load the model" in dock.panel.hint
    dock.presenter.export(format_of("pdf"), tmp_path / "report.pdf", Options())
    dock.background.start.assert_not_called()
    info = SimpleNamespace(sha256=dock.controller.result.bundle_sha256)
    dock.controller.bundle = SimpleNamespace(info=info)
    dock.presenter.refresh(Change.MODEL)
    assert dock.panel.can_report
    assert dock.panel.hint == ""
    info.sha256 = "another"
    dock.presenter.refresh(Change.MODEL)
    assert not dock.panel.can_report


def test_what_does_not_concern_it_shows_nothing(dock: Dock) -> None:
    dock.view.show_panel.reset_mock()
    for change in (Change.LOOK, Change.RUN, Change.PIXELS, Change.NOTHING):
        dock.presenter.refresh(change)
    dock.view.show_panel.assert_not_called()
    for change in (Change.SLIDES, Change.SLIDE, Change.RESULT, Change.MODEL | Change.RUN):
        dock.view.show_panel.reset_mock()
        dock.presenter.refresh(change)
        dock.view.show_panel.assert_called_once()


def test_from_the_choice_to_the_file(dock: Dock, tmp_path: Path) -> None:
    dock.view.ask_path.return_value = None
    dock.presenter.choose(format_of("png"), Options())
    dock.background.start.assert_not_called()
    dock.view.ask_path.return_value = tmp_path / "mine"
    dock.presenter.choose(format_of("png"), Options())
    dock.view.may_replace.assert_not_called()  # nothing is there
    assert (dock.panel.progress, dock.panel.progress_text) == ((0, 0), "Heatmap as picture (PNG)")
    dock.report("progressed", Step(1, 3, "painting"))
    assert (dock.panel.progress, dock.panel.progress_text) == ((1, 3), "Heatmap as picture (PNG): painting")
    assert not dock.panel.can_export
    dock.presenter.choose(format_of("png"), Options())
    dock.background.start.assert_called_once()  # one at a time
    dock.report("done", (tmp_path / "mine.png",))
    assert dock.panel.success == f"Saved mine.png in {tmp_path}."
    assert dock.panel.folder == str(tmp_path)
    assert dock.panel.can_export
    dock.controller.slide = SimpleNamespace(path=tmp_path / "other.tiff")
    dock.presenter.refresh(Change.SLIDE)
    assert dock.panel.success == dock.panel.folder == ""


def test_all_files_of_a_format_are_asked_about(dock: Dock, tmp_path: Path) -> None:
    dock.view.ask_path.return_value = tmp_path / "result.json"
    dock.view.may_replace.return_value = False
    (tmp_path / "result.csv").touch()
    dock.presenter.choose(format_of("tables"), Options())
    dock.view.may_replace.assert_called_with("result.csv is already there. Replace it?")
    (tmp_path / "result.json").touch()
    dock.presenter.choose(format_of("tables"), Options())
    dock.view.may_replace.assert_called_with("result.json and result.csv are already there. Replace them?")
    dock.background.start.assert_not_called()
    dock.view.may_replace.return_value = True
    dock.presenter.choose(format_of("tables"), Options())
    dock.background.start.assert_called_once()


def test_the_slide_is_never_written_over(dock: Dock, tmp_path: Path) -> None:
    dock.presenter.export(format_of("png"), tmp_path / "slide.tiff", Options())
    assert "the slide itself" in dock.panel.error
    dock.background.start.assert_not_called()


@pytest.mark.parametrize("how", ["by hand", "slide closed"])
def test_cancelling(dock: Dock, tmp_path: Path, how: str) -> None:
    dock.presenter.export(format_of("png"), tmp_path / "a.png", Options())
    if how == "by hand":
        dock.presenter.cancel()
        dock.presenter.cancel()
    else:
        dock.controller.slides = ()
        dock.presenter.refresh(Change.SLIDES)
    dock.background.cancel.assert_called_once()
    assert dock.panel.cancelling
    assert dock.panel.progress_text == "Cancelling …"
    # It may break on its way to the end.
    dock.report("cancelled") if how == "by hand" else dock.report("failed", "torn")
    assert dock.panel.success == "Cancelled. Nothing was written."
    assert dock.panel.error == ""
    assert dock.panel.progress is None


def test_an_error_stays_until_the_next_export(dock: Dock, tmp_path: Path) -> None:
    dock.presenter.export(format_of("png"), tmp_path / "a.png", Options())
    dock.report("failed", "The disk is full.")
    assert dock.panel.error == "The disk is full."
    dock.presenter.export(replace(format_of("png"), title="B …"), tmp_path / "b.png", Options())
    assert dock.panel.error == ""
    assert dock.panel.progress_text == "B"


def test_names_get_their_ending() -> None:
    png = format_of("png")
    assert png.with_ending(Path("x/a")) == Path("x/a.png")
    assert png.with_ending(Path("x/a.PNG")) == Path("x/a.PNG")
    assert png.with_ending(Path("x/a.v2")) == Path("x/a.v2.png")


def test_verdict_of_the_slides_folder(tmp_path: Path) -> None:
    slide = tmp_path / "a" / "b.svs"
    slide.parent.mkdir()
    assert verdict_of(slide, "f" * 64) is None
    reviews = ReviewFile.of(tmp_path)
    reviews.add(Review("a/b.svs", "disagree", "look again"))
    for _ in ("still on its way to the disk", "there"):
        found = verdict_of(slide, "f" * 64)
        assert found is not None
        assert (found.decision, found.note) == ("disagree", "look again")
        reviews.write_waiting()

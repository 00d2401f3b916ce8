"""A slide's file is replaced by another: nothing that was said of the one before is kept or shown of the one that is there."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from made_slides import write_slide
from qtpy.QtCore import Qt

from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.export.formats import verdict_of
from napari_lrmil._viewer.docks.export.widget import ExportWidget
from napari_lrmil._viewer.docks.worklist.opened_file import OpenedFile
from napari_lrmil._viewer.docks.worklist.panel import REPLACED, cells
from napari_lrmil._viewer.docks.worklist.widget import WorklistWidget, worklist_dock
from napari_lrmil._viewer.layers import HEATMAP_KEY
from napari_lrmil.cache import typed_mpp
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import Saved, Worklist, WorklistItem

pytestmark = pytest.mark.usefixtures("alone")
LONG_MS = 60_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "slides"
    target.mkdir()
    for number in range(2):
        write_slide(target / f"s{number}.tiff", size_xy=(1536 + 256 * number, 1024))
    return target


def put_in_place(path: Path) -> None:
    """As a sync does, by renaming: another slide, without its own pixel size."""
    other = write_slide(path.with_name("new"), size_xy=(1280, 1024))
    os.replace(other, path)


@pytest.fixture
def docks(viewer: Any, folder: Path, bundle_dir: Path, qtbot: Any) -> tuple[ClassifyWidget, WorklistWidget]:
    """A window with the folder's list, its slides classified, s0 open with its result."""
    main = dock_widget(viewer)
    widget = worklist_dock(viewer)
    widget.presenter.open_list(folder)
    main.controller.load_bundle(str(bundle_dir))
    qtbot.waitUntil(
        lambda: main.controller.bundle is not None and widget.model.rowCount() > 0, timeout=LONG_MS
    )
    widget.presenter.classify_all()
    qtbot.waitUntil(lambda: all(item.label for item in widget.model.items), timeout=LONG_MS)
    widget.presenter.open_slide(folder / "s0.tiff")
    qtbot.waitUntil(lambda: main.controller.result is not None, timeout=LONG_MS)
    return main, widget


def row(widget: WorklistWidget, path: Path) -> WorklistItem:
    assert widget.presenter.worklist is not None
    return widget.presenter.worklist[path]


def lines_on_disk(folder: Path) -> list[dict[str, Any]]:
    path = folder / "lrmil-review.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_verdict_on_a_slide_replaced_while_it_is_open_is_not_kept(
    viewer: Any, docks: tuple[ClassifyWidget, WorklistWidget], folder: Path, qtbot: Any
) -> None:
    main, widget = docks
    path = folder / "s0.tiff"
    put_in_place(path)
    qtbot.keyClick(widget.table, Qt.Key.Key_G)
    qtbot.waitUntil(lambda: "was not kept" in widget.presenter.panel().hint, timeout=LONG_MS)
    assert lines_on_disk(folder) == []
    assert "s0.tiff changed while it was read: it was replaced" in widget.presenter.panel().hint
    item = row(widget, path)
    assert (item.label, item.verdict, item.saved) == (None, None, Saved.YES)
    assert REPLACED in cells(item)[0]
    # The main dock has put away label and heatmap, and says so with a button.
    assert main.controller.result is None
    assert not [layer for layer in viewer.layers if HEATMAP_KEY in layer.metadata]
    assert "it was replaced" in main.run_section.error.text()
    assert main.controller.slide_replaced
    main.controller.reopen_slide()
    main.controller.classify()
    qtbot.waitUntil(lambda: row(widget, path).label is not None, timeout=LONG_MS)
    assert not row(widget, path).replaced
    widget.presenter.judge("agree")
    qtbot.waitUntil(lambda: len(lines_on_disk(folder)) == 1, timeout=LONG_MS)
    with Slide(path) as slide:
        assert lines_on_disk(folder)[0]["fingerprint"] == slide.fingerprint()


def test_a_slide_replaced_between_its_result_and_its_opening_has_none(
    docks: tuple[ClassifyWidget, WorklistWidget], folder: Path, qtbot: Any
) -> None:
    main, widget = docks
    path = folder / "s1.tiff"
    assert row(widget, path).label is not None
    put_in_place(path)
    widget.presenter.open_slide(path)
    widget.presenter.judge("disagree")  # before anybody has looked
    qtbot.waitUntil(lambda: row(widget, path).label is None, timeout=LONG_MS)
    qtbot.waitUntil(lambda: row(widget, path).saved is Saved.YES, timeout=LONG_MS)
    assert row(widget, path).verdict is None
    assert lines_on_disk(folder) == []
    assert REPLACED in cells(row(widget, path))[0]
    assert "s1" in widget.presenter.panel().hint
    assert main.controller.result is None
    assert row(widget, folder / "s0.tiff").label is not None


def test_verdict_and_note_of_the_file_before_are_not_of_the_new_one(
    docks: tuple[ClassifyWidget, WorklistWidget], folder: Path, tmp_path: Path, qtbot: Any
) -> None:
    _, widget = docks
    path = folder / "s0.tiff"
    widget.presenter.judge("agree")
    widget.presenter.write_note(path, "of the first")
    qtbot.waitUntil(lambda: len(lines_on_disk(folder)) == 2, timeout=LONG_MS)
    put_in_place(path)
    widget.presenter.save_table(tmp_path / "list.csv", show_identifiers=True)
    qtbot.waitUntil(lambda: (tmp_path / "list.csv").exists(), timeout=LONG_MS)
    with (tmp_path / "list.csv").open(newline="", encoding="utf-8") as file:
        saved = {each["slide"]: each for each in csv.DictReader(file)}
    assert (saved["s0"]["label"], saved["s0"]["verdict"], saved["s0"]["note"]) == ("", "", "")
    assert saved["s1"]["label"]
    with Slide(path) as slide:
        assert verdict_of(path, slide.fingerprint()) is None
    widget.presenter.open_slide(folder / "s1.tiff")
    widget.presenter.open_slide(path)
    qtbot.waitUntil(lambda: row(widget, path).replaced, timeout=LONG_MS)
    item = row(widget, path)
    assert (item.verdict, item.note, item.label) == (None, "", None)
    assert "both were put away" in widget.presenter.panel().hint


def test_nothing_is_exported_of_a_file_that_was_replaced(
    viewer: Any, docks: tuple[ClassifyWidget, WorklistWidget], folder: Path, tmp_path: Path, qtbot: Any
) -> None:
    export = ExportWidget(viewer)
    viewer.window.add_dock_widget(export, area="left")
    from napari_lrmil._viewer.docks.export.formats import FORMATS, Options

    put_in_place(folder / "s0.tiff")
    for wanted in FORMATS:
        path = tmp_path / "out" / wanted.default_name
        path.parent.mkdir(exist_ok=True)
        export.presenter.export(wanted, path, Options())
        qtbot.waitUntil(lambda: not export.background.running("export"), timeout=LONG_MS)
        assert "s0.tiff changed while it was read: it was replaced" in export.error.text()
        assert list(path.parent.iterdir()) == [], wanted.key


def test_a_typed_pixel_size_is_not_kept_for_the_file_that_came_meanwhile(
    docks: tuple[ClassifyWidget, WorklistWidget], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, _ = docks
    warned: list[str] = []
    monkeypatch.setattr(main.typed_mpp, "_warn", warned.append)
    put_in_place(folder / "s0.tiff")
    main.typed_mpp.give(0.25)
    assert "it was replaced" in warned[0]
    with Slide(folder / "s0.tiff") as slide:
        assert typed_mpp(slide.fingerprint()) is None


@pytest.mark.parametrize("away", [True, False])
def test_a_verdict_waits_for_a_file_that_cant_be_reached(folder: Path, away: bool) -> None:
    """Renamed away and back, as a share that goes: the verdict is written once it is there; at the end, all the same."""
    path, elsewhere = folder / "s0.tiff", folder / "elsewhere"
    worklist = Worklist.open(folder)
    with Slide(path) as slide:
        file = OpenedFile(slide)
        worklist.note_verdict(path, "unsure", check=file.check)
        path.rename(elsewhere)
        with pytest.raises(Exception, match=r"not kept yet: s0\.tiff .* can't be reached"):
            worklist.reviews.write_waiting()
        assert worklist.reviews.saved(path) is Saved.NO
        if away:
            worklist.reviews.write_waiting(last_chance=True)
        else:
            elsewhere.rename(path)
            worklist.reviews.write_waiting()
            assert lines_on_disk(folder)[0]["fingerprint"] == slide.fingerprint()
    assert [line["verdict"] for line in lines_on_disk(folder)] == ["unsure"]
    assert worklist.reviews.take_refused() == ()

"""The worklist as a CSV file: what goes into it, without a window and from a real one."""

from __future__ import annotations

import csv
import errno
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from fakes import all_started, fake, fake_background, started
from made_predictions import make_prediction
from made_slides import write_slide
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog
from seen_slides import judge, remember

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.worklist.presenter import WorklistPresenter
from napari_lrmil._viewer.docks.worklist.widget import WorklistWidget, worklist_dock
from napari_lrmil._viewer.window import Controller
from napari_lrmil.cache import ResultCache, result_key, summarise
from napari_lrmil.export.tables import folder_columns
from napari_lrmil.model.bundle import load_info
from napari_lrmil.worklist import Status, Worklist

pytestmark = pytest.mark.usefixtures("alone")
LEFT = Qt.MouseButton.LeftButton
LONG_MS = 60_000


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


class Opened(NamedTuple):
    """As much of a slide as is asked for."""

    path: Path


def test_every_slide_of_the_list_has_a_row(tmp_path: Path, bundle_dir: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("ADAMS_open", "BROWN_cached", "CLARK_new", "DAVIS_failed"):
        (folder / f"{name}.svs").write_text(name)
    paths = {path.stem[0]: path for path in folder.iterdir()}
    info = load_info(bundle_dir)
    sha = info.sha256
    shown = make_prediction(0.8, bundle_sha256=sha, slide_fingerprint="a" * 64)
    cached = make_prediction(0.25, bundle_sha256=sha, slide_fingerprint="b" * 64)
    foreign = make_prediction(0.5, bundle_sha256="9" * 64)
    cache = ResultCache()
    cache.put(cached, result_key(info, mpp_xy=cached.mpp_xy))
    remember(cache, paths["B"], "b" * 64)
    worklist = Worklist.open(folder)
    worklist.set_result(paths["A"], summarise(shown))
    judge(worklist, paths["A"], "agree", "clear case")
    judge(worklist, paths["B"], "disagree")  # before there was a result
    worklist.set_result(paths["B"], summarise(cached))
    worklist.set_status(paths["D"], Status.FAILED, error="DAVIS_failed.svs can't be read")
    open_slides = {Opened(paths["A"]): shown, Opened(paths["C"]): foreign}
    controller = fake(Controller)
    controller.bundle, controller.results, controller.slide = SimpleNamespace(info=info), open_slides, None
    background, changes = fake_background(), list[int]()
    presenter = WorklistPresenter(background)
    presenter.attach(controller)
    presenter.open_list(folder)
    started(background, "list").finish(worklist)
    presenter.changed.connect(lambda: changes.append(0))
    assert presenter.table_path == folder / "predictions.csv"

    presenter.save_table(presenter.table_path, show_identifiers=False)
    presenter.save_table(presenter.table_path, show_identifiers=True)  # one at a time: nothing happens
    assert len(all_started(background, "save table")) == 1
    assert not presenter.panel().table_file.can_save
    assert "of 4 slides" in presenter.panel().table_file.text
    started(background, "save table").run()
    assert presenter.panel().table_file.text == f"Saved predictions.csv in {folder}."
    assert presenter.panel().table_file.can_save
    assert len(changes) == 6
    rows = rows_of(folder / "predictions.csv")
    assert list(rows[0]) == folder_columns(info.class_names)  # as `lrmil predict --out` has them
    assert [row["status"] for row in rows] == ["demonstration", "demonstration", "", "failed"]
    assert [row["slide"] for row in rows] == ["slide aaaaaaaa", "slide bbbbbbbb", "slide 3", "slide 4"]
    assert [row["label"] for row in rows] == ["lesion", "benign", "", ""]
    assert [row["p_lesion"] for row in rows] == ["0.8", "0.25", "", ""]
    assert [row["tiles"] for row in rows] == ["6", "6", "", ""]
    assert [row["verdict"] for row in rows] == ["agree", "disagree (with no label)", "", ""]
    assert [row["note"] for row in rows] == ["clear case", "", "", ""]
    assert [row["error"] for row in rows] == ["", "", "", "failed"]
    text = (folder / "predictions.csv").read_text()
    assert not any(name in text for name in ("ADAMS", "BROWN", "CLARK", "DAVIS"))

    presenter.save_table(folder / "named", show_identifiers=True)
    started(background, "save table").run()
    named = rows_of(folder / "named.csv")
    assert [row["slide"] for row in named] == ["ADAMS_open", "BROWN_cached", "CLARK_new", "DAVIS_failed"]
    before = (folder / "named.csv").read_bytes()
    presenter.save_table(folder / "named", show_identifiers=False)  # the dialog hasn't asked about named.csv
    started(background, "save table").run()
    assert "already there" in presenter.panel().table_file.error
    assert (folder / "named.csv").read_bytes() == before

    presenter.open_list(folder)  # another list: what was said was not about it
    started(background, "list").run()
    assert presenter.panel().table_file.can_save
    assert not presenter.panel().table_file.error


def test_a_list_is_saved_from_the_window(
    viewer: Any, bundle_dir: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer.window.resize(1400, 1000)
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(2):
        write_slide(folder / f"s{number}.tiff", size_xy=(1536 + 256 * number, 1024))
    main, widget = dock_widget(viewer), worklist_dock(viewer)
    assert isinstance(widget, WorklistWidget)
    assert not widget.table_file.isVisible()
    main.controller.load_bundle(str(bundle_dir))
    widget.presenter.open_list(folder)
    qtbot.waitUntil(lambda: widget.model.rowCount() == 2, timeout=LONG_MS)
    qtbot.waitUntil(widget.batch.start.isEnabled, timeout=LONG_MS)
    qtbot.mouseClick(widget.batch.start, LEFT)
    qtbot.waitUntil(lambda: "2 of 2" in widget.batch.text.text(), timeout=LONG_MS)
    save, asked = widget.table_file.save, list[tuple[Any, ...]]()
    assert save.toolTip()
    assert save.accessibleName()
    assert save.focusPolicy() & Qt.FocusPolicy.TabFocus

    def dialog(_: Any, *about: Any) -> tuple[str, str]:
        asked.append(about)  # no options: the dialog asks before it replaces a file
        return about[1], about[2]

    monkeypatch.setattr(QFileDialog, "getSaveFileName", dialog)
    target = folder / "predictions.csv"
    save.setFocus()
    qtbot.keyClick(save, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: widget.table_file.text.text().startswith("Saved"), timeout=LONG_MS)
    assert asked == [("Save the list as a table", str(target), "CSV (*.csv)")]
    assert str(folder) in widget.table_file.text.text()
    found = {item.fingerprint: item for item in widget.model.items}
    rows = rows_of(target)
    assert {row["fingerprint"] for row in rows} == set(found)
    for row in rows:
        item = found[row["fingerprint"]]
        assert row["slide"] == f"slide {row['fingerprint'][:8]}"
        assert row["label"] == item.label
        assert float(row[f"p_{item.label}"]) == pytest.approx(item.probability, abs=1e-6)

    qtbot.keyClick(widget.table_file.identifiers, Qt.Key.Key_Space)
    assert widget.table_file.identifiers.isChecked()
    before = target.read_bytes()
    with monkeypatch.context() as read_only:
        read_only.setattr(tempfile, "mkstemp", refuse)
        qtbot.mouseClick(save, LEFT)
        qtbot.waitUntil(lambda: bool(widget.table_file.error.text()), timeout=LONG_MS)
    assert "can't be written to" in widget.table_file.error.text()
    assert target.read_bytes() == before
    qtbot.mouseClick(save, LEFT)
    qtbot.waitUntil(lambda: widget.table_file.text.text().startswith("Saved"), timeout=LONG_MS)
    assert {row["slide"] for row in rows_of(target)} == {"s0", "s1"}
    assert not widget.table_file.error.isVisible()
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.csv", "s0.tiff", "s1.tiff"]

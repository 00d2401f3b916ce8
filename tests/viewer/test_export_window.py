"""The export dock in real windows: every file, cancelling, errors, names that hold no identifier."""

from __future__ import annotations

import csv
import errno
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_predictions import make_prediction
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QMessageBox
from real_windows import delete_what_is_due, open_slide

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.export import formats
from napari_lrmil._viewer.docks.export import widget as module
from napari_lrmil._viewer.docks.export.formats import FORMATS, Step
from napari_lrmil._viewer.docks.export.widget import ExportWidget
from napari_lrmil._viewer.session import open_slide_with_result

pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def exports(viewer: Any) -> ExportWidget:
    _, widget = viewer.window.add_plugin_dock_widget("napari-lrmil", "LRMIL: export")
    assert isinstance(widget, ExportWidget)
    return widget


@pytest.fixture
def patient_slide(small_slide: Path) -> Path:
    return small_slide.rename(small_slide.with_name("DOE^JANE 123.tiff"))


def choose(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(module.QFileDialog, "getSaveFileName", lambda *_, **__: (str(path), ""))


def ended(qtbot: Any, exports: ExportWidget) -> None:
    qtbot.waitUntil(lambda: not exports.cancel.isVisibleTo(exports), timeout=60_000)


def test_every_format(
    viewer: Any,
    exports: ExportWidget,
    qtbot: Any,
    patient_slide: Path,
    bundle_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not exports.buttons["pdf"].isEnabled()
    assert "slide first" in exports.hint.text()
    prediction = open_slide_with_result(viewer, patient_slide, bundle_dir)
    out = tmp_path / "out"
    out.mkdir()
    for each in FORMATS:
        choose(monkeypatch, out / each.default_name)
        qtbot.mouseClick(exports.buttons[each.key], LEFT)
        ended(qtbot, exports)
        assert exports.error.text() == ""
        assert exports.success.text().startswith(f"Saved {each.default_name}")
    assert sorted(each.name for each in out.iterdir()) == [
        "heatmap.ome.zarr", "heatmap.png", "report.html", "report.pdf", "result.csv", "result.json",
        "tiles.geojson",
    ]  # fmt: skip
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(out / "heatmap.png") as picture:
        assert picture.size[0] > 500
    assert len(json.loads((out / "tiles.geojson").read_text())["features"]) == len(prediction.tiles)
    assert len(list(csv.reader((out / "result.csv").read_text().splitlines()))) == len(prediction.tiles) + 1
    for file in (each for each in out.rglob("*") if each.is_file()):
        assert b"DOE^JANE" not in file.read_bytes(), file.name
    opened: list[str] = []
    monkeypatch.setattr(module.QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    qtbot.mouseClick(exports.open_folder, LEFT)
    assert [Path(each) for each in opened] == [out]


def test_replacing_is_asked_and_the_slide_is_safe(
    viewer: Any, exports: ExportWidget, qtbot: Any, small_slide: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slide = open_slide(viewer, small_slide)
    dock_widget(viewer).controller.show_result(slide, make_prediction())
    assert not exports.buttons["pdf"].isEnabled()  # no model is loaded: a report has no card
    assert "model" in exports.hint.text()
    target = tmp_path / "tiles.geojson"
    target.write_text("mine")
    asked: list[str] = []
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes]

    def question(parent: Any, title: str, text: str, *_: Any) -> Any:
        asked.append(text)
        return answers[min(len(asked), 2) - 1]

    monkeypatch.setattr(QMessageBox, "question", question)
    choose(monkeypatch, target)
    qtbot.mouseClick(exports.buttons["geojson"], LEFT)
    assert target.read_text() == "mine"
    qtbot.mouseClick(exports.buttons["geojson"], LEFT)
    ended(qtbot, exports)
    assert json.loads(target.read_text())["type"] == "FeatureCollection"
    assert asked == ["tiles.geojson is already there. Replace it?"] * 2
    before = small_slide.read_bytes()
    also_the_slide = tmp_path / "heatmap.png"
    also_the_slide.hardlink_to(small_slide)
    choose(monkeypatch, also_the_slide)
    qtbot.mouseClick(exports.buttons["png"], LEFT)
    assert "the slide itself" in exports.error.text()
    assert small_slide.read_bytes() == before


@pytest.mark.parametrize("how", ["button", "slide", "dock"])
def test_cancelled_exports_leave_no_file(
    viewer: Any, exports: ExportWidget, qtbot: Any, small_slide: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    slide = open_slide(viewer, small_slide)
    dock_widget(viewer).controller.show_result(slide, make_prediction())

    def endless(path: Path, source: Any, options: Any) -> Any:
        with formats.replacing(path) as scratch:
            while True:
                scratch.write_text("half")
                yield Step(1, 2, "working")
                time.sleep(0.01)

    slow = replace(next(each for each in FORMATS if each.key == "geojson"), steps=endless)
    out = tmp_path / "out"
    out.mkdir()
    exports.presenter.export(slow, out / "tiles.geojson", formats.Options())
    qtbot.waitUntil(lambda: "working" in exports.progress_text.text(), timeout=10_000)
    assert exports.cancel.isVisibleTo(exports)
    assert not exports.buttons["png"].isEnabled()
    if how == "button":
        qtbot.mouseClick(exports.cancel, LEFT)
        ended(qtbot, exports)
        assert exports.success.text() == "Cancelled. Nothing was written."
        assert exports.buttons["png"].isEnabled()
    elif how == "slide":
        viewer.layers.clear()
        ended(qtbot, exports)
    else:
        viewer.window.remove_dock_widget(exports)
        delete_what_is_due()
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "can't be written to")]
)
def test_errors_say_what_to_do(
    viewer: Any, exports: ExportWidget, qtbot: Any, small_slide: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, number: int, said: str,
) -> None:  # fmt: skip
    slide = open_slide(viewer, small_slide)
    dock_widget(viewer).controller.show_result(slide, make_prediction())

    def failing(path: Path) -> Any:
        raise OSError(number, "no")

    monkeypatch.setattr(formats, "replacing", failing)
    choose(monkeypatch, tmp_path / "heatmap.png")
    qtbot.mouseClick(exports.buttons["png"], LEFT)
    ended(qtbot, exports)
    assert said in exports.error.text()
    assert "nothing was written" in exports.error.text()


def test_every_control_says_what_it_does(viewer: Any, exports: ExportWidget) -> None:
    controls = [
        *exports.buttons.values(),
        exports.over_slide,
        exports.identifiers,
        exports.cancel,
        exports.open_folder,
    ]
    for control in controls:
        assert control.toolTip()
        assert control.accessibleName() or control.text()
        assert control.focusPolicy() & Qt.FocusPolicy.TabFocus

"""In a real window: a slide unlike those of training gets that answer, and its label only on request, for itself alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel
from test_classify_result_window import bundle_with_trust

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.tiles.widget import TilesWidget
from napari_lrmil._viewer.docks.worklist.widget import worklist_dock
from napari_lrmil._viewer.layers import HEATMAP_KEY, SLIDE_KEY
from napari_lrmil._viewer.session import open_slide_with_result

pytestmark = pytest.mark.usefixtures("alone")

LEFT = Qt.MouseButton.LeftButton
LONG_MS = 60_000


@pytest.fixture
def strict(bundle_dir: Path, tmp_path: Path) -> Path:
    """A model to which every slide is unlike training."""
    return bundle_with_trust(bundle_dir, tmp_path / "strict", quantile=None, threshold=0.0)


def heatmaps(viewer: Any) -> list[Any]:
    return [layer for layer in viewer.layers if HEATMAP_KEY in layer.metadata]


def names_a_class(widget: Any) -> list[str]:
    """Labels in sight, in a dock or on the canvas, that name a class of the model but where it says which there are."""
    texts = [label.text() for label in widget.findChildren(QLabel) if label.isVisible()]
    return [text for text in texts if "lesion" in text or "benign" in text]


def test_the_label_is_a_click_away_and_marked(
    viewer: Any, small_slide: Path, strict: Path, qtbot: Any
) -> None:
    prediction = open_slide_with_result(viewer, small_slide, strict)
    dock = dock_widget(viewer)
    section = dock.result_section
    assert section.label.text() == "unlike training"
    assert section.reveal.text() == "Show what it would say"
    assert names_a_class(section) == names_a_class(dock.evidence_section) == []
    assert not section.bars.isVisible()
    assert not section.withheld.isVisible()
    assert not dock.evidence_section.isVisible()
    assert heatmaps(viewer) == []
    assert viewer.canvas.overlays.text.text.splitlines()[0] == "unlike training"
    title = dock.window().windowTitle()
    assert "lesion" not in title
    assert "benign" not in title

    qtbot.mouseClick(section.reveal, LEFT)
    assert section.label.text() == "unlike training"  # which stays the answer
    assert section.withheld.isVisible()
    assert section.withheld.text.text().startswith(f"It would say: {prediction.called} ")
    assert "Not to be used" in section.withheld.text.text()
    assert section.bars.isVisible()
    assert section.set.text() == "Unsure: benign or lesion at 90 %"
    assert "Not to be used" in dock.evidence_section.notes.text()
    (layer,) = heatmaps(viewer)
    assert layer.visible
    assert viewer.canvas.overlays.text.text.splitlines()[:2] == ["unlike training", "heatmap not to be used"]

    qtbot.mouseClick(section.reveal, LEFT)
    assert section.reveal.text() == "Show what it would say"
    assert not section.withheld.isVisible()
    assert heatmaps(viewer) == []


@pytest.mark.parametrize("way", ["list of slides", "layer list", "eye", "another file"])
def test_the_next_slide_begins_without(
    viewer: Any, small_slide: Path, strict: Path, tmp_path: Path, qtbot: Any, way: str
) -> None:
    other = Path(shutil.copy(small_slide, tmp_path / "other.tif"))
    if way != "another file":
        open_slide_with_result(viewer, other, strict)
    open_slide_with_result(viewer, small_slide, strict)
    dock = dock_widget(viewer)
    controller, section = dock.controller, dock.result_section
    first = controller.slide
    qtbot.mouseClick(section.reveal, LEFT)
    assert len(heatmaps(viewer)) == 1
    if way == "another file":
        open_slide_with_result(viewer, other, strict)
    else:
        (at,) = [at for at, slide in enumerate(controller.slides) if slide is not first]
        (layer,) = [each for each in viewer.layers if each.metadata.get(SLIDE_KEY) is controller.slides[at]]
        if way == "list of slides":
            controller.choose_slide(at)
        elif way == "layer list":
            viewer.layers.selection.active = layer
        else:
            layer.visible = True
    assert controller.slide is not first
    assert section.label.text() == "unlike training"
    assert not section.reveal.isChecked()
    assert not section.withheld.isVisible()
    assert heatmaps(viewer) == []
    controller.choose_slide(controller.slides.index(first))  # nor is it remembered for when one comes back
    assert controller.slide is first
    assert not section.reveal.isChecked()
    assert heatmaps(viewer) == []
    qtbot.mouseClick(section.reveal, LEFT)
    assert len(heatmaps(viewer)) == 1


def test_the_tiles_come_with_the_label(viewer: Any, small_slide: Path, strict: Path, qtbot: Any) -> None:
    open_slide_with_result(viewer, small_slide, strict)
    tiles = TilesWidget(viewer)
    viewer.window.add_dock_widget(tiles)
    assert "unlike those that the model was trained on" in tiles.hint.text()
    assert tiles.top.count() == tiles.bottom.count() == 0
    qtbot.mouseClick(dock_widget(viewer).result_section.reveal, LEFT)
    assert tiles.hint.text() == ""
    assert tiles.bottom.count() > 0
    assert "Not to be used" in tiles.note.text()


def test_row_count_and_verdict(
    viewer: Any, small_slide: Path, strict: Path, tmp_path: Path, qtbot: Any
) -> None:
    folder = tmp_path / "monday"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(small_slide, folder / name)
    dock = dock_widget(viewer)
    dock.controller.load_bundle(str(strict))
    qtbot.waitUntil(lambda: dock.controller.bundle is not None, timeout=LONG_MS)
    widget = worklist_dock(viewer)
    presenter = widget.presenter
    presenter.open_list(folder)
    qtbot.waitUntil(lambda: presenter.worklist is not None, timeout=LONG_MS)
    presenter.classify_all()
    qtbot.waitUntil(lambda: presenter.panel().batch.text.startswith("Done"), timeout=LONG_MS)
    assert presenter.panel().batch.text == "Done: 2 of 2 classified: 2 unlike training."
    rows = [widget.model.data(widget.model.index(row, 0)) for row in range(2)]
    assert all("▲ unlike training" in text for text in rows)
    assert not [text for text in rows if "lesion" in text or "benign" in text]
    for name in ("a.tif", "b.tif"):
        presenter.open_slide(folder / name)
        qtbot.waitUntil(lambda: dock.controller.result is not None, timeout=LONG_MS)
        assert not dock.controller.label_revealed
        if name == "b.tif":
            qtbot.mouseClick(dock.result_section.reveal, LEFT)
        qtbot.mouseClick(widget.verdict.agree, LEFT)
    called = dock.controller.result.called
    file = folder / "lrmil-review.jsonl"
    qtbot.waitUntil(lambda: file.exists() and file.read_text().count("\n") == 2, timeout=LONG_MS)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [
        (line["verdict"], line["answer_shown"], line["label_shown"], line["revealed_label"]) for line in lines
    ]
    assert told == [("agree", "unlike training", None, None), ("agree", "unlike training", None, called)]
    assert [item.status.value for item in presenter.panel().rows] == ["reviewed", "reviewed"]

"""The annotations dock's presenter with napari's real layers, on a canvas without a window."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import all_started, fake, fake_background, run_all, started
from napari.layers import Points, Shapes

from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil._viewer.docks.annotations import store
from napari_lrmil._viewer.docks.annotations.panel import AnnotationsPanel
from napari_lrmil._viewer.docks.annotations.presenter import (
    MAX_ANNOTATIONS,
    AnnotationsPresenter,
    AnnotationsView,
)
from napari_lrmil._viewer.docks.annotations.store import SUFFIX, LoadedAnnotations
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.export.annotation import Annotation
from napari_lrmil.export.geojson import write_annotations
from napari_lrmil.model.bundle import BundleInfo, ModelBundle
from napari_lrmil.slide import Slide

BOX = np.array([(100.0, 200.0), (100.0, 500.0), (300.0, 500.0), (300.0, 200.0)])


class Dock:
    """A presenter, and what is around it; `file` is what the slide's annotations are kept in."""

    def __init__(self, slide: Slide) -> None:
        self.slide, self.file = slide, slide.path.with_name(slide.path.name + SUFFIX)
        self.layers: list[Any] = []
        self.chosen: Any = None
        self.canvas, self.view = fake(Canvas), fake(AnnotationsView)
        self.canvas.zoom = 1.0
        self.canvas.slides.return_value = (slide,)
        self.canvas.add_shapes.side_effect = lambda **options: self._added(Shapes(**options))
        self.canvas.add_points.side_effect = lambda **options: self._added(Points(**options))
        self.canvas.remove_layer.side_effect = self.remove
        self.canvas.chosen_layer.side_effect = lambda: self.chosen
        self.canvas.choose_layer.side_effect = self.choose
        self.controller = fake(Controller)
        self.controller.slide, self.controller.bundle = slide, None
        self.background = fake_background()
        self.presenter = AnnotationsPresenter(self.view, self.canvas, self.background)
        self.presenter.attach(self.controller)
        self.presenter.refresh()

    @property
    def panel(self) -> AnnotationsPanel:
        """The one that is shown."""
        panel = self.view.show_panel.call_args.args[0]
        assert isinstance(panel, AnnotationsPanel)
        return panel

    @property
    def names(self) -> list[str]:
        """Of the rows in the list."""
        return [row.name for row in self.panel.rows]

    @property
    def kept(self) -> list[str]:
        """Names in the file."""
        features = json.loads(self.file.read_text(encoding="utf-8"))["features"]
        return [each["properties"]["name"] for each in features]

    def draw(self, vertices: Any = BOX, *, read: bool = True) -> None:
        """As napari ends a drawing; `read` is False until the window's loop turns again."""
        self.presenter.draw("polygon")
        self.chosen.add(np.array(vertices), shape_type="polygon")
        if read:
            self.presenter.read_edits()

    def remove(self, layer: Any) -> None:
        """Take a layer out of the window."""
        self.layers.remove(layer)
        self.chosen = self.layers[-1] if self.layers else None
        self.canvas.layer_removed.emit(layer)
        self.canvas.layers_changed.emit()

    def choose(self, layer: Any) -> None:
        """Choose it in the layer list."""
        self.chosen = layer
        self.canvas.layers_changed.emit()

    def close_slide(self) -> None:
        """As the controller tells it."""
        self.canvas.slides.return_value, self.controller.slide = (), None
        self.presenter.refresh(Change.SLIDES | Change.SLIDE)

    def _added(self, layer: Any) -> Any:
        self.layers.append(layer)
        self.choose(layer)
        return layer


@pytest.fixture
def slide(small_slide: Path) -> Iterator[Slide]:
    with Slide(small_slide) as opened:
        yield opened


@pytest.fixture
def dock(slide: Slide) -> Dock:
    """Ready to draw."""
    made = Dock(slide)
    run_all(made.background)
    assert made.panel.ready
    return made


def full_disk(*_: object, **__: object) -> Path:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_can_be_drawn_before_the_file_was_looked_for(slide: Slide) -> None:
    """It would not be known whether it overwrites something."""
    dock = Dock(slide)
    assert dock.panel.has_slide
    assert not dock.panel.ready
    dock.presenter.draw("rectangle")
    dock.presenter.import_file(slide.path, cropped=True)
    assert dock.layers == []
    assert [job.name for job in all_started(dock.background)] == [f"load {id(slide)}"]


def test_only_what_concerns_it_is_looked_at(dock: Dock) -> None:
    dock.view.show_panel.reset_mock()
    dock.presenter.refresh(Change.RESULT | Change.RESULTS | Change.LOOK | Change.RUN)
    dock.view.show_panel.assert_not_called()
    for change in (Change.SLIDES, Change.SLIDE, Change.PIXELS, Change.MODEL):
        dock.view.show_panel.reset_mock()
        dock.presenter.refresh(change | Change.RUN)
        dock.view.show_panel.assert_called_once()


def test_one_save_at_a_time_and_the_last_one_has_all(dock: Dock) -> None:
    dock.draw()
    dock.draw(BOX + 400)
    dock.draw(BOX + 800)
    assert dock.panel.status == "Saving …"
    save = f"save {id(dock.slide)}"
    assert len(all_started(dock.background, save)) == 1
    started(dock.background, save).run()
    assert dock.kept == ["Annotation 1"]
    assert dock.panel.status == "Saving …"  # two came after it
    started(dock.background, save).run()
    assert len(all_started(dock.background, save)) == 2
    assert dock.kept == dock.names == ["Annotation 1", "Annotation 2", "Annotation 3"]
    assert dock.panel.status == "3 annotations, saved beside the slide."


@pytest.mark.parametrize("how", ["slide", "dock"])
def test_closing_in_the_midst_of_saving(dock: Dock, how: str) -> None:
    """The save under way gets its thread only when the slide is gone; it must not bring back what it knew."""
    dock.draw()
    late = started(dock.background, f"save {id(dock.slide)}")
    dock.draw(BOX + 400, read=False)
    dock.close_slide() if how == "slide" else dock.presenter.shutdown()
    assert dock.layers == []
    assert dock.kept == ["Annotation 1", "Annotation 2"]
    late.run()
    run_all(dock.background)
    assert dock.kept == ["Annotation 1", "Annotation 2"]


def test_a_full_disk_at_closing_is_told(dock: Dock, monkeypatch: pytest.MonkeyPatch) -> None:
    dock.draw()
    monkeypatch.setattr(store, "write_annotations", full_disk)
    dock.presenter.shutdown()
    dock.view.warn.assert_called_once()
    assert "Free some space" in dock.view.warn.call_args.args[0]


def test_a_save_that_failed_is_told_and_tried_again_at_the_next_change(
    dock: Dock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_annotations", full_disk)
        dock.draw()
        run_all(dock.background)
    assert "Free some space" in dock.panel.error
    dock.presenter.rename(dock.panel.rows[0].annotation_id, "front")
    run_all(dock.background)
    assert dock.panel.error == ""
    assert dock.kept == ["front"]


@pytest.mark.parametrize("then", ["delete", "undo", "rename", "import", "export"])
def test_the_last_stroke_is_read_first(dock: Dock, tmp_path: Path, then: str) -> None:
    """napari has it, the list not yet: what draws or writes all annotations anew must know of it."""
    dock.draw()
    first = dock.panel.rows[0].annotation_id
    file = tmp_path / "other.geojson"
    if then == "undo":
        dock.presenter.delete([first])
    if then == "import":
        write_annotations(
            file,
            [Annotation("points", (((5.0, 5.0),),), name="theirs")],
            bounds_l0_xywh=dock.slide.bounds_l0_xywh,
        )
        dock.presenter.import_file(file, cropped=True)
    dock.draw(BOX + 400, read=False)
    if then == "delete":
        dock.presenter.delete([first])
    elif then == "undo":
        dock.presenter.undo_delete()
    elif then == "rename":
        dock.presenter.rename(first, "front")
    elif then == "export":
        dock.presenter.export_file(file, cropped=True)
    run_all(dock.background)
    dock.presenter.read_edits()  # what the window's loop does in the end
    run_all(dock.background)
    expected = {
        "delete": ["Annotation 2"],
        "undo": ["Annotation 1", "Annotation 1"],  # the name was free
        "rename": ["Annotation 2", "front"],
        "import": ["Annotation 1", "Annotation 2", "theirs"],
        "export": ["Annotation 1", "Annotation 2"],
    }
    assert sorted(dock.names) == expected[then]
    assert sorted(dock.kept) == sorted(dock.names)
    if then == "export":
        assert len(json.loads(file.read_text(encoding="utf-8"))["features"]) == 2


def test_undo_brings_back_one_deletion_after_the_other(dock: Dock) -> None:
    for offset in (0, 400, 800):
        dock.draw(BOX + offset)
    before = dock.panel.rows
    dock.presenter.delete([before[0].annotation_id])
    dock.chosen.selected_data = {0}
    dock.chosen.remove_selected()  # as the Delete key does on the canvas
    dock.presenter.read_edits()
    assert dock.panel.rows == before[2:]
    dock.presenter.undo_delete()
    assert set(dock.panel.rows) == set(before[1:])
    dock.presenter.undo_delete()
    assert set(dock.panel.rows) == set(before)
    assert not dock.panel.can_undo
    run_all(dock.background)
    assert len(dock.kept) == 3


def test_the_tool_in_hand_is_the_one_shown(dock: Dock) -> None:
    """By napari's own keys and buttons, too."""
    other = object()
    dock.presenter.draw("rectangle")
    assert dock.panel.tool == "rectangle"
    shapes = dock.chosen
    shapes.mode = "add_ellipse"
    assert dock.panel.tool == "ellipse"
    dock.choose(other)
    assert dock.panel.tool == "pan"
    dock.choose(shapes)
    assert dock.panel.tool == "ellipse"
    dock.presenter.draw("point")
    assert dock.panel.tool == "point"
    dock.presenter.draw("pan")
    assert dock.panel.tool == "pan"
    assert str(dock.chosen.mode) == "pan_zoom"


def test_a_choice_of_layers_that_changes_no_tool_shows_nothing(dock: Dock) -> None:
    """Fading a heatmap tells of it at every step."""
    dock.draw()
    dock.view.show_panel.reset_mock()
    dock.canvas.layers_changed.emit()
    dock.view.show_panel.assert_not_called()


def test_an_import_says_what_could_not_be_read(dock: Dock, tmp_path: Path) -> None:
    """Segmentations hold one odd outline among thousands."""
    file = tmp_path / "segmentation.geojson"
    whole = Annotation("polygon", (((1.0, 1.0), (9.0, 1.0), (9.0, 9.0)),))
    write_annotations(file, [whole], bounds_l0_xywh=dock.slide.bounds_l0_xywh)
    document = json.loads(file.read_text())
    flat = {"type": "Polygon", "coordinates": [[[1, 1], [2, 2], [1, 1]]]}
    document["features"] = [flat, *document["features"], flat, flat, flat]
    file.write_text(json.dumps(document))
    dock.presenter.import_file(file, cropped=True)
    run_all(dock.background)
    assert len(dock.panel.rows) == 1
    assert "1 annotation imported. 4 features were left out: feature 1: " in dock.panel.status
    assert dock.panel.status.count("3 or more vertices") == 3
    assert dock.panel.status.endswith("; and 1 more.")


def test_too_many_are_not_imported(dock: Dock) -> None:
    many = [Annotation("points", (((1.0, float(at)),),)) for at in range(MAX_ANNOTATIONS + 1)]
    dock.presenter.import_file(Path("many.geojson"), cropped=True)
    assert dock.panel.status == "Reading …"
    started(dock.background, "import").finish(LoadedAnnotations(many))
    assert "5,001 annotations" in dock.panel.error
    assert dock.panel.rows == ()
    assert dock.layers == []


def test_an_import_that_comes_when_its_slide_is_gone_changes_nothing(dock: Dock) -> None:
    dock.presenter.import_file(Path("late.geojson"), cropped=True)
    dock.close_slide()
    started(dock.background, "import").finish(LoadedAnnotations([Annotation("points", (((1.0, 1.0),),))]))
    assert dock.layers == []
    assert not dock.file.exists()


def test_classes_of_the_model_and_of_the_next_drawing(dock: Dock) -> None:
    dock.controller.bundle = fake(ModelBundle)
    dock.controller.bundle.info = fake(BundleInfo)
    dock.controller.bundle.info.class_names = ("normal", "tumour")
    dock.presenter.refresh(Change.MODEL)
    assert dock.panel.classes == ("normal", "tumour")
    dock.presenter.choose_class(" stroma ")
    assert dock.panel.classes == ("normal", "tumour", "stroma")
    dock.draw()
    assert dock.panel.rows[0].class_name == "stroma"
    dock.presenter.set_class([dock.panel.rows[0].annotation_id], "")
    assert dock.panel.rows[0].class_name == ""

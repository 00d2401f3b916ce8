"""The overview dock without a window: what it shows of a slide, and how it moves the canvas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import all_started, fake, fake_background, started
from made_predictions import make_prediction

from napari_lrmil._viewer.canvas import Area, Canvas, DrawnHeatmap
from napari_lrmil._viewer.docks.overview.panel import NO_MPP, NO_SLIDE, OverviewPanel
from napari_lrmil._viewer.docks.overview.presenter import (
    MAP_EDGE_PX,
    OverviewPresenter,
    OverviewView,
    overview_steps,
)
from napari_lrmil._viewer.magnifier import Magnifier
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.slide import Slide

WHOLE = Area(0.0, 0.0, 960.0, 1280.0)
"""Of the small slide: 2560 x 1920 px at 0.5 µm/px."""


class Dock:
    """A presenter with its surroundings; the canvas is 400 x 600 px and shows 0.5 px a µm."""

    def __init__(self, slide: Slide | None) -> None:
        self.view, self.canvas, self.background = fake(OverviewView), fake(Canvas), fake_background()
        self.controller = fake(Controller)
        self.controller.slide, self.controller.result = slide, None
        self.canvas.zoom, self.canvas.field = 0.5, Area(100.0, 200.0, 800.0, 1200.0)
        self.canvas.has_heatmap.return_value = False
        self.canvas.drawn_heatmap.return_value = None
        self.controller.magnifier = self.magnifier = Magnifier(self.canvas, lambda: self.controller.slide)
        self.presenter = OverviewPresenter(self.view, self.canvas, self.background)
        self.presenter.attach(self.controller)
        self.presenter.refresh()

    @property
    def panel(self) -> OverviewPanel:
        return self.view.show_panel.call_args.args[0]

    def shown(self, what: str) -> Any:
        """The last arguments of a method of the view."""
        return getattr(self.view, what).call_args.args


@pytest.fixture
def slide(small_slide: Path) -> Iterator[Slide]:
    with Slide(small_slide) as opened:
        yield opened


@pytest.fixture
def dock(slide: Slide) -> Dock:
    return Dock(slide)


def test_without_a_slide() -> None:
    dock = Dock(None)
    assert dock.panel == OverviewPanel(hint=NO_SLIDE)
    assert dock.shown("show_picture") == (None, None)
    assert dock.shown("show_field") == (None, "")
    dock.magnifier.show()
    dock.canvas.show_magnification.assert_called_with("")
    assert not all_started(dock.background)
    for act in (
        lambda: dock.magnifier.magnify(10),
        lambda: dock.magnifier.by_step(1),
        lambda: dock.presenter.centre_on((1.0, 1.0)),
        dock.magnifier.whole_slide,
        lambda: dock.presenter.choose_associated("label"),
    ):
        act()
    dock.canvas.go_to.assert_not_called()
    dock.canvas.fit.assert_not_called()
    dock.view.may_show_associated.assert_not_called()


def test_the_picture_is_read_behind_the_window(dock: Dock, slide: Slide) -> None:
    assert dock.shown("show_picture") == (None, WHOLE)
    started(dock.background).run()
    pixels, area = dock.shown("show_picture")
    assert area == WHOLE
    assert pixels.shape == (480, MAP_EDGE_PX, 3)
    whole = slide.read_region((0, 0), 1, slide.level_dimensions_xy[1])
    assert np.abs(pixels.astype(int) - whole.astype(int)).mean() < 2


def test_too_many_pixels_give_a_grey_picture(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_lrmil._viewer.docks.overview.presenter._MAX_LEVEL_PX", 1000)
    monkeypatch.setattr(Slide, "read_region", None)
    steps = overview_steps(slide)
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value.shape == (480, MAP_EDGE_PX, 3)
    assert len(np.unique(stop.value.value)) == 1


def test_a_picture_of_another_slide_or_of_other_colours_is_dropped(dock: Dock, slide: Slide) -> None:
    (first,) = all_started(dock.background)
    dock.view.show_picture.reset_mock()
    dock.controller.slide = None
    dock.presenter.refresh(Change.SLIDE)
    first.run()
    assert dock.shown("show_picture") == (None, None)
    dock.controller.slide = slide
    dock.presenter.refresh(Change.SLIDE)
    dock.presenter.refresh(Change.PIXELS)
    assert len(all_started(dock.background)) == 3


def test_an_error_is_told_while_its_slide_is_there(dock: Dock) -> None:
    (first,) = all_started(dock.background)
    dock.presenter.refresh(Change.PIXELS)
    started(dock.background).fail("it can't be read")
    assert dock.shown("show_error") == ("it can't be read",)
    dock.controller.slide = None
    dock.presenter.refresh(Change.SLIDE)
    assert dock.shown("show_error") == ("",)
    first.fail("the slide is closed")
    assert dock.shown("show_error") == ("",)


def test_what_does_not_concern_it_is_not_looked_at(dock: Dock) -> None:
    dock.view.reset_mock()
    dock.presenter.refresh(Change.ALL & ~(Change.SLIDE | Change.PIXELS | Change.RESULT))
    assert not dock.view.mock_calls
    dock.presenter.refresh(Change.RESULT)
    dock.view.show_panel.assert_called_once()
    dock.view.show_picture.assert_not_called()  # the slide is the same


def test_unknown_mpp_has_no_magnification(slide_without_mpp: Path) -> None:
    with Slide(slide_without_mpp) as slide:
        dock = Dock(slide)
        assert dock.panel.hint == NO_MPP
        assert not dock.panel.can_magnify
        assert dock.shown("show_field") == (dock.canvas.field, "")
        dock.magnifier.magnify(10)
        dock.magnifier.by_step(1)
        dock.canvas.go_to.assert_not_called()
        slide.mpp_override = 0.5
        dock.presenter.refresh(Change.PIXELS)
        assert dock.panel.hint == ""
        assert dock.panel.can_magnify
        assert dock.shown("show_field") == (dock.canvas.field, "5× · 2 µm/px")


def test_the_field_and_its_magnification_are_shown_here_and_on_the_canvas(dock: Dock) -> None:
    assert dock.shown("show_field") == (dock.canvas.field, "5× · 2 µm/px")
    dock.magnifier.show()
    dock.canvas.show_magnification.assert_called_with("5× · 2 µm/px")
    dock.canvas.zoom, dock.canvas.field = 1.0, Area(0.0, 0.0, 400.0, 600.0)
    dock.presenter.field_changed()
    assert dock.shown("show_field") == (dock.canvas.field, "10× · 1 µm/px")


def test_magnifying_keeps_the_middle(dock: Dock) -> None:
    dock.magnifier.magnify(20)
    dock.canvas.go_to.assert_called_once_with((500.0, 800.0), zoom=2.0)


@pytest.mark.parametrize(("zoom", "up", "down"), [(0.5, 1.0, 0.2), (0.7, 1.0, 0.5), (9.0, 4.0, 4.0)])
def test_steps_go_to_the_next_preset(dock: Dock, zoom: float, up: float, down: float) -> None:
    for steps, wanted in ((1, up), (-1, down)):
        dock.canvas.zoom = zoom
        dock.magnifier.by_step(steps)
        assert dock.canvas.go_to.call_args.kwargs["zoom"] == pytest.approx(wanted)


def test_below_the_lowest_preset_is_the_whole_slide(dock: Dock) -> None:
    dock.canvas.zoom = 0.1
    dock.magnifier.by_step(-1)
    dock.canvas.fit.assert_called_once_with(WHOLE, share=0.95)


def test_moves_are_half_a_field_and_end_at_the_slides_edge(dock: Dock) -> None:
    dock.presenter.move(-1, 0)
    dock.canvas.go_to.assert_called_with((100.0, 800.0))
    dock.presenter.move(1, 1)
    dock.canvas.go_to.assert_called_with((900.0, 1280.0))  # 1400 would be outside
    dock.presenter.centre_on((-50.0, 33.0))
    dock.canvas.go_to.assert_called_with((0.0, 33.0))


def test_the_heatmap_on_the_map_has_a_switch(dock: Dock) -> None:
    assert not dock.panel.has_heatmap
    assert dock.shown("show_heatmap") == (None,)
    drawn = DrawnHeatmap(np.zeros((2, 3, 4), np.uint8), WHOLE)
    dock.canvas.has_heatmap.return_value, dock.canvas.drawn_heatmap.return_value = True, drawn
    dock.controller.result = make_prediction()
    dock.presenter.refresh(Change.RESULT)
    assert dock.panel.has_heatmap
    assert dock.shown("show_heatmap") == (drawn,)
    dock.presenter.toggle_heatmap(False)
    assert not dock.panel.heatmap_shown
    assert dock.panel.has_heatmap
    assert dock.shown("show_heatmap") == (None,)
    dock.presenter.toggle_heatmap(True)
    assert dock.shown("show_heatmap") == (drawn,)
    dock.canvas.has_heatmap.return_value, dock.canvas.drawn_heatmap.return_value = False, None
    dock.presenter.heatmap_changed()  # its layer was deleted
    assert not dock.panel.has_heatmap
    assert dock.shown("show_heatmap") == (None,)


def test_associated_images_are_read_only_once_confirmed(dock: Dock, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    pixels = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(Slide, "read_associated", lambda self, name: (read.append(name), pixels)[1])
    dock.view.may_show_associated.return_value = False
    dock.presenter.choose_associated("label")
    assert "“label” can show the patient's name" in dock.shown("may_show_associated")[0]
    assert not all_started(dock.background, "associated")
    dock.view.may_show_associated.return_value = True
    dock.presenter.choose_associated("label")
    started(dock.background, "associated").run()
    assert read == ["label"]
    assert dock.shown("show_associated") == ("label", pixels)
    dock.view.show_associated.reset_mock()
    dock.presenter.choose_associated("label")
    dock.view.close_associated.reset_mock()
    dock.controller.slide = None
    dock.presenter.refresh(Change.SLIDE)
    started(dock.background, "associated").run()
    dock.view.show_associated.assert_not_called()  # with its slide, the image goes too
    dock.view.close_associated.assert_called_once_with()


def test_an_associated_image_that_is_not_there(dock: Dock) -> None:
    dock.presenter.choose_associated("label")
    started(dock.background, "associated").run()
    assert "label" in dock.shown("show_error")[0]
    dock.view.show_associated.assert_not_called()

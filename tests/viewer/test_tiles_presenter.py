"""The tiles dock without a window: which tiles, which close-ups are read, and where the canvas goes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import all_started, fake, fake_background, started
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_predictions import make_prediction

from napari_lrmil._viewer.canvas import Area, Canvas
from napari_lrmil._viewer.docks.tiles.panel import TilesPanel, ranked_tiles, tiles_panel
from napari_lrmil._viewer.docks.tiles.presenter import TilesPresenter, TilesView
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.heatmap import HeatmapLook, Unit
from napari_lrmil.slide import Slide

# --- ranking


def test_ranks_by_hand() -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert ranked_tiles(values, 2) == ([3, 4], [1, 2])
    assert ranked_tiles(values, 9) == ([3, 4, 0], [1, 2])
    assert ranked_tiles(np.array([7.0]), 3) == ([0], [])
    assert ranked_tiles(np.zeros(4), 1) == ([0], [3])


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-9, 9)), st.integers(1, 24))
def test_no_tile_is_in_both_ranks_and_none_is_left_out_unfairly(values: np.ndarray, k: int) -> None:
    top, bottom = ranked_tiles(values, k)
    assert not set(top) & set(bottom)
    assert len(top) == min(k, -(-len(values) // 2))
    assert len(bottom) == min(k, len(values) - len(top))
    rest = set(range(len(values))) - set(top) - set(bottom)
    assert all(values[top[-1]] >= values[n] for n in rest)
    assert all(values[bottom[-1]] <= values[n] for n in rest)
    assert all(values[a] >= values[b] for a, b in pairwise(top))
    assert all(values[a] <= values[b] for a, b in pairwise(bottom))


# --- the dock


class Dock:
    """A presenter with its surroundings."""

    def __init__(self) -> None:
        self.view, self.canvas, self.background = fake(TilesView), fake(Canvas), fake_background()
        self.controller = fake(Controller)
        self.controller.slide = self.controller.result = self.controller.look = None
        self.presenter = TilesPresenter(self.view, self.canvas, self.background)
        self.presenter.attach(self.controller)
        self.presenter.refresh()

    def show(self, result: Any, slide: Any = None) -> None:
        self.controller.slide = slide or SimpleNamespace(icc=False, level_mpps=(0.5,))
        self.controller.result = result
        self.presenter.refresh(Change.SLIDE | Change.RESULT)

    @property
    def panel(self) -> TilesPanel:
        return self.view.show_panel.call_args.args[0]

    @property
    def tiles(self) -> tuple[list[int], list[int]]:
        return [each.n for each in self.panel.top], [each.n for each in self.panel.bottom]

    @property
    def gone_to(self) -> list[int]:
        return [call.args[0] for call in self.canvas.mark_tile.call_args_list]

    @property
    def images(self) -> dict[int, Any]:
        """What the view has been given since its last panel."""
        calls = self.view.mock_calls
        last = max(at for at, call in enumerate(calls) if call[0] == "show_panel")
        return dict(call.args for call in calls[last:] if call[0] == "show_image")


@pytest.fixture
def dock() -> Dock:
    return Dock()


def test_an_empty_dock_says_what_to_do(dock: Dock) -> None:
    assert "Open a slide" in dock.panel.hint
    dock.show(None)
    assert dock.panel.hint.startswith("Classify this slide")
    assert not all_started(dock.background)


def test_it_starts_with_what_speaks_for_the_label(dock: Dock) -> None:
    """Tile n speaks for "lesion" with n - 9 points, and the other way round for "benign"."""
    dock.presenter.choose_k(2)
    dock.show(make_prediction(0.9, shape_yx=(4, 5)))
    assert dock.panel.channels[dock.panel.channel_index] == "Contribution to lesion"
    assert dock.tiles == ([19, 18], [0, 1])
    assert dock.panel.top[0].caption == "+10.00 pp"
    assert dock.panel.bottom[0].caption == "−9.00 pp"
    assert "row 3, column 4" in dock.panel.top[0].tool_tip
    dock.show(make_prediction(0.1, shape_yx=(4, 5)))
    assert dock.tiles == ([0, 1], [19, 18])
    assert dock.panel.top_title == "Most for benign"


def test_a_choice_of_attention_holds_for_the_next_slide(dock: Dock) -> None:
    dock.show(make_prediction(shape_yx=(4, 5)))
    dock.presenter.choose_channel(0)
    assert dock.panel.top_title == "Most attention"
    assert dock.panel.top[0].caption == f"{20 / 10.5:.2f}×"
    dock.show(make_prediction(0.1, shape_yx=(2, 2)))
    assert dock.panel.top_title == "Most attention"


def test_what_does_not_concern_it_is_not_looked_at(dock: Dock) -> None:
    dock.show(make_prediction(shape_yx=(4, 5)))
    dock.view.show_panel.reset_mock()
    dock.controller.result = make_prediction(0.1, shape_yx=(2, 2))
    dock.presenter.refresh(Change.ALL & ~(Change.SLIDE | Change.PIXELS | Change.RESULT | Change.LOOK))
    dock.view.show_panel.assert_not_called()
    dock.presenter.refresh(Change.RESULT)
    dock.view.show_panel.assert_called_once()
    dock.presenter.refresh(Change.ALL)  # but all is as it was
    dock.view.show_panel.assert_called_once()


# --- close-ups


def test_close_ups_are_the_tiles_pixels_at_higher_power(dock: Dock, small_slide: Path) -> None:
    """A tile of 64 px at 2 µm/px is 256 px at the slide's 0.5 µm/px: exactly those of level 0."""
    dock.presenter.choose_k(2)
    with Slide(small_slide) as slide:
        dock.show(make_prediction(0.9, shape_yx=(7, 10)), slide)
        assert dock.panel.note == "Shown at 0.5 µm/px (20×); the model reads 2 µm/px."
        started(dock.background).run()
        assert list(dock.images) == [69, 68, 0, 1]
        for n, pixels in dock.images.items():
            row, col = divmod(n, 10)
            expected = slide.read_region((256 * col, 256 * row), 0, (256, 256))
            np.testing.assert_array_equal(pixels, expected)
    dock.view.show_error.assert_not_called()


def test_a_close_up_of_a_large_tile_stays_small(dock: Dock, small_slide: Path) -> None:
    with Slide(small_slide) as slide:
        dock.show(make_prediction(shape_yx=(1, 1), tile_px=448), slide)
        assert dock.panel.note.startswith("Shown at 1.4 µm/px")
        started(dock.background).run()
        assert dock.images[0].shape == (640, 640, 3)


def test_a_slide_closed_in_between_is_an_error_while_it_is_shown(dock: Dock, small_slide: Path) -> None:
    with Slide(small_slide) as slide:
        dock.show(make_prediction(shape_yx=(7, 10)), slide)
        job = started(dock.background)
        job.progress(next(job.steps))
    job.run()
    assert "closed" in dock.view.show_error.call_args.args[0]
    dock.show(make_prediction(shape_yx=(7, 10)), slide)
    job = started(dock.background)
    dock.view.show_error.reset_mock()
    dock.show(None)
    job.run()
    dock.view.show_error.assert_not_called()


def test_only_missing_images_are_read(dock: Dock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "napari_lrmil._viewer.docks.tiles.presenter.close_up", lambda slide, grid, row, col, **_: (row, col)
    )
    dock.presenter.choose_k(1)
    dock.show(make_prediction(0.9, shape_yx=(4, 5)))
    started(dock.background).run()
    assert dock.images == {19: (3, 4), 0: (0, 0)}
    dock.presenter.choose_k(2)
    assert dock.images == {19: (3, 4), 0: (0, 0)}
    job = started(dock.background)
    assert [n for n, _ in job.steps] == [18, 1]
    job.progress((7, "of another choice"))
    assert 7 not in dock.images
    dock.presenter.refresh()
    assert started(dock.background) is job


def test_images_that_could_not_be_read_are_once_the_slide_is_back(dock: Dock) -> None:
    dock.show(make_prediction(0.9, shape_yx=(2, 2)))
    job = started(dock.background)
    job.fail("the share is away")
    dock.presenter.refresh(Change.LOOK)
    assert started(dock.background) is job
    dock.view.show_panel.reset_mock()
    dock.presenter.refresh(Change.PIXELS)
    assert started(dock.background) is not job
    dock.view.show_panel.assert_called_once()  # which takes the error away


def test_another_slide_or_colour_profile_is_read_anew(dock: Dock) -> None:
    slide = SimpleNamespace(icc=False, level_mpps=(0.5,))
    result = make_prediction(shape_yx=(4, 5))
    dock.show(result, slide)
    dock.presenter.go_to(19)
    (first,) = all_started(dock.background)
    first.progress((19, "as stored"))
    cleared = dock.canvas.clear_tile_mark.call_count
    slide.icc = True
    dock.presenter.refresh(Change.PIXELS)
    assert dock.images == {}
    assert len(all_started(dock.background)) == 2
    assert dock.canvas.clear_tile_mark.call_count == cleared + 1
    dock.show(None, slide)
    assert dock.panel.hint
    dock.background.cancel.assert_called_with(first.name)
    dock.presenter.go_to(19)
    assert dock.gone_to == [19]


# --- going there


def test_the_canvas_centres_on_a_tile_and_marks_it(dock: Dock) -> None:
    """Tiles of 64 px at 2 µm/px."""
    dock.show(make_prediction(shape_yx=(4, 5)))
    dock.presenter.go_to(19)
    area = Area(3 * 128.0, 4 * 128.0, 128.0, 128.0)
    dock.canvas.fit.assert_called_once_with(area, share=1 / 3)
    dock.canvas.mark_tile.assert_called_once_with(19, area)
    dock.view.select.assert_called_once_with(19)


def test_steps_go_round(dock: Dock) -> None:
    dock.presenter.step(1)  # nothing there
    dock.presenter.choose_k(1)
    dock.show(make_prediction(0.9, shape_yx=(4, 5)))
    for by in (1, 1, 1, -1):
        dock.presenter.step(by)
    assert dock.gone_to == [19, 0, 19, 0]
    dock.view.select.assert_called_with(0)
    dock.presenter.choose_k(3)  # the place is kept among more tiles
    dock.presenter.step(1)
    assert dock.gone_to[-1] == 1


def test_the_unit_of_the_heatmap_holds_here_too(dock: Dock) -> None:
    dock.show(make_prediction(0.9, shape_yx=(4, 5)))
    dock.controller.look = HeatmapLook(unit=Unit.LOG_ODDS)
    dock.presenter.refresh(Change.LOOK)
    assert dock.panel.top[0].caption == "+0.50 log-odds"
    assert dock.tiles[0][0] == 19


def test_a_saturated_slide_is_ranked_in_log_odds_and_says_so(dock: Dock) -> None:
    dock.show(make_prediction(0.9999, shape_yx=(4, 5)))
    assert dock.panel.top[0].caption == "+0.50 log-odds"
    assert (
        "saturated (> 99 %): percentage points can't tell the tiles apart; log-odds can." in dock.panel.note
    )


def test_the_panel_by_itself() -> None:
    slide: Any = SimpleNamespace(level_mpps=(0.5,))
    panel = tiles_panel(slide, make_prediction(0.9, shape_yx=(1, 3)), "benign", 6)
    assert [each.n for each in panel.top] == [0, 1]
    assert [each.n for each in panel.bottom] == [2]
    assert panel.bottom_title == "Least for benign, or against it"


def test_only_tiles_that_speak_for_a_class_are_listed_for_it() -> None:
    """All of these speak against "lesion"; of twelve, tile 9 does nothing, and 10 and 11 speak for it."""
    slide: Any = SimpleNamespace(level_mpps=(0.5,))
    panel = tiles_panel(slide, make_prediction(0.9, shape_yx=(1, 3)), "lesion", 6)
    assert panel.top_title == "No tile speaks for lesion"
    assert panel.top == ()
    assert [each.n for each in panel.bottom] == [0, 1, 2]
    panel = tiles_panel(slide, make_prediction(0.9, shape_yx=(3, 4)), "lesion", 6)
    assert panel.top_title == "Most for lesion"
    assert [each.n for each in panel.top] == [11, 10]
    assert [each.n for each in panel.bottom] == [0, 1, 2, 3, 4, 5]
    assert panel.bottom_title == "Least for lesion, or against it"

"""The gallery against mocks, close-ups of a real slide, and the wording of evidence: no window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_predictions import make_prediction
from tiny_models import write_bundle

from napari_lrmil._viewer.docks.classify.evidence import evidence_panel, value_text
from napari_lrmil._viewer.docks.classify.result import card_markdown
from napari_lrmil._viewer.docks.tiles.close_up import close_up, close_up_mpp, close_up_text, close_ups
from napari_lrmil._viewer.docks.tiles.presenter import GalleryPanel, GalleryPresenter
from napari_lrmil._viewer.docks.tiles.ranking import ranked_tiles
from napari_lrmil.errors import SlideError
from napari_lrmil.heatmap import ATTENTION, HeatmapLook, Scaling
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.encoder import EncoderSpec
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


# --- close-ups


def test_a_close_up_is_the_tiles_pixels_at_higher_power(small_slide: Path) -> None:
    """A tile of 64 px at 2 µm/px is 256 px at the slide's 0.5 µm/px: exactly those of level 0."""
    prediction = make_prediction(shape_yx=(7, 10))
    with Slide(small_slide) as slide:
        assert close_up_mpp(slide, prediction) == 0.5
        assert close_up_text(slide, prediction) == "Shown at 0.5 µm/px (20×); the model reads 2 µm/px."
        for n in (0, 34):
            row, col = divmod(n, 10)
            expected = slide.read_region((256 * col, 256 * row), 0, (256, 256))
            np.testing.assert_array_equal(close_up(slide, prediction, n), expected)
        steps = close_ups(slide, prediction, [3, 4])
        assert next(steps)[0] == 3
    with pytest.raises(SlideError, match="closed"):
        next(steps)


def test_a_close_up_of_a_large_tile_stays_small(small_slide: Path) -> None:
    prediction = make_prediction(shape_yx=(1, 1), tile_px=448)
    with Slide(small_slide) as slide:
        assert close_up(slide, prediction, 0).shape == (640, 640, 3)
        assert close_up_mpp(slide, prediction) == pytest.approx(1.4)


# --- the gallery


@dataclass
class FakeView:
    panel: GalleryPanel = field(default_factory=GalleryPanel)
    images: dict[int, Any] = field(default_factory=dict)
    selected: int | None = None
    error: str = ""

    def show_gallery(self, panel: GalleryPanel) -> None:
        self.panel = panel
        self.images.clear()

    def show_image(self, n: int, pixels: Any) -> None:
        self.images[n] = pixels

    def show_error(self, text: str) -> None:
        self.error = text

    def select(self, n: int) -> None:
        self.selected = n


@dataclass
class FakeStage:
    gone_to: list[int] = field(default_factory=list)
    cleared: int = 0

    def go_to(self, prediction: Any, n: int) -> None:
        self.gone_to.append(n)

    def clear(self) -> None:
        self.cleared += 1


class Wall:
    """A gallery with its surroundings; what it wants read is in `reads`."""

    def __init__(self) -> None:
        self.view, self.stage = FakeView(), FakeStage()
        self.source = SimpleNamespace(slide=None, result=None)
        self.reads: list[list[int]] = []
        self.presenter = GalleryPresenter(self.view, self.stage, self.source, self._read)  # type: ignore[arg-type]
        self.presenter.refresh()

    def _read(self, slide: Any, result: Any, numbers: Sequence[int]) -> None:
        self.reads.append(list(numbers))

    def show(self, result: Any, slide: Any = None) -> None:
        self.source.slide = slide or SimpleNamespace(icc=False, level_mpps=(0.5,))
        self.source.result = result
        self.presenter.refresh()


@pytest.fixture
def wall() -> Wall:
    return Wall()


def shown(wall: Wall) -> tuple[list[int], list[int]]:
    return [each.n for each in wall.view.panel.top], [each.n for each in wall.view.panel.bottom]


def test_an_empty_gallery_says_what_to_do(wall: Wall) -> None:
    assert "Open a slide" in wall.view.panel.hint
    wall.show(None)
    assert wall.view.panel.hint.startswith("Classify this slide")
    assert not wall.reads


def test_it_starts_with_what_speaks_for_the_label(wall: Wall) -> None:
    """Tile n speaks for "lesion" with n - 9 points, and the other way round for "benign"."""
    wall.presenter.choose_k(2)
    wall.show(make_prediction(0.9, shape_yx=(4, 5)))
    assert wall.view.panel.channels[wall.view.panel.channel_index] == "Contribution to lesion"
    assert shown(wall) == ([19, 18], [0, 1])
    assert wall.view.panel.top[0].caption == "+10.00 pp"
    assert wall.view.panel.bottom[0].caption == "−9.00 pp"
    assert "row 3, column 4" in wall.view.panel.top[0].tool_tip
    assert wall.reads == [[19, 18, 0, 1]]
    wall.show(make_prediction(0.1, shape_yx=(4, 5)))
    assert shown(wall) == ([0, 1], [19, 18])
    assert wall.view.panel.top_title == "Most for benign"


def test_a_choice_of_attention_holds_for_the_next_slide(wall: Wall) -> None:
    wall.show(make_prediction(shape_yx=(4, 5)))
    wall.presenter.choose_channel(0)
    assert wall.view.panel.top_title == "Most attention"
    assert wall.view.panel.top[0].caption == f"{20 / 10.5:.2f}×"
    wall.show(make_prediction(0.1, shape_yx=(2, 2)))
    assert wall.view.panel.top_title == "Most attention"


def test_only_missing_images_are_read(wall: Wall) -> None:
    wall.presenter.choose_k(1)
    wall.show(make_prediction(0.9, shape_yx=(4, 5)))
    for n in (19, 0):
        wall.presenter.image_read(n, f"image {n}")  # type: ignore[arg-type]
    wall.presenter.choose_k(2)
    assert wall.view.images == {19: "image 19", 0: "image 0"}
    assert wall.reads == [[19, 0], [18, 1]]
    wall.presenter.image_read(7, "of another choice")  # type: ignore[arg-type]
    assert 7 not in wall.view.images
    wall.presenter.refresh()  # progress elsewhere, say
    assert len(wall.reads) == 2


def test_another_slide_or_colour_profile_is_read_anew(wall: Wall) -> None:
    slide = SimpleNamespace(icc=False, level_mpps=(0.5,))
    result = make_prediction(shape_yx=(4, 5))
    wall.show(result, slide)
    wall.presenter.go_to(19)
    cleared = wall.stage.cleared
    slide.icc = True
    wall.presenter.refresh()
    assert wall.reads[0] == wall.reads[1]
    assert wall.stage.cleared == cleared + 1
    wall.show(None, slide)
    assert wall.view.panel.hint
    wall.presenter.go_to(19)
    assert wall.stage.gone_to == [19]


def test_steps_go_round(wall: Wall) -> None:
    wall.presenter.step(1)  # nothing there
    wall.presenter.choose_k(1)
    wall.show(make_prediction(0.9, shape_yx=(4, 5)))
    for by in (1, 1, 1, -1):
        wall.presenter.step(by)
    assert wall.stage.gone_to == [19, 0, 19, 0]
    assert wall.view.selected == 0
    wall.presenter.choose_k(3)  # the place is kept among more tiles
    wall.presenter.step(1)
    assert wall.stage.gone_to[-1] == 1


# --- wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234, "+1.23 pp"),
        (-0.01, "−0.01 pp"),
        (0.0042, "+0.0042 pp"),
        (-0.00014, "−0.0001 pp"),
        (1e-6, "≈ 0 pp"),
        (0.0, "≈ 0 pp"),
    ],
)
def test_points(value: float, text: str) -> None:
    assert value_text(value, "lesion") == text
    assert value_text(2.25, ATTENTION) == "2.25×"


def test_the_colour_bar_has_real_units() -> None:
    prediction = make_prediction(shape_yx=(4, 5))
    bar = evidence_panel(prediction, HeatmapLook(threshold=0.5)).bar
    assert (bar.low, bar.high, bar.unit) == ("≤ 1×", "4.0×", "attention, × the average tile")
    assert bar.threshold == pytest.approx(1 / 3)  # 2x between 1x and 4x
    bar = evidence_panel(prediction, HeatmapLook("lesion")).bar
    assert (bar.low, bar.middle, bar.high) == ("−9.8", "0", "+9.8")
    assert bar.unit == "percentage points of p(lesion)"
    assert bar.threshold == 0
    bar = evidence_panel(prediction, HeatmapLook(ATTENTION, Scaling.PERCENTILE)).bar
    assert (bar.low, bar.high) == ("0", "100")


def test_the_card_is_without_its_head_for_machines(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "b", EncoderSpec(options={"image_px": 64}), tile_px=64))
    card = card_markdown(bundle.info)
    assert card.startswith("# Tiny")
    assert "How far to trust a result" in card
    assert "library_name" not in card

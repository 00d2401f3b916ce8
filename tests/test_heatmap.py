"""Values, scales and colours of heatmaps against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_lrmil.heatmap import (
    ATTENTION,
    DIVERGING,
    SEQUENTIAL,
    Heatmap,
    HeatmapLook,
    Scaling,
    TileFinder,
    Unit,
    channel_values,
    colour_table,
    fitting_look,
    percentile_ranks,
    scale_limits,
    shown_heatmap,
    signed_percentile_ranks,
    smoothed,
    speaking_tiles,
    tile_text,
    unit_of,
)
from napari_lrmil.slide import TileGrid, TileSet, TileSpec

PREDICTION_TILES = TileSet(
    TileGrid(TileSpec(64, 2.0), (100.0, 40.0), (256.0, 128.0), (2, 3)),
    1,
    np.array([0, 0, 1, 1]),
    np.array([0, 2, 0, 1]),
    np.ones((2, 3), np.float32),
)
"""Four of the six tiles of a grid; level 0 has 0.5 µm/px along x and 1 along y."""


class Made:
    """What heatmaps ask of a prediction."""

    def __init__(self, attention: Any, points: Any) -> None:
        self.tiles = PREDICTION_TILES
        self.mpp_xy = (0.5, 1.0)
        self.class_names = ("benign", "lesion")
        self.attention_scores = np.array(attention, np.float64)
        self.class_attention = self.exact_tiles = None
        lesion = np.array(points, np.float64) / 100
        self.class_contributions = np.stack([-lesion, lesion], axis=1)
        self.log_odds_contributions = 5 * self.class_contributions
        self.log_odds_alone = 50 * self.class_contributions
        self.saturated = False


def made(attention: Any = (0.1, 0.2, 0.3, 0.4), points: Any = (-2.0, 0.0, 0.5, 4.0)) -> Any:
    return Made(attention, points)


# --- values


def test_values_have_real_units() -> None:
    np.testing.assert_allclose(channel_values(made(), ATTENTION), [0.4, 0.8, 1.2, 1.6])
    np.testing.assert_allclose(channel_values(made(), "lesion"), [-2.0, 0.0, 0.5, 4.0])
    np.testing.assert_allclose(channel_values(made(), "benign"), [2.0, 0.0, -0.5, -4.0])
    with pytest.raises(ValueError, match="no class 'other'; there are benign, lesion"):
        channel_values(made(), "other")
    np.testing.assert_allclose(channel_values(made(), "lesion", Unit.LOG_ODDS), [-0.1, 0.0, 0.025, 0.2])
    np.testing.assert_allclose(channel_values(made(), "lesion", Unit.ALONE), [-1.0, 0.0, 0.25, 2.0])


def test_units_are_chosen_or_fit_the_slide() -> None:
    plain, saturated = made(), made(points=(-1e-9, 0.0, 1e-9, 2e-9))
    saturated.saturated = True
    saturated.log_odds_contributions = made().log_odds_contributions
    assert (unit_of(plain, None), unit_of(saturated, None)) == (Unit.POINTS, Unit.LOG_ODDS)
    assert (unit_of(plain, Unit.ALONE), unit_of(saturated, Unit.POINTS)) == (Unit.ALONE, Unit.POINTS)
    shown = shown_heatmap(saturated, HeatmapLook("lesion"))
    assert shown.limits[1] == pytest.approx(0.2, rel=0.05)  # not the cold of points
    assert shown_heatmap(saturated, HeatmapLook("lesion", unit=Unit.POINTS)).limits == (-1.0, 1.0)
    assert (speaking_tiles(saturated, "lesion"), speaking_tiles(saturated, "lesion", against=True)) == (
        [3, 2],
        [0],
    )
    assert tile_text(plain, 3).endswith("lesion +4.00 pp (+0.20 log-odds, alone +2.00)")


def test_tiles_lie_on_the_grid_and_the_others_are_nan() -> None:
    shown = shown_heatmap(made(), HeatmapLook("lesion"))
    np.testing.assert_allclose(shown.heatmap.values, [[-2.0, np.nan, 0.0], [0.5, 4.0, np.nan]])
    assert shown.heatmap.corner_um_xy == (50.0, 40.0)
    assert shown.heatmap.pixel_um_xy == (128.0, 128.0)


# --- percentiles


def test_percentiles_by_hand() -> None:
    """Ties share their middle: of four, two in the middle lie at 50 %."""
    np.testing.assert_allclose(percentile_ranks(np.array([4.0, 2.0, 2.0, 1.0])), [87.5, 50, 50, 12.5])
    np.testing.assert_allclose(percentile_ranks(np.array([7.0])), [50.0])
    np.testing.assert_allclose(
        signed_percentile_ranks(np.array([-3.0, 0.0, 1.0, -1.0])), [-87.5, 0.0, 50, -50]
    )


@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e6, 1e6)))
def test_percentiles_keep_order_and_sign(values: np.ndarray) -> None:
    ranks = percentile_ranks(values)
    assert ((ranks > 0) & (ranks < 100)).all()
    assert ranks.mean() == pytest.approx(50)
    smaller = values[:, None] < values[None]
    assert ((ranks[:, None] < ranks[None]) == smaller).all()
    assert (np.sign(signed_percentile_ranks(values)) == np.sign(values)).all()


# --- scales


def test_a_slide_without_evidence_is_cold_in_real_units() -> None:
    """At the cold end in attention, near the middle in contributions; only percentiles, which say so, are not."""
    flat = made(attention=[0.25] * 4, points=[0.01, 0.01, -0.01, 0.0])
    for channel in (ATTENTION, "benign", "lesion"):
        shown = shown_heatmap(flat, HeatmapLook(channel))
        low, high = shown.limits
        heat = (shown.heatmap.values[np.isfinite(shown.heatmap.values)] - low) / (high - low)
        assert np.abs(heat - (0.0 if channel == ATTENTION else 0.5)).max() <= 0.005 + 1e-9
    ranked = shown_heatmap(flat, HeatmapLook("lesion", Scaling.PERCENTILE))
    assert np.nanmax(ranked.heatmap.values) == 62.5


def test_limits_by_hand() -> None:
    values = np.linspace(0, 100, 101)
    assert scale_limits(values / 10, signed=False, scaling=Scaling.RAW) == (1.0, pytest.approx(9.9))
    assert scale_limits(values / 1000, signed=False, scaling=Scaling.RAW) == (1.0, 4.0)
    assert scale_limits(-values / 10, signed=True, scaling=Scaling.RAW) == (
        pytest.approx(-9.9),
        pytest.approx(9.9),
    )
    assert scale_limits(values / 1000, signed=True, scaling=Scaling.RAW) == (-1.0, 1.0)
    assert scale_limits(values, signed=False, scaling=Scaling.PERCENTILE) == (0.0, 100.0)
    assert scale_limits(values, signed=True, scaling=Scaling.PERCENTILE) == (-100.0, 100.0)


def test_below_the_threshold_tiles_are_clear() -> None:
    """Limits here are 1 to 4 in attention, and about +-3.9 points: half of that is 1.97."""
    shown = shown_heatmap(made(), HeatmapLook(threshold=0.25))  # 1x of 4x
    assert shown.threshold == 1.0
    np.testing.assert_allclose(shown.heatmap.values, [[np.nan] * 3, [1.2, 1.6, np.nan]], rtol=1e-6)
    shown = shown_heatmap(made(), HeatmapLook("lesion", threshold=0.5))
    assert shown.threshold == pytest.approx(0.5 * (2 + 2 * 0.97))
    np.testing.assert_allclose(shown.heatmap.values, [[-2.0, np.nan, np.nan], [np.nan, 4.0, np.nan]])
    shown = shown_heatmap(made(), HeatmapLook(ATTENTION, Scaling.PERCENTILE, threshold=0.5))
    np.testing.assert_allclose(shown.heatmap.values, [[np.nan] * 3, [62.5, 87.5, np.nan]])


def test_nothing_is_clear_without_a_threshold() -> None:
    for channel in (ATTENTION, "lesion"):
        for scaling in Scaling:
            assert np.isfinite(shown_heatmap(made(), HeatmapLook(channel, scaling)).heatmap.values).sum() == 4


def test_an_unknown_class_falls_back_to_attention() -> None:
    look = HeatmapLook("other", Scaling.PERCENTILE, 0.5, "magma", "PuOr")
    assert fitting_look(made(), look) == HeatmapLook(ATTENTION, Scaling.PERCENTILE, 0.5, "magma", "PuOr")
    assert fitting_look(made(), HeatmapLook("lesion")) == HeatmapLook("lesion")


# --- colours


def lightness(table: np.ndarray) -> np.ndarray:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(table[None, :, :3])[0, :, 0])


def as_seen_without_green(table: np.ndarray) -> np.ndarray:
    """Deuteranopia: the matrix of Machado, Oliveira & Fernandes (IEEE TVCG 2009) at full severity, linear RGB."""
    matrix = np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    )
    rgb = table[:, :3].astype(np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ matrix.T
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_maps_only_get_lighter(name: str) -> None:
    table = colour_table(name, signed=False)
    assert table.shape == (256, 4)
    assert (np.diff(lightness(table)) > -0.05).all()
    assert (np.diff(table[:, 3]) >= 0).all()
    assert table[0, 3] == 0  # cold tiles are clear: tissue is seen as it is
    assert table[-1, 3] == pytest.approx(1.0)


@pytest.mark.parametrize("name", DIVERGING)
def test_diverging_maps_are_clear_and_light_at_zero_and_tell_signs_apart(name: str) -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    table = colour_table(name, signed=True)
    light = lightness(table)
    assert (np.diff(light[:120]) > -0.1).all()
    assert (np.diff(light[136:]) < 0.1).all()
    assert (table[127:129, 3] < 0.07).all()
    assert table[[0, -1], 3] == pytest.approx(1.0)
    seen = rgb2lab(as_seen_without_green(table)[None])[0]
    for at in (32, 64):  # strong and medium, against and for
        assert deltaE_ciede2000(seen[at], seen[255 - at]) > 15


# --- smooth heatmaps


def test_a_smooth_heatmap_runs_from_the_middle_of_a_tile_to_the_next() -> None:
    """Pixel middles lie 1/16, 3/16, ... of a tile from its edge; beyond the last middle the value stays."""
    fine = smoothed(Heatmap(np.array([[0, 1]], np.float32), (10.0, 20.0), (8.0, 4.0)))
    assert fine.values.shape == (8, 16)
    places = (np.arange(16) + 0.5) / 8
    np.testing.assert_allclose(fine.values, np.tile(np.clip(places - 0.5, 0, 1), (8, 1)), atol=1e-6)
    assert fine.corner_um_xy == (10.0, 20.0)
    assert fine.pixel_um_xy == (1.0, 0.5)


@given(
    arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)),
    arrays(np.bool_, (3, 4)),
)
def test_what_was_not_read_stays_clear_and_has_no_say(values: Any, read: Any) -> None:
    fine = smoothed(Heatmap(np.where(read, values, np.nan).astype(np.float32), (0.0, 0.0), (1.0, 1.0))).values
    covered = read.repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(np.isfinite(fine), covered)
    if read.any():
        assert fine[covered].min() >= values[read].min() - 1e-4
        assert fine[covered].max() <= values[read].max() + 1e-4


def test_a_lone_tile_and_a_flat_slide_are_as_they_were() -> None:
    lone = np.full((3, 3), np.nan, np.float32)
    lone[1, 1] = 2.5
    fine = smoothed(Heatmap(lone, (0.0, 0.0), (1.0, 1.0))).values
    np.testing.assert_allclose(fine[8:16, 8:16], 2.5, rtol=1e-6)
    flat = smoothed(Heatmap(np.full((5, 6), 1.25, np.float32), (0.0, 0.0), (1.0, 1.0))).values
    np.testing.assert_allclose(flat, 1.25, rtol=1e-6)


def test_a_huge_slide_is_drawn_in_bounded_memory() -> None:
    huge = Heatmap(np.ones((1500, 2000), np.float32), (0.0, 0.0), (1.0, 1.0))
    assert smoothed(huge) is huge
    assert smoothed(huge._replace(values=huge.values[:500, :1000])).values.shape == (1000, 2000)


def test_the_threshold_cuts_a_smooth_heatmap_where_its_value_is_reached() -> None:
    made = Made([0.1, 0.1, 0.1, 0.7], [0, 0, 0, 0])
    shown = shown_heatmap(made, HeatmapLook(threshold=0.5, smooth=True))  # type: ignore[arg-type]
    values = shown.heatmap.values
    assert values.shape == (16, 24)
    assert np.nanmin(values) >= shown.threshold
    assert np.isfinite(values[8:, 8:16]).any()
    assert np.isnan(values[:, 16:]).all()


# --- the tile under the cursor


def test_the_tile_at_a_place() -> None:
    find = TileFinder(made())  # from (50, 40) µm, tiles of 128 x 128 µm
    assert find.at(50.0, 40.0) == 0
    assert find.at(177.9, 167.9) == 0
    assert find.at(50.0, 168.0) == 2
    assert find.at(300.0, 300.0) is None  # not read
    assert find.at(310.0, 50.0) == 1
    for x, y in ((49.9, 50.0), (50.0, 39.9), (434.1, 50.0), (60.0, 296.1), (-1e6, 0.0)):
        assert find.at(x, y) is None


def test_heatmaps_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, napari_lrmil.heatmap; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0

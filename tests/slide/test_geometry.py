"""Grids, frames and level choice: pure functions, hand-computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import TileSpec, choose_level, make_tile_grid
from napari_lrmil.slide.geometry import children_of, l0_to_level, level_to_l0

SIDES = st.integers(1, 250_000)
MPPS = st.floats(0.05, 30)


@given(pixel=st.integers(-100_000, 250_000), downsample=st.floats(1, 600))
def test_level_to_level_0_and_back_is_exact(pixel: int, downsample: float) -> None:
    assert l0_to_level(level_to_l0(pixel, downsample), downsample) == pixel


@given(
    SIDES,
    SIDES,
    st.tuples(st.integers(0, 9_000), st.integers(0, 9_000)),
    MPPS,
    MPPS,
    st.integers(16, 512),
    MPPS,
)
def test_grid_covers_the_bounds_and_no_more(
    width: int, height: int, corner: tuple[int, int], mpp_x: float, mpp_y: float, tile_px: int, mpp: float
) -> None:
    spec = TileSpec(tile_px, mpp)
    grid = make_tile_grid(bounds_l0_xywh=(*corner, width, height), mpp_xy=(mpp_x, mpp_y), spec=spec)
    assert grid.corner_l0_xy(0, 0) == corner
    for axis, (side, n_tiles) in enumerate(zip((width, height), grid.shape_yx[::-1], strict=True)):
        tile = grid.tile_l0_xy[axis]
        assert tile == pytest.approx(tile_px * mpp / (mpp_x, mpp_y)[axis])
        assert n_tiles * tile >= side - 2e-3 * tile
        assert n_tiles == 1 or (n_tiles - 1) * tile < side


@given(ratio=st.integers(1, 8), tile_px=st.integers(16, 512), mpp=MPPS, origin=st.integers(0, 5_000))
def test_hr_grid_nests_in_the_lr_grid(ratio: int, tile_px: int, mpp: float, origin: int) -> None:
    lr = make_tile_grid(
        bounds_l0_xywh=(origin, origin // 2, 9_000, 7_000), mpp_xy=(0.25, 0.26), spec=TileSpec(tile_px, mpp)
    )
    hr = lr.subdivide(ratio)
    assert hr.spec.mpp * ratio == pytest.approx(mpp)
    rows, cols = np.arange(3), np.array([2, 0, 1])
    children = children_of(rows, cols, ratio)
    assert children.shape == (3, ratio * ratio, 2)
    for (row, col), of_one in zip(zip(rows, cols, strict=True), children, strict=True):
        assert len({tuple(child) for child in of_one.tolist()}) == ratio * ratio
        assert (of_one // ratio == (row, col)).all()
        # The first child starts where its parent does, the last ends where the parent ends.
        assert hr.corner_l0_xy(*of_one[0]) == pytest.approx(lr.corner_l0_xy(row, col), abs=1e-6)
        assert hr.corner_l0_xy(*(of_one[-1] + 1)) == pytest.approx(
            lr.corner_l0_xy(row + 1, col + 1), abs=1e-6
        )


def test_children_run_row_by_row() -> None:
    children = children_of(np.array([1]), np.array([2]), 2)
    assert children.tolist() == [[[2, 4], [2, 5], [3, 4], [3, 5]]]


def test_a_tile_of_256_px_at_half_a_micrometre() -> None:
    grid = make_tile_grid(bounds_l0_xywh=(0, 0, 2220, 2967), mpp_xy=(0.499, 0.499), spec=TileSpec(256, 0.5))
    assert grid.tile_l0_xy == pytest.approx((256.51303, 256.51303))
    assert grid.shape_yx == (12, 9)
    np.testing.assert_allclose(
        grid.corners_l0_xy(np.array([0, 11]), np.array([8, 1])),
        [[2052.104, 0], [256.513, 2821.643]],
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("wanted", "level"), [(0.25, 0), (0.26, 0), (0.99, 1), (1.0, 1), (3.99, 2), (100.0, 2), (0.246, 0)]
)
def test_level_is_the_coarsest_that_will_do(wanted: float, level: int) -> None:
    # A scanner's 1.0 may be 1.004: within 2 % a level counts as what was wanted.
    assert choose_level((0.25, 1.004, 4.01), wanted) == level


def test_level_finer_than_the_scan_is_refused() -> None:
    with pytest.raises(SlideError, match=r"finest level has 0.5 µm/px, but 0.25 µm/px is needed"):
        choose_level((0.5, 2.0), 0.25)


@pytest.mark.parametrize(("tile_px", "mpp"), [(0, 1.0), (256, 0.0), (256, -1.0), (256, float("nan"))])
def test_impossible_tiles(tile_px: int, mpp: float) -> None:
    with pytest.raises(ValueError, match="tile_px >= 1 and mpp > 0"):
        TileSpec(tile_px, mpp)

"""Lazy levels: native, virtual, and how much of the slide is read for them."""

from __future__ import annotations

import itertools
from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices
from PIL import Image
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.slide import Slide, TileSpec, make_tile_grid, read_tile
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.pyramid import (
    CHUNK_PX,
    COARSEST_PX,
    SHOWN_PX,
    lazy_pyramid,
    plan_levels,
)
from napari_lrmil.slide.resample import read_area
from napari_lrmil.slide.views import dask_pyramid


@pytest.fixture(scope="module")
def jumping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,003 x 1,201 px with steps of 4, lossless, so that averages can be checked to the grey level."""
    return write_pyramid(
        tmp_path_factory.mktemp("slides") / "jumping.tiff",
        smooth_pixels(2003, 1201),
        [(2003, 1201), (500, 300), (125, 75)],
        compression="deflate",
        tile_px=128,
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,003 x 2,111 px in one level."""
    return write_pyramid(
        tmp_path_factory.mktemp("slides") / "single.tiff",
        smooth_pixels(5003, 2111),
        [(5003, 2111)],
        compression="deflate",
        tile_px=256,
    )


def test_steps_of_four_are_filled(jumping: Path) -> None:
    with Slide(jumping) as slide:
        levels = plan_levels(slide)
        assert [level.virtual for level in levels] == [False, True, False, True, False]
        assert [level.size_xy for level in levels] == [
            (2003, 1201),
            (1001, 600),
            (500, 300),
            (250, 150),
            (125, 75),
        ]
        assert [level.source for level in levels] == [0, 0, 1, 1, 2]
        for finer, coarser in itertools.pairwise(levels):
            assert 1.9 < coarser.downsample / finer.downsample < 2.1


def test_single_level_goes_down_to_an_overview(single: Path) -> None:
    with Slide(single) as slide:
        levels = plan_levels(slide)
        assert [level.downsample for level in levels] == [1, 2, 4, 8]
        assert max(levels[-1].size_xy) <= COARSEST_PX < max(levels[-2].size_xy)


def test_a_models_mpp_gets_its_own_level(jumping: Path) -> None:
    with Slide(jumping) as slide:
        # 2.01 is the second native level's; 0.1 is finer than the scan.
        levels = plan_levels(slide, extra_mpps=(1.5, 2.01, 0.1, 1.5))
        mpps = [level.downsample * 0.5 for level in levels]
        assert mpps == pytest.approx([0.5, 1.0, 1.5, 2.0, 4.0, 8.0], rel=0.01)
        assert [level.virtual for level in levels] == [False, True, True, False, True, False]
    with Slide(jumping, mpp=0.25) as slide:
        assert any(level.downsample == pytest.approx(6.0) for level in plan_levels(slide, extra_mpps=(1.5,)))


def test_virtual_pixels_are_area_averages(jumping: Path) -> None:
    with Slide(jumping) as slide:
        whole = Image.fromarray(slide.read_region((0, 0), 0, (2002, 1200)))
        level = lazy_pyramid(slide)[1]
        np.testing.assert_array_equal(np.asarray(level), np.asarray(whole.reduce(2)))


def test_native_levels_are_as_stored(jumping: Path) -> None:
    with Slide(jumping) as slide:
        for array, plan in zip(dask_pyramid(slide), plan_levels(slide), strict=True):
            assert array.shape == (plan.size_xy[1], plan.size_xy[0], 3)
            if not plan.virtual:
                expected = slide.read_region((0, 0), plan.source, plan.size_xy)
                np.testing.assert_array_equal(array.compute(scheduler="sync"), expected)


@pytest.mark.parametrize(
    "index",
    [
        (slice(100, 700), slice(3, 9)),
        (slice(-50, None), slice(None, 40), slice(0, 1)),
        (5, 7),
        (slice(0, 600, 3), slice(10, 20, 2), 1),
        (Ellipsis, 2),
        (slice(20, 10), slice(0, 5)),
        17,
    ],
)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_slicing_is_numpys(jumping: Path, index: object, level: int) -> None:
    with Slide(jumping) as slide:
        lazy = lazy_pyramid(slide)[level]
        np.testing.assert_array_equal(lazy[index], np.asarray(lazy)[index])  # type: ignore[call-overload]


@pytest.mark.parametrize("level", [0, 1, 2])
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_view_is_one_task_and_whatever_else_is_dasks(
    jumping: Path, level: int, data: st.DataObject
) -> None:
    with Slide(jumping) as slide:
        view, whole = dask_pyramid(slide)[level], np.asarray(lazy_pyramid(slide)[level])
        index = data.draw(basic_indices(whole.shape, allow_newaxis=True, allow_ellipsis=True))
        part = view[index]
        np.testing.assert_array_equal(part.compute(scheduler="sync"), whole[index])
        keys = index if isinstance(index, tuple) else (index,)
        rectangle = all(isinstance(key, slice) and key.step in (None, 1) for key in keys)
        if rectangle and 0 < part.size < view.size:
            assert len(part.dask) == 1
            assert part.npartitions == 1


def test_views_of_a_level_are_arrays_like_any_other(jumping: Path) -> None:
    with Slide(jumping) as slide:
        view, whole = dask_pyramid(slide)[1], np.asarray(lazy_pyramid(slide)[1])
        assert view.chunksize == (SHOWN_PX, SHOWN_PX, 3)
        part, same = view[10:300, 20:700], whole[10:300, 20:700]
        # Views that differ have names that differ: together in one graph none takes the other's place.
        other = view[11:301, 20:700]
        summed = (part.astype(int) + other).compute(scheduler="sync")
        np.testing.assert_array_equal(summed, same.astype(int) + whole[11:301, 20:700])
        assert part[5:9, ::2].compute(scheduler="sync").tolist() == same[5:9, ::2].tolist()
        assert float(view.mean().compute(scheduler="sync")) == pytest.approx(whole.mean())
        np.testing.assert_array_equal(np.asarray(view), whole)
        np.testing.assert_array_equal(view.compute(scheduler="sync"), whole)
        np.testing.assert_array_equal(view[:, :, :].compute(scheduler="sync"), whole)


def test_single_level_is_never_held_whole(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    honest = Slide.read_region

    def counted(
        self: Slide, location: tuple[int, int], level: int, size: tuple[int, int], **more: bool
    ) -> object:
        asked.append(size)
        return honest(self, location, level, size, **more)

    monkeypatch.setattr(Slide, "read_region", counted)
    with Slide(single) as slide:
        asked.clear()
        pyramid = dask_pyramid(slide)
        assert asked == []  # building it reads nothing
        overview = np.asarray(lazy_pyramid(slide)[-1])
        assert max(max(size) for size in asked) <= 2 * CHUNK_PX
        first = len(asked)
        # One pass over level 0, and none when it is asked for again.
        assert sum(width * height for width, height in asked) <= 5003 * 2111
        np.testing.assert_array_equal(pyramid[-1].compute(scheduler="sync"), overview)
        # Coarse levels on the way were kept.
        np.asarray(lazy_pyramid(slide)[-2])
        assert len(asked) == first
        asked.clear()
        # One chunk of x2 reads its own 1024 x 1024 px, nothing else.
        pyramid[1][512:1024, 512:1024].compute(scheduler="sync")
        assert sum(width * height for width, height in asked) <= (2 * CHUNK_PX) ** 2
        whole = Image.fromarray(honest(slide, (0, 0), 0, (5000, 2104))).reduce(8)
        assert np.abs(np.asarray(whole).astype(int) - overview[:263, :625].astype(int)).max() <= 2


def test_cache_stays_in_its_bound(single: Path) -> None:
    cache = shared_cache()
    before = cache.max_bytes
    cache.resize(4 * 2**20)
    try:
        with Slide(single) as slide:
            np.asarray(lazy_pyramid(slide)[-1])
            np.asarray(lazy_pyramid(slide)[0][:1500, :1500])
            assert 0 < cache.used_bytes <= 4 * 2**20
    finally:
        cache.resize(before)


def test_dask_threads_agree(jumping: Path) -> None:
    with Slide(jumping) as slide:
        for array in dask_pyramid(slide, extra_mpps=(0.8,)):
            alone = array.compute(scheduler="sync")
            shared_cache().clear()
            np.testing.assert_array_equal(dask.compute(array, scheduler="threads", num_workers=2)[0], alone)


@pytest.mark.parametrize("file", ["slides_real/test3-DAPI-2-387.ndpi", "slides_repacked/cmu_leica.scn"])
def test_real_pyramids(file: str, shared_data: Path) -> None:
    with Slide(shared_data / file) as slide:
        levels = plan_levels(slide)
        for array, level in zip(dask_pyramid(slide), levels, strict=True):
            assert array.shape[:2] == level.size_xy[::-1]
            corner = array[-40:, -40:].compute(scheduler="sync")
            assert corner.shape == (40, 40, 3)


class TestResampling:
    def test_whole_pixels_come_back_untouched(self, jumping: Path) -> None:
        with Slide(jumping) as slide:
            area = read_area(slide, level=0, corner_l0_xy=(101, 57), size_l0_xy=(64, 32), out_px_xy=(64, 32))
            np.testing.assert_array_equal(area, slide.read_region((101, 57), 0, (64, 32)))

    def test_whole_factors_are_averaged(self, jumping: Path) -> None:
        with Slide(jumping) as slide:
            area = read_area(slide, level=0, corner_l0_xy=(40, 80), size_l0_xy=(256, 128), out_px_xy=(64, 32))
            expected = Image.fromarray(slide.read_region((40, 80), 0, (256, 128))).reduce(4)
            assert np.abs(area.astype(int) - np.asarray(expected).astype(int)).max() <= 1

    def test_fine_stripes_turn_grey_not_moire(self, tmp_path: Path) -> None:
        stripes = np.zeros((512, 512, 3), np.uint8)
        stripes[:, ::2] = 255
        path = write_pyramid(tmp_path / "s.tiff", stripes, [(512, 512)], compression="deflate")
        with Slide(path) as slide:
            area = read_area(slide, level=0, corner_l0_xy=(32, 32), size_l0_xy=(300, 300), out_px_xy=(97, 97))
            # A box of three over stripes of one leaves a third of their contrast; without one, all of it.
            assert np.abs(area.astype(int) - 127).max() <= 43

    def test_a_place_between_pixels_is_interpolated(self, tmp_path: Path) -> None:
        ramp = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], 128, 0).repeat(3, 2)
        path = write_pyramid(tmp_path / "r.tiff", ramp, [(128, 128)], compression="deflate")
        with Slide(path) as slide:
            area = read_area(slide, level=0, corner_l0_xy=(20.5, 20), size_l0_xy=(32, 32), out_px_xy=(32, 32))
            # Pixel 20 holds 40 and 21 holds 42: half a pixel on is 41. The border has no neighbours to ask.
            np.testing.assert_allclose(area[10, 3:-3, 0], np.arange(41, 105, 2)[3:-3], atol=1)

    def test_tiles_of_a_grid_join_without_gap(self, jumping: Path) -> None:
        with Slide(jumping) as slide:
            grid = make_tile_grid(
                bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=TileSpec(64, 0.5)
            )
            joined = np.vstack(
                [np.hstack([read_tile(slide, grid, 0, row, col) for col in range(4)]) for row in range(3)]
            )
            np.testing.assert_array_equal(joined, slide.read_region((0, 0), 0, (256, 192)))

    def test_mpp_differs_by_axis(self, tmp_path: Path) -> None:
        # 0.5 µm wide, 1.0 µm high pixels: a square tile of 32 µm is 64 x 32 of them.
        pixels = smooth_pixels(256, 128)
        path = tmp_path / "flat.tiff"
        import tifffile

        tifffile.imwrite(
            path,
            pixels,
            tile=(64, 64),
            photometric="rgb",
            compression="deflate",
            resolution=(2e4, 1e4),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
        with Slide(path) as slide:
            assert slide.mpp_xy == pytest.approx((0.5, 1.0))
            assert slide.level_mpps == pytest.approx((1.0,))
            grid = make_tile_grid(
                bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=TileSpec(32, 1.0)
            )
            assert grid.tile_l0_xy == pytest.approx((64, 32))
            assert grid.shape_yx == (4, 4)
            tile = read_tile(slide, grid, 0, 1, 2)
            wide = Image.fromarray(pixels[32:64, 128:192]).reduce((2, 1))
            assert np.abs(tile.astype(int) - np.asarray(wide).astype(int)).max() <= 12

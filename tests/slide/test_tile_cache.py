"""The one cache of decoded tiles, and who shares it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide, TileSpec, make_tile_grid, read_tile
from napari_lrmil.slide.cache import TileCache, shared_cache


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    return write_pyramid(
        folder / "slide.svs", smooth_pixels(1500, 1100), [(1500, 1100), (375, 275)], aperio=True, tile_px=128
    )


class TestSharedCache:
    @pytest.mark.skipif(not hasattr(os, "pread"), reason="counts the reads of POSIX systems")
    def test_two_handles_of_a_file_share_tiles(
        self, slide_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []
        really = os.pread

        def counted(handle: int, count: int, offset: int) -> bytes:
            read.append(offset)
            return really(handle, count, offset)

        with Slide(slide_path) as viewer, Slide(slide_path) as inference:
            monkeypatch.setattr(os, "pread", counted)
            viewer.read_region((128, 128), 0, (256, 256))
            assert len(read) == 4
            inference.read_region((128, 128), 0, (256, 256), keep_tiles=False)
            viewer.read_region((130, 130), 0, (200, 200))
            assert len(read) == 4

    def test_inference_evicts_nothing(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide:
            shared_cache().clear()
            grid = make_tile_grid(
                bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=TileSpec(128, 0.5)
            )
            assert read_tile(slide, grid, 0, 1, 1).flags.writeable
            assert shared_cache().used_bytes == 0
            read_tile(slide, grid, 0, 1.5, 1.5)  # four halves that the neighbours will want
            assert shared_cache().used_bytes == 4 * 128 * 128 * 3

    def test_a_changed_file_isnt_the_old_one(self, tmp_path: Path) -> None:
        path = tmp_path / "slide.tiff"
        for seed in (1, 2):
            pixels = smooth_pixels(256, 256, seed=seed)
            write_pyramid(path, pixels, [(256, 256)], compression="deflate")
            os.utime(path, ns=(seed, seed))
            with Slide(path) as slide:
                np.testing.assert_array_equal(slide.read_region((0, 0), 0, (256, 256)), pixels)

    def test_what_is_handed_out_is_the_callers(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide:
            first = slide.read_region((0, 0), 0, (128, 128))
            kept = first.copy()
            first[:] = 0
            np.testing.assert_array_equal(slide.read_region((0, 0), 0, (128, 128)), kept)


class TestCache:
    def test_least_recently_used_goes_first(self) -> None:
        cache = TileCache(max_bytes=300)
        for key in "abc":
            cache.get(key, lambda: np.zeros(100, np.uint8))
        cache.get("a", lambda: pytest.fail("held"))
        cache.get("d", lambda: np.zeros(100, np.uint8))
        assert cache.used_bytes == 300
        made: list[str] = []
        for key in "acdb":
            cache.get(key, lambda key=key: made.append(key) or np.zeros(100, np.uint8))  # type: ignore[misc]
        assert made[0] == "b"

    def test_too_large_a_tile_isnt_held(self) -> None:
        cache = TileCache(max_bytes=10)
        assert cache.get("a", lambda: np.zeros(11, np.uint8)).size == 11
        assert cache.used_bytes == 0

    def test_threads_that_want_one_tile_make_it_once(self) -> None:
        cache = TileCache()
        made: list[int] = []

        def slowly() -> NDArray[np.uint8]:
            made.append(1)
            time.sleep(0.05)
            return np.zeros(4, np.uint8)

        with ThreadPoolExecutor(4) as pool:
            tiles = list(pool.map(lambda _: cache.get("a", slowly), range(4)))
        assert len(made) == 1
        assert all(tile is tiles[0] for tile in tiles)

    def test_a_failure_is_the_callers_alone(self) -> None:
        cache = TileCache()

        def fail() -> NDArray[np.uint8]:
            raise SlideError("damaged")

        with pytest.raises(SlideError, match="damaged"):
            cache.get("a", fail)
        assert cache.get("a", lambda: np.ones(1, np.uint8)).item() == 1

    def test_shrinking_drops_tiles(self) -> None:
        cache = TileCache()
        for key in range(10):
            cache.get(key, lambda: np.zeros(100, np.uint8))
        cache.resize(250)
        assert cache.used_bytes == 200
        with pytest.raises(ValueError, match="-1 bytes"):
            cache.resize(-1)

"""Tiles in batches, in order, ahead of who works on them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide, TileGrid, TileSpec, iter_tiles, make_tile_grid, read_tile


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    return write_pyramid(
        folder / "slide.svs", smooth_pixels(1500, 1100), [(1500, 1100), (375, 275)], aperio=True, tile_px=128
    )


class TestIterTiles:
    def _grid(self, slide: Slide) -> tuple[TileGrid, list[tuple[float, float]]]:
        grid = make_tile_grid(
            bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=TileSpec(64, 0.6)
        )
        rows, cols = grid.shape_yx
        return grid, [(row, col) for row in range(rows) for col in range(cols)]

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_batches_hold_the_tiles_in_order(self, slide_path: Path, threads: int) -> None:
        with Slide(slide_path) as slide:
            grid, places = self._grid(slide)
            batches = list(iter_tiles(slide, grid, 0, places, batch_size=90, threads=threads))
            assert [len(batch) for batch in batches] == [90, 90, 90, 30]
            tiles = np.concatenate(batches)
            assert len(tiles) == len(places)
            for index in (0, 1, 89, 90, len(places) - 1):
                np.testing.assert_array_equal(tiles[index], read_tile(slide, grid, 0, *places[index]))

    def test_none_and_fewer_than_a_batch(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide:
            grid, places = self._grid(slide)
            assert list(iter_tiles(slide, grid, 0, [], batch_size=8)) == []
            (batch,) = iter_tiles(slide, grid, 0, places[:3], batch_size=8)
            assert batch.shape == (3, 64, 64, 3)

    def test_closing_it_ends_its_threads(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide:
            grid, places = self._grid(slide)
            batches = iter_tiles(slide, grid, 0, places, batch_size=4)
            next(batches)
            assert any(thread.name.startswith("lrmil-tiles") for thread in threading.enumerate())
            batches.close()  # type: ignore[attr-defined]
            assert not any(thread.name.startswith("lrmil-tiles") for thread in threading.enumerate())

    def test_a_closed_slide_ends_it_with_an_error(self, slide_path: Path) -> None:
        slide = Slide(slide_path)
        grid, places = self._grid(slide)
        batches = iter_tiles(slide, grid, 0, places, batch_size=4)
        next(batches)
        slide.close()
        with pytest.raises(SlideError, match="is closed"):
            list(batches)

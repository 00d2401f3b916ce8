"""Handles, threads, processes and the one cache."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
import pytest
from numpy.typing import NDArray
from slide_files import open_files, smooth_pixels, write_pyramid

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.identity import fingerprint_of
from napari_lrmil.slide.views import dask_pyramid


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    return write_pyramid(
        folder / "slide.svs", smooth_pixels(1500, 1100), [(1500, 1100), (375, 275)], aperio=True, tile_px=128
    )


class TestHandles:
    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles in /proc")
    @pytest.mark.parametrize("backend", ["tiff", "openslide"])
    def test_opening_and_closing_leaves_none(self, slide_path: Path, backend: str) -> None:
        before = len(open_files())
        for _ in range(20):
            with Slide(slide_path, backend=backend) as slide:
                slide.read_region((0, 0), 0, (300, 300))
        assert len(open_files()) == before

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles in /proc")
    def test_reading_from_many_threads_opens_no_more(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide, ThreadPoolExecutor(8) as pool:
            opened = len(open_files())
            list(pool.map(lambda n: slide.read_region((n * 40, n * 30), 0, (200, 200)), range(40)))
            assert len(open_files()) <= opened + 1  # OpenSlide's own spare handle

    def test_a_refused_file_is_let_go(self, shared_data: Path) -> None:
        tiny = shared_data / "slides_real" / "fixtures_tiny"
        before = len(open_files())
        for name in ("unreadable.svs", "broken.svs", "unopenable_small_dicom.dcm") * 3:
            with pytest.raises(SlideError):
                Slide(tiny / name)
        assert len(open_files()) == before

    def test_a_dropped_slide_is_let_go(self, slide_path: Path) -> None:
        before = len(open_files())
        slide = Slide(slide_path)
        del slide
        gc.collect()
        assert len(open_files()) == before


class TestClosing:
    @pytest.mark.parametrize("backend", ["tiff", "openslide"])
    def test_reads_under_way_end_well_and_later_ones_are_refused(
        self, slide_path: Path, backend: str
    ) -> None:
        slide = Slide(slide_path, backend=backend)
        expected = slide.read_region((0, 0), 0, (1000, 1000))
        started, outcomes = threading.Barrier(5), []

        def read() -> None:
            started.wait()
            try:
                for _ in range(200):
                    np.testing.assert_array_equal(slide.read_region((0, 0), 0, (1000, 1000)), expected)
                    shared_cache().clear()
            except SlideError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        time.sleep(0.05)
        slide.close()
        for thread in threads:
            thread.join(10)
        assert outcomes == ["slide.svs is closed"] * 4
        slide.close()  # twice is once

    def test_with_closes(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide:
            assert not slide.closed
        assert slide.closed
        with pytest.raises(SlideError, match=r"slide\.svs is closed"):
            slide.read_region((0, 0), 0, (10, 10))


def _region_in_another_process(slide: Slide) -> tuple[int, NDArray[np.uint8], dict[str, object]]:
    return os.getpid(), slide.read_region((100, 100), 0, (50, 50)), slide.metadata


class TestPickling:
    def test_copy_is_the_same_slide_opened_again(self, slide_path: Path) -> None:
        with Slide(slide_path, mpp=0.3, backend="openslide", icc=True) as slide:
            copy = pickle.loads(pickle.dumps(slide))  # noqa: S301 - our own bytes
            with copy:
                assert copy is not slide
                assert (copy.path, copy.mpp_xy) == (slide.path, (0.3, 0.3))
                assert copy.metadata == slide.metadata
                np.testing.assert_array_equal(
                    copy.read_region((7, 9), 1, (60, 60)), slide.read_region((7, 9), 1, (60, 60))
                )

    def test_many_copies_are_one_handle(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide:
            sent = pickle.dumps(slide)
            one, other = pickle.loads(sent), pickle.loads(sent)  # noqa: S301
            assert one is other
            one.close()
            with pickle.loads(sent) as later:  # noqa: S301
                assert later is not one
                later.read_region((0, 0), 0, (10, 10))

    def test_another_process_reads_the_same(self, slide_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        with Slide(slide_path) as slide, context.Pool(1) as pool:
            process, region, metadata = pool.apply(_region_in_another_process, (slide,))
            assert process != os.getpid()
            assert metadata == slide.metadata
            np.testing.assert_array_equal(region, slide.read_region((100, 100), 0, (50, 50)))

    def test_dask_array_survives_pickling(self, slide_path: Path) -> None:
        with Slide(slide_path) as slide:
            array = dask_pyramid(slide)[1][:100, :100]
            copy = pickle.loads(pickle.dumps(array))  # noqa: S301
            np.testing.assert_array_equal(*(dask.compute(one, scheduler="sync")[0] for one in (array, copy)))


class TestFingerprint:
    def test_a_renamed_copy_is_the_same_and_another_slide_isnt(
        self, slide_path: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "renamed.svs"
        copy.write_bytes(slide_path.read_bytes())
        other = write_pyramid(
            tmp_path / "other.svs", smooth_pixels(1500, 1100, seed=5), [(1500, 1100)], aperio=True
        )
        with Slide(slide_path) as one, Slide(copy) as same, Slide(other) as different:
            assert one.fingerprint() == same.fingerprint() != different.fingerprint()

    def test_formats_of_several_files_are_told_apart_by_their_pixels(self, shared_data: Path) -> None:
        # A .mrxs file itself is empty, and .vms a page of text.
        for name in ("mrxs/cmu.mrxs", "vms/cmu.vms"):
            with Slide(shared_data / "slides_repacked" / name) as slide:
                assert len(slide.files) > 2

    def test_every_files_size_counts(self, tmp_path: Path) -> None:
        large, small = tmp_path / "large", tmp_path / "small"
        large.write_bytes(bytes(3000))
        small.write_bytes(bytes(10))
        before = fingerprint_of([large, small])
        assert before == fingerprint_of([small, large])
        small.write_bytes(bytes(11))
        assert before != fingerprint_of([large, small])

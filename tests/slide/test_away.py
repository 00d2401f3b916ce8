"""A share or disk that goes away under an open slide, and comes back: real files that are moved, a real disk that fails."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from failing_disk import FailingDisk, failing_disk
from numpy.typing import NDArray
from slide_files import smooth_pixels, write_pyramid
from test_deepzoom import write_deepzoom
from test_missing_chunks import write as write_zarr

from napari_lrmil.batch import Kind, classify
from napari_lrmil.errors import SlideAwayError, SlideChangedError
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.slide import Slide
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.pyramid import Unread
from napari_lrmil.slide.views import dask_pyramid
from napari_lrmil.worklist import ListedSlide

SIZES = [(384, 320), (96, 80)]
AREA = ((0, 0), 0, (384, 320))


def _tiff(path: Path, pixels: NDArray[np.uint8]) -> Path:
    return write_pyramid(path, pixels, SIZES, aperio=True)


def _ome_tiff(path: Path, pixels: NDArray[np.uint8]) -> Path:
    return write_pyramid(path, pixels, SIZES, compression="deflate", ome=True)


def _deepzoom(path: Path, pixels: NDArray[np.uint8]) -> Path:
    write_deepzoom(path, pixels)
    return path


def _zarr(path: Path, pixels: NDArray[np.uint8]) -> Path:
    return write_zarr(path, pixels, fill_value=255)


Write = Callable[[Path, NDArray[np.uint8]], Path]
KINDS: dict[str, tuple[str, str, Write]] = {
    "tiff": ("s.svs", "tiff", _tiff),
    "ome-tiff": ("s.ome.tif", "tiff", _ome_tiff),
    "openslide": ("s.svs", "openslide", _tiff),
    "ome-zarr": ("s.zarr", "ome-zarr", _zarr),
    "deepzoom": ("s.dzi", "deepzoom", _deepzoom),
}


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.ascontiguousarray(smooth_pixels(*SIZES[0]))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    if sys.platform != "linux":
        pytest.skip("loop devices of Linux")
    with failing_disk(tmp_path) as made:
        yield made


def seen(path: Path, backend: str) -> NDArray[np.uint8]:
    """Through a handle of its own: OpenSlide keeps what one has decoded."""
    with Slide(path, mpp=0.5, backend=backend) as slide:
        return slide.read_region(*AREA)


def read_anew(slide: Slide) -> NDArray[np.uint8]:
    shared_cache().clear()
    return slide.read_region(*AREA)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_is_no_damage_and_is_read_again_when_it_is_back(
    kind: str, disk: FailingDisk, pixels: NDArray[np.uint8]
) -> None:
    name, backend, write = KINDS[kind]
    path = write(disk.folder / name, pixels)
    before = seen(path, backend)
    with Slide(path, mpp=0.5, backend=backend) as slide:
        assert slide.metadata["backend"] == backend
        disk.fail()
        for _ in range(3):
            with pytest.raises(
                SlideAwayError, match=r"can't be read any more .*disk or share .* can't be reached"
            ):
                read_anew(slide)
        disk.come_back()
        np.testing.assert_array_equal(read_anew(slide), before)
        assert not slide.damaged_places
        slide.check_unchanged()


@pytest.mark.parametrize("kind", ["openslide", "ome-zarr", "deepzoom"])
def test_a_folder_that_goes_away_is_no_damage_and_is_read_again_when_it_is_back(
    kind: str, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    """Those that open files as they read; the others' open file is still there when its folder is renamed."""
    name, backend, write = KINDS[kind]
    folder = tmp_path / "share"
    folder.mkdir()
    path = write(folder / name, pixels)
    before = seen(path, backend)
    with Slide(path, mpp=0.5, backend=backend) as slide:
        folder.rename(tmp_path / "away")
        with pytest.raises(SlideAwayError, match="No such file"):
            read_anew(slide)
        (tmp_path / "away").rename(folder)
        np.testing.assert_array_equal(read_anew(slide), before)
        assert not slide.damaged_places


@pytest.mark.parametrize("kind", ["openslide", "deepzoom"])
def test_another_file_that_came_back_is_not_read_as_the_one_that_was_opened(
    kind: str, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    name, backend, write = KINDS[kind]
    folder = tmp_path / "share"
    folder.mkdir()
    with Slide(write(folder / name, pixels), mpp=0.5, backend=backend) as slide:
        folder.rename(tmp_path / "away")
        with pytest.raises(SlideAwayError):
            read_anew(slide)
        folder.mkdir()
        write(folder / name, np.ascontiguousarray(pixels[::-1, ::-1]))
        look = partial(read_anew, slide) if kind == "openslide" else slide.check_unchanged
        with pytest.raises(SlideChangedError, match="it was replaced"):
            look()
        assert not slide.damaged_places


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Have the descriptors of a path that are open by now fail as those of a share that was mounted anew.

    ESTALE can't be had from any file system but a network's, so this stands in for the system call itself.
    """
    real, dead = os.pread, set[int]()

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        if descriptor in dead:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(descriptor, count, offset)

    def begin(path: Path) -> None:
        links = [each for each in folder.iterdir() if each.is_symlink() and each.exists()]
        now = {int(link.name) for link in links if link.samefile(path)}
        assert now - dead
        dead.update(now)

    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("descriptors as Linux lists them")
    monkeypatch.setattr(os, "pread", pread)
    return begin


@pytest.mark.parametrize("kind", ["tiff", "ome-tiff"])
def test_a_stale_handle_is_opened_anew(
    kind: str, tmp_path: Path, pixels: NDArray[np.uint8], stale: Callable[[Path], None]
) -> None:
    name, backend, write = KINDS[kind]
    with Slide(write(tmp_path / name, pixels), mpp=0.5, backend=backend) as slide:
        before = read_anew(slide)
        stale(slide.path)
        np.testing.assert_array_equal(read_anew(slide), before)
        stale(slide.path)  # a second time
        np.testing.assert_array_equal(read_anew(slide), before)
        stale(slide.path)
        slide.path.rename(tmp_path / "away")
        with pytest.raises(SlideAwayError, match="No such file"):
            read_anew(slide)
        (tmp_path / "away").rename(slide.path)
        np.testing.assert_array_equal(read_anew(slide), before)
        stale(slide.path)
        write(slide.path, np.ascontiguousarray(pixels[::-1, ::-1]))
        with pytest.raises(SlideChangedError, match="it was replaced"):
            read_anew(slide)
        assert not slide.damaged_places


def test_a_tiff_that_becomes_shorter_is_another_file_and_no_damage(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    path = _ome_tiff(tmp_path / "s.ome.tif", pixels)
    with Slide(path, backend="tiff") as slide:
        os.truncate(path, path.stat().st_size // 3)
        with pytest.raises(SlideChangedError, match="it was replaced"):
            read_anew(slide)
        assert not slide.damaged_places


def test_openslide_tells_a_disk_that_fails_from_a_file_that_was_cut(
    disk: FailingDisk, tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    """Its directories can be read in both cases, and libtiff says the same of a tile that can't."""
    path = write_pyramid(disk.folder / "s.tif", pixels, SIZES[:1], compression="deflate")
    before = seen(path, "openslide")
    with Slide(path, mpp=0.5, backend="openslide") as slide:
        disk.fail()
        with pytest.raises(SlideAwayError):
            read_anew(slide)
        disk.come_back()
        np.testing.assert_array_equal(read_anew(slide), before)
        assert not slide.damaged_places
    path = write_pyramid(tmp_path / "cut.tif", pixels, SIZES, compression="deflate")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        offsets = tif.pages.first.tags["TileOffsets"]
        offsets.overwrite([*offsets.value[:-1], path.stat().st_size + 100])  # as if its end were missing
    with Slide(path, mpp=0.5, backend="openslide") as slide:
        read_anew(slide)
        assert slide.damaged_places == {(0, 320, 256, 64, 64)}


def test_what_is_shown_is_hatched_and_noted_while_the_file_is_away(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    folder = tmp_path / "share"
    folder.mkdir()
    with Slide(_zarr(folder / "s.zarr", pixels), mpp=0.5) as slide:
        unread = Unread()
        (level, *_) = dask_pyramid(slide, unread=unread)
        folder.rename(tmp_path / "away")
        shown = np.asarray(level[:64, :64])
        assert set(np.unique(shown)) == {104, 152}  # grey stripes: neither glass nor tissue
        assert isinstance(unread.error, SlideAwayError)
        with pytest.raises(SlideAwayError):
            unread.try_again()
        with pytest.raises(SlideAwayError):
            np.asarray(dask_pyramid(slide)[0][:64, :64])  # who computes with it is told
        (tmp_path / "away").rename(folder)
        unread.try_again()
        assert unread.error is None
        np.testing.assert_array_equal(np.asarray(level[:64, :64]), pixels[:64, :64])


def test_a_batch_goes_on_when_the_disk_of_one_slide_fails(
    disk: FailingDisk, tmp_path: Path, tiny_bundle: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 40, (768, 1024, 1), dtype=np.uint8)
    tissue = np.array([190, 90, 170], np.uint8) + noise
    tissue[:128] = 245  # glass
    # The level that the mask is of doesn't serve for the tiles.
    away, here = (
        write_pyramid(folder / "s.tif", tissue, [(1024, 768), (64, 48)], compression="deflate")
        for folder in (disk.folder, tmp_path)
    )
    ends = {}
    items = [ListedSlide(path, path.stem) for path in (away, here)]
    for event in classify(
        items, load_bundle(tiny_bundle), cache=None, device=torch.device("cpu"), batch_size=4, threads=1
    ):
        if event.path == away and event.progress is not None and event.progress.tiles_done == 4:
            disk.fail()
        if event.kind in (Kind.FINISHED, Kind.FAILED):
            ends[event.path] = event
    assert ends[away].kind is Kind.FAILED
    assert "disk or share" in ends[away].error
    assert ends[away].prediction is None
    assert ends[here].kind is Kind.FINISHED

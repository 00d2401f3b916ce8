"""Damaged tiles: shown as such, counted, and the rest of the slide goes on."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from slide_files import damage_tiles, smooth_pixels, write_pyramid

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide, TileSpec, damage, find_tiles
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.damage import damage_of
from napari_lrmil.slide.tiles import check_damage

SIZE = (512, 384)


def _rgba(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """What OpenSlide alone reads."""
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    tifffile.imwrite(
        path,
        np.concatenate([pixels, opaque], axis=2),
        tile=(64, 64),
        photometric="rgb",
        extrasamples=["unassalpha"],
        compression="deflate",
        metadata=None,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    return path


def _aperio(path: Path, pixels: NDArray[np.uint8]) -> Path:
    return write_pyramid(path.with_suffix(".svs"), pixels, [SIZE], aperio=True, compression="deflate")


def _ome(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """What OpenSlide can't read: no tiles."""
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=64, compression="deflate", metadata=None)
    return path


@pytest.mark.parametrize("write", [_rgba, _aperio])
def test_damaged_tile_is_shown_as_such_and_the_rest_stays_readable(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    pixels = smooth_pixels(*SIZE)
    path = write(tmp_path / "damaged.tiff", pixels)
    damage_tiles(path, [0, 9])
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region((256, 192), 0, (64, 64)), pixels[192:256, 256:320])
        assert not slide.damaged_places
        seen = slide.read_region((0, 0), 0, (200, 160))
        # Tiles 0 and 9 are (0, 0) and (64, 64): grey stripes, no glass and no tissue.
        for left, top in ((0, 0), (64, 64)):
            there = seen[top : top + 64, left : left + 64].astype(int)
            assert (np.ptp(there, axis=2) == 0).all()
            assert set(np.unique(there)) == {104, 152}
            seen[top : top + 64, left : left + 64] = pixels[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(seen, pixels[:160, :200])
        assert slide.damaged_places == {(0, 0, 0, 64, 64), (0, 64, 64, 64, 64)}
        np.testing.assert_array_equal(slide.read_region((256, 192), 0, (64, 64)), pixels[192:256, 256:320])


def test_threads_read_on_beside_damaged_tiles(tmp_path: Path) -> None:
    pixels = smooth_pixels(*SIZE)
    path = _rgba(tmp_path / "damaged.tiff", pixels)
    damaged = [1, 11, 22, 30, 45]
    damage_tiles(path, damaged)
    with Slide(path) as slide, ThreadPoolExecutor(6) as pool:

        def right(tile: int) -> bool:
            row, col = divmod(tile, 8)
            there = pixels[row * 64 : row * 64 + 64, col * 64 : col * 64 + 64]
            return np.array_equal(slide.read_region((col * 64, row * 64), 0, (64, 64)), there)

        for _ in range(4):
            assert [tile for tile, ok in enumerate(pool.map(right, range(48))) if not ok] == damaged
        assert len(slide.damaged_places) == 5


def test_damaged_strip_of_a_tiff_that_openslide_cannot_read(tmp_path: Path) -> None:
    pixels = smooth_pixels(*SIZE)
    path = _ome(tmp_path / "strips.tiff", pixels)
    damage_tiles(path, [1])
    with Slide(path, mpp=0.5) as slide:
        seen = slide.read_region((0, 0), 0, SIZE)
        assert set(np.unique(seen[64:128])) == {104, 152}
        np.testing.assert_array_equal(
            np.delete(seen, slice(64, 128), 0), np.delete(pixels, slice(64, 128), 0)
        )
        assert slide.damaged_places == {(0, 0, 64, 512, 64)}


def test_damaged_chunk_of_an_ome_zarr(tmp_path: Path) -> None:
    pixels = smooth_pixels(128, 128)
    root = zarr.open_group(tmp_path / "slide.zarr", mode="w", zarr_format=2)
    root.create_array("0", data=pixels, chunks=(64, 64, 3))
    axes = [{"name": name, "type": "space" if name != "c" else "channel"} for name in "yxc"]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    chunk = next((tmp_path / "slide.zarr" / "0").rglob("0.1.0"))
    chunk.write_bytes(b"no pixels")
    with Slide(tmp_path / "slide.zarr", mpp=0.5) as slide:
        seen = slide.read_region((0, 0), 0, (128, 128))
        assert set(np.unique(seen[:64, 64:])) == {104, 152}
        np.testing.assert_array_equal(seen[64:], pixels[64:])
        assert len(slide.damaged_places) == 1


def test_file_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    path = _rgba(tmp_path / "damaged.tiff", smooth_pixels(*SIZE))
    damage_tiles(path, range(48))
    with pytest.raises(SlideError, match="copy it again"):
        Slide(path)


def test_too_many_damaged_tiles_are_refused_and_fewer_are_counted(tmp_path: Path) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), 235, np.uint8)
    rng = np.random.default_rng(0)
    pixels[64:320, 128:384] = np.array([190, 90, 160]) + rng.integers(-9, 9, (256, 256, 3))
    path = _aperio(tmp_path / "tissue.svs", pixels)
    spec = TileSpec(64, 0.5)
    with Slide(path) as slide:
        whole = len(find_tiles(slide, spec, min_tissue=0.5))
        assert check_damage(slide, find_tiles(slide, spec, min_tissue=0.5), max_damaged=0) == 0
    damage_tiles(path, [8 + 2, 0])  # one in the tissue, one in the glass
    with Slide(path) as slide:
        tiles = find_tiles(slide, spec, min_tissue=0.5)
        assert len(tiles) < whole  # grey is no tissue ...
        # ... but nobody knows what was there: it is counted, as is what may hide in the glass.
        assert check_damage(slide, tiles, max_damaged=0.2) == 2
        with pytest.raises(SlideError, match=rf"2 of {len(tiles) + 1} tiles .* up to 1\.0% are allowed"):
            check_damage(slide, tiles)


@pytest.mark.parametrize(("folder", "slide", "part"), [
    ("slides_repacked/mrxs", "cmu.mrxs", "cmu/Data0000.dat"),
    ("slides_repacked/vms", "cmu.vms", "cmu_image.jpg"),
])  # fmt: skip
def test_a_part_that_is_copied_again_is_damaged_no_longer(
    folder: str, slide: str, part: str, shared_data: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(shared_data / folder, tmp_path / "slide"))
    whole = (root / part).read_bytes()
    middle = len(whole) // 2
    (root / part).write_bytes(whole[:middle] + bytes(40_000) + whole[middle + 40_000 :])

    def read() -> int:
        with Slide(root / slide) as opened:
            for level, size in enumerate(opened.level_dimensions_xy):
                opened.read_region((0, 0), level, size)
            return len(opened.damaged_places)

    assert read()
    (root / part).write_bytes(whole)
    assert read() == 0


def test_what_is_remembered_of_closed_files_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "MAX_DAMAGED_FILES", 4)
    place = (0, 0, 0, 64, 64)
    for number in range(3):  # whole files leave nothing
        damage_of(("whole", number))
    held = damage_of(("held", 0))
    held.add(place, "why")
    for number in range(20):
        damage_of(("closed", number)).add(place, "why")
        shared_cache().get(number, lambda: np.zeros((8, 8, 3), np.uint8))
    assert damage_of(("held", 0)) is held
    assert damage_of(("closed", 19)).places == {place}  # not since long
    assert not damage_of(("closed", 0)).places
    # What was averaged out of the forgotten ones is forgotten, too.
    assert shared_cache().get(0, lambda: np.ones((8, 8, 3), np.uint8)).all()
    assert [key for key in damage._damaged if key[0] == "whole"] == []
    assert len([key for key in damage._damaged if key[0] == "closed"]) <= 4

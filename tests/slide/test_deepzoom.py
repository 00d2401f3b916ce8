"""DeepZoom images, written here tile by tile."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from slide_files import smooth_pixels

from napari_lrmil.errors import SlideChangedError, SlideError, UnknownMppError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.identity import stamp_of, state_of
from napari_lrmil.worklist import list_slides


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the pixels, rounded up, as the format wants."""
    height, width = pixels.shape[:2]
    size = (-(-width // 2), -(-height // 2))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def write_deepzoom(
    path: Path, pixels: NDArray[np.uint8], *, tile_px: int = 62, overlap: int = 1, suffix: str = "png"
) -> list[NDArray[np.uint8]]:
    """The levels that were written, finest first."""
    height, width = pixels.shape[:2]
    path.write_text(
        f'<?xml version="1.0"?><Image TileSize="{tile_px}" Overlap="{overlap}" Format="{suffix}" '
        f'xmlns="http://schemas.microsoft.com/deepzoom/2008"><Size Width="{width}" Height="{height}"/></Image>'
    )
    levels = []
    for number in range(math.ceil(math.log2(max(width, height))), -1, -1):
        folder = path.with_name(f"{path.stem}_files") / str(number)
        folder.mkdir(parents=True)
        levels.append(pixels)
        for row in range(-(-pixels.shape[0] // tile_px)):
            for col in range(-(-pixels.shape[1] // tile_px)):
                top, left = max(0, row * tile_px - overlap), max(0, col * tile_px - overlap)
                tile = pixels[top : (row + 1) * tile_px + overlap, left : (col + 1) * tile_px + overlap]
                Image.fromarray(tile).save(folder / f"{col}_{row}.{suffix}")
        pixels = _halved(pixels)
    return levels


@pytest.mark.parametrize(("tile_px", "overlap"), [(62, 1), (64, 0), (50, 7)])
def test_any_region_of_any_level(tmp_path: Path, tile_px: int, overlap: int) -> None:
    levels = write_deepzoom(tmp_path / "slide.dzi", smooth_pixels(301, 203), tile_px=tile_px, overlap=overlap)
    with Slide(tmp_path / "slide.dzi", mpp=0.5) as slide:
        assert slide.metadata["backend"] == "deepzoom"
        assert slide.level_dimensions_xy == ((301, 203), (151, 102), (76, 51), (38, 26))
        assert slide.level_downsamples == (1, 2, 4, 8)
        for level, whole in enumerate(levels[:4]):
            height, width = whole.shape[:2]
            np.testing.assert_array_equal(slide.read_region((0, 0), level, (width, height)), whole)
        inner = slide.read_region((2 * 50, 2 * 40), 1, (90, 55))
        np.testing.assert_array_equal(inner, levels[1][40:95, 50:140])
        assert (slide.read_region((290, 190), 0, (40, 40))[13:] == 255).all()


def test_jpeg_tiles_and_unknown_pixel_size(tmp_path: Path) -> None:
    pixels = smooth_pixels(301, 203)
    write_deepzoom(tmp_path / "slide.dzi", pixels, tile_px=254, suffix="jpeg")
    with Slide(tmp_path / "slide.dzi") as slide:
        seen = slide.read_region((0, 0), 0, (301, 203))
        assert np.abs(seen.astype(int) - pixels).mean() < 5
        with pytest.raises(UnknownMppError):
            _ = slide.mpp_xy


def test_missing_and_damaged_tiles_are_shown_as_such(tmp_path: Path) -> None:
    pixels = smooth_pixels(301, 203)
    write_deepzoom(tmp_path / "slide.dzi", pixels, tile_px=64, overlap=0)
    finest = tmp_path / "slide_files" / "9"
    (finest / "1_1.png").unlink()
    (finest / "2_1.png").write_bytes(b"no picture")
    Image.new("RGB", (500, 500)).save(finest / "3_1.png")
    with Slide(tmp_path / "slide.dzi") as slide:
        seen = slide.read_region((0, 0), 0, (301, 203))
        assert set(np.unique(seen[64:128, 64:256])) == {104, 152}
        np.testing.assert_array_equal(seen[:64], pixels[:64])
        assert slide.damaged_places == {(0, x, 64, 64, 64) for x in (64, 128, 192)}


def test_it_is_listed_as_one_slide_and_its_fingerprint_covers_its_tiles(tmp_path: Path) -> None:
    write_deepzoom(tmp_path / "one.dzi", smooth_pixels(301, 203))
    assert [listed.path.name for listed in list_slides(tmp_path, recursive=True)] == ["one.dzi"]
    write_deepzoom(tmp_path / "two.dzi", smooth_pixels(301, 203, seed=1))
    with Slide(tmp_path / "one.dzi") as one, Slide(tmp_path / "two.dzi") as two:
        assert one.fingerprint() != two.fingerprint()
        before = one.fingerprint()
    (tmp_path / "one.dzi").rename(tmp_path / "renamed.dzi")
    (tmp_path / "one_files").rename(tmp_path / "renamed_files")
    with Slide(tmp_path / "renamed.dzi") as one:
        assert one.fingerprint() == before


def test_the_interior_of_the_finest_level_counts(tmp_path: Path) -> None:
    """Its tiles are too many to belong to `files`; the sizes of all count, and what stands in some."""
    path = tmp_path / "slide.dzi"
    write_deepzoom(path, smooth_pixels(300, 300), tile_px=8, overlap=0)
    finest = tmp_path / "slide_files" / "9"
    assert len(list(finest.iterdir())) == 1444
    tile = finest / "19_19.png"
    with Slide(path) as slide:
        assert tile not in slide.files
        before = slide.fingerprint()
    stamp, state = stamp_of(path), state_of(path)
    held = tile.read_bytes()
    tile.write_bytes(held + b"\0")
    assert (stamp_of(path) != stamp, state_of(path) != state) == (True, True)
    with Slide(path) as slide:
        assert slide.fingerprint() != before
        tile.write_bytes(held + b"\0\0")
        with pytest.raises(SlideChangedError):
            slide.check_unchanged()
    tile.write_bytes(held)
    with Slide(path) as slide:
        assert slide.fingerprint() == before


def test_a_copy_that_is_completed_is_damaged_no_longer(tmp_path: Path) -> None:
    path, pixels = tmp_path / "slide.dzi", smooth_pixels(301, 203)
    write_deepzoom(path, pixels, tile_px=64, overlap=0)
    late = tmp_path / "slide_files" / "9" / "1_1.png"
    late.rename(tmp_path / "late")
    with Slide(path) as slide:
        slide.read_region((0, 0), 0, (301, 203))
        assert slide.damaged_places
    (tmp_path / "late").rename(late)
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (301, 203)), pixels)
        assert not slide.damaged_places


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no XML", "not a DeepZoom image"),
        (
            '<Image TileSize="256" Format="../png"><Size Width="9" Height="9"/></Image>',
            "not a DeepZoom image",
        ),
        ('<Image TileSize="0" Format="png"><Size Width="9" Height="9"/></Image>', "not a DeepZoom image"),
        ('<Image TileSize="256" Format="png"><Size Width="9e9" Height="9"/></Image>', "not a DeepZoom image"),
        (
            '<Image TileSize="256" Format="png"><Size Width="99999999" Height="9"/></Image>',
            "not a DeepZoom image",
        ),
        ('<Image TileSize="256" Format="png"/>', "not a DeepZoom image"),
        (
            '<Image TileSize="256" Format="png"><Size Width="9" Height="9"/></Image>',
            "lacks the folder bad_files",
        ),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.dzi").write_text(text)
    with pytest.raises(SlideError, match=says):
        Slide(tmp_path / "bad.dzi")

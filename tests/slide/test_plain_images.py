"""PNG and JPEG regions: one level, an mpp only from the user."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image
from slide_files import smooth_pixels

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.probe import unprobed


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_plain_region_given_an_mpp(tmp_path: Path, suffix: str) -> None:
    pixels = smooth_pixels(90, 70)
    path = tmp_path / f"region{suffix}"
    Image.fromarray(pixels).save(path, quality=95)
    with Slide(path, mpp=1.0) as slide:
        assert slide.level_mpps == (1.0,)
        region = slide.read_region((0, 0), 0, (90, 70))
        np.testing.assert_array_equal(region, np.asarray(Image.open(path).convert("RGB")))
        corner = slide.read_region((-5, -5), 0, (10, 10))
        np.testing.assert_array_equal(corner[5:, 5:], region[:5, :5])
        assert (corner[:5] == 255).all()


def test_real_region_given_an_mpp(shared_data: Path) -> None:
    path = next(iter(sorted((shared_data / "osteosarcoma_ut").glob("Viable___*.jpg"))))
    with Slide(path) as slide:
        assert not slide.has_mpp
    with Slide(path, mpp=1.0) as slide:
        assert slide.level_dimensions_xy == ((1024, 1024),)
        assert slide.mpp_xy == (1.0, 1.0)


def test_transparent_png_shows_glass(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    with Slide(tmp_path / "clear.png") as slide:
        region = slide.read_region((0, 0), 0, (8, 8))
        assert (region[:4] == 0).all()
        assert (region[4:] == 255).all()


def test_a_large_transparent_png_is_put_on_white_everywhere(tmp_path: Path) -> None:
    rgba = np.dstack([smooth_pixels(2100, 2500), smooth_pixels(2100, 2500, seed=1)[..., 0]])
    Image.fromarray(rgba).save(tmp_path / "large.png", compress_level=1)
    alpha = rgba[..., 3:].astype(np.float64) / 255
    with Slide(tmp_path / "large.png") as slide:
        region = slide.read_region((0, 0), 0, (2100, 2500))
    assert np.abs(region - (rgba[..., :3] * alpha + 255 * (1 - alpha))).max() < 1.01


@pytest.mark.slow
def test_the_largest_png_opens_within_the_memory_of_the_helper(tmp_path: Path) -> None:
    Image.new("RGBA", (8192, 8192), (190, 110, 170, 128)).save(tmp_path / "large.png", compress_level=1)
    with Slide(tmp_path / "large.png") as slide:
        assert slide.read_region((8191, 8191), 0, (1, 1)).tolist() == [[[222, 182, 212]]]


@pytest.mark.parametrize("side", [8_200, 10_000, 20_000])
def test_huge_png_is_refused_unread(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(SlideError, match="more than 67 million pixels"):
        Slide(path)


def test_sixteen_bit_png_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SlideError, match="8-bit RGB or grey"):
        Slide(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_as_its_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = smooth_pixels(90, 70)
    # How a camera stores it: the inverse of how it is to be shown.
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"region{suffix}"
    Image.fromarray(np.ascontiguousarray(turns[orientation])).save(path, exif=exif, quality=95)
    with Slide(path, mpp=1.0) as slide:
        assert slide.level_dimensions_xy == ((90, 70),)
        seen = slide.read_region((0, 0), 0, (90, 70)).astype(int)
        assert np.abs(seen - upright).mean() < (6 if suffix == ".jpg" else 1e-9)
        assert ("turned upright" in str(slide.metadata["backend_reason"])) == (orientation > 1)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_left_alone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = smooth_pixels(90, 70)
    Image.fromarray(pixels).save(tmp_path / "region.png", exif=exif)
    with Slide(tmp_path / "region.png", mpp=1.0) as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (90, 70)), pixels)


def test_truncated_jpeg_is_refused_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(smooth_pixels(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SlideError, match="its pixels can't be read"):
        Slide(path)


def test_a_picture_of_absurd_shape_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (1, 2**20)).save(tmp_path / "thin.png")
    with pytest.raises(SlideError, match=r"^thin\.png measures 1 x 1048576 px, but an image"):
        Slide(tmp_path / "thin.png")


@pytest.mark.parametrize(("width", "height"), [(1, 2**26), (2**26, 1)])
def test_a_png_of_one_row_or_column_is_refused_before_its_pixels(
    tmp_path: Path, width: int, height: int
) -> None:
    """The header alone is there: whoever asked for the pixels would say something else."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path = tmp_path / "line.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip
    said = rf"^line\.png measures {width} x {height} px, but an image without tiles may have 65536 px an edge"
    with pytest.raises(SlideError, match=said):
        Slide(path, mpp=0.5)


@pytest.mark.parametrize(("width", "height"), [(1, 2**26), (2**26, 1)])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_tiff_of_one_row_or_column_is_refused_before_its_pixels(
    tmp_path: Path, width: int, height: int, tiled: bool
) -> None:
    path = tmp_path / "line.tif"
    options = {"tile": (64, 64)} if tiled else {"rowsperstrip": 1}
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=None, **options)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tags = tif.pages.first.tags
        for name, value in (("ImageWidth", width), ("ImageLength", height)):
            tags[name].overwrite(value, dtype=4)
    tracemalloc.start()
    try:
        with unprobed(), pytest.raises(SlideError, match=r"^line\.tif .*(67,?108,?864|1 x 67108864)"):
            Slide(path, mpp=0.5)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20  # its pixels would take 200 MB
    finally:
        tracemalloc.stop()


def test_a_jpeg_as_long_as_the_format_allows_is_refused_before_its_pixels(tmp_path: Path) -> None:
    """65,535 px, since its header has 16 bits an edge."""
    path = tmp_path / "huge.jpg"
    Image.new("RGB", (64, 64)).save(path)
    head = path.read_bytes()
    at = head.index(b"\xff\xc0") + 5
    path.write_bytes(head[:at] + struct.pack(">HH", 65535, 65535) + head[at + 4 :])
    tracemalloc.start()
    try:
        with unprobed(), pytest.raises(SlideError, match=r"^huge\.jpg has more than 67 million pixels"):
            Slide(path, mpp=0.5)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()

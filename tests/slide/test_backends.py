"""Backends against OpenSlide, layout by layout, and what each refuses."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slide_files import leave_out_tiles, smooth_pixels, write_pyramid

from benchmarks.fuzz.slide_formats import write_mirax
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.backends import tiff_layout
from napari_lrmil.slide.backends.tiff_layout import TiffLayout, TiffLevel
from napari_lrmil.slide.cache import shared_cache

GREY_LEVELS = 2
"""The bound: how far a pixel may be from OpenSlide's. The same JPEG library gives 0."""

SIZES = [(611, 437), (306, 219), (89, 64)]
"""Odd, not square, and with downsamples of 2.0, 6.8: no level divides the one before."""


@pytest.fixture(scope="module")
def aperio_jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pyramid(
        tmp_path_factory.mktemp("slides") / "aperio.svs", smooth_pixels(*SIZES[0]), SIZES, aperio=True
    )


class _Levels:
    """A slide beside each whole level as OpenSlide gives it from the corner, where it never interpolates."""

    def __init__(self, path: Path) -> None:
        self.slide = Slide(path)
        with Slide(path, backend="openslide") as reference:
            self.wholes = [
                reference.read_region((0, 0), level, size)
                for level, size in enumerate(reference.level_dimensions_xy)
            ]

    def expected(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        whole = self.wholes[level]
        canvas = np.full((height, width, 3), 255, np.uint8)
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(whole.shape[1], left + width), min(whole.shape[0], top + height)
        if x1 > x0 and y1 > y0:
            canvas[y0 - top : y1 - top, x0 - left : x1 - left] = whole[y0:y1, x0:x1]
        return canvas


FILES = {
    "aperio JPEG": "slides_repacked/cmu_aperio_pyramid.svs",
    "one level, 240 px tiles": "slides_real/CMU-1-Small-Region.svs",
    "JPEG 2000": "slides_real/tcga-cr-7395-01a-01-ts1.svs",
    "generic": "slides_repacked/cmu_generic_pyramid.tiff",
    "Philips": "slides_repacked/cmu_philips.tiff",
    "Trestle": "slides_repacked/cmu_trestle.tif",
    "deflate": "slides_real/fixtures_tiny/boxes.tiff",
}


@pytest.mark.parametrize("file", FILES)
def test_any_region_equals_openslides(file: str, shared_data: Path) -> None:
    levels = _Levels(shared_data / FILES[file])
    slide = levels.slide
    assert slide.metadata["backend"] == "tiff"

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        level = data.draw(st.integers(0, len(slide.level_dimensions_xy) - 1), "level")
        width, height = slide.level_dimensions_xy[level]
        left = data.draw(st.integers(-300, width + 50), "left")
        top = data.draw(st.integers(-300, height + 50), "top")
        size = (data.draw(st.integers(1, 600), "width"), data.draw(st.integers(1, 600), "height"))
        scale = slide.level_downsamples[level]
        region = slide.read_region((round(left * scale), round(top * scale)), level, size)
        expected = levels.expected(level, left, top, *size)
        assert int(np.abs(region.astype(np.int16) - expected.astype(np.int16)).max()) <= GREY_LEVELS

    with slide:
        check()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_generated_layout_equals_openslides(data: st.DataObject, tmp_path: Path) -> None:
    width, height = data.draw(st.integers(80, 500)), data.draw(st.integers(80, 500))
    steps = data.draw(st.lists(st.floats(1.3, 4.5), max_size=2))
    sizes = [(width, height)]
    for step in steps:
        w, h = int(sizes[-1][0] / step), int(sizes[-1][1] / step)
        if min(w, h) >= 12:
            sizes.append((w, h))
    path = write_pyramid(
        tmp_path / "slide.svs",
        smooth_pixels(width, height, seed=width),
        sizes,
        tile_px=data.draw(st.sampled_from([16, 48, 64, 128])),
        compression=data.draw(st.sampled_from(["jpeg", "deflate", "lzw"])),
        aperio=data.draw(st.booleans()),
        bigtiff=data.draw(st.booleans()),
    )
    levels = _Levels(path)
    with levels.slide as slide:
        assert slide.metadata["backend"] == "tiff", slide.metadata["backend_reason"]
        assert slide.level_dimensions_xy == tuple(sizes)
        for level, (w, h) in enumerate(sizes):
            scale = slide.level_downsamples[level]
            left, top = data.draw(st.integers(-70, w)), data.draw(st.integers(-70, h))
            region = slide.read_region((round(left * scale), round(top * scale)), level, (150, 90))
            expected = levels.expected(level, left, top, 150, 90)
            assert int(np.abs(region.astype(int) - expected.astype(int)).max()) <= GREY_LEVELS


@pytest.mark.parametrize("aperio", [True, False])
@pytest.mark.parametrize("level", [0, 1])
def test_tiles_left_out_are_drawn_as_openslide_draws_them(tmp_path: Path, aperio: bool, level: int) -> None:
    path = tmp_path / ("empty.svs" if aperio else "empty.tiff")
    write_pyramid(path, smooth_pixels(512, 384), [(512, 384), (256, 192)], aperio=aperio)
    across = 512 // 64 >> level
    leave_out_tiles(path, level, [across + 1, across + 2])
    with Slide(path) as slide, Slide(path, backend="openslide") as reference:
        assert slide.metadata["backend"] == "tiff"
        scale = 2**level
        for location, size in (((0, 0), (256, 192)), ((40 * scale, 40 * scale), (100, 100))):
            ours = slide.read_region(location, level, size)
            theirs = reference.read_region(location, level, size)
            assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= GREY_LEVELS
        hole = slide.read_region((66 * scale, 66 * scale), level, (60, 60))
        # Level 0 has nothing to show there; Aperio's coarser levels show the finer one.
        assert (hole == 255).all() == (level == 0 or not aperio)


def test_location_between_pixels_goes_to_the_nearest(aperio_jpeg: Path) -> None:
    with Slide(aperio_jpeg) as slide:
        assert slide.level_downsamples[1] == pytest.approx(1.996, abs=1e-3)
        here = slide.read_region((20, 20), 1, (8, 8))  # 20 / 1.996 = 10.02
        np.testing.assert_array_equal(slide.read_region((0, 0), 1, (18, 18))[10:, 10:], here)


def test_backend_can_be_chosen(aperio_jpeg: Path) -> None:
    for name in ("openslide", "tiff"):
        with Slide(aperio_jpeg, backend=name) as slide:
            assert slide.metadata["backend"] == name
    with pytest.raises(SlideError, match="no slide backend 'magic'"):
        Slide(aperio_jpeg, backend="magic")


def test_what_isnt_a_grid_of_tiles_stays_openslides(shared_data: Path) -> None:
    path = shared_data / "slides_repacked/cmu_leica.scn"
    with Slide(path) as slide:
        assert slide.metadata["backend"] == "openslide"
    with pytest.raises(SlideError, match="leica slides aren't plain grids of tiles"):
        Slide(path, backend="tiff")


def test_other_pixels_than_openslides_are_not_trusted(
    aperio_jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tiff_layout.read_layout

    def swapped(page: TiffLevel) -> TiffLevel:
        """A page that decodes with red and blue exchanged."""
        return replace(page, decode=lambda data, index: page.decode(data, index)[..., ::-1])

    def layout(path: Path) -> TiffLayout:
        found = honest(path)
        return replace(found, pages=tuple(swapped(page) for page in found.pages))

    monkeypatch.setattr(tiff_layout, "read_layout", layout)
    with Slide(aperio_jpeg) as slide:
        assert slide.metadata["backend"] == "openslide"
        assert "other pixels" in str(slide.metadata["backend_reason"])


@pytest.mark.parametrize("planar", [False, True])
def test_ome_tiff_pyramid(tmp_path: Path, planar: bool) -> None:
    pixels = smooth_pixels(300, 203)
    path = write_pyramid(
        tmp_path / "pyramid.ome.tiff",
        pixels,
        [(300, 203), (150, 101), (75, 50)],
        ome=True,
        planar=planar,
        compression="deflate",
        mpp=0.25,
    )
    with Slide(path) as slide:
        assert slide.metadata["backend"] == "tiff"
        assert slide.level_dimensions_xy == ((300, 203), (150, 101), (75, 50))
        assert slide.mpp_xy == (0.25, 0.25)
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (300, 203)), pixels)
        np.testing.assert_array_equal(slide.read_region((290, 190), 0, (10, 13)), pixels[190:, 290:])


def test_striped_tiff_region(tmp_path: Path) -> None:
    pixels = smooth_pixels(200, 150)
    path = tmp_path / "strips.tiff"
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16, compression="lzw")
    with Slide(path, mpp=1.0) as slide:
        assert slide.metadata["backend"] == "tiff"
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (200, 150)), pixels)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((5, 64, 64), np.uint8), "5 planes"),
        (np.zeros((64, 64, 3), np.uint16), "8-bit RGB"),
        (np.zeros((64, 64, 4), np.float32), "8-bit RGB"),
    ],
)
def test_tiffs_that_are_no_slide_are_refused(tmp_path: Path, image: NDArray[np.generic], says: str) -> None:
    path = tmp_path / "other.tiff"
    tifffile.imwrite(path, image, photometric="minisblack" if image.ndim == 3 and len(image) == 5 else "rgb")
    with pytest.raises(SlideError, match=says) as refusal:
        Slide(path)
    assert "\n" not in str(refusal.value)


TILED = {"tile": (64, 64), "compression": "deflate", "metadata": None}


def _sixteen_bits(path: Path, pixels: NDArray[np.uint8]) -> None:
    tifffile.imwrite(path, pixels.astype(np.uint16) * 16, photometric="rgb", **TILED)


def _stack(path: Path, pixels: NDArray[np.uint8]) -> None:
    options = TILED | {"metadata": {"axes": "ZYXS"}, "ome": True}
    tifffile.imwrite(path, np.stack([pixels, pixels[::-1]]), photometric="rgb", **options)


def _colours_apart(path: Path, pixels: NDArray[np.uint8]) -> None:
    options = TILED | {"metadata": {"axes": "CYX"}, "ome": True}
    tifffile.imwrite(path, pixels.transpose(2, 0, 1), photometric="minisblack", **options)


def _fluorescence(path: Path, pixels: NDArray[np.uint8]) -> None:
    channels = np.concatenate([pixels, pixels[..., :1]], axis=2).transpose(2, 0, 1)
    options = TILED | {"metadata": {"axes": "CYX"}, "ome": True}
    tifffile.imwrite(path, channels.astype(np.uint16) * 12, photometric="minisblack", **options)


def _five_samples(path: Path, pixels: NDArray[np.uint8]) -> None:
    samples = np.concatenate([pixels, pixels[..., :2]], axis=2)
    tifffile.imwrite(path, samples, photometric="minisblack", planarconfig="contig", **TILED)


def _upside_down(path: Path, pixels: NDArray[np.uint8]) -> None:
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, 3, 1, 3, True)], **TILED)


@pytest.mark.parametrize("backend", ["auto", "tiff"])
@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_sixteen_bits, "3 sample.* of uint16"),
        (_stack, "2 planes of uint8 .ZYXS"),
        (_colours_apart, "3 planes of uint8 .CYX"),
        (_fluorescence, "4 planes of uint16"),
        (_five_samples, "5 sample.* of uint8"),
        (_upside_down, "turned or mirrored .Orientation 3."),
    ],
)
def test_openslide_is_no_back_door_for_what_is_no_slide(
    tmp_path: Path, write: Callable[[Path, NDArray[np.uint8]], None], says: str, backend: str
) -> None:
    path = tmp_path / "tiled.tiff"
    write(path, smooth_pixels(256, 192))
    with Slide(path, backend="openslide"):  # which shows it without a word
        pass
    with pytest.raises(SlideError, match=says) as refusal:
        Slide(path, backend=backend)
    assert str(refusal.value).startswith("tiled.tiff ")
    assert "\n" not in str(refusal.value)
    assert ". " not in str(refusal.value)


def test_a_pyramid_that_openslide_does_not_see_is_compared_where_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pyramid(
        tmp_path / "pyramid.ome.tiff", smooth_pixels(300, 203), [(300, 203), (150, 101)], ome=True
    )
    honest = tiff_layout.read_layout

    def layout(path: Path) -> TiffLayout:
        found = honest(path)
        first = found.levels[0]
        swapped = replace(first, decode=lambda data, index: first.decode(data, index)[..., ::-1])
        return replace(found, levels=(swapped, *found.levels[1:]))

    with Slide(path) as slide:
        assert slide.metadata["backend"] == "tiff"
    shared_cache().clear()
    monkeypatch.setattr(tiff_layout, "read_layout", layout)
    with Slide(path) as slide:
        assert slide.metadata["backend"] == "openslide"
        assert "other pixels" in str(slide.metadata["backend_reason"])


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("backend", ["auto", "openslide", "tiff"])
def test_directories_that_lead_in_a_circle_are_refused(tmp_path: Path, bigtiff: bool, backend: str) -> None:
    path = write_pyramid(
        tmp_path / "circle.tiff", smooth_pixels(256, 192), [(256, 192), (128, 96)], bigtiff=bigtiff
    )
    Slide(path).close()
    with tifffile.TiffFile(path) as tif:
        first, last = tif.pages[0].offset, tif.pages[1].aspage()
        n_entries = len(last.tags)
        end = last.offset + (8 + n_entries * 20 if bigtiff else 2 + n_entries * 12)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(struct.pack("<Q" if bigtiff else "<I", first))
    with pytest.raises(
        SlideError, match=r"^circle\.tiff is damaged: its directories lead back to an earlier one"
    ):
        Slide(path, backend=backend)


def test_a_mirax_slide_whose_own_file_is_a_jpeg_is_the_slide(tmp_path: Path) -> None:
    path = write_mirax(tmp_path)
    assert path.read_bytes().startswith(b"\xff\xd8\xff")
    with Slide(path) as slide:
        assert slide.metadata["vendor"] == "mirax"
        assert slide.level_dimensions_xy[0] == (768, 512)

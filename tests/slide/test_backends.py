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
from PIL import Image
from slide_files import leave_out_tiles, smooth_pixels, write_pyramid

from benchmarks.formats import write_mirax, write_ventana
from benchmarks.fuzz.slide_formats import write_whole
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


def _signed(path: Path, pixels: NDArray[np.uint8]) -> None:
    tifffile.imwrite(path, pixels.view(np.int8), photometric="rgb", **TILED)


def _grey_and_alpha(path: Path, pixels: NDArray[np.uint8]) -> None:
    options = TILED | {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
    tifffile.imwrite(path, pixels[..., :2], photometric="minisblack", **options)


def _lab(path: Path, pixels: NDArray[np.uint8]) -> None:
    tifffile.imwrite(path, pixels, photometric="cielab", **TILED)


@pytest.mark.parametrize("backend", ["auto", "tiff"])
@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_signed, "3 sample.* of int8"),
        (_grey_and_alpha, "2 sample.* of uint8"),
        (_lab, "3 sample.* of uint8 .CIELAB"),
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


def test_an_image_of_several_planes_in_depth_is_refused(tmp_path: Path) -> None:
    stack = np.stack([smooth_pixels(128, 96)] * 16)
    options = TILED | {"tile": (16, 64, 64)}
    tifffile.imwrite(tmp_path / "stack.tiff", stack, photometric="rgb", **options)
    with pytest.raises(SlideError, match=r"^stack\.tiff holds 16 planes of uint8 in one image, but a slide"):
        Slide(tmp_path / "stack.tiff")


GREY = np.asarray(smooth_pixels(256, 192)[..., 0])
PALETTE = np.stack([np.arange(256) * 256, np.arange(256)[::-1] * 256, np.full(256, 30_000)]).astype(np.uint16)


@pytest.mark.parametrize("codec", ["deflate", "zstd"])
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    ("stored", "seen", "options"),
    [
        (GREY, np.repeat(GREY[..., None], 3, axis=2), {"photometric": "minisblack"}),
        (GREY, 255 - np.repeat(GREY[..., None], 3, axis=2), {"photometric": "miniswhite"}),
        (GREY, PALETTE[:, GREY].transpose(1, 2, 0) >> 8, {"photometric": "palette", "colormap": PALETTE}),
        (
            np.asarray(Image.fromarray(smooth_pixels(256, 192)).convert("CMYK")),
            smooth_pixels(256, 192),
            {"photometric": "separated"},
        ),
        (
            np.asarray(Image.fromarray(smooth_pixels(256, 192)).convert("YCbCr")),
            smooth_pixels(256, 192),
            {"photometric": "ycbcr"},
        ),
        (smooth_pixels(256, 192).transpose(2, 0, 1), smooth_pixels(256, 192), {"planarconfig": "separate"}),
        (
            np.dstack([smooth_pixels(256, 192), np.full((192, 256), 255, np.uint8)]),
            smooth_pixels(256, 192),
            {"extrasamples": ["unassalpha"]},
        ),
        (
            np.dstack([smooth_pixels(256, 192), np.zeros((192, 256), np.uint8)]),
            np.full((192, 256, 3), 255),
            {"extrasamples": ["unassalpha"]},
        ),
    ],
    ids=["grey", "inverted", "palette", "cmyk", "ycbcr", "planar", "opaque", "clear"],
)
def test_colours_are_right_or_the_file_is_refused(
    tmp_path: Path,
    stored: NDArray[np.uint8],
    seen: NDArray[np.generic],
    options: dict[str, object],
    tiled: bool,
    codec: str,
) -> None:
    path = tmp_path / "colours.tiff"
    written = {"photometric": "rgb", "metadata": None, "compression": codec} | options
    tifffile.imwrite(path, np.ascontiguousarray(stored), tile=(64, 64) if tiled else None, **written)
    if not tiled and (
        (stored.ndim == 3 and stored.shape[-1] == 4) or options.get("photometric") in ("palette", "ycbcr")
    ):
        # OpenSlide alone reads these, and only where they are tiled.
        with pytest.raises(SlideError, match="but a slide needs 8-bit RGB or grey"):
            Slide(path)
        return
    with Slide(path) as slide:
        shown = slide.read_region((0, 0), 0, (256, 192)).astype(int)
    # Of YCbCr, 8 bits a sample are rounded twice.
    assert np.abs(shown - seen).max() <= (3 if options.get("photometric") == "ycbcr" else 0)


def test_of_several_images_the_largest_is_shown_and_the_others_are_said(tmp_path: Path) -> None:
    """OpenSlide takes the first one for the slide, and says nothing of the others."""
    pixels = smooth_pixels(256, 192)
    macro, options = np.ascontiguousarray(pixels[:50, :60]), {"photometric": "rgb", **TILED}

    def write(path: Path, images: list[NDArray[np.uint8]]) -> Path:
        with tifffile.TiffWriter(path) as tif:
            for image in images:
                mpp = 0.5 if image is pixels else 8.0
                tif.write(image, resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit=3, **options)
                if image is pixels:
                    tif.write(np.ascontiguousarray(image[::2, ::2]), subfiletype=1, **options)
        return path

    with Slide(write(tmp_path / "first.tiff", [pixels, macro])) as slide:
        assert slide.level_dimensions_xy == ((256, 192), (128, 96))
        assert slide.shown_image == "1 of 2, the largest (256 x 192 px); not shown: 60 x 50 px"
    with Slide(write(tmp_path / "second.tiff", [macro, pixels])) as slide:
        assert slide.level_dimensions_xy == ((256, 192), (128, 96))
        assert slide.mpp_xy == (0.5, 0.5)
        assert slide.shown_image == "2 of 2, the largest (256 x 192 px); not shown: 60 x 50 px"
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (256, 192)), pixels)
    with Slide(write(tmp_path / "alone.tiff", [pixels])) as slide:
        assert not slide.shown_image


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


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("to", ["itself", "the first", "the first, after it"])
def test_directories_below_others_that_lead_back_are_refused(to: str, big: bool, tmp_path: Path) -> None:
    """A SubIFD that is its own, or that of the slide: whoever follows it never ends."""
    path = write_pyramid(
        tmp_path / "sub.ome.tif", smooth_pixels(200, 100), [(200, 100), (100, 50)], ome=True, bigtiff=big
    )
    with tifffile.TiffFile(path) as tif:
        first = tif.pages.first
        (place,) = first.tags["SubIFDs"].value
        sub = first.pages[0].aspage()
        value_at, n_tags = first.tags["SubIFDs"].valueoffset, len(sub.tags)
    number = "<Q" if big else "<I"
    with path.open("r+b") as file:
        if to == "the first, after it":
            file.seek(place + (8 + 20 * n_tags if big else 2 + 12 * n_tags))
        else:
            file.seek(value_at)
        if to == "itself":
            tag = sub.tags["Software"]
            file.seek(tag.offset)
            file.write(struct.pack("<HHQQ" if big else "<HHII", 330, 16 if big else 4, 1, place))
        else:
            file.write(struct.pack(number, first.offset))
    with pytest.raises(
        SlideError, match=r"^sub\.ome\.tif is damaged: its directories lead back to an earlier one"
    ):
        Slide(path)


def test_a_sub_directory_that_two_directories_share_is_no_loop(tmp_path: Path) -> None:
    path = tmp_path / "shared.tif"
    with tifffile.TiffWriter(path) as writer:
        for pixels in (smooth_pixels(200, 100), smooth_pixels(80, 60)):
            writer.write(pixels, tile=(64, 64), photometric="rgb", subifds=1, metadata=None)
            writer.write(pixels[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
    with tifffile.TiffFile(path) as tif:
        one, other = (page.aspage().tags["SubIFDs"] for page in tif.pages)
        (place,) = one.value
    with path.open("r+b") as file:
        file.seek(other.valueoffset)
        file.write(struct.pack("<I", place))
    with Slide(path) as slide:
        assert slide.level_dimensions_xy[0] == (200, 100)


def change_tags(path: Path, **values: int) -> None:
    with tifffile.TiffFile(path) as tif:
        tags = {name: tif.pages.first.tags[name] for name in values}
    with path.open("r+b") as file:
        for name, value in values.items():
            file.seek(tags[name].valueoffset)
            file.write(struct.pack("<H" if tags[name].dtype == 3 else "<I", value))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ImageLength": 60_000}, "300 x 60000 px take 4,690 pieces of 64 x 64 px, and it lists 20"),
        ({"TileLength": 0}, "it holds 300 x 200 px in pieces of 64 x 0 px"),
        ({"ImageWidth": 0}, "it holds 0 x 200 px in pieces of 64 x 64 px"),
    ],
)
def test_sizes_with_no_tiles_behind_them_are_refused(
    changes: dict[str, int], text: str, tmp_path: Path
) -> None:
    path = write_pyramid(tmp_path / "absurd.tif", smooth_pixels(300, 200), [(300, 200)], compression="webp")
    change_tags(path, **changes)
    with pytest.raises(SlideError, match=f"absurd.tif is damaged: .*{text}"):
        Slide(path)


def test_openslide_shows_no_slide_with_fewer_tiles_than_its_size_takes(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "absurd.svs", smooth_pixels(300, 200), [(300, 200)], aperio=True)
    change_tags(path, ImageLength=60_000)
    with pytest.raises(SlideError, match=r"absurd\.svs is damaged: 300 x 60000 px take 4,690 pieces"):
        Slide(path)


@pytest.mark.parametrize(
    ("tag", "level", "text"),
    [
        ("ImageLength", 0, "6 x 4 tiles in an image of 6 x 2"),
        ("ImageWidth", 1, "3 x 2 tiles in an image of 2 x 2"),
    ],
)
def test_a_ventana_slide_with_tiles_beyond_its_image_is_refused(
    tag: str, level: int, text: str, tmp_path: Path
) -> None:
    """OpenSlide writes outside of its memory there: now and then that ends the program."""
    path = write_whole(write_ventana, tmp_path)
    with Slide(path) as slide:
        assert slide.metadata["vendor"] == "ventana"
    with tifffile.TiffFile(path) as tif:
        at = tif.pages[level + 1].aspage().tags[tag].valueoffset
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<H", 255))
    with pytest.raises(SlideError, match=f"slide.bif is damaged: it places {text}"):
        Slide(path)


def test_a_mirax_slide_whose_own_file_is_a_jpeg_is_the_slide(tmp_path: Path) -> None:
    path = write_whole(write_mirax, tmp_path)
    assert path.read_bytes().startswith(b"\xff\xd8\xff")
    with Slide(path) as slide:
        assert slide.metadata["vendor"] == "mirax"
        assert slide.level_dimensions_xy[0] == (768, 512)


def test_an_error_names_the_part_of_a_slide_without_its_folder(tmp_path: Path) -> None:
    path = write_whole(write_mirax, tmp_path)
    data = tmp_path / "slide" / "Data0000.dat"
    data.write_bytes(data.read_bytes()[:-300])
    with pytest.raises(SlideError, match=r"slide\.mrxs is not a slide .*Data0000\.dat") as caught:
        Slide(path)
    assert str(tmp_path) not in str(caught.value)

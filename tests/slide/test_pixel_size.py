"""µm/px: one decision on all that a file says, with its source; what is absurd is not believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.errors import SlideError, UnknownMppError
from napari_lrmil.slide import Slide, TileSpec, find_tiles, tile_grid
from napari_lrmil.slide.pixel_size import MAX_MPP, MIN_MPP, Evidence, decide, parse_mpp

DPI_72 = {"resolution": (72, 72), "resolutionunit": "INCH"}
HALF_UM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def write_tiff(path: Path, pixels: NDArray[np.uint8] | None = None, **options: object) -> Path:
    """A tiled TIFF of one level."""
    if pixels is None:
        pixels = smooth_pixels(256, 192)
    known: dict[str, object] = {
        "tile": (64, 64),
        "photometric": "rgb",
        "compression": "deflate",
        "metadata": None,
    }
    tifffile.imwrite(path, pixels, **{**known, **options})
    return path


def ome_size(mpp: float, *, y: float | None = None, unit: str = "µm") -> dict[str, object]:
    """OME metadata of an image."""
    return {
        "axes": "YXS",
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": mpp if y is None else y,
        "PhysicalSizeYUnit": unit,
    }


def write_ome(path: Path, images: list[tuple[NDArray[np.uint8], float]], *, pyramids: bool = True) -> Path:
    """Several images, each with its own pixel size."""
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as tif:
        for pixels, mpp in images:
            tif.write(pixels, subifds=1 if pyramids else 0, metadata=ome_size(mpp), **options)
            if pyramids:
                tif.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)
    return path


class TestSeveralImages:
    @pytest.mark.parametrize("pyramids", [True, False])
    def test_the_size_is_that_of_the_image_that_is_read(self, tmp_path: Path, pyramids: bool) -> None:
        small, large = smooth_pixels(128, 64), smooth_pixels(512, 256, seed=1)
        path = write_ome(tmp_path / "macro_first.ome.tiff", [(small, 8.0), (large, 0.5)], pyramids=pyramids)
        with Slide(path) as slide:
            assert slide.mpp_xy == (0.5, 0.5)
            assert np.array_equal(slide.read_region((0, 0), 0, (512, 256)), large)

    def test_images_of_one_size_are_told_apart_by_their_directory(self, tmp_path: Path) -> None:
        first, second = smooth_pixels(256, 128), smooth_pixels(256, 128, seed=1)
        path = write_ome(tmp_path / "scenes.ome.tiff", [(first, 0.25), (second, 0.5)])
        with Slide(path) as slide:
            shown = slide.read_region((0, 0), 0, (256, 128))
            assert slide.mpp_xy == ((0.25, 0.25) if np.array_equal(shown, first) else (0.5, 0.5))

    def test_which_is_shown_is_said_without_its_name(self, tmp_path: Path) -> None:
        images = [(smooth_pixels(128, 64), 8.0), (smooth_pixels(512, 256), 0.5)]
        with Slide(write_ome(tmp_path / "two.ome.tiff", images)) as slide:
            said = slide.metadata["image"]
        assert said == "2 of 2, the largest (512 x 256 px); not shown: 128 x 64 px"

    def test_a_slide_of_one_image_says_so(self, tmp_path: Path) -> None:
        with Slide(write_tiff(tmp_path / "a.tiff", **HALF_UM)) as slide:
            assert slide.metadata["image"] == "the only one"


class TestOMEXML:
    @pytest.mark.parametrize(
        ("tags", "text"),
        [
            ({}, "0.5 from OME-XML"),
            (DPI_72, "0.5 from OME-XML; the TIFF tag says 353"),
            (
                {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"},
                "0.5 from OME-XML; the TIFF tag says 0.25",
            ),
            (HALF_UM, "0.5 from OME-XML"),
        ],
    )
    @pytest.mark.parametrize("backend", ["auto", "openslide", "tiff"])
    def test_counts_before_the_tag_in_one_level(
        self, tmp_path: Path, tags: dict[str, object], text: str, backend: str
    ) -> None:
        path = write_tiff(tmp_path / "a.ome.tiff", ome=True, **{"metadata": ome_size(0.5)} | tags)
        with Slide(path, backend=backend) as slide:
            assert slide.mpp_xy == (0.5, 0.5)
            assert slide.metadata["mpp_source"] == text

    def test_has_its_units(self, tmp_path: Path) -> None:
        path = write_tiff(tmp_path / "a.ome.tiff", ome=True, metadata=ome_size(499, unit="nm"))
        with Slide(path) as slide:
            assert slide.mpp_xy == pytest.approx((0.499, 0.499))

    @pytest.mark.parametrize("bigtiff", [False, True])
    @pytest.mark.parametrize(
        ("unit", "um"),
        [
            ("nm", 1e-3), ("Å", 1e-4), ("pm", 1e-6), ("mm", 1e3), ("cm", 1e4), ("dm", 1e5), ("m", 1e6), ("km", 1e9),
            ("in", 25_400), ("thou", 25.4), ("pt", 25_400 / 72), ("li", 25_400 / 12), ("ft", 304_800), ("yd", 914_400),
        ],
    )  # fmt: skip
    def test_has_units_that_nobody_expects(self, tmp_path: Path, unit: str, um: float, bigtiff: bool) -> None:
        path = tmp_path / "a.ome.tiff"
        write_tiff(path, ome=True, metadata=ome_size(0.5 / um, unit=unit), bigtiff=bigtiff)
        with Slide(path) as slide:
            assert slide.mpp_xy == pytest.approx((0.5, 0.5))

    @pytest.mark.parametrize("unit", ["pixel", "reference frame", "ly", "", "MICRON"])
    def test_what_is_no_length_is_none(self, tmp_path: Path, unit: str) -> None:
        with Slide(write_tiff(tmp_path / "a.ome.tiff", ome=True, metadata=ome_size(0.5, unit=unit))) as slide:
            assert slide.pixel_size.text == "unknown"

    def test_each_axis_has_a_unit_of_its_own(self, tmp_path: Path) -> None:
        sizes = ome_size(500, y=0.4, unit="nm") | {"PhysicalSizeYUnit": "µm"}
        with Slide(write_tiff(tmp_path / "a.ome.tiff", ome=True, metadata=sizes)) as slide:
            assert slide.mpp_xy == pytest.approx((0.5, 0.4))

    @pytest.mark.parametrize("size", [-0.5, float("nan"), float("inf")])
    def test_what_is_no_size_is_named_and_the_tag_counts(self, tmp_path: Path, size: float) -> None:
        said = f"{size:g}"
        path = write_tiff(tmp_path / "a.ome.tiff", ome=True, metadata=ome_size(size))
        with Slide(path) as slide:
            assert not slide.has_mpp
            assert f"not believed: {said} (OME-XML" in slide.pixel_size.text
        path = write_tiff(tmp_path / "b.ome.tiff", ome=True, **{"metadata": ome_size(size)} | HALF_UM)
        with Slide(path) as slide:
            assert slide.pixel_size.text == f"0.5 from the TIFF tag; OME-XML says {said}"

    def test_an_absurd_one_is_named_and_the_tag_counts(self, tmp_path: Path) -> None:
        path = write_tiff(tmp_path / "a.ome.tiff", ome=True, **{"metadata": ome_size(500)} | HALF_UM)
        with Slide(path) as slide:
            assert slide.mpp_xy == (0.5, 0.5)
            assert slide.metadata["mpp_source"] == "0.5 from the TIFF tag; OME-XML says 500"


@pytest.mark.parametrize("tiled", [True, False])
def test_a_tag_without_unit_is_in_inches(tmp_path: Path, tiled: bool) -> None:
    """As TIFF has it, whether OpenSlide reads the file or not."""
    options: dict[str, object] = {} if tiled else {"tile": None}
    path = write_tiff(tmp_path / "a.tiff", resolution=(50_800, 50_800), resolutionunit="INCH", **options)
    with tifffile.TiffFile(path) as tif:
        at = tif.pages.first.tags["ResolutionUnit"].offset
    with path.open("r+b") as file:
        file.seek(at)
        file.write((290).to_bytes(2, "little"))  # a tag that nobody reads
    with Slide(path) as slide:
        assert slide.pixel_size.text == "0.5 from the TIFF tag"


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("value", [(0, 1), (20_000, 0), (2**32 - 1, 1)])
def test_tags_that_are_no_size(tmp_path: Path, tiled: bool, value: tuple[int, int]) -> None:
    path = write_tiff(tmp_path / "a.tiff", **HALF_UM, **({} if tiled else {"tile": None}))
    with tifffile.TiffFile(path) as tif:
        places = [tif.pages.first.tags[name].valueoffset for name in ("XResolution", "YResolution")]
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"".join(part.to_bytes(4, "little") for part in value))
    with Slide(path) as slide:
        assert not slide.has_mpp


@pytest.mark.parametrize("codec", ["deflate", "zstd", "webp", "jpegxl", "jpeg2000"])
def test_tags_count_whatever_the_codec(tmp_path: Path, codec: str) -> None:
    path = write_tiff(tmp_path / f"{codec}.tiff", compression=codec, **HALF_UM)
    with Slide(path) as slide:
        assert slide.mpp_xy == (0.5, 0.5)
        assert slide.metadata["mpp_source"] == "0.5 from the TIFF tag"


def test_a_scanners_header_counts_before_the_tag(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.svs", smooth_pixels(512, 384), [(512, 384)], aperio=True)
    with Slide(path) as slide:
        assert slide.pixel_size.text == "0.5 from the aperio header"


@pytest.mark.parametrize(
    ("scale", "unit", "text"),
    [
        (0.5, "micrometer", "0.5 from OME-Zarr"),
        (500.0, "nanometer", "0.5 from OME-Zarr"),
        (0.5e-6, "meter", "0.5 from OME-Zarr"),
        (0.5 / 25_400, "inch", "0.5 from OME-Zarr"),
        (0.5, "parsec", "unknown"),
        (-0.5, "micrometer", "unknown; not believed: -0.5 (OME-Zarr; 0.05 to 20 µm/px is plausible)"),
    ],
)
def test_ome_zarr_scales_are_a_source(tmp_path: Path, scale: float, unit: str, text: str) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=smooth_pixels(128, 96).transpose(2, 0, 1), chunks=(3, 64, 64))
    axes = [{"name": "c", "type": "channel"}] + [
        {"name": name, "type": "space", "unit": unit} for name in "yx"
    ]
    scales = [{"type": "scale", "scale": [1.0, scale, scale]}]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scales}]}
    ]
    with Slide(tmp_path / "a.zarr") as slide:
        assert slide.pixel_size.text == text


class TestNotBelieved:
    @pytest.mark.parametrize(
        ("tags", "value"),
        [
            (DPI_72, "353"),
            ({"resolution": (10, 10), "resolutionunit": "CENTIMETER"}, "1,000"),
            ({"resolution": (20_000_000, 20_000_000), "resolutionunit": "CENTIMETER"}, "0.0005"),
        ],
        ids=["72 dpi", "per mm", "mm for µm"],
    )
    def test_absurd_tags_are_unknown_and_named(
        self, tmp_path: Path, tags: dict[str, object], value: str
    ) -> None:
        with Slide(write_tiff(tmp_path / "a.tiff", **tags)) as slide:
            assert not slide.has_mpp
            with pytest.raises(UnknownMppError, match=rf"it says {value} \(the TIFF tag; 0.05 to 20 µm/px"):
                _ = slide.mpp_xy
            assert "not believed" in str(slide.metadata["mpp_source"])
            with pytest.raises(UnknownMppError):
                find_tiles(slide, TileSpec(256, 2.0), min_tissue=0.5)

    def test_pixels_that_are_far_from_square(self, tmp_path: Path) -> None:
        path = write_tiff(tmp_path / "a.ome.tiff", ome=True, metadata=ome_size(0.25, y=1.0))
        with Slide(path) as slide, pytest.raises(UnknownMppError, match=r"0\.25 × 1 .*about square"):
            _ = slide.mpp_xy

    def test_nothing_said_is_said_as_before(self, tmp_path: Path) -> None:
        with Slide(write_tiff(tmp_path / "a.tiff")) as slide:
            assert slide.metadata["mpp_source"] == "unknown"
            with pytest.raises(UnknownMppError, match=r"doesn't say how many µm a pixel measures\. Give it"):
                _ = slide.mpp_xy

    @pytest.mark.parametrize("mpp", [0.0, -1.0, 0.0005, 353.0, 1e12, float("nan"), float("inf")])
    def test_nor_is_it_when_given(self, tmp_path: Path, mpp: float) -> None:
        path = write_tiff(tmp_path / "a.tiff", **HALF_UM)
        with pytest.raises(SlideError, match=r"isn't plausible: mpp must lie between 0\.05 and 20"):
            Slide(path, mpp=mpp)
        with Slide(path) as slide:
            with pytest.raises(SlideError, match="isn't plausible"):
                slide.mpp_override = mpp
            assert slide.mpp_xy == (0.5, 0.5)


def test_what_is_given_wins_and_says_what_the_file_says(tmp_path: Path) -> None:
    with Slide(write_tiff(tmp_path / "a.tiff", **HALF_UM), mpp=0.25) as slide:
        assert slide.mpp_xy == (0.25, 0.25)
        assert slide.pixel_size.text == "0.25 from the value given; the TIFF tag says 0.5"
        slide.mpp_override = None
        assert slide.pixel_size.text == "0.5 from the TIFF tag"


class TestGrids:
    def test_a_slide_larger_than_any_is_refused_before_its_mask(self, tmp_path: Path) -> None:
        # 2**26 px of one row are 33 m at 0.5 µm/px.
        pixels = np.zeros((1, 2**22, 3), np.uint8)
        path = tmp_path / "line.tiff"
        tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="deflate", **HALF_UM)
        with (
            Slide(path) as slide,
            pytest.raises(SlideError, match=r"line.tiff: at 0.5 µm/px \(mpp\).* 2,097 x 0 mm.*the TIFF tag"),
        ):
            find_tiles(slide, TileSpec(256, 2.0), min_tissue=0.5)

    @pytest.mark.parametrize("spec", [TileSpec(2**20, 0.5), TileSpec(1, 0.001)])
    def test_tiles_of_absurd_size_or_number(self, tmp_path: Path, spec: TileSpec) -> None:
        path = write_tiff(tmp_path / "a.tiff", smooth_pixels(8192, 512), **HALF_UM)
        with Slide(path) as slide, pytest.raises(SlideError, match=r"at 0.5 µm/px \(mpp\)"):
            tile_grid(slide, spec)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        ("0,25", 0.25),
        (" 0,499 ", 0.499),
        ("1", 1.0),
        (",5", 0.5),
        ("", None),
        (".", None),
        ("1.000,5", None),
        ("-1", None),
        ("abc", None),
    ],
)
def test_point_and_comma_mean_the_same(text: str, value: float | None) -> None:
    assert parse_mpp(text) == value


sizes = st.floats(1e-6, 1e6)


@given(st.lists(st.builds(Evidence, st.sampled_from("abc"), st.tuples(sizes, sizes)), max_size=4))
def test_a_decision_is_plausible_or_says_why_there_is_none(evidence: list[Evidence]) -> None:
    decision = decide(evidence)
    if decision.mpp_xy is None:
        assert bool(decision.doubt) == bool(evidence)
    else:
        assert all(MIN_MPP <= mpp <= MAX_MPP for mpp in decision.mpp_xy)
        assert not decision.doubt

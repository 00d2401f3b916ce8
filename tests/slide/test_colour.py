"""ICC profiles: off by default, applied on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.colour import SRGBTransform


def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _swapped_profile() -> bytes:
    """sRGB with the red and blue primaries exchanged: what it does to a colour is known by heart."""
    profile = bytearray(_srgb_profile())
    n_tags = int.from_bytes(profile[128:132], "big")
    places = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(n_tags)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


@pytest.fixture
def profiled(tmp_path: Path) -> Path:
    return write_pyramid(
        tmp_path / "p.tiff",
        smooth_pixels(200, 150),
        [(200, 150)],
        compression="deflate",
        iccprofile=_swapped_profile(),
    )


@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_off_by_default_and_applied_on_request(profiled: Path, backend: str) -> None:
    stored = smooth_pixels(200, 150)
    with Slide(profiled, backend=backend) as slide:
        assert slide.metadata["icc_applied"] is False
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (200, 150)), stored)
    with Slide(profiled, backend=backend, icc=True) as slide:
        assert slide.metadata["icc_applied"] is True
        region = slide.read_region((0, 0), 0, (200, 150))
        assert np.abs(region.astype(int) - stored[..., ::-1].astype(int)).max() <= 3
        # Glass outside the slide stays white.
        assert (slide.read_region((-50, -50), 0, (40, 40)) == 255).all()


def test_of_a_plain_image(tmp_path: Path) -> None:
    pixels = smooth_pixels(64, 64)
    Image.fromarray(pixels).save(tmp_path / "p.png", icc_profile=_swapped_profile())
    with Slide(tmp_path / "p.png", icc=True) as slide:
        region = slide.read_region((0, 0), 0, (64, 64))
        assert np.abs(region.astype(int) - pixels[..., ::-1].astype(int)).max() <= 3


def test_without_profile_nothing_changes(cmu_svs: Path) -> None:
    with Slide(cmu_svs) as plain, Slide(cmu_svs, icc=True) as asked:
        assert asked.metadata["icc_applied"] is False
        np.testing.assert_array_equal(
            plain.read_region((500, 500), 0, (90, 90)), asked.read_region((500, 500), 0, (90, 90))
        )


@pytest.mark.parametrize(
    "file", ["slides_real/tcga-cr-7395-01a-01-ts1.svs", "slides_real/CMU-1-Small-Region-dicom"]
)
def test_real_profiles_apply(file: str, shared_data: Path) -> None:
    with Slide(shared_data / file) as plain, Slide(shared_data / file, icc=True) as managed:
        assert managed.metadata["icc_applied"] is True
        before, after = (slide.read_region((900, 900), 0, (256, 256)) for slide in (plain, managed))
        assert before.shape == after.shape
        # Both carry sRGB, or a profile close to it: colours hardly move.
        assert np.abs(before.astype(int) - after.astype(int)).mean() < 12


def test_damaged_profile_is_refused_with_its_cure() -> None:
    with pytest.raises(SlideError, match="Open it without colour management"):
        SRGBTransform(b"no profile")


def test_the_toggle_changes_what_is_read_from_then_on(profiled: Path) -> None:
    stored = smooth_pixels(200, 150)
    with Slide(profiled) as slide:
        assert slide.has_icc_profile
        assert not slide.icc
        slide.icc = True
        swapped = slide.read_region((0, 0), 0, (200, 150))
        assert np.abs(swapped.astype(int) - stored[..., ::-1].astype(int)).max() <= 3
        slide.icc = False
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (200, 150)), stored)


@pytest.mark.parametrize("shown", [False, True])
def test_a_model_gets_the_colours_it_wants_whatever_is_shown(profiled: Path, shown: bool) -> None:
    stored = smooth_pixels(200, 150)
    with Slide(profiled, mpp=0.25, icc=shown) as slide:
        for wanted, expected in ((False, stored), (True, stored[..., ::-1])):
            with slide.in_colours(icc=wanted) as source:
                assert source.mpp_xy == (0.25, 0.25)
                region = source.read_region((0, 0), 0, (200, 150))
                assert np.abs(region.astype(int) - expected.astype(int)).max() <= 3
        assert slide.icc is shown


def test_without_a_profile_no_second_handle_is_opened(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "plain.tiff", smooth_pixels(200, 150), [(200, 150)])
    with Slide(path) as slide:
        assert not slide.has_icc_profile
        with slide.in_colours(icc=True) as source:
            assert source is slide

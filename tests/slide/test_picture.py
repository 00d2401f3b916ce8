"""Overview and close-up: true proportions, no seams, only as much decoded as the picture needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide, TileSpec, make_tile_grid
from napari_lrmil.slide.picture import (
    close_up,
    close_up_mpp,
    overview,
    overview_level_px,
    overview_size_xy,
    overview_steps,
)


@pytest.fixture
def pyramid(tmp_path: Path) -> Path:
    """1024 x 768 px at 0.5 µm/px, levels 1, 4 and 16."""
    # Details of some 200 px, so that a small picture still has them.
    pixels = np.asarray(Image.fromarray(smooth_pixels(64, 48)).resize((1024, 768), Image.Resampling.BICUBIC))
    return write_pyramid(tmp_path / "slide.tif", pixels, [(1024, 768), (256, 192), (64, 48)], mpp=0.5)


def long_pixels(path: Path, mpp_xy: tuple[float, float]) -> Path:
    """An OME-Zarr of 400 x 200 px whose pixels aren't square."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.create_array("0", data=smooth_pixels(400, 200), chunks=(100, 100, 3))
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    axes.append({"name": "c", "type": "channel"})
    transform = {"type": "scale", "scale": [mpp_xy[1], mpp_xy[0], 1.0]}
    datasets = [{"path": "0", "coordinateTransformations": [transform]}]
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path


@pytest.mark.parametrize("edge_px", [50, 64, 200, 256, 1000])
def test_overview_is_the_scanned_area(edge_px: int, pyramid: Path) -> None:
    with Slide(pyramid) as slide:
        picture = overview(slide, edge_px)
        assert picture.shape == (round(768 * edge_px / 1024), edge_px, 3)
        assert overview_size_xy(slide, edge_px) == picture.shape[1::-1]
        whole = slide.read_region((0, 0), 0, (1024, 768))
    expected = np.asarray(Image.fromarray(whole).resize(picture.shape[1::-1], Image.Resampling.BOX), float)
    off = np.abs(np.roll(picture, 2, axis=1).astype(float) - expected).mean()
    assert np.abs(picture.astype(float) - expected).mean() < 0.5 * off


def test_overview_of_a_slide_with_bounds(shared_data: Path) -> None:
    with Slide(shared_data / "slides_repacked" / "cmu_leica.scn") as slide:
        left, top, width, height = slide.bounds_l0_xywh
        assert (left, top) != (0, 0)
        picture = overview(slide, 300)
        whole = slide.read_region((left, top), 0, (width, height))
    expected = np.asarray(Image.fromarray(whole).resize(picture.shape[1::-1], Image.Resampling.BOX), float)
    assert np.abs(picture.astype(float) - expected).mean() < 8  # coarse levels were made by another filter


def test_overview_has_true_proportions(tmp_path: Path) -> None:
    with Slide(long_pixels(tmp_path / "slide.zarr", (0.5, 1.0))) as slide:
        assert overview(slide, 100).shape == (100, 100, 3)
        # Not enlarged along either axis.
        assert overview(slide, 1000).shape == (200, 200, 3)
    path = write_pyramid(tmp_path / "unknown.tif", smooth_pixels(400, 200), [(400, 200)], mpp=None)
    with Slide(path) as slide:
        assert not slide.has_mpp
        assert overview(slide, 100).shape == (50, 100, 3)


def test_overview_in_strips_has_no_seams(generated_slide: Path) -> None:
    with Slide(generated_slide) as slide:
        whole = overview(slide, 512).astype(float)
        strips = overview(slide, 512, strip_px=40_000).astype(float)
    np.testing.assert_allclose(strips, whole, atol=40)
    assert np.abs(strips - whole).mean() < 0.5


def test_overview_can_be_cancelled_and_limited(pyramid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    really = Slide.read_region

    def noted(slide: Slide, location: tuple[int, int], level: int, size: tuple[int, int], **more: bool):  # type: ignore[no-untyped-def]
        reads.append(level)
        return really(slide, location, level, size, **more)

    monkeypatch.setattr(Slide, "read_region", noted)
    with Slide(pyramid) as slide:
        reads.clear()
        steps = overview_steps(slide, 256, strip_px=256 * 20)
        next(steps)
        next(steps)
        steps.close()
        assert reads == [1]  # of ten strips
        assert overview_level_px(slide, 256) == 256 * 192
        assert overview_level_px(slide, 64) == 64 * 48
        with pytest.raises(SlideError, match="no level that is coarse enough"):
            overview(slide, 256, max_level_px=256 * 192 - 1)
        overview(slide, 256, max_level_px=256 * 192)
    with pytest.raises(ValueError, match="at least 1 px"), Slide(pyramid) as slide:
        overview(slide, 0)


@pytest.mark.parametrize(("mpp", "tile_px", "max_px", "wanted_mpp"), [
    (0.25, 128, 640, 0.5),  # 20x, though the slide has more
    (1.0, 128, 640, 1.0),  # no finer than the slide
    (0.25, 640, 320, 4.0 / 2),  # as large as it may be
    (0.25, 640, 100, 2.0),  # never coarser than the model reads it
])  # fmt: skip
def test_close_up(mpp: float, tile_px: int, max_px: int, wanted_mpp: float, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", smooth_pixels(1024, 768), [(1024, 768), (512, 384)], mpp=mpp)
    with Slide(path) as slide:
        grid = make_tile_grid(
            bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=TileSpec(tile_px, 2.0)
        )
        assert close_up_mpp(slide, grid, max_px=max_px) == pytest.approx(wanted_mpp)
        pixels = close_up(slide, grid, 0, 0, max_px=max_px)
        assert pixels.shape == (round(tile_px * 2.0 / wanted_mpp),) * 2 + (3,)
        seen = tuple(round(edge) for edge in grid.tile_l0_xy)
        expected = Image.fromarray(slide.read_region((0, 0), 0, seen)).resize(
            pixels.shape[1::-1], Image.Resampling.BOX
        )
    assert np.abs(pixels.astype(float) - np.asarray(expected, float)).mean() < 8


def test_pictures_never_look_at_stored_images(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slide, "read_associated", lambda *_: pytest.fail("labels show names"))
    with Slide(shared_data / "slides_real" / "CMU-1-Small-Region.svs") as slide:
        assert slide.associated_images
        overview(slide, 100)

"""OME-Zarr 0.4 and 0.5, written here with zarr itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image
from slide_files import smooth_pixels

from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide


def _write_zarr(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    zarr_format: int,
    axes: str = "tczyx",
    unit: str | None = "micrometer",
) -> None:
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    datasets = []
    image = pixels
    for level in range(3):
        ordered = {
            "tczyx": image.transpose(2, 0, 1)[None, :, None],
            "cyx": image.transpose(2, 0, 1),
            "yxc": image,
        }
        data = ordered[axes]
        chunks = tuple(40 if axis in "yx" else 1 for axis in axes)
        root.create_array(str(level), data=np.ascontiguousarray(data), chunks=chunks)
        scale = [0.25 * 2**level if axis in "yx" else 1.0 for axis in axes]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
        image = np.asarray(Image.fromarray(image).reduce(2))
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in described:
        if axis["name"] in "yx" and unit is not None:
            axis["unit"] = unit
    version = {2: "0.4", 3: "0.5"}[zarr_format]
    multiscales = [{"version": version, "axes": described, "datasets": datasets}]
    if zarr_format == 2:
        root.attrs["multiscales"] = multiscales
    else:
        root.attrs["ome"] = {"version": version, "multiscales": multiscales}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yxc"])
def test_ome_zarr(tmp_path: Path, zarr_format: int, axes: str) -> None:
    pixels = smooth_pixels(171, 130)
    _write_zarr(tmp_path / "slide.zarr", pixels, zarr_format=zarr_format, axes=axes)
    with Slide(tmp_path / "slide.zarr") as slide:
        assert slide.metadata["backend"] == "ome-zarr"
        assert slide.metadata["vendor"] == f"ome-zarr (zarr v{zarr_format})"
        assert slide.mpp_xy == (0.25, 0.25)
        assert slide.level_dimensions_xy == ((171, 130), (86, 65), (43, 33))
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (171, 130)), pixels)
        half = np.asarray(Image.fromarray(pixels).reduce(2))
        np.testing.assert_array_equal(slide.read_region((60, 40), 1, (50, 40)), half[20:60, 30:80])
        outside = slide.read_region((160, 120), 0, (30, 30))
        np.testing.assert_array_equal(outside[:10, :11], pixels[120:, 160:])
        assert (outside[10:] == 255).all()
        assert len(slide.fingerprint()) == 64


def test_ome_zarr_without_unit_has_no_mpp(tmp_path: Path) -> None:
    _write_zarr(tmp_path / "slide.zarr", smooth_pixels(100, 80), zarr_format=3, unit=None)
    with Slide(tmp_path / "slide.zarr") as slide:
        assert not slide.has_mpp


@pytest.mark.parametrize("metadata", ["null", "[]", "[" * 100_000, '{"attributes": 3}', "\udcff"])
def test_whatever_the_metadata_make_of_the_decoder_is_an_error_of_the_slide(
    tmp_path: Path, metadata: str
) -> None:
    folder = tmp_path / "bad.zarr"
    folder.mkdir()
    (folder / "zarr.json").write_bytes(metadata.encode("utf-8", "surrogateescape"))
    with pytest.raises(SlideError, match=r"bad\.zarr"):
        Slide(folder)


def test_zarr_without_image_is_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "empty.zarr", mode="w", zarr_format=3)
    with pytest.raises(SlideError, match="without OME-Zarr multiscales"):
        Slide(tmp_path / "empty.zarr")
    (tmp_path / "damaged.zarr").mkdir()
    (tmp_path / "damaged.zarr" / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group"})[:-3]
    )
    with pytest.raises(SlideError, match="not an OME-Zarr image"):
        Slide(tmp_path / "damaged.zarr")


def _container(
    path: Path, images: dict[str, NDArray[np.uint8]], *, zarr_format: int, listed: bool = True
) -> None:
    """As bioformats2raw writes it: each image in a group of its own, and a group OME that lists them."""
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    layout = {"bioformats2raw.layout": 3}
    root.attrs.update(layout if zarr_format == 2 else {"ome": {"version": "0.5", **layout}})
    ome = root.create_group("OME")
    if listed:
        series = {"series": list(images)}
        ome.attrs.update(series if zarr_format == 2 else {"ome": {"version": "0.5", **series}})
    (path / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    for name, pixels in images.items():
        _write_zarr(path / name, pixels, zarr_format=zarr_format)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_container_with_one_image_is_that_image(tmp_path: Path, zarr_format: int, listed: bool) -> None:
    pixels = smooth_pixels(171, 130)
    path = tmp_path / "slide.zarr"
    _container(path, {"0": pixels}, zarr_format=zarr_format, listed=listed)
    with Slide(path) as slide, Slide(path / "0") as image:
        assert slide.level_dimensions_xy == image.level_dimensions_xy == ((171, 130), (86, 65), (43, 33))
        assert slide.mpp_xy == (0.25, 0.25)
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (171, 130)), pixels)
        before = slide.fingerprint()
        assert any("0/2" in file.as_posix() for file in slide.files)
    # Identity looks into the image, not only at the container.
    _container(path, {"0": smooth_pixels(171, 130, seed=1)}, zarr_format=zarr_format, listed=listed)
    with Slide(path) as slide:
        assert slide.fingerprint() != before


def test_a_container_of_several_images_says_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "slides.zarr"
    _container(path, {"0": smooth_pixels(90, 70), "1": smooth_pixels(100, 80)}, zarr_format=2)
    with pytest.raises(SlideError, match=r"holds 2 images: open one of slides\.zarr/0, slides\.zarr/1$"):
        Slide(path)
    with Slide(path / "1") as slide:
        assert slide.level_dimensions_xy[0] == (100, 80)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_of_several_images_in_one_group_the_first_is_shown_and_the_others_are_said(
    tmp_path: Path, zarr_format: int
) -> None:
    path, pixels = tmp_path / "slide.zarr", smooth_pixels(100, 80)
    _write_zarr(path, pixels, zarr_format=zarr_format, axes="yxc")
    with Slide(path) as slide:
        assert slide.metadata["image"] == "the only one"
    group = zarr.open_group(path)
    held = dict(group.attrs["ome"] if zarr_format == 3 else group.attrs.asdict())
    (one,) = held["multiscales"]
    both = [{**one, "datasets": one["datasets"][:2]}, {**one, "datasets": one["datasets"][2:]}]
    group.attrs.update({"ome": held | {"multiscales": both}} if zarr_format == 3 else {"multiscales": both})
    with Slide(path) as slide:
        assert len(slide.level_dimensions_xy) == 2
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (100, 80)), pixels)
        assert slide.metadata["image"] == "1 of 2, the first; the others are not shown"


@pytest.mark.parametrize("name", ["slide.zarr.zip", "slide.ozx"])
def test_a_zipped_zarr_says_to_unpack_it(tmp_path: Path, name: str) -> None:
    _write_zarr(tmp_path / "slide.zarr", smooth_pixels(90, 70), zarr_format=2)
    made = shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "slide.zarr")
    Path(made).rename(tmp_path / name)
    with pytest.raises(
        SlideError, match=f"^{name} is a zipped OME-Zarr: unpack it and open the folder in it$"
    ):
        Slide(tmp_path / name)


def test_planes_beside_the_image_are_refused(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "stack.zarr", mode="w", zarr_format=2)
    root.create_array("0", data=np.zeros((1, 3, 5, 64, 64), np.uint8), chunks=(1, 1, 1, 64, 64))
    root.attrs["multiscales"] = [
        {"version": "0.4", "axes": [{"name": a} for a in "tczyx"], "datasets": [{"path": "0"}]}
    ]
    with pytest.raises(
        SlideError, match=r"^stack\.zarr holds 5 planes along its axis z, but a slide needs one$"
    ):
        Slide(tmp_path / "stack.zarr")

"""OME-Zarr 0.4 and 0.5, written here with zarr itself."""

from __future__ import annotations

import json
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

"""OME-Zarr with chunks absent: blank where the other levels say so, missing where they don't."""

from __future__ import annotations

import json
import os
import re
import shutil
import tracemalloc
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from slide_files import smooth_pixels

from napari_lrmil.batch import BatchEvent, Kind, classify
from napari_lrmil.cache import ResultCache
from napari_lrmil.errors import SlideError
from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import ListedSlide

CPU = torch.device("cpu")


def write(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    n_levels: int = 3,
    zarr_format: int = 3,
    fill_value: int = 0,
    sparse: bool = False,
    shards: int | None = None,
) -> Path:
    """At 0.5 µm/px, each level half of the one before; `sparse` leaves out what holds the fill value alone."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    for level in range(n_levels):
        small = np.ascontiguousarray(pixels[:: 2**level, :: 2**level].transpose(2, 0, 1))
        array = group.create_array(
            str(level), shape=small.shape, chunks=(3, 32, 32), dtype="uint8", fill_value=fill_value,
            shards=None if shards is None else (3, shards, shards), config={"write_empty_chunks": not sparse},
        )  # fmt: skip
        array[:] = small
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5 * 2**level, 0.5 * 2**level]}],
        }
        for level in range(n_levels)
    ]
    image = {"version": "0.4" if zarr_format == 2 else "0.5", "axes": axes, "datasets": datasets}
    if zarr_format == 2:
        group.attrs["multiscales"] = [image]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return grown_old(path)


def grown_old(path: Path) -> Path:
    """As if it had been written an hour ago."""
    for file in path.rglob("*"):
        os.utime(file, (1e9, 1e9))
    return path


def chunks_of(path: Path, level: int) -> list[Path]:
    """The files of a level's chunks, row by row."""
    folder = path / str(level)
    found = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".json"]
    return sorted(
        (file for file in found if not file.name.startswith(".z")),
        key=lambda file: [int(number) for number in re.findall(r"\d+", str(file.relative_to(folder)))],
    )


@pytest.fixture(scope="module")
def tissue(generated_slide: Path) -> NDArray[np.uint8]:
    with Slide(generated_slide) as slide:
        return slide.read_region((0, 0), 0, slide.level_dimensions_xy[0])


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> ModelBundle:
    return load_bundle(tiny_bundle)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("fill_value", [0, 255])
def test_what_a_writer_leaves_out_is_blank(tmp_path: Path, zarr_format: int, fill_value: int) -> None:
    pixels = np.full((256, 256, 3), fill_value, np.uint8)
    pixels[64:192, 64:192] = 120
    path = write(tmp_path / "a.zarr", pixels, zarr_format=zarr_format, fill_value=fill_value, sparse=True)
    assert len(chunks_of(path, 0)) == 16
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (256, 256)), pixels)
        np.testing.assert_array_equal(slide.read_region((0, 0), 2, (64, 64)), pixels[::4, ::4])
        assert not slide.damaged_places


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("shards", [None, 64])
def test_what_another_level_shows_is_missing(tmp_path: Path, level: int, shards: int | None) -> None:
    """Whichever level lacks it; a shard is a file of several chunks."""
    path = write(tmp_path / "a.zarr", np.full((512, 512, 3), 120, np.uint8), shards=shards)
    chunks_of(path, level)[-1].unlink()
    size, gone = 512 >> level, shards or 32
    with Slide(path) as slide:
        found = slide.read_region((0, 0), level, (size, size))
        assert (found[: size - gone] == 120).all()
        assert not (found[size - gone :, size - gone :] == 120).any()  # hatched, not black or white
        assert {place[0] for place in slide.damaged_places} == {level}


def test_a_single_level_has_none_to_compare_with(tmp_path: Path) -> None:
    """Glass may be left out; black is nothing that a slide shows."""
    for fill_value, missing in ((255, False), (0, True)):
        pixels = np.full((128, 128, 3), fill_value, np.uint8)
        pixels[32:96, 32:96] = 120
        path = write(tmp_path / f"{fill_value}.zarr", pixels, n_levels=1, fill_value=fill_value, sparse=True)
        with Slide(path) as slide:
            slide.read_region((0, 0), 0, (128, 128))
            assert bool(slide.damaged_places) is missing


def test_a_slide_that_was_written_just_now_may_lack_more(tmp_path: Path) -> None:
    """No level has the chunk yet: a minute later that means that it is blank."""
    pixels = np.full((512, 512, 3), 255, np.uint8)
    pixels[:, 256:] = 120
    path = write(tmp_path / "a.zarr", pixels, fill_value=255, sparse=True)
    os.utime(chunks_of(path, 0)[0])
    with Slide(path) as slide:
        slide.read_region((0, 0), 0, (128, 128))
        assert slide.damaged_places
    grown_old(path)
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (512, 512)), pixels)
        assert not slide.damaged_places


def ends(path: Path, bundle: ModelBundle, cache: ResultCache) -> BatchEvent:
    """How the classification of one slide ends."""
    *_, last = classify([ListedSlide(path, "s")], bundle, cache=cache, device=CPU)
    return last


def test_a_half_copied_slide_is_refused_and_classified_anew_when_it_is_complete(
    tmp_path: Path, tissue: NDArray[np.uint8], bundle: ModelBundle
) -> None:
    path = write(tmp_path / "s.zarr", tissue, n_levels=4)
    with Slide(path) as slide:
        truth = run_to_end(predict_slide(slide, bundle, device=CPU))
        fingerprint = slide.fingerprint()
    cache = ResultCache(tmp_path / "cache")
    chunks = chunks_of(path, truth.level)
    held = {chunk: chunk.read_bytes() for chunk in chunks[: len(chunks) * 3 // 4]}
    for chunk in held:
        chunk.unlink()
    half = ends(path, bundle, cache)
    assert half.kind is Kind.FAILED
    assert "s.zarr is damaged" in half.error
    assert " of " in half.error
    assert cache.size().n_results == 0
    for chunk, data in held.items():
        chunk.write_bytes(data)
    whole = ends(path, bundle, cache)
    assert whole.prediction is not None
    assert not whole.cached
    np.testing.assert_array_equal(whole.prediction.class_probabilities, truth.class_probabilities)
    assert whole.prediction.slide_fingerprint == fingerprint


def test_a_slide_that_grows_or_goes_while_it_is_read_has_no_result(
    tmp_path: Path, tissue: NDArray[np.uint8], bundle: ModelBundle
) -> None:
    path = write(tmp_path / "s.zarr", tissue, n_levels=4)
    chunk = chunks_of(path, 0)[5]
    data = chunk.read_bytes()
    chunk.unlink()
    with Slide(path) as slide:
        steps = predict_slide(slide, bundle, device=CPU, batch_size=4)
        next(steps)
        chunk.write_bytes(data)
        with pytest.raises(SlideError, match="changed while it was read"):
            run_to_end(steps)
    with Slide(path) as slide:
        steps = predict_slide(slide, bundle, device=CPU, batch_size=4)
        next(steps)
        shutil.rmtree(path)
        with pytest.raises(SlideError):
            run_to_end(steps)


@pytest.mark.parametrize("name", ["/etc", "../outside", "..", "a/../../outside", "link"])
def test_a_level_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    pixels = np.full((64, 64, 3), 120, np.uint8)
    write(tmp_path / "outside", pixels, n_levels=1)
    path = write(tmp_path / "a.zarr", pixels, n_levels=1, zarr_format=2)
    (path / "link").symlink_to(tmp_path / "outside" / "0")
    attributes = (path / ".zattrs").read_text()
    (path / ".zattrs").write_text(attributes.replace('"path": "0"', f'"path": "{name}"'))
    assert name in (path / ".zattrs").read_text()
    with pytest.raises(SlideError, match="names a level outside of its folder"):
        Slide(path)


def pack(zarr_format: int, kind: str, content: bytes) -> bytes:
    if kind == "deflate":
        return zlib.compress(content)
    codec = numcodecs.Blosc() if zarr_format == 2 else numcodecs.Zstd()
    return bytes(codec.encode(content))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_that_unpacks_to_gigabytes_is_damage_and_is_not_unpacked(
    zarr_format: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.ome.zarr", smooth_pixels(256, 256), zarr_format=zarr_format)
    chunk = path / ("0/0.2.3" if zarr_format == 2 else "0/c/0/2/3")
    chunk.write_bytes(pack(zarr_format, "own", bytes(2**28)))
    grown_old(path)
    with Slide(path) as slide:
        tracemalloc.start()
        region = slide.read_region((64, 32), 0, (64, 64))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert slide.damaged_places == {(0, 96, 64, 32, 32)}
        np.testing.assert_array_equal(region[:32, :32], smooth_pixels(256, 256)[32:64, 64:96])
    assert peak < 2**24


def test_a_chunk_of_deflate_that_unpacks_to_far_more_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    array = group.create_array(
        "0", shape=(3, 64, 64), chunks=(3, 64, 64), dtype="uint8", compressors=numcodecs.Zlib()
    )
    array[:] = 128
    axes = [{"name": name, "type": "space"} for name in "cyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    with Slide(path) as slide:
        assert (slide.read_region((0, 0), 0, (64, 64)) == 128).all()
    (path / "0" / "0.0.0").write_bytes(zlib.compress(bytes(2**28)))
    with pytest.raises(SlideError, match="the middle of its coarsest level is damaged"):
        Slide(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without this device")
def test_a_chunk_that_is_a_device_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "s.ome.zarr", smooth_pixels(256, 256))
    chunk = path / "0/c/0/2/3"
    chunk.unlink()
    chunk.symlink_to("/dev/full")
    with Slide(path) as slide:
        slide.read_region((64, 32), 0, (64, 64))
        assert slide.damaged_places == {(0, 96, 64, 32, 32)}


@pytest.mark.parametrize("shape", [[3, 2**40, 2**40], [3, 0, 256]])
def test_levels_of_a_size_that_none_has_are_refused(shape: list[int], tmp_path: Path) -> None:
    path = write(tmp_path / "s.ome.zarr", smooth_pixels(256, 256))
    metadata = json.loads((path / "0/zarr.json").read_text())
    (path / "0/zarr.json").write_text(json.dumps(metadata | {"shape": shape}))
    with pytest.raises(
        SlideError,
        match=f"s.ome.zarr is damaged: it says that a level measures {shape[2]:,} x {shape[1]:,} px",
    ):
        Slide(path)


def test_chunks_of_no_size_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.ome.zarr", smooth_pixels(256, 256), zarr_format=2)
    metadata = json.loads((path / "2/.zarray").read_text())
    (path / "2/.zarray").write_text(json.dumps(metadata | {"chunks": [0, 0, 0]}))
    with pytest.raises(
        SlideError, match=r"s\.ome\.zarr is damaged: it says that its chunks measure 0 x 0 px"
    ):
        Slide(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("value", [300, -1, 10**30])
def test_a_fill_value_that_no_pixel_has_is_refused_in_words(
    tmp_path: Path, value: int, zarr_format: int
) -> None:
    path = write(tmp_path / "a.zarr", np.full((64, 64, 3), 120, np.uint8), zarr_format=zarr_format)
    described = path / "0" / ("zarr.json" if zarr_format == 3 else ".zarray")
    described.write_text(json.dumps(json.loads(described.read_text()) | {"fill_value": value}))
    with pytest.raises(SlideError) as told:
        Slide(path)
    assert str(told.value) == (
        "a.zarr can't be read (a number in it is too large, or below what may stand there)"
    )


@pytest.mark.parametrize("shards", [None, 64])
def test_a_folder_that_goes_away_and_comes_back_is_no_damage_and_no_glass(
    tmp_path: Path, tissue: NDArray[np.uint8], shards: int | None
) -> None:
    """As a share does while its slide is shown: reads fail meanwhile, and nothing of that is remembered."""
    pixels = np.ascontiguousarray(tissue[:256, :256])
    path = write(tmp_path / "s.zarr", pixels, shards=shards, fill_value=255)
    with Slide(path) as slide:
        path.rename(tmp_path / "away")
        with pytest.raises(SlideError, match="can't be read"):
            slide.read_region((0, 0), 0, (256, 256))
        assert not slide.damaged_places
        (tmp_path / "away").rename(path)
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (256, 256)), pixels)
        slide.check_unchanged()

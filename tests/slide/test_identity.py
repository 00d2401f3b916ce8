"""Two slides have one fingerprint only if they are one slide; what it costs is bounded."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from seen_slides import SeenSlide
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.cache import ResultCache
from napari_lrmil.slide import Slide
from napari_lrmil.slide.identity import fingerprint_of, same_slide

MIB = 2**20


def fingerprint(path: Path) -> str:
    with Slide(path) as slide:
        return slide.fingerprint()


def earlier_fingerprint(path: Path) -> str:
    """What earlier versions took for the fingerprint of a file."""
    data = path.read_bytes()
    return hashlib.sha256(str(len(data)).encode() + data[:MIB] + data[max(0, len(data) - MIB) :]).hexdigest()


def on_glass(left: int) -> NDArray[np.uint8]:
    """A piece of tissue on plain glass, whose first and last MiB are glass."""
    canvas = np.full((1536, 1536, 3), 255, np.uint8)
    canvas[640:896, left : left + 256] = smooth_pixels(256, 256)
    return canvas


def write_zarr(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Uncompressed, as each chunk is of one size then."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for level in (0, 1):
        small = np.ascontiguousarray(pixels[:: 2**level, :: 2**level])
        array = group.create_array(
            str(level), shape=small.shape, chunks=(128, 128, 3), dtype="uint8", compressors=None,
            config={"write_empty_chunks": True},
        )  # fmt: skip
        array[:] = small
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [0.5 * 2**level, 0.5 * 2**level, 1]}],
        }
        for level in (0, 1)
    ]
    axes.append({"name": "c", "type": "channel"})
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


def test_uncompressed_slides_of_one_size_with_glass_at_both_ends_are_two(tmp_path: Path) -> None:
    paths = [tmp_path / "left.tif", tmp_path / "right.tif"]
    for path, left in zip(paths, (256, 1024), strict=True):
        tifffile.imwrite(path, on_glass(left), tile=(256, 256), photometric="rgb", metadata=None)
    assert earlier_fingerprint(paths[0]) == earlier_fingerprint(paths[1])
    marks = [fingerprint(path) for path in paths]
    assert marks[0] != marks[1]
    assert marks[0][:8] != marks[1][:8]  # by which results without names are called
    assert not same_slide(*marks)
    # A verdict that was given under the fingerprint of before still counts.
    assert same_slide(earlier_fingerprint(paths[0]), marks[0])


def test_uncompressed_zarr_slides_are_two(tmp_path: Path) -> None:
    one, other = (write_zarr(tmp_path / f"{left}.zarr", on_glass(left)) for left in (256, 1024))
    assert fingerprint(one) != fingerprint(other)
    copy = Path(shutil.copytree(one, tmp_path / "copy.zarr"))
    assert fingerprint(copy) == fingerprint(one)
    chunk = copy / "0" / "5.4.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with Slide(copy) as slide:
        assert slide.fingerprint() != fingerprint(one)
    chunk.unlink()
    assert fingerprint(copy) != fingerprint(one)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_the_directories_count(tmp_path: Path, bigtiff: bool) -> None:
    """A byte in the table of where the tiles lie makes another slide, also where no block is read."""
    path = write_pyramid(tmp_path / "a.tif", smooth_pixels(512, 512), [(512, 512)], bigtiff=bigtiff)
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].aspage().tags["TileByteCounts"]
        entry, n_bytes = tag.offset, tag.valuebytecount
        table = path.read_bytes()[tag.valueoffset : tag.valueoffset + n_bytes]
    # The table goes between two blocks of a file of 20 MiB; its entry in the directory leads there.
    data = bytearray(path.read_bytes().ljust(20 * MIB, b"\0"))
    at = 10 * MIB + 12345
    data[at : at + n_bytes] = table
    pointer = slice(entry + 12, entry + 20) if bigtiff else slice(entry + 8, entry + 12)
    data[pointer] = at.to_bytes(pointer.stop - pointer.start, "little")

    def marks(magic: bytes) -> set[str]:
        found = set()
        for flipped in (0, 1):
            changed = bytearray(data)
            changed[: len(magic)] = magic
            changed[at] ^= flipped
            path.write_bytes(changed)
            found.add(fingerprint_of([path]))
        return found

    assert len(marks(b"")) == 2
    assert len(marks(b"no tiff")) == 1  # what isn't read can't be told


def test_every_part_is_looked_into(tmp_path: Path) -> None:
    parts = [tmp_path / f"Data{number}.dat" for number in range(5)]
    for number, part in enumerate(parts):
        part.write_bytes(bytes([number]) * (3 * MIB))
    before = fingerprint_of(parts)
    assert fingerprint_of(parts[::-1]) == before
    for part in parts:
        whole = part.read_bytes()
        part.write_bytes(whole[: MIB + MIB // 2] + b"\xff" * MIB + whole[2 * MIB + MIB // 2 :])
        assert fingerprint_of(parts) != before
        part.write_bytes(whole)
    renamed = [part.rename(part.with_name(f"x{number}.dat")) for number, part in enumerate(parts)]
    assert fingerprint_of(renamed) == before


@pytest.mark.parametrize("start", [
    b"II*\0" + b"\xff\xff\xff\x7f",
    b"II*\0\x08\0\0\0" + b"\xff\xff" * 9,
    b"II+\0\x08\0\0\0" + b"\xff" * 40,
    b"MM\0*\0\0\0\x08\0\0\0\0\0\x08",
])  # fmt: skip
def test_damaged_directories_and_loops_end(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(start + bytes(3 * MIB))
    assert len(fingerprint_of([path])) == 64


def test_the_cost_is_bounded(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """64 GB (holes) take no longer than a small file; 300 parts neither."""
    large = tmp_path / "large.tif"
    with large.open("wb") as file:
        file.truncate(64 * 2**30)
    parts = [tmp_path / f"{number}.dat" for number in range(300)]
    for part in parts:
        with part.open("wb") as file:
            file.truncate(200 * MIB)
    for name, files in (("one", [large]), ("many", parts)):
        fingerprint_of(files)
        started = time.perf_counter()
        fingerprint_of(files)
        took = time.perf_counter() - started
        record_property(name, took)
        assert took < 2


def test_a_result_is_found_by_the_pixel_size_in_use(tmp_path: Path) -> None:
    """Of a slide that isn't opened: its own where none is given."""
    path = tmp_path / "a.svs"
    path.write_bytes(b"x")
    cache = ResultCache(tmp_path / "cache")
    cache.remember_slide(SeenSlide(path, (0.5, 0.25)), "1" * 64)
    asked: list[tuple[float, float]] = []

    def key_of(mpp_xy: tuple[float, float]) -> str:
        asked.append(mpp_xy)
        return "k"

    assert cache.known_summary(path, "b" * 64, key_of, mpp=None) is None
    assert cache.known_summary(path, "b" * 64, key_of, mpp=0.3) is None
    assert asked == [(0.5, 0.25), (0.3, 0.3)]
    cache.remember_slide(SeenSlide(path, None), "1" * 64)  # the program has learnt to doubt it
    assert cache.known_summary(path, "b" * 64, key_of, mpp=None) is None
    assert len(asked) == 2


def test_what_earlier_versions_remembered_is_not_believed(tmp_path: Path) -> None:
    """It is of the earlier kind of fingerprint, by which two slides can be one."""
    path = tmp_path / "a.svs"
    path.write_bytes(b"x")
    cache = ResultCache(tmp_path / "cache")
    cache.remember_slide(SeenSlide(path), "1" * 64)
    (seen,) = [file for file in (cache.root / "seen").rglob("*") if file.is_file()]
    seen.write_text("1" * 64 + "\n")
    assert cache.known_slide(path) is None

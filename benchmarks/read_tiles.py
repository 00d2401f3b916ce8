"""Tiles a second of each slide reader, against the rate of the JPEG codec alone.

    python -m benchmarks.read_tiles [--turns 3] [--threads 2]

All read the same 256 px tiles at the low resolution (level 1) of one generated slide (see `slides.py`), each turn
with a new handle and empty caches, the readers taking turns so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.slides import DOWNSAMPLES, SIDE_PX, TILE_PX, bench_slide
from napari_lrmil.slide import Slide, TileGrid, TileSpec, iter_tiles, make_tile_grid, read_tile
from napari_lrmil.slide.cache import shared_cache

LEVEL = 1
_RUN = 16
Read = Callable[[int, int], NDArray[np.uint8]]
"""Reads the tile at (row, column)."""

ITER_TILES = "  through iter_tiles (batches of 32)"
SHIFTED = "  half a tile off the stored grid"
OPENSLIDE_SHIFTED = SHIFTED + " "
Reader = Callable[[Path], AbstractContextManager[Read]]


@contextmanager
def plain_openslide(path: Path, shift: float = 0.0) -> Iterator[Read]:
    """Read as a script does: read_region, drop alpha."""
    with openslide.OpenSlide(path) as slide:
        step = TILE_PX * DOWNSAMPLES[LEVEL]

        def read(row: int, col: int) -> NDArray[np.uint8]:
            location = (int((col + shift) * step), int((row + shift) * step))
            return np.asarray(slide.read_region(location, LEVEL, (TILE_PX, TILE_PX)).convert("RGB"))

        yield read


@contextmanager
def tiffslide(path: Path) -> Iterator[Read]:
    """Read by tiffslide's read_region, as an array."""
    import tiffslide as library

    with library.TiffSlide(path) as slide:
        step = TILE_PX * DOWNSAMPLES[LEVEL]
        yield lambda row, col: slide.read_region(
            (col * step, row * step), LEVEL, (TILE_PX, TILE_PX), as_array=True
        )


@contextmanager
def fastslide(path: Path) -> Iterator[Read]:
    """Read by fastslide's read_region; its locations are in pixels of the level."""
    import fastslide as library

    with library.FastSlide.from_file_path(str(path)) as slide:
        yield lambda row, col: np.asarray(
            slide.read_region((col * TILE_PX, row * TILE_PX), LEVEL, (TILE_PX, TILE_PX)).numpy()
        )


def _grid_of(slide: Slide) -> TileGrid:
    spec = TileSpec(TILE_PX, slide.level_mpps[LEVEL])
    return make_tile_grid(bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=spec)


@contextmanager
def _ours(path: Path, backend: str, shift: float) -> Iterator[Read]:
    shared_cache().clear()
    with Slide(path, backend=backend) as slide:
        grid = _grid_of(slide)
        yield lambda row, col: read_tile(slide, grid, LEVEL, row + shift, col + shift)
    shared_cache().clear()


@contextmanager
def codec_alone(path: Path) -> Iterator[Read]:
    """Decode bytes that lie in memory by imagecodecs and drop the pixels at once: the limit."""
    with tifffile.TiffFile(path) as tif:
        tiled = [page.aspage() for page in tif.pages if page.aspage().is_tiled]
        page = tiled[LEVEL]
        across = -(-page.imagewidth // TILE_PX)
        stored = []
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            tif.filehandle.seek(offset)
            stored.append(tif.filehandle.read(count))
    yield lambda row, col: imagecodecs.jpeg8_decode(stored[row * across + col])


@contextmanager
def codec_kept(path: Path) -> Iterator[Read]:
    """Decode and keep the pixels, as every cache does: decoding into memory that isn't warm takes longer."""
    kept = []

    with codec_alone(path) as decode:

        def read(row: int, col: int) -> NDArray[np.uint8]:
            kept.append(decode(row, col))
            return kept[-1]

        yield read


def contestants() -> dict[str, Reader]:
    """Return name -> reader; peers that aren't installed are left out."""
    found: dict[str, Reader] = {
        "openslide-python read_region": plain_openslide,
        OPENSLIDE_SHIFTED: lambda path: plain_openslide(path, 0.5),
    }
    for name, peer in (("tiffslide", tiffslide), ("fastslide", fastslide)):
        if importlib.util.find_spec(name):
            found[f"{name} read_region"] = peer
    found["Slide, backend openslide"] = lambda path: _ours(path, "openslide", 0.0)
    found["Slide, backend tiff"] = lambda path: _ours(path, "tiff", 0.0)
    found[SHIFTED] = lambda path: _ours(path, "tiff", 0.5)
    found["imagecodecs, its tiles kept"] = codec_kept
    found["imagecodecs alone (the limit)"] = codec_alone
    return found


def places() -> list[tuple[int, int]]:
    """Return the level's tiles row by row; the last row and column are left to the reader that starts half a tile in."""
    side = SIDE_PX // DOWNSAMPLES[LEVEL] // TILE_PX
    return [(row, col) for row in range(side - 1) for col in range(side - 1)]


def rate_of(reader: Reader, path: Path, threads: int) -> float:
    """Return tiles a second of one turn; opening isn't counted."""
    wanted = places()
    with reader(path) as read:

        def work(number: int) -> None:
            # Runs of 16 tiles in turn, as `iter_tiles` shares out its batches.
            for start in range(number * _RUN, len(wanted), threads * _RUN):
                for row, col in wanted[start : start + _RUN]:
                    read(row, col)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return len(wanted) / (time.perf_counter() - start)


def rate_of_iter_tiles(path: Path, threads: int) -> float:
    """Return tiles a second the way inference reads: batches of 32 tiles in order."""
    shared_cache().clear()
    wanted = places()
    with Slide(path) as slide:
        grid = _grid_of(slide)
        start = time.perf_counter()
        n_read = sum(
            len(batch) for batch in iter_tiles(slide, grid, LEVEL, wanted, batch_size=32, threads=threads)
        )
        return n_read / (time.perf_counter() - start)


def furthest_from_openslide(reader: Reader, path: Path) -> int:
    """Return the largest difference in grey levels over a few tiles: fast but wrong isn't fast."""
    worst = 0
    with plain_openslide(path) as theirs, reader(path) as ours:
        for row, col in ((0, 0), (7, 21), (20, 20), (30, 12)):
            difference = ours(row, col)[..., :3].astype(int) - theirs(row, col).astype(int)
            worst = max(worst, int(np.abs(difference).max()))
    return worst


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by how much a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the generated slide is kept")
    options = parser.parse_args(arguments)
    path = bench_slide(options.folder)
    readers = contestants()
    rates: dict[str, list[float]] = defaultdict(list)
    aligned = {name: reader for name, reader in readers.items() if name.strip() != SHIFTED.strip()}
    off = {name: furthest_from_openslide(reader, path) for name, reader in aligned.items()}
    for _ in range(options.turns):
        for name, reader in readers.items():
            rates[name].append(rate_of(reader, path, options.threads))
            if name == SHIFTED:
                rates[ITER_TILES].append(rate_of_iter_tiles(path, options.threads))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base, limit = medians["openslide-python read_region"], medians["imagecodecs alone (the limit)"]
    ours = medians["Slide, backend tiff"]
    table = Table(
        "reader",
        *("tiles/s", "range", "x OpenSlide", "of the limit", "off by"),
        title=f"{TILE_PX} px tiles at level {LEVEL}, {options.threads} threads, {os.cpu_count()} cores, "
        f"median of {options.turns} turns",
        caption="off by: furthest from OpenSlide's pixels, in grey levels of 256.\n"
        + _target_text(ours / base, ours / limit),
        caption_justify="left",
    )
    for name, rate in medians.items():
        spread = f"{min(rates[name]):,.0f}-{max(rates[name]):,.0f}"
        table.add_row(
            name, f"{rate:,.0f}", spread, f"{rate / base:.2f}", f"{rate / limit:.0%}", str(off.get(name, ""))
        )
    Console(width=110).print(table)
    return 0


def _target_text(times_openslide: float, share_of_limit: float) -> str:
    lines = [
        "Where the rest goes: pixels that are kept land in memory that isn't warm ('its tiles kept');",
        "off the stored grid, each tile is decoded once, but four are pasted into one.",
    ]
    for what, reached, wanted in (
        ("times OpenSlide", times_openslide, 3.0),
        ("of the codec's rate", share_of_limit, 0.5),
    ):
        said = "met" if reached >= wanted else f"missed by {1 - reached / wanted:.0%}"
        lines.append(f"target: at least {wanted:g} {what}: {reached:.2f}, {said}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""python -m benchmarks.same_label: one slide, one bundle, every way to classify it. By how much do results differ?

A slide is written as a lossless TIFF and as a lossless OME-Zarr of the same pixels. It is classified with 1, 2 and 4 threads
(of decoding, and of torch), in batches of 1, 7, 32 and 100 tiles, through OpenSlide, the TIFF and the OME-Zarr backend, as the
window does it, by `lrmil predict`, on a dask cluster on this computer, and out of the cache. CPU only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.formats import stained, unplanted, write_lossless_tiff, write_ome_zarr
from napari_lrmil.cache import ResultCache, ResultKeys
from napari_lrmil.heatmap import ATTENTION, channel_values
from napari_lrmil.model.bundle import ModelBundle, load_bundle, resolve_bundle
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide

SIDE_PX = 2048
CPU = torch.device("cpu")


class Difference(NamedTuple):
    """Of a result from the first one, of 2 threads and batches of 32."""

    way: str
    same_label: bool
    probability: float
    """Largest difference of a class's probability."""
    attention: float
    """Largest difference of a tile's attention score, over the mean score."""


def ways(folder: Path, bundle_name: str, *, side_px: int = SIDE_PX) -> Iterator[tuple[str, SlidePrediction]]:
    """Yield the result of each way."""
    pixels = stained(side_px, 1)
    tiff = write_lossless_tiff(folder, "slide", pixels, unplanted)
    zarr = write_ome_zarr(folder, "slide", pixels, unplanted)
    bundle = load_bundle(resolve_bundle(bundle_name))
    before = torch.get_num_threads()
    try:
        yield "threads 2, batches of 32", _predicted(tiff, bundle)
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for batch_size in (1, 7, 32, 100):
                result = _predicted(tiff, bundle, threads=threads, batch_size=batch_size)
                yield f"threads {threads}, batches of {batch_size}", result
    finally:
        torch.set_num_threads(before)
    yield "OpenSlide backend", _predicted(tiff, bundle, backend="openslide")
    yield "TIFF backend", _predicted(tiff, bundle, backend="tiff")
    yield "OME-Zarr backend", _predicted(zarr, bundle)
    yield "as the window does it", _in_window(tiff, bundle)
    for name, address in (("lrmil predict", None), ("lrmil predict --cluster", _cluster)):
        yield name, _by_command(tiff, bundle_name, folder / name.replace(" ", ""), address)
    cache, first = ResultCache(folder / "cache"), _predicted(tiff, bundle)
    key = ResultKeys(bundle.info)(first.mpp_xy)
    cache.put(first, key)
    kept = cache.get(first.slide_fingerprint, first.bundle_sha256, key)
    assert kept is not None
    yield "out of the cache", kept


def _predicted(
    path: Path, bundle: ModelBundle, *, threads: int = 2, batch_size: int = 32, backend: str = "auto"
) -> SlidePrediction:
    with Slide(path, backend=backend) as slide:
        return run_to_end(predict_slide(slide, bundle, device=CPU, threads=threads, batch_size=batch_size))


def _in_window(path: Path, bundle: ModelBundle) -> SlidePrediction:
    from napari_lrmil._viewer.models import classification

    with Slide(path) as slide:
        return run_to_end(classification(slide, bundle, "cpu"))


def _cluster(run: Callable[[str], None]) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        run(str(cluster.scheduler_address))


def _by_command(
    path: Path, bundle: str, folder: Path, cluster: Callable[[Callable[[str], None]], None] | None
) -> SlidePrediction:
    from typer.testing import CliRunner

    from napari_lrmil.cli.main import app
    from napari_lrmil.export.result import read_prediction

    words = ["predict", str(path), "-b", bundle, "-o", str(folder), "--cache-dir", str(folder / "cache")]

    def run(*more: str) -> None:
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 0, done.output

    if cluster is None:
        run("--device", "cpu")
    else:
        cluster(lambda address: run("--cluster", address))
    return read_prediction(folder / "slide.json")


def differences(folder: Path, bundle: str, *, side_px: int = SIDE_PX) -> list[Difference]:
    """Compare each way with the first."""
    found: list[Difference] = []
    first: SlidePrediction | None = None
    for way, result in ways(folder, bundle, side_px=side_px):
        first = first or result
        assert np.array_equal(result.tiles.rows, first.tiles.rows)
        assert np.array_equal(result.tiles.cols, first.tiles.cols)
        found.append(
            Difference(
                way,
                result.called == first.called and result.prediction_set == first.prediction_set,
                float(np.abs(result.class_probabilities - first.class_probabilities).max()),
                float(np.abs(channel_values(result, ATTENTION) - channel_values(first, ATTENTION)).max()),
            )
        )
    return found


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", default="demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for each in differences(Path(folder), options.bundle):
            same = "same label" if each.same_label else "ANOTHER LABEL"
            print(f"{each.way:28} {same}  probability {each.probability:.1e}  attention {each.attention:.1e}")


if __name__ == "__main__":
    main()

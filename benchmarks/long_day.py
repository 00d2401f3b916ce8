"""A long day in one process: many slides one after the other, and a bag of very many tiles. What grows?

    xvfb-run -a -s "-screen 0 1920x1200x24" python -m benchmarks.long_day window [--slides 200]
    python -m benchmarks.long_day batch [--slides 400]
    python -m benchmarks.long_day bag [--tiles 6000 60000]

`window`: in a real window with all docks, each slide is opened, panned, classified and closed. `batch`: the same slides
through what `lrmil predict` calls, with cache, JSON and CSV. Every slide has pixels of its own; formats take turns. Memory
is fitted from the 20th slide on. `bag`: a slide of about as many LR tiles as asked for goes all the way from the file to
the result's files, each size in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from benchmarks.formats import FORMATS, MPP, WITHOUT_MPP, stained, unplanted

SIDE_PX, WARM_SIDE_PX = 1536, 3072
WARM_SLIDES = 20
"""The first slides are larger: caches that are bounded in bytes are full when the counting begins."""
FLAT_MB = 0.3
PANS = 4


@dataclass
class Held:
    """What the process holds after a slide was closed."""

    rss_mb: float
    uss_mb: float
    own_mb: float
    """Memory that holds no file: what the process itself asked for. The others hold libraries, whose pages come and go."""
    tile_cache_mb: float
    files: int
    threads: int
    children: int
    slides: int
    """`Slide` objects that Python still knows after a collection."""
    layers: int = 0
    qt_objects: int = 0


class Day(NamedTuple):
    """What was held after each slide, and how long the whole took."""

    held: list[Held]
    seconds: float
    failed: int


class Made(NamedTuple):
    """A slide of the day."""

    path: Path
    mpp: float | None


@contextmanager
def day_of_slides(n_slides: int) -> Iterator[list[Made]]:
    """Make slides of all formats, each with pixels of its own, in a folder that goes at the end."""
    with tempfile.TemporaryDirectory(prefix="lrmil-day-") as folder:
        made = []
        for number in range(n_slides):
            name = list(FORMATS)[number % len(FORMATS)]
            home = Path(folder) / name
            home.mkdir(exist_ok=True)
            side_px = WARM_SIDE_PX if number < WARM_SLIDES else SIDE_PX
            path = FORMATS[name](home, f"s{number:03d}", stained(side_px, number), unplanted)
            made.append(Made(path, MPP if name in WITHOUT_MPP else None))
        yield made


def held_now(process: psutil.Process) -> Held:
    """Measure, after a collection of garbage."""
    from napari_lrmil.slide import Slide
    from napari_lrmil.slide.cache import shared_cache

    gc.collect()
    memory = process.memory_full_info()
    return Held(
        memory.rss / 1e6,
        memory.uss / 1e6,
        _anonymous_mb(),
        shared_cache().used_bytes / 1e6,
        process.num_fds(),
        threading.active_count(),
        len(process.children(recursive=True)),
        sum(type(each) is Slide for each in gc.get_objects()),
    )


def _anonymous_mb() -> float:
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():  # not Linux
        return float("nan")
    (line,) = [line for line in rollup.read_text().splitlines() if line.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024 / 1e6


def slope(values: Sequence[float], after: int = WARM_SLIDES) -> float:
    """Return what `values` grow by from one to the next, fitted from the `after`-th on; NaN where there are too few."""
    later = np.asarray(values[after:], np.float64)
    return float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > 1 else float("nan")


def window_day(made: Sequence[Made], bundle: str) -> Day:
    """Open, pan, classify and close each slide in one window with all docks."""
    warnings.filterwarnings("ignore", message="System theme detection")
    from napari_lrmil._viewer.models import import_models

    import_models()
    import napari
    from qtpy.QtCore import QObject
    from qtpy.QtWidgets import QApplication

    from benchmarks.window import WINDOW_XY, Watch, find_canvas
    from napari_lrmil._viewer.docks.annotations.widget import AnnotationsWidget
    from napari_lrmil._viewer.docks.docked import dock_widget
    from napari_lrmil._viewer.docks.export.widget import ExportWidget
    from napari_lrmil._viewer.docks.overview.widget import OverviewWidget
    from napari_lrmil._viewer.docks.tiles.widget import TilesWidget
    from napari_lrmil._viewer.docks.worklist.widget import worklist_dock
    from napari_lrmil._viewer.layers import HEATMAP_KEY, SLIDE_KEY
    from napari_lrmil._viewer.window import State

    process, rng = psutil.Process(), random.Random(0)
    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW_XY)
    controller = dock_widget(viewer).controller
    worklist_dock(viewer)
    for dock in (OverviewWidget, TilesWidget, ExportWidget, AnnotationsWidget):
        viewer.window.add_dock_widget(dock(viewer), area="left", tabify=True)
    window = dock_widget(viewer).window()
    canvas = find_canvas()
    watch = Watch(canvas)

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not condition():
            QApplication.processEvents()
            time.sleep(0.002)
            if time.monotonic() > end:
                raise SystemExit(f"the window didn't get there: {controller.error}")

    wait(lambda: controller.state is not State.LOADING_BUNDLE)
    controller.load_bundle(bundle)
    wait(lambda: controller.state is not State.LOADING_BUNDLE)

    def shown(key: str) -> bool:
        slide = controller.slide
        return any(layer.metadata.get(key) is slide and layer.visible for layer in viewer.layers)

    def look_at(each: Made) -> None:
        watch.run(
            lambda: controller.open_slide(each.path, mpp=each.mpp),
            {"slide": lambda: controller.slide is not None and shown(SLIDE_KEY)},
            quiet_s=0.05,
        )
        if controller.slide is None:
            raise SystemExit(controller.error)
        width, height = controller.slide.level_dimensions_xy[0]
        for _ in range(PANS):
            viewer.scene.camera.zoom = rng.choice((0.5, 1.0, 2.0, 4.0))
            place = (rng.random() * height * MPP, rng.random() * width * MPP)
            watch.run(partial(setattr, viewer.scene.camera, "center", place), {}, quiet_s=0.05)
        controller.classify()
        wait(lambda: controller.result is not None or controller.state is State.FAILED)
        watch.run(canvas.update, {"heatmap": lambda: shown(HEATMAP_KEY)}, quiet_s=0.05)
        slide = controller.slide
        for layer in [each for each in viewer.layers if each.metadata.get(SLIDE_KEY) is slide]:
            viewer.layers.remove(layer)
        wait(lambda: controller.slide is None and len(viewer.layers) == 0)
        watch.run(lambda: None, {}, quiet_s=0.05)

    held, failed, started = [], 0, time.monotonic()
    for number, each in enumerate(made):
        look_at(each)
        failed += bool(controller.error)
        now = held_now(process)
        now.layers = len(viewer.layers)
        now.qt_objects = len(window.findChildren(QObject))
        held.append(now)
        if number % 20 == 19:
            print(f"… {number + 1}: {now}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    viewer.close()
    return Day(held, seconds, failed)


def batch_day(made: Sequence[Made], bundle_path: str) -> Day:
    """Classify each slide as `lrmil predict` does, with files of each result."""
    from napari_lrmil.batch.events import Kind
    from napari_lrmil.batch.local import classify
    from napari_lrmil.cache import ResultCache
    from napari_lrmil.export.result import write_prediction
    from napari_lrmil.model.bundle import load_bundle, resolve_bundle

    bundle = load_bundle(resolve_bundle(bundle_path))
    process, held, failed, started = psutil.Process(), [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        events = classify(made, bundle, cache=ResultCache(Path(folder) / "cache"), device=torch.device("cpu"))
        for event in events:
            if event.kind not in (Kind.FINISHED, Kind.FAILED):
                continue
            if event.prediction is None:
                failed += 1
                print(f"… {event.path.name}: {event.error}", file=sys.stderr, flush=True)
            else:
                write_prediction(event.prediction, Path(folder) / "out")
            held.append(held_now(process))
            if len(held) % 20 == 0:
                print(f"… {len(held)}: {held[-1]}", file=sys.stderr, flush=True)
    return Day(held, time.monotonic() - started, failed)


# ---- one slide of many tiles


BAG_MPP, BAG_TILE_PX, BAG_DIM = 1.0, 32, 768
_TISSUE_SHARE = 0.66
"""Of the tiles of a `bench_slide`."""


def make_fast_bundle(target: Path) -> None:
    """Write a bundle of random weights: one narrow block, but embeddings as wide as a foundation model's."""
    from benchmarks.random_bundle import random_bundle_info
    from napari_lrmil.model.bundle import save_bundle
    from napari_lrmil.model.encoder import Encoder, EncoderSpec
    from napari_lrmil.model.mil import ABMILSpec, build_mil

    torch.manual_seed(0)
    options = {
        "patch_size": 16,
        "img_size": 32,
        "embed_dim": BAG_DIM,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 0.25,
    }
    spec = EncoderSpec(architecture="vit_tiny_patch16_224", options=options)
    encoder, mil_spec = Encoder(spec), ABMILSpec(embed_dim=BAG_DIM, n_classes=2)
    info = random_bundle_info(spec, mil_spec, token_px=encoder.token_px, tile_px=BAG_TILE_PX)
    save_bundle(target, info=info, encoder=encoder, mil=build_mil(mil_spec))


def bag(n_tiles: int, folder: Path) -> None:
    """From the file to the result's files, and the peak memory after each part of the way."""
    from benchmarks.memory import peak_bytes
    from benchmarks.slides import bench_slide
    from napari_lrmil.cache import ResultCache, ResultKeys
    from napari_lrmil.export.geojson import write_heatmap_geojson
    from napari_lrmil.export.images import write_heatmap_png, write_heatmap_zarr
    from napari_lrmil.export.result import read_prediction, write_prediction
    from napari_lrmil.export.slide_report import write_slide_report
    from napari_lrmil.heatmap import ATTENTION, channel_values
    from napari_lrmil.model.bundle import load_bundle
    from napari_lrmil.predict import predict_slide, run_to_end
    from napari_lrmil.slide import Slide

    make_fast_bundle(folder / "bundle")
    tile_l0_px = BAG_TILE_PX * 2.0 / BAG_MPP
    side_px = int((n_tiles / _TISSUE_SHARE) ** 0.5 * tile_l0_px)
    bundle, path = load_bundle(folder / "bundle"), bench_slide(folder, side_px=side_px, mpp=BAG_MPP)
    started = last = time.monotonic()

    def say_part(name: str) -> None:
        nonlocal last
        now = time.monotonic()
        print(f"  {name:34}{now - last:>8.1f} s{peak_bytes() / 1e6:>10,.0f} MB peak", flush=True)
        last = now

    print(f"{side_px:,} px at {BAG_MPP:g} µm/px, embeddings of {BAG_DIM}")
    say_part("before")
    with Slide(path) as slide:
        steps = predict_slide(slide, bundle, device=torch.device("cpu"))
        while True:
            try:
                progress = next(steps)
            except StopIteration as stop:
                prediction = stop.value
                break
            if progress.tiles_done == progress.tiles_total:
                say_part(f"{progress.tiles_total:,} tiles found, read, embedded")
        say_part("head and evidence")
        cache, key = ResultCache(folder / "cache"), ResultKeys(bundle.info)(prediction.mpp_xy)
        cache.put(prediction, key)
        assert cache.get(prediction.slide_fingerprint, prediction.bundle_sha256, key) is not None
        say_part("into the cache and back")
        json_path, _ = write_prediction(prediction, folder / "out", stem="slide")
        say_part("JSON and CSV")
        assert np.array_equal(
            channel_values(read_prediction(json_path), ATTENTION), channel_values(prediction, ATTENTION)
        )
        say_part("read back")
        write_heatmap_png(folder / "heatmap.png", prediction, slide=slide)
        write_heatmap_zarr(folder / "heatmap.zarr", prediction)
        say_part("heatmap as PNG and OME-Zarr")
        write_heatmap_geojson(folder / "heatmap.geojson", prediction, bounds_l0_xywh=slide.bounds_l0_xywh)
        say_part("heatmap as GeoJSON")
        run_to_end(
            write_slide_report(
                prediction, slide, bundle.info, html=folder / "report.html", pdf=folder / "report.pdf"
            )
        )
        say_part("report as HTML and PDF")
    print(f"  {'all':34}{time.monotonic() - started:>8.1f} s")


def say(name: str, day: Day) -> bool:
    """Print what grew; return whether all is flat."""
    held = day.held
    first, last = held[min(WARM_SLIDES, len(held)) - 1], held[-1]
    print(f"{name}: {len(held)} slides in {day.seconds:.0f} s, {day.failed} failed")
    print(f"  {'':22}{f'after {WARM_SLIDES}':>10}{'at the end':>12}{'a slide':>10}")
    for field in asdict(last):
        values = [float(getattr(each, field)) for each in held]
        grows = slope(values)
        print(f"  {field:22}{getattr(first, field):>10.5g}{getattr(last, field):>12.5g}{grows:>+10.3f}")
    beside = slope([each.own_mb - each.tile_cache_mb for each in held])
    print(f"  {'own_mb without tile cache':44}{beside:>+10.3f}")
    counted = ("files", "threads", "children", "slides", "layers", "qt_objects")
    steady = all(abs(slope([float(getattr(each, field)) for each in held])) < 0.02 for field in counted)
    return steady and beside < FLAT_MB and day.failed == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("window", "batch", "bag"))
    parser.add_argument("--tiles", type=int, nargs="+", default=[6_000, 60_000], help="of `bag`")
    parser.add_argument("--slides", type=int)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all values here, too")
    options = parser.parse_args(arguments)
    os.environ["NAPARI_CONFIG"] = ""  # default settings of napari, and none are kept
    if options.what == "bag":
        if len(options.tiles) > 1:
            for n_tiles in options.tiles:
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.long_day", "bag", "--tiles", str(n_tiles)], check=True
                )
            return 0
        with tempfile.TemporaryDirectory(prefix="lrmil-bag-") as folder:
            bag(options.tiles[0], Path(folder))
        return 0
    n_slides = options.slides or {"window": 200, "batch": 400}[options.what]
    with day_of_slides(n_slides) as made, tempfile.TemporaryDirectory() as kept:
        os.environ["LRMIL_CACHE_DIR"] = os.environ["LRMIL_DATA_DIR"] = kept
        day = {"window": window_day, "batch": batch_day}[options.what](made, options.bundle)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in day.held]), encoding="utf-8")
    return 0 if say(options.what, day) else 1


if __name__ == "__main__":
    sys.exit(main())

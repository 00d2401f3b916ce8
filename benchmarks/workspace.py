"""How quickly the workspace answers: slide after slide of a worklist, cached results, a batch beside it, memory.

    xvfb-run -a -s "-screen 0 1920x1200x24" python -m benchmarks.workspace [--slides 50] [--json OUT]

One real window, in one run. The slides are 50 names of one generated 40,960 px slide (see `slides.py`), so each opens,
draws and closes as a real one does, from the page cache. The batch classifies further slides of 16,384 px meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.memory import peak_bytes
from benchmarks.options import parse_with_display, window_parser
from benchmarks.slides import bench_slide
from benchmarks.window import WINDOW_XY, Took, Watch, find_canvas

BATCH_SIDE_PX, N_BATCH = 16_384, 6
N_LISTED, N_MOVES = 1000, 30
WARM_SLIDES = 10
SLIDE_S, CACHED_S, BLOCK_S, FLAT_MB = 1.0, 0.5, 0.1, 1.0


@dataclass
class Results:
    """Of the whole run: seconds, and MB after each slide."""

    fill: float = 0.0
    select: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    step_blocks: list[float] = field(default_factory=list)
    step_mb: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    cached_after_slide: list[float] = field(default_factory=list)
    cached_mb: list[float] = field(default_factory=list)
    step_tiles_mb: list[float] = field(default_factory=list)
    cached_tiles_mb: list[float] = field(default_factory=list)
    batch_idle_blocks: list[float] = field(default_factory=list)
    batch_step: list[float] = field(default_factory=list)
    batch_step_blocks: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    load: tuple[float, ...] = ()


@contextmanager
def slide_folders(folder: Path, n_slides: int, side_px: int) -> Iterator[tuple[Path, Path]]:
    """Make a folder of many slides and one of `n_slides` with those of the batch: links to files that exist once."""
    slide, small = bench_slide(folder, side_px=side_px), bench_slide(folder, side_px=BATCH_SIDE_PX)
    with tempfile.TemporaryDirectory(dir=slide.parent) as root:
        many, few = Path(root) / "many", Path(root) / "few"
        many.mkdir()
        few.mkdir()
        for number in range(N_LISTED):
            os.link(small, many / f"s{number:04d}.svs")
        for number in range(n_slides):
            os.link(slide, few / f"s{number:02d}.svs")
        for number in range(N_BATCH):
            copy = few / f"t{number}.svs"
            shutil.copyfile(small, copy)
            with copy.open("ab") as file:
                file.write(bytes([number]))  # another slide by its fingerprint
        slide.read_bytes()  # into the page cache
        yield many, few


def run(many: Path, few: Path, n_slides: int, bundle: str) -> Results:
    """Measure everything in one window."""
    warnings.filterwarnings("ignore", message="System theme detection")
    from napari_lrmil._viewer.models import import_models

    import_models()
    import napari
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication

    from napari_lrmil._viewer.docks.docked import dock_widget
    from napari_lrmil._viewer.docks.worklist.widget import worklist_dock
    from napari_lrmil._viewer.layers import HEATMAP_KEY, SLIDE_KEY
    from napari_lrmil._viewer.window import State
    from napari_lrmil.slide.cache import shared_cache

    results = Results(load=os.getloadavg())
    process = psutil.Process()
    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW_XY)
    main, worklist = dock_widget(viewer), worklist_dock(viewer)
    controller, presenter, table = main.controller, worklist.presenter, worklist.table
    window = main.window()
    canvas = find_canvas()
    watch, list_watch = Watch(canvas), Watch(table.viewport())
    watch.run(canvas.update, {}, least_s=1.0)

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 600
        while not condition():
            QApplication.processEvents()
            time.sleep(0.005)
            if time.monotonic() > end:
                raise SystemExit("the window didn't get there")

    def list_of(folder: Path, rows: int) -> float:
        return list_watch.run(
            lambda: presenter.open_list(folder), {"rows": lambda: worklist.model.rowCount() == rows}
        ).shown["rows"]

    def shown(key: str) -> bool:
        slide = controller.slide
        return any(layer.metadata.get(key) is slide and layer.visible for layer in viewer.layers)

    def step(key: tuple[object, ...], *, result: bool = False) -> Took:
        before = controller.slide
        until = {"slide": lambda: controller.slide is not before and shown(SLIDE_KEY)}
        if result:
            until["result"] = lambda: (
                controller.slide is not before and controller.result is not None and shown(HEATMAP_KEY)
            )
        return watch.run(lambda: QTest.keyClick(window, *key), until)

    def is_chosen(row: int) -> bool:
        return bool(table.currentIndex().row() == row)

    def memory_mb() -> float:
        return float(process.memory_info().rss) / 1e6

    def say(text: str) -> None:
        print(f"… {text}", file=sys.stderr, flush=True)

    next_key, previous_key = (Qt.Key.Key_N,), (Qt.Key.Key_N, Qt.KeyboardModifier.ShiftModifier)

    wait(lambda: controller.state is not State.LOADING_BUNDLE)
    controller.load_bundle(bundle)
    wait(lambda: controller.state is not State.LOADING_BUNDLE)

    say(f"{N_LISTED:,} rows")
    results.fill = list_of(many, N_LISTED)
    table.setFocus()
    table.selectRow(0)
    for at in range(1, N_MOVES):
        took = list_watch.run(
            lambda: QTest.keyClick(table, Qt.Key.Key_Down),
            {"row": partial(is_chosen, at)},
            quiet_s=0.05,
        )
        results.select.append(took.shown["row"])

    say("slide after slide")
    list_of(few, n_slides + N_BATCH)
    canvas.setFocus()
    for _ in range(n_slides):
        took = step(next_key)
        results.step.append(took.shown["slide"])
        results.step_blocks.append(max(took.blocks))
        results.step_mb.append(memory_mb())
        results.step_tiles_mb.append(shared_cache().used_bytes / 1e6)

    say("one slide classified")
    controller.classify()
    wait(lambda: controller.result is not None)
    QTest.qWait(1000)
    list_of(few, n_slides + N_BATCH)  # the others are the same by their fingerprint
    say("back, with label and heatmap")
    for _ in range(n_slides - 1):
        took = step(previous_key, result=True)
        results.cached.append(took.shown["result"])
        results.cached_after_slide.append(took.shown["result"] - took.shown["slide"])
        results.cached_mb.append(memory_mb())
        results.cached_tiles_mb.append(shared_cache().used_bytes / 1e6)

    say("with a batch beside")
    presenter.classify_all()
    wait(lambda: presenter.panel().batch.running)
    results.batch_idle_blocks = watch.run(lambda: None, {}, least_s=3.0).blocks
    while presenter.panel().batch.running and len(results.batch_step) < n_slides - 1:
        took = step(next_key)
        if presenter.panel().batch.running:
            results.batch_step.append(took.shown["slide"])
            results.batch_step_blocks.append(max(took.blocks))
            results.batch_idle_blocks += watch.run(lambda: None, {}, least_s=0.5).blocks
    presenter.cancel()
    results.peak_mb = peak_bytes() / 1e6
    viewer.close()
    return results


def slope_mb(values: Sequence[float]) -> float | None:
    """Return MB a slide from the tenth on; None where there are too few."""
    later = np.asarray(values[WARM_SLIDES - 1 :])
    return float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > WARM_SLIDES else None


def table_of(results: Results) -> Table:
    """Return each value beside its target as a table."""
    table = Table("measure", "median", "95 %", "longest", "target", "", title_justify="left")

    def times(
        name: str, values: Sequence[float], target_s: float | None, *, of_longest: bool = False
    ) -> None:
        if not values:
            table.add_row(name, "–", "–", "–", "", "not measured")
            return
        median, most, high = statistics.median(values), max(values), float(np.quantile(values, 0.95))
        judged = most if of_longest else median
        said = "" if target_s is None else "met" if judged < target_s else "missed"
        wanted = "" if target_s is None else f"{'none over' if of_longest else '<'} {target_s * 1e3:.0f} ms"
        table.add_row(name, *(f"{value * 1e3:,.0f} ms" for value in (median, high, most)), wanted, said)

    times("next slide by key: coarse view painted", results.step, SLIDE_S)
    times("  event loop stands still, a change", results.step_blocks, None)
    times("cached label and heatmap, from the key on", results.cached, None)
    times("  from the slide's first view on", results.cached_after_slide, CACHED_S)
    times("batch beside: event loop, nothing touched", results.batch_idle_blocks, BLOCK_S, of_longest=True)
    times("batch beside: next slide painted", results.batch_step, SLIDE_S)
    times("  event loop stands still, a change", results.batch_step_blocks, None)
    times(f"list {N_LISTED:,} slides: rows painted", [results.fill], SLIDE_S)
    times(f"  choose the next of {N_LISTED:,} rows", results.select, BLOCK_S)
    table.add_section()
    for name, values, tiles in (
        ("opened", results.step_mb, results.step_tiles_mb),
        ("with heatmap", results.cached_mb, results.cached_tiles_mb),
    ):
        beside = slope_mb([all_mb - tiles_mb for all_mb, tiles_mb in zip(values, tiles, strict=True)])
        every = slope_mb(values)
        table.add_row(
            f"memory, slides {name}: {values[0]:,.0f} MB after the first, {values[-1]:,.0f} after {len(values)}",
            "–" if every is None else f"{every:+.2f} MB",
            "a slide",
            "",
            "",
            "",
        )
        table.add_row(
            f"  without the tile cache, {tiles[-1]:,.0f} MB now and never more than 201",
            "–" if beside is None else f"{beside:+.2f} MB",
            "a slide",
            "",
            f"< {FLAT_MB:g} MB",
            "too few" if beside is None else "met" if beside < FLAT_MB else "missed",
        )
    table.add_row("peak memory", f"{results.peak_mb:,.0f} MB", "", "", "", "")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = window_parser(__doc__)
    parser.add_argument("--slides", type=int, default=50)
    parser.add_argument("--bundle", default="demo")
    options = parse_with_display(parser, arguments)
    os.environ["NAPARI_CONFIG"] = ""  # default settings of napari, and none are kept
    folder = options.folder or Path(tempfile.gettempdir()) / "lrmil-bench"
    with (
        slide_folders(folder, options.slides, options.slide_px) as (many, few),
        tempfile.TemporaryDirectory() as kept,
    ):
        os.environ["LRMIL_CACHE_DIR"] = os.environ["LRMIL_DATA_DIR"] = kept
        results = run(many, few, options.slides, options.bundle)
    if options.json is not None:
        options.json.write_text(json.dumps(vars(results), indent=1), encoding="utf-8")
    console = Console(width=150)
    loads = ", ".join(f"{value:.1f}" for value in (*results.load, os.getloadavg()[0]))
    console.print(
        f"{options.slides} slides of {options.slide_px:,} px; window {WINDOW_XY[0]} x {WINDOW_XY[1]} px; "
        f"{os.cpu_count()} cores; load average before (1, 5, 15 min) and after (1 min): {loads}"
    )
    console.print(table_of(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast napari shows a slide through our reader, through others, and from memory (the floor).

    xvfb-run -a -s "-screen 0 1920x1200x24" python -m benchmarks.viewer [--turns 3] [--json OUT]

All open the same generated slide (see `slides.py`) and make the same moves (see `moves.py`) in a window of
the same size, each in a fresh process, taking turns so that a busy moment of the machine hits all of them. What makes a
move slow: `--profile ours` prints where one contestant's moves spend their time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.options import parse_with_display, window_parser
from benchmarks.slides import bench_slide
from benchmarks.viewer.contestants import FLOOR, OURS, PEERS, PLAIN, installed, write_floor
from benchmarks.viewer.moves import DRAG, JUMP, KINDS, OUT, PAN_BETWEEN, PAN_FULL, PAN_MID

if TYPE_CHECKING:  # its process loads napari, this one needn't
    from benchmarks.viewer.turn import TurnTimes

AT_MOST_FLOOR = 1.15
AT_MOST_S = 0.25
AT_MOST_MORE_MB = 100.0

Results = dict[str, list["TurnTimes"]]
"""Contestant -> its turns."""

_CAUSES = {
    "open to first paint": "about 30 ms of imports beyond napari's own, 40 to open the file and compare the decoder with "
    "OpenSlide's on each level, 30 to read the overview, 70 of a full garbage collection that imports bring on, "
    "and 100 of dask, as the column without it shows.",
    PAN_BETWEEN: "no stored level lies between 1 and 4, so each pixel shown is the mean of four that have to be decoded; "
    "the floor has that level ready. Without dask, half of the time is the JPEG codec's; that column shows dask's part.",
    "peak memory": "the cache of decoded tiles, which is bounded, and what the libraries take.",
}
_CAUSE_OF_PANS = "dask: the column without it reads the same pixels by the same code."


@dataclass(frozen=True)
class Row:
    """One line of the table: a value a contestant, in seconds (or MB)."""

    measure: str
    detail: str
    values: dict[str, float]
    target: str = ""
    unit: str = "ms"


def run_all(names: Sequence[str], path: Path, side_px: int, turns: int) -> tuple[Results, dict[str, float]]:
    """Return the turns' results, and how far each one's picture is from plain OpenSlide's, in grey levels."""
    results: Results = {name: [] for name in names}
    pictures: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for name in names:
                out, picture = Path(folder) / f"{name}-{turn}.json", Path(folder) / f"{name}.npy"
                more = ["--picture", str(picture)] if turn == 0 else []
                _run_one(name, path, side_px, "--out", str(out), *more)
                results[name].append(json.loads(out.read_text(encoding="utf-8")))
                pictures[name] = picture
        shown = {name: np.load(file).astype(int) for name, file in pictures.items() if name != FLOOR}
    if PLAIN not in shown:
        return results, {}
    return results, {name: float(np.abs(each - shown[PLAIN]).max()) for name, each in shown.items()}


def _run_one(name: str, path: Path, side_px: int, *more: str, quiet: bool = True) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.viewer.turn", name, str(path.resolve()), str(side_px), *more],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=quiet,
        text=True,
        # Default settings of napari, and none are kept.
        env={**os.environ, "NAPARI_CONFIG": ""},
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr or ''}")


def rows_of(results: Results) -> list[Row]:
    """Return medians of all moves and turns; a longest one is the median of the turns' longest."""
    of_floor, in_time = f"≤ {AT_MOST_FLOOR}x", f"< {AT_MOST_S * 1e3:.0f} ms"

    def of_turns(key: Literal["first_paint", "peak_mb"]) -> dict[str, float]:
        return {name: statistics.median(turn[key] for turn in turns) for name, turns in results.items()}

    def pooled(kind: str, key: Literal["block", "settled"]) -> dict[str, float]:
        return {
            name: statistics.median(value for turn in turns for value in turn["moves"][kind][key])
            for name, turns in results.items()
        }

    def longest(kind: str, key: Literal["block", "settled"]) -> dict[str, float]:
        return {
            name: statistics.median(max(turn["moves"][kind][key]) for turn in turns)
            for name, turns in results.items()
        }

    rows = [Row("open to first paint", "", of_turns("first_paint"), of_floor)]
    for kind in KINDS:
        wanted = of_floor if kind in (PAN_FULL, PAN_MID, PAN_BETWEEN, DRAG) else ""
        rows.append(Row(kind, "UI blocked, median", pooled(kind, "block"), wanted))
        rows.append(Row(kind, "UI blocked, longest", longest(kind, "block"), wanted))
        rows.append(Row(kind, "settled, median", pooled(kind, "settled"), wanted))
        if kind in (OUT, JUMP):
            rows.append(Row(kind, "settled, longest", longest(kind, "settled"), in_time))
    rows.append(Row("peak memory", "", of_turns("peak_mb"), f"≤ best peer + {AT_MOST_MORE_MB:.0f}", "MB"))
    return rows


def misses(row: Row) -> Iterator[str]:
    """Yield by how much our reader misses a row's targets, a sentence each."""
    if not row.target or OURS not in row.values:
        return
    ours, floor = row.values[OURS], row.values.get(FLOOR)
    peers = {name: row.values[name] for name in PEERS if name in row.values}
    if row.measure == "peak memory":
        if peers and ours > (allowed := min(peers.values()) + AT_MOST_MORE_MB):
            yield f"{ours - allowed:.0f} MB too much"
    elif row.measure in (OUT, JUMP):
        if ours >= AT_MOST_S:
            yield f"{(ours - AT_MOST_S) * 1e3:.0f} ms too late"
    else:
        if floor is not None and ours > AT_MOST_FLOOR * floor:
            yield f"{ours / floor:.2f}x the floor, {(ours - AT_MOST_FLOOR * floor) * 1e3:.0f} ms too much"
        for name, theirs in peers.items() if row.measure != DRAG else ():
            if ours >= theirs:
                yield f"{(ours - theirs) * 1e3:.0f} ms behind {name}"


def table_of(rows: Sequence[Row], names: Sequence[str], title: str, notes: Sequence[str]) -> Table:
    """Return times in ms with their ratio to the floor as a table."""
    table = Table(
        *("measure", "", "", *names, "target", ""),
        title=title,
        caption="\n".join(notes),
        caption_justify="left",
        title_justify="left",
    )
    before = ""
    for row in rows:
        if row.measure != before:
            table.add_section()
        said = "" if not row.target else "missed" if any(misses(row)) else "met"
        first = row.measure if row.measure != before else ""
        table.add_row(first, row.detail, row.unit, *(_cell(row, name) for name in names), row.target, said)
        before = row.measure
    for column in table.columns[3:-2]:
        column.justify = "right"
    return table


def _cell(row: Row, name: str) -> str:
    value, floor = row.values[name], row.values.get(FLOOR)
    if row.unit != "ms":
        return f"{value:,.0f}"
    return f"{value * 1e3:,.0f}" if floor is None else f"{value * 1e3:,.0f}  {value / floor:.2f}x"


def notes_on(rows: Sequence[Row], names: Sequence[str], off: dict[str, float]) -> list[str]:
    """Return what stands under the table: how it was measured, and each target missed."""
    notes = [
        "Beside each time, its ratio to the floor: arrays of the shapes of our levels in memory, whose slices cost nothing;",
        "its memory says nothing. All are opened through a reader plugin, the file in the page cache. UI blocked: the longest",
        "time in a move between two turns of the event loop. Settled: until the canvas was drawn for the last time. A longest",
        "one is the median of the turns' longest. Nothing is read in most steps of a drag, so nobody can be ahead there.",
    ]
    notes += [f"Not installed, so left out: {name}." for name in PEERS if name not in installed()]
    if off:
        told = ", ".join(f"{name} {value:.0f}" for name, value in off.items() if name != PLAIN)
        notes.append(f"Furthest from plain OpenSlide's pixels on the canvas, in grey levels of 256: {told}.")
    missed = [(row, by) for row in rows for by in misses(row)]
    for row, by in missed:
        what = f"{row.measure}, {row.detail}" if row.detail else row.measure
        notes.append(f"target missed: {what}: {by}.")
    for measure in dict.fromkeys(row.measure for row, _ in missed):
        notes.append(f"cause, {measure}: {_CAUSES.get(measure, _CAUSE_OF_PANS)}")
    if not missed:
        notes.append("All targets met.")
    return notes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by how much a target is missed and why."""
    parser = window_parser(__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(installed())}")
    parser.add_argument(
        "--profile", metavar="NAME", help="profile the moves of one contestant, measure nothing"
    )
    options = parse_with_display(parser, arguments)
    path = bench_slide(options.folder, side_px=options.slide_px)
    write_floor(path)
    if options.profile:
        _run_one(options.profile, path, options.slide_px, "--profile", quiet=False)
        return 0
    names = options.only or installed()
    path.read_bytes()  # into the page cache
    results, off = run_all(names, path, options.slide_px, options.turns)
    rows = rows_of(results)
    if options.json is not None:
        options.json.write_text(json.dumps({"turns": results, "off": off}, indent=1), encoding="utf-8")
    width, height = results[names[0]][0]["canvas_xy"]
    title = (
        f"{options.slide_px:,} px JPEG pyramid, levels 1/4/16; canvas {width} x {height} px; {os.cpu_count()} cores; "
        f"medians of {options.turns} turns"
    )
    Console(width=150).print(table_of(rows, names, title, notes_on(rows, names, off)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m benchmarks.fuzz.slides --seed N --tries N: slides of every format, broken in every way.

Each is used as the program uses a slide: opened, its levels, fingerprint, overview, tissue tiles, a region of each level, its
other images. That happens in a worker process, which is started again when it dies; `Slide` has its own helper beside, as
everywhere. What a mutant is depends on the seed and its number alone, so that `--results` can be gone on with, and
`--only N` shows one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.fuzz.slide_formats import write_all
from benchmarks.fuzz.slide_mutants import break_slide, copied, family_of
from napari_lrmil.errors import LRMILError, NoTissueError, SlideError
from napari_lrmil.slide import Slide, TileSpec, find_tiles
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.picture import overview
from napari_lrmil.worklist.listing import find_slides

MOST_S, MOST_MB = 10.0, 1000.0
"""Computing time of worker and helper together, and memory of the worker beyond what it has before."""
MOST_WALL_S = 120.0
"""Then the worker is ended: nobody waits so long, however busy the machine is."""
_LARGEST_BYTES = 16 * 2**20
"""Of the slides of `--also`: each is copied for each try."""
_VERDICTS = ("pixels", "refused", "other exception", "over time", "over memory", "died")


def use(path: Path, seed: int) -> None:
    """Do with a slide what the program does.

    Raises
    ------
    SlideError
        The only one that is right, where it can't be done.
    """
    rng = random.Random(seed)
    with Slide(path) as slide:
        if not slide.has_mpp:
            slide.mpp_override = 0.5
        assert slide.metadata["levels"] == len(slide.level_dimensions_xy)
        slide.fingerprint()
        assert overview(slide, 256, max_level_px=2**27).dtype == np.uint8
        with suppress(NoTissueError):
            assert len(find_tiles(slide, TileSpec(64, 2.0), min_tissue=0.25, ratio=4))
        for level, (width, height) in enumerate(slide.level_dimensions_xy):
            scale = slide.level_downsamples[level]
            place = (int(rng.randrange(width) * scale), int(rng.randrange(height) * scale))
            pixels = slide.read_region(place, level, (256, 256))
            assert pixels.shape == (256, 256, 3)
            assert pixels.dtype == np.uint8
        for name in slide.associated_images:
            try:
                assert slide.read_associated(name).shape[2] == 3
            except SlideError:  # an error of that image
                continue
        slide.check_unchanged()


# ---- the worker


def work() -> None:
    """Use slides that are named on standard input, and say how each went."""
    me = psutil.Process()
    for line in sys.stdin:
        job = json.loads(line)
        shared_cache().clear()
        _forget_peak()
        before_mb, begin_s = _status_mb("VmRSS"), _cpu_s(me)
        found: dict[str, Any] = {"verdict": "pixels", "said": ""}
        try:
            use(Path(job["path"]), job["seed"])
        except SlideError as error:
            found = {"verdict": "refused", "said": str(error)}
        except Exception as error:  # noqa: BLE001 - to be counted
            kind = "an error of another kind: " if isinstance(error, LRMILError) else ""
            found = {
                "verdict": "other exception",
                "said": f"{kind}{type(error).__name__}: {error}",
                "where": _where(error),
            }
        found |= {"cpu_s": round(_cpu_s(me) - begin_s, 2), "mb": round(_status_mb("VmHWM") - before_mb, 1)}
        print(json.dumps(found), flush=True)


def _cpu_s(me: psutil.Process) -> float:
    """Of this process, its helper, and helpers that have ended."""
    times = me.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in me.children():
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return float(total)


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _where(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return place


# ---- the one who asks


class Worker:
    """A worker process, started again when it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path, seed: int) -> dict[str, Any]:
        """Have a slide used; the answer has verdict, said, cpu_s, mb and wall_s."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.fuzz.slides", "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(MOST_WALL_S, stop)
        timer.start()
        begin = time.monotonic()
        process.stdin.write(json.dumps({"path": str(path), "seed": seed}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        timer.cancel()
        wall_s = round(time.monotonic() - begin, 2)
        if not answer.endswith("\n"):
            status = process.wait()
            self.end()
            verdict = "over time" if late.is_set() else "died"
            return {
                "verdict": verdict,
                "said": f"exit status {status}",
                "cpu_s": wall_s,
                "mb": 0.0,
                "wall_s": wall_s,
            }
        found: dict[str, Any] = json.loads(answer)
        if found["verdict"] in ("pixels", "refused"):
            if found["cpu_s"] > MOST_S:
                found["verdict"] = "over time"
            elif found["mb"] > MOST_MB:
                found["verdict"] = "over memory"
        return found | {"wall_s": wall_s}

    def end(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()


def attack(
    bases: dict[str, Path], numbers: Sequence[int], *, seed: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Break slides and use them.

    Parameters
    ----------
    bases : dict of str to Path
        Whole slides, each in a folder of its own.
    numbers : sequence of int
        Which mutants; number N breaks the slide N modulo the number of slides.
    seed : int
    folder : Path
        Where the broken ones lie, one after the other.

    Yields
    ------
    dict
        The number, the format, what was broken, and `Worker.ask`'s answer.
    """
    names = sorted(bases)
    worker = Worker()
    try:
        for number in numbers:
            name = names[number % len(names)]
            path = copied(bases[name], folder / "mutant")
            how = break_slide(family_of(bases[name]), path, random.Random(f"{seed}-{number}"))
            yield {"number": number, "format": name, "how": how, **worker.ask(path, number)}
    finally:
        worker.end()


def also(folders: Sequence[Path], into: Path) -> dict[str, Path]:
    """Copy the slides of other folders, each into a folder of its own; what is large or broken is left out."""
    found: dict[str, Path] = {}
    for folder in folders:
        for slide in find_slides(folder, recursive=True):
            parts = [slide, slide.with_suffix("")] if slide.suffix == ".mrxs" else [slide]
            if slide.suffix == ".vms":
                parts = [file for file in slide.parent.iterdir() if file.stem.startswith(slide.stem)]
            size = sum(
                f.stat().st_size for part in parts for f in ([part] if part.is_file() else part.rglob("*"))
            )
            if size > _LARGEST_BYTES:
                continue
            try:
                Slide(slide).close()
            except SlideError:  # broken already
                continue
            place = into / f"also-{len(found)}"
            place.mkdir(parents=True)
            for part in parts:
                subprocess.run(["cp", "-rL", str(part), str(place)], check=True)
            found[f"{slide.name} (given)"] = place / slide.name
    return found


def report(found: Sequence[dict[str, Any]]) -> None:
    """Print a table by format, and each fault."""
    by_format: dict[str, Counter[str]] = {}
    for each in found:
        by_format.setdefault(each["format"], Counter())[each["verdict"]] += 1
    total = sum(by_format.values(), Counter())
    print(f"{'':28}{'tried':>7}" + "".join(f"{verdict:>17}" for verdict in _VERDICTS))
    for name, counts in [*sorted(by_format.items()), ("all", total)]:
        print(f"{name:28}{counts.total():7}" + "".join(f"{counts[verdict]:17}" for verdict in _VERDICTS))
    if found:
        slowest, largest = max(found, key=lambda each: each["cpu_s"]), max(found, key=lambda each: each["mb"])
        print(
            f"most computing time {slowest['cpu_s']} s (number {slowest['number']}, {slowest['format']}: {slowest['how']})"
        )
        print(
            f"most memory {largest['mb']} MB (number {largest['number']}, {largest['format']}: {largest['how']})"
        )
    for each in found:
        if each["verdict"] not in ("pixels", "refused"):
            print(f"  {each['verdict']}: number {each['number']}, {each['format']}: {each['how']}: {each['said'][:200]} "
                  f"({each.get('where', '')}; {each['cpu_s']} s, {each['mb']} MB)")  # fmt: skip


def main() -> None:
    """Attack, and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one mutant, which stays in --folder")
    parser.add_argument("--results", type=Path, help="JSON lines; those that are there aren't done again")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="folders of other slides")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    with tempfile.TemporaryDirectory(prefix="lrmil-fuzz-slides-") as temporary:
        folder = options.folder or Path(temporary)
        whole = Path(temporary) / "whole"
        bases = write_all(whole) | also(options.also, whole)
        numbers = range(options.tries) if options.only is None else [options.only]
        found: list[dict[str, Any]] = []
        if options.results is not None and options.results.exists():
            found = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
        done = {each["number"] for each in found}
        for each in attack(bases, [n for n in numbers if n not in done], seed=options.seed, folder=folder):
            found.append(each)
            if options.results is not None:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(each) + "\n")
            if options.only is not None:
                print(json.dumps(each, indent=1))
        if options.only is None:
            report(found)


if __name__ == "__main__":
    main()

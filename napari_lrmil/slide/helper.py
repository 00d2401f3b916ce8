"""The helper process of `probe.py`: opens slides and looks at them, one after the other, and says how it went.

A job is a line of JSON on standard input; the answer is two lines, one when the job begins. It ends with its input.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from napari_lrmil.errors import LRMILError, SlideChangedError, SlideError
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.probe import unprobed
from napari_lrmil.slide.reader import Slide

_IDLE_S = 600.0
_PIECE_PX, _COARSE_PIECE_PX = 256, 512


def main() -> None:
    """Answer until the input ends, or nothing was asked for ten minutes."""
    answers = _private_output()
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    _expect_crashes()
    while True:
        try:
            job = json.loads(jobs.get(timeout=_IDLE_S))
        except queue.Empty:
            return
        _answer(answers, {"began": True})
        _limit(job["cpu_s"], job["memory_bytes"])
        reply = look(Path(job["path"]), job["backend"], job["image"])
        _limit(None, None)
        shared_cache().clear()
        _answer(answers, reply)


def look(path: Path, backend: str, image: str) -> dict[str, Any]:
    """Open a slide, decode a piece of each level and its profile, or one of its other images; return what went wrong."""
    try:
        with unprobed(), Slide(path, backend=backend) as slide:
            if image:
                slide.read_associated(image)
            else:
                _look_at_pieces(slide)
                _look_at_profile(slide)
        return {}
    except (LRMILError, MemoryError) as error:
        if _lacked_memory(error):
            return {"memory": True}
        return {"error": str(error), "changed": isinstance(error, SlideChangedError)}


def _look_at_pieces(slide: Slide) -> None:
    """The middle of each level; damage there is no error."""
    last = len(slide.level_dimensions_xy) - 1
    for level, (size_xy, scale) in enumerate(
        zip(slide.level_dimensions_xy, slide.level_downsamples, strict=True)
    ):
        most = _COARSE_PIECE_PX if level == last else _PIECE_PX
        piece_xy = (min(most, size_xy[0]), min(most, size_xy[1]))
        corner = (
            int((size_xy[0] - piece_xy[0]) // 2 * scale),
            int((size_xy[1] - piece_xy[1]) // 2 * scale),
        )
        try:
            slide.read_region(corner, level, piece_xy)
        except SlideError as error:
            if _lacked_memory(error):
                raise


def _look_at_profile(slide: Slide) -> None:
    """Who asks for its colours gets the error."""
    with suppress(SlideError):
        slide.icc = True


def _lacked_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- the process


def _private_output() -> IO[bytes]:
    """Standard output for the answers alone: what libraries print goes nowhere."""
    kept = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return kept


def _read(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # at once, also out of a decoder that never returns


def _answer(answers: IO[bytes], reply: dict[str, Any]) -> None:
    answers.write(json.dumps(reply).encode("ascii") + b"\n")
    answers.flush()


def _expect_crashes() -> None:
    """Have crashes leave no file and open no window."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x1 | 0x2)
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def _limit(cpu_s: float | None, memory_bytes: int | None) -> None:
    """Limit the process from now on, or no longer. SIGPROF, which nobody handles, ends it."""
    if sys.platform == "win32":
        return
    import resource

    signal.setitimer(signal.ITIMER_PROF, cpu_s or 0.0)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if memory_bytes is None:
        wanted = most
    else:
        try:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        except OSError:  # not Linux
            return
        wanted = pages * resource.getpagesize() + memory_bytes
        if most != resource.RLIM_INFINITY:
            wanted = min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, most))

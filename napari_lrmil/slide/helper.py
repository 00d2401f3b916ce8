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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from napari_lrmil.errors import LRMILError
from napari_lrmil.slide.backends import open_backend
from napari_lrmil.slide.backends.base import Backend, decoder_errors
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.colour import SRGBTransform

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
    """Open a slide's backend and decode a piece of each level and the profile, or one of its other images.

    Returns
    -------
    dict
        What went wrong, for `probe.probe`. Pixels that can't be decoded are no error here: who reads them gets it.
    """
    try:
        with decoder_errors(path):
            slide = open_backend(path, backend)
            try:
                for decode in [lambda: slide.read_associated(image)] if image else _pieces(slide):
                    with _damage_borne():
                        decode()
            finally:
                slide.close()
        return {}
    except (LRMILError, MemoryError) as error:
        return {"memory": True} if _lacked_memory(error) else {"error": str(error)}


def _pieces(slide: Backend) -> Iterator[Callable[[], object]]:
    """The middle of each level, and the profile as it is applied."""
    last = len(slide.level_dimensions_xy) - 1
    for level, ((width, height), scale) in enumerate(
        zip(slide.level_dimensions_xy, slide.level_downsamples, strict=True)
    ):
        most = _COARSE_PIECE_PX if level == last else _PIECE_PX
        size_xy = (min(most, width), min(most, height))
        corner = (int((width - size_xy[0]) // 2 * scale), int((height - size_xy[1]) // 2 * scale))
        yield partial(slide.read_region, corner, level, size_xy)
    yield partial(_apply_profile, slide)


def _apply_profile(slide: Backend) -> None:
    profile = slide.icc_profile
    if profile is not None:
        SRGBTransform(profile)


@contextmanager
def _damage_borne() -> Iterator[None]:
    """Go on after what a decoder raises, but where it lacked memory."""
    try:
        yield
    except Exception as error:
        if _lacked_memory(error):
            raise


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
    """Have crashes leave no file and open no window, and the limit of time end the process."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x1 | 0x2)
        return
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whatever was inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
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

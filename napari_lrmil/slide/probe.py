"""Files from outside are opened first in a helper process: what a damaged one does to a decoder, it does there.

Slide libraries end the whole program at some damaged files, follow loops, or ask for all memory. `Slide` has each file
opened and looked at by the helper before it opens the file itself; what dies, computes without end or takes too much memory
there is a SlideError here. An error that the helper gets is raised here in the same words.

Helpers are ordinary Python processes (`helper.py`) in a session of their own, so that Ctrl-C in a terminal doesn't reach
them. One is started at the first need and kept; while several threads open slides at once, there are as many, at most
`MOST_HELPERS`. They end when their standard input closes, whichever way this process ends, and when nothing was asked for
ten minutes. Without an interpreter to start (a program that embeds Python), files are opened unprobed; a debug log says so.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.identity import FileState, states_of

CPU_S, FOLDER_CPU_S = 20.0, 60.0
"""Computing time that opening may take; a folder can hold millions of files. Not counted is the time that a share takes to
answer. Windows has no such limit."""

WALL_S = 300.0
"""After so long nothing is waited for any more: a share that doesn't answer at all."""

MEMORY_BYTES = 2**30
"""Address space that opening may take, beyond what the helper has at its start (Linux)."""

MOST_HELPERS = 4

_KNOWN = 256
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from napari_lrmil.slide.helper import main; main()"
)
_SMALL = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Threads that multiply matrices aren't needed, and what a C library reserves for them counts as memory."""

_log = logging.getLogger(__name__)
_probing: ContextVar[bool] = ContextVar("probing", default=True)


def probe(path: Path, backend: str, *, image: str = "") -> None:
    """Have a slide opened in a helper process, unless this process has opened its files in this state before.

    Parameters
    ----------
    path : Path
    backend : str
        As `Slide` takes it.
    image : str
        A label, macro or thumbnail image that is decoded, too.

    Raises
    ------
    SlideError
        Where it can't be opened, or opening it ends the helper, takes too long, or too much memory.
    """
    if not _probing.get() or _is_known(path, backend, image):
        return
    limits = {"cpu_s": FOLDER_CPU_S if path.is_dir() else CPU_S, "memory_bytes": MEMORY_BYTES}
    job = {"path": str(path.absolute()), "backend": backend, "image": image, **limits}
    reply = _pool.ask(job)
    if reply is None:
        return
    if "ended" in reply:
        raise SlideError(_ended(path.name, reply["ended"], limits["cpu_s"]))
    if reply.get("memory"):
        raise SlideError(f"{path.name} needs more than {MEMORY_BYTES / 2**30:.3g} GB to open")
    if "error" in reply:
        raise SlideError(reply["error"])


def note_opened(
    path: Path, backend: str, files: tuple[Path, ...], states: tuple[FileState, ...], *, image: str = ""
) -> None:
    """Remember that this process has opened a slide: it isn't probed again while these files stay as they are."""
    with _known_lock:
        _known[(path.absolute(), backend, image)] = (files, states[: len(files)])
        _known.move_to_end((path.absolute(), backend, image))
        while len(_known) > _KNOWN:
            _known.popitem(last=False)


def start_helper() -> None:
    """Start the helper that the first slide will need, without waiting for it."""
    _pool.start()


def end_helpers() -> None:
    """End all helpers of this process; the next slide starts one again."""
    _pool.end_all()


@contextmanager
def unprobed() -> Iterator[None]:
    """Within the block, slides of this thread are opened at once: another process has probed them."""
    token = _probing.set(False)
    try:
        yield
    finally:
        _probing.reset(token)


def _ended(name: str, how: str, cpu_s: float) -> str:
    if how == "cpu":
        return f"{name} took longer than {cpu_s:g} s to open"
    if how == "wall":
        return f"{name} took longer than {WALL_S:g} s to open"
    return f"{name} ended the program that tried to open it (it is damaged in a way that the slide library can't bear)"


# ---- what this process has opened

_known: OrderedDict[tuple[Path, str, str], tuple[tuple[Path, ...], tuple[FileState, ...]]] = OrderedDict()
_known_lock = threading.Lock()


def _is_known(path: Path, backend: str, image: str) -> bool:
    with _known_lock:
        files, states = _known.get((path.absolute(), backend, image), ((), ()))
    try:
        return bool(files) and states_of(files) == states
    except OSError:
        return False


# ---- helpers


class _Helper:
    """A helper process; one thread at a time asks it."""

    def __init__(self) -> None:
        apart: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_SMALL},
            **apart,
        )
        self._write(sys.path)  # as here, whatever made it so

    def ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """Return its answer; {"ended": how} where it ended meanwhile, and None where it ended before it began."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(WALL_S, stop)
        timer.daemon = True
        timer.start()
        try:
            self._write(job)
            began, reply = self._read(), self._read()
        finally:
            timer.cancel()
        if reply is not None:
            return reply
        status = self._process.wait()
        if late.is_set():
            return {"ended": "wall"}
        if began is None:
            return None
        in_time = sys.platform == "win32" or status != -signal.SIGPROF
        return {"ended": "died" if in_time else "cpu"}

    def _write(self, value: object) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(OSError):  # where it has ended, as reading tells
            stdin.write(json.dumps(value).encode("ascii") + b"\n")
            stdin.flush()

    def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        try:
            return cast(dict[str, Any], json.loads(self._process.stdout.readline()))
        except ValueError:
            return None

    def end(self) -> None:
        """End the process, whatever it does."""
        self.close_pipes()
        self._process.kill()
        self._process.wait()

    def close_pipes(self) -> None:
        """Close this process's ends of the pipes."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was to be written can't be, where the process has ended
                pipe.close()

    def disown(self) -> None:
        """In a fork of the process that started it: it isn't ours."""
        self.close_pipes()
        self._process.returncode = 0


class _Pool:
    """The helpers of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MOST_HELPERS)
        self._all: set[_Helper] = set()
        self._idle: list[_Helper] = []

    def ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """Return a helper's answer; None where there is no helper to be had."""
        with self._free:
            # An idle one may just have ended, of age. A new one that ends before it begins can't be started here.
            for kept in (True, False):
                helper = self._take(kept=kept)
                if helper is None:
                    continue
                try:
                    reply = helper.ask(job)
                except BaseException:
                    self._end(helper)
                    raise
                if reply is None or "ended" in reply:
                    self._end(helper)
                else:
                    self._give_back(helper)
                if reply is not None:
                    return reply
        _log.debug("no helper process can be started: slides are opened unprobed")
        return None

    def start(self) -> None:
        """Have one ready."""
        with self._lock:
            there = bool(self._all)
        helper = None if there else self._take(kept=False)
        if helper is not None:
            self._give_back(helper)

    def _take(self, *, kept: bool) -> _Helper | None:
        with self._lock:
            if kept:
                return self._idle.pop() if self._idle else None
        if not _is_python(sys.executable):
            return None
        try:
            helper = _Helper()
        except OSError:
            return None
        with self._lock:
            self._all.add(helper)
        return helper

    def _give_back(self, helper: _Helper) -> None:
        with self._lock:
            spare = bool(self._idle)
            if not spare:
                self._idle.append(helper)
        if spare:
            self._end(helper)

    def _end(self, helper: _Helper) -> None:
        with self._lock:
            self._all.discard(helper)
        helper.end()

    def end_all(self) -> None:
        """End all helpers."""
        with self._lock:
            helpers, self._all, self._idle = self._all, set(), []
        for helper in helpers:
            helper.end()

    def disown_all(self) -> None:
        """In a fork, where no other thread lives on."""
        for helper in self._all:
            helper.disown()


def _is_python(executable: str) -> bool:
    """Whether a path is an interpreter that can be started; a program that embeds or freezes Python isn't."""
    if not executable or getattr(sys, "frozen", False):
        return False
    # napari on macOS starts Python through a link of its own name.
    names = (Path(executable).name, Path(executable).resolve().name)
    return any(name.lower().startswith(("python", "pypy")) for name in names)


_pool = _Pool()


def _after_fork() -> None:
    global _pool, _known_lock
    _known_lock = threading.Lock()  # another thread may have held it
    _pool.disown_all()
    _pool = _Pool()


atexit.register(end_helpers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

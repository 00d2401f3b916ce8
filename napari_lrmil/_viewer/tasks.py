"""Background work of a dock, step by step: it can be cancelled, and ends with the dock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, NamedTuple

from napari.qt.threading import GeneratorWorker
from qtpy.QtCore import QThreadPool

from napari_lrmil.errors import LRMILError

Steps = Generator[Any, None, Any]


class Handlers(NamedTuple):
    """What to call in the window's thread. One of the last three is called, once, at the end."""

    progressed: Callable[[Any], None]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    cancelled: Callable[[], None]


class _Worker(GeneratorWorker):  # type: ignore[misc]  # napari is untyped here
    """Steps in a thread; quitting closes them there, so that they tidy up behind them."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.over = threading.Event()
        self.complete = False
        self.result: Any = None
        self.error: Exception | None = None
        super().__init__(self._run)

    def _run(self) -> Steps:
        try:
            self.result = yield from self._steps
            self.complete = True
        except (LRMILError, OSError, RuntimeError, MemoryError, ValueError) as error:
            # napari drops a RuntimeError, and Qt has no place for an exception: the dock says it instead.
            self.error = error

    def work(self) -> Any:
        """Run to the end, or until asked to quit."""
        try:
            with closing(self._steps):
                return super().work()
        finally:
            self.over.set()


class Tasks:
    """Named jobs on Qt's thread pool, one at a time a name: starting a second one cancels the first."""

    def __init__(self) -> None:
        self._current: dict[str, _Worker] = {}
        self._alive: set[_Worker] = set()
        self._closed = False

    def start(self, name: str, steps: Steps, handlers: Handlers) -> None:
        """Run `steps` in the background; what they yield goes to ``handlers.progressed``."""
        if self._closed:
            steps.close()
            return
        self.cancel(name)
        worker = _Worker(steps)
        self._current[name] = worker
        self._alive.add(worker)
        worker.yielded.connect(lambda step: self._progressed(name, worker, handlers, step))
        worker.finished.connect(lambda: self._finished(name, worker, handlers))
        worker.start()

    def running(self, name: str) -> bool:
        """Whether the job of this name is under way."""
        return name in self._current

    def cancel(self, name: str) -> None:
        """Ask a job to quit; it does so after the step under way, and then says so."""
        worker = self._current.get(name)
        if worker is not None:
            worker.quit()

    def shutdown(self, *, wait_s: float = 30.0) -> None:
        """Cancel all jobs and wait until their threads are done. No handler is called any more."""
        self._closed = True
        self._current.clear()
        for worker in self._alive:
            worker.quit()
        started = time.monotonic()
        while not all(worker.over.is_set() for worker in self._alive):
            QThreadPool.globalInstance().waitForDone(50)
            if time.monotonic() - started > wait_s:
                break
        self._alive.clear()

    def _progressed(self, name: str, worker: _Worker, handlers: Handlers, step: Any) -> None:
        if self._current.get(name) is worker:
            handlers.progressed(step)

    def _finished(self, name: str, worker: _Worker, handlers: Handlers) -> None:
        self._alive.discard(worker)
        if self._closed:
            return
        current = self._current.get(name) is worker
        if current:
            del self._current[name]
        if worker.error is not None:
            handlers.failed(worker.error)
        elif worker.complete:  # even where cancelling came too late: then it is done
            handlers.done(worker.result)
        else:
            handlers.cancelled()


def in_one_step(work: Callable[[], Any]) -> Steps:
    """A plain function as steps; cancelled before it has begun, it isn't called."""
    yield None
    return work()


def error_text(error: Exception) -> str:
    """What went wrong, and what to do next, for people."""
    if isinstance(error, LRMILError):
        return str(error)
    if isinstance(error, OSError):
        return os_error_text(error)
    if isinstance(error, MemoryError):
        return "The memory ran out. Close other slides or programs, then try again."
    return f"Something unexpected went wrong: {type(error).__name__}: {error}"


def os_error_text(error: OSError) -> str:
    """A failed write or read in words."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full, so nothing was written. Free some space or choose another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "This folder can't be written to, so nothing was written. Choose another folder."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "The folder is no longer there. Choose another one."
    return f"The file can't be written or read: {error.strerror or error}."

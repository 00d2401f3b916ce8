"""`Background` on Qt's thread pool."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from typing import Any, ClassVar

from qtpy.QtCore import QThreadPool
from superqt.utils import GeneratorWorker

from napari_lrmil._viewer.background import Background, P, R, Steps, error_text, ignore, is_foreseen

_MAX_THREADS = 64
_LAST_WAIT_MS = 30_000
_pool: QThreadPool | None = None


def thread_pool() -> QThreadPool:
    """The threads of all docks.

    Qt's own pool has as many threads as the computer has cores: a slide and a folder that are classified would take
    both of two, and a verdict would wait for hours to be written.

    However the program ends, its threads end before the interpreter: one that still tells of the end of its job when
    Python is being taken down would be a segmentation fault.
    """
    global _pool
    if _pool is None:
        _pool = QThreadPool()
        _pool.setMaxThreadCount(_MAX_THREADS)
        atexit.register(_end_threads, _pool)
    return _pool


def _end_threads(pool: QThreadPool) -> None:
    for background in list(QtBackground.all):
        background.shutdown(wait_s=0)
    pool.waitForDone(
        _LAST_WAIT_MS
    )  # a job that is over isn't enough: its thread still tells so, with the GIL


class _Worker(GeneratorWorker[Any, Any, None]):
    """Steps in a thread; quitting closes them there, so that they tidy up behind them."""

    def __init__(self, steps: Steps[Any, Any]) -> None:
        self._steps = steps
        self.over = threading.Event()
        self.complete = False
        self.result: Any = None
        self.error: Exception | None = None
        super().__init__(self._run)

    def _run(self) -> Steps[Any, Any]:
        try:
            self.result = yield from self._steps
            self.complete = True
        except Exception as error:  # noqa: BLE001  # whatever it is: who waits for the job must hear of its end
            self.error = error

    def work(self) -> Any:
        """Run to the end, or until asked to quit."""
        try:
            with closing(self._steps):
                return super().work()
        finally:
            self.over.set()


class QtBackground(Background):
    """Jobs of one dock; `shutdown` ends them with it, and the end of the program those that are left.

    Attributes
    ----------
    all : WeakSet of QtBackground
        Those of all docks.
    """

    all: ClassVar[weakref.WeakSet[QtBackground]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.all.add(self)
        self._current: dict[str, _Worker] = {}
        self._alive: set[_Worker] = set()
        self._closed = False

    def start(
        self,
        name: str,
        steps: Steps[P, R],
        *,
        done: Callable[[R], None] = ignore,
        failed: Callable[[str], None] = ignore,
        progressed: Callable[[P], None] = ignore,
        cancelled: Callable[[], None] = ignore,
    ) -> None:
        """See `Background.start`."""
        if self._closed:
            steps.close()
            return
        self.cancel(name)
        worker = _Worker(steps)
        self._current[name] = worker
        self._alive.add(worker)

        def stepped(step: P) -> None:
            if self._current.get(name) is worker:
                progressed(step)

        def ended(_: None = None) -> None:
            self._alive.discard(worker)
            if self._closed:
                return
            if self._current.get(name) is worker:
                del self._current[name]
            if worker.error is not None:
                failed(error_text(worker.error))
                if not is_foreseen(worker.error):
                    raise worker.error  # napari shows the traceback, so that it can be reported
            elif worker.complete:
                done(worker.result)
            else:
                cancelled()

        worker.yielded.connect(stepped)
        worker.finished.connect(ended)
        thread_pool().start(worker)

    def running(self, name: str) -> bool:
        """See `Background.running`."""
        return name in self._current

    def cancel(self, name: str) -> None:
        """See `Background.cancel`."""
        worker = self._current.get(name)
        if worker is not None:
            worker.quit()

    def shutdown(self, *, wait_s: float = 30.0) -> None:
        """Cancel all jobs and wait until their threads are done. Nobody is told any more."""
        self._closed = True
        self._current.clear()
        for worker in self._alive:
            worker.quit()
        started = time.monotonic()
        while not all(worker.over.is_set() for worker in self._alive):
            thread_pool().waitForDone(50)
            if time.monotonic() - started > wait_s:
                break
        for (
            worker
        ) in self._alive:  # what they have said and nobody has heard yet is not to come after the end
            worker.yielded.disconnect()
            worker.finished.disconnect()
        self._alive.clear()

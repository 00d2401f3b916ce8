"""Work behind the window: the one way to do it. No Qt; `qt.background` has the threads."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import TypeVar

from napari_lrmil.errors import LRMILError

P = TypeVar("P")
R = TypeVar("R")

Steps = Generator[P, None, R]
"""A job: what it yields is its progress, and after each yield it can be cancelled; what it returns is its result.

Cancelling closes it in its thread, so that a ``finally`` tidies up behind it.
"""


def ignore(*_: object) -> None:
    """For a report that nobody needs."""


class Background(ABC):
    """Runs jobs in threads, one at a time a name, and reports in the window's thread.

    A presenter takes this and nothing else for its work; in tests it is `unittest.mock.create_autospec` of it.
    """

    @abstractmethod
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
        """Start a job; one of the same name that is under way is cancelled.

        Of `done`, `failed` and `cancelled` exactly one is called, once, for each job, even where another has
        taken its place; none after the window has closed.

        Parameters
        ----------
        name : str
        steps : Steps
        done : callable
            Gets the result. A job that ended before it noticed that it was cancelled is done.
        failed : callable
            Gets what went wrong and what to do next, for people.
        progressed : callable
            Gets what is yielded, as long as no other job has taken the place of this one.
        cancelled : callable
        """

    @abstractmethod
    def running(self, name: str) -> bool:
        """Whether the job of this name is under way."""

    @abstractmethod
    def cancel(self, name: str) -> None:
        """Ask a job to end; it does so after the step under way, and then says so."""


def in_one_step(work: Callable[[], R]) -> Steps[None, R]:
    """A plain function as steps; cancelled before it has begun, it isn't called."""
    yield None
    return work()


def is_foreseen(error: Exception) -> bool:
    """Whether an error says enough by itself; others are faults of the program and need their traceback."""
    return isinstance(error, LRMILError | OSError | MemoryError)


def error_text(error: Exception) -> str:
    """What went wrong, and what to do next, for people."""
    if isinstance(error, LRMILError):
        return str(error)
    if isinstance(error, OSError):
        return _os_error_text(error)
    if isinstance(error, MemoryError):
        return "The memory ran out. Close other slides or programs, then try again."
    return f"Something unexpected went wrong: {type(error).__name__}: {error}"


def _os_error_text(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full, so nothing was written. Free some space or choose another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "This folder can't be written to, so nothing was written. Choose another folder."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "The folder is no longer there. Choose another one."
    return f"The file can't be written or read: {error.strerror or error}."

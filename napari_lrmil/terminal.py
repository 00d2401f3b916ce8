"""How every command of this project talks: on any terminal, an error in one line, an exit status that says how it went."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from napari_lrmil.errors import LRMILError, readable, reason_of

FAILED = 1
"""Exit status of a command that ended with an error."""

INTERRUPTED = 128 + signal.SIGINT
"""What a shell expects of a program ended by Ctrl-C."""


class SteadyConsole(Console):
    """A console whose output may end, as on a full disk, and the work goes on of which it tells.

    What reads a pipe and goes ends it as ever: nobody wants more of it.
    """

    lost: OSError | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, or from now on nowhere where it can't be written."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            self.lost = error
            # What is still in buffers would fail again, at the latest when the program ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


out = SteadyConsole()
err = SteadyConsole(stderr=True)


class Commands(typer.Typer):
    """The commands of a program. What the character set of a terminal or of a redirected output lacks is replaced."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the command that the arguments name."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return super().__call__(*args, **options)
        except SystemExit as end:
            if out.lost is not None and not end.code:
                exit_with(f"not all that was to be told could be written ({reason_of(out.lost)})")
            raise


class Stopped(KeyboardInterrupt):
    """A signal ended the program; `status` is what it exits with."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.status = 128 + signal_number


@contextmanager
def handling_signals(
    names: Iterable[str],
    handler: Callable[[int, FrameType | None], object],
    *,
    unhandled: bool = False,
) -> Iterator[bool]:
    """Within the block signals are handled so; yields whether any is.

    Parameters
    ----------
    names : iterable of str
        Those that the system doesn't know, as SIGHUP and SIGUSR1 on Windows, are left out.
    handler : callable
    unhandled : bool
        Whether only those that nobody handles. What was started with nohup ignores a signal, and stays deaf either way; in
        another thread than the main one nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in names:
            number = getattr(signal, name, None)
            now = None if number is None else signal.getsignal(number)
            if number is not None and (
                now is signal.SIG_DFL or not (unhandled or now in (signal.SIG_IGN, None))
            ):
                before[number] = signal.signal(number, handler)
    try:
        yield bool(before)
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stopping_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C does KeyboardInterrupt: there is time to tidy up."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    with handling_signals(("SIGTERM", "SIGHUP"), stop, unhandled=True):
        yield


@contextmanager
def stopping_afterwards() -> Iterator[None]:
    """Within the block Ctrl-C, SIGTERM and SIGHUP wait for its end.

    For the import of libraries, some of which abort the process where Ctrl-C comes in between.
    """
    noted: list[int] = []
    try:
        with handling_signals(("SIGINT", "SIGTERM", "SIGHUP"), lambda number, _: noted.append(number)):
            yield
    finally:
        if noted:
            signal.raise_signal(noted[0])


def print_error(error: LRMILError | str) -> None:
    """Write ``error: ...`` on the error stream, as it is: uncut, brackets and colons in names are no markup."""
    line = Text.assemble(("error:", "bold red"), " ", readable(str(error)))
    err.print(line, highlight=False, soft_wrap=True)


def exit_with(error: LRMILError | str, *, status: int = FAILED) -> NoReturn:
    """Print the error and end the program."""
    print_error(error)
    raise SystemExit(status)


@contextmanager
def errors_as_messages(*, status: int = FAILED) -> Iterator[None]:
    """End the program with one line in place of a traceback where a user can cure the error.

    Parameters
    ----------
    status : int
        Exit status of the program then.
    """
    try:
        yield
    except LRMILError as error:
        exit_with(error, status=status)

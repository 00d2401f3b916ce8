"""How every command of this project talks: on any terminal, an error in one line, an exit status that says how it went."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
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
def stopping_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C does KeyboardInterrupt: there is time to tidy up."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            # What was started with nohup stays deaf.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopping_afterwards() -> Iterator[None]:
    """Within the block Ctrl-C, SIGTERM and SIGHUP wait for its end.

    For the import of libraries, some of which abort the process where Ctrl-C comes in between.
    """
    noted: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
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

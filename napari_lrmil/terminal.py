"""How every command of this project tells an error: one line on the error stream, and an exit status that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from napari_lrmil.errors import LRMILError

FAILED = 1
"""Exit status of a command that ended with an error."""


def print_error(error: LRMILError | str) -> None:
    """Write ``error: ...`` on the error stream, as it is: uncut, brackets and colons in names are no markup."""
    line = Text.assemble(("error:", "bold red"), " ", str(error))
    Console(stderr=True).print(line, highlight=False, soft_wrap=True)


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

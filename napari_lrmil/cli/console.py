"""Where the command line writes, and how errors look there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.errors import LRMILError

out = Console()
err = Console(stderr=True)

MppOption = Annotated[
    float | None,
    typer.Option(
        help="µm per pixel at full resolution, for slides that don't say it (0.25 at 40x, 0.5 at 20x)."
    ),
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="LRMIL_CACHE_DIR",
        help="Folder of the result cache; the window uses the same one. Default: the user's cache folder.",
        show_default=False,
    ),
]


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """One line in place of a traceback for errors that a user can cure; exit status 1."""
    try:
        yield
    except LRMILError as error:
        tell_error(str(error))
        raise typer.Exit(1) from error


def tell_error(text: str) -> None:
    """An error on the error stream, uncut."""
    err.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)

"""The command `lrmil`, put together from its parts."""

from __future__ import annotations

from typing import Annotated

import typer

from napari_lrmil import __version__
from napari_lrmil.cli import console
from napari_lrmil.cli.cache_commands import cache_app
from napari_lrmil.cli.info_command import info
from napari_lrmil.cli.predict_command import predict
from napari_lrmil.terminal import Commands

app = Commands(
    help="Classify whole slides from their low-resolution tiles alone (LRMIL).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(predict)
app.command()(info)
app.add_typer(cache_app, name="cache")


def _version(value: bool) -> None:
    if value:
        console.out.print(f"lrmil {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Classify whole slides from their low-resolution tiles alone (LRMIL)."""

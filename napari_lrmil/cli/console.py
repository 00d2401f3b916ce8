"""Where `lrmil` writes, and the options that several of its commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_lrmil.terminal import err, out

__all__ = ["CacheDirOption", "MppOption", "err", "out"]

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

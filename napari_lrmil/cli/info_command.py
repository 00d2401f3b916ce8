"""`lrmil info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from napari_lrmil.cli import console
from napari_lrmil.cli.console import MppOption
from napari_lrmil.terminal import errors_as_messages


def info(
    slides: Annotated[
        list[Path], typer.Argument(help="Slide files.", metavar="SLIDE...", show_default=False)
    ],
    mpp: MppOption = None,
) -> None:
    """What a slide file says of itself: levels, pixel size, bounds. Identifiers are left out."""
    with errors_as_messages():
        from napari_lrmil.cache import open_slide

        for path in slides:
            with open_slide(path, mpp=mpp) as slide:
                table = Table("property", "value", title=escape(path.name))
                for key, value in slide.metadata.items():
                    table.add_row(key, "unknown" if value is None else escape(str(value)))
                for level, (size, scale) in enumerate(
                    zip(slide.level_dimensions_xy, slide.level_downsamples, strict=True)
                ):
                    um = f", {slide.level_mpps[level]:.3g} µm/px" if slide.has_mpp else ""
                    table.add_row(f"level {level}", f"{size[0]} x {size[1]} px, 1/{scale:.4g}{um}")
                console.out.print(table)

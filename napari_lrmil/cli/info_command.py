"""`lrmil info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from napari_lrmil.cli import console
from napari_lrmil.cli.console import MppOption
from napari_lrmil.terminal import errors_as_messages


def info(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Slide files, or bundles as `lrmil predict --bundle` takes them.",
            metavar="FILE...",
            show_default=False,
        ),
    ],
    mpp: MppOption = None,
) -> None:
    """What a slide file says of itself: levels, pixel size, bounds, without identifiers; or what a bundle reads, and how
    long that takes here."""
    with errors_as_messages():
        from napari_lrmil.model.naming import names_bundle

        for path in files:
            console.out.print(_bundle(path) if names_bundle(path) else _slide(path, mpp))


def _slide(path: Path, mpp: float | None) -> Table:
    from napari_lrmil.cache import open_slide

    with open_slide(path, mpp=mpp) as slide:
        table = Table("property", "value", title=escape(path.name))
        for key, value in slide.metadata.items():
            table.add_row(key, "unknown" if value is None else escape(str(value)))
        for level, (size, scale) in enumerate(
            zip(slide.level_dimensions_xy, slide.level_downsamples, strict=True)
        ):
            um = f", {slide.level_mpps[level]:.3g} µm/px" if slide.has_mpp else ""
            table.add_row(f"level {level}", f"{size[0]} x {size[1]} px, 1/{scale:.4g}{um}")
    return table


def _bundle(path: Path) -> Table:
    from napari_lrmil.model.bundle import load_bundle
    from napari_lrmil.model.card import tiles_text
    from napari_lrmil.model.device import resolve_device
    from napari_lrmil.model.speed import measured_speed
    from napari_lrmil.wording import speed_text

    bundle = load_bundle(path)
    info, speed = bundle.info, measured_speed(bundle, resolve_device())
    weights = sum(
        value.numel() for part in (bundle.encoder, bundle.mil) for value in part.state_dict().values()
    )
    table = Table("property", Column("value", overflow="fold"), title=escape(info.name))
    rows = {
        "about": info.description,
        "classes": ", ".join(info.class_names),
        "reads": tiles_text(info.tiles.model_dump(), info.mpps),
        "takes": f"{speed_text(speed)}, at most {speed.tiles:,} tiles (measured here; reading the slide on top)",
        "encoder": f"{info.encoder.architecture}, tokens of {info.token_px} px",
        "head": info.mil.name,
        "weights": f"{weights / 1e6:.3g} million",
        "demonstration": "yes: not for diagnosis" if info.demonstration else "no",
        "licence": info.licence,
        "made": f"{info.provenance.created}, {info.provenance.training_data}",
        "sha256": info.sha256,
    }
    for key, value in rows.items():
        table.add_row(key, escape(value))
    return table

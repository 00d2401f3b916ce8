"""`lrmil`: predictions without a window. Loads neither Qt nor napari."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from napari_lrmil import __version__
from napari_lrmil.errors import LRMILError, SlideError

app = typer.Typer(
    help="Classify whole slides from their low-resolution tiles alone (LRMIL).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_out = Console()
_err = Console(stderr=True)

BundleOption = Annotated[
    str, typer.Option("--bundle", "-b", help="Folder of a model bundle, or 'demo' (demonstration only).")
]
MppOption = Annotated[
    float | None,
    typer.Option(
        help="µm per pixel at full resolution, for slides that don't say it (0.25 at 40x, 0.5 at 20x)."
    ),
]


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    try:
        yield
    except LRMILError as error:
        _err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _version(value: bool) -> None:
    if value:
        _out.print(f"lrmil {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Classify whole slides from their low-resolution tiles alone (LRMIL)."""


@app.command()
def predict(
    slides: Annotated[
        list[Path], typer.Argument(help="Slide files.", metavar="SLIDE...", show_default=False)
    ],
    bundle: BundleOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made where missing.")],
    mpp: MppOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles a step.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Tiles decoded at once.")] = 2,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of an earlier run.")
    ] = False,
) -> None:
    """Label, probabilities and attention of each slide: OUT/<slide>.json and OUT/<slide>.csv.

    A slide that can't be read doesn't stop the others; the exit status is 1 when there was one.
    """
    with _errors_as_messages():
        stems = _unique_stems(slides)
        _refuse_existing(out, stems, overwrite)
        _make_folder(out)
        from napari_lrmil.export import write_prediction
        from napari_lrmil.model.bundle import load_bundle
        from napari_lrmil.model.card import DEMONSTRATION_NOTE
        from napari_lrmil.model.device import resolve_device
        from napari_lrmil.predict import SlidePrediction, predict_slide
        from napari_lrmil.slide import Slide

        torch_device = resolve_device(device)
        model = load_bundle(bundle, device=torch_device)
        if model.info.demonstration:
            _err.print(f"[yellow]{escape(model.info.name)}: {DEMONSTRATION_NOTE}[/]", highlight=False)
        table = Table("slide", "label", *map(escape, model.info.class_names), "tiles", "seconds")
        failed = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=_err, transient=True) as progress:
            whole = progress.add_task("slides", total=len(slides))
            for path, stem in zip(slides, stems, strict=True):
                task = progress.add_task(f"  {escape(stem)}", total=None)
                try:
                    with Slide(path, mpp=mpp) as slide:
                        steps = predict_slide(
                            slide, model, device=torch_device, batch_size=batch_size, threads=threads
                        )
                        result: SlidePrediction | None = None
                        while result is None:
                            try:
                                step = next(steps)
                                progress.update(task, completed=step.tiles_done, total=step.tiles_total)
                            except StopIteration as stop:
                                result = stop.value
                    write_prediction(result, out, stem=stem)
                    table.add_row(
                        escape(stem),
                        escape(result.label),
                        *(f"{value:.3f}" for value in result.class_probabilities),
                        str(len(result.tiles)),
                        f"{result.seconds:.1f}",
                    )
                except SlideError as error:
                    failed += 1
                    message = escape(str(error))
                    progress.console.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
                progress.remove_task(task)
                progress.advance(whole)
        if table.row_count:
            _out.print(table)
            _out.print(f"Results: {out}", highlight=False, markup=False, soft_wrap=True)
        if failed:
            _err.print(f"{failed} of {len(slides)} slides failed.", highlight=False)
            raise typer.Exit(1)


@app.command()
def info(
    slides: Annotated[
        list[Path], typer.Argument(help="Slide files.", metavar="SLIDE...", show_default=False)
    ],
    mpp: MppOption = None,
) -> None:
    """What a slide file says of itself: levels, pixel size, bounds. Identifiers are left out."""
    with _errors_as_messages():
        from napari_lrmil.slide import Slide

        for path in slides:
            with Slide(path, mpp=mpp) as slide:
                table = Table("property", "value", title=escape(path.name))
                for key, value in slide.metadata.items():
                    table.add_row(key, "unknown" if value is None else escape(str(value)))
                for level, (size, scale) in enumerate(
                    zip(slide.level_dimensions_xy, slide.level_downsamples, strict=True)
                ):
                    um = f", {slide.level_mpps[level]:.3g} µm/px" if slide.has_mpp else ""
                    table.add_row(f"level {level}", f"{size[0]} x {size[1]} px, 1/{scale:.4g}{um}")
                _out.print(table)


def _unique_stems(slides: list[Path]) -> list[str]:
    """A name for each slide's results: its stem, with the ending where two stems are the same."""
    stems = [path.stem for path in slides]
    stems = [path.name if stems.count(path.stem) > 1 else path.stem for path in slides]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise SlideError(f"two slides would write the same results: {', '.join(twice)}. Run them apart.")
    return stems


def _refuse_existing(out: Path, stems: list[str], overwrite: bool) -> None:
    there = [
        stem for stem in stems if any((out / f"{stem}{ending}").exists() for ending in (".json", ".csv"))
    ]
    if there and not overwrite:
        raise SlideError(
            f"{out} already holds results of {len(there)} of these slides ({', '.join(there[:3])}"
            f"{', ...' if len(there) > 3 else ''}). Add --overwrite to replace them."
        )


def _make_folder(out: Path) -> None:
    """Before the work, so that it isn't done in vain."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LRMILError(f"{out} can't be the folder of the results: {error.strerror}") from error

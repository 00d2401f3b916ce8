"""python -m training.cohort OUT: generate a cohort of H&E-like slides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training.cohort.config import FOLDS, CohortConfig
from training.cohort.generate import generate_cohort, is_complete

app = Commands(add_completion=False)


def parse_numbers(text: str, separator: str, names: tuple[str, ...], option: str) -> list[int]:
    """Return whole numbers from `24/40/20/40` or `2048x2048`; a ConfigError says how to write them."""
    parts = text.lower().split(separator)
    if len(parts) != len(names) or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(
            f"{option} is {text!r}; write it as {separator.join(names).upper()}, whole numbers."
        )
    return [int(part) for part in parts]


def config_from_options(slides: str, size: str, look: list[str]) -> CohortConfig:
    """Return the cohort's parameters from the command line; `look` are NAME=VALUE of `CohortConfig`."""
    numbers = parse_numbers(slides, "/", FOLDS, "--slides")
    width_px, height_px = parse_numbers(size, "x", ("width", "height"), "--size")
    values: dict[str, object] = {f"n_{fold}": n for fold, n in zip(FOLDS, numbers, strict=True)}
    values |= {"width_px": width_px, "height_px": height_px}
    for text in look:
        name, equals, value = text.partition("=")
        if not equals or name in values:
            raise ConfigError(f"--look is {text!r}; write it as NAME=VALUE, for instance signal=detail.")
        values[name] = value
    try:
        return CohortConfig.model_validate(values)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"These parameters of the cohort can't be used: {reasons}.") from error


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Folder of the cohort.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    slides: Annotated[
        str, typer.Option(help="Numbers of slides: UNLABELLED/TRAIN/VAL/TEST.")
    ] = "24/40/20/40",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels at 0.5 µm.")] = "2048x2048",
    look: Annotated[
        list[str],
        typer.Option(
            help="NAME=VALUE of training/cohort/config.py, several times: signal=detail, nuclei_per_mm2=9000, ..."
        ),
    ] = [],  # noqa: B006  # typer reads the default and changes nothing
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the cohort in the folder.")] = False,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Then measure how hard it is: colour alone, the teacher, and the ceiling at 5x (minutes).",
        ),
    ] = False,
) -> None:
    """Generate a cohort of H&E-like slides with known lesions, and say how hard it is."""
    console = Console()
    with errors_as_messages(status=2):
        config = config_from_options(slides, size, look)
        if not overwrite and is_complete(out, config, seed=seed):
            _say(console, f"The cohort in {out} is complete already: nothing to draw.")
        else:
            _generate(out, config, seed=seed, workers=workers, overwrite=overwrite, console=console)
        if reference:
            from training.cohort.reference import measure
            from training.progress import Reporter

            measure(out, Reporter(console))


def _generate(
    out: Path, config: CohortConfig, *, seed: int, workers: int, overwrite: bool, console: Console
) -> None:
    columns = (
        TextColumn("generating slides"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("slides", total=None)
        csv_path = generate_cohort(
            out,
            config,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            overwrite=overwrite,
        )
    _say(console, f"Wrote {csv_path}.")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()

"""``python -m training.report RUN_DIR``: write a finished run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from napari_lrmil.terminal import Commands, errors_as_messages
from training.progress import Reporter
from training.report.build import build_report

app = Commands(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run_dir: Annotated[Path, typer.Argument(help="As python -m training.run left it.", show_default=False)],
    examples: Annotated[
        int | None,
        typer.Option(min=0, help="Slides to show with their heatmaps; 0 for none.", show_default="2 a class"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write.", show_default="RUN_DIR/report.html")
    ] = None,
    show_identifiers: Annotated[
        bool,
        typer.Option(
            "--show-identifiers",
            help="Show slide and patient ids and whole paths. They can say who a patient is.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="For the heatmaps: auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Write the report of a finished run: one HTML file with tables, plots and example heatmaps.

    Without --show-identifiers, slides are numbered and paths are cut short.
    """
    reporter = Reporter()
    with errors_as_messages():
        path = build_report(
            run_dir,
            out=out,
            n_examples=examples,
            show_identifiers=show_identifiers,
            device=device,
            reporter=reporter,
        )
    reporter.say(f"Report: {escape(str(path))}")


if __name__ == "__main__":
    app(prog_name="python -m training.report")

"""``python -m training.import_features CONFIG FEATURES``: HR embeddings that CLAM or TRIDENT made, for a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from napari_lrmil.terminal import Commands, errors_as_messages
from training.config import load_config
from training.import_features.files import find_feature_files
from training.import_features.slides import (
    ImportOptions,
    Outcome,
    check_config,
    embed_dim_of,
    import_slides,
)
from training.progress import Reporter
from training.run.prepare import prepare

app = Commands(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="The run's TOML file.", show_default=False)],
    features: Annotated[
        Path, typer.Argument(help="Folder with a file SLIDE_ID.h5 a slide, at any depth.", show_default=False)
    ],
    patches: Annotated[
        Path | None,
        typer.Option(help="CLAM's folder of patches: its feature files don't say how large a patch is."),
    ] = None,
    patch_px_l0: Annotated[
        float | None,
        typer.Option(
            "--patch-px-l0", help="Edge of a patch in level-0 pixels, for files that don't say it.", min=1
        ),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest",
            help="Take the nearest patch within half a tile where the grids differ. An approximation: it shows part "
            "of another tile.",
        ),
    ] = False,
    max_missing: Annotated[
        float,
        typer.Option(
            help="Largest share of tiles without a patch; they get the features of the nearest one.",
            min=0,
            max=1,
        ),
    ] = 0.0,
    skip_bad_slides: Annotated[
        bool, typer.Option("--skip-bad-slides", help="Go on without slides that can't be used.")
    ] = False,
) -> None:
    """Take HR embeddings that CLAM or TRIDENT made (HDF5) into a run, instead of computing them.

    Every field of the config can be set here as for training.run: --section.key value; set the same there.
    Slides whose features don't fit are listed, and the run embeds them itself.
    """
    reporter = Reporter()
    with errors_as_messages():
        loaded = load_config(config, context.args)
        check_config(loaded)
        files = find_feature_files(features)
        patch_files = find_feature_files(patches) if patches is not None else {}
        prepared = prepare(loaded, skip_bad=skip_bad_slides, reporter=reporter)
        run = prepared.context
        store = run.hr_store(run.stored_layers)  # no tokens of other layers are known
        store.prepare()
        outcome = import_slides(
            run.jobs(run.rows, store, hr=True),
            store,
            run.geometry,
            files,
            ImportOptions(nearest, max_missing, patch_px_l0),
            patches=patch_files,
            embed_dim=embed_dim_of(loaded.encoder.spec),
            reporter=reporter,
        )
    report(outcome, reporter, nearest=nearest)
    if outcome.refused and not outcome.imported and not outcome.there:
        raise typer.Exit(1)


def report(outcome: Outcome, reporter: Reporter, *, nearest: bool) -> None:
    """Say what became of the slides."""
    if outcome.refused:
        listing = "\n  ".join(f"{slide}: {why}" for slide, why in outcome.refused.items())
        reporter.say(
            f"[yellow]Not imported, {len(outcome.refused)} slides, which the run will embed itself:[/]\n  "
            f"{escape(listing)}"
        )
    if outcome.there:
        reporter.say(f"{len(outcome.there)} slides had embeddings already.")
    if outcome.filled_tiles:
        reporter.say(
            f"[yellow]{outcome.filled_tiles} tiles without a patch got the features of the nearest one.[/]"
        )
    how = " (by nearest patch: an approximation)" if nearest and outcome.imported else ""
    reporter.say(f"Imported {len(outcome.imported)} slides{how}.")


if __name__ == "__main__":
    app(prog_name="python -m training.import_features")

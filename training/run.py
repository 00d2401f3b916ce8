"""``python -m training.run CONFIG``: from a table of slides to a bundle, all steps of LRMIL."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import ConfigError, LRMILError
from napari_lrmil.model.device import resolve_device
from training.config import RunConfig, content_hash, load_config
from training.data.table import Split, class_names, make_splits, read_table
from training.data.tile_index import TileGeometry, index_key, index_slides
from training.pipeline import run_fold, run_shared
from training.progress import Reporter
from training.run_dir import RunDir
from training.stages.context import Context
from training.stages.evaluate import FoldPredictions, compare

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Prepared(NamedTuple):
    """A run whose inputs have been checked."""

    context: Context
    splits: list[Split]
    data_key: str


def prepare(config: RunConfig, *, skip_bad: bool, reporter: Reporter) -> Prepared:
    """Check table, slides and splits, and make the run directory.

    Raises
    ------
    LRMILError
        Before any expensive work, listing every slide that can't be used.
    """
    device = resolve_device(config.run.device)
    rows = read_table(config.data.slides)
    make_splits(rows, n_folds=config.data.n_folds, seed=config.run.seed)  # errors of the table come first
    run_dir = RunDir(config.run.out_dir)
    run_dir.prepare()
    geometry = TileGeometry(
        config.tiles.tile_px,
        config.tiles.mpp_lr,
        config.tiles.ratio,
        config.tiles.min_tissue,
        config.data.mpp,
        config.tiles.apply_icc,
    )
    tiles = index_slides(rows, geometry, skip_bad=skip_bad, reporter=reporter, threads=config.run.threads)
    rows = [item.row for item in tiles]
    splits = make_splits(rows, n_folds=config.data.n_folds, seed=config.run.seed)
    if config.data.folds is not None:
        splits = [split for split in splits if split.fold in config.data.folds]
        absent = sorted(set(config.data.folds) - {split.fold for split in splits})
        if absent or not splits:
            raise ConfigError(f"data.folds {list(config.data.folds)}: the table has no fold {absent}")
    context = Context(
        run_dir=run_dir,
        config=config,
        geometry=geometry,
        tiles={item.row.slide_id: item for item in tiles},
        class_names=class_names(rows),
        device=device,
        reporter=reporter,
    )
    data_key = content_hash(
        index_key(tiles),
        config.data.mpp,
        config.tiles,
        config.encoder,
        _weights_hash(config),
        config.run.seed,
    )
    return Prepared(context, splits, data_key)


def run(config: RunConfig, *, skip_bad: bool, reporter: Reporter) -> Path:
    """Run all steps; finished ones are skipped.

    Parameters
    ----------
    config : RunConfig
    skip_bad : bool
        Go on without slides that can't be used.
    reporter : Reporter

    Returns
    -------
    Path
        The bundle of the last fold.

    Raises
    ------
    LRMILError
    """
    context, splits, data_key = prepare(config, skip_bad=skip_bad, reporter=reporter)
    run_dir = context.run_dir
    write_text(run_dir.path("config.json"), config.model_dump_json(indent=2) + "\n")
    shared = run_shared(context, splits, data_key)
    predictions: dict[str, list[FoldPredictions]] = {}
    bundle = run_dir.root
    for split in splits:
        found, bundle = run_fold(context, split, shared, data_key)
        for method, result in found.items():
            predictions.setdefault(method, []).append(result)
    compare(context, predictions)
    reporter.say(f"Bundle: {escape(str(bundle))}")
    return bundle


def _weights_hash(config: RunConfig) -> str | None:
    """Of the encoder's weights: another file at the same path is another encoder."""
    path = config.encoder.weights
    if path is None or not path.is_file():
        return None  # a missing one gets its error where it is loaded
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A TOML file; see training/configs.", show_default=False)],
    skip_bad_slides: Annotated[
        bool, typer.Option("--skip-bad-slides", help="Go on without slides that can't be used.")
    ] = False,
) -> None:
    """Build an LRMIL student from a table of slides.

    Every field of the config can be set here: --section.key value, for instance --run.seed 3. Paths in it
    start at the current folder. A finished step isn't done again.
    """
    try:
        run(load_config(config, context.args), skip_bad=skip_bad_slides, reporter=Reporter())
    except LRMILError as error:
        message = f"[bold red]error:[/] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app(prog_name="python -m training.run")

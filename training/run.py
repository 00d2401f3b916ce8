"""``python -m training.run CONFIG``: from a table of slides to a bundle, all steps of LRMIL."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import ConfigError, LRMILError
from napari_lrmil.memory import give_large_blocks_back
from napari_lrmil.slide.files import stamp_of
from napari_lrmil.terminal import exit_with
from training.config import RunConfig, content_hash, load_config
from training.config.describe import config_table
from training.data.table import Split, class_names, make_splits, read_table
from training.data.tile_index import TileGeometry, index_slides
from training.keys import Keys
from training.pipeline import run_steps
from training.plan import print_plan
from training.progress import Reporter
from training.run_dir import RunDir
from training.runtime import Runtime, close_process_group, lost_a_peer
from training.stages.context import Context, file_hash
from training.stages.evaluate import compare

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Prepared(NamedTuple):
    """A run whose inputs have been checked."""

    context: Context
    splits: list[Split]
    keys: Keys


def prepare(
    config: RunConfig,
    *,
    skip_bad: bool,
    reporter: Reporter,
    cluster: str | None = None,
    runtime: Runtime | None = None,
    writes: bool = True,
) -> Prepared:
    """Check table, slides and splits, and make the run directory.

    Parameters
    ----------
    config : RunConfig
    skip_bad : bool
        Go on without slides that can't be used.
    reporter : Reporter
    cluster : str, optional
        Address of a dask.distributed scheduler.
    runtime : Runtime, optional
        Made from the config where none is given.
    writes : bool
        Whether the run directory may be made, to keep there what was found.

    Raises
    ------
    LRMILError
        Before any expensive work, listing every slide that can't be used.
    """
    runtime = runtime or Runtime(config.run.device, config.run.precision)
    rows = read_table(config.data.slides)

    def split(rows: list) -> list[Split]:
        return make_splits(
            rows,
            n_folds=config.data.n_folds,
            seed=config.run.seed,
            preserved_sites=config.data.preserved_sites,
        )

    split(rows)  # errors of the table come first
    run_dir = RunDir(config.run.out_dir)
    if writes:
        run_dir.prepare()
    geometry = TileGeometry(
        config.tiles.tile_px,
        config.tiles.mpp_lr,
        config.tiles.ratio,
        config.tiles.min_tissue,
        config.data.mpp,
        config.tiles.apply_icc,
    )
    known = run_dir.path("tile_index") if writes else None
    for is_turn in (runtime.is_main, not runtime.is_main):  # the others read what the main process found
        if is_turn:
            tiles = index_slides(
                rows, geometry, skip_bad=skip_bad, reporter=reporter, threads=config.run.threads, known=known
            )
        runtime.wait()
    rows = [item.row for item in tiles]
    all_splits = splits = split(rows)
    if config.data.folds is not None:
        splits = [one for one in splits if one.fold in config.data.folds]
        absent = sorted(set(config.data.folds) - {one.fold for one in splits})
        if absent or not splits:
            raise ConfigError(f"data.folds {list(config.data.folds)}: the table has no fold {absent}")
    context = Context(
        run_dir=run_dir,
        config=config,
        geometry=geometry,
        tiles={item.row.slide_id: item for item in tiles},
        class_names=class_names(rows),
        runtime=runtime,
        reporter=reporter,
        cluster=cluster,
    )
    return Prepared(context, splits, Keys(context, all_splits))


def run(
    config: RunConfig,
    *,
    skip_bad: bool,
    reporter: Reporter,
    cluster: str | None = None,
    dry_run: bool = False,
) -> Path:
    """Run all steps; finished ones are skipped.

    Parameters
    ----------
    config : RunConfig
    skip_bad : bool
        Go on without slides that can't be used.
    reporter : Reporter
    cluster : str, optional
        Address of a dask.distributed scheduler whose workers embed the slides.
    dry_run : bool
        Only print the plan, and write nothing.

    Returns
    -------
    Path
        The bundle of the last fold; the run directory after a dry run.

    Raises
    ------
    LRMILError
    """
    give_large_blocks_back()
    runtime = Runtime(config.run.device, config.run.precision)
    reporter = reporter if runtime.is_main else Reporter(Console(quiet=True))
    run_dir = RunDir(config.run.out_dir)
    if dry_run:
        prepared = prepare(config, skip_bad=skip_bad, reporter=reporter, runtime=runtime, writes=False)
        print_plan(*prepared)
        return run_dir.root
    read_table(config.data.slides)  # a table that is wrong leaves no folder behind
    if runtime.is_main:
        run_dir.prepare()
    with run_dir.locked() if runtime.is_main else nullcontext():
        context, splits, keys = prepare(
            config, skip_bad=skip_bad, reporter=reporter, runtime=runtime, cluster=cluster
        )
        if runtime.is_main:
            # Results of before belong to no prediction any more.
            run_dir.path("results.json").unlink(missing_ok=True)
            write_text(run_dir.path("config.json"), config.model_dump_json(indent=2) + "\n")
        predictions, bundles = run_steps(context, splits, keys)
        if runtime.is_main:
            compare(context, predictions)
            reporter.say(f"Report: {escape(str(_report(context)))}")
            reporter.say(f"Bundle: {escape(str(bundles[-1]))}")
        runtime.wait()
        return bundles[-1] if bundles else run_dir.root


def _report(context: Context) -> Path:
    run_dir, place = context.run_dir, context.run_dir.path("report.html")
    key = _report_key(context)
    if place.is_file() and run_dir.is_done("report", content_hash(key, file_hash(place))):
        return place
    from training.report import build_report  # takes seconds: only where there is something to draw

    run_dir.forget("report")
    build_report(run_dir.root, device=context.config.run.device, reporter=context.reporter)
    run_dir.mark_done("report", content_hash(key, file_hash(place)))
    return place


def _report_key(context: Context) -> str:
    """Of all that the report shows, and of the code that draws it."""
    root, code = context.run_dir.root, Path(__file__).parent / "report"
    shown = [root / "config.json", root / "results.json", context.config.data.slides]
    for pattern in ("*/metrics/*.csv", "fold*/predictions/*.csv", "fold*/bundle/bundle.json"):
        shown += sorted(root.glob(pattern))
    shown += sorted(path for kind in ("py", "j2", "css") for path in code.rglob(f"*.{kind}"))
    return content_hash(
        [(path.name, file_hash(path)) for path in shown],
        [stamp_of(item.row.path) for item in context.tiles.values()],
    )


def _full_disk(error: OSError, out_dir: Path) -> LRMILError | None:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    where = f" while writing {error.filename}" if error.filename else ""
    return LRMILError(
        f"the disk is full{where}. What was finished is kept in {out_dir}: free some space and run again. "
        "--dry-run tells how much is still needed."
    )


def _describe(wanted: bool) -> None:
    if wanted:
        Console().print(config_table())
        raise typer.Exit


_HELP = (
    "Build an LRMIL student from a table of slides.\n\n"
    "Every key of the config can be set here: --section.key value, for instance --run.seed 3 (--describe lists them). "
    "Paths in it start at the current folder. A finished step isn't done again, and a killed run goes on where it was.\n\n"
    "Several GPUs: torchrun --nproc-per-node N -m training.run CONFIG"
)


@app.command(help=_HELP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A TOML file; see training/configs.", show_default=False)],
    skip_bad_slides: Annotated[
        bool, typer.Option("--skip-bad-slides", help="Go on without slides that can't be used.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done, how much and how long; write nothing."),
    ] = False,
    describe: Annotated[
        bool,
        typer.Option(
            "--describe",
            callback=_describe,
            is_eager=True,
            help="Print every key of the config with its default and meaning, and exit.",
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Embed slides on the workers of this dask.distributed scheduler, tcp://host:8786; see docs/scaling.md.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build an LRMIL student from a table of slides."""
    out_dir = Path()
    try:
        loaded = load_config(config, context.args)
        out_dir = loaded.run.out_dir
        run(loaded, skip_bad=skip_bad_slides, reporter=Reporter(), cluster=cluster, dry_run=dry_run)
    except LRMILError as error:
        exit_with(error)
    except OSError as error:
        full = _full_disk(error, out_dir)
        if full is None:
            raise
        exit_with(full)
    except RuntimeError as error:
        if not lost_a_peer(error):
            raise
        exit_with("another process of this run has stopped; what it says tells why")
    else:
        close_process_group()


if __name__ == "__main__":
    app(prog_name="python -m training.run")

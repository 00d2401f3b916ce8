"""Before anything expensive: the table, every slide of it and the splits are checked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

from rich.markup import escape

from napari_lrmil.errors import ConfigError
from training.config import RunConfig
from training.data.splits import Split, class_names, make_splits, splits_key
from training.data.table import DataSection, SlideRow
from training.data.tile_index import index_slides
from training.progress import Reporter
from training.run.context import Context
from training.run.layout import RunDir
from training.run.locks import Locks
from training.run.markers import RunDirError
from training.run.steps import Steps
from training.runtime import Runtime


class Prepared(NamedTuple):
    """A run whose inputs have been checked."""

    context: Context
    splits: list[Split]
    steps: Steps


def prepare(
    config: RunConfig,
    *,
    skip_bad: bool,
    reporter: Reporter,
    cluster: str | None = None,
    runtime: Runtime | None = None,
    writes: bool = True,
    only_collects: bool = False,
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
    only_collects : bool
        See `Context`.

    Raises
    ------
    LRMILError
        Before any expensive work, listing every slide that can't be used.
    """
    runtime = runtime or Runtime(config.run.device, config.run.precision)
    rows = config.data.rows(lambda text: reporter.say(f"[yellow]Note:[/] {escape(text)}"))
    if config.evaluate.methods is not None:
        reporter.say(
            "[yellow]Note:[/] evaluate.methods is of before: write what is compared as \\[\\[compare]] rows."
        )
    run_dir = RunDir(config.run.out_dir)
    splits_of(
        run_dir, rows, config.data, config.run.seed, writes=False
    )  # the table's errors before the slides'
    if writes:
        run_dir.prepare()
    geometry = config.tiles.geometry(config.data.mpp)
    locks = Locks(run_dir.root, reporter)
    for is_turn in (runtime.is_main, not runtime.is_main):  # the others read what the main process found
        if is_turn:
            # One of several runs side by side looks at the slides, the others read what it kept.
            with locks.step("slides") if writes and runtime.is_main else nullcontext():
                tiles = index_slides(
                    rows,
                    geometry,
                    skip_bad=skip_bad,
                    reporter=reporter,
                    threads=config.run.threads,
                    known=run_dir.tile_index if writes else None,
                    several=config.magnifications,
                )
                rows = [item.row for item in tiles]
                all_splits = splits_of(
                    run_dir,
                    rows,
                    config.data,
                    config.run.seed,
                    writes=writes and runtime.is_main,
                    tell=lambda text: reporter.say(f"[yellow]Note:[/] {escape(text)}"),
                )
        runtime.wait()
    names = class_names(rows)
    config.calibrate.positive_class(names)  # says what is wrong with it
    context = Context(
        run_dir=run_dir,
        config=config,
        geometry=geometry,
        tiles={item.row.slide_id: item for item in tiles},
        class_names=names,
        runtime=runtime,
        reporter=reporter,
        cluster=cluster,
        only_collects=only_collects,
    )
    return Prepared(context, _wanted(all_splits, config.data.folds), Steps(context, all_splits))


def splits_of(
    run_dir: RunDir,
    rows: list[SlideRow],
    data: DataSection,
    seed: int,
    *,
    writes: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Split]:
    """Return the splits of a run: those that it keeps, or where it has none of these slides, new ones.

    Where those that it keeps are damaged, they are dealt anew, from the same table and seed: a step whose slides would
    be others by that is done anew, as with another table.

    Parameters
    ----------
    run_dir : RunDir
    rows : list of SlideRow
        The slides that can be used.
    data : DataSection
    seed : int
    writes : bool
        Whether to keep them.
    tell : callable
        Gets a sentence where those that were kept are damaged.
    """
    key = splits_key(
        rows,
        n_folds=data.n_folds,
        seed=seed,
        preserved_sites=data.preserved_sites,
        calibration=data.calibration,
    )
    splits = None
    try:
        kept = run_dir.read_splits()
        if kept is not None and kept.key == key:
            splits = kept.splits(rows)
    except (RunDirError, KeyError):
        tell(f"{run_dir.splits_json.name} isn't as it was written; the splits are dealt anew")
    if splits is None:
        splits = _deal(rows, data, seed)
    if writes:
        run_dir.write_splits(splits, key)
    return splits


def folds_of(run_dir: RunDir, config: RunConfig) -> list[int]:
    """Return the folds that a run does, from its table alone: no slide is opened, nothing is written.

    Raises
    ------
    ConfigError
    """
    splits = splits_of(run_dir, config.data.rows(), config.data, config.run.seed, writes=False)
    return [split.fold for split in _wanted(splits, config.data.folds)]


def _deal(rows: list[SlideRow], data: DataSection, seed: int) -> list[Split]:
    return make_splits(
        rows,
        n_folds=data.n_folds,
        seed=seed,
        preserved_sites=data.preserved_sites,
        calibration=data.calibration,
    )


def _wanted(splits: list[Split], folds: tuple[int, ...] | None) -> list[Split]:
    if folds is None:
        return splits
    wanted = [split for split in splits if split.fold in folds]
    absent = sorted(set(folds) - {split.fold for split in wanted})
    if absent or not wanted:
        raise ConfigError(f"data.folds {list(folds)}: the table has no fold {absent}")
    return wanted

"""The command, and what it runs: all steps, the table of results, and the report."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.errors import ConfigError, LRMILError, reason_of, shortened
from napari_lrmil.memory import give_large_blocks_back
from napari_lrmil.terminal import INTERRUPTED, Commands, exit_with, print_error
from training import notice
from training.config import RunConfig, RunSection, load_config
from training.config.describe import config_table
from training.data.splits import Split
from training.hashing import content_hash
from training.progress import Reporter
from training.run.context import Context
from training.run.layout import RunDir
from training.run.locks import Locks
from training.run.markers import CONFIG
from training.run.pipeline import Part, Tested, run_steps
from training.run.plan import print_plan
from training.run.prepare import prepare
from training.run.results import compare
from training.run.steps import Steps, once
from training.runtime import Runtime, close_process_group, lost_a_peer
from training.section import nearest

app = Commands(add_completion=False, pretty_exceptions_enable=False)


def run(
    config: RunConfig,
    *,
    skip_bad: bool,
    reporter: Reporter,
    cluster: str | None = None,
    dry_run: bool = False,
    part: Part | None = None,
    fold: int | None = None,
) -> Path:
    """Run all steps, or those of a part; finished ones are skipped. Several parts may run side by side in one directory.

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
    part : {"embed", "stage1", "heads", "collect"}, optional
        See `training.run.pipeline`; by default all.
    fold : int, optional
        Of stage1 or heads; by default all.

    Returns
    -------
    Path
        The bundle of the last fold; the run directory after a dry run or a part that makes none.

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
    config.data.rows()  # a table that is wrong leaves no folder behind
    if runtime.is_main:
        run_dir.prepare()
    locks = Locks(run_dir.root, reporter)
    closes = part in (None, "collect")
    with locks.at_work(_config_key(config)) if runtime.is_main else nullcontext():
        context, splits, steps = prepare(
            config,
            skip_bad=skip_bad,
            reporter=reporter,
            runtime=runtime,
            cluster=cluster,
            only_collects=part == "collect",
        )
        if runtime.is_main:
            if closes:
                # Results of before belong to no prediction any more.
                run_dir.results_json.unlink(missing_ok=True)
            with locks.step(CONFIG):
                run_dir.write_config(config)
        # One process at a time brings a run to its end.
        with locks.step("all") if closes and runtime.is_main else nullcontext():
            tested = run_steps(context, _of_fold(splits, fold), steps, part)
            if tested is not None and runtime.is_main:
                _close(context, splits, steps, tested)
            runtime.wait()
        if not closes:
            of_fold = "" if fold is None else f", fold {fold}"
            reporter.say(f"{part}{of_fold}: done")
        return tested.bundles[-1] if tested is not None and tested.bundles else run_dir.root


def _config_key(config: RunConfig) -> str:
    """Return what runs side by side have in common: not where they compute, and how often they write."""
    usual = RunSection(out_dir=config.run.out_dir)
    own = ("device", "threads", "checkpoint_seconds", "checkpoint_minutes", "checkpoint_steps")
    section = config.run.model_copy(update={name: getattr(usual, name) for name in own})
    return content_hash(config.model_copy(update={"run": section}))


def _of_fold(splits: Sequence[Split], fold: int | None) -> Sequence[Split]:
    if fold is None:
        return splits
    wanted = [split for split in splits if split.fold == fold]
    if not wanted:
        known = ", ".join(str(split.fold) for split in splits)
        raise ConfigError(f"--fold {fold}: this run has the folds {known}")
    return wanted


def _close(context: Context, splits: Sequence[Split], steps: Steps, tested: Tested) -> None:
    run_dir, reporter = context.run_dir, context.reporter
    compare(context, steps, [split.fold for split in splits], tested.scores, tested.fits, tested.front)
    _report(context, steps)
    reporter.say(f"Report: {escape(str(run_dir.report_html))}")
    reporter.say(f"Bundle: {escape(str(tested.bundles[-1]))}")
    cheapest = run_dir.fold(splits[-1].fold).cheapest_bundle
    if tested.front is not None and cheapest.is_dir():
        reporter.say(f"Bundle of {tested.front.row(tested.front.chosen).name}: {escape(str(cheapest))}")


def _report(context: Context, steps: Steps) -> None:
    def build() -> None:
        from training.report.build import build_report  # takes seconds: only where there is something to draw

        build_report(context.run_dir.root, device=context.config.run.device, reporter=context.reporter)

    once(context, steps.report(), build, quiet=True)


def _of_the_disk(error: OSError, out_dir: Path) -> LRMILError | None:
    """Return what the run says where a file or the disk is in its way; None of what has to do with neither."""
    place = error.filename2 or error.filename  # of a file that was to be moved, where to
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" while writing {error.filename}" if error.filename else ""
        return LRMILError(
            f"the disk is full{where}. What was finished is kept in {out_dir}: free some space and run again. "
            "--dry-run tells how much is still needed."
        )
    if place is None:
        return None
    return LRMILError(
        f"{place} can't be read or written ({reason_of(error)}). What was finished is kept in {out_dir}: put that right, or "
        "take the file away, and run again."
    )


def _part(words: Sequence[str]) -> tuple[Part | None, Sequence[str]]:
    """Return the part of a run that the first word behind CONFIG names, and the other words."""
    for part in get_args(Part):
        if words and words[0] == part:
            return part, words[1:]
    if words and not words[0].startswith("-"):
        parts = get_args(Part)
        raise ConfigError(
            f"no such part of a run: {shortened(words[0])}; did you mean {nearest(words[0], parts)}? There are {', '.join(parts)}"
        )
    return None, words


def _describe(wanted: bool) -> None:
    if wanted:
        Console().print(config_table())
        raise typer.Exit


_HELP = (
    "Build an LRMIL student from a table of slides.\n\n"
    "Every key of the config can be set here: --section.key value, for instance --run.seed 3 (--describe lists them); "
    "--set heads/clam_sb takes a set of values, as a paper's recipe for a head (docs/heads.md). "
    "Paths in it start at the current folder. A finished step isn't done again, and a killed run goes on where it was.\n\n"
    "CONFIG alone does all. Its parts can be done in processes of their own, side by side in one run directory, each doing what "
    "it needs before: CONFIG embed; CONFIG stage1 --fold F; CONFIG heads --fold F; and in the end CONFIG collect. python -m "
    "training.slurm CONFIG writes them as SLURM jobs.\n\n"
    "Several GPUs: torchrun --nproc-per-node N -m training.run CONFIG\n\n"
    f"Exit status: 0 done, 1 an error, {notice.RESUMABLE} stopped by SIGTERM or SIGUSR1 and to be given again, 130 stopped by "
    "Ctrl-C."
)


@app.command(
    help=_HELP,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def main(
    context: typer.Context,
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG [embed|stage1|heads|collect]",
            help="A TOML file; see training/configs. Behind it, a part of the run.",
            show_default=False,
        ),
    ],
    skip_bad_slides: Annotated[
        bool, typer.Option("--skip-bad-slides", help="Go on without slides that can't be used.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done, how much and how long; write nothing."),
    ] = False,
    fold: Annotated[
        int | None,
        typer.Option(help="Of stage1 or heads: this fold alone, from 0.", show_default=False, min=0),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train each head with these seeds, 0..9 or 0,3,5; as --run.seeds.", show_default=False
        ),
    ] = None,
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
        part, words = _part(context.args)
        if fold is not None and part not in ("stage1", "heads"):
            raise ConfigError("--fold is of stage1 and heads: CONFIG stage1 --fold 0")
        loaded = load_config(config, [*words, *(("--run.seeds", seeds) if seeds is not None else ())])
        out_dir = loaded.run.out_dir
        with notice.heard():
            run(
                loaded,
                skip_bad=skip_bad_slides,
                reporter=Reporter(),
                cluster=cluster,
                dry_run=dry_run,
                part=part,
                fold=fold,
            )
    except notice.Noticed as end:
        print_error(
            f"stopped by {end.name}, exit status {notice.RESUMABLE}. What was finished is kept in {out_dir}, and the state of "
            "the training that was going on: the same command goes on from there"
        )
        raise typer.Exit(notice.RESUMABLE) from None
    except KeyboardInterrupt:
        print_error(f"stopped. What was finished is kept in {out_dir}: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    except LRMILError as error:
        exit_with(error)
    except OSError as error:
        told = _of_the_disk(error, out_dir)
        if told is None:
            raise
        exit_with(told)
    except RuntimeError as error:
        if not lost_a_peer(error):
            raise
        exit_with("another process of this run has stopped; what it says tells why")
    else:
        close_process_group()

"""`lrmil predict`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from napari_lrmil.cli import console
from napari_lrmil.cli.console import CacheDirOption, MppOption
from napari_lrmil.cli.results import (
    ERRORS_NAME,
    MAX_ROWS,
    Outcome,
    make_folder,
    refuse_existing,
    unique_stems,
)
from napari_lrmil.errors import LRMILError
from napari_lrmil.export.tables import PREDICTIONS_NAME
from napari_lrmil.terminal import (
    FAILED,
    INTERRUPTED,
    errors_as_messages,
    print_error,
    stopping_afterwards,
    stopping_signals,
)

if TYPE_CHECKING:
    from napari_lrmil.batch import BatchEvent
    from napari_lrmil.cache import ResultCache
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.worklist import ListedSlide

SOME_FAILED = FAILED
"""Exit status where some slides have no result and others have."""
NOTHING_DONE = 2
"""Exit status where no slide has a result, or none was begun: also that of wrong options."""


def predict(
    slides: Annotated[
        list[Path],
        typer.Argument(
            help="Slides, folders of slides, or tables (CSV with the column path, and optionally slide_id, mpp).",
            metavar="SLIDE|DIR|TABLE...",
            show_default=False,
        ),
    ],
    bundle: Annotated[
        str,
        typer.Option(
            "--bundle",
            "-b",
            help="Folder of a model bundle, hf-hub:owner/name@revision, or 'demo' (demonstration only).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the results as files; made where missing. Without it they go into the cache alone.",
            show_default=False,
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders in folders too.")] = False,
    mpp: MppOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Tiles a step; halved where the memory doesn't take them.")
    ] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Tiles decoded at once.")] = 2,
    max_damaged: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the tiles with tissue that may be damaged; a slide with more fails.",
        ),
    ] = 0.01,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier run.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute every slide, and keep nothing.")
    ] = False,
    cache_dir: CacheDirOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Scheduler of a dask.distributed cluster, such as tcp://host:8786. Its workers and this "
            "computer share slides and --cache-dir.",
            metavar="ADDRESS",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Label, probabilities and evidence of each slide, for the window and as files.

    A slide that is unlike those that the model was trained on has no label: the answer is then "unlike training".

    Results are kept: a slide is computed once for each bundle, and the window then shows it at once. With
    --out, OUT/<slide>.json and OUT/<slide>.csv (its tiles) are written, and predictions.csv for all.

    A slide that can't be read doesn't stop the others: errors are listed at the end and in errors.csv. Tables are
    written slide by slide. Stop with Ctrl-C whenever you like; the same command goes on from there.

    Exit status: 0 all slides have a result, 1 some failed, or not all that was printed could be written, 2 nothing could
    be done, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
    """
    status = 0
    outcome: Outcome | None = None
    try:
        with stopping_signals(), errors_as_messages(status=NOTHING_DONE):
            if no_cache and out is None:
                raise LRMILError("with --no-cache nothing would stay: give --out a folder for the results")
            if no_cache and cluster is not None:
                raise LRMILError("a cluster hands its results over through the cache: leave --no-cache out")
            wanted = _list_all(slides, recursive, mpp)
            stems = unique_stems((slide.path, slide.slide_id) for slide in wanted)
            from napari_lrmil.cache import ResultCache

            cache = None if no_cache else ResultCache(cache_dir)
            info, events = _start(wanted, bundle, cache, device, batch_size, threads, max_damaged, cluster)
            if out is not None:
                if not overwrite:
                    refuse_existing(out, stems.values(), info)
                make_folder(out)
            outcome = Outcome(stems, info.class_names, out, overwrite)
            try:
                with closing(events):
                    _follow(events, outcome)
            except LRMILError as error:  # the run's, not a slide's: what is done stays
                print_error(error)
            outcome.write()
    except KeyboardInterrupt as stop:
        status = getattr(stop, "status", INTERRUPTED)
    if outcome is None:
        print_error("stopped before the first slide")
        raise typer.Exit(status)
    _show(outcome)
    left = len(outcome.stems) - len(outcome.done) - len(outcome.failed)
    if left:
        kept = "" if no_cache else " Finished slides come from the cache then."
        console.err.print(
            f"Stopped with {left} of {len(outcome.stems)} slides left. To go on, give the same command again.{kept}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if not status and len(outcome.done) < len(outcome.stems):
        status = SOME_FAILED if outcome.done else NOTHING_DONE
    if status:
        raise typer.Exit(status)


def _list_all(slides: list[Path], recursive: bool, mpp: float | None) -> list[ListedSlide]:
    """The slides that the arguments mean; a table's mpp goes before the option's."""
    from napari_lrmil.slide.pixel_size import check_given
    from napari_lrmil.worklist import list_slides

    if mpp is not None:  # once, not for each slide
        check_given(mpp)

    def note(text: str) -> None:
        console.err.print(f"[yellow]Note:[/] {escape(text)}", highlight=False, soft_wrap=True)

    found = [slide for path in slides for slide in list_slides(path, recursive=recursive, note=note)]
    return [replace(slide, mpp=mpp) if slide.mpp is None else slide for slide in found]


def _start(
    wanted: list[ListedSlide],
    bundle: str,
    cache: ResultCache | None,
    device: str,
    batch_size: int,
    threads: int,
    max_damaged: float,
    cluster: str | None,
) -> tuple[BundleInfo, Generator[BatchEvent, None, None]]:
    """What the bundle says of itself, and the events of a batch that begins when they are asked for."""
    with stopping_afterwards():
        from napari_lrmil.batch import classify, classify_on_cluster
        from napari_lrmil.model.bundle import UnloadedBundle, load_info, resolve_bundle
        from napari_lrmil.model.card import DEMONSTRATION_NOTE
        from napari_lrmil.model.device import resolve_device
        from napari_lrmil.slide.probe import start_helper

    if cluster is None or cache is None:
        start_helper()  # while the model is loaded
        torch_device = resolve_device(device)
        model = UnloadedBundle.at(bundle, torch_device)
        info = model.info
        events = classify(
            wanted,
            model,
            cache=cache,
            device=torch_device,
            batch_size=batch_size,
            threads=threads,
            max_damaged=max_damaged,
        )
    else:
        info = load_info(bundle)
        # Workers start in folders of their own; names ('demo', the hub's) mean the same there.
        root, path = resolve_bundle(bundle), Path(bundle)
        where = str(root.absolute()) if root in (path, path.parent) else bundle
        events = classify_on_cluster(
            wanted,
            where,
            info,
            address=cluster,
            cache=cache,
            device=device,
            batch_size=batch_size,
            threads=threads,
            max_damaged=max_damaged,
        )
    if info.demonstration:
        console.err.print(f"[yellow]{escape(info.name)}: {DEMONSTRATION_NOTE}[/]", highlight=False)
    return info, events


def _follow(events: Generator[BatchEvent, None, None], outcome: Outcome) -> None:
    """Show how far it is, write files as slides finish, and note how each slide went."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    to_compute = len(outcome.stems)
    notes: set[str] = set()
    shown = console.err.is_terminal

    def tell(note: str) -> None:
        if note and note not in notes:
            notes.add(note)
            console.err.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)

    # The pace of the last half hour: slides take minutes, and differ.
    with Progress(
        *columns, console=console.err, transient=True, speed_estimate_period=1800, disable=not shown
    ) as progress:
        whole = progress.add_task("slides", total=to_compute)
        task: TaskID | None = None
        for event in events:
            if event.progress is not None:
                if task is None:
                    task = progress.add_task(f"  {escape(outcome.stems[event.path])}", total=None)
                progress.update(task, completed=event.progress.tiles_done, total=event.progress.tiles_total)
                tell(event.progress.note)
                continue
            if event.prediction is None and not event.error:
                continue
            if task is not None:
                progress.remove_task(task)
                task = None
            outcome.take(event)
            if not shown:
                console.err.print(outcome.line(event.path), highlight=False, markup=False, soft_wrap=True)
            tell(event.note)
            if event.cached:
                # Out of the count: what comes at once says nothing of the time left.
                to_compute -= 1
                progress.update(whole, total=to_compute)
            else:
                progress.advance(whole)
            told = [f"{len(outcome.cached)} from cache"] if outcome.cached else []
            told += [f"[red]{len(outcome.failed)} failed[/]"] if outcome.failed else []
            progress.update(whole, description=f"slides ({', '.join(told)})" if told else "slides")


def _show(outcome: Outcome) -> None:
    out = outcome.out
    if not (outcome.done or outcome.failed):
        return
    if outcome.done and len(outcome.stems) <= MAX_ROWS:
        console.out.print(outcome.slides_table())
    if len(outcome.stems) > 1:
        console.out.print(outcome.counts_table())
        if outcome.done:
            console.out.print(outcome.answers_text(), highlight=False, markup=False, soft_wrap=True)
    if outcome.done and out is not None:
        console.out.print(
            f"Results: {out} (all slides: {PREDICTIONS_NAME})", highlight=False, markup=False, soft_wrap=True
        )
    if outcome.failed:
        for path, text in outcome.failed.items():
            print_error(text if path.name in text else f"{path.name}: {text}")
        where = f" They are listed in {out / ERRORS_NAME}." if out is not None else ""
        console.err.print(
            f"{len(outcome.failed)} of {len(outcome.stems)} slides failed.{where}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

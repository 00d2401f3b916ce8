"""``python -m training.benchmark CONFIG``: every row of a benchmark tried, and one table of them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from napari_lrmil.errors import ConfigError, LRMILError
from napari_lrmil.terminal import INTERRUPTED, Commands, exit_with, print_error
from training.benchmark.rows import chosen, inline, rows_of
from training.benchmark.table import read_table
from training.benchmark.trials import Trials, run_process, try_rows
from training.benchmark.write import printed, save
from training.config import load_config
from training.progress import Reporter

app = Commands(add_completion=False, pretty_exceptions_enable=False)

_HELP = (
    "Train and test every row of a benchmark, and write one table of them all.\n\n"
    "CONFIG is that of a run; its keys can be set here, --section.key value. Rows: those of its comparison, each head on HR, on "
    "LR and as LRMIL's student, and each distillation objective in place of LRMIL's. Each is tried in a process of its own, in "
    "the run's directory: one that fails is listed, and tried again by the next call; one that is done isn't done again."
)


@app.command(help=_HELP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A TOML file; see training/configs.", show_default=False)],
    methods: Annotated[
        str | None,
        typer.Option(help="Keys of the rows, with commas; all or none.", show_default=False),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(help="Names of the objectives, with commas; all or none.", show_default=False),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Say which rows there are, and do nothing.")
    ] = False,
) -> None:
    """Try every row, and write the table."""
    try:
        loaded = load_config(config, context.args)
        if loaded.evaluate.methods is not None:
            raise ConfigError("evaluate.methods: a benchmark takes its rows from [[compare]]: leave it out")
        rows = chosen(rows_of(loaded), methods, objectives)
        folder = loaded.run.out_dir
        trials = Trials(folder / "benchmark")
        reporter = Reporter()
        if listing:
            for row in rows:
                trial = trials.get(row, loaded)
                state = "" if trial is None else f"  ({trial.state})"
                typer.echo(f"{row.kind:9}  {row.key}{state}")
            return
        words = [str(config), *context.args]
        try_rows(rows, loaded, words, trials, reporter)
        done = [row for row in rows if (trial := trials.get(row, loaded)) and trial.state == "done"]
        if not done:
            raise LRMILError(f"no row could be had; see {trials.folder / 'logs'}")
        compare = ["--compare", inline([row.entry for row in done])]
        last = run_process([*words, *compare], trials.folder / "logs" / "all.txt", "all")
        if last.state == "failed":
            raise LRMILError(f"the rows together could not be compared:\n{last.error}")
        table = read_table(rows, load_config(config, [*context.args, *compare]), trials, folder)
        title = f"Benchmark: {loaded.export.name}"
        paths = save(table, trials.folder, title)
        Console().print(printed(table))
        reporter.say("Saved: " + ", ".join(escape(str(path)) for path in paths))
        failed = [row.key for row in table if row.error]
        if failed:
            reporter.say(f"[yellow]Failed:[/] {', '.join(failed)}; the same command tries them again")
    except KeyboardInterrupt:
        print_error("stopped. What was finished is kept: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    except LRMILError as error:
        exit_with(error)


if __name__ == "__main__":
    app()

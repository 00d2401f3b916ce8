"""``python -m training.slurm CONFIG``: a run as SLURM jobs, its folds side by side, each going on after its time is over."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training import notice
from training.config import RunConfig, load_config
from training.run.layout import RunDir
from training.run.prepare import folds_of

app = Commands(add_completion=False, pretty_exceptions_enable=False)


class Resources(NamedTuple):
    """What each job asks for."""

    time: str
    gpus: str
    cpus: int
    memory: str
    options: tuple[str, ...] = ()
    """Of sbatch, as they stand behind #SBATCH"""
    setup: tuple[str, ...] = ()
    """Lines of shell before Python starts"""
    notice_seconds: int = 300
    embed_jobs: int = 4


def scripts(
    config: RunConfig,
    *,
    words: Sequence[str],
    folder: Path,
    work: Path,
    python: str,
    resources: Resources,
) -> dict[str, str]:
    """Return the scripts of a run by file name; ``submit.sh`` gives the others to SLURM.

    Parameters
    ----------
    config : RunConfig
    words : sequence of str
        Behind ``python -m training.run``: the config's path and options.
    folder : Path
        Of the scripts and logs.
    work : Path
        The current folder of the jobs, where relative paths of the config start.
    python : str
        Interpreter.
    resources : Resources

    Raises
    ------
    ConfigError
        Where table or splits are wrong, or a path can't stand in a script.
    """
    folds = folds_of(RunDir(config.run.out_dir), config)
    of_student = {row.key for row in config.rows if row.is_of_student}
    alike = config.sharing(len(folds)) >= of_student  # one f' for all folds
    arrays = {
        "embed": f"0-{resources.embed_jobs - 1}",
        "stage1": str(folds[0]) if alike else ",".join(map(str, folds)),
        "heads": ",".join(map(str, folds)),
        "collect": None,
    }
    found = {}
    for part, array in arrays.items():
        found[f"{part}.sh"] = _job(
            part, array, words=words, folder=folder, work=work, python=python, resources=resources
        )
    # A fold's heads needn't wait for the f' of other folds.
    after_stage1 = "afterok" if alike else "aftercorr"
    found["submit.sh"] = "\n".join(
        [
            "#!/bin/bash",
            "# Gives the jobs to SLURM. Run it again after a failure: what is finished isn't done again.",
            "set -eu",
            'cd "$(dirname "$0")"',
            'give() { local id; id=$(sbatch --parsable --kill-on-invalid-dep=yes "$@"); echo "${id%%;*}"; }',
            "embed=$(give embed.sh)",
            'stage1=$(give --dependency="afterok:$embed" stage1.sh)',
            f'heads=$(give --dependency="{after_stage1}:$stage1" heads.sh)',
            'collect=$(give --dependency="afterok:$heads" collect.sh)',
            'echo "embed $embed, stage1 $stage1, heads $heads, collect $collect"',
            "",
        ]
    )
    return found


def _job(
    part: str,
    array: str | None,
    *,
    words: Sequence[str],
    folder: Path,
    work: Path,
    python: str,
    resources: Resources,
) -> str:
    log = str(folder / ("%x-%j.log" if array is None else "%x-%A_%a.log"))
    if any(char in f"{folder}{work}" for char in '"\n\\%'):
        raise ConfigError(
            f"{folder} or {work} has a character that SLURM's scripts don't take: quotes, \\ or %"
        )
    if any("\n" in line for line in resources.options):
        raise ConfigError("an option of sbatch is one line")
    directives = [
        f"--job-name=lrmil-{part}",
        *([] if array is None else [f"--array={array}"]),
        f"--time={resources.time}",
        *([f"--gres={resources.gpus}"] if resources.gpus else []),
        f"--cpus-per-task={resources.cpus}",
        f"--mem={resources.memory}",
        "--nodes=1",
        "--ntasks=1",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{resources.notice_seconds}",
        f'--output="{log}"',
        *resources.options,
    ]
    config, *options = words
    command = [python, "-m", "training.run", config, part]
    fold = ' --fold "$SLURM_ARRAY_TASK_ID"' if part in ("stage1", "heads") else ""
    rest = f" {shlex.join(options)}" if options else ""
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {one}" for one in directives),
            "",
            f"cd {shlex.quote(str(work))} || exit 1",
            *resources.setup,
            "",
            f"{shlex.join(command)}{fold}{rest} &",
            "run=$!",
            "# SLURM tells this shell that the time is nearly over, or that others need the node; the run ends after its step.",
            "trap 'kill -USR1 \"$run\" 2>/dev/null' USR1 TERM",
            'wait "$run"',
            'while kill -0 "$run" 2>/dev/null; do wait "$run"; done',
            'wait "$run"',
            "status=$?",
            f'if [ "$status" -eq {notice.RESUMABLE} ]; then',
            '    echo "goes on in another job"',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$status"',
            "",
        ]
    )


_HELP = (
    "Write a run as SLURM jobs: embedding, f' and heads of each fold, the comparison, each when what it needs is done.\n\n"
    "A job whose time runs out keeps its state and is queued again. Keys of the config can be set here as for "
    "training.run: --section.key value."
)


@app.command(help=_HELP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A TOML file, as of training.run.", show_default=False)],
    time: Annotated[str, typer.Option(help="Of each job, as sbatch takes it.")] = "08:00:00",
    gpus: Annotated[str, typer.Option(help='Of each job, as sbatch --gres takes them; "": none.')] = "gpu:1",
    cpus: Annotated[int, typer.Option(help="Of each job.", min=1)] = 8,
    memory: Annotated[str, typer.Option(help="Of each job.")] = "64G",
    embed_jobs: Annotated[int, typer.Option(help="That embed side by side.", min=1)] = 4,
    notice_seconds: Annotated[
        int, typer.Option(help="Before its end a job is told: longer than a step takes.", min=30)
    ] = 300,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="Another option of sbatch, as --partition=long; may be given several times."),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(help='A line of shell before Python starts, as "module load cuda"; several times.'),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of scripts and logs; default: slurm in run.out_dir.", show_default=False),
    ] = None,
) -> None:
    """Write a run as SLURM jobs."""
    with errors_as_messages():
        loaded = load_config(config, context.args)
        folder = (loaded.run.out_dir / "slurm" if out is None else out).absolute()
        written = scripts(
            loaded,
            words=[str(config.absolute()), *context.args],
            folder=folder,
            work=Path.cwd(),
            python=sys.executable,
            resources=Resources(
                time,
                gpus,
                cpus,
                memory,
                tuple(sbatch or ()),
                tuple(setup or ()),
                notice_seconds,
                embed_jobs,
            ),
        )
        for name, text in written.items():
            write_text(folder / name, text)
        Console().print(f"bash {shlex.quote(str(folder / 'submit.sh'))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m training.slurm")

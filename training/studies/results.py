"""python -m training.studies.results OUT --run DIR --run DIR ...: several seeds of an experiment as one table.

Each run tests every slide once with each of its encoders and heads. The AUC of a method is the share of pairs of slides
in order, of those that one model has scored both of: within a fold and a training. Its 95 % interval draws patients, runs,
encoders and heads anew: a drawn patient comes with all slides and with the predictions of all drawn trainings together, so
these aren't counted as further patients. Differences to LRMIL are paired: the same draws for both.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training import methods
from training.cohort.localisation import MIN_LESION
from training.intervals import FoldScores, resample_dealt_anew, within_fold_auc
from training.metrics import Interval, auc, call_metrics
from training.studies.attention import MASK_MPP, AttentionRow, localisation_rows
from training.studies.runs import Experiment, read_experiment

OURS = methods.OURS.key
_MOST_SHOWN = 6
"""Trainings whose AUCs are all written."""

app = Commands(add_completion=False, pretty_exceptions_enable=False)


def auc_interval(
    experiment: Experiment, method: str, minus: str | None = None, *, n_resamples: int
) -> Interval:
    """Return the AUC over all trainings with its interval; with `minus`, the paired difference to that method.

    Parameters
    ----------
    experiment : Experiment
    method, minus : str
    n_resamples : int
        The patients and seeds drawn are the same for every method of a call.

    Raises
    ------
    ConfigError
        Where the slides are too few for it.
    """
    wanted = {name: _folds_of_seeds(experiment, name) for name in (method, minus) if name is not None}
    try:
        found = resample_dealt_anew(wanted, n_resamples=n_resamples, seed=0, shared=experiment.shared)
        return (found[method] if minus is None else found[method].minus(found[minus])).interval()
    except ValueError as error:
        raise ConfigError(f"{method}: {error}") from error


def _folds_of_seeds(experiment: Experiment, method: str) -> list[list[FoldScores]]:
    patients = np.asarray(experiment.patients)
    return [
        [
            FoldScores(
                experiment.labels[inside], tuple(patients[inside].tolist()), probabilities[:, :, inside]
            )
            for inside in (folds == fold for fold in sorted(set(folds.tolist())))
        ]
        for folds, probabilities in zip(experiment.folds, experiment.probabilities[method], strict=True)
    ]


def fold_aucs(experiment: Experiment, method: str) -> list[float]:
    """Return the AUC of every fold of every training, where both classes are in it."""
    values = []
    for folds, of_seed in zip(experiment.folds, experiment.probabilities[method], strict=True):
        for probabilities in of_seed.reshape(-1, *of_seed.shape[2:]):
            for fold in sorted(set(folds.tolist())):
                inside = folds == fold
                try:
                    values.append(auc(experiment.labels[inside], probabilities[inside]))
                except ValueError:
                    continue
    return values


def _training_aucs(experiment: Experiment, method: str) -> str:
    """Write the AUC of each training; of more than six, the least, the largest and how many there are."""
    values = [
        within_fold_auc([fold._replace(probabilities=fold.probabilities[e, None, h, None]) for fold in folds])
        for folds in _folds_of_seeds(experiment, method)
        for e in range(folds[0].probabilities.shape[0])
        for h in range(folds[0].probabilities.shape[1])
    ]
    if len(values) > _MOST_SHOWN:
        return f"{min(values):.3f} to {max(values):.3f} ({len(values)})"
    return ", ".join(f"{value:.3f}" for value in values)


def render(
    experiment: Experiment, attention: list[AttentionRow], *, title: str, notes: list[str], n_resamples: int
) -> str:
    """Return an experiment as Markdown."""
    lines = [f"## {title}", "", _what(experiment), ""]
    for note in notes:
        lines += [note.strip(), ""]
    lines += _method_table(experiment, n_resamples)
    if attention:
        lines += ["", *_attention_table(attention)]
    return "\n".join(lines) + "\n"


def _what(experiment: Experiment) -> str:
    counts = Counter(experiment.labels.tolist())
    slides = ", ".join(f"{counts[index]} {name}" for index, name in enumerate(experiment.class_names))
    n_folds = " or ".join(map(str, sorted({len(set(folds.tolist())) for folds in experiment.folds})))
    return (
        f"{len(experiment.slide_ids)} test slides ({slides}) of {len(set(experiment.patients))} patients or groups; "
        f"{n_folds} {'fold' if n_folds == '1' else 'folds'}, each slide tested once a seed; "
        f"{'seed' if len(experiment.seeds) == 1 else 'seeds'} {', '.join(map(str, experiment.seeds))}"
        f"{_trainings(experiment)}."
    )


def _trainings(experiment: Experiment) -> str:
    n_encoders, n_heads = (
        max(one.shape[axis] for one in experiment.probabilities.values()) for axis in (1, 2)
    )
    if n_encoders == n_heads == 1:
        return ""
    heads = f"{n_heads} {'head' if n_heads == 1 else 'heads'} a method"
    return f", in each {heads}" + (f" and {n_encoders} encoders f'" if n_encoders > 1 else "")


def _method_table(experiment: Experiment, n_resamples: int) -> list[str]:
    lines = [
        "| method | AUC [95 % CI] | LRMIL minus this [95 % CI] | AUC of each training | mean of fold AUCs "
        "| balanced accuracy | Brier | ECE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, probabilities in experiment.probabilities.items():
        trainings = probabilities.reshape(-1, *probabilities.shape[3:])
        called = experiment.called[method].reshape(len(trainings), -1)
        each = [call_metrics(experiment.labels, *pair) for pair in zip(trainings, called, strict=True)]
        mean = {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}
        difference = ""
        if method != OURS and OURS in experiment.probabilities:
            difference = _signed(auc_interval(experiment, OURS, method, n_resamples=n_resamples))
        name = methods.full_name(method)
        folds = fold_aucs(experiment, method)
        cells = (
            f"**{name}**" if method == OURS else name,
            _plain(auc_interval(experiment, method, n_resamples=n_resamples)),
            difference,
            _training_aucs(experiment, method),
            f"{np.mean(folds):.3f}" if folds else "",
            *(f"{mean[key]:.3f}" for key in ("balanced_accuracy", "brier", "ece")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "AUC: share of pairs of slides in order, within a fold and a training. Intervals: bootstrap over patients and "
        f"seeds of runs, encoders and heads ({n_resamples} resamples); the predictions of all drawn trainings for a drawn "
        "patient enter together. Differences are paired. "
        "Balanced accuracy, Brier and ECE: mean over trainings. An AUC of 1 has an interval without width: it says that "
        "these slides hold no error, not that there is none.",
    ]
    if experiment.left_out:
        lines += ["", f"Not in all runs, so left out: {', '.join(experiment.left_out)}."]
    return lines


def _attention_table(rows: list[AttentionRow]) -> list[str]:
    lines = [
        "Attention against the known lesions:",
        "",
        "| method | ranks | AUPRC [95 % CI] | pointing game [95 % CI] | chance of both (prevalence) | slides |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row.localisation
        lines.append(
            f"| {methods.full_name(row.method)} | {row.grid} | {_plain(found.auprc)} | {_plain(found.hit)} | "
            f"{found.prevalence:.3f} | {found.n_slides} |"
        )
    lines += [
        "",
        f"A tile is positive where {MIN_LESION:.0%} of it or more is lesion. AUPRC: of a slide's attention scores against "
        "its positive tiles. Pointing game: whether the most attended tile is positive. Both are means over trainings and "
        "over positive test slides that have such a tile; intervals by bootstrap over patients. HR and LR tiles have "
        "other prevalences: compare teacher and student on the LR tiles.",
    ]
    return lines


def _plain(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _read_note(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the note {path} can't be read: {error.strerror}") from error


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Markdown file to write.", show_default=False)],
    run: Annotated[
        list[Path],
        typer.Option("--run", help="A finished run directory; repeat it for each seed.", show_default=False),
    ],
    title: Annotated[str, typer.Option(help="Heading of the section.")] = "Results",
    note: Annotated[
        list[Path] | None, typer.Option(help="Text file put under the heading; may be repeated.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of lesion masks, ID.png: how well attention finds them.")
    ] = None,
    mask_mpp: Annotated[float, typer.Option(help="µm a pixel of the masks measures.")] = MASK_MPP,
    bootstrap: Annotated[int, typer.Option(help="Resamples of patients.", min=100)] = 2000,
) -> None:
    """Write the results of an experiment as Markdown: all methods, several seeds, 95 % intervals."""
    with errors_as_messages():
        experiment = read_experiment(run)
        attention = (
            []
            if masks is None
            else localisation_rows(experiment, masks, mask_mpp=mask_mpp, n_resamples=bootstrap)
        )
        notes = [_read_note(path) for path in note or []]
        write_text(out, render(experiment, attention, title=title, notes=notes, n_resamples=bootstrap))
        typer.echo(f"Wrote {out}.")


if __name__ == "__main__":
    app(prog_name="python -m training.studies.results")

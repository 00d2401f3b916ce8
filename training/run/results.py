"""The last step: all methods compared over all folds, printed and kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from training.intervals import FoldScores
from training.methods import BY_KEY, OURS, method_name
from training.run.context import Context
from training.run.steps import Steps, once
from training.stages.distill_slides import left_out_note
from training.stages.distill_tiles import TRANSDUCTIVE_NOTE
from training.stages.evaluate import (
    MethodResult,
    called_text,
    compare_methods,
    is_unfitted,
    unfitted_note,
    unfitted_trainings,
)
from training.stages.front import Front, front_text, timed_text
from training.stages.gate import gate_note
from training.stages.heads import Fit


def compare(
    context: Context,
    steps: Steps,
    folds: Sequence[int],
    tested: Mapping[str, Sequence[FoldScores]],
    fits: Mapping[str, Sequence[Fit]],
    front: Front | None = None,
) -> dict[str, MethodResult]:
    """Compare all methods over all folds and trainings: print the table, and write ``results.json``.

    Parameters
    ----------
    context : Context
    steps : Steps
    folds : sequence of int
        Their numbers; each has a bundle.
    tested : mapping
        Method -> its folds.
    fits : mapping
        Method -> how well each of its trainings learned its own slides.
    front : Front, optional
        None where the teacher isn't compared.

    Returns
    -------
    dict
        See `compare_methods`.
    """
    config = context.config
    bundles = [fold.read_bundle_info() for fold in map(context.run_dir.fold, folds)]
    trusts = [one.trust for one in bundles if one is not None and one.trust is not None]
    quantiles = [trust.conformal.quantile for trust in trusts] if len(trusts) == len(folds) else None

    gates = {fold: gate for fold in folds if (gate := context.run_dir.fold(fold).read_gate()) is not None}
    notes = {
        row.key: "; ".join(
            note
            for note in (
                left_out_note(mine.stage2, mine.teacher_mil, mine.student_mil),
                "" if mine.stage2.gate == "off" else gate_note(gates),
            )
            if note
        )
        for row, mine in ((row, config.of_row(row)) for row in config.rows if row.is_distilled)
    }
    notes = {key: note for key, note in notes.items() if note and key in tested}

    def measure() -> None:
        results = compare_methods(
            tested,
            fits,
            context.class_names,
            n_resamples=config.evaluate.bootstrap,
            seed=config.run.seed,
            shared=steps.sharing,
            set_quantiles=quantiles,
            names={row.key: row.name for row in config.rows if row.key not in BY_KEY},
        )
        for row in () if front is None else front.rows:
            is_chosen = front is not None and row.key == front.chosen
            # These differ from run to run; what stands in the results doesn't.
            varying = {"seconds", "file_megabytes"}
            shown = row.model_dump(exclude={"key": True, "costs": varying, "of_teacher": varying})
            results[row.key]["front"] = shown | {"chosen": is_chosen}
        for method, note in notes.items():
            results[method]["left_out"] = note
        context.run_dir.write_kept_results(results)

    once(context, steps.results(tested, quantiles or (), fits, front, notes), measure, quiet=True)
    results: dict[str, MethodResult] = context.run_dir.read_kept_results()
    context.run_dir.write_results(results)
    labels = np.concatenate([fold.labels for fold in tested[OURS.key]])
    counts = [int((labels == index).sum()) for index in range(len(context.class_names))]
    slides = ", ".join(f"{count} {name}" for count, name in zip(counts, context.class_names, strict=True))
    context.reporter.say(
        f"\nTest slides: {slides}. AUC: pairs of slides within a fold and a training. Intervals: bootstrap over patients"
        f"{_trainings(context)} ({config.evaluate.bootstrap} resamples)."
    )
    transductive = config.stage1.is_transductive
    of_student = {row.key for row in config.rows if row.is_after_stage1}
    context.reporter.console.print(
        results_table(results, mark_student="*" if transductive else "", of_student=of_student, marked=notes)
    )
    if transductive:
        context.reporter.say(f"* {TRANSDUCTIVE_NOTE}")
    for key, note in notes.items():
        context.reporter.say(escape(f"° {method_name(key, results[key])}: {note}."))
    if any(is_unfitted(method, metrics) for method, metrics in results.items()):
        context.reporter.say(
            f"! {unfitted_note(config.mil.fitted_auc)} Trainings: {unfitted_trainings(results)}."
        )
    context.reporter.say(called_text(results[OURS.key], config.calibrate.positive_class(context.class_names)))
    if front is not None:
        context.reporter.console.print(front_table(front))
        context.reporter.say(f"{front_text(front)}\n{timed_text(front)}")
    return results


def _trainings(context: Context) -> str:
    n_heads, n_encoders = len(context.head_seeds), len(context.encoder_seeds)
    if n_heads == n_encoders == 1:
        return "; with one seed (--seeds) they don't hold the spread between trainings"
    encoders = "1 encoder" if n_encoders == 1 else f"{n_encoders} encoders"
    return f" and trainings ({n_heads} heads on {encoders})"


def results_table(
    results: Mapping[str, MethodResult],
    *,
    mark_student: str,
    of_student: Collection[str],
    marked: Collection[str] = (),
) -> Table:
    """Return what a run prints: a row a method, within 80 columns.

    Parameters
    ----------
    results : mapping
        Method -> its metrics, see `compare_methods`.
    mark_student : str
        Put behind the names of methods that read tiles by f'.
    of_student : collection of str
        Those methods.
    marked : collection of str
        Methods that get a mark ° of which a note below says more.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")  # a long name goes on in the next line
    for name in ("train", "AUC [95 % CI]", "LRMIL minus this", "Brier"):
        table.add_column(name, no_wrap=True)
    for method, metrics in results.items():
        table.add_row(
            method_name(method, metrics)
            + (mark_student if method in of_student else "")
            + ("°" if method in marked else ""),
            _shown(metrics["train_auc"], ".3f") + ("!" if is_unfitted(method, metrics) else ""),
            _shown(metrics["auc_interval"], ".3f"),
            _shown(metrics.get("lrmil_minus_this"), "+.3f"),
            _shown(metrics["brier"], ".3f"),
        )
    return table


def front_table(front: Front) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # within 80 columns
    limit = f"loses < at {1 - front.alpha:.0%}"
    table.add_column("what it costs a slide", overflow="fold")  # a long name goes on in the next line
    for name in (
        "s",
        "tiles",
        "MB",
        f"{limit}, val",
        "test",
        f"< {front.margin:g}?",
    ):
        table.add_column(name, no_wrap=True)
    for row in front.rows:
        losses = ["" if one is None else f"{one.limit:.3f}" for one in (row.val, row.test)]
        shown = "" if row.val is None else "shown" if row.val.shown else "not shown"
        table.add_row(
            row.name + (" *" if row.key == front.chosen else ""),
            f"{row.costs.seconds:.2g}",
            f"{row.costs.tiles:.0f}",
            f"{row.costs.read_megabytes:.2f}",
            *losses,
            shown,
        )
    return table


def _shown(value: object, how: str) -> str:
    """Write a number, or one with its interval."""
    if isinstance(value, list):
        middle, *ends = ("-" if number is None else format(number, how) for number in value)
        return f"{middle} [{', '.join(ends)}]"
    return format(value, how) if isinstance(value, float) else ""

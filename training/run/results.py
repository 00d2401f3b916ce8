"""The last step: all methods compared over all folds, printed and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from training.data.predictions import Predictions, pool
from training.methods import BY_KEY, OURS, method_name
from training.run.context import Context
from training.run.steps import Steps, once
from training.stages.distill_tiles import TRANSDUCTIVE_NOTE
from training.stages.evaluate import MethodResult, compare_methods


def compare(
    context: Context, steps: Steps, predictions: Mapping[str, Sequence[Predictions]]
) -> dict[str, MethodResult]:
    """Compare all methods over all folds: print the table, and write ``results.json``.

    Parameters
    ----------
    context : Context
    steps : Steps
    predictions : mapping
        Method -> its folds.

    Returns
    -------
    dict
        See `compare_methods`.
    """
    config = context.config
    pooled = {method: pool(folds) for method, folds in predictions.items()}
    kept = context.run_dir.kept_results_json

    def measure() -> None:
        results = compare_methods(pooled, n_resamples=config.evaluate.bootstrap, seed=config.run.seed)
        context.run_dir.write_kept_results(results)

    once(context, steps.results(pooled), measure, quiet=True)
    results: dict[str, MethodResult] = json.loads(kept.read_text(encoding="utf-8"))
    context.run_dir.write_results(results)
    ours = pooled[OURS.key]
    counts = [int((ours.labels == index).sum()) for index in range(len(ours.class_names))]
    slides = ", ".join(f"{count} {name}" for count, name in zip(counts, ours.class_names, strict=True))
    context.reporter.say(
        f"\nTest slides: {slides}; intervals by bootstrap over patients ({config.evaluate.bootstrap} resamples)."
    )
    transductive = config.stage1.is_transductive
    context.reporter.console.print(_table(results, mark_student="*" if transductive else ""))
    if transductive:
        context.reporter.say(f"* {TRANSDUCTIVE_NOTE}")
    return results


def _table(results: Mapping[str, MethodResult], *, mark_student: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)  # within 80 columns
    for name in ("method", "AUC [95 % CI]", "LRMIL minus this", "Brier"):
        table.add_column(name, no_wrap=True)
    for method, metrics in results.items():
        table.add_row(
            method_name(method) + (mark_student if BY_KEY[method].is_of_student else ""),
            _shown(metrics["auc_interval"], ".3f"),
            _shown(metrics.get("lrmil_minus_this"), "+.3f"),
            _shown(metrics["brier"], ".3f"),
        )
    return table


def _shown(value: float | list[float | None] | None, how: str) -> str:
    """Write a number, or one with its interval."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return format(value, how)
    middle, *ends = ("-" if number is None else format(number, how) for number in value)
    return f"{middle} [{', '.join(ends)}]"

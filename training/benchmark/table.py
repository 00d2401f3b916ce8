"""The table: numbers with intervals over patients and trainings, paired differences to LRMIL, and what a slide costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.benchmark.costs import computation
from training.benchmark.rows import Row
from training.benchmark.trials import Trials
from training.config import RunConfig
from training.encoders import encoder_width
from training.intervals import Array, FoldScores, Resampled, resample_aucs
from training.methods import OURS, TEACHER, Method, method_name
from training.noninferiority import holm
from training.run.layout import RunDir
from training.studies.runs import Experiment, read_experiment

METRICS = ("balanced_accuracy", "macro_f1", "brier", "ece")
_BINS = 10


class Measured(BaseModel):
    """A number with its 95 % interval; ends None where it isn't defined on most resamples."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float | None
    high: float | None


class BenchmarkRow(BaseModel):
    """A row of the table; what isn't known is None."""

    model_config = ConfigDict(frozen=True)

    key: str
    name: str
    train_auc: float | None = None
    """Of its heads on their own training slides, mean over trainings."""
    unfitted: int = 0
    """Trainings whose head didn't fit its own slides."""
    trainings: int = 0
    auc: Measured | None = None
    """Of pairs within a fold and a training."""
    balanced_accuracy: Measured | None = None
    """At the operating point that validation chose."""
    macro_f1: Measured | None = None
    brier: Measured | None = None
    ece: Measured | None = None
    lrmil_minus_this: Measured | None = None
    """AUC of LRMIL minus this row's, paired."""
    p: float | None = None
    """Two-sided, of no difference to LRMIL, by the same resamples."""
    adjusted_p: float | None = None
    """The same for all rows at once, by Holm."""
    parameters: int | None = None
    gflops: float | None = None
    """Of a slide, encoder and head."""
    tiles: float | None = None
    """Read of a slide, on average; so the next two."""
    megabytes: float | None = None
    seconds: float | None = None
    peak_gib: float | None = None
    """Most memory of the process that trained and tested it."""
    train_seconds: float | None = None
    """Of that process: what rows before it had made is not in it."""
    error: str = ""
    """Why there are no numbers."""


def read_table(rows: Sequence[Row], config: RunConfig, trials: Trials, folder: Path) -> list[BenchmarkRow]:
    """Return the table of a finished run: LRMIL and the teacher first, rows that failed last.

    Parameters
    ----------
    rows : sequence of Row
        That were to be tried.
    config : RunConfig
        Of the run that has all rows that could be had.
    trials : Trials
    folder : Path
        The run directory.
    """
    run = RunDir(folder)
    results, front = run.read_kept_results(), run.read_front()
    experiment = read_experiment([folder])
    tested = {key: folds_of(experiment, key) for key in results}
    n_resamples, seed = config.evaluate.bootstrap, config.run.seed
    aucs = resample_aucs(tested, n_resamples=n_resamples, seed=seed, shared=experiment.shared)
    calls = resample_calls(tested, n_resamples=n_resamples, seed=seed)
    p = {key: two_sided(aucs[OURS.key].minus(one)) for key, one in aucs.items() if key != OURS.key}
    adjusted = holm({key: value for key, value in p.items() if value is not None})
    costs = {} if front is None else {row.key: row.costs for row in front.rows}
    found = []
    by_key = {row.key: row for row in config.rows}
    known = {row.key: trials.get(row, config) for row in rows}
    order = [key for key in (OURS.key, TEACHER.key) if key in results]
    for key in [*order, *(key for key in results if key not in order)]:
        result, trial, cost = results[key], known.get(key), costs.get(key)
        n_tiles = None if cost is None else cost.tiles
        found.append(
            BenchmarkRow(
                key=key,
                name=method_name(key, result),
                train_auc=_number(result.get("train_auc")),
                unfitted=int(_number(result.get("n_unfitted")) or 0),
                trainings=int(_number(result.get("n_trainings")) or 0),
                auc=measured(aucs[key]),
                **{name: measured(calls[key][name]) for name in METRICS},
                lrmil_minus_this=None if key == OURS.key else measured(aucs[OURS.key].minus(aucs[key])),
                p=p.get(key),
                adjusted_p=adjusted.get(key),
                **computed(config, by_key[key], n_tiles, len(experiment.class_names)),
                tiles=n_tiles,
                megabytes=None if cost is None else cost.read_megabytes,
                seconds=None if cost is None else cost.seconds,
                peak_gib=None if trial is None or trial.peak_bytes is None else trial.peak_bytes / 2**30,
                train_seconds=None if trial is None else trial.seconds,
            )
        )
    for row in rows:
        trial = known[row.key]
        if trial is not None and trial.state == "failed":
            found.append(
                BenchmarkRow(key=row.key, name=row.key, error=trial.error, train_seconds=trial.seconds)
            )
    return found


def computed(config: RunConfig, row: Method, n_tiles: float | None, n_classes: int) -> dict[str, float | int]:
    """Return parameters and GFLOPs of a row with an encoder, where the tiles that it reads are known."""
    if row.embedding is None or n_tiles is None:
        return {}
    own = config.of_row(row)
    encoder = own.encoder.spec
    if row.is_of_student or row.is_end_to_end:
        encoder = own.student.spec_for(encoder)
    section = own.teacher_mil if row == TEACHER else own.student_mil
    head = section.spec(encoder_width(encoder), n_classes)
    whole = computation(encoder, head, tile_px=config.tiles.tile_px, n_tiles=n_tiles)
    return {"parameters": whole.parameters} | ({} if whole.flops is None else {"gflops": whole.flops / 1e9})


def folds_of(experiment: Experiment, key: str) -> list[FoldScores]:
    """Return what a row's trainings say of each fold's test slides, of a run of one seed of folds."""
    folds, patients = experiment.folds[0], np.asarray(experiment.patients)
    found = []
    for name in np.unique(folds).tolist():
        slides = np.flatnonzero(folds == name)
        found.append(
            FoldScores(
                experiment.labels[slides],
                tuple(patients[slides].tolist()),
                experiment.probabilities[key][0][:, :, slides],
                experiment.called[key][0][:, :, slides],
            )
        )
    return found


def measured(one: Resampled) -> Measured:
    """Return a number with its interval."""
    try:
        _, low, high = one.interval()
    except ValueError:
        return Measured(value=one.value, low=None, high=None)
    return Measured(value=one.value, low=low, high=high)


def two_sided(difference: Resampled) -> float | None:
    """Return the p-value of no difference by the resamples: twice the share on the other side of 0, with one more there.

    None where the difference isn't defined on most of them.
    """
    known = difference.draws[np.isfinite(difference.draws)]
    if len(known) < len(difference.draws) / 2:
        return None
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * (int(tail) + 1) / (len(known) + 1))


# --- metrics that look at each slide by itself


def resample_calls(
    methods: Mapping[str, Sequence[FoldScores]], *, n_resamples: int, seed: int
) -> dict[str, dict[str, Resampled]]:
    """Return the metrics of `METRICS` of every method, mean over its trainings, on the same resamples of patients.

    Patients are drawn inside folds, with all of their slides; trainings are drawn too, alike for methods with as many.

    Parameters
    ----------
    methods : mapping
        Method -> its folds, the same folds with the same slides for each.
    n_resamples : int
    seed : int
    """
    rng = np.random.default_rng((seed, n_resamples))
    first = next(iter(methods.values()))
    drawn = np.concatenate([_slide_weights(fold, n_resamples, rng) for fold in first], axis=1)
    weights = np.concatenate([np.ones((1, drawn.shape[1])), drawn])  # the first: each slide once
    trainings: dict[int, Array] = {}
    found = {}
    for method, folds in methods.items():
        labels = np.concatenate([fold.labels for fold in folds])
        n_classes = folds[0].probabilities.shape[-1]
        probabilities = np.concatenate([fold.probabilities for fold in folds], axis=2)
        called = np.concatenate([fold.calls for fold in folds], axis=2)
        probabilities = probabilities.reshape(-1, len(labels), n_classes)
        called = called.reshape(-1, len(labels))
        n = len(called)
        if n not in trainings:
            shares = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) / n
            trainings[n] = np.concatenate([np.full((1, n), 1 / n), shares])
        totals = {name: np.zeros(1 + n_resamples) for name in METRICS}
        for place in range(n):
            for name, values in weighted_calls(labels, probabilities[place], called[place], weights).items():
                share = trainings[n][:, place]
                totals[name] += np.where(
                    share > 0, share * values, 0
                )  # an undefined one that isn't drawn is none
        found[method] = {name: Resampled(float(values[0]), values[1:]) for name, values in totals.items()}
    return found


def weighted_calls(
    labels: NDArray[np.int64], probabilities: Array, called: NDArray[np.int64], weights: Array
) -> dict[str, Array]:
    """Return the metrics of one model where its slides count so much, (B,) each; NaN where one isn't defined.

    Parameters
    ----------
    labels, called : (N,) int arrays
    probabilities : (N, C) array
    weights : (B, N) array
    """
    n_classes = probabilities.shape[1]
    cells = np.eye(n_classes * n_classes)[labels * n_classes + called]  # (N, C^2)
    confusion = (weights @ cells).reshape(-1, n_classes, n_classes)
    right = np.diagonal(confusion, axis1=1, axis2=2)  # (B, C)
    of_class, of_call, total = confusion.sum(axis=2), confusion.sum(axis=1), weights.sum(axis=1)
    recall = np.divide(right, of_class, out=np.full_like(right, math.nan), where=of_class > 0)
    either = of_class + of_call
    f1 = np.divide(2 * right, either, out=np.full_like(right, math.nan), where=either > 0)
    squared = np.square(probabilities - np.eye(n_classes)[labels]).sum(axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.eye(_BINS)[np.minimum((confidence * _BINS).astype(int), _BINS - 1)]  # (N, bins)
    gaps = np.abs(weights @ (bins * (confidence - correct)[:, None])).sum(axis=1)
    return {
        "balanced_accuracy": recall.mean(axis=1),  # NaN where a class is absent
        "macro_f1": np.where(np.isnan(f1).any(axis=1), math.nan, f1.mean(axis=1)),
        "brier": weights @ squared / total,
        "ece": gaps / total,
    }


def _slide_weights(fold: FoldScores, n_resamples: int, rng: np.random.Generator) -> Array:
    names = sorted(set(fold.patients))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    weights: Array = drawn[:, np.searchsorted(names, fold.patients)].astype(np.float64)
    return weights


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None

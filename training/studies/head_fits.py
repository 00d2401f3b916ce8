"""``python -m training.studies.head_fits RUN_DIR``: does a head always learn its own training slides?

Trains heads of many seeds with cross-entropy on the embeddings by the teacher that a run has stored, as ``[mil]`` of
that run says or otherwise, and prints training, validation and test AUC of each. Nothing in the run is changed.
"""

from __future__ import annotations

import io
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import typer
from pydantic import ValidationError
from rich.console import Console

from napari_lrmil.errors import ConfigError
from napari_lrmil.evidence import softmax
from napari_lrmil.terminal import Commands, errors_as_messages
from training.checkpoint import Files
from training.loop import Session
from training.metrics import auc
from training.progress import Reporter
from training.run.layout import RunDir
from training.run.prepare import Prepared, prepare
from training.stages.heads import HeadFit, MILSection, bag_logits, fit_head

GOAL = 0.99
"""The training AUC that a head on embeddings which hold the answer should reach."""
app = Commands(add_completion=False, pretty_exceptions_enable=False)


class Trained(NamedTuple):
    """One head."""

    seed: int
    fit: HeadFit
    test_auc: float
    seconds: float


def train_heads(
    prepared: Prepared, section: MILSection, *, seeds: Sequence[int], hr: bool, fold: int
) -> Iterator[Trained]:
    """Yield heads of several seeds on the bags of one fold, by the teacher encoder.

    Parameters
    ----------
    prepared : Prepared
        Of a run with embeddings.
    section : MILSection
    seeds : sequence of int
    hr : bool
        HR tiles, else LR tiles.
    fold : int
    """
    context, splits, _ = prepared
    if len(section.factors) > 1:
        raise ConfigError(
            f"heads of one magnification are trained here; {section.name!r} reads {len(section.factors)}: --set name=..."
        )
    split = next((one for one in splits if one.fold == fold), None)
    if split is None:
        raise ConfigError(f"{context.run_dir.root} has no fold {fold}")
    store = context.hr_store() if hr else context.lr_store(context.encoder_hash)
    lacking = [row.slide_id for row in split.labelled if not store.has(row.slide_id)]
    if lacking:
        raise ConfigError(
            f"{context.run_dir.root} has no embeddings of {lacking[0]}: let the run finish first"
        )
    train, val, test = (context.bags(store, rows) for rows in (split.train, split.val, split.test))
    for seed in seeds:
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            files = Files(Path(folder) / "head.csv")
            model, fit = fit_head(
                train,
                val,
                section,
                Session(context.runtime.head_fabric, files, _quiet(), f"seed {seed}"),
                embed_dim=train[0].instance_embeddings.shape[1],
                n_classes=len(context.class_names),
                seed=seed,
            )
            seconds = time.perf_counter() - started
        yield Trained(seed, fit, auc(test.labels, softmax(bag_logits(model, test, context.device))), seconds)


@app.command()
def main(
    run_dir: Annotated[Path, typer.Argument(help="With embeddings of its slides.", show_default=False)],
    n_seeds: Annotated[int, typer.Option("--seeds", min=1, help="Heads to train, seeds from 0.")] = 20,
    lr: Annotated[bool, typer.Option("--lr", help="On LR tiles in place of HR tiles.")] = False,
    fold: Annotated[int, typer.Option(help="Whose slides.")] = 0,
    changed: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of [mil], in place of the run's.")
    ] = None,
) -> None:
    """Train heads of many seeds and print how well each fits."""
    with errors_as_messages():
        config = RunDir(run_dir).read_config()
        section = _changed(config.mil, changed or [])
        config = config.model_copy(
            update={"run": config.run.model_copy(update={"out_dir": run_dir}), "mil": section}
        )
        prepared = prepare(config, skip_bad=True, reporter=_quiet(), writes=False)
        print(f"[mil] {section.model_dump_json()}\n")
        print("| seed | AUC on train | validation | test | epoch kept | trained | starts | s |")
        print("|---|---|---|---|---|---|---|---|")
        rows = []
        for row in train_heads(prepared, section, seeds=range(n_seeds), hr=not lr, fold=fold):
            rows.append(row)
            fit = row.fit
            print(
                f"| {row.seed} | {_number(fit.train_auc)} | {fit.val_auc:.3f} | {row.test_auc:.3f} | {fit.epoch} | "
                f"{fit.epochs} | {fit.starts} | {row.seconds:.1f} |",
                flush=True,
            )
        reached = sum(row.fit.train_auc is not None and row.fit.train_auc >= GOAL for row in rows)
        test = np.asarray([row.test_auc for row in rows])
        print(f"\n{reached} of {len(rows)} seeds reach a training AUC of {GOAL} or more.")
        print(f"Test AUC: mean {test.mean():.3f}, smallest {test.min():.3f}, largest {test.max():.3f}.")


def _changed(section: MILSection, changes: Sequence[str]) -> MILSection:
    values = section.model_dump()
    for change in changes:
        key, _, text = change.partition("=")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    try:
        return MILSection.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"--set: {error}") from error


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


if __name__ == "__main__":
    app(prog_name="python -m training.studies.head_fits")

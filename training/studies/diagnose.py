"""``python -m training.studies.diagnose RUN_DIR...``: why distillation helped, or didn't, in finished runs.

Two questions, answered from what the run has stored. How much of the teacher's view of a tile does an LR embedding
hold: the share of the variance between tiles of the mean of their children's teacher embeddings that it explains, on
test slides, as it is (what stage 1 aims at) and through a ridge regression fitted on training slides (what it holds in
any linear form). And where does a head fail: its AUC on the slides that it was trained on, on validation and on test.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import RidgeCV

from napari_lrmil.errors import ConfigError
from napari_lrmil.evidence import softmax
from napari_lrmil.terminal import Commands, errors_as_messages
from training.data.bags import parents_in_bag
from training.data.splits import Split
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.methods import METHODS, Embedding, Method
from training.metrics import auc
from training.progress import Reporter
from training.run.context import Context
from training.run.layout import RunDir
from training.run.pipeline import load_head
from training.run.prepare import Prepared, prepare
from training.stages.heads import bag_logits

Array = NDArray[np.float64]
app = Commands(add_completion=False, pretty_exceptions_enable=False)


class Explained(NamedTuple):
    """Share of the variance of the children's mean embedding, 1 at best, 0 for a constant, below for worse."""

    as_it_is: float
    by_ridge: float


def explained_share(predicted: Array, wanted: Array) -> float:
    """Return 1 - mean squared error / variance, over all dimensions together.

    Parameters
    ----------
    predicted, wanted : (N, D) arrays
    """
    error = np.square(predicted - wanted).sum()
    return float(1 - error / np.square(wanted - wanted.mean(axis=0)).sum())


def children_means(context: Context, rows: list[SlideRow], lr: EmbeddingStore) -> tuple[Array, Array]:
    """Return LR embeddings (N, D') of tiles with children, and the teacher's means (N, D) over these children."""
    embeddings, means = [], []
    for item in context.tiles_of(rows):
        parent = parents_in_bag(item, context.geometry.ratio)
        hr = context.hr_store().read(item.row.slide_id).astype(np.float64)
        n = len(item.lr_places)
        count = np.bincount(parent[parent >= 0], minlength=n)
        total = np.zeros((n, hr.shape[1]))
        np.add.at(total, parent[parent >= 0], hr[parent >= 0])
        has = count > 0
        embeddings.append(lr.read(item.row.slide_id).astype(np.float64)[has])
        means.append(total[has] / count[has, None])
    return np.concatenate(embeddings), np.concatenate(means)


def explained(context: Context, split: Split, lr: EmbeddingStore) -> Explained:
    """Return how much of the teacher's view the LR embeddings of the test slides hold."""
    train, wanted = children_means(context, list(split.train), lr)
    test, wanted_test = children_means(context, list(split.test), lr)
    ridge = RidgeCV(alphas=np.geomspace(1, 1e5, 11)).fit(train, wanted)
    same = test.shape[1] == wanted_test.shape[1]
    return Explained(
        explained_share(test, wanted_test) if same else float("nan"),
        explained_share(ridge.predict(test), wanted_test),
    )


def head_aucs(
    context: Context, split: Split, method: Method, store: EmbeddingStore, embed_dim: int
) -> list[float]:
    """Return a head's AUC on train, validation and test slides."""
    model = load_head(context, context.run_dir.fold(split.fold), method, embed_dim)
    found = []
    for rows in (split.train, split.val, split.test):
        bags = context.bags(store, rows)
        found.append(auc(bags.labels, softmax(bag_logits(model, bags, context.device))))
    return found


def diagnose(prepared: Prepared) -> dict[str, Array]:
    """Return name -> (folds, numbers): Explained of each encoder, AUCs of each head."""
    context, splits, steps = prepared
    teacher = context.teacher_encoder()
    lr_teacher = context.lr_store(context.encoder_hash)
    found: dict[str, list[list[float]]] = {}
    for split in splits:
        plan = steps.stage1_plan(split)
        if not steps.student_file(plan).is_file():
            raise ConfigError(
                f"{context.run_dir.root} is not finished: fold {split.fold} has no student encoder"
            )
        lr_student = steps.student_store(plan)
        student_dim = context.student_encoder(steps.student_file(plan)).embed_dim
        found.setdefault("explained by f on LR", []).append([*explained(context, split, lr_teacher)])
        found.setdefault("explained by f' on LR", []).append([*explained(context, split, lr_student)])
        embedded = {
            Embedding("teacher", "hr"): (context.hr_store(), teacher.embed_dim),
            Embedding("teacher", "lr"): (lr_teacher, teacher.embed_dim),
            Embedding("student", "lr"): (lr_student, student_dim),
        }
        folder = context.run_dir.fold(split.fold)
        for method in METHODS:
            if method.embedding in embedded and folder.head(method.key).is_file():
                aucs = head_aucs(context, split, method, *embedded[method.embedding])
                found.setdefault(method.key, []).append(aucs)
    return {name: np.asarray(values) for name, values in found.items()}


@app.command()
def main(
    run_dirs: Annotated[list[Path], typer.Argument(help="Finished run directories.", show_default=False)],
) -> None:
    """Print, as Markdown, means over folds (and their range) for each run."""
    with errors_as_messages():
        for run_dir in run_dirs:
            config = RunDir(run_dir).read_config()
            quiet = Reporter(Console(file=io.StringIO()))
            found = diagnose(prepare(config, skip_bad=True, reporter=quiet, writes=False))
            print(f"### {run_dir.name}\n\n| encoder | as it is | by ridge regression |\n|---|---|---|")
            for name in [name for name in found if name.startswith("explained")]:
                print(f"| {name.removeprefix('explained by ')} | {' | '.join(map(_cell, found[name].T))} |")
            print("\n| head | AUC on train | validation | test |\n|---|---|---|---|")
            for name in [name for name in found if not name.startswith("explained")]:
                print(f"| {name} | {' | '.join(map(_cell, found[name].T))} |")
            print()


def _cell(values: Array) -> str:
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


if __name__ == "__main__":
    app(prog_name="python -m training.studies.diagnose")

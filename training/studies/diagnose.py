"""``python -m training.studies.diagnose RUN_DIR...``: why distillation helped, or didn't, in finished runs.

From what the run has stored, on the tiles and slides of each fold:

- What an LR embedding holds of the teacher's view of a tile, the mean of its children's HR embeddings. *Explained, whitened*:
  the share of the variance between tiles that a ridge regression explains, direction by direction after whitening, so that a
  few directions of large variance don't stand for all of them; of training tiles and of test tiles. *Explained, as variance*:
  the same without whitening, dominated by these directions. *CKA*: whether two embeddings call the same tiles alike (linear
  centred kernel alignment, Kornblith et al., ICML 2019).
- What can be read from a tile: a *linear probe*, fitted on training tiles, by its AUC on test tiles. With ``--masks`` for the
  lesion, else for the label of the tile's slide. The HR column is the probe on the children's mean: what a perfect student sees.
- Where a head fails: its AUC on training, validation and test slides.

A page in words follows: whether the teacher is blind, f' underfits, heads underfit, or slides are too few.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training.cohort.localisation import MIN_LESION, tile_lesion_fractions
from training.data.bags import Instances, means_of_children
from training.data.splits import Split
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.methods import HR, LR, OURS, STUDENT, TEACHER, Method, method_name
from training.metrics import auc
from training.progress import Reporter
from training.run.context import Context
from training.run.layout import RunDir
from training.run.pipeline import load_head
from training.run.prepare import Prepared, prepare
from training.stages.heads import bag_logits
from training.studies.attention import MASK_MPP, read_mask

Array = NDArray[np.float64]
app = Commands(add_completion=False, pretty_exceptions_enable=False)

_KEPT_VARIANCE = 0.99
_MOST_TILES = 8000
"""Of a part of a fold: more make no number more certain than its slides allow."""

_FITTED = 0.95
_CHANCE = 0.6
_APART = 0.05
_FEW_SLIDES = 40


class View(NamedTuple):
    """Tiles of some slides that have children: N tiles."""

    embeddings: Array
    """(N, D') by an encoder on LR"""
    wanted: Array
    """(N, D) means of the children's HR embeddings"""
    positive: NDArray[np.bool_]
    """(N,) for the probe"""


class Explained(NamedTuple):
    """What an encoder on LR holds of the teacher's view."""

    whitened_train: float
    whitened_test: float
    variance_test: float
    cka: float


class Probes(NamedTuple):
    """AUC of linear probes on test tiles; NaN where the test tiles are all of one kind."""

    lr: float
    children: float


class Facts(NamedTuple):
    """What was measured of a run, means over folds.

    Attributes
    ----------
    explained, probes : dict
        "f on LR", "f' on LR" -> what it holds.
    heads : dict
        Method -> AUC on training, validation and test slides.
    test_interval : (low, high)
        Of LRMIL's test AUC; NaN where it isn't known.
    n_train, n_test : float
        Slides of a fold.
    from_masks : bool
        Whether the probes are for lesions.
    """

    explained: dict[str, Explained]
    probes: dict[str, Probes]
    heads: dict[str, tuple[float, float, float]]
    test_interval: tuple[float, float]
    n_train: float
    n_test: float
    from_masks: bool


# --- measures


def whitening(wanted: Array) -> tuple[Array, Array]:
    """Return mean (D,) and projection (D, K) onto the directions that hold 99 % of the variance, each of variance 1."""
    mean = wanted.mean(axis=0)
    _, sizes, directions = np.linalg.svd(wanted - mean, full_matrices=False)
    variance = np.square(sizes) / len(wanted)
    kept = int(np.searchsorted(np.cumsum(variance) / variance.sum(), _KEPT_VARIANCE)) + 1
    return mean, directions[:kept].T / np.sqrt(variance[:kept])


def explained_share(predicted: Array, wanted: Array) -> float:
    """Return 1 - mean squared error / variance, over all dimensions together.

    Parameters
    ----------
    predicted, wanted : (N, D) arrays
    """
    error = np.square(predicted - wanted).sum()
    return float(1 - error / np.square(wanted - wanted.mean(axis=0)).sum())


def whitened_share(predicted: Array, wanted: Array) -> float:
    """Return the mean over dimensions of the share of each that is explained, none below 0."""
    error = np.square(predicted - wanted).mean(axis=0)
    return float(np.maximum(0, 1 - error / np.maximum(wanted.var(axis=0), 1e-12)).mean())


def linear_cka(one: Array, other: Array) -> float:
    """Return linear CKA of two embeddings of N tiles, 0 to 1: the same for turned and for scaled ones."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    cross = np.square(one.T @ other).sum()
    return float(cross / np.sqrt(np.square(one.T @ one).sum() * np.square(other.T @ other).sum()))


class ChildrenRidge(NamedTuple):
    """What an LR embedding says of the children's mean, whitened, by ridge regression."""

    mean: Array
    projection: Array
    """See `whitening`."""
    model: Pipeline

    def whitened(self, wanted: Array) -> Array:
        """Return (N, D) children's means in whitened directions, (N, K)."""
        return np.asarray((wanted - self.mean) @ self.projection)

    def said(self, embeddings: Array) -> Array:
        """Return what (N, D') LR embeddings say of them, (N, K)."""
        return np.asarray(self.model.predict(embeddings))


def fit_children_ridge(train: View) -> ChildrenRidge:
    """Fit the regression; its strength is chosen on the second half of the training tiles."""
    mean, projection = whitening(train.wanted)
    targets = (train.wanted - mean) @ projection
    half = np.arange(len(train.embeddings)) < len(train.embeddings) // 2  # slides one after the other
    scaler = StandardScaler().fit(train.embeddings)
    inputs = scaler.transform(train.embeddings)

    def held_out(alpha: float) -> float:
        model = Ridge(alpha=alpha).fit(inputs[half], targets[half])
        return whitened_share(model.predict(inputs[~half]), targets[~half])

    alpha = max(np.geomspace(1, 1e5, 6), key=held_out)
    return ChildrenRidge(
        mean, projection, make_pipeline(scaler, Ridge(alpha=alpha)).fit(train.embeddings, targets)
    )


def measure_explained(train: View, test: View, ridge: ChildrenRidge | None = None) -> Explained:
    """Return how much of the teacher's view the LR embeddings hold; `ridge` where `fit_children_ridge` was done before."""
    ridge = ridge or fit_children_ridge(train)
    of_train, of_test = ridge.said(train.embeddings), ridge.said(test.embeddings)
    return Explained(
        whitened_share(of_train, ridge.whitened(train.wanted)),
        whitened_share(of_test, ridge.whitened(test.wanted)),
        explained_share(of_test @ np.linalg.pinv(ridge.projection) + ridge.mean, test.wanted),
        linear_cka(test.embeddings, test.wanted),
    )


def probe(train: Array, positive: NDArray[np.bool_], test: Array, is_positive: NDArray[np.bool_]) -> float:
    """Return the AUC on test tiles of a logistic regression on training tiles; NaN where tiles are all of one kind."""
    if len(set(positive.tolist())) < 2 or len(set(is_positive.tolist())) < 2:
        return math.nan
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    return auc(is_positive.astype(np.int64), model.fit(train, positive).predict_proba(test))


def measure_probes(train: View, test: View) -> Probes:
    """Return what can be read from a tile, from its LR embedding and from its children's."""
    return Probes(
        probe(train.embeddings, train.positive, test.embeddings, test.positive),
        probe(train.wanted, train.positive, test.wanted, test.positive),
    )


# --- of a run


def view_of(
    context: Context,
    rows: Sequence[SlideRow],
    lr: EmbeddingStore,
    positive_of: Callable[[SlideRow, NDArray[np.int64]], NDArray[np.bool_]],
) -> View:
    """Return the LR tiles with children of some slides, at most `_MOST_TILES` of them, drawn with a fixed seed."""
    embeddings, means, positive = [], [], []
    rng = np.random.default_rng(0)
    most = max(1, _MOST_TILES // len(rows))
    for item in context.tiles_of(rows):
        hr = context.hr_store().read(item.row.slide_id).astype(np.float64)
        mean, count = means_of_children(item, context.geometry.ratio, hr)
        has = np.flatnonzero(count)
        has = np.sort(rng.permutation(has)[:most])
        embeddings.append(lr.read(item.row.slide_id).astype(np.float64)[has])
        means.append(mean[has])
        positive.append(positive_of(item.row, item.lr_places[has]))
    return View(np.concatenate(embeddings), np.concatenate(means), np.concatenate(positive))


def head_aucs(
    context: Context, split: Split, method: Method, store: Instances, embed_dim: int
) -> tuple[float, float, float]:
    """Return a head's AUC on train, validation and test slides, scaled as in the run: that can change who ranks before whom."""
    folder = context.run_dir.fold(split.fold)
    model, calibration = load_head(context, folder, method, embed_dim), folder.read_calibration(method.key)
    train, val, test = (
        auc(bags.labels, calibration.probabilities(bag_logits(model, bags, context.device)))
        for bags in (context.bags(store, rows) for rows in (split.train, split.val, split.test))
    )
    return train, val, test


def diagnose(prepared: Prepared, *, masks: Path | None = None, mask_mpp: float = MASK_MPP) -> Facts:
    """Measure a finished run, of the first seeds.

    Parameters
    ----------
    prepared : Prepared
    masks : Path, optional
        Folder of lesion masks, ``<id>.png``; slides without one hold no lesion.
    mask_mpp : float
        µm a pixel of the masks measures.

    Raises
    ------
    ConfigError
        Where the run isn't finished, or a mask can't be read.
    """
    context, splits, steps = prepared
    teacher = context.teacher_encoder()
    lr_teacher = context.lr_store(context.encoder_hash)
    tile_mask_px = context.config.tiles.tile_px * context.config.tiles.mpp_lr / mask_mpp
    last = context.class_names[-1]

    def positive_of(row: SlideRow, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        if masks is None:
            return np.full(len(places), row.label == last)
        path = masks / f"{row.slide_id}.png"
        if not path.is_file():
            return np.zeros(len(places), np.bool_)
        found: NDArray[np.bool_] = tile_lesion_fractions(read_mask(path), places, tile_mask_px) >= MIN_LESION
        return found

    explained: dict[str, list[Explained]] = {}
    probes: dict[str, list[Probes]] = {}
    heads: dict[str, list[tuple[float, float, float]]] = {}
    for split in splits:
        plan = steps.stage1_plan(split)
        if not steps.student_file(plan).is_file():
            raise ConfigError(
                f"{context.run_dir.root} is not finished: fold {split.fold} has no student encoder"
            )
        student_dim = context.student_encoder(context.run_dir.folder(plan.folder).read_student()).embed_dim
        lr_student = steps.student_store(plan)
        for name, store in (("f on LR", lr_teacher), ("f' on LR", lr_student)):
            train, test = (view_of(context, rows, store, positive_of) for rows in (split.train, split.test))
            explained.setdefault(name, []).append(measure_explained(train, test))
            probes.setdefault(name, []).append(measure_probes(train, test))
        embedded = {
            HR: (context.hr_store(), teacher.embed_dim, context.encoder_hash),
            LR: (lr_teacher, teacher.embed_dim, context.encoder_hash),
            STUDENT: (lr_student, student_dim, steps.student_hash(plan)),
        }
        folder = context.run_dir.fold(split.fold)
        for method in {row.key: row for row in (TEACHER, *context.config.rows)}.values():
            # Rows that train another f' have their encoder elsewhere.
            same = not {"student", "stage1"} & set(method.options)
            if same and method.embedding in embedded and folder.head(method.key).is_file():
                store, embed_dim, by = embedded[method.embedding]
                bags = context.several(method, by) or store
                aucs = head_aucs(context, split, method, bags, embed_dim)
                heads.setdefault(method.key, []).append(aucs)
    low, high = _interval_of(context.run_dir)
    return Facts(
        {name: Explained(*np.nanmean(values, axis=0).tolist()) for name, values in explained.items()},
        {name: Probes(*_means(values)) for name, values in probes.items()},
        {name: _three(values) for name, values in heads.items()},
        (low, high),
        float(np.mean([len(split.train) for split in splits])),
        float(np.mean([len(split.test) for split in splits])),
        masks is not None,
    )


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    """Return means over folds, of those folds where there is a value."""
    columns = np.asarray(values, np.float64).T
    return [float(np.mean(known)) if len(known := one[~np.isnan(one)]) else math.nan for one in columns]


def _three(values: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    train, val, test = np.mean(values, axis=0).tolist()
    return train, val, test


def _interval_of(run_dir: RunDir) -> tuple[float, float]:
    interval = run_dir.read_results()[OURS.key]["auc_interval"]
    low, high = (math.nan if end is None else float(end) for end in interval[1:])
    return low, high


# --- in words


def findings(facts: Facts) -> list[str]:
    """Return why a run failed, in words, the first cause first; each names the numbers that it follows from."""
    found = [*_teacher_blind(facts), *_head_underfits(facts), *_student_underfits(facts), *_too_few(facts)]
    return found or [
        "Nothing here says that the run failed: the teacher sees the class, the heads fit their training slides, and f' holds "
        "what the teacher sees."
    ]


def _teacher_blind(facts: Facts) -> list[str]:
    if TEACHER.key not in facts.heads:
        return []
    train, val, test = facts.heads[TEACHER.key]
    if train >= _FITTED and val < _CHANCE and test < _CHANCE:
        return [
            f"**The teacher is blind.** Its head fits its training slides (AUC {train:.2f}) but tells others hardly better than "
            f"chance (validation {val:.2f}, test {test:.2f}): what f sees at high resolution doesn't tell the classes, or there "
            "are too few slides to learn it from. A student can't learn from it what it doesn't see. Try another encoder f, or "
            "an encoder that was pretrained on tissue; if LR from scratch is better, use that."
        ]
    if "lr_scratch" in facts.heads and (scratch := facts.heads["lr_scratch"][1]) >= val + _APART:
        return [
            f"**The teacher has nothing to give.** On validation LR from scratch (AUC {scratch:.2f}) is better than the teacher "
            f"on HR ({val:.2f}): the class shows at low resolution. Use LR from scratch; distillation can only pull it down."
        ]
    return []


def _head_underfits(facts: Facts) -> list[str]:
    low = {name: aucs[0] for name, aucs in facts.heads.items() if aucs[0] < _FITTED}
    if not low:
        return []
    said = ", ".join(f"{method_name(name)} {value:.2f}" for name, value in low.items())
    return [
        f"**Heads underfit.** They don't tell even the slides that they were trained on apart (training AUC below {_FITTED}: "
        f"{said}). Whatever their embeddings hold, these rows say nothing of the encoder. Train longer or with a larger "
        "learning rate (mil.epochs, mil.patience, mil.learning_rate)."
    ]


def _student_underfits(facts: Facts) -> list[str]:
    ours, plain = facts.explained["f' on LR"], facts.explained["f on LR"]
    probes = facts.probes["f' on LR"]
    found = []
    misses = not math.isnan(probes.lr) and probes.children - probes.lr >= _APART
    numbers = (
        f"whitened, f' explains {ours.whitened_train:.0%} of the teacher's view of training tiles and {ours.whitened_test:.0%} "
        f"of test tiles, f without stage 1 {plain.whitened_test:.0%}"
    )
    what = "lesion" if facts.from_masks else "slide's label"
    shown = f"a linear probe for the {what} reaches AUC {probes.lr:.2f} on its tiles, {probes.children:.2f} on their children"
    if ours.whitened_test <= plain.whitened_test + 0.02:
        found.append(
            f"**Stage 1 taught f' nothing.** {numbers[0].upper()}{numbers[1:]}; {shown}. Train it longer, on more pairs "
            "(stage1.epochs, stage1.pairs_per_epoch), or look at its curves in the report."
        )
    elif misses and ours.whitened_train - ours.whitened_test < 0.1:
        found.append(
            f"**f' underfits.** It doesn't see what the teacher sees in a tile, on training tiles as little as on others: "
            f"{numbers}; {shown}. Train it longer, on more pairs or with a larger student; where the detail can't be seen at "
            "this resolution at all, take a finer one (tiles.mpp_lr) or smaller tokens."
        )
    elif misses:
        found.append(
            f"**f' has learned its training tiles by heart.** {numbers[0].upper()}{numbers[1:]}; {shown}. More slides "
            "for stage 1 help, unlabelled ones too."
        )
    return found


def _too_few(facts: Facts) -> list[str]:
    found = []
    # Of heads whose embeddings should see the class: another that doesn't generalise may have nothing to go by.
    apart = {
        name: aucs
        for name, aucs in facts.heads.items()
        if name in (TEACHER.key, OURS.key)
        and aucs[0] >= _FITTED
        and aucs[0] - aucs[2] >= 0.15
        and aucs[2] >= _CHANCE
    }
    if apart and facts.n_train < 10 * _FEW_SLIDES:
        said = ", ".join(
            f"{method_name(name)} {train:.2f} and {test:.2f}" for name, (train, _, test) in apart.items()
        )
        found.append(
            f"**Too few training slides.** Heads that fit theirs lose much on others (AUC on training and test: {said}), with "
            f"{facts.n_train:.0f} training slides a fold. More labelled slides help most; a smaller head "
            "(mil.hidden_dim) or more weight decay may."
        )
    low, high = facts.test_interval
    if not math.isnan(low) and high - low > 0.2:
        found.append(
            f"**Too few test slides to tell.** LRMIL's AUC lies between {low:.2f} and {high:.2f}: whether it is better than "
            f"another row can't be said from {facts.n_test:.0f} test slides a fold."
        )
    return found


def page(name: str, facts: Facts) -> str:
    """Return the tables of a run and what they say, as Markdown."""
    lines = [
        f"# {name}",
        "",
        "## In words",
        "",
        *(f"{number}. {text}" for number, text in enumerate(findings(facts), start=1)),
        "",
        "## What an LR embedding holds of the teacher's view",
        "",
        "| encoder | explained, whitened, training | explained, whitened, test | explained, as variance, test | CKA |",
        "|---|---|---|---|---|",
        *(_row(name, values) for name, values in facts.explained.items()),
        "",
        f"## Linear probes on test tiles, for the {'lesion' if facts.from_masks else 'label of the slide'} (AUC)",
        "",
        "| encoder | its LR tiles | mean of their children's HR embeddings |",
        "|---|---|---|",
        *(_row(name, values) for name, values in facts.probes.items()),
        "",
        "## Heads",
        "",
        "| head | AUC on train | validation | test |",
        "|---|---|---|---|",
        *(_row(name, values) for name, values in facts.heads.items()),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, values: Sequence[float]) -> str:
    return f"| {name} | {' | '.join('' if math.isnan(value) else f'{value:.2f}' for value in values)} |"


@app.command()
def main(
    run_dirs: Annotated[list[Path], typer.Argument(help="Finished run directories.", show_default=False)],
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of lesion masks, ID.png: probes are for the lesion then.", show_default=False
        ),
    ] = None,
    mask_mpp: Annotated[float, typer.Option(help="µm a pixel of the masks measures.")] = MASK_MPP,
    out: Annotated[
        Path | None, typer.Option(help="Markdown file to write, in place of printing.", show_default=False)
    ] = None,
) -> None:
    """Say why distillation helped, or didn't: a page in words, and the numbers it follows from, means over folds."""
    with errors_as_messages():
        pages = []
        for run_dir in run_dirs:
            config = RunDir(run_dir).read_config()
            quiet = Reporter(Console(file=io.StringIO()))
            found = diagnose(
                prepare(config, skip_bad=True, reporter=quiet, writes=False), masks=masks, mask_mpp=mask_mpp
            )
            pages.append(page(run_dir.name, found))
        text = "\n".join(pages)
        if out is None:
            print(text)
        else:
            write_text(out, text)
            typer.echo(f"Wrote {out}.")


if __name__ == "__main__":
    app(prog_name="python -m training.studies.diagnose")

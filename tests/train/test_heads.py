"""Heads: each learns its own slides, or is trained again and says that it doesn't; what a teacher says moves the attention."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from napari_lrmil.model.mil import MILModel
from training.checkpoint import Files
from training.data.bags import Bags
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles
from training.intervals import FoldScores
from training.loop import FitResult, Recipe, Session, Task, fit
from training.metrics import auc
from training.progress import Reporter
from training.report.stats import best_epoch
from training.run.layout import RunDir
from training.run.markers import RunDirError
from training.runtime import Runtime
from training.stages.distill_slides import SlideDistillation, Stage2Section, TeacherOutput
from training.stages.evaluate import compare_methods, is_unfitted, unfitted_trainings
from training.stages.heads import (
    Fit,
    FittedHead,
    MILSection,
    bag_logits,
    bag_outputs,
    balanced_order,
    class_weights,
    fit_head,
)

CPU = torch.device("cpu")
FABRIC = Runtime("cpu").head_fabric
DIM = 8


def session(path: Path) -> Session:
    return Session(FABRIC, Files(path, key="k"), Reporter(Console(file=io.StringIO())), "MIL")


def bags_of(folder: Path, labels: list[int], seed: int, *, signal: float = 8.0) -> Bags:
    """Bags of 16 tiles, of which the first four of a bag of class c > 0 differ in dimension c."""
    rng = np.random.default_rng(seed)
    store = EmbeddingStore(folder / f"bags-{seed}-{len(labels)}")
    rows = [SlideRow(f"s{index}", Path(), f"p{index}", "abc"[label]) for index, label in enumerate(labels)]
    for row, label in zip(rows, labels, strict=True):
        instances = rng.normal(size=(16, DIM))
        if label:
            instances[:4, label] += signal
        if not store.has(row.slide_id):
            store.write(row.slide_id, embedding=instances)
    return Bags(store, rows, tuple("abc"[: max(labels) + 1]))


def trained(folder: Path, *, signal: float = 8.0, seed: int = 0, **options: Any) -> FittedHead:
    section = MILSection(
        **({"hidden_dim": 8, "projection": (8,), "epochs": 12, "learning_rate": 1e-2} | options)
    )
    return fit_head(
        bags_of(folder, [0, 1] * 8, 0, signal=signal),
        bags_of(folder, [0, 1] * 5, 1, signal=signal),
        section,
        session(folder / "m.csv"),
        embed_dim=DIM,
        n_classes=2,
        seed=seed,
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the loop --------------------------------------------------------------------------------------------------------


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return self.w.sum()


def count(path: Path, scores: list[float], **options: Any) -> tuple[FitResult, list[float]]:
    """Four steps an epoch, validated with given scores; also the weight before each step."""
    model, told, seen = Counter(), iter(scores), []

    def losses(wrapped: nn.Module, batch: int) -> dict[str, Tensor]:
        seen.append(model.w.item())
        return {"loss": -wrapped()}

    task: Task[int] = Task(
        batches=lambda epoch: range(4),
        steps_per_epoch=4,
        losses=losses,
        validate=lambda: {"val_loss": -next(told)},
        score=lambda metrics: (-metrics["val_loss"],),
        names=lambda batch, losses: "",
    )
    recipe = Recipe(epochs=len(scores), learning_rate=0.1, weight_decay=0.0, seed=0, **options)
    return fit(model, task, recipe, session(path)), seen


def test_weights_of_a_first_lucky_epoch_are_not_kept(tmp_path: Path) -> None:
    scores = [0.9, 0.2, 0.5, 0.7, 0.6, 0.3, 0.1]
    assert count(tmp_path / "a.csv", scores)[0].best_epoch == 0
    result, _ = count(tmp_path / "b.csv", scores, min_epochs=3, patience=2)
    assert result.best_epoch == 3
    assert len(result.history) == 6  # two epochs without a better one, counted from the fourth
    kept = [row["kept"] for row in rows_of(tmp_path / "b.csv")]
    assert kept == ["0", "0", "0", "1", "0", "0"]
    curve = {
        name: np.array([float(row[name]) for row in rows_of(tmp_path / "b.csv")])
        for name in ("val_loss", "kept")
    }
    assert best_epoch(curve) == 3
    del curve["kept"]  # a curve of an earlier version
    assert best_epoch(curve) == 0


def test_patience_does_not_count_before_the_least_number_of_epochs(tmp_path: Path) -> None:
    falling = [0.9 - 0.1 * epoch for epoch in range(8)]
    result, _ = count(tmp_path / "m.csv", falling, min_epochs=5, patience=1)
    assert (result.best_epoch, len(result.history)) == (4, 6)


def test_a_constant_rate_rises_first(tmp_path: Path) -> None:
    _, seen = count(tmp_path / "m.csv", [0.1, 0.2, 0.3], rising_epochs=1.0)
    # Adam's steps are as long as the rate here: a quarter, a half, three quarters, then all of 0.1.
    assert np.diff(seen) == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 8, rel=1e-3)


# --- how well a head fits --------------------------------------------------------------------------------------------


def test_a_head_says_how_well_it_fits_its_own_slides(tmp_path: Path) -> None:
    model, found = trained(tmp_path)
    train, val = bags_of(tmp_path, [0, 1] * 8, 0), bags_of(tmp_path, [0, 1] * 5, 1)
    for bags, said in ((train, found.train_auc), (val, found.val_auc)):
        logits = torch.from_numpy(bag_logits(model, bags, CPU))
        assert said == pytest.approx(auc(bags.labels, torch.softmax(logits, 1).numpy()), abs=1e-9)
    assert found.fitted
    assert found.train_auc == 1.0
    assert found.starts == 1
    rows = rows_of(tmp_path / "m.csv")
    assert [int(row["kept"]) for row in rows].index(1) == found.epoch >= 5  # half of the twelve
    assert len(rows) == found.epochs
    assert float(rows[found.epoch]["train_auc"]) > 0.9  # of the epoch's own steps


def test_a_head_that_can_not_fit_is_trained_again_and_marked(tmp_path: Path) -> None:
    """Its rate is so small that nothing is learned; each start has other weights."""
    options: dict[str, Any] = {"learning_rate": 1e-9, "fitted_auc": 1.0, "epochs": 2}
    tries = [
        trained(tmp_path / str(start), restarts=start, signal=0.0, seed=2, **options) for start in range(3)
    ]
    assert [one.fit.starts for one in tries] == [1, 2, 3]
    assert not any(one.fit.fitted for one in tries)
    scores = [(round(one.fit.val_auc, 6), -one.fit.val_loss) for one in tries]
    assert scores == sorted(scores)  # of three starts the best on validation, so never worse than of two
    assert len(set(scores)) == 3  # with this seed each start validates better than those before
    # The curve is of the start that is kept.
    for start, one in enumerate(tries):
        row = next(row for row in rows_of(tmp_path / str(start) / "m.csv") if row["kept"] == "1")
        assert float(row["val_loss"]) == one.fit.val_loss


def test_a_head_that_did_not_fit_is_given_more_time(tmp_path: Path) -> None:
    """At this rate six epochs learn nothing of these bags; the second start has twelve, and doesn't stop before six."""
    options: dict[str, Any] = {"learning_rate": 2e-4, "fitted_auc": 0.95, "epochs": 6, "patience": 1}
    first = trained(tmp_path / "once", restarts=0, **options).fit
    assert (first.starts, first.fitted) == (1, False)
    again = trained(tmp_path / "again", restarts=2, **options).fit
    assert again.starts > 1
    rows = rows_of(tmp_path / "again" / "m.csv")
    assert 6 <= len(rows) <= 12
    section = MILSection(epochs=6)
    assert (section.recipe(0).epochs, section.recipe(0).min_epochs) == (6, 3)
    assert (section.recipe(0, again=True).epochs, section.recipe(0, again=True).min_epochs) == (12, 6)


def test_a_start_that_fits_goes_before_one_that_validates_better_but_does_not(tmp_path: Path) -> None:
    """Seen through `fitted_auc`: the first start that reaches it ends the search."""
    found = trained(tmp_path, fitted_auc=0.99, restarts=5).fit
    assert (found.starts, found.fitted) == (1, True)


def test_what_is_kept_of_a_head_is_read_again(tmp_path: Path) -> None:
    head = trained(tmp_path)
    folder = RunDir(tmp_path / "run").fold(0)
    with pytest.raises(RunDirError, match=r"fits/lrmil\.json can't be read"):
        folder.read_fit("lrmil")
    folder.write_head("lrmil", head)
    assert folder.read_fit("lrmil") == Fit(train_auc=head.fit.train_auc, fitted=True)
    spec = MILSection(hidden_dim=8, projection=(8,)).spec(DIM, 2)
    bags = bags_of(tmp_path, [0, 1] * 5, 1)
    again = bag_logits(folder.read_head("lrmil", spec), bags, CPU)
    np.testing.assert_array_equal(again, bag_logits(head.model, bags, CPU))


def test_the_table_says_how_well_heads_fit_and_marks_those_that_do_not(tmp_path: Path) -> None:
    labels = np.array([0, 1, 0, 1])
    scores = np.array([0.2, 0.9, 0.4, 0.6])
    fold = FoldScores(labels, ("a", "b", "c", "d"), np.stack([1 - scores, scores], axis=1)[None, None])
    fits = {
        "lrmil": [Fit(train_auc=1.0, fitted=True), Fit(train_auc=0.96, fitted=True)],
        "lr_scratch": [Fit(train_auc=0.5, fitted=False), Fit(train_auc=None, fitted=False)],
        "rgb": [Fit(train_auc=0.6, fitted=False)] * 2,
    }
    results = compare_methods({key: [fold, fold] for key in fits}, fits, ("a", "b"), n_resamples=100, seed=0)
    assert [results[method]["train_auc"] for method in fits] == [pytest.approx(0.98), 0.5, 0.6]
    assert [results[method]["n_unfitted"] for method in fits] == [0, 2, 2]
    # Colours alone have no head that could have been trained better.
    assert [is_unfitted(method, results[method]) for method in fits] == [False, True, False]
    assert unfitted_trainings(results) == "2 of 2 of LR from scratch"


def test_few_epochs_leave_the_second_half_to_choose_from() -> None:
    assert MILSection(epochs=4, min_epochs=20).recipe(0).min_epochs == 2
    assert MILSection(epochs=1).recipe(0).min_epochs == 1
    assert MILSection(epochs=50, min_epochs=20).recipe(0).min_epochs == 20


# --- classes of unlike size ------------------------------------------------------------------------------------------


def test_class_weights_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    weights = class_weights(labels, 3)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 6, 10 / 6])
    assert weights[labels].mean() == pytest.approx(1.0)
    assert class_weights(np.array([0, 1, 0, 1]), 2).tolist() == [1, 1]


def test_a_balanced_epoch_has_as_many_bags_of_each_class() -> None:
    labels = np.array([0] * 13 + [1] * 5 + [2] * 2)
    for seed in range(20):
        order = balanced_order(labels, np.random.default_rng(seed))
        counts = np.bincount(labels[order])
        assert (len(order), counts.max() - counts.min()) == (20, 1)
        times = np.bincount(order, minlength=20)
        assert set(times[labels == 2]) <= {3, 4}  # each of a small class before one is drawn again
        assert times[labels == 0].max() == 1
    assert sorted(balanced_order(np.array([0, 1] * 4), np.random.default_rng(0))) == list(range(8))


@pytest.mark.parametrize("balance", ["none", "loss", "bags"])
def test_balance_reaches_the_loss_and_the_bags(tmp_path: Path, balance: str) -> None:
    labels = [0] * 12 + [1] * 4
    train = bags_of(tmp_path, labels, 0)
    section = MILSection(epochs=1, learning_rate=1e-12, dropout=0.0, restarts=0, balance=balance)
    seen: list[str] = []

    def spy(bag: Any, output: Any) -> dict[str, Tensor]:
        seen.append(bag.name)
        return {}

    model, _ = fit_head(
        train,
        bags_of(tmp_path, [0, 1] * 3, 1),
        section,
        session(tmp_path / "m.csv"),
        embed_dim=DIM,
        n_classes=2,
        seed=0,
        extra_loss=spy,
    )
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(bag_logits(model, train, CPU)), torch.tensor(labels), reduction="none"
    ).numpy()
    means = loss[:12].mean(), loss[12:].mean()
    expected = (12 * means[0] + 4 * means[1]) / 16 if balance == "none" else (means[0] + means[1]) / 2
    tolerance = 0.05 if balance == "bags" else 2e-3  # 8 of the 12; and weights are rounded after training
    assert float(rows_of(tmp_path / "m.csv")[0]["train_ce"]) == pytest.approx(expected, rel=tolerance)
    assert sum(int(name[1:]) >= 12 for name in seen) == (8 if balance == "bags" else 4)


# --- what the teacher says reaches the prediction --------------------------------------------------------------------


def attention_on(model: MILModel, bags: Bags, tiles: slice) -> float:
    return float(
        np.mean([float(one.attention_scores[0, tiles].sum()) for one in bag_outputs(model, bags, CPU)])
    )


@pytest.fixture
def teacher_of() -> Any:
    """The teacher attends to the tiles 4 to 7 of every bag, which are those that differ in dimension 5."""

    def make(bags: Bags, section: Stage2Section) -> SlideDistillation:
        places = np.argwhere(np.ones((4, 4), bool))
        hr_places = np.argwhere(np.ones((8, 8), bool))
        rows = [SlideRow(bag.name, Path(), bag.name, "a") for bag in bags]
        inside = (hr_places[:, 0] // 2 == 1).astype(np.float32)  # the second row of LR tiles
        scores = torch.from_numpy((inside + 1e-3) / (inside + 1e-3).sum())
        said = {row.slide_id: TeacherOutput(torch.zeros(2), scores.log(), scores) for row in rows}
        tiles = [SlideTiles(row, (4, 4), places, hr_places) for row in rows]
        return SlideDistillation(section, tiles, said, ratio=2, device=CPU)

    return make


def marked_bags(folder: Path, n: int, seed: int) -> Bags:
    """16 tiles, of which 4 to 7 differ in dimension 5, whatever the label."""
    rng = np.random.default_rng(seed)
    store = EmbeddingStore(folder / f"marked-{seed}")
    rows = [SlideRow(f"s{index}", Path(), f"p{index}", "ab"[index % 2]) for index in range(n)]
    for row in rows:
        instances = rng.normal(size=(16, DIM))
        instances[4:8, 5] += 4
        if not store.has(row.slide_id):
            store.write(row.slide_id, embedding=instances)
    return Bags(store, rows, ("a", "b"))


@pytest.mark.parametrize("seed", range(5))
def test_l_hard_alone_moves_the_attention_to_the_guided_tiles(
    tmp_path: Path, teacher_of: Any, seed: int
) -> None:
    """No label, no bag logits, no soft attention: from a quarter of the attention, by chance, to most of it."""
    alone = Stage2Section(l_ce=0.0, l_bag=0.0, l_soft=0.0, l_hard=1.0)
    train, held_out = marked_bags(tmp_path, 12, 0), marked_bags(tmp_path, 8, 1)
    for rate, low, high in ((1e-12, 0.1, 0.5), (1e-2, 0.7, 1.0)):
        model, _ = fit_head(
            train,
            held_out,
            MILSection(
                hidden_dim=8, projection=(8,), epochs=20, min_epochs=20, learning_rate=rate, restarts=0
            ),
            session(tmp_path / "m.csv"),
            embed_dim=DIM,
            n_classes=2,
            seed=seed,
            ce_weight=0.0,
            extra_loss=teacher_of(train, alone),
        )
        assert low < attention_on(model, held_out, slice(4, 8)) <= high


@pytest.mark.parametrize(
    ("hard", "n_terms"), [("instances", (1, 0)), ("attention", (0, 1)), ("both", (1, 1))]
)
def test_what_l_hard_trains(tmp_path: Path, teacher_of: Any, hard: Any, n_terms: tuple[int, int]) -> None:
    train = marked_bags(tmp_path, 2, 0)
    section = Stage2Section(l_bag=0.0, l_soft=0.0, l_hard=0.5, hard=hard, k=4)
    model = trained(tmp_path).model
    bag = train[0]
    with torch.no_grad():
        output = model(bag.instance_embeddings)
    found = teacher_of(train, section)(bag, output)["hard"]
    # The four guided tiles against the last four.
    top, bottom = range(4, 8), [12, 13, 14, 15]
    log_p = torch.log_softmax(output.instance_logits, 1)
    instances = -sum([log_p[tile, 1] for tile in top] + [log_p[tile, 0] for tile in bottom]) / 8
    logits = output.attention_logits[0]
    ranking = sum(math.log1p(math.exp(logits[low] - logits[high])) for low in bottom for high in top) / 16
    assert float(found) == pytest.approx(
        0.5 * (n_terms[0] * float(instances) + n_terms[1] * ranking), rel=1e-4
    )

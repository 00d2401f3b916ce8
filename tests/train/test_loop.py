"""fit(): the best epoch's weights stay, training stops in time, and a loss that breaks says where."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file as load_tensors
from torch import Tensor, nn

from napari_lrmil.atomic import replacing
from napari_lrmil.model.mil import MILOutput
from training.checkpoint import Files
from training.data.bags import Bags, SlideBag
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.files import write_json
from training.loop import FitResult, Recipe, Session, Task, TrainingDiverged, fit
from training.progress import Reporter
from training.run.layout import RunDir
from training.runtime import Runtime
from training.stages.heads import MILSection, bag_logits, fit_head

CPU = torch.device("cpu")
FABRIC = Runtime("cpu").head_fabric


def reporter() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return self.w.sum()


def run_fit(model: nn.Module, scores: list[float], tmp_path: Path, **options: Any) -> FitResult:
    """A model that counts its steps in `w`, validated with given scores."""
    told = iter(scores)

    def losses(wrapped: nn.Module, batch: int) -> dict[str, Tensor]:
        assert model.training
        return {"loss": -wrapped()}

    def validate() -> dict[str, float]:
        assert not model.training
        return {"val": next(told)}

    task: Task[Any] = Task(
        batches=lambda epoch: range(2),
        steps_per_epoch=2,
        losses=losses,
        validate=validate,
        score=lambda metrics: (metrics["val"],),
        names=lambda batch, losses: f"batch {batch}",
    )
    recipe = Recipe(epochs=len(scores), learning_rate=0.1, weight_decay=0.0, seed=0)
    of_recipe = {name: options.pop(name) for name in ("accumulate", "patience", "warmup") if name in options}
    files = Files(metrics_csv=tmp_path / "metrics" / "fit.csv")
    return fit(
        model,
        replace(task, **options),
        replace(recipe, **of_recipe),
        Session(FABRIC, files, reporter(), "Fit"),
    )


def test_the_best_epochs_weights_stay(tmp_path: Path) -> None:
    model = Model()
    result = run_fit(model, [0.1, 0.9, 0.5, 0.9], tmp_path)
    assert result.best_epoch == 1  # of equal ones the first
    assert model.w.item() == pytest.approx(4 * 0.1, rel=1e-3)  # two epochs of two steps, Adam's 0.1 each
    assert not model.training
    with (tmp_path / "metrics" / "fit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val"] for row in rows] == ["0.1", "0.9", "0.5", "0.9"]
    assert float(rows[0]["train_loss"]) == pytest.approx((0 - 0.1) / 2, rel=1e-3)


def test_patience_counts_epochs_without_a_better_score(tmp_path: Path) -> None:
    result = run_fit(Model(), [0.5, 0.6, 0.6, 0.4, 0.9], tmp_path, patience=2)
    assert len(result.history) == 4
    assert result.best_epoch == 1
    assert len(run_fit(Model(), [0.5, 0.4, 0.6, 0.4, 0.3], tmp_path, patience=2).history) == 5


def test_a_broken_loss_says_where_and_leaves_the_best_weights(tmp_path: Path) -> None:
    model = Model()
    bags = [SlideBag("s1", torch.zeros(1, 1), 0), SlideBag("s2", torch.zeros(1, 1), 0)]
    steps = 0

    def losses(wrapped: nn.Module, bag: SlideBag) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        return {"loss": -wrapped() * (float("nan") if steps == 4 else 1.0)}

    with pytest.raises(
        TrainingDiverged,
        match=r"Fit: the loss is nan at epoch 1, step 2, on s2\. Look at that slide, or try a smaller .*"
        r"Kept: the weights of epoch 0, in .*fit\.last_good\.safetensors\.",
    ):
        run_fit(
            model,
            [0.5, 0.6],
            tmp_path,
            batches=lambda epoch: bags,
            losses=losses,
            names=lambda bag, losses: bag.name,
        )
    assert model.w.item() == pytest.approx(0.2, rel=1e-3)
    kept = load_tensors(Files(tmp_path / "metrics" / "fit.csv").last_good)
    assert torch.equal(kept["w"], model.w.detach())


def test_a_broken_gradient_says_so_before_it_reaches_a_weight(tmp_path: Path) -> None:
    """The loss itself is a number: the root of 0 has an endless slope."""
    model = Model()
    with pytest.raises(
        TrainingDiverged,
        match=r"the gradient is (inf|nan) at epoch 0, step 1, on batch 0\..*the initial weights",
    ):
        run_fit(model, [0.5], tmp_path, losses=lambda wrapped, batch: {"loss": wrapped().sqrt()})
    assert model.w.item() == 0


@pytest.mark.parametrize("n_batches", [1, 3, 5])
def test_accumulated_batches_make_one_step_and_an_epochs_rest_makes_one_too(
    tmp_path: Path, n_batches: int
) -> None:
    model = Model()
    seen: list[float] = []

    def losses(wrapped: nn.Module, batch: int) -> dict[str, Tensor]:
        seen.append(model.w.item())
        return {"loss": -wrapped()}

    run_fit(
        model,
        [0.1, 0.2],
        tmp_path,
        batches=lambda epoch: range(n_batches),
        steps_per_epoch=n_batches,
        losses=losses,
        accumulate=2,
    )
    steps_before = [
        count // 2 + epoch * -(-n_batches // 2) for epoch in range(2) for count in range(n_batches)
    ]
    # Adam's steps of 0.1.
    assert seen == pytest.approx([0.1 * steps for steps in steps_before], rel=1e-4)


def test_accumulated_gradients_are_the_mean_of_their_batches_by_size(tmp_path: Path) -> None:
    """The last step of an epoch has one batch instead of two; clipping starts at a norm of 5."""
    model, slopes = Model(), []
    slope_and_size = [(6.0, 1), (2.0, 3), (4.0, 2)]

    def losses(wrapped: nn.Module, batch: tuple[float, int]) -> dict[str, Tensor]:
        return {"loss": batch[0] * (1 + wrapped() - wrapped().detach())}

    step = torch.optim.AdamW.step

    def looking(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        assert model.w.grad is not None
        slopes.append(model.w.grad.item())
        return step(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", looking)
        result = run_fit(
            model,
            [0.1, 0.2],
            tmp_path,
            losses=losses,
            accumulate=2,
            batches=lambda epoch: slope_and_size,
            steps_per_epoch=3,
            size=lambda batch: batch[1],
        )
    assert slopes == pytest.approx([(6 * 1 + 2 * 3) / 4, 4.0] * 2, rel=1e-4)
    expected = (6 * 1 + 2 * 3 + 4 * 2) / 6
    assert [row["train_loss"] for row in result.history] == pytest.approx([expected] * 2, rel=1e-6)


def test_a_validation_that_is_no_number_stops_too(tmp_path: Path) -> None:
    """It compares as worse than everything: the first weights would be kept, and nobody told."""
    with pytest.raises(
        TrainingDiverged, match=r"Fit: the validation is nan at epoch 1, step 2, on val of .*"
    ):
        run_fit(Model(), [0.5, float("nan"), 0.7], tmp_path)


def test_warm_up_rises_then_falls_to_zero(tmp_path: Path) -> None:
    model = Model()
    steps: list[float] = []

    def losses(wrapped: nn.Module, batch: int) -> dict[str, Tensor]:
        steps.append(model.w.item())
        return {"loss": -wrapped()}

    run_fit(
        model,
        [float(epoch) for epoch in range(50)],
        tmp_path,
        losses=losses,
        warmup=True,
    )
    sizes = np.diff(steps)
    assert sizes[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=1e-2)  # 5 % of 100 steps
    assert (np.diff(sizes[5:]) <= 1e-6).all()
    assert sizes[-1] < 0.001


# --- MIL heads -------------------------------------------------------------------------------------------------------


def bags_of(folder: Path, n: int, seed: int) -> Bags:
    """Positive bags hold three instances that differ."""
    rng = np.random.default_rng(seed)
    store = EmbeddingStore(folder / f"bags-{n}-{seed}")
    rows = [SlideRow(f"s{index}", Path(), f"p{index}", "ab"[index % 2]) for index in range(n)]
    for index, row in enumerate(rows):
        instances = rng.normal(size=(20, 8))
        if index % 2:
            instances[:3, 0] += 8
        if not store.has(row.slide_id):
            store.write(row.slide_id, embedding=instances)
    return Bags(store, rows, ("a", "b"))


SECTION = MILSection(hidden_dim=16, epochs=25, learning_rate=5e-3)


def head(tmp_path: Path, *, section: MILSection = SECTION, seed: int = 0, **options: Any) -> Any:
    fitted = fit_head(
        bags_of(tmp_path, 20, 0),
        bags_of(tmp_path, 10, 1),
        section,
        Session(FABRIC, Files(metrics_csv=tmp_path / "m.csv"), reporter(), "MIL"),
        embed_dim=8,
        n_classes=2,
        seed=seed,
        **options,
    )
    return fitted.model


def test_a_head_learns_and_the_seed_decides_it(tmp_path: Path, one_thread: None) -> None:
    model = head(tmp_path)
    test = bags_of(tmp_path, 40, 2)
    right = bag_logits(model, test, CPU).argmax(1) == test.labels
    assert test.labels.tolist() == [bag.label for bag in test]
    assert right.mean() > 0.9
    torch.manual_seed(99)  # whatever came before
    same, other = head(tmp_path).state_dict(), head(tmp_path, seed=1).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())
    assert not all(torch.equal(value, other[name]) for name, value in model.state_dict().items())


def test_extra_losses_are_added_and_read_bags_by_name(tmp_path: Path) -> None:
    seen: set[str] = set()

    def extra(bag: SlideBag, output: Any) -> dict[str, Tensor]:
        seen.add(bag.name)
        return {"extra": output.attention_logits.square().mean()}

    head(tmp_path, extra_loss=extra, section=MILSection(hidden_dim=4, epochs=2))
    assert seen == {f"s{index}" for index in range(20)}
    with (tmp_path / "m.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["train_loss"]) == pytest.approx(
        float(row["train_ce"]) + float(row["train_extra"]), rel=1e-5
    )


def test_a_head_that_breaks_names_the_slide(tmp_path: Path) -> None:
    def extra(bag: SlideBag, output: Any) -> dict[str, Tensor]:
        return {"extra": output.bag_logits.sum() * (float("inf") if bag.name == "s7" else 0.0)}

    with pytest.raises(TrainingDiverged, match=r"MIL: the loss is .* at epoch 0, step \d+, on s7\."):
        head(tmp_path, extra_loss=extra)


# --- the run directory -----------------------------------------------------------------------------------------------


def test_stamps(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.prepare()
    markers = run_dir.markers
    assert not markers.is_done("fold0/stage1", "key")
    markers.write("fold0/stage1", "key")
    assert markers.is_done("fold0/stage1", "key")
    assert not markers.is_done("fold0/stage1", "other")
    assert not markers.is_done("fold1/stage1", "key")
    markers.forget("fold0/stage1")
    markers.forget("fold0/stage1")
    assert not markers.is_done("fold0/stage1", "key")


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})

    def broken() -> Iterator[None]:
        with replacing(path) as scratch:
            scratch.write_text("half")
            yield

    writing = broken()
    next(writing)
    with pytest.raises(KeyboardInterrupt):
        writing.throw(KeyboardInterrupt())
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [item.name for item in path.parent.iterdir()] == ["x.json"]


def test_no_step_asks_the_driver_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning has torch ask NVML, which loads a library, wherever it asks whether there is a GPU: an optimizer at each step."""
    asked: list[int] = []
    monkeypatch.setattr("torch.cuda._device_count_nvml", lambda: asked.append(1) or -1)
    monkeypatch.setattr("torch.cuda._is_compiled", lambda: True)
    run_fit(Model(), [0.0, 1.0], tmp_path)
    assert not asked


@pytest.mark.parametrize(("n_tiles", "threads"), [(4, 1), (400, 2)])
def test_a_head_of_small_bags_learns_in_one_thread(
    n_tiles: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.stages.heads._ONE_THREAD", 100 * 8)
    store = EmbeddingStore(tmp_path)
    rows = [SlideRow(f"s{number}", Path(), f"p{number}", "ab"[number % 2]) for number in range(4)]
    for number, row in enumerate(rows):
        store.write(row.slide_id, embedding=np.full((n_tiles, 8), number % 2))
    bags = Bags(store, rows, ("a", "b"))
    seen: list[int] = []

    def counted(bag: SlideBag, output: MILOutput) -> dict[str, Tensor]:
        seen.append(torch.get_num_threads())
        return {}

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        session = Session(FABRIC, Files(metrics_csv=tmp_path / "head.csv"), reporter(), "head")
        section = MILSection(epochs=1, restarts=0)
        fit_head(bags, bags, section, session, embed_dim=8, n_classes=2, seed=0, extra_loss=counted)
        assert set(seen) == {threads}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""The two distillation steps put together: each loss meets what it should be compared with."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import absolute_rows, read_rows, write_config, write_rows
from safetensors.torch import load_file as load_tensors

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.bundle import stored_weights
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import MILOutput
from training.config import load_config
from training.data.pairs import PairBatch
from training.loop import Recipe, Session, Task
from training.methods import BY_KEY, OURS, TEACHER
from training.progress import Reporter
from training.run import pipeline
from training.run.pipeline import Embedded, Head, train_encoder
from training.run.prepare import Prepared, prepare
from training.stages import distill_tiles
from training.stages.distill_tiles import Distiller
from training.stages.embed_tiles import embed_slides
from training.stages.heads import bag_outputs

pytestmark = pytest.mark.slow


class Stop(Exception):
    """Ends a step once it has shown its loss."""


@pytest.fixture
def prepared(copied: Callable[..., Path], cohort: Path) -> Callable[..., Prepared]:
    """Context, splits and steps of a finished run, with other options."""

    def make(*overrides: str) -> Prepared:
        folder = copied()
        config = load_config(write_config(folder, cohort), ["--run.out_dir", str(folder / "run"), *overrides])
        return prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO())))

    return make


@pytest.mark.parametrize("standardise", ["true", "false"])
@pytest.mark.parametrize("weighting", ["uniform", "attention"])
def test_stage1_compares_blocks_of_tokens_with_the_children_over_them(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch, weighting: str, standardise: str
) -> None:
    context, (split,), steps = prepared(
        *("--stage1.lambda_layer", "0.5", "--stage1.lambda_last", "2", "--stage1.lambda_attn", "3.0"),
        *("--stage1.weighting", weighting, "--stage1.standardise", standardise),
    )
    teacher = context.teacher_encoder()
    checked = []
    monkeypatch.setattr(distill_tiles, "_MOST_TILES", 10**9)
    plan = steps.stage1_plan(split)
    final_spread, layer_spreads = np.ones(24), np.ones((2, 24))
    if standardise == "true":
        store, names = context.hr_store(), [row.slide_id for row in plan.train]
        targets = [store.read(name).astype(np.float64) for name in names]
        stored = store.spec["layers"]
        assert stored == [0, 1, 2]  # one more than is matched
        tokens = [store.read(name, "layer_class_tokens").astype(np.float64)[[0, 2]] for name in names]
        final_spread = np.concatenate(targets).std(axis=0)
        layer_spreads = np.concatenate(tokens, axis=1).std(axis=1)
        for of_target in (final_spread, *layer_spreads):
            of_target[:] = np.maximum(of_target, 0.01 * of_target.mean())

    def looking(model: Distiller, task: Task[PairBatch], recipe: Recipe, session: Session) -> None:
        batch = next(iter(task.batches(0)))
        model.eval()  # no dropout here, but batch norm in other encoders
        assert model.student is not teacher
        with torch.no_grad():
            losses = task.losses(model, batch)
            output = teacher(teacher.preprocess(batch.tiles), (0, 2))  # the student starts as the teacher
        layers, lasts, attentions = [], [], []
        for tile in range(len(batch.tiles)):
            layer, last, attention = 0.0, 0.0, 0.0
            children = [k for k in range(16) if batch.valid[tile, k]]
            scores = {k: float(batch.child_scores[tile, k]) for k in children}
            total = sum(scores.values())
            for k in children:
                row, col = divmod(k, 4)  # 4 x 4 tokens: a child's block is one token
                for tap in range(2):
                    token = output.layer_token_maps[tap, tile, :, row, col]
                    error = token - batch.child_layer_tokens[tap, tile, k]
                    layer += float((error / torch.from_numpy(layer_spreads[tap])).square().mean()) / (
                        2 * len(children)
                    )
                error = output.token_map[tile, :, row, col] - batch.child_embeddings[tile, k]
                last += float((error / torch.from_numpy(final_spread)).square().mean()) / len(children)
                weight = scores[k] / total if weighting == "attention" else 1 / len(children)
                error = output.embedding[tile] - batch.child_embeddings[tile, k]
                attention += weight * float((error / torch.from_numpy(final_spread)).square().mean())
            layers.append(layer)
            lasts.append(last)
            attentions.append(attention)
        assert float(losses["layer"]) == pytest.approx(sum(layers) / len(layers), rel=1e-4)
        assert float(losses["last"]) == pytest.approx(sum(lasts) / len(lasts), rel=1e-4)
        assert float(losses["attention"]) == pytest.approx(sum(attentions) / len(attentions), rel=1e-4)
        per_tile = [
            0.5 * layer + 2.0 * last + 3.0 * attention
            for layer, last, attention in zip(layers, lasts, attentions, strict=True)
        ]
        assert losses["per_tile"].tolist() == pytest.approx(per_tile, rel=1e-4)
        assert float(losses["loss"]) == pytest.approx(sum(per_tile) / len(per_tile), rel=1e-4)
        with torch.no_grad():
            half = task.losses(model, batch._replace(weight=0.5))  # a smaller share of a batch
        assert float(half["loss"]) == pytest.approx(0.5 * float(losses["loss"]), rel=1e-6)
        assert bool((batch.child_scores > 0).any()) == (weighting == "attention")
        checked.append(len(batch.tiles))
        raise Stop

    monkeypatch.setattr(distill_tiles, "fit", looking)
    with pytest.raises(Stop):
        train_encoder(context, plan, steps, teacher)
    assert checked == [32]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_attention_weights_validation_as_it_weights_training(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is chosen by the loss that is learned: the teacher is asked about validation slides, too."""
    context, (split,), steps = prepared("--stage1.weighting", "attention", "--stage1.val_pairs", "100000")
    losses = []

    def looking(model: Distiller, task: Task[PairBatch], recipe: Recipe, session: Session) -> None:
        losses.append(task.validate()["val_loss"])
        raise Stop

    monkeypatch.setattr(distill_tiles, "fit", looking)
    head = pipeline.load_head(context, context.run_dir.fold(0), TEACHER, 24)
    bags = context.bags(context.hr_store(), split.val)
    for weighted in (True, False):
        real = pipeline.pair_loader
        seen: list[dict[str, Any]] = []

        def loader(slides: Any, *parts: Any, **options: Any) -> Any:
            seen.append(options)  # noqa: B023
            if not weighted:  # noqa: B023
                options = options | {"scores": None}
            return real(slides, *parts, **options)  # noqa: B023

        monkeypatch.setattr(pipeline, "pair_loader", loader)
        with pytest.raises(Stop):
            train_encoder(context, steps.stage1_plan(split), steps, context.teacher_encoder())
        monkeypatch.setattr(pipeline, "pair_loader", real)
        of_val = seen[1]["scores"]
        for row, output in zip(split.val, bag_outputs(head, bags, context.device), strict=True):
            np.testing.assert_allclose(of_val(row.slide_id), output.attention_scores[0].numpy())
    assert losses[0] != losses[1]


def test_a_shared_encoder_sees_no_unlabelled_slide_of_a_patient_that_some_fold_holds_out(
    cohort: Path, tmp_path: Path
) -> None:
    rows = absolute_rows(cohort)
    kept, torn = [row for row in rows if not row["label"]]
    torn["patient_id"] = next(row["patient_id"] for row in rows if row["label"])
    for row in rows:
        del row["fold"]
    table = write_rows(tmp_path / "slides.csv", rows)
    options = ["--data.n_folds", "3", "--stage1.slides", "unlabelled", "--run.out_dir", str(tmp_path / "run")]
    config = load_config(write_config(tmp_path, table), options)
    found = prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO())))
    plan = found.steps.stage1_plan(found.splits[0])
    assert [row.slide_id for row in (*plan.train, *plan.val)] == [kept["slide_id"]]


def test_stage1_trains_every_weight_of_the_student_and_none_of_the_teacher(
    prepared: Callable[..., Prepared],
) -> None:
    context, (split,), steps = prepared("--stage1.epochs", "1")
    teacher = context.teacher_encoder()
    before = copy.deepcopy(teacher.state_dict())
    plan = steps.stage1_plan(split)
    train_encoder(context, plan, steps, teacher)
    student = context.student_encoder(context.run_dir.folder(plan.folder).read_student())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    same = [name for name, value in student.named_parameters() if torch.equal(value, before[name])]
    assert same == []
    (row,) = read_rows(context.run_dir.folder(plan.folder).metrics("stage1"))
    for name in ("layer", "last", "attention"):
        assert float(row[f"train_{name}"]) > 0
        assert float(row[f"train_gradient_{name}"]) > 0
    assert float(row["train_gradient"]) > 0
    assert 0 <= float(row["train_clipped"]) <= 1


def test_stage1_of_the_last_blocks_leaves_those_below_as_in_the_teacher(
    prepared: Callable[..., Prepared],
) -> None:
    context, (split,), steps = prepared("--stage1.epochs", "1", "--stage1.blocks", "1")
    teacher = context.teacher_encoder()
    plan = steps.stage1_plan(split)
    train_encoder(context, plan, steps, teacher)
    student = context.student_encoder(context.run_dir.folder(plan.folder).read_student())
    before = stored_weights(teacher.vit.state_dict())
    changed = {
        name.removeprefix("vit.")
        for name, value in student.named_parameters()
        if not torch.equal(value, before[name.removeprefix("vit.")])
    }
    last = f"blocks.{teacher.depth - 1}."
    assert changed
    assert all(name.startswith((last, "norm.")) for name in changed)
    assert {name for name in before if name.startswith(last)} <= changed


@pytest.mark.parametrize(("n_steps", "n_measured"), [(1, 1), (20, 1), (21, 2)])
def test_a_terms_gradient_is_that_of_training_and_measured_on_few_batches(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch, n_steps: int, n_measured: int
) -> None:
    """Alone, a term's gradient is the step's; and no second backward pass comes with every step."""
    context, (split,), steps = prepared(
        *("--stage1.epochs", "1", "--stage1.batch_size", "2", "--stage1.pairs_per_epoch", str(2 * n_steps)),
        *("--stage1.lambda_last", "0", "--stage1.lambda_layer", "0", "--stage1.lambda_attn", "3"),
    )
    measured = []
    grad = torch.autograd.grad

    def counted(*args: Any, **options: Any) -> Any:
        measured.append(grad(*args, **options))
        return measured[-1]

    monkeypatch.setattr(torch.autograd, "grad", counted)
    plan = steps.stage1_plan(split)
    train_encoder(context, plan, steps, context.teacher_encoder())
    assert len(measured) == n_measured
    (row,) = read_rows(context.run_dir.folder(plan.folder).metrics("stage1"))
    assert "train_gradient_last" not in row
    assert "train_gradient_layer" not in row
    if n_steps == 1:
        assert float(row["train_gradient_attention"]) == pytest.approx(float(row["train_gradient"]), rel=1e-4)


STUDENT = (
    *("--student.architecture", "vit_tiny_patch16_224"),
    *("--student.options", "{ patch_size = 8, img_size = 32, embed_dim = 16, depth = 2, num_heads = 2 }"),
)


@pytest.mark.parametrize("layers", ["[0, 2]", "[]"])
def test_a_smaller_student_learns_through_projections_that_are_not_kept(
    prepared: Callable[..., Prepared], layers: str
) -> None:
    context, (split,), steps = prepared("--stage1.epochs", "2", "--stage1.layers", layers, *STUDENT)
    plan = steps.stage1_plan(split)
    if layers == "[]":  # a store of its own, which the finished run doesn't have
        jobs = context.jobs((*plan.train, *plan.val), context.hr_store(), hr=True)
        embed_slides(jobs, context.teacher_encoder(), context.runtime, context.reporter, "Embedding")
    train_encoder(context, plan, steps, context.teacher_encoder())
    out, metrics = steps.student_file(plan), context.run_dir.fold(0).metrics("stage1")
    student = context.student_encoder(context.run_dir.folder(plan.folder).read_student())
    assert (student.embed_dim, student.depth) == (16, 2)
    assert load_tensors(out).keys() == Encoder(student.spec).vit.state_dict().keys()
    losses = [float(row["train_loss"]) for row in read_rows(metrics)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("wanted", "layers", "depth", "teacher_depth", "expected"),
    [
        (None, (0, 1, 10), 12, 12, (0, 1, 10)),
        (None, (0, 10), 6, 12, (0, 5)),
        (None, (0, 11), 4, 12, (0, 3)),
        ((1, 2), (0, 11), 4, 12, (1, 2)),
        (None, (), 2, 12, ()),
    ],
)
def test_which_blocks_of_a_student_are_matched(
    wanted: Any, layers: Any, depth: int, teacher_depth: int, expected: Any
) -> None:
    found = distill_tiles.student_layers(wanted, layers, depth=depth, teacher_depth=teacher_depth)
    assert found == expected


def test_too_few_blocks_for_the_layers_are_told() -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1, 10\] would fall on \[0, 0, 5\]\. Name .*student\.layers"):
        distill_tiles.student_layers(None, (0, 1, 10), depth=6, teacher_depth=12)


@pytest.mark.parametrize(
    ("per_tile", "said"),
    [
        ([1.0, float("nan"), 2.0, float("inf")], "b, c"),
        ([1.0, 1.0, 1.0, 1.0], "a, b, c"),  # the sum overflowed, or the gradient
    ],
)
def test_a_broken_loss_names_the_slides_whose_tiles_broke(per_tile: list[float], said: str) -> None:
    nothing = torch.zeros(4)
    batch = PairBatch(*[nothing] * 5, slide_ids=("a", "b", "a", "c"), weight=1.0, n_pairs=4)
    assert distill_tiles.slides_of_broken_tiles(batch, {"per_tile": torch.tensor(per_tile)}) == said


def test_stage2_adds_the_teachers_words_with_their_weights(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, (split,), steps = prepared(
        *("--stage2.l_ce", "0.7", "--stage2.l_bag", "2", "--stage2.l_soft", "3", "--stage2.l_hard", "5"),
        *("--stage2.temperature_bag", "2", "--stage2.temperature_attention", "0.5", "--stage2.k", "2"),
    )
    seen: dict[str, Any] = {}

    def looking(train: Any, val: Any, *_: Any, **options: Any) -> None:
        seen.update(options, train=train, val=val)
        raise Stop

    monkeypatch.setattr(pipeline, "fit_head", looking)
    student = Embedded(context.teacher_encoder(), steps.student_store(steps.stage1_plan(split)))
    with pytest.raises(Stop):
        pipeline.train_head(context, Head(split, OURS, student, 5, 5), steps)
    assert seen["embed_dim"] == 24
    assert seen["seed"] == 5
    assert seen["ce_weight"] == 0.7
    assert [bag.name for bag in seen["train"]] == [row.slide_id for row in split.train]
    assert [bag.name for bag in seen["val"]] == [row.slide_id for row in split.val]
    outputs = load_tensors(context.run_dir.fold(0).teacher_outputs)
    torch.manual_seed(0)
    for bag in seen["train"][:3]:
        n = len(bag.instance_embeddings)
        output = MILOutput(
            bag_logits=torch.randn(2),
            attention_logits=torch.randn(1, n),
            bag_embedding=torch.zeros(3),
            instance_logits=torch.randn(n, 2),
        )
        found = seen["extra_loss"](bag, output)
        p = torch.softmax(outputs[f"{bag.name}/bag_logits"] / 2, 0)
        q = torch.softmax(output.bag_logits / 2, 0)
        assert float(found["bag"]) == pytest.approx(2 * 4 * float((p * (p / q).log()).sum()), rel=1e-3)
        # The teacher's attention on each LR tile: the sum over its own children, found by their places.
        tiles = context.tiles[bag.name]
        gathered = dict.fromkeys(map(tuple, tiles.lr_places.tolist()), 0.0)
        with_children = set()
        for (y, x), score in zip(
            tiles.hr_places.tolist(), outputs[f"{bag.name}/attention_scores"].tolist(), strict=True
        ):
            if (y // 4, x // 4) in gathered:
                gathered[y // 4, x // 4] += score
                with_children.add((y // 4, x // 4))
        assert with_children == set(gathered)
        guided = [value / sum(gathered.values()) for value in gathered.values()]
        log_q = torch.log_softmax(output.attention_logits[0] / 0.5, 0).tolist()
        soft = sum(g * (math.log(g) - lq) for g, lq in zip(guided, log_q, strict=True))
        assert float(found["soft"]) == pytest.approx(3 * 0.25 * soft, rel=1e-3)
        order = sorted(range(n), key=lambda index: -guided[index])
        yes, no = order[:2], order[-2:]
        log_p = torch.log_softmax(output.instance_logits, 1)
        hard = -sum([float(log_p[i, 1]) for i in yes] + [float(log_p[i, 0]) for i in no]) / 4
        a = output.attention_logits[0].tolist()
        hard += sum(math.log1p(math.exp(a[low] - a[high])) for high in yes for low in no) / 4
        assert float(found["hard"]) == pytest.approx(5 * hard, rel=1e-3)


def test_without_distillation_the_head_sees_labels_alone(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, (split,), steps = prepared("--stage2.l_ce", "0.7")
    store = context.lr_store(context.encoder_hash)
    seen: dict[str, Any] = {}

    def looking(train: Any, *_: Any, **options: Any) -> None:
        seen.update(options, train=train)
        raise Stop

    monkeypatch.setattr(pipeline, "fit_head", looking)
    head = Head(split, BY_KEY["lr_scratch"], Embedded(context.teacher_encoder(), store), 5)
    with pytest.raises(Stop):
        pipeline.train_head(context, head, steps)
    assert seen["extra_loss"] is None
    assert seen["ce_weight"] == 1.0
    assert len(seen["train"]) == len(split.train)
    for bag, row in zip(seen["train"], split.train, strict=True):
        assert (bag.name, context.class_names[bag.label]) == (row.slide_id, row.label)
        np.testing.assert_array_equal(bag.instance_embeddings.numpy(), store.read(row.slide_id))

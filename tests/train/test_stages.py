"""The two distillation steps put together: each loss meets what it should be compared with."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import write_config

from napari_lrmil.model.mil import MILOutput
from training.config import load_config
from training.data.bags import load_bags
from training.data.table import Split
from training.progress import Reporter
from training.run import prepare
from training.run_dir import load_tensors
from training.stages import distill_slides, distill_tiles
from training.stages.context import Context

pytestmark = pytest.mark.slow


class Stop(Exception):
    """Ends a step once it has shown its loss."""


@pytest.fixture
def prepared(copied: Callable[..., Path], cohort: Path) -> Callable[..., tuple[Context, Split]]:
    """Context and split of a finished run, with other options."""

    def make(*overrides: str) -> tuple[Context, Split]:
        folder = copied()
        config = load_config(write_config(folder, cohort), ["--run.out_dir", str(folder / "run"), *overrides])
        found = prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO())))
        return found.context, found.splits[0]

    return make


@pytest.mark.parametrize("weighting", ["uniform", "attention"])
def test_stage1_compares_blocks_of_tokens_with_the_children_over_them(
    prepared: Callable[..., tuple[Context, Split]], monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    context, split = prepared("--stage1.lambda_layer", "0.5", "--stage1.lambda_attn", "3.0")
    teacher = context.teacher_encoder()
    checked = []

    def looking(student: Any, **options: Any) -> None:
        batch = next(iter(options["batches"](0)))
        student.eval()  # no dropout here, but batch norm in other encoders
        assert student is not teacher
        with torch.no_grad():
            losses = options["loss_of"](batch)
            output = teacher(teacher.preprocess(batch.tiles), (0, 2))  # the student starts as the teacher
        layer, n_valid, attention = 0.0, 0, 0.0
        for tile in range(len(batch.tiles)):
            children = [k for k in range(16) if batch.valid[tile, k]]
            scores = {k: float(batch.child_scores[tile, k]) for k in children}
            total = sum(scores.values())
            for k in children:
                row, col = divmod(k, 4)  # 4 x 4 tokens: a child's block is one token
                for tap in range(2):
                    token = output.layer_token_maps[tap, tile, :, row, col]
                    layer += float((token - batch.child_layer_tokens[tap, tile, k]).square().mean())
                    n_valid += 1
                weight = scores[k] / total if weighting == "attention" else 1 / len(children)
                error = output.embedding[tile] - batch.child_embeddings[tile, k]
                attention += weight * float(error.square().mean()) / len(batch.tiles)
        assert float(losses["layer"]) == pytest.approx(layer / n_valid, rel=1e-4)
        assert float(losses["attention"]) == pytest.approx(attention, rel=1e-4)
        assert float(losses["loss"]) == pytest.approx(0.5 * layer / n_valid + 3.0 * attention, rel=1e-4)
        assert bool((batch.child_scores > 0).any()) == (weighting == "attention")
        checked.append(len(batch.tiles))
        raise Stop

    monkeypatch.setattr(distill_tiles, "fit", looking)
    with pytest.raises(Stop):
        distill_tiles.distill_encoder(
            context,
            context.tiles_of(split.train),
            context.tiles_of(split.val),
            teacher,
            out="unused.safetensors",
            teacher_outputs="fold0/teacher_outputs.safetensors" if weighting == "attention" else None,
        )
    assert checked == [32]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_stage1_trains_every_weight_of_the_student_and_none_of_the_teacher(
    prepared: Callable[..., tuple[Context, Split]],
) -> None:
    context, split = prepared("--stage1.epochs", "1")
    teacher = context.teacher_encoder()
    before = copy.deepcopy(teacher.state_dict())
    student = distill_tiles.distill_encoder(
        context,
        context.tiles_of(split.train),
        context.tiles_of(split.val),
        teacher,
        out="student.safetensors",
        teacher_outputs=None,
    )
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    same = [name for name, value in student.named_parameters() if torch.equal(value, before[name])]
    assert same == []


def test_stage2_adds_the_teachers_words_with_their_weights(
    prepared: Callable[..., tuple[Context, Split]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, split = prepared(
        *("--stage2.l_ce", "0.7", "--stage2.l_bag", "2", "--stage2.l_soft", "3", "--stage2.l_hard", "5"),
        *("--stage2.temperature_bag", "2", "--stage2.temperature_attention", "0.5", "--stage2.k", "2"),
    )
    seen: dict[str, Any] = {}

    def looking(train: Any, val: Any, **options: Any) -> None:
        seen.update(options, train=train, val=val)
        raise Stop

    monkeypatch.setattr(distill_slides, "fit_mil", looking)
    with pytest.raises(Stop):
        distill_slides.train_student(
            context, split, method="lrmil", store_kind="fold0/lr-student", distil=True
        )
    assert seen["ce_weight"] == 0.7
    assert [bag.name for bag in seen["train"]] == [row.slide_id for row in split.train]
    assert [bag.name for bag in seen["val"]] == [row.slide_id for row in split.val]
    outputs = load_tensors(context.run_dir.path("fold0", "teacher_outputs.safetensors"))
    torch.manual_seed(0)
    for bag in seen["train"][:3]:
        n = len(bag.instance_embeddings)
        output = MILOutput(
            bag_logits=torch.randn(2),
            attention_logits=torch.randn(n),
            attention_scores=torch.full((n,), 1 / n),
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
        log_q = torch.log_softmax(output.attention_logits / 0.5, 0).tolist()
        soft = sum(g * (math.log(g) - lq) for g, lq in zip(guided, log_q, strict=True))
        assert float(found["soft"]) == pytest.approx(3 * 0.25 * soft, rel=1e-3)
        order = sorted(range(n), key=lambda index: -guided[index])
        yes, no = order[:2], order[-2:]
        log_p = torch.log_softmax(output.instance_logits, 1)
        hard = -sum([float(log_p[i, 1]) for i in yes] + [float(log_p[i, 0]) for i in no]) / 4
        assert float(found["hard"]) == pytest.approx(5 * hard, rel=1e-3)


def test_without_distillation_the_head_sees_labels_alone(
    prepared: Callable[..., tuple[Context, Split]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, split = prepared("--stage2.l_ce", "0.7")
    seen: dict[str, Any] = {}

    def looking(train: Any, val: Any, **options: Any) -> None:
        seen.update(options, train=train)
        raise Stop

    monkeypatch.setattr(distill_slides, "fit_mil", looking)
    with pytest.raises(Stop):
        distill_slides.train_student(
            context, split, method="lr_scratch", store_kind="lr-teacher", distil=False
        )
    assert seen["extra_loss"] is None
    assert seen["ce_weight"] == 1.0
    expected = load_bags(context.store("lr-teacher"), split.train, context.class_names)
    assert all(
        torch.equal(one.instance_embeddings, other.instance_embeddings)
        for one, other in zip(seen["train"], expected, strict=True)
    )

"""Each loss: a value by hand, a zero case, finite gradients, and what it does as the bag grows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from training.losses import (
    attention_kl,
    bag_kl,
    child_attention_loss,
    guided_attention,
    hard_attention_loss,
    hard_instance_loss,
    layer_loss,
    renormalised_weights,
)


def yes(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def finite_gradient(loss: Tensor, *leaves: Tensor) -> None:
    loss.backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def test_layer_loss_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0], [0.0, 0.0]]], [[[5.0, 5.0], [9.0, 9.0]]]])  # (L=2, B=1, K=2, D=2)
    teacher = torch.tensor([[[[0.0, 0.0], [0.0, 4.0]]], [[[5.0, 5.0], [9.0, 6.0]]]])
    # MSE of the children: (1 + 4) / 2, 16 / 2; then 0, 9 / 2. Mean of the four.
    assert layer_loss(student, teacher, yes(2)[None]).item() == pytest.approx((2.5 + 8 + 0 + 4.5) / 4)
    # Without the second child the mean is over what is left, not with a zero in its place.
    only_first = torch.tensor([[True, False]])
    assert layer_loss(student, teacher, only_first).item() == pytest.approx((2.5 + 0) / 2)


def test_layer_loss_of_each_tile_is_over_its_own_children() -> None:
    """A tile with one child weighs as much as one with two."""
    student = torch.tensor([[[[1.0], [3.0]], [[2.0], [9.0]]]])  # (L=1, B=2, K=2, D=1)
    valid = torch.tensor([[True, True], [True, False]])
    losses = layer_loss(student, torch.zeros_like(student), valid)
    assert losses.tolist() == pytest.approx([(1 + 9) / 2, 4])


def test_layer_loss_is_zero_where_they_agree_and_where_no_child_is() -> None:
    tokens = torch.randn(3, 2, 4, 5)
    assert layer_loss(tokens, tokens, yes(8).view(2, 4)).tolist() == [0, 0]
    assert layer_loss(tokens, tokens + 1, torch.zeros(2, 4, dtype=torch.bool)).tolist() == [0, 0]
    one_bare = torch.tensor([[False] * 4, [True] * 4])
    assert layer_loss(tokens, tokens + 1, one_bare).tolist() == pytest.approx([0, 1])


def test_layer_loss_without_layers_is_zero() -> None:
    nothing = torch.zeros(0, 2, 4, 5)
    assert layer_loss(nothing, nothing, yes(8).view(2, 4)).tolist() == [0, 0]


def test_layer_loss_ignores_what_a_child_without_tissue_holds() -> None:
    student = torch.randn(1, 1, 4, 5, requires_grad=True)
    teacher, valid = torch.randn(1, 1, 4, 5), torch.tensor([[True, False, True, True]])
    wild = teacher.clone()
    wild[:, :, 1] = 1e3
    torch.testing.assert_close(layer_loss(student, teacher, valid), layer_loss(student, wild, valid))
    finite_gradient(layer_loss(student, wild, valid).mean(), student)
    assert student.grad is not None
    assert student.grad[:, :, 1].abs().max() == 0


def test_weights_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.4, 0.2], [0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]])
    valid = torch.tensor([[True, True, False, False], [True, False, True, True], [True, False, True, False]])
    expected = torch.tensor([[0.25, 0.75, 0, 0], [1 / 3, 0, 1 / 3, 1 / 3], [0.5, 0, 0.5, 0]])
    torch.testing.assert_close(renormalised_weights(scores, valid), expected)


def test_weights_do_not_depend_on_how_small_the_bag_made_the_scores() -> None:
    scores = torch.tensor([[0.2, 0.6]])
    expected = torch.tensor([[0.25, 0.75]])
    for scale in (1.0, 1e-6, 1e-30):
        torch.testing.assert_close(renormalised_weights(scores * scale, yes(2)[None]), expected)


def test_logits_as_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="not logits"):
        renormalised_weights(torch.tensor([[0.4, -1.2]]), yes(2)[None])


def test_weights_of_a_tile_without_children_are_zero() -> None:
    weights = renormalised_weights(torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert weights.abs().max() == 0


def test_child_attention_loss_by_hand() -> None:
    student = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    teacher = torch.tensor([[[1.0, 3.0], [1.0, 1.0]], [[0.0, 0.0], [4.0, 2.0]]])
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    # First tile 0.25 * 2 + 0.75 * 0; second 0.5 * 2 + 0.5 * 8.
    assert child_attention_loss(student, teacher, weights).tolist() == pytest.approx([0.5, 5])


def test_child_attention_loss_is_zero_where_they_agree() -> None:
    student = torch.randn(3, 6, requires_grad=True)
    same = student.detach()[:, None].expand(3, 4, 6)
    loss = child_attention_loss(student, same, renormalised_weights(torch.zeros(3, 4), yes(12).view(3, 4)))
    assert loss.tolist() == [0, 0, 0]
    finite_gradient(loss.mean(), student)


def test_child_attention_loss_is_least_at_the_weighted_mean() -> None:
    teacher, weights = torch.randn(1, 4, 6), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    student = torch.zeros(1, 6, requires_grad=True)
    optimiser = torch.optim.SGD([student], lr=1.0)
    for _ in range(100):
        optimiser.zero_grad()
        child_attention_loss(student, teacher, weights).mean().backward()
        optimiser.step()
    torch.testing.assert_close(
        student.detach()[0], (weights[0, :, None] * teacher[0]).sum(0), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("loss", ["layer", "attention"])
def test_stage1_losses_do_not_depend_on_the_batch_size(loss: str) -> None:
    student, teacher = torch.randn(2, 1, 4, 5), torch.randn(2, 1, 4, 5)
    valid = torch.tensor([[True, True, False, True]])

    def value(n: int) -> float:
        if loss == "layer":
            many = (part.expand(2, n, 4, 5) for part in (student, teacher))
            return layer_loss(*many, valid.expand(n, 4)).mean().item()
        weights = renormalised_weights(torch.zeros(n, 4), valid.expand(n, 4))
        losses = child_attention_loss(student[0, :, 0].expand(n, 5), teacher[0].expand(n, 4, 5), weights)
        assert losses.shape == (n,)
        return losses.mean().item()

    assert value(7) == pytest.approx(value(1), rel=1e-5)


# --- stage 2 ---------------------------------------------------------------------------------------------------------


def test_bag_kl_by_hand() -> None:
    student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 2.0 * math.log(3)])
    # At T = 2 the teacher says (1/4, 3/4), the student (1/2, 1/2).
    expected = 4 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert bag_kl(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_bag_kl_points_from_teacher_to_student() -> None:
    teacher, student = torch.tensor([0.0, 4.0]), torch.tensor([0.0, -1.0])
    p, q = torch.softmax(teacher, 0), torch.softmax(student, 0)
    torch.testing.assert_close(bag_kl(student, teacher, 1.0), (p * (p / q).log()).sum())
    assert bag_kl(student, teacher, 1.0).item() != pytest.approx(
        bag_kl(teacher, student, 1.0).item(), rel=0.1
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_bag_kl_is_zero_at_the_teacher_whatever_is_added(temperature: float) -> None:
    logits = torch.tensor([1.0, -3.0, 0.5])
    assert bag_kl(logits + 7, logits, temperature).item() == pytest.approx(0, abs=1e-6)


def test_bag_kl_stays_finite_for_a_certain_teacher() -> None:
    student = torch.tensor([50.0, -50.0], requires_grad=True)
    finite_gradient(bag_kl(student, torch.tensor([-300.0, 300.0]), 1.0), student)


@pytest.mark.parametrize(
    ("aggregation", "gathered"), [("mean", [0.15, 0.3]), ("max", [0.2, 0.3]), ("sum", [0.3, 0.3])]
)
def test_guided_attention_by_hand(aggregation: str, gathered: list[float]) -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    parent = torch.tensor([0, 0, 2, -1])  # the last lies in a tile that isn't in the bag; tile 1 has no child
    guided, has_children = guided_attention(scores, parent, 3, aggregation)
    total = sum(gathered)
    assert guided.tolist() == pytest.approx([gathered[0] / total, 0, gathered[1] / total])
    assert has_children.tolist() == [True, False, True]


@pytest.mark.parametrize("aggregation", ["mean", "max", "sum"])
def test_guided_attention_is_one_distribution(aggregation: str) -> None:
    torch.manual_seed(0)
    scores = torch.softmax(torch.randn(500) * 4, 0)
    parent = torch.randint(-1, 40, (500,))
    guided, has_children = guided_attention(scores, parent, 50, aggregation)
    assert guided.sum().item() == pytest.approx(1, abs=1e-5)
    assert guided[~has_children].abs().max() == 0
    order = torch.randperm(500)
    again, _ = guided_attention(scores[order], parent[order], 50, aggregation)
    torch.testing.assert_close(again, guided)


def test_guided_attention_of_nothing() -> None:
    guided, has_children = guided_attention(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 2, -1]), 3, "sum")
    assert guided.tolist() == [0.5, 0, 0.5]  # all seen scores are 0: even
    guided, has_children = guided_attention(torch.tensor([1.0]), torch.tensor([-1]), 3, "sum")
    assert guided.tolist() == [0, 0, 0]
    assert not has_children.any()


def test_attention_kl_by_hand() -> None:
    guided = torch.tensor([0.5, 0.25, 0.25, 0.0])
    has_children = torch.tensor([True, True, True, False])
    student = torch.tensor([0.0, 0.0, 0.0, 99.0])  # the tile without children takes no part, whatever it says
    expected = 0.5 * math.log(0.5 * 3) + 2 * 0.25 * math.log(0.25 * 3)
    assert attention_kl(student, guided, has_children, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_attention_kl_is_zero_at_the_teachers_attention() -> None:
    guided = torch.tensor([0.7, 0.2, 0.1])
    assert attention_kl(guided.log() + 3, guided, yes(3), 1.0).item() == pytest.approx(0, abs=1e-6)
    # At T = 2 the student needs twice the logits; the teacher's distribution is taken as it is.
    assert attention_kl(2 * guided.log(), guided, yes(3), 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("copies", [2, 16, 512])
def test_attention_kl_does_not_shrink_with_the_bag(copies: int) -> None:
    """A slide of the same make-up, `copies` times as large, has the same divergence: it's summed, not averaged."""
    student, guided = torch.randn(6), torch.softmax(torch.randn(6), 0)
    small = attention_kl(student, guided, yes(6), 1.0)
    large = attention_kl(student.repeat(copies), guided.repeat(copies) / copies, yes(6 * copies), 1.0)
    assert small.item() > 0.05
    torch.testing.assert_close(large, small, rtol=1e-3, atol=1e-5)


def test_one_hot_tile_in_a_growing_bag_costs_more_to_miss() -> None:
    values = []
    for n in (10, 100, 1000):
        guided = torch.zeros(n)
        guided[0] = 1
        values.append(attention_kl(torch.zeros(n), guided, yes(n), 1.0).item())
    assert values == pytest.approx([math.log(10), math.log(100), math.log(1000)], rel=1e-4)


def test_attention_kl_gradient_is_finite_at_zeros_and_extremes() -> None:
    student = torch.tensor([80.0, -80.0, 0.0], requires_grad=True)
    finite_gradient(attention_kl(student, torch.tensor([0.0, 1.0, 0.0]), yes(3), 1.0), student)
    empty = torch.zeros(3, requires_grad=True)
    none = torch.zeros(3, dtype=torch.bool)
    finite_gradient(attention_kl(empty, torch.zeros(3), none, 1.0), empty)
    assert empty.grad is not None
    assert empty.grad.abs().max() == 0


def test_hard_loss_by_hand() -> None:
    guided = torch.tensor([0.05, 0.5, 0.15, 0.3])
    logits = torch.zeros(4, 2)
    logits[1] = torch.tensor([0.0, math.log(3)])  # the most attended: says "yes" with 3/4
    # k = 1: tile 1 is yes (3/4), tile 0 is no (1/2).
    expected = (-math.log(0.75) - math.log(0.5)) / 2
    assert hard_instance_loss(logits, guided, yes(4), 1).item() == pytest.approx(expected, rel=1e-5)
    # k = 2: tiles 1 and 3 are yes, 0 and 2 no.
    expected = (-math.log(0.75) - 3 * math.log(0.5)) / 4
    assert hard_instance_loss(logits, guided, yes(4), 2).item() == pytest.approx(expected, rel=1e-5)


def test_hard_loss_is_nearly_zero_for_a_right_classifier() -> None:
    guided = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits = torch.tensor([[-30.0, 30.0], [-30.0, 30.0], [30.0, -30.0], [30.0, -30.0]])
    assert hard_instance_loss(logits, guided, yes(4), 2).item() == pytest.approx(0, abs=1e-6)
    assert hard_instance_loss(-logits, guided, yes(4), 2).item() > 30


def test_hard_loss_takes_tiles_with_children_only_and_ends_that_never_overlap() -> None:
    guided = torch.tensor([0.6, 0.4, 0.0, 0.0])
    has_children = torch.tensor([True, True, False, False])
    logits = torch.zeros(4, 2, requires_grad=True)
    loss = hard_instance_loss(logits, guided, has_children, 4)
    finite_gradient(loss, logits)
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, True, False, False]
    # One tile can't be both the most and the least attended.
    alone = torch.zeros(1, 2, requires_grad=True)
    loss = hard_instance_loss(alone, torch.ones(1), yes(1), 4)
    assert loss.item() == 0
    finite_gradient(loss, alone)


def test_hard_loss_does_not_shrink_with_the_bag() -> None:
    values = []
    for n in (8, 80, 8000):
        guided = torch.arange(n, dtype=torch.float32)
        values.append(hard_instance_loss(torch.zeros(n, 2), guided / guided.sum(), yes(n), 4).item())
    assert values == pytest.approx([math.log(2)] * 3)


def test_hard_loss_breaks_ties_the_same_way_each_time() -> None:
    logits, guided = torch.randn(3000, 2), torch.zeros(3000)
    values = {hard_instance_loss(logits, guided, yes(3000), 4).item() for _ in range(5)}
    assert len(values) == 1


# --- all -------------------------------------------------------------------------------------------------------------


def test_hard_attention_loss_by_hand() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 5.0, 7.0])
    guided = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.0])
    has_children = torch.tensor([True, True, True, True, False])
    # Top two: 1 and 2, of logits 0 and -1; bottom two: 3 and 0, of logits 5 and 2.
    pairs = [math.log1p(math.exp(low - high)) for high in (0, -1) for low in (5, 2)]
    found = hard_attention_loss(logits, guided, has_children, 2)
    assert found.item() == pytest.approx(sum(pairs) / 4, rel=1e-6)
    # What is added to all logits of a bag changes no attention score, and no loss.
    assert hard_attention_loss(logits + 9, guided, has_children, 2).item() == pytest.approx(
        found.item(), rel=1e-6
    )


def test_hard_attention_loss_is_zero_without_two_tiles_and_where_the_ranking_is_clear() -> None:
    one = torch.tensor([False, True])
    logits = torch.zeros(2, requires_grad=True)
    loss = hard_attention_loss(logits, torch.tensor([0.0, 1.0]), one, 4)
    assert loss.item() == 0
    finite_gradient(loss, logits)
    clear = hard_attention_loss(torch.tensor([-40.0, 40.0]), torch.tensor([0.2, 0.8]), yes(2), 4)
    assert clear.item() == pytest.approx(0, abs=1e-6)


def test_hard_attention_loss_moves_the_attention_to_guided_tiles_with_finite_gradients() -> None:
    logits = torch.tensor([900.0, -900.0, 0.0], requires_grad=True)
    loss = hard_attention_loss(logits, torch.tensor([0.1, 0.6, 0.3]), yes(3), 1)
    finite_gradient(loss, logits)
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([1, -1, 0], abs=1e-6)


class Operations(TorchDispatchMode):
    """Counts what is asked of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, values: Any = (), options: Any = None) -> Any:
        self.count += 1
        return function(*values, **(options or {}))


def scores(n: int) -> Tensor:
    return torch.softmax(torch.arange(n, dtype=torch.float32) / n, dim=0)


LOSSES: dict[Callable[..., object], Callable[[int], tuple[object, ...]]] = {
    attention_kl: lambda n: (torch.arange(n) / n, scores(n), yes(n), 1.0),
    bag_kl: lambda n: (torch.arange(n) / n, torch.arange(n).flip(0) / n, 2.0),
    child_attention_loss: lambda n: (torch.zeros(n, 3), torch.ones(n, 4, 3), torch.ones(n, 4)),
    guided_attention: lambda n: (scores(4 * n), torch.arange(n).repeat_interleave(4), n, "sum"),
    hard_attention_loss: lambda n: (torch.zeros(n), scores(n), yes(n), 4),
    hard_instance_loss: lambda n: (torch.zeros(n, 2), scores(n), yes(n), 4),
    layer_loss: lambda n: (torch.zeros(2, n, 4, 3), torch.ones(2, n, 4, 3), yes(4 * n).reshape(n, 4)),
    renormalised_weights: lambda n: (torch.ones(n, 4), yes(4 * n).reshape(n, 4)),
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_larger_bag_takes_no_more_operations(loss: Callable[..., object]) -> None:
    """A loop over tiles would: of bags of thousands it took most of the time of a step."""
    counts = []
    for n in (16, 1024):
        values = LOSSES[loss](n)
        with Operations() as operations:
            loss(*values)
        counts.append(operations.count)
    assert counts[0] == counts[1] > 0


def test_a_stage2_step_on_a_large_bag_is_quick() -> None:
    """1,024 LR tiles, 16,384 HR tiles: a loop over tiles took 241 ms a step."""
    scores, parent = torch.softmax(torch.randn(16384), 0), torch.arange(1024).repeat_interleave(16)
    best = math.inf
    for _ in range(5):
        logits = torch.randn(1024, requires_grad=True)
        instances = torch.randn(1024, 2, requires_grad=True)
        started = time.perf_counter()
        guided, has_children = guided_attention(scores, parent, 1024, "sum")
        loss = attention_kl(logits, guided, has_children, 1.0)
        (loss + hard_instance_loss(instances, guided, has_children, 4)).backward()
        best = min(best, time.perf_counter() - started)
    assert best < 0.05

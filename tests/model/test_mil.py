"""ABMIL against the equations, by hand."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from pydantic import ValidationError

from napari_lrmil.model.mil import ABMIL, ABMILSpec, build_mil


def head(*, gated: bool = True, seed: int = 0) -> ABMIL:
    torch.manual_seed(seed)
    return ABMIL(embed_dim=6, n_classes=3, hidden_dim=4, gated=gated).eval()


def test_output_is_read_by_name_with_the_shapes_that_it_says() -> None:
    output = head()(torch.randn(7, 6))
    assert output.bag_logits.shape == (3,)
    assert output.attention_logits.shape == output.attention_scores.shape == (1, 7)
    assert output.bag_embedding.shape == (6,)
    assert output.instance_logits.shape == (7, 2)
    with pytest.raises(TypeError):
        tuple(output)
    with pytest.raises(FrozenInstanceError):
        output.bag_logits = output.bag_embedding


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("n", [1, 2, 500])
def test_attention_sums_to_one(gated: bool, n: int) -> None:
    output = head(gated=gated)(torch.randn(n, 6) * 5)
    assert output.attention_scores.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(output.attention_scores, torch.softmax(output.attention_logits, 1))


def test_a_bag_of_one_is_its_instance() -> None:
    model = head()
    instance = torch.randn(1, 6)
    output = model(instance)
    assert output.attention_scores.tolist() == [[1.0]]
    torch.testing.assert_close(output.bag_embedding, model.norm(instance)[0])


def test_order_of_the_instances_changes_nothing_but_their_order() -> None:
    bag, order = torch.randn(50, 6), torch.randperm(50)
    one, other = head()(bag), head()(bag[order])
    torch.testing.assert_close(one.bag_logits, other.bag_logits)
    torch.testing.assert_close(one.attention_logits[:, order], other.attention_logits)
    torch.testing.assert_close(one.attention_scores[:, order], other.attention_scores)
    torch.testing.assert_close(one.instance_logits[order], other.instance_logits)


def test_a_bag_twice_says_the_same() -> None:
    bag = torch.randn(9, 6)
    one, twice = head()(bag), head()(torch.cat([bag, bag]))
    torch.testing.assert_close(one.bag_logits, twice.bag_logits)
    torch.testing.assert_close(one.attention_scores / 2, twice.attention_scores[:, :9])


@pytest.mark.parametrize("gated", [True, False])
def test_two_instances_by_hand(gated: bool) -> None:
    model = ABMIL(embed_dim=2, n_classes=2, hidden_dim=1, gated=gated).eval()
    with torch.no_grad():
        for layer, weight, bias in (
            (model.value, [[0.5, 0.0]], [0.1]),
            (model.score, [[2.0]], [0.3]),
            (model.classifier, [[1.0, 0.0], [0.0, 3.0]], [0.0, 1.0]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
        if model.gate is not None:
            model.gate.weight.copy_(torch.tensor([[0.0, 1.0]]))
            model.gate.bias.copy_(torch.tensor([-0.2]))
    # LayerNorm of (3, 1) is (1, -1), of (0, 8) is (-1, 1), up to its epsilon.
    output = model(torch.tensor([[3.0, 1.0], [0.0, 8.0]]))
    logits = []
    for x, y in ((1, -1), (-1, 1)):
        gate = 1 / (1 + math.exp(-(y - 0.2))) if gated else 1.0
        logits.append(2 * math.tanh(0.5 * x + 0.1) * gate + 0.3)
    assert output.attention_logits[0].tolist() == pytest.approx(logits, abs=1e-4)
    first = 1 / (1 + math.exp(logits[1] - logits[0]))
    assert output.attention_scores[0].tolist() == pytest.approx([first, 1 - first], abs=1e-4)
    bag = (first - (1 - first), (1 - first) - first)
    assert output.bag_embedding.tolist() == pytest.approx(bag, abs=1e-4)
    assert output.bag_logits.tolist() == pytest.approx([bag[0], 3 * bag[1] + 1], abs=1e-4)


def test_a_projection_by_hand() -> None:
    """One layer before the attention: its ReLU is what attention, bag and both classifiers read."""
    model = ABMIL(embed_dim=2, n_classes=2, hidden_dim=1, gated=False, projection=[1]).eval()
    with torch.no_grad():
        for layer, weight, bias in (
            (model.get_submodule("projection.0.0"), [[2.0, 0.0]], [0.5]),
            (model.value, [[0.5]], [0.1]),
            (model.score, [[2.0]], [0.3]),
            (model.classifier, [[1.0], [-3.0]], [0.0, 1.0]),
            (model.instance_classifier, [[1.0], [2.0]], [0.0, 0.0]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    # LayerNorm of (3, 1) is (1, -1), of (0, 8) is (-1, 1); so the projections are 2.5 and max(0, -1.5) = 0.
    bag = torch.tensor([[3.0, 1.0], [0.0, 8.0]])
    output = model(bag)
    logits = [2 * math.tanh(0.5 * h + 0.1) + 0.3 for h in (2.5, 0.0)]
    assert output.attention_logits[0].tolist() == pytest.approx(logits, abs=1e-4)
    first = 1 / (1 + math.exp(logits[1] - logits[0]))
    assert output.bag_embedding.tolist() == pytest.approx([2.5 * first], abs=1e-4)
    assert output.bag_logits.tolist() == pytest.approx([2.5 * first, 1 - 7.5 * first], abs=1e-4)
    assert output.instance_logits.flatten().tolist() == pytest.approx([2.5, 5, 0, 0], abs=1e-4)
    assert model.alone_logits(bag).flatten().tolist() == pytest.approx([2.5, -6.5, 0, 1], abs=1e-4)


def test_a_projection_is_shared_by_the_instance_classifier_and_the_attention() -> None:
    """A step on the instance classifier's loss moves the attention; without one only scale and shift of the norm are shared."""
    for projection, moves in (((), False), ((5, 4), True)):
        torch.manual_seed(0)
        model = build_mil(ABMILSpec(embed_dim=6, n_classes=2, projection=projection))
        model.get_submodule("norm").requires_grad_(False)
        bag = torch.randn(9, 6)
        before = model(bag).attention_logits.detach()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        target = torch.tensor([1] * 4 + [0] * 5)
        torch.nn.functional.cross_entropy(model(bag).instance_logits, target).backward()
        optimizer.step()
        assert torch.equal(model(bag).attention_logits, before) is not moves


def test_a_head_without_projection_has_the_weights_that_it_always_had() -> None:
    """Bundles and runs of earlier versions are read."""
    names = {name.split(".")[0] for name in build_mil(ABMILSpec(embed_dim=6, n_classes=2)).state_dict()}
    assert names == {"norm", "value", "gate", "score", "classifier", "instance_classifier"}


def test_scale_of_the_embeddings_does_not_matter() -> None:
    bag = torch.randn(9, 6) * 3
    torch.testing.assert_close(head()(bag).bag_logits, head()(bag * 100).bag_logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 300])
def test_gradients_are_finite(n: int) -> None:
    model = head().train()
    bag = (torch.randn(n, 6) * 50).requires_grad_()
    output = model(bag)
    (output.bag_logits.square().sum() + output.instance_logits.square().sum()).backward()
    assert bag.grad is not None
    assert torch.isfinite(bag.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_dropout_acts_in_training_only() -> None:
    model = build_mil(ABMILSpec(embed_dim=6, n_classes=2, dropout=0.5))
    bag = torch.randn(20, 6)
    torch.manual_seed(0)
    model.train()
    assert not torch.equal(model(bag).bag_logits, model(bag).bag_logits)
    model.eval()
    assert torch.equal(model(bag).bag_logits, model(bag).bag_logits)


def test_spec_is_strict_and_frozen() -> None:
    with pytest.raises(ValidationError):
        ABMILSpec(embed_dim=6, n_classes=1)
    with pytest.raises(ValidationError):
        ABMILSpec.model_validate({"embed_dim": 6, "n_classes": 2, "hiden_dim": 3})
    for wrong in ((0,), (9000,), (8,) * 9):
        with pytest.raises(ValidationError):
            ABMILSpec(embed_dim=6, n_classes=2, projection=wrong)
    spec = ABMILSpec(embed_dim=6, n_classes=2)
    with pytest.raises(ValidationError):
        spec.gated = False  # type: ignore[misc]

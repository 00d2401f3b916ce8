"""What all heads share: a bag, an output read by name, a spec by name, and the exact ways to leave tiles out."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from napari_lrmil.model.mil import ABMIL, ABMILSpec, AnyMILSpec, Bag, MILModel, MILOutput, build_mil
from napari_lrmil.model.mil.base import bag_cross_entropy, one_bag
from napari_lrmil.model.mil.max import MaxMIL, MaxSpec
from napari_lrmil.model.mil.mean import MeanMIL, MeanSpec

ANY_SPEC: TypeAdapter[AnyMILSpec] = TypeAdapter(AnyMILSpec)


def pooling(kind: type[MeanMIL] | type[MaxMIL], *, seed: int = 0) -> MeanMIL | MaxMIL:
    torch.manual_seed(seed)
    return kind(embed_dim=5, n_classes=3).double().eval()


# --- bags


def test_a_part_of_a_bag_keeps_places_and_parents_with_their_instances() -> None:
    places = torch.tensor([[0, 1], [2, 3], [4, 5]])
    bag = Bag(torch.arange(6.0).reshape(3, 2), places=places, mpp=2.0, parents=torch.tensor([1, -1, 0]))
    by_mask, by_index = bag.part(torch.tensor([True, False, True])), bag.part(torch.tensor([2, 0]))
    assert by_mask.embeddings.tolist() == [[0, 1], [4, 5]]
    assert by_mask.places is not None
    assert by_mask.places.tolist() == [[0, 1], [4, 5]]
    assert by_mask.parents is not None
    assert by_mask.parents.tolist() == [1, 0]
    assert by_mask.mpp == 2.0
    assert by_index.parents is not None
    assert by_index.parents.tolist() == [0, 1]
    assert len(by_mask) == 2


def test_a_head_of_one_magnification_takes_embeddings_or_a_bag_and_refuses_several() -> None:
    embeddings = torch.randn(4, 6)
    head = ABMIL(embed_dim=6, n_classes=2).eval()
    said = [head(given).bag_logits for given in (embeddings, Bag(embeddings), (Bag(embeddings),))]
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])
    with pytest.raises(ValueError, match="2 magnifications"):
        one_bag((Bag(embeddings), Bag(embeddings)))


# --- outputs


def test_attention_is_of_a_class_where_each_has_its_own_and_of_all_where_there_is_one() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [math.log(4), 0.0]])
    by_class = MILOutput(torch.zeros(3), attention_logits=logits)
    for row, expected in enumerate(([0.5, 0.5], [0.25, 0.75], [0.8, 0.2])):
        scores = by_class.attention_for(row)
        assert scores is not None
        assert scores.tolist() == pytest.approx(expected)
    assert by_class.attention_scores is not None
    assert by_class.attention_scores.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    of_all = MILOutput(torch.zeros(3), attention_logits=logits[1:2])
    for row in range(3):
        scores = of_all.attention_for(row)
        assert scores is not None
        assert scores.tolist() == pytest.approx([0.25, 0.75])
    without = MILOutput(torch.zeros(3))
    assert without.attention_scores is None
    assert without.attention_for(0) is None


def test_an_output_goes_through_its_tensors_and_back() -> None:
    output = MILOutput(torch.ones(2), instance_logits=torch.zeros(4, 2), extras={"pseudo": torch.arange(3.0)})
    told = output.tensors()
    assert set(told) == {"bag_logits", "instance_logits", "extras.pseudo"}
    back = MILOutput.of_tensors(told)
    assert back.attention_logits is None
    assert back.bag_embedding is None
    assert back.instance_logits is output.instance_logits
    assert back.extras == {"pseudo": output.extras["pseudo"]}


def test_a_bags_cross_entropy_counts_as_its_class_does() -> None:
    logits = torch.tensor([1.0, 0.0])
    ce = math.log(1 + math.exp(-1))
    assert float(bag_cross_entropy(logits, 0)) == pytest.approx(ce)
    assert float(bag_cross_entropy(logits, 1)) == pytest.approx(ce + 1)
    weights = torch.tensor([2.0, 0.5])
    assert float(bag_cross_entropy(logits, 0, weights)) == pytest.approx(2 * ce)
    assert float(bag_cross_entropy(logits, 1, weights)) == pytest.approx((ce + 1) / 2)
    head = MeanMIL(embed_dim=2, n_classes=2)
    assert {name: float(value) for name, value in head.losses(MILOutput(logits), 1).items()} == {
        "ce": pytest.approx(ce + 1)
    }


# --- specs


def test_a_spec_is_the_heads_that_it_names_and_one_without_a_name_is_abmil() -> None:
    sizes = {"embed_dim": 6, "n_classes": 2}
    for raw, spec, head in (
        (sizes, ABMILSpec, ABMIL),
        (sizes | {"name": "abmil", "hidden_dim": 3}, ABMILSpec, ABMIL),
        (sizes | {"name": "mean"}, MeanSpec, MeanMIL),
        (sizes | {"name": "max", "dropout": 0.5}, MaxSpec, MaxMIL),
    ):
        found = ANY_SPEC.validate_python(raw)
        assert type(found) is spec
        assert type(build_mil(found)) is head
        assert ANY_SPEC.validate_json(found.model_dump_json()) == found
    for wrong in (sizes | {"name": "mode"}, sizes | {"name": "mean", "hidden_dim": 3}, "abmil"):
        with pytest.raises(ValidationError):
            ANY_SPEC.validate_python(wrong)


# --- pooling


def test_pooling_by_hand() -> None:
    """LayerNorm of (3, 1) is (1, -1), of (0, 8) and (1, 9) it is (-1, 1), up to its epsilon."""
    bag = torch.tensor([[3.0, 1.0], [0.0, 8.0], [1.0, 9.0]])
    for head, pooled in (
        (MeanMIL(embed_dim=2, n_classes=2), (-1 / 3, 1 / 3)),
        (MaxMIL(embed_dim=2, n_classes=2), (1.0, 1.0)),
    ):
        with torch.no_grad():
            head.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
            head.classifier.bias.copy_(torch.tensor([0.5, 0.0]))
        output = head.eval()(bag)
        assert output.bag_embedding is not None
        assert output.bag_embedding.tolist() == pytest.approx(pooled, abs=1e-4)
        assert output.bag_logits.tolist() == pytest.approx(
            [pooled[0] + 0.5, 2 * pooled[0] + 3 * pooled[1]], abs=1e-4
        )
        assert output.attention_logits is None
        assert output.instance_logits is None


@pytest.mark.parametrize("kind", [MeanMIL, MaxMIL])
@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_poolings_short_ways_are_the_long_way(kind: type[MeanMIL] | type[MaxMIL], n: int) -> None:
    head = pooling(kind)
    bag = torch.randn(n, 5, dtype=torch.float64)
    bag = torch.cat([bag, bag[:1]])  # a largest value that two tiles share
    kept = torch.rand(7, n + 1) > 0.5
    kept[0], kept[1] = True, False
    for short, long in (
        (head.leave_one_out_logits(bag), MILModel.leave_one_out_logits(head, bag)),
        (head.alone_logits(bag), MILModel.alone_logits(head, bag)),
        (head.subset_logits(bag, kept), MILModel.subset_logits(head, bag, kept)),
    ):
        torch.testing.assert_close(short, long, rtol=0, atol=1e-12)
    assert head.subset_logits(bag, kept)[1].tolist() == [0, 0, 0]
    assert head.leave_one_out_logits(bag[:1]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("kind", [MeanMIL, MaxMIL])
def test_pooling_does_not_see_the_order(kind: type[MeanMIL] | type[MaxMIL]) -> None:
    head = pooling(kind)
    bag, order = torch.randn(30, 5, dtype=torch.float64), torch.randperm(30)
    assert not head.order_matters
    torch.testing.assert_close(head(bag).bag_logits, head(bag[order]).bag_logits)

"""The heads' own losses and formulas against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from napari_lrmil.model.mil import MILOutput
from napari_lrmil.model.mil.attention import GatedAttention, pooled_without_each, scores_as_logits
from napari_lrmil.model.mil.clam import (
    CLAMMBSpec,
    CLAMSBSpec,
    attention_ends,
    clam_instance_loss,
    two_class_loss,
)
from napari_lrmil.model.mil.dsmil import DSMILSpec
from napari_lrmil.model.mil.dtfd import DTFDSpec
from napari_lrmil.model.mil.transmil import (
    NystromAttention,
    PyramidPositions,
    TransMILSpec,
    iterated_inverse,
)


def ce(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[target]


def test_gated_attention_of_two_branches_by_hand() -> None:
    attention = GatedAttention(1, 1, n_branches=2)
    with torch.no_grad():
        for layer, weight, bias in (
            (attention.value, [[0.5]], [0.1]),
            (attention.gate, [[-1.0]], [0.2]),
            (attention.score, [[2.0], [-3.0]], [0.0, 0.4]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    found = attention(torch.tensor([[1.0], [-2.0]]))
    hidden = [math.tanh(0.5 * x + 0.1) / (1 + math.exp(x - 0.2)) for x in (1, -2)]
    assert found[0].tolist() == pytest.approx([2 * value for value in hidden], abs=1e-6)
    assert found[1].tolist() == pytest.approx([-3 * value + 0.4 for value in hidden], abs=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_pooling_without_each_where_one_instance_has_all_of_the_attention(rows: int) -> None:
    logits = torch.randn(rows, 6)
    logits[:, 2] = 80.0
    values = torch.randn(6, 3)
    found = pooled_without_each(logits, values)
    for index in range(6):
        kept = [place for place in range(6) if place != index]
        scores = torch.softmax(logits[:, kept], dim=1)
        torch.testing.assert_close(found[index], (scores.T * values[kept]).sum(dim=0))


def test_scores_become_logits_whose_softmax_they_are() -> None:
    scores = torch.tensor([0.5, 0.0, -0.1, 1.5])
    found = torch.softmax(scores_as_logits(scores), dim=0)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.0, 0.0, 0.75]), atol=1e-6, rtol=0)


class TestCLAM:
    ENDS = torch.tensor(
        [[[0.0, 1.0], [0.5, 0.5], [2.0, -1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 3.0], [0.2, 0.1], [0.0, 1.0]]]
    )
    """(2 classes, 2 k = 4, 2)"""

    def test_ends_of_the_attention(self) -> None:
        logits = torch.tensor([[0.3, -1.0, 5.0, 2.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
        assert attention_ends(logits, 2).tolist() == [[2, 3, 1, 4], [4, 3, 0, 1]]
        assert attention_ends(logits[:, :3], 8).tolist() == [[2, 1], [2, 0]]
        assert attention_ends(logits[:, :1], 8).shape == (2, 0)

    def test_instance_loss_by_hand(self) -> None:
        """Of a slide of class 1: its classifier's top two are 1, its bottom two 0."""
        own = [ce([1, 0], 1), ce([0, 3], 1), ce([0.2, 0.1], 0), ce([0, 1], 0)]
        found = clam_instance_loss(self.ENDS, 1, kind="ce", subtyping=False)
        assert float(found) == pytest.approx(sum(own) / 4, abs=1e-6)
        others = [ce([0, 1], 0), ce([0.5, 0.5], 0)]
        found = clam_instance_loss(self.ENDS, 1, kind="ce", subtyping=True)
        assert float(found) == pytest.approx((sum(own) / 4 + sum(others) / 2) / 2, abs=1e-6)

    def test_smooth_svm_is_the_cross_entropy_with_a_margin_of_one(self) -> None:
        logits = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
        found = two_class_loss(logits, torch.tensor([0, 0]), "svm")
        assert float(found) == pytest.approx((ce([2, 1.5], 0) + ce([0, 2], 0)) / 2, abs=1e-6)

    @pytest.mark.parametrize("spec", [CLAMSBSpec, CLAMMBSpec])
    def test_terms_are_weighted_7_to_3(self, spec: type[CLAMSBSpec | CLAMMBSpec]) -> None:
        model = spec(embed_dim=4, n_classes=2, instance_loss="ce").build()
        output = MILOutput(bag_logits=torch.tensor([0.0, 2.0]), extras={"end_logits": self.ENDS})
        losses = model.losses(output, 0, class_weights=torch.tensor([3.0, 1.0]))
        assert float(losses["ce"]) == pytest.approx(0.7 * 3 * ce([0, 2], 0), abs=1e-6)
        instance = clam_instance_loss(self.ENDS, 0, kind="ce", subtyping=False)
        assert float(losses["instance"]) == pytest.approx(0.3 * float(instance), abs=1e-6)

    def test_defaults_are_the_paper_s(self) -> None:
        spec = CLAMSBSpec(embed_dim=1024, n_classes=2)
        assert (spec.projection_dim, spec.hidden_dim, spec.k, spec.bag_weight) == (512, 256, 8, 0.7)
        assert (spec.dropout, spec.instance_loss) == (0.25, "svm")

    def test_each_class_of_mb_reads_its_own_branch(self) -> None:
        model = CLAMMBSpec(embed_dim=4, n_classes=3, projection_dim=5, hidden_dim=5).build().eval()
        output = model(torch.randn(7, 4))
        assert output.bag_embedding is not None
        classifier = model.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        for c in range(3):
            expected = classifier.weight[c] @ output.bag_embedding[c] + classifier.bias[c]
            torch.testing.assert_close(output.bag_logits[c], expected)


class TestDSMIL:
    def test_two_instances_by_hand(self) -> None:
        model = DSMILSpec(embed_dim=2, n_classes=2, query_dim=1, normalise=False).build().eval()
        with torch.no_grad():
            for name, weight, bias in (
                ("instance_classifier", [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5]),
                ("query", [[0.5, -0.25]], [0.1]),
                ("value", [[1.0, 0.0], [0.0, 2.0]], [0.0, 1.0]),
                ("classifier", [[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, -1.0]], [0.0, 0.25]),
            ):
                layer = model.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(torch.tensor(weight))
                layer.bias.copy_(torch.tensor(bias))
        output = model(torch.tensor([[2.0, 1.0], [-1.0, 3.0]]))
        # Class 0: the first instance is critical; class 1: the second.
        queries = [0.5 * 2 - 0.25 + 0.1, -0.5 - 0.75 + 0.1]
        values = [(2.0, 3.0), (-1.0, 7.0)]
        assert output.attention_logits is not None
        pooled = []
        for c, critical in enumerate((0, 1)):
            logits = [query * queries[critical] for query in queries]
            assert output.attention_logits[c].tolist() == pytest.approx(logits, abs=1e-6)
            first = 1 / (1 + math.exp(logits[1] - logits[0]))
            pooled += [first * a + (1 - first) * b for a, b in zip(*values, strict=True)]
        stream = [
            pooled[0] + 2 * pooled[1] + 3 * pooled[2] + 4 * pooled[3],
            pooled[1] - pooled[3] + 0.25,
        ]
        assert output.extras["max_logits"].tolist() == [2.0, 3.5]
        assert output.extras["stream_logits"].tolist() == pytest.approx(stream, abs=1e-5)
        assert output.bag_logits.tolist() == pytest.approx(
            [(2 + stream[0]) / 2, (3.5 + stream[1]) / 2], abs=1e-5
        )

    def test_loss_is_half_of_either_stream(self) -> None:
        model = DSMILSpec(embed_dim=2, n_classes=2).build()
        extras = {"stream_logits": torch.tensor([1.0, 0.0]), "max_logits": torch.tensor([0.0, 3.0])}
        losses = model.losses(MILOutput(bag_logits=torch.zeros(2), extras=extras), 1)
        assert float(losses["ce"]) == pytest.approx(0.5 * ce([1, 0], 1), abs=1e-6)
        assert float(losses["max"]) == pytest.approx(0.5 * ce([0, 3], 1), abs=1e-6)


class TestTransMIL:
    def test_inverse_is_that_of_linear_algebra(self) -> None:
        matrix = torch.softmax(3 * torch.randn(2, 6, 6, dtype=torch.float64), dim=-1)
        found = iterated_inverse(matrix, iterations=30)
        torch.testing.assert_close(found, torch.linalg.inv(matrix), atol=1e-6, rtol=1e-6)

    def test_with_a_landmark_a_token_it_is_the_exact_attention(self) -> None:
        attention = NystromAttention(8, heads=2, landmarks=6, inverse_iterations=40, value_residual=False)
        attention = attention.double()
        tokens = torch.randn(6, 8, dtype=torch.float64)
        query, key, value = attention.query_key_value(tokens).view(6, 3, 2, 4).permute(1, 2, 0, 3)
        exact = torch.softmax(query @ key.transpose(1, 2) / 2, dim=-1)  # (2, 6, 6)
        first, row = attention.with_row(tokens[None])
        torch.testing.assert_close(row, exact[:, 0].mean(dim=0), atol=1e-6, rtol=1e-6)
        expected = attention.out((exact @ value).transpose(0, 1).reshape(6, 8))
        torch.testing.assert_close(attention(tokens[None])[0], expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(first, expected[:1], atol=1e-6, rtol=1e-6)

    @torch.no_grad()
    @pytest.mark.parametrize("length", [1, 3, 20, 43, 44, 60])
    def test_one_landmark_for_all_that_are_zeros_changes_nothing(self, length: int) -> None:
        """Beside the attention written with all M landmarks and zeros in front, as it is published."""
        torch.manual_seed(length)
        attention = NystromAttention(8, heads=2, landmarks=16).double()
        tokens = torch.randn(length, 8, dtype=torch.float64)
        stretch = -(-length // 16)
        in_front = 16 * stretch - length
        padded = nn.functional.pad(tokens, (0, 0, in_front, 0))
        query, key, value = attention.query_key_value(padded).view(-1, 3, 2, 4).permute(1, 2, 0, 3)
        marks = [one.unflatten(1, (16, stretch)).mean(dim=2) for one in (query, key)]
        kernels = [
            torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1)
            for q, k in ((query, marks[1]), (marks[0], marks[1]), (marks[0], key))
        ]
        whole = kernels[0] @ iterated_inverse(kernels[1]) @ kernels[2]  # (2, L', L')
        assert attention.convolution is not None
        expected = (whole @ value + attention.convolution(value)).transpose(0, 1).reshape(-1, 8)
        expected = attention.out(expected)[in_front:]
        torch.testing.assert_close(attention(tokens[None])[0], expected, atol=1e-10, rtol=0)
        first, row = attention.with_row(tokens[None])
        torch.testing.assert_close(first, expected[:1], atol=1e-10, rtol=0)
        torch.testing.assert_close(row, whole[:, in_front, in_front:].mean(dim=0), atol=1e-10, rtol=0)

    @torch.no_grad()
    def test_positions_are_three_convolutions_and_the_tokens_themselves(self) -> None:
        """A token in the middle of a square of zeros spreads by the kernels, and no further than 3."""
        positions = PyramidPositions(2).double()
        for convolution in positions.convolutions:
            convolution.bias.zero_()
        tokens = torch.zeros(81, 2, dtype=torch.float64)
        tokens[4 * 9 + 4] = torch.tensor([1.0, 2.0])
        found = positions(tokens[None], 9)[0].reshape(9, 9, 2)
        seven, five, three = (convolution.weight[:, 0] for convolution in positions.convolutions)
        for channel, value in enumerate((1.0, 2.0)):
            centre = seven[channel, 3, 3] + five[channel, 2, 2] + three[channel, 1, 1] + 1
            assert float(found[4, 4, channel]) == pytest.approx(value * float(centre))
            assert float(found[4, 6, channel]) == pytest.approx(
                value * float(seven[channel, 3, 1] + five[channel, 2, 0])
            )
            assert float(found[1, 1, channel]) == pytest.approx(value * float(seven[channel, 6, 6]))
            assert float(found[0, 4, channel]) == 0

    def test_a_square_is_filled_with_the_first_instances(self) -> None:
        """Of 7 tiles two stand twice: with them given twice the class token says the same of 9."""
        model = TransMILSpec(embed_dim=5, n_classes=2, dim=8, heads=2, landmarks=4).build().eval()
        bag = torch.randn(7, 5)
        one, other = model(bag), model(torch.cat([bag, bag[:2]]))
        torch.testing.assert_close(one.bag_logits, other.bag_logits)
        assert one.attention_scores is not None
        assert other.attention_scores is not None
        both = other.attention_scores[0, :2] + other.attention_scores[0, 7:]
        torch.testing.assert_close(one.attention_scores[0, :2], both, atol=1e-6, rtol=1e-4)

    def test_defaults_are_the_paper_s(self) -> None:
        spec = TransMILSpec(embed_dim=1024, n_classes=2)
        assert (spec.dim, spec.heads, spec.landmarks, spec.inverse_iterations) == (512, 8, 256, 6)
        with pytest.raises(ValueError, match="multiple of heads"):
            TransMILSpec(embed_dim=4, n_classes=2, dim=10, heads=4)


class TestDTFD:
    def test_loss_is_the_slide_s_and_the_mean_over_pseudo_bags(self) -> None:
        model = DTFDSpec(embed_dim=2, n_classes=2).build()
        output = MILOutput(
            bag_logits=torch.tensor([1.0, 0.0]),
            extras={"pseudo_bag_logits": torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])},
        )
        losses = model.losses(output, 1, class_weights=torch.tensor([1.0, 2.0]))
        assert float(losses["ce"]) == pytest.approx(2 * ce([1, 0], 1), abs=1e-6)
        tier = (ce([0, 1], 1) + ce([2, 0], 1) + ce([0, 0], 1)) / 3
        assert float(losses["pseudo_bags"]) == pytest.approx(2 * tier, abs=1e-6)

    def test_pseudo_bags_hold_every_tile_once_and_are_the_same_at_prediction(self) -> None:
        model = DTFDSpec(embed_dim=4, n_classes=2, projection_dim=4, hidden_dim=4).build().eval()
        for n, expected in ((1, [1]), (3, [1, 1, 1]), (4, [1] * 4), (10, [3, 3, 2, 2])):
            parts = model._split(n, torch.device("cpu"))
            assert [len(part) for part in parts] == expected
            assert sorted(torch.cat(parts).tolist()) == list(range(n))
        model.train()
        drawn = {tuple(model._split(10, torch.device("cpu"))[0].tolist()) for _ in range(20)}
        assert len(drawn) > 1

    def test_with_one_pseudo_bag_afs_is_abmil_on_its_embedding(self) -> None:
        model = (
            DTFDSpec(embed_dim=4, n_classes=3, projection_dim=5, hidden_dim=4, pseudo_bags=1).build().eval()
        )
        bag = torch.randn(6, 4)
        output = model(bag)
        instances = model.projection(model.norm(bag))
        logits = model.first_attention(instances)[0]
        embedding = torch.softmax(logits, dim=0) @ instances
        torch.testing.assert_close(output.bag_logits, model.second_classifier(embedding))
        torch.testing.assert_close(output.attention_for(0), torch.softmax(logits, dim=0))
        torch.testing.assert_close(
            output.extras["pseudo_bag_logits"], model.first_classifier(embedding)[None]
        )

    @pytest.mark.parametrize(("selection", "kept"), [("max", [1]), ("maxmin", [1, 2])])
    def test_instances_are_kept_by_the_class_activation_map(self, selection: str, kept: list[int]) -> None:
        """With uniform attention the map is the classifier's: the tile that it gives class 1, and the one it doesn't."""
        spec = DTFDSpec.model_validate(
            {
                "embed_dim": 2,
                "n_classes": 2,
                "projection_dim": 2,
                "hidden_dim": 2,
                "pseudo_bags": 1,
                "selection": selection,
                "normalise": False,
            }
        )
        model = spec.build().eval()
        with torch.no_grad():
            model.projection[0].weight.copy_(torch.eye(2))
            model.first_attention.score.weight.zero_()
            model.first_classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        bag = torch.tensor([[1.0, 1.0], [1.0, 5.0], [4.0, 0.0], [2.0, 2.0]])
        chosen = bag[kept]
        scores = torch.softmax(model.second_attention(chosen)[0], dim=0)
        torch.testing.assert_close(model(bag).bag_embedding, scores @ chosen)

"""Leaving tiles out: the short way gives what classifying the smaller bag gives, and chance is what it is beaten by."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from napari_lrmil.evidence import DeletionCurve, explain
from napari_lrmil.model.calibration import VectorScaling
from napari_lrmil.model.mil import ABMIL, AnyBag, MILModel, MILOutput
from napari_lrmil.model.mil.base import one_bag

EXACT = 1e-9


def abmil(
    *,
    dim: int = 6,
    classes: int = 3,
    seed: int = 0,
    sharpness: float = 1.0,
    gated: bool = True,
    projection: tuple[int, ...] = (),
) -> ABMIL:
    """A head of random weights; `sharpness` multiplies its attention logits."""
    torch.manual_seed(seed)
    head = ABMIL(
        embed_dim=dim, n_classes=classes, hidden_dim=8, gated=gated, dropout=0.5, projection=projection
    ).eval()
    with torch.no_grad():
        head.classifier.weight.mul_(3)
        for name in ("score.weight", "score.bias"):
            head.get_parameter(name).mul_(sharpness)
    return head


class MeanThenMax(MILModel):
    """Not a sum over instances: only the way that works for any head can be exact."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(dim, classes)
        self.second = torch.nn.Linear(dim, classes)

    def forward(self, bag: AnyBag) -> MILOutput:
        instances = one_bag(bag).embeddings
        logits = self.first(instances.mean(dim=0)) + torch.tanh(self.second(instances)).amax(dim=0)
        return MILOutput(logits, attention_logits=torch.zeros((1, len(instances)), dtype=logits.dtype))


def probabilities(head: MILModel, instances: Tensor, temperature: float = 1.0) -> np.ndarray:
    """Of a bag, in float64, without anything of the module under test."""
    if not len(instances):
        n_classes = head.get_parameter("classifier.bias" if isinstance(head, ABMIL) else "first.bias").shape[
            0
        ]
        return np.full(n_classes, 1 / n_classes)
    with torch.no_grad():
        return torch.softmax(head.double()(instances.double()).bag_logits / temperature, 0).numpy()


def odds_of(head: MILModel, instances: Tensor, temperature: float = 1.0) -> np.ndarray:
    """Log-odds of each class against the rest, from the head's logits, in float64."""
    if not len(instances):
        return -np.log(len(probabilities(head, instances)) - 1) * np.ones(len(probabilities(head, instances)))
    with torch.no_grad():
        logits = head.double()(instances.double()).bag_logits / temperature
    rest = [torch.cat([logits[:one], logits[one + 1 :]]).logsumexp(0) for one in range(len(logits))]
    return (logits - torch.stack(rest)).numpy()


def without(instances: Tensor, tile: int) -> Tensor:
    return torch.cat([instances[:tile], instances[tile + 1 :]])


def of_temperature(head: MILModel, temperature: float) -> VectorScaling:
    return VectorScaling.of_temperature(temperature, len(probabilities(head, torch.empty(0))))


heads = st.builds(
    abmil,
    dim=st.integers(2, 8),
    classes=st.integers(2, 4),
    seed=st.integers(0, 999),
    sharpness=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    gated=st.booleans(),
    projection=st.sampled_from([(), (5,), (7, 3)]),
)


@settings(deadline=None, max_examples=60)
@given(
    head=heads, n=st.integers(1, 12), seed=st.integers(0, 999), temperature=st.sampled_from([0.5, 1.0, 4.0])
)
def test_a_contribution_is_what_classifying_without_the_tile_changes(
    head: ABMIL, n: int, seed: int, temperature: float
) -> None:
    dim = head.norm.normalized_shape[0]
    instances = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    found = explain(head, instances, scaling=of_temperature(head, temperature), n_random=2)
    whole = probabilities(head, instances, temperature)
    np.testing.assert_allclose(found.class_probabilities, whole, atol=EXACT)
    for tile in range(n):
        expected = whole - probabilities(head, without(instances, tile), temperature)
        np.testing.assert_allclose(found.class_contributions[tile], expected, atol=EXACT)
        left, alone = (
            odds_of(head, bag, temperature) for bag in (without(instances, tile), instances[tile : tile + 1])
        )
        lost = odds_of(head, instances, temperature) - left
        np.testing.assert_allclose(found.log_odds_contributions[tile], lost, atol=EXACT)
        np.testing.assert_allclose(found.log_odds_alone[tile], alone, atol=EXACT)
    # Probabilities sum to 1 with and without a tile.
    np.testing.assert_allclose(found.class_contributions.sum(axis=1), 0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(head=heads, n=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_short_ways_are_the_long_way(head: ABMIL, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = head.double()
    instances = torch.randn(n, head.norm.normalized_shape[0], generator=generator).double()
    kept = torch.rand(7, n, generator=generator) > 0.5
    kept[0], kept[1] = True, False
    all_but_one = ~torch.eye(n, dtype=torch.bool)
    with torch.no_grad():
        parts = head.subset_logits(instances, kept)
        torch.testing.assert_close(
            parts, MILModel.subset_logits(head, instances, kept), atol=EXACT, rtol=EXACT
        )
        assert bool((parts[1] == 0).all())
        without_one = head.leave_one_out_logits(instances)
        expected = MILModel.subset_logits(head, instances, all_but_one)
        torch.testing.assert_close(without_one, expected, atol=EXACT, rtol=EXACT)
        torch.testing.assert_close(
            MILModel.leave_one_out_logits(head, instances), expected, atol=EXACT, rtol=EXACT
        )


def test_any_head_is_exact() -> None:
    torch.manual_seed(3)
    head, instances = MeanThenMax(5, 3), torch.randn(7, 5)
    found = explain(head, instances, scaling=of_temperature(head, 2.0))
    whole = probabilities(head, instances, 2.0)
    for tile in range(7):
        lost = odds_of(head, instances, 2.0) - odds_of(head, without(instances, tile), 2.0)
        np.testing.assert_allclose(found.log_odds_contributions[tile], lost, atol=EXACT)
        np.testing.assert_allclose(
            found.log_odds_alone[tile], odds_of(head, instances[tile : tile + 1], 2.0), atol=EXACT
        )
        expected = whole - probabilities(head, without(instances, tile), 2.0)
        np.testing.assert_allclose(found.class_contributions[tile], expected, atol=EXACT)
    order = np.argsort(-found.class_contributions[:, whole.argmax()])
    for step, removed in enumerate(np.rint(np.linspace(0, 1, 11) * 7).astype(int)):
        left = instances[np.sort(order[removed:])]
        assert found.deletion.by_evidence[step] == pytest.approx(
            probabilities(head, left, 2.0)[whole.argmax()], abs=EXACT
        )


def test_two_tiles_by_hand() -> None:
    """Attention 3/4 and 1/4; class values (2, 0) and (0, 1); temperature 2."""
    head = ABMIL(embed_dim=2, n_classes=2, hidden_dim=1, gated=False)
    with torch.no_grad():
        # After the LayerNorm the tiles are (1, -1) and (-1, 1), but for its epsilon: taken out of the sum.
        head.norm.eps = 0.0
        head.value.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.value.bias.zero_()
        head.score.weight.fill_(math.log(3) / (2 * math.tanh(1)))  # attention logits +- log(3) / 2
        head.score.bias.zero_()
        head.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
        head.classifier.bias.copy_(torch.tensor([1.0, 0.5]))
    found = explain(head.eval(), torch.tensor([[5.0, 3.0], [1.0, 4.0]]), scaling=of_temperature(head, 2.0))

    def p0(values: tuple[float, float]) -> float:
        return 1 / (1 + math.exp((values[1] - values[0]) / 2))

    whole = p0((0.75 * 2, 0.25 * 1))
    expected = np.array([whole - p0((0, 1)), whole - p0((2, 0))])
    # The weights are float32.
    np.testing.assert_allclose(found.attention_scores, [0.75, 0.25], atol=1e-6)
    np.testing.assert_allclose(found.class_probabilities, [whole, 1 - whole], atol=1e-6)
    np.testing.assert_allclose(found.class_contributions, np.stack([expected, -expected], 1), atol=1e-6)
    # The first tile is the evidence: half of the way it is gone, at the end nothing is left.
    half = 5  # of the steps; 0.5 * 2 tiles
    assert found.deletion.class_index == 0
    np.testing.assert_allclose(found.deletion.fractions, [0] * 3 + [0.5] * 5 + [1] * 3)
    np.testing.assert_allclose(found.deletion.by_evidence[[0, half, 10]], [whole, p0((0, 1)), 0.5], atol=1e-6)
    assert found.deletion.random_high[half] == pytest.approx(p0((2, 0)), abs=1e-6)
    assert found.deletion.area_gain > 0


def test_one_tile_leaves_an_even_chance() -> None:
    head, instance = abmil(classes=3), torch.randn(1, 6)
    found = explain(head, instance, scaling=of_temperature(head, 1.0))
    np.testing.assert_allclose(found.class_contributions[0], found.class_probabilities - 1 / 3, atol=EXACT)
    assert found.deletion.by_evidence[-1] == pytest.approx(1 / 3)
    assert found.deletion.area_gain == pytest.approx(0, abs=1e-12)
    assert np.isfinite(np.concatenate([found.deletion.random_low, found.deletion.random_high])).all()


@pytest.mark.parametrize("lead", [40.0, 800.0])
def test_one_tile_with_all_of_the_attention(lead: float) -> None:
    """1 - a is 4e-18 or 0 in float64: the difference over it would be noise, or not a number."""
    head = abmil(dim=4, classes=2).double()
    instances = torch.randn(5, 4).double()
    with torch.no_grad():
        logits = head(instances).attention_logits[0]
        head.score.weight.mul_(lead / float(logits.topk(2).values.diff().abs()))
        scores = head(instances).attention_scores[0]
    assert float(scores.max()) == 1.0
    found = explain(head, instances, scaling=of_temperature(head, 1.0))
    whole = probabilities(head, instances)
    for tile in range(5):
        expected = whole - probabilities(head, without(instances, tile))
        np.testing.assert_allclose(found.class_contributions[tile], expected, atol=EXACT)


def test_the_order_of_the_tiles_does_not_matter() -> None:
    torch.manual_seed(1)
    head, instances, order = abmil(), torch.randn(40, 6), torch.randperm(40)
    one, other = (
        explain(head, bag, scaling=of_temperature(head, 1.5)) for bag in (instances, instances[order])
    )
    np.testing.assert_allclose(other.class_contributions, one.class_contributions[order], atol=1e-12)
    np.testing.assert_allclose(other.attention_scores, one.attention_scores[order], atol=1e-12)
    np.testing.assert_allclose(other.deletion.by_evidence, one.deletion.by_evidence, atol=1e-12)


def test_the_model_stays_as_it_is() -> None:
    head = abmil().train()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    one, other = (explain(head, torch.ones(3, 6), scaling=of_temperature(head, 1.0)) for _ in range(2))
    np.testing.assert_array_equal(one.class_contributions, other.class_contributions)  # no dropout
    assert head.training
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert {value.dtype for value in head.state_dict().values()} == {torch.float32}


def two_kinds(n_evidence: int, n: int) -> tuple[ABMIL, Tensor]:
    """Even attention; the first tiles speak for class 1, the others a little for class 0."""
    head = ABMIL(embed_dim=2, n_classes=2, hidden_dim=1, gated=False).eval()
    with torch.no_grad():
        head.score.weight.zero_()
        head.classifier.weight.copy_(torch.tensor([[0.0, 0.0], [8.0, 0.0]]))
        head.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    instances = torch.tensor([[1.0, -1.0]] * n_evidence + [[0.01, 0.0]] * (n - n_evidence))
    with torch.no_grad():
        head.norm.eps = 1.0  # keeps small embeddings small
    return head, instances


def test_known_evidence_goes_first_and_beats_chance() -> None:
    head, instances = two_kinds(10, 50)
    found = explain(head, instances, scaling=of_temperature(head, 1.0))
    curve = found.deletion
    assert curve.class_index == 1
    assert (found.class_contributions[:10, 1] > 0).all()
    assert (found.class_contributions[10:, 1] < 0).all()
    # A fifth of the tiles is the evidence: without it the label is gone, at random it isn't.
    assert curve.by_evidence[2] < 0.5 < curve.random_low[2]
    assert curve.by_evidence[0] == curve.random_mean[0] == pytest.approx(found.class_probabilities[1])
    assert curve.area_gain > 0.1
    assert (curve.random_low <= curve.random_mean).all()
    assert (curve.random_mean <= curve.random_high).all()


def test_where_all_tiles_say_the_same_nothing_is_gained() -> None:
    head, instances = two_kinds(50, 50)
    curve = explain(head, instances, scaling=of_temperature(head, 1.0)).deletion
    assert curve.area_gain == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(curve.random_low, curve.random_high, atol=1e-12)


def test_certain_slides_still_order_their_tiles() -> None:
    """p rounds to 1 with and without any tile, so all contributions to it are 0; the odds still tell who goes first."""
    head, instances = two_kinds(10, 50)
    with torch.no_grad():
        head.classifier.weight.mul_(100)
        head.classifier.bias[0] = 20.0
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    found = explain(head, instances[shuffled], scaling=of_temperature(head, 1.0))
    assert found.class_probabilities[1] == 1.0
    assert not found.class_contributions[:, 1].any()
    is_evidence = (shuffled < 10).numpy()
    assert (found.log_odds_contributions[is_evidence, 1] > 0.01).all()
    assert (found.log_odds_contributions[~is_evidence, 1] < -0.001).all()
    assert (found.log_odds_alone[is_evidence, 1] > 100).all()
    assert (found.log_odds_alone[~is_evidence, 1] < 0).all()
    assert found.deletion.by_evidence[2] < 0.5 < found.deletion.random_low[2]


def test_random_orders_are_those_of_the_seed() -> None:
    head, instances = abmil(sharpness=5.0), torch.randn(30, 6)
    curves = [
        explain(head, instances, scaling=of_temperature(head, 1.0), seed=seed).deletion for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(curves[0].random_mean, curves[1].random_mean)
    assert not np.array_equal(curves[0].random_mean, curves[2].random_mean)
    np.testing.assert_array_equal(curves[0].by_evidence, curves[2].by_evidence)


def test_area_by_hand() -> None:
    """A triangle of height 0.4 over a base of 1, on uneven steps."""
    fractions = np.array([0, 0.25, 0.25, 1.0])
    chance = np.array([0.9, 0.9, 0.9, 0.9])
    curve = DeletionCurve(fractions, np.array([0.9, 0.5, 0.5, 0.9]), chance, chance, chance, 0)
    assert curve.area_gain == pytest.approx(0.2)
    assert curve._replace(by_evidence=chance).area_gain == 0


def test_a_slide_of_a_thousand_tiles_takes_no_time() -> None:
    torch.manual_seed(0)
    head = ABMIL(embed_dim=768, n_classes=2).eval()
    instances = torch.randn(1000, 768)
    explain(head, instances, scaling=of_temperature(head, 1.0))  # the first call loads what torch needs
    started = time.perf_counter()
    explain(head, instances, scaling=of_temperature(head, 1.0))
    assert time.perf_counter() - started < 1.0


def test_results_can_be_read_without_torch() -> None:
    code = "import sys, napari_lrmil.evidence; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


LARGE_BAG = """
import resource, torch
from napari_lrmil.evidence import explain
from napari_lrmil.model.mil import ABMILSpec, build_mil
from napari_lrmil.model.calibration import VectorScaling

head = build_mil(ABMILSpec(embed_dim=8, n_classes=2, hidden_dim=8)).eval()
torch.manual_seed(0)
explain(head, torch.randn(100, 8), scaling=VectorScaling.of_temperature(1.0, 2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = explain(head, torch.randn(200_000, 8), scaling=VectorScaling.of_temperature(1.0, 2))
assert abs(found.attention_scores.sum() - 1) < 1e-9 and found.log_odds_alone.shape == (200_000, 2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in KiB")
def test_evidence_of_200000_tiles_takes_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_BAG], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 450  # MiB, 204 here; with all parts of the deletion curve at once it was 889

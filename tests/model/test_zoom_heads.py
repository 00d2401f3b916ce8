"""Heads that read several magnifications and choose which finer tiles they want: ZoomMIL and HDMIL."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from napari_lrmil.model.mil import HEADS, AnyMILSpec, Bag, MILModel, MILOutput
from napari_lrmil.model.mil.hdmil import HDMIL, Chebyshev, HDMILSpec, binary_mask, masked_scores, union
from napari_lrmil.model.mil.zoommil import ZoomMIL, ZoomMILSpec, _children, _PerturbedTopK, child_table

DIM = 8
SPEC: TypeAdapter[Any] = TypeAdapter(AnyMILSpec)
SMALL: dict[str, dict[str, Any]] = {
    "zoommil": {"projection_dim": 16, "hidden_dim": 16, "k": 3, "zoom": (2, 2), "samples": 20},
    "hdmil": {"projection_dim": 16, "hidden_dim": 16, "light_dim": 16, "k": 3, "degree": 4, "zoom": 4},
}
every_head = pytest.mark.parametrize("name", SMALL)


def head(name: str, *, n_classes: int = 2, seed: int = 0, **keys: Any) -> ZoomMIL | HDMIL:
    torch.manual_seed(seed)
    raw = {"name": name, "embed_dim": DIM, "n_classes": n_classes} | SMALL[name] | keys
    model = SPEC.validate_python(raw).build()
    assert isinstance(model, ZoomMIL | HDMIL)
    return model


def slide(factors: tuple[int, ...], n: int, seed: int = 0, *, missing: float = 0.3) -> tuple[Bag, ...]:
    """A slide of n coarse tiles in a row, of whose children some are background."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.long)], dim=1)
    bags = [Bag(torch.randn(n, DIM, generator=generator), places, 0.5 * factors[0])]
    for before, factor in pairwise(factors):
        ratio = before // factor
        offsets = torch.cartesian_prod(torch.arange(ratio), torch.arange(ratio)).flip(1)  # (ratio^2, 2) x, y
        children = (bags[-1].places[:, None] * ratio + offsets).flatten(0, 1)
        parents = torch.arange(len(bags[-1])).repeat_interleave(ratio**2)
        stays = torch.rand(len(children), generator=generator) >= missing
        bags.append(
            Bag(
                torch.randn(int(stays.sum()), DIM, generator=generator),
                children[stays],
                0.5 * factor,
                parents[stays],
            )
        )
    return tuple(bags)


def of(name: str, n: int, seed: int = 0, **keys: Any) -> tuple[Bag, ...]:
    return slide(
        SPEC.validate_python({"name": name, "embed_dim": DIM, "n_classes": 2} | SMALL[name]).factors,
        n,
        seed,
        **keys,
    )


def read_only_what_is_asked_for(model: ZoomMIL | HDMIL, bags: tuple[Bag, ...]) -> tuple[Bag, ...]:
    """The reader's way: the coarse bag, then the children of the tiles that the head names."""
    read = [bags[0]]
    of_whole = torch.arange(len(bags[0]))  # index in the whole bag of each tile that was read
    for finer in bags[1:]:
        asked = model.children_to_read(read)
        assert finer.parents is not None
        wanted = torch.isin(finer.parents, of_whole[asked]).nonzero()[:, 0]
        part = finer.part(wanted)
        assert part.parents is not None
        position = torch.full((int(of_whole.max()) + 1,), -1)
        position[of_whole] = torch.arange(len(of_whole))
        read.append(replace(part, parents=position[part.parents]))
        of_whole = wanted
    return tuple(read)


def total(model: MILModel, output: MILOutput, label: int) -> Tensor:
    return torch.stack(list(model.losses(output, label).values())).sum()


def test_every_head_of_several_magnifications_is_tested_here() -> None:
    several = {name for name, spec in HEADS.items() if spec(embed_dim=DIM, n_classes=2).factors != (1,)}
    assert several == set(SMALL)
    assert ZoomMILSpec(embed_dim=DIM, n_classes=2).factors == (8, 4, 1)
    assert HDMILSpec(embed_dim=DIM, n_classes=2).factors == (8, 1)


@every_head
@pytest.mark.parametrize("seed", range(3))
def test_nothing_but_the_asked_for_children_is_needed(name: str, seed: int) -> None:
    model, bags = head(name, seed=seed).eval(), of(name, 20, seed)
    if isinstance(model, HDMIL):
        model.get_parameter("light.3.bias").data.fill_(-0.3)  # fresh weights may keep everything
    with torch.inference_mode():
        read = read_only_what_is_asked_for(model, bags)
        whole, part = model(bags), model(read)
    assert sum(map(len, read[1:])) < sum(map(len, bags[1:]))
    torch.testing.assert_close(part.bag_logits, whole.bag_logits)


@every_head
def test_order_of_the_tiles_changes_nothing(name: str) -> None:
    model, bags = head(name).eval(), of(name, 9)
    turned, before = [], torch.arange(len(bags[0]))
    for level, bag in enumerate(bags):
        order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(level))
        part = bag.part(order)
        if part.parents is not None:
            position = torch.empty_like(before)
            position[before] = torch.arange(len(before))
            part = replace(part, parents=position[part.parents])
        turned.append(part)
        before = order
    with torch.inference_mode():
        one, other = model(bags), model(tuple(turned))
    torch.testing.assert_close(one.bag_logits, other.bag_logits)
    assert one.attention_logits is not None
    assert other.attention_logits is not None
    torch.testing.assert_close(one.attention_logits[:, before], other.attention_logits, atol=1e-4, rtol=1e-4)


@every_head
@pytest.mark.parametrize("n", [1, 2, 20])
def test_gradients_are_finite(name: str, n: int) -> None:
    model = head(name, n_classes=3).train()
    for missing in (0.0, 0.5, 1.0):
        bags = of(name, n, missing=missing)
        output = model(bags)
        model.zero_grad()
        loss = total(model, output, 1)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert torch.isfinite(model.eval()(bags).bag_logits).all()
        model.train()


@every_head
def test_every_weight_is_trained_by_the_head_s_own_loss(name: str) -> None:
    model = head(name).train()
    output = model(of(name, 12))
    total(model, output, 1).backward()
    untrained = {key for key, value in model.named_parameters() if value.grad is None}
    assert not {key for key in untrained if not key.startswith("instance_classifiers.0")}
    assert all(
        value.grad.abs().sum() > 0
        for key, value in model.named_parameters()
        if key.endswith("choice.value.weight")
    )


@every_head
def test_a_spec_declares_what_the_head_says(name: str) -> None:
    for one in (head(name).train(), head(name).eval()):
        output = one(of(name, 4))
        assert (output.attention_logits is not None) == HEADS[name].has_attention
        assert (output.instance_logits is not None) == HEADS[name].tells_deciding_tiles


@every_head
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n", [1, 4, 9])
@pytest.mark.parametrize("fewest", [False, True])
def test_short_ways_are_those_of_a_rerun(name: str, n_classes: int, n: int, fewest: bool) -> None:
    """Parts, all but one and one alone of the finest tiles; `fewest`: of tiles of which the head looks at one or at none."""
    for seed in range(3):
        model = head(name, n_classes=n_classes, seed=seed).double().eval()
        bags = of(name, n, seed=seed)
        if fewest:
            bags = (*bags[:-1], bags[-1].part(torch.arange(min(3, len(bags[-1])))))
        if not len(bags[-1]):
            continue
        bags = tuple(one.on("cpu", torch.float64) for one in bags)
        kept = torch.rand(9, len(bags[-1]), generator=torch.Generator().manual_seed(seed)) > 0.6
        kept[0], kept[1] = True, False
        with torch.no_grad():
            for part in (kept, torch.eye(len(bags[-1]), dtype=torch.bool)):
                torch.testing.assert_close(
                    model.subset_logits(bags, part),
                    MILModel.subset_logits(model, bags, part),
                    atol=1e-10,
                    rtol=0,
                )
            every = torch.eye(len(bags[-1]), dtype=torch.bool)
            torch.testing.assert_close(
                model.leave_one_out_logits(bags),
                MILModel.subset_logits(model, bags, ~every),
                atol=1e-10,
                rtol=0,
            )
            torch.testing.assert_close(
                model.alone_logits(bags), MILModel.alone_logits(model, bags), atol=1e-10, rtol=0
            )


@every_head
def test_weights_and_spec_make_the_same_head_again(name: str) -> None:
    model, bags = head(name, seed=5).eval(), of(name, 9)
    raw = {"name": name, "embed_dim": DIM, "n_classes": 2} | SMALL[name]
    again = SPEC.validate_json(SPEC.dump_json(SPEC.validate_python(raw))).build().eval()
    again.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(model(bags).bag_logits, again(bags).bag_logits)


@every_head
def test_bags_that_it_can_not_read_are_refused(name: str) -> None:
    model, bags = head(name).eval(), of(name, 4)
    with pytest.raises(ValueError, match="magnifications for a head that reads"):
        model(bags[0])
    with pytest.raises(ValueError, match="parent"):
        model((*bags[:-1], replace(bags[-1], parents=None)))
    with pytest.raises(ValueError, match="empty"):
        model((bags[0].part(torch.tensor([], dtype=torch.long)), *bags[1:]))
    with pytest.raises(ValueError, match="are read"):
        model.children_to_read(bags)


@every_head
def test_a_problem_with_a_known_answer_is_solved(name: str) -> None:
    """Positive slides have one coarse tile that shows it faintly, and its children that show it plainly."""

    def slides(n: int, seed: int) -> list[tuple[tuple[Bag, ...], int]]:
        found = []
        for place in range(n):
            bags, label = of(name, 6, 1000 * seed + place, missing=0.0), place % 2
            if label:
                where = torch.tensor([place % 6])
                for level, bag in enumerate(bags):
                    if level:
                        assert bag.parents is not None
                        where = torch.isin(bag.parents, where).nonzero()[:, 0]
                    bag.embeddings[where, 0] = 4.0 if level == 0 else 6.0
            found.append((bags, label))
        return found

    model, unseen = head(name, dropout=0.0), slides(30, 2)
    seen = slides(40 if name == "zoommil" else 24, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        for bags, label in seen:
            optimizer.zero_grad()
            total(model, model(bags), label).backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        right = [int(model(bags).bag_logits.argmax()) == label for bags, label in unseen]
    assert sum(right) >= 0.9 * len(right)


class TestZoomMIL:
    def test_children_stand_at_their_place_or_in_order(self) -> None:
        coarse = Bag(torch.zeros(2, 1), torch.tensor([[0, 0], [1, 0]]), 1.0)
        fine = Bag(
            torch.zeros(4, 1),
            torch.tensor([[3, 1], [0, 1], [1, 0], [9, 9]]),
            0.5,
            torch.tensor([1, 0, 0, -1]),
        )
        assert child_table(coarse, fine).tolist() == [[-1, 2, 1, -1], [-1, -1, -1, 0]]
        assert child_table(replace(coarse, mpp=None), fine).tolist() == [[1, 2], [0, -1]]

    def test_without_noise_the_perturbed_choice_is_the_top_k(self) -> None:
        scores = torch.tensor([0.1, 0.5, 0.2, 0.9])
        found = _PerturbedTopK.apply(scores, 2, 50, 1e-9)
        assert found.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]

    def test_perturbed_choice_and_its_gradient_follow_their_formulas(self) -> None:
        """Of two tiles and k = 1 the first is chosen with probability Phi((s1 - s2) / (sqrt 2 sigma))."""
        scores = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
        torch.manual_seed(0)
        sigma, samples = 0.2, 200_000
        found = _PerturbedTopK.apply(scores, 1, samples, sigma)
        expected = 0.5 * (1 + math.erf(0.1 / (math.sqrt(2) * sigma) / math.sqrt(2)))
        assert found[0, 0].item() == pytest.approx(expected, abs=5e-3)
        found[0, 0].backward()
        # E[1(first chosen) Z_1] / sigma = density of the difference at 0
        density = math.exp(-0.5 * (0.1 / (math.sqrt(2) * sigma)) ** 2) / math.sqrt(2 * math.pi)
        assert scores.grad is not None
        assert float(scores.grad[0]) == pytest.approx(density / (math.sqrt(2) * sigma), rel=0.03)

    def test_a_mixture_s_children_are_the_mixtures_of_theirs(self) -> None:
        coarse = Bag(torch.zeros(2, 1), torch.tensor([[0, 0], [1, 0]]), 1.0)
        fine = Bag(
            torch.tensor([[1.0], [2.0], [10.0]]),
            torch.tensor([[0, 0], [1, 0], [2, 0]]),
            0.5,
            torch.tensor([0, 0, 1]),
        )
        weights = torch.tensor([[0.75, 0.25]])
        found = _children(weights, torch.tensor([0, 1]), coarse, fine)
        # Place 0: 0.75 of the first and 0.25 of the last; place 1: of the first tile alone; 2 and 3: nothing.
        assert found.present.tolist() == pytest.approx([1, 0.75, 0, 0])
        assert found.embeddings[:2, 0].tolist() == pytest.approx([0.75 * 1 + 0.25 * 10, 2.0])
        assert found.tiles.tolist() == [0, 1, 2]
        assert found.weights is not None
        torch.testing.assert_close(found.weights[:2], torch.tensor([[0.75, 0, 0.25], [0, 1, 0]]))

    def test_defaults_are_the_paper_s(self) -> None:
        spec = ZoomMILSpec(embed_dim=768, n_classes=2)
        assert (spec.k, spec.sigma, spec.samples, spec.projection_dim, spec.hidden_dim) == (
            12,
            0.002,
            100,
            512,
            256,
        )


class TestHDMIL:
    def test_chebyshev_polynomials_by_hand(self) -> None:
        layer = Chebyshev(1, 1, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[[0.5, 1.0, -2.0, 3.0]]]))
        x = math.tanh(0.7)
        expected = 0.5 + x - 2 * (2 * x**2 - 1) + 3 * (4 * x**3 - 3 * x)
        assert layer(torch.tensor([[0.7]])).item() == pytest.approx(expected, abs=1e-6)

    def test_a_mask_is_binary_and_has_the_gradient_of_the_sigmoid(self) -> None:
        logits = torch.tensor([[0.2, -0.3, 1.0], [-1.0, -2.0, 0.4]], requires_grad=True)
        mask = binary_mask(logits, temperature=0.5, noise=False)
        assert mask.tolist() == [[1, 0, 1], [0, 0, 1]]
        assert union(mask).tolist() == [1, 0, 1]
        union(mask).sum().backward()
        soft = torch.sigmoid(logits.detach())
        torch.testing.assert_close(logits.grad, soft * (1 - soft))

    def test_noise_keeps_a_tile_as_often_as_its_sigmoid_says(self) -> None:
        torch.manual_seed(0)
        mask = binary_mask(torch.full((100_000,), 0.8), temperature=0.7, noise=True)
        assert float(mask.mean()) == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.01)

    def test_scores_of_the_kept_are_a_softmax_over_them(self) -> None:
        logits = torch.tensor([[200.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
        mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
        found = masked_scores(logits, mask)
        torch.testing.assert_close(found[0], torch.tensor([0.0, *torch.softmax(logits[0, 1:], dim=0)]))
        assert found[1].tolist() == [0, 0, 0]

    def test_terms_by_hand(self) -> None:
        model = head("hdmil", instance_loss="ce", keep_rate=0.5)
        one = torch.tensor(1.0)
        output = MILOutput(
            bag_logits=torch.tensor([0.0, 1.0]),
            bag_embedding=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            extras={
                "end_logits": torch.zeros(2, 2, 2),
                "kept_logits": torch.tensor([1.0, 0.0]),
                "kept_embeddings": torch.tensor([[1.0, 2.0], [3.0, 2.0]]),
                "kept_rate": torch.tensor(0.75),
                "light_mask": 0.25 * one,
                "light_rate": 0.125 * one,
            },
        )
        found = {key: float(value) for key, value in model.losses(output, 1).items()}
        p = 1 / (1 + math.exp(-1))
        assert found == pytest.approx(
            {
                "ce": 0.7 * -math.log(p),
                "instance": 0.3 * math.log(2),
                "kept_classes": 0.5
                * (p - (1 - p)),  # KL of (1 - p, p) to (p, 1 - p): (2 p - 1) log(p / (1 - p))
                "kept_embeddings": 0.5 * 4 / 4,
                "rate": 2 * 0.25**2,
                "light_mask": 0.25,
                "light_rate": 0.125,
            },
            abs=1e-6,
        )

    def test_nothing_of_the_light_network_s_loss_reaches_the_mil(self) -> None:
        model = head("hdmil").train()
        losses = model.losses(model(of("hdmil", 9)), 1)
        (losses["light_mask"] + losses["light_rate"]).backward()
        moved = {key.split(".")[0] for key, value in model.named_parameters() if value.grad is not None}
        assert moved == {"light"}

    def test_the_light_network_learns_the_mask_and_the_rate_comes_near_what_is_asked_for(self) -> None:
        """Coarse tiles show what their children are: after training the share of tiles read is that of the mask."""
        model = head("hdmil", keep_rate=0.5, dropout=0.0)
        slides = [of("hdmil", 8, seed) for seed in range(8)]
        for bags in slides:  # children lie around their parent
            assert bags[1].parents is not None
            bags[1].embeddings.mul_(0.3).add_(2 * bags[0].embeddings[bags[1].parents])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(15):
            for place, bags in enumerate(slides):
                optimizer.zero_grad()
                total(model, model(bags), place % 2).backward()
                optimizer.step()
        with torch.no_grad():
            outputs = [model.train()(bags) for bags in slides]
            read = [len(model.eval().children_to_read(bags[:1])) / len(bags[0]) for bags in slides]
        light = sum(float(output.extras["light_mask"]) for output in outputs) / len(outputs)
        rate = sum(float(output.extras["kept_rate"]) for output in outputs) / len(outputs)
        assert light < 0.2
        assert abs(rate - 0.5) < 0.15
        assert 0.2 < sum(read) / len(read) < 0.9

"""What every MIL head must do, and where one does otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from napari_lrmil.model.mil import HEADS, AnyMILSpec, Bag, MILModel, MILOutput
from napari_lrmil.model.mil.focus import FOCUS

SMALL: dict[str, dict[str, Any]] = {
    "abmil": {"hidden_dim": 16},
    "mean": {},
    "max": {},
    "clam_sb": {"projection_dim": 16, "hidden_dim": 16, "k": 3},
    "clam_mb": {"projection_dim": 16, "hidden_dim": 16, "k": 3},
    "dsmil": {"query_dim": 16},
    "transmil": {"dim": 32, "heads": 2, "landmarks": 4, "inverse_iterations": 2, "dropout": 0.0},
    "dtfd": {"projection_dim": 16, "hidden_dim": 16},
    "dtfd max": {"projection_dim": 16, "hidden_dim": 16, "selection": "max"},
    "dtfd maxmin": {"projection_dim": 16, "hidden_dim": 16, "selection": "maxmin"},
    "focus": {"text_dim": 16, "n_texts": 3, "heads": 2, "similarity": 0.5},
}
"""Small ones of one magnification, by name and where there are several by what is different."""
DIM = 12
SPEC: TypeAdapter[Any] = TypeAdapter(AnyMILSpec)
every_head = pytest.mark.parametrize("name", SMALL)


def head(name: str, *, n_classes: int = 2, seed: int = 0, **keys: Any) -> MILModel:
    torch.manual_seed(seed)
    raw = {"name": name.split()[0], "embed_dim": DIM, "n_classes": n_classes} | SMALL[name] | keys
    built: MILModel = SPEC.validate_python(raw).build()
    if isinstance(built, FOCUS):
        built.set_text(random_bag(3, seed=99, dim=16))
    return built


def random_bag(n: int, seed: int = 0, dim: int = DIM) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def total(model: MILModel, output: MILOutput, label: int) -> Tensor:
    return torch.stack(list(model.losses(output, label).values())).sum()


def test_every_head_of_the_registry_is_tested_here() -> None:
    """But for those of several magnifications, which tests/model/test_zoom_heads.py has."""
    one = {name for name, spec in HEADS.items() if spec(embed_dim=DIM, n_classes=2).factors == (1,)}
    assert one == {name.split()[0] for name in SMALL}


@every_head
@pytest.mark.parametrize("n_classes", [2, 4])
def test_output_has_the_shapes_that_it_says(name: str, n_classes: int) -> None:
    output = head(name, n_classes=n_classes).eval()(random_bag(9))
    assert output.bag_logits.shape == (n_classes,)
    if output.attention_logits is not None:
        assert output.attention_logits.shape in [(1, 9), (n_classes, 9)]
        assert output.attention_scores is not None
        torch.testing.assert_close(
            output.attention_scores.sum(dim=1), torch.ones(len(output.attention_logits)), atol=1e-5, rtol=0
        )
    if output.instance_logits is not None:
        assert output.instance_logits.shape in [(9, 2), (9, n_classes)]


@every_head
def test_a_spec_declares_what_the_head_says(name: str) -> None:
    """Attention, and a classifier of deciding tiles: trained and asked alike, of two classes and of three."""
    for n_classes in (2, 3):
        model = head(name, n_classes=n_classes)
        for one in (model.train(), model.eval()):
            output = one(random_bag(7))
            assert (output.attention_logits is not None) == HEADS[name.split()[0]].has_attention
            assert (output.instance_logits is not None) == HEADS[name.split()[0]].tells_deciding_tiles
            assert output.instance_logits is None or output.instance_logits.shape == (7, 2)


@every_head
def test_a_bag_and_its_embeddings_alone_say_the_same(name: str) -> None:
    model, embeddings = head(name).eval(), random_bag(9)
    one, other = model(embeddings), model(Bag(embeddings, mpp=2.0))
    assert torch.equal(one.bag_logits, other.bag_logits)


@every_head
def test_order_of_the_instances(name: str) -> None:
    """It changes nothing but their order, where the method is invariant; where a head says not, it does change."""
    model, bag = head(name).eval(), random_bag(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        one, other = model(bag), model(bag[order])
        if model.order_matters:
            turned = torch.stack([model(bag.roll(places, dims=0)).bag_logits for places in range(1, 30)])
            assert (turned - one.bag_logits).abs().max() > 1e-3
            return
    torch.testing.assert_close(one.bag_logits, other.bag_logits)
    if one.attention_logits is not None and other.attention_logits is not None:
        torch.testing.assert_close(one.attention_logits[:, order], other.attention_logits)
    if one.instance_logits is not None and other.instance_logits is not None:
        torch.testing.assert_close(one.instance_logits[order], other.instance_logits)
    if "class_instance_logits" in one.extras:
        by_class, again = one.extras["class_instance_logits"], other.extras["class_instance_logits"]
        torch.testing.assert_close(by_class[order], again)


@every_head
def test_the_same_bag_gives_the_same_answer(name: str) -> None:
    model, bag = head(name).eval(), random_bag(30)
    with torch.inference_mode():
        assert torch.equal(model(bag).bag_logits, model(bag).bag_logits)


@every_head
@pytest.mark.parametrize("n", [1, 2, 3, 40])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gradients_are_finite(name: str, n: int, scale: float) -> None:
    model = head(name, n_classes=3).train()
    bag = (random_bag(n) * scale).requires_grad_()
    output = model(bag)
    loss = total(model, output, 1)
    if output.attention_logits is not None:  # the attention terms of stage 2 reach it too
        loss = loss + torch.log_softmax(output.attention_logits, dim=1).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert bag.grad is not None
    assert torch.isfinite(bag.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@every_head
def test_every_weight_is_trained_by_the_head_s_own_loss(name: str) -> None:
    """But for ABMIL's instance classifier, which stage 2 trains, and layers that a softmax doesn't see."""
    model = head(name).train()
    total(model, model(random_bag(30)), 1).backward()
    untrained = {name for name, p in model.named_parameters() if p.grad is None}
    assert untrained <= {"instance_classifier.weight", "instance_classifier.bias"}


@every_head
def test_one_left_out_one_alone_and_parts_are_those_of_a_rerun(name: str) -> None:
    model = head(name, n_classes=3).eval()
    for n in (1, 2, 11):
        bag = random_bag(n, seed=n) * 3
        with torch.inference_mode():
            torch.testing.assert_close(
                model.leave_one_out_logits(bag),
                MILModel.leave_one_out_logits(model, bag),
                atol=1e-5,
                rtol=1e-4,
            )
            torch.testing.assert_close(
                model.alone_logits(bag), MILModel.alone_logits(model, bag), atol=1e-5, rtol=1e-4
            )
            kept = torch.rand(8, n, generator=torch.Generator().manual_seed(n)) > 0.5
            kept[0], kept[1] = True, False
            torch.testing.assert_close(
                model.subset_logits(bag, kept),
                MILModel.subset_logits(model, bag, kept),
                atol=1e-5,
                rtol=1e-4,
            )


@every_head
def test_weights_and_spec_make_the_same_head_again(name: str) -> None:
    model, bag = head(name, n_classes=3, seed=5).eval(), random_bag(20)
    raw = {"name": name.split()[0], "embed_dim": DIM, "n_classes": 3} | SMALL[name]
    spec = SPEC.validate_json(SPEC.dump_json(SPEC.validate_python(raw)))
    again = spec.build().eval()
    again.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(model(bag).bag_logits, again(bag).bag_logits)


def _fit(model: MILModel, bags: list[tuple[Tensor, int]], *, epochs: int, rate: float = 3e-3) -> None:
    """Train for so many epochs, or until all bags were told right after two in a row; leave it in eval mode."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    in_a_row = 0
    for _ in range(epochs):
        model.train()
        for place in torch.randperm(len(bags)).tolist():
            bag, label = bags[place]
            optimizer.zero_grad()
            total(model, model(bag), label).backward()
            optimizer.step()
        model.eval()
        in_a_row = in_a_row + 1 if _accuracy(model, bags) == 1 else 0
        if in_a_row == 2:
            return


def _accuracy(model: MILModel, bags: list[tuple[Tensor, int]]) -> float:
    with torch.inference_mode():
        right = [int(model(bag).bag_logits.argmax()) == label for bag, label in bags]
    return sum(right) / len(right)


@every_head
def test_ten_bags_are_learned_by_heart(name: str) -> None:
    """Labels without reason: the head has the strength to fit them."""
    bags = [(random_bag(6 + place % 5, seed=place), (place * 7) % 10 % 2) for place in range(10)]
    model = head(name, dropout=0.0)
    _fit(model, bags, epochs=100 if name == "max" else 40, rate=3e-3 if name == "transmil" else 1e-2)
    assert _accuracy(model, bags) == 1


def _witnesses(n_bags: int, seed: int) -> list[tuple[Tensor, int]]:
    """Bags whose class is known: positive where one of 10 tiles, the witness, lies 6 standard deviations out."""
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for place in range(n_bags):
        bag = torch.randn(10, DIM, generator=generator)
        if place % 2:
            witness = 0.3 * torch.randn(DIM, generator=generator)
            witness[0] += 6
            bag[int(torch.randint(10, (1,), generator=generator))] = witness
        bags.append((bag, place % 2))
    return bags


@every_head
def test_a_problem_with_a_known_answer_is_solved(name: str) -> None:
    """Unseen bags are told apart (by their mean, not as well), and attention finds the witness.

    Not of CLAM-MB, whose classes may find it in each other's branch, nor of TransMIL, whose class token may have read
    it in the first layer from any other token.
    """
    model, unseen = head(name), _witnesses(60, seed=2)
    _fit(
        model,
        _witnesses(80, seed=1),
        epochs=10 if name == "transmil" else 15,
        rate=3e-3 if name == "transmil" else 1e-2,
    )
    assert _accuracy(model, unseen) >= (0.65 if name == "mean" else 0.9)
    if name in ("mean", "max", "clam_mb", "transmil"):
        return
    found = []
    for bag, label in unseen:
        with torch.inference_mode():
            scores = model(bag).attention_for(1)
        assert scores is not None
        if label:
            found.append(int(scores.argmax()) == int(bag[:, 0].argmax()))
    assert sum(found) >= 0.9 * len(found)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
@every_head
def test_fifty_thousand_tiles_in_bounded_memory(name: str) -> None:
    """At most a few times the bag itself beside it: nothing of N x N, nor (16 bags here) of N x landmarks x heads."""
    model = head(name, embed_dim=256, **_WIDER.get(name.split()[0], {})).eval()
    bag = random_bag(50_000, dim=256)
    before = _reset_peak()
    with torch.inference_mode():
        output = model(bag)
    assert torch.isfinite(output.bag_logits).all()
    assert _status("VmHWM") - before < (12 if name == "transmil" else 4) * bag.nbytes


_WIDER: dict[str, dict[str, Any]] = {
    "clam_sb": {"projection_dim": 256, "hidden_dim": 128},
    "clam_mb": {"projection_dim": 256, "hidden_dim": 128},
    "transmil": {"dim": 128, "heads": 8, "landmarks": 512},
    "dtfd": {"projection_dim": 256, "hidden_dim": 128},
}


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

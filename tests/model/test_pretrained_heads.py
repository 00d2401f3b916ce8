"""Published ABMIL heads as starting points, and the texts of FOCUS: what fits is taken, what doesn't is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from napari_lrmil.model.bundle import load_bundle, save_bundle
from napari_lrmil.model.mil.abmil import ABMIL, ABMILSpec
from napari_lrmil.model.mil.focus import FOCUSSpec, TextError, compressed, not_redundant, read_text
from napari_lrmil.model.mil.pretrained import PretrainedHeadError, read_pretrained, start_from


def published(dim: int = 6, width: int = 5, hidden: int = 4, n_classes: int = 3) -> dict[str, Tensor]:
    """A gated head by MIL-Lab's names, as FEATHER's: projection, three attention layers, classifier."""
    torch.manual_seed(0)
    layers = {
        "model.patch_embed.0": nn.Linear(dim, width),
        "model.global_attn.attention_a.0": nn.Linear(width, hidden),
        "model.global_attn.attention_b.0": nn.Linear(width, hidden),
        "model.global_attn.attention_c": nn.Linear(hidden, 1),
        "model.classifier": nn.Linear(width, n_classes),
    }
    return {
        f"{name}.{kind}": value.detach().clone()
        for name, layer in layers.items()
        for kind, value in layer.named_parameters()
    }


def forward(weights: dict[str, Tensor], bag: Tensor) -> Tensor:
    """What such a head says, by its formula."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"model.{name}.weight"].T + weights[f"model.{name}.bias"]

    instances = torch.relu(linear("patch_embed.0", bag))
    hidden = torch.tanh(linear("global_attn.attention_a.0", instances)) * torch.sigmoid(
        linear("global_attn.attention_b.0", instances)
    )
    scores = torch.softmax(linear("global_attn.attention_c", hidden)[:, 0], dim=0)
    return linear("classifier", scores @ instances)


def built(spec: ABMILSpec) -> ABMIL:
    return spec.build().eval()


def test_a_feather_head_says_here_what_it_says_there(tmp_path: Path) -> None:
    weights = published()
    save_file(weights, tmp_path / "model.safetensors")
    head = read_pretrained(tmp_path / "model.safetensors")
    spec = head.spec
    assert (spec.embed_dim, spec.projection, spec.hidden_dim, spec.n_classes) == (6, (5,), 4, 3)
    assert (spec.gated, spec.normalise) == (True, False)
    model, bag = built(spec), torch.randn(9, 6)
    assert start_from(model, head, classifier=True) == [
        "instance_classifier.weight",
        "instance_classifier.bias",
    ]
    torch.testing.assert_close(model(bag).bag_logits, forward(weights, bag))


def test_without_the_classifier_the_classes_may_be_others(tmp_path: Path) -> None:
    save_file(published(), tmp_path / "model.safetensors")
    head = read_pretrained(tmp_path / "model.safetensors")
    model = built(head.spec.model_copy(update={"n_classes": 2}))
    before = model.classifier.weight.clone()
    fresh = start_from(model, head)
    assert {name.split(".")[0] for name in fresh} == {"classifier", "instance_classifier"}
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(model.value.weight, head.weights["value.weight"])


def test_clam_and_own_names_are_known(tmp_path: Path) -> None:
    own = built(ABMILSpec(embed_dim=6, n_classes=2, hidden_dim=4, projection=(7, 5)))
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    head = read_pretrained(tmp_path / "own.safetensors")
    assert head.spec.projection == (7, 5)
    assert head.spec.normalise
    again = built(head.spec)
    start_from(again, head, classifier=True)
    bag = torch.randn(5, 6)
    torch.testing.assert_close(again(bag).bag_logits, own(bag).bag_logits)
    names = {
        "patch_embed.0": "attention_net.0",
        "global_attn.": "attention_net.3.",
        "classifier": "classifiers",
        "model.": "",
    }
    clam = published()
    for there, here in names.items():
        clam = {name.replace(there, here): value for name, value in clam.items()}
    save_file(clam, tmp_path / "clam.safetensors")
    head, weights, bag = read_pretrained(tmp_path / "clam.safetensors"), published(), torch.randn(9, 6)
    model = built(head.spec)
    start_from(model, head, classifier=True)
    torch.testing.assert_close(model(bag).bag_logits, forward(weights, bag))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_dim": 8}, r"value.weight is 4 x 5, here 8 x 5.*hidden_dim 4"),
        ({"embed_dim": 7}, r"projection.0.0.weight is 5 x 6, here 5 x 7.*embed_dim 6"),
        ({"projection": ()}, "has no place here"),
        ({"gated": False}, "gate.weight has no place here"),
        ({"normalise": True}, "norm.weight isn't in it.*normalise false"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    save_file(published(), tmp_path / "model.safetensors")
    head = read_pretrained(tmp_path / "model.safetensors")
    model = built(head.spec.model_copy(update=change))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PretrainedHeadError, match=said):
        start_from(model, head)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_files_that_hold_no_such_head_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"not one")
    with pytest.raises(PretrainedHeadError, match="isn't a safetensors file"):
        read_pretrained(tmp_path / "no.safetensors")
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(PretrainedHeadError, match=r"no value.weight and no score.weight among layer.weight"):
        read_pretrained(tmp_path / "other.safetensors")
    branches = published() | {"model.global_attn.attention_c.weight": torch.zeros(3, 4)}
    save_file(branches, tmp_path / "branches.safetensors")
    with pytest.raises(PretrainedHeadError, match="3 attention branches"):
        read_pretrained(tmp_path / "branches.safetensors")
    save_file(
        published() | {"model.classifier.bias": torch.tensor([torch.nan] * 3)}, tmp_path / "nan.safetensors"
    )
    with pytest.raises(PretrainedHeadError, match="aren't finite"):
        read_pretrained(tmp_path / "nan.safetensors")


class TestFOCUS:
    def test_without_texts_it_says_so(self) -> None:
        model = FOCUSSpec(embed_dim=4, n_classes=2, text_dim=8, heads=2).build().eval()
        with pytest.raises(TextError, match="set_text"):
            model(torch.randn(3, 4))

    def test_texts_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        model = FOCUSSpec(embed_dim=4, n_classes=2, text_dim=8, n_texts=2, heads=2).build()
        for wrong, said in (
            (torch.ones(3, 8), "3 x 8, here 2 x 8"),
            (torch.zeros(2, 8), "zeros"),
            (torch.full((2, 8), torch.inf), "finite"),
        ):
            with pytest.raises(TextError, match=said):
                model.set_text(wrong)
        save_file({"text": torch.ones(2, 8), "logit_scale": torch.ones(1)}, tmp_path / "text.safetensors")
        model.set_text(read_text(tmp_path / "text.safetensors"))
        assert torch.equal(model.state_dict()["text"], torch.ones(2, 8))
        save_file({"a": torch.ones(2, 8), "b": torch.ones(2, 8)}, tmp_path / "two.safetensors")
        with pytest.raises(TextError, match="one matrix"):
            read_text(tmp_path / "two.safetensors")
        (tmp_path / "no.safetensors").write_bytes(b"not one")
        with pytest.raises(TextError, match="isn't a safetensors file"):
            read_text(tmp_path / "no.safetensors")

    def test_redundant_is_above_the_window_s_mean_and_one_deviation(self) -> None:
        """Of a window of three alike and five unlike, window by window and in the shorter last one."""
        tiles = torch.randn(21, 6)
        expected = []
        for start in range(0, 21, 8):
            window = torch.nn.functional.normalize(tiles[start : start + 8], dim=1)
            alike = window @ window.T
            limit = alike.mean() + alike.std(correction=0)
            expected += [start + n for n in range(len(window)) if alike[n].mean() <= limit]
        assert not_redundant(tiles, 8).tolist() == expected
        assert not_redundant(tiles[:1], 8).tolist() == [0]

    def test_compression_by_hand(self) -> None:
        """Nearest to the texts first, then without the tile that repeats the one before it in its chunk."""
        east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        tiles = torch.stack([east, 1.01 * east, north, -east, 0.9 * north])
        text = torch.tensor([[1.0, 0.5]])
        # Windows of 2: the third, single tile of the last window stays too; none is above mean + deviation.
        assert not_redundant(tiles, 2).tolist() == [0, 1, 2, 3, 4]
        # Chunks of what is chosen: (0, 1), (2, 3), (4): 1 repeats 0; 4 is the first of its own.
        assert compressed(tiles, text, window=2, similarity=0.8, max_tiles=5).tolist() == [0, 2, 3, 4]
        # Without tile 3, the farthest from the text, 4 stands beside 2 and repeats it.
        assert compressed(tiles, text, window=2, similarity=0.8, max_tiles=4).tolist() == [0, 2]
        assert compressed(tiles, text, window=8, similarity=0.8, max_tiles=2).tolist() == [0]

    def test_attention_is_on_the_kept_tiles_alone(self) -> None:
        model = FOCUSSpec(embed_dim=4, n_classes=2, text_dim=8, heads=2, max_tiles=3).build().eval()
        model.set_text(torch.randn(2, 8))
        output = model(torch.randn(12, 4))
        scores = output.attention_for(0)
        assert scores is not None
        kept = output.extras["kept"]
        assert len(kept) <= 3
        assert scores[kept].sum().item() == pytest.approx(1, abs=1e-5)


def test_a_bundle_says_that_there_is_no_layer_norm_and_nothing_where_there_is(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Keys that older programs don't know are written where they say something."""
    model = load_bundle(tiny_bundle)
    assert "normalise" not in json.loads((tiny_bundle / "bundle.json").read_text())["mil"]
    spec = ABMILSpec(embed_dim=model.info.mil.embed_dim, n_classes=model.info.mil.n_classes, normalise=False)
    info = model.info.model_copy(update={"mil": spec})
    save_bundle(tmp_path / "plain", info=info, encoder=model.encoder, mil=spec.build().eval())
    raw = json.loads((tmp_path / "plain" / "bundle.json").read_text())
    assert raw["mil"]["normalise"] is False
    assert raw["format_version"] == 3
    assert load_bundle(tmp_path / "plain").info.mil == spec

"""The heads against torchmil's on shared weights: the same numbers, or a difference that is said.

``pip install napari-lrmil[peers]`` brings torchmil; without it these tests skip. It has one logit for two classes, which
stands against the difference of two here, and takes bags without normalising or projecting them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_lrmil.model.mil.clam import CLAMSBSpec
from napari_lrmil.model.mil.dsmil import DSMILSpec
from napari_lrmil.model.mil.dtfd import DTFDSpec
from napari_lrmil.model.mil.transmil import NystromAttention, PyramidPositions, TransMILSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torchmil", reason="torchmil isn't installed: pip install napari-lrmil[peers]")
    import torchmil.models as peers
    import torchmil.nn as peer_layers

DIM = 12
pytestmark = pytest.mark.filterwarnings("ignore")


def give(layer: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy weights into a layer, by name."""
    own = dict(layer.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def linear(layer: Any) -> Any:
    """Return the linear layer in torchmil's lazy ones."""
    return getattr(layer, "module", layer)


def attention_weights(pool: Any) -> dict[str, Tensor]:
    """Of torchmil's gated attention pool, by the names here; it has no bias in the last layer."""
    return {
        "value.weight": linear(pool.fc1).weight,
        "value.bias": linear(pool.fc1).bias,
        "gate.weight": linear(pool.fc_gated).weight,
        "gate.bias": linear(pool.fc_gated).bias,
        "score.weight": pool.fc2.weight,
        "score.bias": torch.zeros(1),
    }


def two_logits(classifier: Any) -> dict[str, Tensor]:
    """Weights of two logits whose difference is that of torchmil's one."""
    weight, bias = linear(classifier).weight, linear(classifier).bias
    return {"weight": torch.cat([0 * weight, weight]), "bias": torch.cat([0 * bias, bias])}


def test_clam_pools_classifies_and_ranks_as_torchmil_s_does() -> None:
    torch.manual_seed(0)
    peer = peers.CLAM_SB(in_shape=(DIM,), att_dim=7, k_sample=3, gated=True).eval()
    spec = CLAMSBSpec(
        embed_dim=DIM, n_classes=2, projection_dim=DIM, hidden_dim=7, k=3, subtyping=True, normalise=False
    )
    model = spec.build().eval()
    # torchmil has no layer before the attention: the projection is the identity, on bags that its ReLU leaves alone.
    give(model.projection, {"0.weight": torch.eye(DIM), "0.bias": torch.zeros(DIM)})
    give(model.attention, attention_weights(peer.pool))
    give(model.classifier, two_logits(peer.classifier))
    give(
        model.instance_classifiers,
        {
            "weight": torch.cat([linear(one).weight for one in peer.inst_classifiers]),
            "bias": torch.cat([linear(one).bias for one in peer.inst_classifiers]),
        },
    )
    bag = torch.rand(20, DIM)
    logit, attention = peer(bag[None], return_att=True)
    output = model(bag)
    assert output.attention_logits is not None
    torch.testing.assert_close(output.attention_logits, attention)
    torch.testing.assert_close(output.bag_logits[1] - output.bag_logits[0], logit[0])
    # The same tiles at both ends, and the same said of them. The losses of them can't be compared: torchmil's smooth
    # SVM, given (M, 1) targets, mixes up tiles and classes ((M, 2) + (M, 1, 2)); tests/model/test_head_losses.py has
    # it by hand.
    for label in (0, 1):
        _, predicted, target = peer.inst_eval(attention[0], bag, peer.inst_classifiers[label])
        assert target.tolist() == [1, 1, 1, 0, 0, 0]
        assert output.extras["end_logits"][label].argmax(dim=1).tolist() == predicted[:, 0].tolist()


def test_dsmil_has_torchmil_s_streams() -> None:
    """Class 0's stream is silenced: torchmil has one. Its values are the instances, its loss isn't halved."""
    torch.manual_seed(0)
    peer = peers.DSMIL(in_shape=(DIM,), att_dim=7).eval()
    model = DSMILSpec(embed_dim=DIM, n_classes=2, query_dim=7, normalise=False).build().eval()
    give(model.query, {"weight": peer.q_nn.weight, "bias": peer.q_nn.bias})
    give(model.instance_classifier, two_logits(peer.inst_classifier))
    give(model.value, {"weight": torch.eye(DIM), "bias": torch.zeros(DIM)})
    joint = torch.zeros(2, 2, DIM)
    joint[1, 1] = peer.bag_classifier.weight[0]
    give(
        model.classifier,
        {"weight": joint.flatten(1), "bias": torch.stack([torch.zeros(()), peer.bag_classifier.bias[0]])},
    )
    bag = torch.randn(20, DIM)
    logit, attention, instance = peer(bag[None], return_att=True, return_inst_pred=True)
    output = model(bag)
    torch.testing.assert_close(output.attention_for(1), attention[0, :, 0])
    torch.testing.assert_close(output.extras["stream_logits"][1], logit[0])
    torch.testing.assert_close(output.extras["max_logits"][1], instance[0].max())
    torch.testing.assert_close(output.bag_logits[1], peer.predict(bag[None])[0])


@pytest.mark.parametrize("length", [5, 16, 37])
def test_nystrom_attention_is_torchmil_s(length: int) -> None:
    """Without the convolution over the values, which torchmil leaves out, and with its missing last layer."""
    torch.manual_seed(0)
    peer = peer_layers.NystromAttention(in_dim=DIM, att_dim=DIM, n_heads=3, n_landmarks=8).eval()
    layer = NystromAttention(DIM, heads=3, landmarks=8, value_residual=False).eval()
    give(layer.query_key_value, {"weight": peer.qkv_nn.weight})
    give(layer.out, {"weight": torch.eye(DIM), "bias": torch.zeros(DIM)})
    tokens = torch.randn(length, DIM)
    expected, attention = peer(tokens[None], return_att=True)
    first, row = layer.with_row(tokens[None])
    torch.testing.assert_close(layer(tokens[None]), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first, expected[0, :1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(row, attention[0, :, 0].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_position_encoding_is_torchmil_s() -> None:
    from torchmil.models.transmil import PPEG

    torch.manual_seed(0)
    peer, layer = PPEG(DIM), PyramidPositions(DIM)
    for own, other in zip(layer.convolutions, (peer.proj, peer.proj1, peer.proj2), strict=True):
        give(own, {"weight": other.weight, "bias": other.bias})
    tokens = torch.randn(25, DIM)
    expected = peer(torch.cat([torch.zeros(1, DIM), tokens])[None], 5, 5)[0, 1:]
    torch.testing.assert_close(layer(tokens[None], 5)[0], expected)


def test_transmil_says_what_torchmil_s_says() -> None:
    """On projected bags: torchmil has no ReLU after its first layer, and none at all where widths are equal."""
    torch.manual_seed(0)
    peer = peers.TransMIL(in_shape=(DIM,), att_dim=DIM, n_heads=3, n_landmarks=8).eval()
    spec = TransMILSpec(
        embed_dim=DIM, n_classes=2, dim=DIM, heads=3, landmarks=8, value_residual=False, normalise=False
    )
    model = spec.build().eval()
    give(model.projection, {"0.weight": torch.eye(DIM), "0.bias": torch.zeros(DIM)})
    give(model, {"class_token": peer.cls_token[0]})
    for own, other in zip((model.first, model.second), peer.layers, strict=True):
        give(own.norm, {"weight": other.norm1.weight, "bias": other.norm1.bias})
        give(own.attention.query_key_value, {"weight": other.att_module.qkv_nn.weight})
        give(own.attention.out, {"weight": torch.eye(DIM), "bias": torch.zeros(DIM)})
    peer_convolutions = (peer.pos_layer.proj, peer.pos_layer.proj1, peer.pos_layer.proj2)
    for own, other in zip(model.positions.convolutions, peer_convolutions, strict=True):
        give(own, {"weight": other.weight, "bias": other.bias})
    give(model.last_norm, {"weight": peer.norm.weight, "bias": peer.norm.bias})
    give(model.classifier, two_logits(peer.classifier))
    bag = torch.rand(19, DIM)
    output = model(bag)
    torch.testing.assert_close(
        output.bag_logits[1] - output.bag_logits[0], peer(bag[None])[0], atol=1e-5, rtol=1e-4
    )


def test_dtfd_with_one_pseudo_bag_is_torchmil_s() -> None:
    """With "afs", its attention isn't gated, and its first tier's map isn't weighted by the attention."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what torchmil draws its pseudo-bags from
    peer = peers.DTFDMIL(in_shape=(DIM,), att_dim=7, n_groups=1, distill_mode="afs").eval()
    spec = DTFDSpec(
        embed_dim=DIM, n_classes=2, projection_dim=DIM, hidden_dim=7, pseudo_bags=1, normalise=False
    )
    model = spec.build().eval()
    give(model.projection, {"0.weight": torch.eye(DIM)})
    for own, pool in (
        (model.first_attention, peer.attention_pool),
        (model.second_attention, peer.u_attention_pool),
    ):
        # A gate that is always open halfway, and twice the score, are no gate.
        give(
            own,
            {
                "value.weight": linear(pool.fc1).weight,
                "value.bias": linear(pool.fc1).bias,
                "gate.weight": torch.zeros(7, DIM),
                "gate.bias": torch.zeros(7),
                "score.weight": 2 * pool.fc2.weight,
                "score.bias": torch.zeros(1),
            },
        )
    give(model.first_classifier, two_logits(peer.classifier))
    give(model.second_classifier, two_logits(peer.u_classifier))
    bag = torch.rand(15, DIM)
    logit, pseudo = peer(bag[None], return_pseudo_pred=True)
    output = model(bag)
    torch.testing.assert_close(output.bag_logits[1] - output.bag_logits[0], logit[0])
    of_pseudo = output.extras["pseudo_bag_logits"]
    torch.testing.assert_close(of_pseudo[:, 1] - of_pseudo[:, 0], pseudo[0])

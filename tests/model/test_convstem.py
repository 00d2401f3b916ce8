"""Our own small vision transformer says what timm's says, to the last bit, and needs none of it."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem

from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.encoder.convstem import ConvStemViT
from napari_lrmil.model.tensors import shapes_alone


def timms(embed_dim: int, depth: int, heads: int, image_px: int) -> VisionTransformer:
    channels = (embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim)
    stem = ConvStem(depth=4, channels=channels, kernel_size=3, stride=(2, 2, 2, 2), padding=1)
    return VisionTransformer(
        img_size=image_px,
        patch_size=1,
        embed_layer=functools.partial(HybridEmbed, backbone=stem, proj=False),
        embed_dim=embed_dim,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        dynamic_img_size=True,
    )


def both(
    embed_dim: int = 24, depth: int = 3, heads: int = 2, image_px: int = 64
) -> tuple[VisionTransformer, ConvStemViT]:
    torch.manual_seed(7)
    theirs = timms(embed_dim, depth, heads, image_px)
    torch.manual_seed(7)
    return theirs, ConvStemViT(embed_dim=embed_dim, depth=depth, heads=heads, image_px=image_px)


def test_a_seed_draws_the_same_weights_under_the_same_names() -> None:
    theirs, ours = (one.state_dict() for one in both())
    assert list(theirs) == list(ours)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([32, 64, 96]),
    st.sampled_from([32, 64, 112]),
    st.booleans(),
    st.integers(0, 2),
    st.integers(1, 3),
)
def test_outputs_are_the_same(rows: int, columns: int, training: bool, tap: int, batch: int) -> None:
    theirs, ours = (one.train(training) for one in both())
    pixels = torch.randn(batch, 3, rows, columns)
    assert torch.equal(theirs.forward_features(pixels), ours.forward_features(pixels))
    for shape in ("NCHW", "NLC"):
        asked = {"indices": [tap], "return_prefix_tokens": True, "norm": False, "output_fmt": shape}
        (final, ((tokens, prefix),)), (their_final, ((their_tokens, their_prefix),)) = (
            one.forward_intermediates(pixels, **asked) for one in (ours, theirs)
        )
        assert torch.equal(final, their_final)
        assert torch.equal(tokens, their_tokens)
        assert torch.equal(prefix, their_prefix)
        early = ours.forward_intermediates(pixels, **asked, stop_early=True, intermediates_only=True)
        assert torch.equal(early[0][0], their_tokens)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same(checkpointing: bool) -> None:
    theirs, ours = (one.train() for one in both())
    ours.set_grad_checkpointing(checkpointing)
    pixels = torch.randn(4, 3, 64, 64)
    for one in (theirs, ours):
        one.forward_features(pixels).square().sum().backward()
    found = dict(ours.named_parameters())
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(found[name].grad, value.grad, rtol=1e-5, atol=1e-7)


def test_shapes_alone_take_no_memory_and_no_numbers() -> None:
    spec = EncoderSpec(options={"embed_dim": 16_384, "depth": 200, "heads": 4, "image_px": 64})
    with shapes_alone():
        encoder = Encoder(spec)
    assert all(value.is_meta for value in encoder.vit.state_dict().values())


@pytest.mark.slow
def test_classifying_with_it_imports_neither_timm_nor_a_compiler() -> None:
    """Each takes as long as torch. Triton, which the compiler brings, kills a window: see `import_models`."""
    code = """
import sys, torch
from napari_lrmil.evidence import explain
from napari_lrmil.model.bundle import load_bundle
bundle = load_bundle("demo")
with torch.inference_mode():
    bag = bundle.encoder(bundle.encoder.preprocess(torch.zeros(70, 64, 64, 3, dtype=torch.uint8))).embedding
explain(bundle.mil, bag, scaling=bundle.info.vector_scaling)
print(*sorted({name.split(".")[0] for name in sys.modules} | {"torch._dynamo"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert not set(done.stdout.split()) & {"timm", "torchvision", "torch._dynamo", "triton", "sympy"}

"""Encoders of milliseconds, and bundles of random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.random_bundle import random_bundle_info
from napari_lrmil.model.bundle import save_bundle
from napari_lrmil.model.encoder import Encoder, EncoderSpec, load_weights
from napari_lrmil.model.mil import ABMILSpec, build_mil

TINY_VIT = {
    "patch_size": 8,
    "img_size": 32,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
}
"""Of a timm ViT: 4 x 4 tokens in a tile of 32 px, three blocks."""


def tiny_spec() -> EncoderSpec:
    """An encoder of milliseconds."""
    return EncoderSpec(architecture="vit_tiny_patch16_224", options=TINY_VIT)


def write_bundle(
    target: Path,
    spec: EncoderSpec,
    *,
    tile_px: int,
    temperature: float = 1.0,
    weights: Path | None = None,
    min_tissue: float = 0.25,
    attention_scale: float = 1.0,
    mpp: float = 2.0,
    within: int = 1,
) -> Path:
    """A bundle of random weights, but for those of the encoder if given."""
    torch.manual_seed(0)
    encoder = Encoder(spec)
    if weights is not None:
        load_weights(encoder, weights)
    mil_spec = ABMILSpec(embed_dim=encoder.embed_dim, n_classes=2)
    mil = build_mil(mil_spec)
    with torch.no_grad():
        mil.get_parameter("score.weight").mul_(attention_scale)
    info = random_bundle_info(
        spec,
        mil_spec,
        token_px=encoder.token_px,
        tile_px=tile_px,
        mpp=mpp,
        within=within,
        min_tissue=min_tissue,
        temperature=temperature,
    )
    save_bundle(target, info=info, encoder=encoder, mil=mil)
    return target

"""A model and a slide of milliseconds, for attacks that classify."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.random_bundle import random_bundle_info
from napari_lrmil.model.bundle import ModelBundle, load_bundle, save_bundle
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.mil import ABMILSpec, build_mil
from napari_lrmil.model.trust import ConformalInfo, OODInfo, TileGaussian, Trust, TrustInfo
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide

SPEC = EncoderSpec(
    architecture="vit_tiny_patch16_224",
    options={"patch_size": 8, "img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2},
)
MPP = 2.0
"""µm/px of the slide, and of the model's tiles."""


def write_small_bundle(target: Path) -> Path:
    """Write a bundle of random weights with a trust part."""
    torch.manual_seed(0)
    encoder = Encoder(SPEC)
    mil_spec = ABMILSpec(embed_dim=24, n_classes=2, hidden_dim=16)
    info = random_bundle_info(
        SPEC, mil_spec, token_px=8, tile_px=32, mpp=MPP, min_tissue=0.1, temperature=1.5
    )
    axes = torch.linalg.qr(torch.randn(24, 3).double()).Q.T.contiguous()
    trust = Trust(
        TrustInfo(
            conformal=ConformalInfo(coverage=0.9, n_calibration=30, quantile=0.4),
            ood=OODInfo(
                rank=3, threshold=1.75, false_alarm_rate=0.05, n_calibration=30, n_training_tiles=1000
            ),
        ),
        TileGaussian(torch.randn(24).double(), axes, torch.linspace(2, 1, 4).double()),
    )
    save_bundle(target, info=info, encoder=encoder, mil=build_mil(mil_spec), trust=trust)
    return target


def write_small_slide(path: Path) -> Path:
    """Write a picture of 160 x 128 px, stained."""
    rng = np.random.default_rng(0)
    pixels = np.array([190, 90, 170]) + rng.integers(-50, 50, (128, 160, 3))
    pixels[:, :40] = 245
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def classified(slide_path: Path, bundle: ModelBundle | Path) -> SlidePrediction:
    """Classify the slide on the processor."""
    model = load_bundle(bundle) if isinstance(bundle, Path) else bundle
    with Slide(slide_path, mpp=MPP) as slide:
        return run_to_end(predict_slide(slide, model, device=torch.device("cpu"), batch_size=8, threads=1))

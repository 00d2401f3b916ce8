"""Fixtures of the viewer tests: slides, small bundles, and a guard against slides left open."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_lrmil._viewer.model_imports import import_models

import_models()  # before anything draws; see there

import tifffile  # noqa: E402
import torch  # noqa: E402

from napari_lrmil.model.bundle import (  # noqa: E402
    BundleInfo,
    Provenance,
    TileInput,
    save_bundle,
)
from napari_lrmil.model.encoder import Encoder, EncoderSpec, load_encoder_weights  # noqa: E402
from napari_lrmil.model.mil import MILSpec, build_mil  # noqa: E402
from napari_lrmil.slide import Slide  # noqa: E402

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
VIT_WEIGHTS = SHARED_DATA / "encoder_dinov2_vits14" / "vit_small_patch14_dinov2_fp16.safetensors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """napari's warning under PyQt5, which a plugin can do nothing about; all others are errors."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore:System theme detection requires a Qt6 backend:UserWarning")
            )


@pytest.fixture(autouse=True)
def no_slide_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test that leaves a slide open. Set up first, so it looks when the viewers are gone."""
    opened: weakref.WeakSet[Slide] = weakref.WeakSet()
    original = Slide.__init__

    def recording(self: Slide, *args: object, **options: object) -> None:
        original(self, *args, **options)
        opened.add(self)

    monkeypatch.setattr(Slide, "__init__", recording)
    yield
    left = [slide for slide in opened if not slide._closed]
    for slide in left:
        slide.close()
    assert not left, f"left open: {left}"


def make_bundle(
    target: Path, encoder_spec: EncoderSpec, *, tile_px: int, weights: Path | None = None
) -> Path:
    """A bundle with a random head, and random or given encoder weights."""
    torch.manual_seed(0)
    encoder = Encoder(encoder_spec)
    if weights is not None:
        load_encoder_weights(encoder, weights)
    mil_spec = MILSpec(embed_dim=encoder.embed_dim, n_classes=2)
    info = BundleInfo(
        name="Random",
        description="Random weights, for tests.",
        demonstration=True,
        licence="BSD-3-Clause",
        encoder=encoder_spec,
        token_px=encoder.token_px,
        tiles=TileInput(tile_px=tile_px, mpp=2.0, min_tissue=0.25),
        teacher_mpp=0.5,
        mil=mil_spec,
        class_names=("benign", "lesion"),
        temperature=1.0,
        provenance=Provenance(
            created="2026-01-01T00:00:00Z",
            config_sha256="0" * 64,
            commit="unknown",
            versions={},
            metrics={},
            training_data="none",
        ),
        weights_sha256="",
    )
    save_bundle(target, info=info, encoder=encoder, mil=build_mil(mil_spec))
    return target


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own small encoder, 64 px tiles."""
    target = tmp_path_factory.mktemp("bundles") / "random"
    return make_bundle(target, EncoderSpec(options={"image_px": 64}), tile_px=64)


@pytest.fixture(scope="session")
def vit_bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S/14 with its published weights, 112 px tiles."""
    if not VIT_WEIGHTS.exists():
        pytest.skip("the ViT-S/14 weights (../shared/data/encoder_dinov2_vits14) are absent")
    spec = EncoderSpec(architecture="vit_small_patch14_dinov2", options={"img_size": 518})
    target = tmp_path_factory.mktemp("bundles") / "vit"
    return make_bundle(target, spec, tile_px=112, weights=VIT_WEIGHTS)


def shared_slide(name: str) -> Path:
    """A shared slide; skips where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"the shared slide {name} (../shared/data beside the repository) is absent")
    return path


def write_slide(path: Path, *, size_xy: tuple[int, int] = (2560, 1920), mpp: float | None = 0.5) -> Path:
    """A pyramid of levels 1, 4 and 16 with a stained oval in the middle."""
    width, height = size_xy
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.5) / 0.42) ** 2 + ((y / height - 0.5) / 0.42) ** 2 < 1
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 1), dtype=np.uint8)
    pixels = np.where(inside[..., None], np.array([190, 90, 170], np.uint8) + noise, np.uint8(245))
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    options: dict[str, object] = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
    if mpp is not None:
        options.update(resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER")
    with tifffile.TiffWriter(path) as writer:
        for level, step in enumerate((1, 4, 16)):
            writer.write(pixels[::step, ::step], subfiletype=int(level > 0), metadata=None, **options)
    return path


@pytest.fixture
def small_slide(tmp_path: Path) -> Path:
    """A generated slide of 2560 x 1920 px at 0.5 µm/px."""
    return write_slide(tmp_path / "small.tiff")


@pytest.fixture
def slide_without_mpp(tmp_path: Path) -> Path:
    """The same without a pixel size."""
    return write_slide(tmp_path / "nompp.tiff", mpp=None)

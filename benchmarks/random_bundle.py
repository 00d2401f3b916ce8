"""What a bundle of random weights says of itself: for benchmarks, attacks and tests."""

from __future__ import annotations

from napari_lrmil.model.bundle import BundleInfo, Provenance, TileInput
from napari_lrmil.model.encoder import EncoderSpec
from napari_lrmil.model.mil import MILSpec


def random_bundle_info(
    spec: EncoderSpec,
    mil_spec: MILSpec,
    *,
    token_px: int,
    tile_px: int,
    mpp: float = 2.0,
    within: int = 1,
    min_tissue: float = 0.25,
    temperature: float = 1.0,
) -> BundleInfo:
    """Return the description of a student of two classes; `save_bundle` adds the hash of the weights.

    Parameters
    ----------
    spec : EncoderSpec
    mil_spec : MILSpec
    token_px, tile_px : int
        Pixels along a token and a tile.
    mpp : float
        µm/px of the tiles.
    within : int
        Along an edge of a tile of training's grid.
    min_tissue : float
        Share of a tile.
    temperature : float
    """
    return BundleInfo(
        name="Tiny",
        description="Random weights.",
        demonstration=True,
        licence="bsd-3-clause",
        encoder=spec,
        token_px=token_px,
        tiles=TileInput(tile_px=tile_px, mpp=mpp, within=within, min_tissue=min_tissue),
        teacher_mpp=0.5,
        mil=mil_spec,
        class_names=("benign", "lesion"),
        temperature=temperature,
        provenance=Provenance(
            created="2026-01-01T00:00:00+00:00",
            config_sha256="0" * 64,
            commit="unknown",
            versions={"torch": "2"},
            metrics={"test_auc": 0.5},
            training_data="none",
        ),
        weights_sha256="",
    )

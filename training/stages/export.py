"""The student as a bundle, with what says how far to trust it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from napari_lrmil.model.bundle import BundleInfo, Provenance, TileInput, save_bundle
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import MILModel
from training.config import content_hash
from training.data.store import EmbeddingStore
from training.data.table import Split
from training.mil_fit import mil_spec
from training.run_dir import code_commit
from training.stages.context import Context
from training.stages.evaluate import FoldPredictions
from training.trust_fit import fit_trust, trust_metrics


def bundle_dir(context: Context, split: Split) -> Path:
    """Where a fold's bundle lies."""
    return context.run_dir.path(f"fold{split.fold}", "bundle")


def export_bundle(
    context: Context,
    encoder: Encoder,
    mil: MILModel,
    *,
    split: Split,
    store: EmbeddingStore,
    test: FoldPredictions,
    metrics: dict[str, float],
) -> None:
    """Write ``foldN/bundle``: the student of one fold, with where it comes from and how far to trust it.

    Parameters
    ----------
    context : Context
    encoder, mil
        f' and the student's head.
    split : Split
        Training slides say what tiles look like; validation slides calibrate.
    store : EmbeddingStore
        Of f'.
    test : FoldPredictions
        What the student says of the fold's test slides, at the temperature from validation.
    metrics : dict
        Of the fold's test slides.
    """
    config = context.config
    trust = fit_trust(
        mil,
        context.bags(store, split.train, share=0.0),
        context.bags(store, split.val),
        temperature=test.temperature,
        seed=config.run.seed,
        device=context.device,
    )
    test_bags = context.bags(store, split.test, share=0.0)
    packages = ("napari-lrmil", "torch", "timm", "numpy", "openslide-python")
    info = BundleInfo(
        name=config.export.name,
        description=config.export.description,
        demonstration=config.export.demonstration,
        licence=config.export.licence,
        encoder=encoder.spec,
        token_px=encoder.token_px,
        tiles=TileInput(
            tile_px=config.tiles.tile_px,
            mpp=config.tiles.mpp_lr,
            min_tissue=config.tiles.min_tissue,
            apply_icc=config.tiles.apply_icc,
        ),
        teacher_mpp=config.tiles.mpp_lr / config.tiles.ratio,
        mil=mil_spec(encoder.embed_dim, len(context.class_names), config.mil),
        class_names=context.class_names,
        temperature=test.temperature,
        provenance=Provenance(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            config_sha256=content_hash(config),
            commit=code_commit(),
            versions={"python": platform.python_version()} | {name: version(name) for name in packages},
            metrics=metrics | trust_metrics(trust, test.probabilities, test.labels, test_bags),
            training_data=config.export.training_data,
        ),
        weights_sha256="",
    )
    save_bundle(bundle_dir(context, split), info=info, encoder=encoder, mil=mil, trust=trust)

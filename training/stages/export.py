"""The student as a bundle, with what says how far to trust it."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import Field

from napari_lrmil.model.bundle import (
    FORMAT_VERSION,
    LONGEST_NAME,
    BundleInfo,
    Provenance,
    TileInput,
    save_bundle,
)
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import MILModel, MILSpec
from napari_lrmil.model.trust import Trust
from training.data.tile_index import TileGeometry
from training.section import Section
from training.stages.calibrate import Calibration
from training.stages.front import Tiles

_PACKAGES = ("napari-lrmil", "torch", "timm", "numpy", "openslide-python")
"""Whose versions a bundle names."""


class ExportSection(Section):
    """The bundle."""

    name: str = Field(default="LRMIL student", min_length=1, description="of the bundle")
    description: str = Field(default="An LRMIL student.", description="one sentence for its card")
    demonstration: bool = Field(default=False, description="marked as not for diagnosis, in card and window")
    licence: str = Field(default="other", description="as a model hub names it")
    training_data: str = Field(default="Not described.", description="what it was trained on, for its card")
    cheapest: bool = Field(
        default=True,
        description="beside LRMIL's bundle, foldN/bundle, export the one of the cheapest row that is shown to be good enough "
        "(front.margin), or else of the teacher, where that is another: foldN/cheapest",
    )


_LR_TILES = Tiles(1)


def export_bundle(
    out: Path,
    encoder: Encoder,
    mil: MILModel,
    mil_spec: MILSpec,
    trust: Trust,
    section: ExportSection,
    *,
    geometry: TileGeometry,
    class_names: tuple[str, ...],
    calibration: Calibration,
    config_sha256: str,
    metrics: dict[str, float],
    note: str = "",
    method: str = "",
    tiles: Tiles = _LR_TILES,
    distilled: bool = True,
    choice: str = "",
) -> None:
    """Write the student of one fold, or another row of its comparison, with where it comes from and how far to trust it.

    Parameters
    ----------
    out : Path
        Folder of the bundle.
    encoder, mil
        f' and the student's head.
    mil_spec : MILSpec
        Of the head.
    trust : Trust
    section : ExportSection
    geometry : TileGeometry
    class_names : tuple of str
    calibration : Calibration
        From validation.
    config_sha256 : str
        Of the run's config.
    metrics : dict
        Of the fold's test slides.
    note : str
        What else must be known of the training, for the card.
    method : str
        Name of the row, for the bundle's; empty for the student.
    tiles : Tiles
        Which it reads.
    distilled : bool
    choice : str
        Why this row, for the card.
    """
    suffix = f": {method}" if method else ""
    info = BundleInfo(
        name=section.name[: LONGEST_NAME - len(suffix)] + suffix,
        description=f"{method[0].upper()}{method[1:]}, of a run that made: {section.description}"
        if method
        else section.description,
        demonstration=section.demonstration,
        licence=section.licence,
        encoder=encoder.spec,
        token_px=encoder.token_px,
        tiles=TileInput(
            tile_px=geometry.tile_px,
            mpp=geometry.mpp_lr / tiles.within,
            # Of several magnifications all lie on the grid of the coarsest.
            **({} if len(mil_spec.factors) > 1 else tiles._asdict()),
            min_tissue=geometry.min_tissue,
            apply_icc=geometry.apply_icc,
        ),
        teacher_mpp=geometry.mpp_lr / geometry.ratio,
        distilled=distilled,
        mil=mil_spec,
        class_names=class_names,
        format_version=FORMAT_VERSION,
        scaling=calibration.scaling,
        operating_point=calibration.operating_point,
        provenance=Provenance(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            config_sha256=config_sha256,
            commit=code_commit(),
            versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            metrics=metrics,
            training_data=" ".join(filter(None, (section.training_data, note))),
            choice=choice,
        ),
        weights_sha256="",
    )
    save_bundle(out, info=info, encoder=encoder, mil=mil, trust=trust)


def code_commit() -> str:
    """Return the commit of the training code, with '+changes' where the tree differs from it; 'unknown' without git."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")

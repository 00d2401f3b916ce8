"""Take a run's HR embeddings from feature files, slide by slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import ConfigError, reason_of
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.hub import HUB_PREFIX
from napari_lrmil.model.tensors import shapes_alone
from napari_lrmil.slide import TileGrid
from training.config import RunConfig
from training.data.store import EmbeddingStore
from training.data.tile_index import SlideTiles, TileGeometry
from training.import_features.files import FeatureError, read_features
from training.import_features.matching import Match, match_features
from training.progress import Reporter
from training.stages.embed_tiles import EmbedJob


@dataclass(frozen=True)
class ImportOptions:
    """How features are matched.

    Attributes
    ----------
    nearest : bool
        Take the nearest patch within half a tile.
    max_missing : float
        Largest share of tiles without a patch; they get the nearest one's features.
    patch_px_l0 : float, optional
        Edge of a patch in level-0 pixels, for files that don't say it.
    """

    nearest: bool = False
    max_missing: float = 0.0
    patch_px_l0: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of the slides: imported, there already, refused and why; and tiles that got another's features."""

    imported: tuple[str, ...]
    there: tuple[str, ...]
    refused: dict[str, str]
    filled_tiles: int


def embed_dim_of(spec: EncoderSpec) -> int:
    """Return D of an encoder, without making room for its weights."""
    with shapes_alone():
        return Encoder(spec).embed_dim


def import_slides(
    jobs: Sequence[EmbedJob],
    store: EmbeddingStore,
    geometry: TileGeometry,
    files: Mapping[str, Path],
    options: ImportOptions,
    *,
    patches: Mapping[str, Path],
    embed_dim: int,
    reporter: Reporter,
) -> Outcome:
    """Import what fits, slide by slide; nothing is written of a slide that doesn't.

    `files` and `patches` (CLAM's, where feature files don't say how large a patch is) go by slide id.
    """
    imported: list[str] = []
    there: list[str] = []
    refused: dict[str, str] = {}
    filled_tiles = 0
    for job in reporter.track(jobs, "Importing features", len(jobs)):
        row = job.tiles.row
        if job.is_done:
            there.append(row.slide_id)
            continue
        name = row.slide_id if row.slide_id in files else row.path.stem
        if name not in files:
            refused[row.slide_id] = f"no file {row.slide_id}.h5"
            continue
        try:
            embedding, n_filled = import_slide(
                job.tiles, geometry, files[name], options, coords_path=patches.get(name), embed_dim=embed_dim
            )
        except Exception as error:  # noqa: BLE001  # whatever is wrong with a file, the others are imported
            refused[row.slide_id] = reason_of(error)
            continue
        store.write(row.slide_id, stamp=job.stamp, embedding=embedding)
        imported.append(row.slide_id)
        filled_tiles += n_filled
    return Outcome(tuple(imported), tuple(there), refused, filled_tiles)


def import_slide(
    tiles: SlideTiles,
    geometry: TileGeometry,
    path: Path,
    options: ImportOptions,
    *,
    coords_path: Path | None,
    embed_dim: int,
) -> tuple[NDArray[np.float32], int]:
    """Return the embeddings of a slide's HR tiles from a feature file.

    Returns
    -------
    embedding : (M, D) float32 array
        In the order of `tiles.hr_places`.
    n_filled : int
        Tiles that got the features of a patch too far off, within `max_missing`.

    Raises
    ------
    FeatureError
        Where the features aren't those of this encoder or of these tiles.
    """
    with geometry.open(tiles.row) as slide:
        grid = geometry.lr_grid(slide).subdivide(geometry.ratio)
        file = read_features(
            path,
            level_downsamples=slide.level_downsamples,
            patch_px_l0=options.patch_px_l0,
            coords_path=coords_path,
        )
    width = file.features.shape[1]
    if width != embed_dim:
        raise FeatureError(f"its features have {width} numbers, the encoder's embeddings {embed_dim}")
    match = match_features(
        corners_l0_xy=grid.corners_l0_xy(tiles.hr_places[:, 0], tiles.hr_places[:, 1]),
        tile_l0_xy=grid.tile_l0_xy,
        coords_l0_xy=file.coords_l0_xy,
        patch_l0_xy=file.patch_l0_xy,
        nearest=options.nearest,
    )
    if match.missing > options.max_missing:
        raise FeatureError(_explain(match, grid, file.patch_l0_xy, options))
    return file.features[match.nearest], int((~match.fits).sum())


def _explain(match: Match, grid: TileGrid, patch_l0_xy: tuple[float, float], options: ImportOptions) -> str:
    x, y = match.typical_offset_l0_xy
    limit = "its centre within half" if options.nearest else "its corner within a quarter of"
    text = (
        f"{match.missing:.1%} of our {len(match.fits)} HR tiles have no patch ({limit} a tile); the nearest patches "
        f"typically lie {x:+.0f}, {y:+.0f} px off (x, y; a tile is {grid.tile_l0_xy[0]:.5g} px, a patch "
        f"{patch_l0_xy[0]:.5g} px)"
    )
    if abs(patch_l0_xy[0] / grid.tile_l0_xy[0] - 1) > 1e-4:
        # TRIDENT reckons in magnifications: every 40x scan counts as 0.25 µm/px.
        mpp = grid.spec.tile_um / patch_l0_xy[0]
        text += f": the grids drift apart; {mpp:.4g} in the column mpp of the slide table makes tiles of that size"
    elif match.missing > 0.5 and not options.nearest:
        text += ": another grid; --nearest takes the nearest patch, an approximation"
    return text


def check_config(config: RunConfig) -> None:
    """Refuse a config whose run can't do with imported features.

    Raises
    ------
    ConfigError
    """
    if config.stage1.layers:
        raise ConfigError(
            f"stage1.layers is {list(config.stage1.layers)}, but imported features hold the last embedding only, no "
            "tokens of layers: set stage1.layers = [] (here and for the run), so that stage 1 matches embeddings alone"
        )
    if config.target_layers:
        names = [name for name, tap in config.taps.items() if tap.stored_layers]
        raise ConfigError(
            f"stage1.objectives: {', '.join(names)} compares with f's class tokens after blocks {list(config.target_layers)} of "
            'HR tiles, but imported features hold the last embedding only: set source = "lr", with which f reads the LR tiles '
            "anew, or take class_and_tokens"
        )
    if config.stage1.turned:
        raise ConfigError(
            "stage1.turned is true, but imported features hold what the encoder says of tiles as they are: set "
            "stage1.turned = false (here and for the run)"
        )
    weights = config.encoder.weights
    if weights is None or not (weights.startswith(HUB_PREFIX) or Path(weights).is_file()):
        raise ConfigError(
            "encoder.weights must name the weights file of the encoder that made the features: "
            + ("it isn't set" if weights is None else f"there is no {weights}")
            + ". The student starts from it, and what is stored is stored under its name"
        )

"""``python -m training.import_features CONFIG FEATURES``: HR embeddings that CLAM or TRIDENT made, for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.markup import escape

from napari_lrmil.errors import ConfigError, LRMILError
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.hub import HUB_PREFIX
from napari_lrmil.slide import TileGrid
from napari_lrmil.terminal import errors_as_messages
from training.config import RunConfig, load_config
from training.data.import_features import (
    FeatureError,
    Match,
    find_feature_files,
    match_features,
    read_features,
)
from training.data.store import EmbeddingStore
from training.data.tile_index import SlideTiles, TileGeometry
from training.progress import Reporter
from training.run import prepare
from training.stages.embed_tiles import EmbedJob, jobs_for

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    """D of an encoder, without making room for its weights."""
    with torch.device("meta"):
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
            store.write(row.slide_id, stamp=job.stamp, embedding=embedding)
        except LRMILError as error:
            refused[row.slide_id] = str(error)
            continue
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
    """The embeddings of a slide's HR tiles from a feature file.

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
    """Whether a run can do with imported features.

    Raises
    ------
    ConfigError
    """
    if config.stage1.layers:
        raise ConfigError(
            f"stage1.layers is {list(config.stage1.layers)}, but imported features hold the last embedding only, no "
            "tokens of layers: set stage1.layers = [] (here and for the run), so that stage 1 matches embeddings alone"
        )
    weights = config.encoder.weights
    if weights is None or not (weights.startswith(HUB_PREFIX) or Path(weights).is_file()):
        raise ConfigError(
            "encoder.weights must name the weights file of the encoder that made the features: "
            + ("it isn't set" if weights is None else f"there is no {weights}")
            + ". The student starts from it, and what is stored is stored under its name"
        )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="The run's TOML file.", show_default=False)],
    features: Annotated[
        Path, typer.Argument(help="Folder with a file SLIDE_ID.h5 a slide, at any depth.", show_default=False)
    ],
    patches: Annotated[
        Path | None,
        typer.Option(help="CLAM's folder of patches: its feature files don't say how large a patch is."),
    ] = None,
    patch_px_l0: Annotated[
        float | None,
        typer.Option(
            "--patch-px-l0", help="Edge of a patch in level-0 pixels, for files that don't say it.", min=1
        ),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest",
            help="Take the nearest patch within half a tile where the grids differ. An approximation: it shows part "
            "of another tile.",
        ),
    ] = False,
    max_missing: Annotated[
        float,
        typer.Option(
            help="Largest share of tiles without a patch; they get the features of the nearest one.",
            min=0,
            max=1,
        ),
    ] = 0.0,
    skip_bad_slides: Annotated[
        bool, typer.Option("--skip-bad-slides", help="Go on without slides that can't be used.")
    ] = False,
) -> None:
    """Take HR embeddings that CLAM or TRIDENT made (HDF5) into a run, instead of computing them.

    Every field of the config can be set here as for training.run: --section.key value; set the same there.
    Slides whose features don't fit are listed, and the run embeds them itself.
    """
    reporter = Reporter()
    with errors_as_messages():
        loaded = load_config(config, context.args)
        check_config(loaded)
        files = find_feature_files(features)
        patch_files = find_feature_files(patches) if patches is not None else {}
        prepared = prepare(loaded, skip_bad=skip_bad_slides, reporter=reporter)
        run = prepared.context
        store = run.hr_store()
        store.prepare()
        outcome = import_slides(
            jobs_for(run, list(run.tiles.values()), store, hr=True),
            store,
            run.geometry,
            files,
            ImportOptions(nearest, max_missing, patch_px_l0),
            patches=patch_files,
            embed_dim=embed_dim_of(loaded.encoder.spec),
            reporter=reporter,
        )
    report(outcome, reporter, nearest=nearest)
    if outcome.refused and not outcome.imported and not outcome.there:
        raise typer.Exit(1)


def report(outcome: Outcome, reporter: Reporter, *, nearest: bool) -> None:
    """Say what became of the slides."""
    if outcome.refused:
        listing = "\n  ".join(f"{slide}: {why}" for slide, why in outcome.refused.items())
        reporter.say(
            f"[yellow]Not imported, {len(outcome.refused)} slides, which the run will embed itself:[/]\n  "
            f"{escape(listing)}"
        )
    if outcome.there:
        reporter.say(f"{len(outcome.there)} slides had embeddings already.")
    if outcome.filled_tiles:
        reporter.say(
            f"[yellow]{outcome.filled_tiles} tiles without a patch got the features of the nearest one.[/]"
        )
    how = " (by nearest patch: an approximation)" if nearest and outcome.imported else ""
    reporter.say(f"Imported {len(outcome.imported)} slides{how}.")


if __name__ == "__main__":
    app(prog_name="python -m training.import_features")

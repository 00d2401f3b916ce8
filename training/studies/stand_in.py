"""python -m training.studies.stand_in RUN_DIR... --slides LEFT_OUT.csv: how well f' on LR stands in for f on HR.

On slides that no f' of these runs learned from; no label is used. What f says of a tile's children (the mean of their HR
embeddings) is what f' should say of the LR tile. For f on LR and for each run's f' on LR:

- *explained, whitened* and *CKA*: as in `training.studies.diagnose`, the ridge regression fitted on the slides of stage 1.
- *retrieval*: of all LR tiles of a slide, the one whose children's mean is nearest to what the encoder says of a tile (cosine,
  after whitening) should be that tile. Share of tiles where it is the first, and the mean reciprocal rank; as the encoder says
  it, and by the same ridge regression.
- *probes*: fitted on the children's means and read on what the encoder says, unchanged: whether a head made for HR would
  understand it. Nuclear density: share of nuclear pixels of the HR tiles, by its rank correlation. Tissue class: by balanced
  accuracy. Beside it the probe on the children's mean itself, the most that can be had.

The rule for both, from HR pixels (Ruifrok and Johnston 2001, their stain vectors): a pixel is nuclear where its haematoxylin is
above Otsu's threshold over the tiles of stage 1, and pale where its mean optical density is below 0.15. A tile is *pale* where
half of it or more is pale, else *cell-rich* where 25 % of it or more is nuclear, else *stroma*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.slide import choose_level, iter_tiles
from napari_lrmil.terminal import Commands, errors_as_messages
from training.data.bags import means_of_children
from training.data.store import EmbeddingStore
from training.data.table import read_table
from training.data.tile_index import SlideTiles, TileGeometry, index_slides
from training.progress import Reporter
from training.run.context import Context
from training.run.layout import RunDir
from training.run.prepare import Prepared, prepare
from training.stages.embed_tiles import embed_slides
from training.studies.diagnose import View, fit_children_ridge, measure_explained

Array = NDArray[np.float64]
app = Commands(add_completion=False, pretty_exceptions_enable=False)

PALE_OD, MOST_PALE, LEAST_NUCLEAR = 0.15, 0.5, 0.25
CLASSES = ("pale", "stroma", "cell-rich")
_PIXELS_OF_A_SLIDE = 20_000
"""For the threshold."""
_RIDGE = 100.0
"""Strength of the probe of nuclear density, on standardised embeddings."""


class TileTruth(NamedTuple):
    """What the HR pixels of N LR tiles show."""

    nuclear: Array
    """(N,) share of nuclear pixels"""
    kind: NDArray[np.int64]
    """(N,) index into `CLASSES`"""


class Region(NamedTuple):
    """One slide: N LR tiles with children."""

    lr: Array
    """(N, D') what an encoder says of them"""
    wanted: Array
    """(N, D) the children's mean by f"""
    truth: TileTruth


class StandIn(NamedTuple):
    """How well an encoder stands in for f on HR; see the module."""

    explained: float
    cka: float
    first: float
    reciprocal_rank: float
    first_by_ridge: float
    reciprocal_rank_by_ridge: float
    nuclear: float
    tissue: float


def shares(pixels: NDArray[np.uint8], threshold: float) -> tuple[Array, Array]:
    """Return the shares of nuclear and of pale pixels of (N, T, T, 3) tiles, (N,) each."""
    nuclear = (rgb2hed(pixels)[..., 0] > threshold).mean(axis=(1, 2))
    density = -np.log10((pixels.astype(np.float64) + 1) / 256).mean(axis=-1)
    return nuclear, (density < PALE_OD).mean(axis=(1, 2))


def kinds(nuclear: Array, pale: Array) -> NDArray[np.int64]:
    """Return the tissue class of tiles by the rule of the module, (N,) indices into `CLASSES`."""
    return np.where(pale >= MOST_PALE, 0, np.where(nuclear >= LEAST_NUCLEAR, 2, 1)).astype(np.int64)


def ranks_of_right_tile(said: Array, wanted: Array) -> NDArray[np.int64]:
    """Return, for each tile, how many tiles of the slide are as near or nearer to what is said of it than it is itself.

    Parameters
    ----------
    said, wanted : (N, D) arrays
        Whitened. Nearness is the cosine.

    Returns
    -------
    (N,) int64 array
        1 where the right tile is the nearest.
    """
    said, wanted = (
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12) for values in (said, wanted)
    )
    likeness = said @ wanted.T
    return np.asarray((likeness >= np.diag(likeness)[:, None]).sum(axis=1), np.int64)


def measure(train: Sequence[Region], test: Sequence[Region], *, same_space: bool) -> StandIn:
    """Return how well an encoder stands in for f on HR.

    Parameters
    ----------
    train : sequence of Region
        Of the slides of stage 1: ridge regression, whitening and probes are fitted on them.
    test : sequence of Region
        Slides left out.
    same_space : bool
        Whether the encoder speaks in f's dimensions, so that what it says can be read as it is; else NaN stands there.
    """
    views = [
        View(
            np.concatenate([one.lr for one in part]),
            np.concatenate([one.wanted for one in part]),
            np.zeros(sum(len(one.lr) for one in part), np.bool_),
        )
        for part in (train, test)
    ]
    ridge = fit_children_ridge(views[0])
    as_is, by_ridge = [], []
    for one in test:
        right = ridge.whitened(one.wanted)
        by_ridge.append(ranks_of_right_tile(ridge.said(one.lr), right))
        if same_space:
            as_is.append(ranks_of_right_tile(ridge.whitened(one.lr), right))
    explained = measure_explained(views[0], views[1], ridge)
    nuclear = tissue = math.nan
    if same_space:
        nuclear, tissue = read_probes(train, [one.lr for one in test], test)
    return StandIn(
        explained.whitened_test,
        explained.cka,
        *_of_ranks(as_is),
        *_of_ranks(by_ridge),
        nuclear,
        tissue,
    )


def read_probes(
    train: Sequence[Region], said: Sequence[Array], test: Sequence[Region]
) -> tuple[float, float]:
    """Fit probes on the children's means of `train`, and read them on what is `said` of the tiles of `test`.

    Returns
    -------
    (float, float)
        Rank correlation of nuclear density, balanced accuracy of the tissue class; NaN where tiles are all of one class.
    """
    inputs = np.concatenate([one.wanted for one in train])
    density = make_pipeline(StandardScaler(), Ridge(alpha=_RIDGE)).fit(
        inputs, np.concatenate([one.truth.nuclear for one in train])
    )
    of_train, of_test = (np.concatenate([one.truth.kind for one in part]) for part in (train, test))
    read = np.concatenate(list(said))
    nuclear = spearmanr(density.predict(read), np.concatenate([one.truth.nuclear for one in test])).statistic
    tissue = math.nan
    if len(set(of_train.tolist())) > 1 and len(set(of_test.tolist())) > 1:
        classes = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
        ).fit(inputs, of_train)
        tissue = float(balanced_accuracy_score(of_test, classes.predict(read)))
    return float(nuclear), tissue


def _of_ranks(ranks: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
    """Return means over slides of: share at first place, reciprocal rank."""
    if not ranks:
        return math.nan, math.nan
    return float(np.mean([(one == 1).mean() for one in ranks])), float(
        np.mean([(1 / one).mean() for one in ranks])
    )


# --- of runs


def stand_in(prepared: Prepared, left_out: Sequence[SlideTiles]) -> dict[str, StandIn]:
    """Measure f on LR and the first f' of a run, on slides that this f' didn't learn from.

    Parameters
    ----------
    prepared : Prepared
        Of a run whose f' all folds share.
    left_out : sequence of SlideTiles
        None of them a slide of the run.

    Raises
    ------
    ConfigError
        Where the run has no such f' yet, or one of its patients is left out.
    """
    context, splits, steps = prepared
    plan = steps.stage1_plan(splits[0])
    if plan.folder != "shared":
        raise ConfigError(
            f'{context.run_dir.root}: its folds have an f\' each; stage1.scope = "shared" makes one for all'
        )
    known = {row.patient_id for row in (*plan.train, *plan.val)} & {one.row.patient_id for one in left_out}
    if known:
        raise ConfigError(
            f"f' of {context.run_dir.root} learned from patients that are left out: {', '.join(sorted(known))}"
        )
    here = replace(context, tiles={**context.tiles, **{one.row.slide_id: one for one in left_out}})
    teacher = context.teacher_encoder()
    student = context.student_encoder(context.run_dir.folder(plan.folder).read_student())
    train = context.tiles_of(plan.train)
    every = [*train, *left_out]
    hr = context.hr_store()
    _embed(here, every, hr, teacher, hr=True)
    threshold = haematoxylin_threshold(context.geometry, train)
    truths = {one.row.slide_id: tile_truth(context.geometry, one, threshold) for one in every}
    found = {}
    for name, encoder, store in (
        ("f on LR", teacher, context.lr_store(context.encoder_hash)),
        ("f' on LR", student, steps.student_store(plan)),
    ):
        _embed(here, every, store, encoder, hr=False)
        regions = [
            region_of(one, store, hr, truths[one.row.slide_id], context.geometry.ratio) for one in every
        ]
        same_space = encoder.embed_dim == teacher.embed_dim
        found[name] = measure(regions[: len(train)], regions[len(train) :], same_space=same_space)
    of_train, of_test = regions[: len(train)], regions[len(train) :]
    nuclear, tissue = read_probes(of_train, [one.wanted for one in of_test], of_test)
    found["f on HR"] = StandIn(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, nuclear, tissue)
    return found


def _embed(
    context: Context, slides: Sequence[SlideTiles], store: EmbeddingStore, encoder: Encoder, *, hr: bool
) -> None:
    jobs = context.jobs([one.row for one in slides], store, hr=hr)
    embed_slides(
        jobs, encoder, context.runtime, context.reporter, "Embedding HR tiles" if hr else "Embedding LR tiles"
    )


def region_of(slide: SlideTiles, lr: EmbeddingStore, hr: EmbeddingStore, truth: Array, ratio: int) -> Region:
    """Return the LR tiles of a slide that have children, by some encoder.

    Parameters
    ----------
    truth : (M, 2) array
        Of its HR tiles; see `tile_truth`.
    """
    wanted, count = means_of_children(slide, ratio, hr.read(slide.row.slide_id).astype(np.float64))
    has = np.flatnonzero(count)
    of_tiles = means_of_children(slide, ratio, truth)[0][has]
    nuclear, pale = of_tiles[:, 0], of_tiles[:, 1]
    return Region(
        lr.read(slide.row.slide_id).astype(np.float64)[has],
        wanted[has],
        TileTruth(nuclear, kinds(nuclear, pale)),
    )


def haematoxylin_threshold(geometry: TileGeometry, slides: Sequence[SlideTiles]) -> float:
    """Return Otsu's threshold of haematoxylin over pixels drawn from the HR tiles of some slides."""
    rng = np.random.default_rng(0)
    values = []
    for one in slides:
        pixels = np.concatenate([tiles.reshape(-1, 3)[::31] for tiles in _hr_tiles(geometry, one)])
        drawn = pixels[rng.integers(len(pixels), size=_PIXELS_OF_A_SLIDE)]
        values.append(rgb2hed(drawn[None])[0, :, 0])
    return float(threshold_otsu(np.concatenate(values)))


def tile_truth(geometry: TileGeometry, slide: SlideTiles, threshold: float) -> Array:
    """Return nuclear and pale shares of the HR tiles of a slide, (M, 2)."""
    return np.concatenate(
        [np.stack(shares(tiles, threshold), axis=1) for tiles in _hr_tiles(geometry, slide)]
    )


def _hr_tiles(geometry: TileGeometry, slide: SlideTiles) -> Iterator[NDArray[np.uint8]]:
    with geometry.open(slide.row) as opened:
        grid = geometry.lr_grid(opened).subdivide(geometry.ratio)
        level = choose_level(opened.level_mpps, grid.spec.mpp)
        places = [(float(row), float(col)) for row, col in slide.hr_places]
        yield from iter_tiles(opened, grid, level, places, batch_size=64)


def page(measured: dict[str, dict[str, StandIn]], n_slides: int, n_patients: int) -> str:
    """Return the table as Markdown: run -> encoder -> measures; f on LR and on HR are those of the first run."""
    lines = [
        f"{n_slides} slides of {n_patients} patients that no f' learned from.",
        "",
        "| encoder | explained, whitened | CKA | retrieval: first, as is | mean 1 / rank, as is | first, by ridge | "
        "mean 1 / rank, by ridge | nuclear density (rank correlation) | tissue class (balanced accuracy) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = next(iter(measured.values()))
    rows = [("f on LR", first["f on LR"])]
    rows += [(f"f' of {name}", found["f' on LR"]) for name, found in measured.items()]
    rows += [("f on HR, the most that can be had", first["f on HR"])]
    lines += [
        f"| {name} | {' | '.join('' if math.isnan(value) else f'{value:.3f}' for value in one)} |"
        for name, one in rows
    ]
    return "\n".join(lines) + "\n"


@app.command()
def main(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(help="Run directories with a shared f', finished or not.", show_default=False),
    ],
    slides: Annotated[
        Path, typer.Option(help="Table of the slides left out; labels aren't read.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Markdown file to write, in place of printing.", show_default=False)
    ] = None,
) -> None:
    """Say how well each run's f' on LR stands in for f on HR, on slides that it hasn't seen."""
    with errors_as_messages():
        reporter = Reporter()
        measured = {}
        rows = read_table(slides)
        for run_dir in run_dirs:
            prepared = prepare(RunDir(run_dir).read_config(), skip_bad=True, reporter=reporter, writes=False)
            geometry = prepared.context.geometry
            left_out = index_slides(
                rows, geometry, skip_bad=False, reporter=reporter, threads=prepared.context.config.run.threads
            )
            measured[run_dir.name] = stand_in(prepared, left_out)
        text = page(measured, len(rows), len({row.patient_id for row in rows}))
        if out is None:
            print(text)
        else:
            write_text(out, text)
            typer.echo(f"Wrote {out}.")


if __name__ == "__main__":
    app(prog_name="python -m training.studies.stand_in")

"""python -m training.studies.atlas SLIDES.csv OUT: real regions with labels by a rule from HR pixels, and an encoder of them.

Of the regions of the Pathology Atlas, by docs/protocol.md, 6; any table of pyramidal slides at 0.5 µm/px does.

    OUT/slides.csv               for `training.run`: regions by their share of cell-rich tiles (the rule of
                                 `training.studies.stand_in`): upper third `cell-rich`, lower third `other`, rest unlabelled
    OUT/shares.csv               what was ranked
    OUT/encoder.safetensors      f: the demo's architecture, pretrained on the regions without a label alone
    OUT/pretraining.csv          its curve

What f learns to say of a tile is measured on its pixels at 0.5 µm/px, see `ATTRIBUTES`; no label takes part. A region without a
label is never one of a patient with one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu

from napari_lrmil.atomic import write_csv
from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import EncoderSpec
from napari_lrmil.slide import Slide, TileSpec, find_tiles, iter_tiles
from napari_lrmil.terminal import Commands, errors_as_messages
from training.data.table import SlideRow, read_table
from training.pretrain_encoder import Examples, balanced, pretrain, save_encoder, standardise
from training.progress import Reporter
from training.studies.stand_in import PALE_OD, kinds

MPP_HR, RATIO, TILE_PX = 0.5, 4, 64
POSITIVE, NEGATIVE = "cell-rich", "other"
ATTRIBUTES = (
    *("haematoxylin_mean", "haematoxylin_std", "eosin_mean", "eosin_std"),
    *("pale_share", "nuclear_share", "nuclei_per_mm2", "nucleus_area_mean_um2"),
)
"""Columns of `measure_tiles`; the last is NaN in a tile without a nucleus."""

_LEAST_NUCLEUS_UM2 = 10.0
_PIXELS_OF_A_REGION = 20_000
"""For the threshold."""
_HELD_OUT = 8
"""Every so many-th region without a label validates the encoder."""

app = Commands(add_completion=False, pretty_exceptions_enable=False)


class RegionMaps(NamedTuple):
    """What the pixels of a region at 0.5 µm/px show; (H, W) each."""

    haematoxylin: NDArray[np.float32]
    eosin: NDArray[np.float32]
    pale: NDArray[np.bool_]


def read_maps(slide: Slide) -> RegionMaps:
    """Return the stains of a whole region (Ruifrok and Johnston's vectors), and which of its pixels are pale.

    Raises
    ------
    ConfigError
        Where level 0 isn't at 0.5 µm/px.
    """
    pixels = _read_pixels(slide)
    stains = rgb2hed(pixels).astype(np.float32)
    density = -np.log10((pixels.astype(np.float32) + 1) / 256).mean(axis=-1)
    return RegionMaps(stains[..., 0], stains[..., 1], density < PALE_OD)


def _read_pixels(slide: Slide) -> NDArray[np.uint8]:
    """Return a whole region, (H, W, 3); raises ConfigError where level 0 isn't at 0.5 µm/px."""
    if abs(slide.level_mpps[0] / MPP_HR - 1) > 0.02:
        raise ConfigError(f"{slide.path.name} isn't at {MPP_HR} µm/px")
    return slide.read_region((0, 0), 0, slide.level_dimensions_xy[0])


def measure_tiles(maps: RegionMaps, threshold: float, tile_px: int) -> NDArray[np.float64]:
    """Return `ATTRIBUTES` of all tiles of a grid from the top left corner, (rows, columns, 8).

    Parameters
    ----------
    maps : RegionMaps
    threshold : float
        Of haematoxylin; a pixel above it is nuclear.
    tile_px : int
        Edge of a tile in pixels of the maps; what is left over at the right and below is not measured.
    """
    rows, cols = (length // tile_px for length in maps.pale.shape)

    def tiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
        part = values[: rows * tile_px, : cols * tile_px]
        return part.reshape(rows, tile_px, cols, tile_px).swapaxes(1, 2).reshape(rows, cols, -1)

    haematoxylin, eosin = (tiles(one.astype(np.float64)) for one in (maps.haematoxylin, maps.eosin))
    nuclear = maps.haematoxylin > threshold
    labels, _ = ndimage.label(nuclear)
    areas = np.bincount(labels.ravel()) * MPP_HR**2
    areas[0] = 0  # what is no nucleus
    found = np.flatnonzero(areas >= _LEAST_NUCLEUS_UM2)
    centres = np.asarray(ndimage.center_of_mass(nuclear, labels, found)).reshape(-1, 2)
    places = (centres // tile_px).astype(np.int64)
    inside = (places < (rows, cols)).all(axis=1)
    of_tile = places[inside] @ (cols, 1)
    number = np.bincount(of_tile, minlength=rows * cols).reshape(rows, cols)
    area = np.bincount(of_tile, weights=areas[found][inside], minlength=rows * cols).reshape(rows, cols)
    return np.stack(
        [
            haematoxylin.mean(axis=-1),
            haematoxylin.std(axis=-1),
            eosin.mean(axis=-1),
            eosin.std(axis=-1),
            tiles(maps.pale.astype(np.float64)).mean(axis=-1),
            tiles(nuclear.astype(np.float64)).mean(axis=-1),
            number / (tile_px * MPP_HR / 1000) ** 2,
            np.where(number, area / np.maximum(number, 1), np.nan),
        ],
        axis=-1,
    )


def cell_rich_share(attributes: NDArray[np.float64]) -> float:
    """Return the share of a region's tiles, (..., 8) of `measure_tiles`, that are cell-rich."""
    pale, nuclear = (
        attributes[..., ATTRIBUTES.index(name)].ravel() for name in ("pale_share", "nuclear_share")
    )
    return float((kinds(nuclear, pale) == 2).mean())


def label_by_thirds(rows: list[SlideRow], shares: list[float]) -> list[str | None]:
    """Return a label for each region, or None: see the module.

    Equal shares are ranked by name.
    """
    order = sorted(range(len(rows)), key=lambda index: (shares[index], rows[index].slide_id))
    third = len(rows) // 3
    labels: list[str | None] = [None] * len(rows)
    for index in order[:third]:
        labels[index] = NEGATIVE
    for index in order[len(order) - third :]:
        labels[index] = POSITIVE
    unlabelled = {row.patient_id for row, label in zip(rows, labels, strict=True) if label is None}
    return [None if row.patient_id in unlabelled else label for row, label in zip(rows, labels, strict=True)]


def load_examples(
    rows: list[SlideRow], measured: dict[str, NDArray[np.float64]], spec: TileSpec, reporter: Reporter
) -> Examples:
    """Read the tissue tiles of regions with what was measured on them, not standardised yet.

    Parameters
    ----------
    measured : dict
        Slide -> (rows, columns, 8) of the grid of `spec`.
    """
    tiles: list[NDArray[np.uint8]] = []
    attributes: list[NDArray[np.float32]] = []
    for row in reporter.track(rows, "Reading tiles", len(rows)):
        values = measured[row.slide_id]
        with Slide(row.path) as slide:
            found = find_tiles(slide, spec, min_tissue=0.25)
            whole = (found.rows < values.shape[0]) & (found.cols < values.shape[1])
            places = [place for place, is_whole in zip(found.places, whole, strict=True) if is_whole]
            tiles.extend(iter_tiles(slide, found.grid, found.level, places, batch_size=256))
        attributes.append(values[found.rows[whole], found.cols[whole]].astype(np.float32))
    return Examples(np.concatenate(tiles), np.concatenate(attributes))


@app.command()
def main(
    table: Annotated[
        Path, typer.Argument(help="slides.csv of the regions; its labels aren't read.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    epochs: Annotated[int, typer.Option(min=1, help="Of the encoder.")] = 4,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
) -> None:
    """Label regions by a rule, and pretrain an encoder on those without a label."""
    reporter = Reporter()
    with errors_as_messages():
        rows = read_table(table)
        threshold = _haematoxylin_threshold(rows, reporter)
        scales = {MPP_HR: TILE_PX, MPP_HR * RATIO: TILE_PX * RATIO}
        measured: dict[float, dict[str, NDArray[np.float64]]] = {mpp: {} for mpp in scales}
        for row in reporter.track(rows, "Measuring", len(rows)):
            with Slide(row.path) as slide:
                maps = read_maps(slide)
            for mpp, edge in scales.items():
                measured[mpp][row.slide_id] = measure_tiles(maps, threshold, edge)
        shares = [cell_rich_share(measured[MPP_HR * RATIO][row.slide_id]) for row in rows]
        labels = label_by_thirds(rows, shares)
        out.mkdir(parents=True, exist_ok=True)
        write_csv(
            out / "slides.csv",
            ("slide_id", "path", "patient_id", "label"),
            [
                (row.slide_id, str(row.path.resolve()), row.patient_id, label or "")
                for row, label in zip(rows, labels, strict=True)
            ],
        )
        write_csv(
            out / "shares.csv",
            ("slide_id", "patient_id", "cell_rich_share", "label"),
            [
                (row.slide_id, row.patient_id, f"{share:.4f}", label or "")
                for row, share, label in zip(rows, shares, labels, strict=True)
            ],
        )
        reporter.say(
            f"Haematoxylin above {threshold:.4f} is nuclear. {labels.count(POSITIVE)} regions {POSITIVE}, "
            f"{labels.count(NEGATIVE)} {NEGATIVE}, {labels.count(None)} without a label."
        )
        free = [row for row, label in zip(rows, labels, strict=True) if label is None]
        held_out = free[::_HELD_OUT]
        known = {row.patient_id for row in held_out}
        train = [row for row in free if row.patient_id not in known]
        parts = []
        for mpp in scales:
            spec = TileSpec(TILE_PX, mpp)
            parts.append(
                standardise(
                    *(load_examples(part, measured[mpp], spec, reporter) for part in (train, held_out))
                )
            )
        encoder = pretrain(
            balanced([one[0] for one in parts]),
            balanced([one[1] for one in parts]),
            spec=EncoderSpec(options={"image_px": TILE_PX}),
            epochs=epochs,
            batch_size=64,
            seed=seed,
            reporter=reporter,
            metrics_csv=out / "pretraining.csv",
        )
        save_encoder(out / "encoder.safetensors", encoder)
        reporter.say(f"Wrote {out}.")


def _haematoxylin_threshold(rows: list[SlideRow], reporter: Reporter) -> float:
    rng = np.random.default_rng(0)
    values = []
    for row in reporter.track(rows, "Drawing pixels", len(rows)):
        with Slide(row.path) as slide:
            pixels = _read_pixels(slide).reshape(-1, 3)
        drawn = pixels[rng.integers(len(pixels), size=_PIXELS_OF_A_REGION)]
        values.append(rgb2hed(drawn[None])[0, :, 0].astype(np.float32))
    return float(threshold_otsu(np.concatenate(values)))


if __name__ == "__main__":
    app(prog_name="python -m training.studies.atlas")

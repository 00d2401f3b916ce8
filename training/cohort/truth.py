"""What a generated slide is known to hold: saved beside it, and summed up for any tile.

The attributes of a tile name no class. An encoder that is trained to regress them learns to see nuclei, as one trained
on other tissue would, without having been shown a label or a lesion mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from napari_lrmil.atomic import replacing
from napari_lrmil.errors import ConfigError
from training.cohort.config import MPP_L0
from training.cohort.nuclei import LYMPHOCYTE, SPINDLE, Nuclei
from training.cohort.slide import TRUTH_DOWNSAMPLE, GeneratedSlide
from training.cohort.texture import FloatArray

TILE_ATTRIBUTES = (
    "nuclei_count",
    "radius_mean_um",
    "radius_std_um",
    "chromatin_mean",
    "chromatin_sum",
    "lymphocyte_count",
    "spindle_count",
    "lymphocyte_fraction",
    "eosin",
    "fibre_cos2",
    "fibre_sin2",
    "tissue_fraction",
    "pen_fraction",
)
"""Columns of `tile_truth`. `nuclei_count`, `radius_*` and `chromatin_mean` are of the round nuclei that aren't
lymphocytes, in and out of lesions alike; `chromatin_sum` is of all nuclei; `lymphocyte_fraction` is of all nuclei;
`fibre_cos2` and `fibre_sin2` are the cosine and sine of twice the fibres' angle."""


class SlideTruth(NamedTuple):
    """The saved truth of a slide. Maps are (H / 32, W / 32), see `GeneratedSlide`."""

    nuclei: Nuclei
    tissue_fraction: FloatArray
    pen_fraction: FloatArray
    eosin: FloatArray
    fibre_angle_rad: FloatArray


def truth_of(slide: GeneratedSlide) -> SlideTruth:
    """Return the part of a generated slide that `write_truth` saves."""
    return SlideTruth(
        slide.nuclei, slide.tissue_fraction, slide.pen_fraction, slide.eosin, slide.fibre_angle_rad
    )


def write_truth(path: Path, truth: SlideTruth) -> None:
    """Write as safetensors, under 100 kB for a slide of 2,048 px: half precision where it loses nothing that matters."""
    tensors: dict[str, NDArray[np.generic]] = {
        "x_um": truth.nuclei.x_um.astype(np.float32),
        "y_um": truth.nuclei.y_um.astype(np.float32),
        "radius_um": truth.nuclei.radius_um.astype(np.float16),
        "chromatin": truth.nuclei.chromatin.astype(np.float16),
        "kind": truth.nuclei.kind,
        "tissue_fraction_255": np.rint(truth.tissue_fraction * 255).astype(np.uint8),
        "pen_fraction_255": np.rint(truth.pen_fraction * 255).astype(np.uint8),
        "eosin": truth.eosin.astype(np.float16),
        "fibre_angle_rad": truth.fibre_angle_rad.astype(np.float16),
    }
    with replacing(path) as temporary:
        # Not save_file: that makes a file which only its owner may read.
        temporary.write_bytes(save(tensors))


def read_truth(path: Path) -> SlideTruth:
    """Read what `write_truth` wrote.

    Raises
    ------
    ConfigError
        If the file is missing, damaged or of another kind.
    """
    try:
        tensors = load_file(path)
        nuclei = Nuclei(
            x_um=tensors["x_um"],
            y_um=tensors["y_um"],
            radius_um=tensors["radius_um"].astype(np.float32),
            chromatin=tensors["chromatin"].astype(np.float32),
            kind=tensors["kind"],
        )
        return SlideTruth(
            nuclei=nuclei,
            tissue_fraction=tensors["tissue_fraction_255"].astype(np.float32) / np.float32(255),
            pen_fraction=tensors["pen_fraction_255"].astype(np.float32) / np.float32(255),
            eosin=tensors["eosin"].astype(np.float32),
            fibre_angle_rad=tensors["fibre_angle_rad"].astype(np.float32),
        )
    except (OSError, SafetensorError, KeyError) as error:
        raise ConfigError(
            f"The truth of a generated slide can't be read from {path}: {error}. Generate the cohort anew."
        ) from error


def tile_truth(truth: SlideTruth, *, origins_l0_xy: NDArray[np.number], tile_l0_px: float) -> FloatArray:
    """Return the attributes of tiles anywhere on the slide.

    Parameters
    ----------
    truth
        From `read_truth` or `truth_of`.
    origins_l0_xy
        (N, 2), upper left corners in level-0 pixels.
    tile_l0_px
        Side of a tile in level-0 pixels: 128 for a tile of 128 px at 0.5 µm/px, 512 for one at 2.0 µm/px.

    Returns
    -------
    (N, 13) float32, columns as in `TILE_ATTRIBUTES`. Counts and sums are of the nuclei whose centre the tile holds. A
    mean over no nuclei is NaN: leave it out of a loss, don't take it for 0.
    """
    origins = np.asarray(origins_l0_xy, np.float64).reshape(-1, 2)
    blocks = [
        _block_truth(truth, origins[start : start + 256], tile_l0_px) for start in range(0, len(origins), 256)
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, len(TILE_ATTRIBUTES)), np.float32)


def _block_truth(truth: SlideTruth, origins_l0_xy: NDArray[np.float64], tile_l0_px: float) -> FloatArray:
    nuclei = truth.nuclei
    lymphocyte = nuclei.kind == LYMPHOCYTE
    spindle = nuclei.kind == SPINDLE
    round_cell = ~lymphocyte & ~spindle
    columns = np.stack(
        [
            round_cell,
            round_cell * nuclei.radius_um,
            round_cell * nuclei.radius_um**2,
            round_cell * nuclei.chromatin,
            nuclei.chromatin,
            lymphocyte,
            spindle,
        ],
        axis=1,
    ).astype(np.float64)
    held = np.ones((len(origins_l0_xy), len(nuclei.kind)), bool)  # (N, nuclei)
    for axis, place_um in enumerate((nuclei.x_um, nuclei.y_um)):
        from_origin = place_um[None, :] / MPP_L0 - origins_l0_xy[:, axis, None]
        held &= (from_origin >= 0) & (from_origin < tile_l0_px)
    sums = held.astype(np.float64) @ columns  # (N, 7)
    count, radius, radius_squared, chromatin, chromatin_sum, n_lymphocytes, n_spindles = sums.T

    maps = np.stack(
        [
            truth.eosin,
            np.cos(2 * truth.fibre_angle_rad),
            np.sin(2 * truth.fibre_angle_rad),
            truth.tissue_fraction,
            truth.pen_fraction,
        ]
    )
    rows = _overlap(origins_l0_xy[:, 1], tile_l0_px, maps.shape[1])
    cols = _overlap(origins_l0_xy[:, 0], tile_l0_px, maps.shape[2])
    means = np.einsum("nh,chw,nw->nc", rows, maps, cols, optimize=True)  # (N, 5)

    # A mean over no nuclei is NaN by intent, not by accident: no division by 0, no warning.
    some = np.where(count > 0, count, np.nan)
    everything = count + n_lymphocytes + n_spindles
    radius_mean = radius / some
    spread = np.sqrt(np.maximum(radius_squared / some - radius_mean**2, 0))
    result = [
        count,
        radius_mean,
        spread,
        chromatin / some,
        chromatin_sum,
        n_lymphocytes,
        n_spindles,
        n_lymphocytes / np.where(everything > 0, everything, np.nan),
        *means.T,
    ]
    return np.stack(result, axis=1).astype(np.float32)


def _overlap(start_l0: NDArray[np.float64], length_l0: float, n_pixels: int) -> NDArray[np.float64]:
    """Return weights (N, n_pixels) by which a span averages map pixels: the share of its length that each covers."""
    edges = np.arange(n_pixels) * TRUTH_DOWNSAMPLE
    low = np.maximum(edges[None, :], start_l0[:, None])
    high = np.minimum(edges[None, :] + TRUTH_DOWNSAMPLE, start_l0[:, None] + length_l0)
    return np.asarray(np.maximum(high - low, 0) / length_l0, np.float64)

"""Which nuclei a slide holds and where, given its layout."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from training.cohort.config import MPP_L0, CohortConfig
from training.cohort.layout import LAYOUT_PX_UM, SQUARE_UM, Layout
from training.cohort.nuclei import (
    LESION,
    LYMPHOCYTE,
    LYMPHOCYTE_RADIUS_UM,
    N_ORIENTATIONS,
    ORDINARY,
    ORDINARY_RADIUS_UM,
    SPINDLE,
    SPINDLE_RADIUS_UM,
    Bank,
    Nuclei,
    draw_bank,
    draw_sites,
    match_absorption,
    with_grain,
    with_turns,
)
from training.cohort.texture import FloatArray

Value = TypeVar("Value", bound=np.generic)

N_DRAWN = 48
SPINDLES_PER_MM2 = 1300
SCATTERED_LYMPHOCYTES_PER_MM2 = 220
AGGREGATED_LYMPHOCYTES_PER_MM2 = 17_000

PAIRED_SHARE = 0.6
PAIR_DISTANCE_UM = (6.6, 8.8)

# A nucleus whose centre lies nearer to the edge than this would stick out of the tissue.
EDGE_UM = 2.5

# Nor into the next square of an arrangement: it would tell how crowded that is.
SQUARE_EDGE_UM = 4.5


def draw_banks(
    rng: np.random.Generator,
    lesion_rng: np.random.Generator,
    config: CohortConfig,
    haematoxylin_rgb: NDArray[np.float64],
) -> tuple[Bank, ...]:
    """Draw the four banks of a slide, in the order of `KIND_NAMES`.

    The slide's ordinary nuclei vary in size from slide to slide; the lesion's follow them by the ratios of the config.
    """
    radius_um = ORDINARY_RADIUS_UM * float(np.exp(rng.uniform(-0.05, 0.05)))
    ordinary = draw_bank(
        rng,
        n_nuclei=N_DRAWN,
        radius_um=radius_um,
        radius_spread=0.11,
        chromatin=1.0,
        chromatin_spread=0.22,
        elongation=(1.0, 1.6),
        angles_rad=rng.uniform(0, np.pi, N_DRAWN),
        irregularity=0.04,
        clumps=0.22,
        rim=0.15,
        nucleoli=(0, 1),
    )
    lymphocyte = draw_bank(
        rng,
        n_nuclei=N_DRAWN // 2,
        radius_um=LYMPHOCYTE_RADIUS_UM,
        radius_spread=0.06,
        chromatin=0.72,
        chromatin_spread=0.1,
        elongation=(1.0, 1.15),
        angles_rad=rng.uniform(0, np.pi, N_DRAWN // 2),
        irregularity=0.03,
        clumps=0.25,
        rim=0.1,
        nucleoli=(0, 0),
    )
    spindle = draw_bank(
        rng,
        n_nuclei=3 * N_ORIENTATIONS,
        radius_um=SPINDLE_RADIUS_UM,
        radius_spread=0.12,
        chromatin=0.68,
        chromatin_spread=0.2,
        elongation=(2.6, 4.5),
        angles_rad=np.tile(np.arange(N_ORIENTATIONS) * np.pi / N_ORIENTATIONS, 3),
        irregularity=0.03,
        clumps=0.15,
        rim=0.1,
        nucleoli=(0, 0),
    )
    if config.signal == "detail":
        grainy = match_absorption(
            with_grain(ordinary, lesion_rng, config.lesion_grain), ordinary, haematoxylin_rgb
        )
        return with_turns(ordinary), with_turns(grainy), with_turns(lymphocyte), spindle
    lesion = draw_bank(
        lesion_rng,
        n_nuclei=N_DRAWN,
        radius_um=radius_um * config.lesion_radius_ratio,
        radius_spread=0.14,
        chromatin=config.lesion_chromatin_ratio,
        chromatin_spread=0.12,
        elongation=(1.0, 1.6),
        angles_rad=lesion_rng.uniform(0, np.pi, N_DRAWN),
        irregularity=0.07,
        clumps=0.30,
        rim=0.55,
        nucleoli=(1, 3),
    )
    lesion = match_absorption(lesion, ordinary, haematoxylin_rgb)
    return with_turns(ordinary), with_turns(lesion), with_turns(lymphocyte), spindle


def _lookup(image: NDArray[Value], sites_um: FloatArray, px_um: float) -> NDArray[Value]:
    """Return the values of a map at sites given as (x, y) in µm."""
    column, row = (sites_um / np.float32(px_um)).astype(int).T
    values: NDArray[Value] = image[
        np.clip(row, 0, image.shape[0] - 1), np.clip(column, 0, image.shape[1] - 1)
    ]
    return values


def _paired_sites(rng: np.random.Generator, size_um_xy: tuple[float, float], per_mm2: float) -> FloatArray:
    """Draw sites of which a share has a touching neighbour, (N, 2) as (x, y).

    Blurred to low resolution, evenly spread small nuclei make a smoother image than fewer large ones: contrast alone
    would tell a lesion. Pairs even out that contrast, and tell nothing where single nuclei are seen.
    """
    single = draw_sites(rng, size_um_xy, per_mm2 / (1 + PAIRED_SHARE))
    angle = rng.uniform(0, 2 * np.pi, len(single))
    distance_um = rng.uniform(*PAIR_DISTANCE_UM, len(single))
    neighbour = single + (distance_um * np.stack([np.cos(angle), np.sin(angle)])).T.astype(np.float32)
    neighbour = neighbour[rng.random(len(single)) < PAIRED_SHARE]
    inside = ((neighbour >= 0) & (neighbour < np.array(size_um_xy))).all(axis=1)
    return np.concatenate([single, neighbour[inside]])


def _lumen_sites(rng: np.random.Generator, lumens_um: FloatArray) -> FloatArray:
    """Draw sites of the nuclei that line the lumens, (N, 2) as (x, y)."""
    rings = [np.zeros((0, 2), np.float32)]
    for x_um, y_um, radius_um in lumens_um:
        ring_um = radius_um + 7
        n_nuclei = int(2 * np.pi * ring_um / 10)
        angle = (np.arange(n_nuclei) + rng.uniform(-0.25, 0.25, n_nuclei)) / n_nuclei * 2 * np.pi
        from_centre = ring_um + rng.uniform(-1.5, 4, n_nuclei)
        ring = np.stack([x_um + from_centre * np.cos(angle), y_um + from_centre * np.sin(angle)], axis=1)
        rings.append(ring.astype(np.float32))
    return np.concatenate(rings)


def place_nuclei(
    rng: np.random.Generator,
    lesion_rng: np.random.Generator,
    config: CohortConfig,
    layout: Layout,
    lesion: NDArray[np.bool_],
    share: FloatArray | None,
    depth_um: FloatArray,
    depth_px_um: float,
    angle_rad: FloatArray,
    banks: tuple[Bank, ...],
) -> tuple[Nuclei, NDArray[np.int64]]:
    """Place all nuclei of a slide.

    Signal "both": ordinary sites inside the lesion are left out and lesion sites put there, thinned by the same maps, so
    the number per area differs by exactly the chromatin ratio and the chromatin per area is the same in expectation.
    "detail": the ordinary ones in a lesion become its own, each at its place. "architecture": there are none of its own.
    Draws for the lesion come from their own generator: with and without lesion, the rest of the slide is the same.

    Parameters
    ----------
    share
        (H, W) on the layout grid, of the ordinary nuclei that stay (`draw_arrangement`); None for all.
    depth_um
        Depth into the tissue on a fine grid of `depth_px_um`.
    angle_rad
        Direction of the fibres on the layout grid.

    Returns
    -------
    nuclei
        Those in the tissue.
    bank_index
        (N,), which patch of its kind's bank each nucleus is.
    """
    size_um = (config.width_px * MPP_L0, config.height_px * MPP_L0)
    occupied = layout.cellularity * (1 - np.float32(0.9) * layout.aggregate)
    fibrous = (np.float32(1.1) - layout.cellularity) * (1 - np.float32(0.9) * layout.aggregate)

    def thinned(generator: np.random.Generator, sites: FloatArray, share: FloatArray) -> FloatArray:
        return sites[generator.random(len(sites)) < _lookup(share, sites, LAYOUT_PX_UM)]

    lining = _lumen_sites(rng, layout.lumens_um)
    lining = lining[((lining >= 0) & (lining < np.array(size_um))).all(axis=1)]
    atypical_lining = lining[lesion_rng.random(len(lining)) < 1 / config.lesion_chromatin_ratio]
    ordinary = _paired_sites(rng, size_um, config.nuclei_per_mm2)
    spindle = draw_sites(rng, size_um, SPINDLES_PER_MM2)
    scattered = draw_sites(rng, size_um, SCATTERED_LYMPHOCYTES_PER_MM2)
    aggregated = draw_sites(rng, size_um, AGGREGATED_LYMPHOCYTES_PER_MM2)
    atypical = draw_sites(lesion_rng, size_um, config.nuclei_per_mm2 / config.lesion_chromatin_ratio)
    crowd = thinned(rng, ordinary, occupied)
    arranged = np.ones(len(crowd) + len(lining), bool)
    if share is not None:
        in_square = crowd % SQUARE_UM
        inner = ((in_square > SQUARE_EDGE_UM) & (in_square < SQUARE_UM - SQUARE_EDGE_UM)).all(axis=1)
        arranged[: len(crowd)] = inner & (rng.random(len(crowd)) < _lookup(share, crowd, LAYOUT_PX_UM))
    sites_by_kind = {
        ORDINARY: [crowd, lining],
        LESION: [thinned(lesion_rng, atypical, occupied), atypical_lining],
        LYMPHOCYTE: [scattered, thinned(rng, aggregated, layout.aggregate)],
        SPINDLE: [thinned(rng, spindle, fibrous)],
    }

    parts, indices = [], []
    for kind, groups in sites_by_kind.items():
        sites = np.concatenate(groups)
        bank = banks[kind]
        generator = lesion_rng if kind == LESION else rng
        if kind == SPINDLE:
            nearest = np.rint(_lookup(angle_rad, sites, LAYOUT_PX_UM) / np.pi * N_ORIENTATIONS).astype(int)
            nearest = (nearest + generator.integers(-1, 2, len(sites))) % N_ORIENTATIONS
            index = nearest + N_ORIENTATIONS * generator.integers(3, size=len(sites))
        else:
            index = generator.integers(len(bank.patches), size=len(sites))
        kept = _lookup(depth_um, sites, depth_px_um) > EDGE_UM
        kinds = np.full(len(sites), kind, np.uint8)
        # Only now, after all draws: what the lesion takes away must not shift the look of the nuclei that stay.
        if kind == ORDINARY:
            kept &= arranged
        if config.signal == "both" and kind in (ORDINARY, LESION):
            kept &= _lookup(lesion, sites, LAYOUT_PX_UM) == (kind == LESION)
        elif kind == LESION:
            kept[:] = False
        elif config.signal == "detail" and kind == ORDINARY:
            kinds[_lookup(lesion, sites, LAYOUT_PX_UM)] = LESION
        sites, index, kinds = sites[kept], index[kept], kinds[kept]
        parts.append(Nuclei(sites[:, 0], sites[:, 1], bank.radius_um[index], bank.chromatin[index], kinds))
        indices.append(index)
    return Nuclei(*(np.concatenate(column) for column in zip(*parts, strict=True))), np.concatenate(indices)

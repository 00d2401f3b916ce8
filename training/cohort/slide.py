"""One generated slide: layout, nuclei, stains and light."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.cohort.config import CLASS_NAMES, MPP_L0, CohortConfig
from training.cohort.layout import draw_arrangement, draw_layout, draw_lesions, draw_pen
from training.cohort.nuclei import Nuclei, stamp
from training.cohort.placement import draw_banks, place_nuclei
from training.cohort.stain import draw_stain, to_rgb
from training.cohort.texture import (
    FloatArray,
    block_mean,
    fibres,
    resize,
    smooth_noise,
    smoothstep,
    tiled_grain,
)

# Fibres and outlines are drawn at half of level 0 (1 µm a pixel): finer isn't seen, and it costs a quarter.
HALF = 2
HALF_PX_UM = HALF * MPP_L0
HALF_TO_LAYOUT = 8
PEN_DOWNSAMPLE = 4
TRUTH_DOWNSAMPLE = 32
MARGIN_PX = 64


class GeneratedSlide(NamedTuple):
    """A slide with everything that is known about it. Maps of `truth_shape` are at 1/32 of level 0."""

    rgb: NDArray[np.uint8]
    """(H, W, 3), level 0, 0.5 µm a pixel."""
    lesion_mask: NDArray[np.bool_]
    """(H / 16, W / 16); all False in a benign slide."""
    nuclei: Nuclei
    tissue_fraction: FloatArray
    """(H / 32, W / 32) in [0, 1]."""
    pen_fraction: FloatArray
    """(H / 32, W / 32) in [0, 1]."""
    eosin: FloatArray
    """(H / 32, W / 32), eosin per area of tissue and glass, before the slide's stain strength."""
    fibre_angle_rad: FloatArray
    """(H / 32, W / 32), from the x axis towards the y axis, modulo pi."""
    label: str
    """One of `CLASS_NAMES`."""


def _stream(seed_sequence: np.random.SeedSequence, number: int) -> np.random.Generator:
    """Return the slide's generator for one purpose; unlike `spawn` it leaves the seed sequence as it was."""
    key = (*seed_sequence.spawn_key, number)
    return np.random.default_rng(np.random.SeedSequence(seed_sequence.entropy, spawn_key=key))


def generate_slide(
    config: CohortConfig, *, seed_sequence: np.random.SeedSequence, label: str
) -> GeneratedSlide:
    """Draw one slide.

    Each part draws from its own stream. With the same seed sequence, a benign and a positive slide are the same but
    for the nuclei in the lesions: nothing else can give the label away.

    Parameters
    ----------
    config
        Size and look.
    seed_sequence
        Decides everything that is drawn; not changed.
    label
        `benign` or `lesion`.

    Raises
    ------
    ValueError
        If `label` isn't a class name.
    """
    if label not in CLASS_NAMES:
        raise ValueError(f"label is {label!r}, not one of {', '.join(CLASS_NAMES)}")
    layout_rng, lesion_rng, stain_rng, texture_rng, nuclei_rng, atypical_rng, pen_rng = (
        _stream(seed_sequence, number) for number in range(7)
    )
    height, width = config.shape_l0_yx
    half_shape = (height // HALF, width // HALF)

    layout = draw_layout(layout_rng, config)
    lesion = (
        draw_lesions(lesion_rng, layout, config)
        if label == "lesion"
        else np.zeros(layout.depth_um.shape, bool)
    )
    share = None
    if config.signal == "architecture":
        share, lesion = draw_arrangement(_stream(seed_sequence, 7), lesion_rng, lesion)
        lesion = lesion & (layout.depth_um > 0)
    stain = draw_stain(stain_rng, variation=config.stain_variation)

    depth_um = resize(layout.depth_um, half_shape, cubic=True)
    depth_um = depth_um + 1.6 * smooth_noise(texture_rng, half_shape, 6 / HALF_PX_UM)
    tissue = smoothstep(depth_um, -1.2, 1.2)
    eosin, angle_rad = _draw_eosin(texture_rng, half_shape, layout.cellularity, layout.aggregate)
    eosin *= resize(layout.eosin, half_shape)
    eosin *= tissue

    banks = draw_banks(nuclei_rng, atypical_rng, config, stain.haematoxylin_rgb)
    nuclei, bank_index = place_nuclei(
        nuclei_rng, atypical_rng, config, layout, lesion, share, depth_um, HALF_PX_UM, angle_rad, banks
    )
    padded = np.zeros((height + 2 * MARGIN_PX, width + 2 * MARGIN_PX), np.float32)
    for kind, bank in enumerate(banks):
        chosen = nuclei.kind == kind
        stamp(padded, bank, bank_index[chosen], nuclei.x_um[chosen], nuclei.y_um[chosen], MARGIN_PX)
    haematoxylin = padded[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    # Eosin slides take some haematoxylin everywhere; the cytoplasm of crowded cells takes more.
    tinge = resize(0.035 + 0.055 * layout.cellularity + 0.06 * layout.aggregate, half_shape) * tissue
    haematoxylin += resize(tinge, (height, width))

    pen, pen_colour = draw_pen(pen_rng, layout, config, px_um=PEN_DOWNSAMPLE * MPP_L0)
    rgb = to_rgb(
        haematoxylin,
        resize(eosin, (height, width)),
        tiled_grain(texture_rng, (height, width)) * np.float32(0.012),
        stain,
        pen=None if pen is None else resize(pen, (height, width)),
        pen_colour=pen_colour,
    )
    truth_shape = (height // TRUTH_DOWNSAMPLE, width // TRUTH_DOWNSAMPLE)
    no_pen = np.zeros(truth_shape, np.float32)
    return GeneratedSlide(
        rgb=rgb,
        lesion_mask=lesion,
        nuclei=nuclei,
        tissue_fraction=block_mean(tissue, TRUTH_DOWNSAMPLE // HALF),
        pen_fraction=no_pen if pen is None else block_mean(pen, TRUTH_DOWNSAMPLE // PEN_DOWNSAMPLE),
        eosin=block_mean(eosin, TRUTH_DOWNSAMPLE // HALF),
        # Every second pixel in place of a mean: directions modulo pi have no plain mean.
        fibre_angle_rad=np.ascontiguousarray(angle_rad[1::2, 1::2]),
        label=label,
    )


def _draw_eosin(
    rng: np.random.Generator, half_shape: tuple[int, int], cellularity: FloatArray, aggregate: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Draw eosin on the half grid (fibres where cells are few, granular cytoplasm where many) and fibre angles."""
    fine, bundles, angle_rad = fibres(rng, half_shape, px_um=HALF_PX_UM, coarse=HALF_TO_LAYOUT)
    fibrous = resize(smoothstep(-cellularity, -0.95, -0.45), half_shape) * np.float32(0.75) + np.float32(0.25)
    granules = smooth_noise(rng, half_shape, 3.2)
    cells = smooth_noise(rng, half_shape, 13.0)
    structure = np.float32(0.20) * fine
    structure += np.float32(0.24) * bundles
    structure *= fibrous
    structure += (1 - fibrous) * (np.float32(0.13) * granules + np.float32(0.16) * cells)
    eosin = np.exp(structure)
    # Where bundles part, the glass shows between them.
    clefts = smoothstep(bundles, -2.1, -1.15)
    eosin *= 1 - fibrous * (1 - clefts) * np.float32(0.8)
    eosin *= np.float32(0.46) - resize(np.float32(0.22) * aggregate, half_shape)
    return eosin, angle_rad

"""Nuclei: where they lie, what they look like, and how they are drawn.

A slide draws a small bank of nuclei of each kind and stamps them, turned and flipped: adding a patch of some 30 px to
the canvas costs microseconds, drawing each nucleus anew would cost the whole budget.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.cohort.config import MPP_L0
from training.cohort.texture import FloatArray, smooth_noise

ORDINARY, LESION, LYMPHOCYTE, SPINDLE = range(4)
KIND_NAMES = ("ordinary", "lesion", "lymphocyte", "spindle")

ORDINARY_RADIUS_UM = 3.5
LYMPHOCYTE_RADIUS_UM = 2.3
SPINDLE_RADIUS_UM = 2.6

# Chromatin is counted in mean ordinary nuclei; haematoxylin of one such nucleus, in concentration x level-0 pixels.
ORDINARY_HAEMATOXYLIN = 1.05 * np.pi * (ORDINARY_RADIUS_UM / MPP_L0) ** 2

N_ORIENTATIONS = 16


class Nuclei(NamedTuple):
    """One entry a nucleus, all (N,)."""

    x_um: FloatArray
    y_um: FloatArray
    radius_um: FloatArray
    """Radius of the disc of the same area."""
    chromatin: FloatArray
    """In mean ordinary nuclei."""
    kind: NDArray[np.uint8]
    """Index into `KIND_NAMES`."""


class Bank(NamedTuple):
    """Nuclei of one kind to stamp: patches (N, S, S) whose sum is the haematoxylin, with radius and chromatin (N,)."""

    patches: FloatArray
    radius_um: FloatArray
    chromatin: FloatArray


def draw_bank(
    rng: np.random.Generator,
    *,
    n_nuclei: int,
    radius_um: float,
    radius_spread: float,
    chromatin: float,
    chromatin_spread: float,
    elongation: tuple[float, float],
    angles_rad: NDArray[np.float64],
    irregularity: float,
    clumps: float,
    rim: float,
    nucleoli: tuple[int, int],
) -> Bank:
    """Draw nuclei as ellipses with an uneven outline, a rim, chromatin clumps and nucleoli.

    Parameters
    ----------
    radius_um, chromatin
        Exact means over the bank.
    radius_spread
        Standard deviation of the logarithm of the radius.
    chromatin_spread
        Standard deviation of the logarithm of the chromatin per area of nucleus.
    elongation
        Range of the ratio of the axes.
    irregularity, clumps, rim
        Amplitudes, relative to the radius and to the mean density.
    nucleoli
        Smallest and largest number.
    """
    spread = rng.standard_normal(n_nuclei)
    spread = (spread - spread.mean()) / spread.std()
    radii_um = np.exp(radius_spread * spread)
    radii_um *= radius_um / radii_um.mean()
    amounts = radii_um**2 * np.exp(chromatin_spread * rng.standard_normal(n_nuclei))
    amounts *= chromatin / amounts.mean()

    ratio = rng.uniform(*elongation, n_nuclei)
    radii_px = radii_um / MPP_L0
    half = int(np.ceil((radii_px * np.sqrt(ratio)).max() * (1 + 2 * irregularity) + 2))
    size = 2 * half + 1
    offset = np.arange(-half, half + 1, dtype=np.float32)

    def each(values: NDArray[np.floating]) -> FloatArray:
        return np.asarray(values, np.float32)[:, None, None]

    shift_yx = rng.uniform(-0.5, 0.5, (2, n_nuclei))
    y_px = offset[None, :, None] - each(shift_yx[0])
    x_px = offset[None, None, :] - each(shift_yx[1])
    cos, sin = each(np.cos(angles_rad)), each(np.sin(angles_rad))
    along = (x_px * cos + y_px * sin) / each(np.sqrt(ratio))
    across = (y_px * cos - x_px * sin) * each(np.sqrt(ratio))
    distance = np.hypot(along, across)
    direction = np.arctan2(across, along)
    outline = np.ones_like(distance)
    for wave in (2, 3, 4):
        amplitude = irregularity * rng.standard_normal(n_nuclei) / wave * 1.5
        outline += each(amplitude) * np.cos(wave * direction + each(rng.uniform(0, 2 * np.pi, n_nuclei)))
    depth_px = outline * each(radii_px) - distance

    density = 1 + rim * np.exp(-(((depth_px - 1.2) / 1.3) ** 2))
    # Chromatin clumps measure about 1 µm in every nucleus, large or small.
    noise = smooth_noise(rng, (n_nuclei * size, size), 2.6).reshape(n_nuclei, size, size)
    density += clumps * noise
    for nucleolus in range(nucleoli[1]):
        present = rng.integers(nucleoli[0], nucleoli[1] + 1, n_nuclei) > nucleolus
        place_yx = rng.uniform(-0.42, 0.42, (2, n_nuclei)) * radii_px
        squared = (y_px - each(place_yx[0])) ** 2 + (x_px - each(place_yx[1])) ** 2
        density += each(present * 1.4) * np.exp(-squared / np.float32(2 * 1.5**2))
    np.maximum(density, 0.12, out=density)

    # The edge runs over two pixels, as through an objective, not from one to the next.
    density *= np.clip(depth_px / 2 + 0.5, 0, 1)
    density *= each(amounts * ORDINARY_HAEMATOXYLIN) / density.sum(axis=(1, 2), keepdims=True)
    return Bank(density.astype(np.float32), radii_um.astype(np.float32), amounts.astype(np.float32))


def match_absorption(bank: Bank, reference: Bank, densities_rgb: NDArray[np.float64]) -> Bank:
    """Concentrate a bank's chromatin until it takes as much light a unit of chromatin as the reference does.

    Absorption saturates: the same chromatin spread over more area takes more light, so larger and paler nuclei would
    darken the tissue although the chromatin is matched, and the mean colour would give the lesion away. Raising the
    patches to a power makes clumps darker and the rest paler; the power that evens the mean light is found by bisection.

    Parameters
    ----------
    densities_rgb
        Optical density of a unit of haematoxylin in R, G and B.
    """

    def light_taken(patches: FloatArray, amounts: FloatArray) -> float:
        taken = sum(float((1 - np.exp(patches * np.float32(-density))).sum()) for density in densities_rgb)
        return taken / float(amounts.sum())

    def concentrated(power: float) -> FloatArray:
        patches = bank.patches ** np.float32(power)
        scale: FloatArray = bank.patches.sum(axis=(1, 2)) / patches.sum(axis=(1, 2))
        return patches * scale[:, None, None]

    target = light_taken(reference.patches, reference.chromatin)
    low, high = 0.4, 4.0
    for _ in range(9):
        middle = (low + high) / 2
        if light_taken(concentrated(middle), bank.chromatin) > target:
            low = middle
        else:
            high = middle
    return bank._replace(patches=concentrated((low + high) / 2))


def with_grain(bank: Bank, rng: np.random.Generator, amplitude: float) -> Bank:
    """Return the same nuclei, outline and chromatin, with a grain of single pixels (0.5 µm).

    Parameters
    ----------
    amplitude
        Standard deviation of the factor of a pixel's chromatin, whose mean is 1 in every nucleus.
    """
    grain = 1 + np.float32(amplitude) * rng.standard_normal(bank.patches.shape, dtype=np.float32)
    patches = bank.patches * np.maximum(grain, np.float32(0.05))
    patches *= bank.patches.sum(axis=(1, 2), keepdims=True) / patches.sum(axis=(1, 2), keepdims=True)
    return bank._replace(patches=patches)


def with_turns(bank: Bank) -> Bank:
    """Return a bank four times as large: each nucleus as drawn, turned by half a turn, flipped and transposed."""
    patches = bank.patches
    turned = (patches, patches[:, ::-1, ::-1], patches[:, :, ::-1], patches.transpose(0, 2, 1))
    return Bank(
        np.concatenate(turned), np.tile(bank.radius_um, len(turned)), np.tile(bank.chromatin, len(turned))
    )


def draw_sites(rng: np.random.Generator, size_um_xy: tuple[float, float], per_mm2: float) -> FloatArray:
    """Draw sites on a shaken hexagonal lattice, (N, 2) as (x, y): even, yet without a visible order."""
    step_um = np.sqrt(1e6 / per_mm2 * 2 / np.sqrt(3))
    rows = int(np.ceil(size_um_xy[1] / (step_um * np.sqrt(3) / 2))) + 1
    columns = int(np.ceil(size_um_xy[0] / step_um)) + 1
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    x_um = (column + 0.5 * (row % 2)) * step_um
    y_um = row * step_um * np.sqrt(3) / 2
    sites = np.stack([x_um.ravel(), y_um.ravel()], axis=1) + rng.uniform(-0.42, 0.42, (row.size, 2)) * step_um
    inside = ((sites >= 0) & (sites < np.array(size_um_xy))).all(axis=1)
    return np.asarray(sites[inside], np.float32)


def stamp(
    canvas: FloatArray,
    bank: Bank,
    index: NDArray[np.int64],
    x_um: FloatArray,
    y_um: FloatArray,
    margin_px: int,
) -> None:
    """Add nuclei to a haematoxylin canvas that has a margin of `margin_px` round the slide."""
    size = bank.patches.shape[1]
    left = (np.floor(x_um / MPP_L0).astype(int) + (margin_px - size // 2)).tolist()
    top = (np.floor(y_um / MPP_L0).astype(int) + (margin_px - size // 2)).tolist()
    patches = list(bank.patches)
    for k, x, y in zip(index.tolist(), left, top, strict=True):
        canvas[y : y + size, x : x + size] += patches[k]

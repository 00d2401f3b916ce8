"""Smooth noise and fibres, the raw material of the generated tissue. Lengths are in pixels of the array asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.float32]


def resize(image: FloatArray, shape_yx: tuple[int, int], *, cubic: bool = False) -> FloatArray:
    """Stretch a 2-D float image over `shape_yx`, bilinear or bicubic."""
    resample = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    height, width = shape_yx
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def block_mean(image: NDArray[np.generic], factor: int) -> FloatArray:
    """Average over whole blocks; (H, W) to (H / factor, W / factor)."""
    height, width = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor)
    means: FloatArray = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means


def smooth_noise(rng: np.random.Generator, shape_yx: tuple[int, int], cell_px: float) -> FloatArray:
    """Draw Gaussian noise whose features measure about `cell_px`, mean 0 and standard deviation about 1.

    Drawn on a coarse lattice and stretched, so a large smooth field costs as little as the stretching.
    """
    height, width = shape_yx
    # One extra lattice cell on every side, cut off again: the stretched border is flat and would show.
    lattice = (int(np.ceil(height / cell_px)) + 2, int(np.ceil(width / cell_px)) + 2)
    values = rng.standard_normal(lattice, dtype=np.float32)
    # Interpolation between lattice points loses variance; 1.3 restores the cubic kernel's loss.
    box = (1.0, 1.0, 1.0 + width / cell_px, 1.0 + height / cell_px)
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image) * np.float32(1.3)


def cloud_noise(
    rng: np.random.Generator, shape_yx: tuple[int, int], cell_px: float, *, octaves: int
) -> FloatArray:
    """Sum `smooth_noise` at halving sizes and halving amplitudes, standard deviation about 1."""
    total = np.zeros(shape_yx, np.float32)
    variance = 0.0
    for octave in range(octaves):
        amplitude = 0.5**octave
        total += np.float32(amplitude) * smooth_noise(rng, shape_yx, max(cell_px * amplitude, 1.0))
        variance += amplitude**2
    return total / np.float32(np.sqrt(variance))


def tiled_grain(rng: np.random.Generator, shape_yx: tuple[int, int], block_px: int = 512) -> FloatArray:
    """Draw white noise, standard deviation 1, one block repeated: at a grain's amplitude nobody sees the repeat."""
    height, width = shape_yx
    block = rng.standard_normal((block_px, block_px), dtype=np.float32)
    repeats = (-(-height // block_px), -(-width // block_px))
    return np.tile(block, repeats)[:height, :width]


def smoothstep(values: FloatArray, low: float, high: float) -> FloatArray:
    """Return 0 below `low`, 1 above `high`, and smooth steps between."""
    unit: FloatArray = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return unit * unit * (3 - 2 * unit)


def _streaks(
    rng: np.random.Generator, shape: tuple[int, int], sigma_across: float, sigma_along: float
) -> FloatArray:
    """Draw periodic noise, long along axis 1, standard deviation 1."""
    rows, columns = shape
    frequency_across = np.fft.fftfreq(rows)[:, None]
    frequency_along = np.fft.rfftfreq(columns)[None, :]
    exponent = (frequency_across * sigma_across) ** 2 + (frequency_along * sigma_along) ** 2
    spectrum = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * np.exp(-2 * np.pi**2 * exponent)
    streaks: FloatArray = np.fft.irfft2(spectrum, s=shape).astype(np.float32)
    streaks /= streaks.std()
    return streaks


def fibres(
    rng: np.random.Generator, shape_yx: tuple[int, int], *, px_um: float, coarse: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw wavy fibre bundles.

    Straight streaks, sampled through a smoothly warped coordinate system: the fibres follow the lines of constant
    "across" coordinate, so their direction is known without measuring it.

    Parameters
    ----------
    shape_yx
        Shape of the result.
    px_um
        µm a pixel of the result measures.
    coarse
        The coordinates are warped on a lattice this many times coarser. Divides the shape.

    Returns
    -------
    fine, bundles
        Thin fibres and thick bundles, shape `shape_yx`, standard deviation about 1.
    angle_rad
        Direction of the fibres from the x axis towards the y axis, modulo pi; on the coarse lattice.
    """
    height, width = shape_yx
    coarse_shape = (height // coarse, width // coarse)
    step_um = coarse * px_um
    y_um, x_um = np.meshgrid(
        (np.arange(coarse_shape[0], dtype=np.float32) + 0.5) * np.float32(step_um),
        (np.arange(coarse_shape[1], dtype=np.float32) + 0.5) * np.float32(step_um),
        indexing="ij",
    )
    angle = rng.uniform(0, np.pi)
    long_wave = smooth_noise(rng, coarse_shape, 320 / step_um) * np.float32(75)
    short_wave = smooth_noise(rng, coarse_shape, 70 / step_um) * np.float32(5)
    across_um = np.float32(np.cos(angle)) * y_um - np.float32(np.sin(angle)) * x_um + long_wave + short_wave
    along_um = np.float32(np.cos(angle)) * x_um + np.float32(np.sin(angle)) * y_um
    gradient_y, gradient_x = np.gradient(across_um)
    angle_rad = np.mod(np.arctan2(-gradient_x, gradient_y), np.pi).astype(np.float32)

    rows, columns = 1024, 512  # powers of two: wrapping round is a mask; 0.5 µm across, 2 µm along
    row = (resize(across_um, shape_yx) * np.float32(2)).astype(np.int32) & (rows - 1)
    column = (resize(along_um, shape_yx) * np.float32(0.5)).astype(np.int32) & (columns - 1)
    index = row * columns + column
    fine = _streaks(rng, (rows, columns), sigma_across=2.2, sigma_along=9)
    bundles = _streaks(rng, (rows, columns), sigma_across=9, sigma_along=22)
    return np.take(fine, index), np.take(bundles, index), angle_rad

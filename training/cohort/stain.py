"""Two stains on glass: concentrations of haematoxylin and eosin to RGB, by the law of Beer and Lambert."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.cohort.texture import FloatArray

HAEMATOXYLIN_RGB = (0.62, 0.70, 0.35)
EOSIN_RGB = (0.12, 0.88, 0.40)

PEN_OPTICAL_DENSITY_RGB = {
    "blue": (1.9, 1.15, 0.30),
    "green": (1.7, 0.45, 1.15),
    "black": (1.9, 1.9, 1.8),
}


class Stain(NamedTuple):
    """One slide's staining: optical density a unit of each stain gives in R, G and B, and the glass's colour."""

    haematoxylin_rgb: NDArray[np.float64]
    eosin_rgb: NDArray[np.float64]
    glass_rgb: NDArray[np.float64]


def draw_stain(rng: np.random.Generator, *, variation: float) -> Stain:
    """Draw a slide's stain vectors and strengths around the usual ones.

    `variation` scales the spread: 0 gives the mean stain, 1 about the spread between laboratories.
    """

    def jittered(vector_rgb: tuple[float, float, float], hue: float, strength: float) -> NDArray[np.float64]:
        vector = np.array(vector_rgb) + variation * hue * rng.standard_normal(3)
        vector = np.clip(vector, 0.03, None)
        direction: NDArray[np.float64] = vector / np.linalg.norm(vector)
        return direction * float(np.exp(variation * strength * rng.uniform(-1, 1)))

    return Stain(
        haematoxylin_rgb=jittered(HAEMATOXYLIN_RGB, 0.035, 0.18),
        eosin_rgb=jittered(EOSIN_RGB, 0.04, 0.28),
        glass_rgb=np.array([244.0, 243.0, 245.0]) + variation * rng.uniform(-3, 3, 3),
    )


def to_rgb(
    haematoxylin: FloatArray,
    eosin: FloatArray,
    grain: FloatArray,
    stain: Stain,
    *,
    pen: FloatArray | None,
    pen_colour: str,
) -> NDArray[np.uint8]:
    """Return the light through the slide as an image.

    Parameters
    ----------
    haematoxylin, eosin
        Concentrations, (H, W), 0 on bare glass.
    grain
        The sensor's noise in optical density, (H, W), the same in all channels.
    pen
        Coverage by a pen, (H, W) in [0, 1], or None.

    Returns
    -------
    RGB image, (H, W, 3), uint8.
    """
    rgb = np.empty((*haematoxylin.shape, 3), np.uint8)
    buffer = np.empty_like(haematoxylin)
    density = np.empty_like(haematoxylin)
    for channel in range(3):
        np.multiply(haematoxylin, np.float32(-stain.haematoxylin_rgb[channel]), out=density)
        np.multiply(eosin, np.float32(-stain.eosin_rgb[channel]), out=buffer)
        density += buffer
        density += grain
        if pen is not None:
            density -= pen * np.float32(PEN_OPTICAL_DENSITY_RGB[pen_colour][channel])
        density += np.float32(np.log(stain.glass_rgb[channel]))
        np.exp(density, out=density)
        np.minimum(density, np.float32(255), out=density)
        rgb[..., channel] = density
    return rgb

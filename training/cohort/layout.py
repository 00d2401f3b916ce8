"""Where things lie on a generated slide: tissue, gaps, lumens, lymphoid aggregates, lesions and pen strokes.

Everything here is a map on the layout grid, 1/16 of level 0 (8 µm a pixel); (y, x) order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.cohort.config import MASK_DOWNSAMPLE, MPP_L0, CohortConfig
from training.cohort.stain import PEN_OPTICAL_DENSITY_RGB
from training.cohort.texture import FloatArray, cloud_noise, smooth_noise, smoothstep

LAYOUT_PX_UM = MASK_DOWNSAMPLE * MPP_L0

# Counts of blobs, lumens and so on are stated for a slide of this area and grow with the root of the area.
REFERENCE_AREA_MM2 = 1.05


class Layout(NamedTuple):
    """Maps of one slide, all (H, W) at 1/16 of level 0, and its lumens."""

    depth_um: FloatArray
    """Roughly the distance into the tissue; negative on glass."""
    cellularity: FloatArray
    """Density of ordinary nuclei, 0 to 1; low where the tissue is fibrous."""
    aggregate: FloatArray
    """Density of lymphocytes in aggregates, 0 to 1."""
    eosin: FloatArray
    """Strength of the eosin, mean about 1."""
    lumens_um: FloatArray
    """(N, 3): x, y and radius."""


def layout_shape(shape_l0_yx: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of a slide's layout grid."""
    return shape_l0_yx[0] // MASK_DOWNSAMPLE, shape_l0_yx[1] // MASK_DOWNSAMPLE


def _scale(shape_l0_yx: tuple[int, int]) -> float:
    area_mm2 = shape_l0_yx[0] * shape_l0_yx[1] * (MPP_L0 / 1000) ** 2
    return float(np.sqrt(area_mm2 / REFERENCE_AREA_MM2))


def grid_um(shape_yx: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Return y and x of the pixel centres of a layout grid, broadcastable."""
    y_um = (np.arange(shape_yx[0], dtype=np.float32)[:, None] + 0.5) * np.float32(LAYOUT_PX_UM)
    x_um = (np.arange(shape_yx[1], dtype=np.float32)[None, :] + 0.5) * np.float32(LAYOUT_PX_UM)
    return y_um, x_um


def _spread_points(
    rng: np.random.Generator, allowed: NDArray[np.bool_], n_points: int, *, candidates: int = 12
) -> list[tuple[float, float]]:
    """Draw points in `allowed`, (y, x) in µm, each the farthest of some candidates from those before it."""
    places = np.argwhere(allowed)
    points: list[tuple[float, float]] = []
    for _ in range(n_points if len(places) else 0):
        drawn = (places[rng.integers(len(places), size=candidates)] + 0.5) * LAYOUT_PX_UM
        if points:
            distance = np.linalg.norm(drawn[:, None] - np.array(points)[None], axis=2).min(axis=1)
            chosen = drawn[int(distance.argmax())]
        else:
            chosen = drawn[0]
        points.append((float(chosen[0]), float(chosen[1])))
    return points


def draw_layout(rng: np.random.Generator, config: CohortConfig) -> Layout:
    """Draw everything but the lesions and the pen; knows nothing of the slide's class."""
    shape = layout_shape(config.shape_l0_yx)
    scale = _scale(config.shape_l0_yx)
    y_um, x_um = grid_um(shape)
    height_um, width_um = shape[0] * LAYOUT_PX_UM, shape[1] * LAYOUT_PX_UM
    side_um = min(height_um, width_um)

    # A rounded piece off the centre, its outline eaten by noise of several sizes.
    centre_y, centre_x = rng.uniform(0.46, 0.54, 2) * (height_um, width_um)
    half_y, half_x = rng.uniform(0.40, 0.50, 2) * (height_um, width_um)
    power = rng.uniform(2.2, 3.6)
    radius = (np.abs((y_um - centre_y) / half_y) ** power + np.abs((x_um - centre_x) / half_x) ** power) ** (
        1 / power
    )
    outline = cloud_noise(rng, shape, side_um / 3.5 / LAYOUT_PX_UM, octaves=4)
    depth_um = ((1 - radius) * side_um / 2 + outline * side_um * 0.055).astype(np.float32)

    # Tears: long thin gaps along the zero lines of a smooth field, where a second field allows.
    crack = np.abs(smooth_noise(rng, shape, 240 / LAYOUT_PX_UM)) * 130 - 9
    allowed = smooth_noise(rng, shape, 200 / LAYOUT_PX_UM)
    depth_um = np.minimum(depth_um, crack + 40 * smoothstep(-allowed, -1.0, 0.2)).astype(np.float32)

    wobble_um = smooth_noise(rng, shape, 40 / LAYOUT_PX_UM) * 5
    lumens = []
    for lumen_y, lumen_x in _spread_points(
        rng, depth_um > 40, round(rng.uniform(3, 9) * scale), candidates=3
    ):
        lumen_radius = float(rng.uniform(14, 42))
        stretch = float(np.exp(rng.uniform(-0.25, 0.25)))
        distance = np.hypot((y_um - lumen_y) * stretch, (x_um - lumen_x) / stretch)
        depth_um = np.minimum(depth_um, distance - lumen_radius + wobble_um)
        lumens.append((lumen_x, lumen_y, lumen_radius))

    cellular = smoothstep(cloud_noise(rng, shape, 230 / LAYOUT_PX_UM, octaves=3), -0.9, 0.5)
    cellularity = np.clip(
        (0.42 + 0.58 * cellular) * (1 + 0.12 * smooth_noise(rng, shape, 90 / LAYOUT_PX_UM)), 0, 1
    )

    aggregate = np.zeros(shape, np.float32)
    n_aggregates = round(rng.integers(config.aggregates_max + 1) * max(scale, 0.75))
    ragged = smooth_noise(rng, shape, 45 / LAYOUT_PX_UM) * 0.22
    for aggregate_y, aggregate_x in _spread_points(rng, depth_um > 15, n_aggregates, candidates=4):
        aggregate_radius = rng.uniform(38, 85) * min(1.0, side_um / 800)
        distance = np.hypot(y_um - aggregate_y, x_um - aggregate_x) / aggregate_radius
        aggregate = np.maximum(aggregate, smoothstep(1 - distance + ragged, -0.1, 0.35))

    eosin = np.exp(0.16 * cloud_noise(rng, shape, 300 / LAYOUT_PX_UM, octaves=4))
    return Layout(
        depth_um=depth_um.astype(np.float32),
        cellularity=cellularity.astype(np.float32),
        aggregate=aggregate,
        eosin=eosin.astype(np.float32),
        lumens_um=np.array(lumens, np.float32).reshape(-1, 3),
    )


def draw_lesions(rng: np.random.Generator, layout: Layout, config: CohortConfig) -> NDArray[np.bool_]:
    """Draw smooth blobs that cover a drawn share of the tissue, (H, W) at 1/16 of level 0.

    Aggregates are left out: their crowd of lymphocytes would hide the lesion's nuclei.
    """
    shape = layout.depth_um.shape
    tissue = layout.depth_um > 0
    possible = tissue & (layout.aggregate < 0.05)
    y_um, x_um = grid_um(shape)
    n_blobs = max(1, round(rng.uniform(2, 4) * _scale(config.shape_l0_yx)))
    wobble = smooth_noise(rng, shape, 70 / LAYOUT_PX_UM) * 0.16
    score = np.full(shape, -np.inf, np.float32)
    inner = possible & (layout.depth_um > 30)
    for blob_y, blob_x in _spread_points(rng, inner if inner.any() else possible, n_blobs):
        size = rng.uniform(0.75, 1.25)
        score = np.maximum(score, -np.hypot(y_um - blob_y, x_um - blob_x) / (150 * size) + wobble)
    fraction = rng.uniform(config.lesion_fraction_min, config.lesion_fraction_max)
    n_pixels = min(round(fraction * tissue.sum()), int(possible.sum()))
    lesion = np.zeros(shape, bool)
    if n_pixels:
        # The blobs grow together until they cover the share, whatever the outline leaves of them.
        threshold = np.partition(score[possible], -n_pixels)[-n_pixels]
        lesion = possible & (score >= threshold)
    return lesion


# Of the signal "architecture": a square is an HR tile of 64 px at 0.5 µm/px, a patch an LR tile of 64 px at 2.0 µm/px.
SQUARE_UM = 32
SQUARES_PER_PATCH = 4
SPARSE = 0.1


def draw_arrangement(
    rng: np.random.Generator,
    lesion_rng: np.random.Generator,
    lesion: NDArray[np.bool_],
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Draw which squares of the tissue are crowded and which are sparse, half of them each.

    In benign tissue all 16 squares of a patch are alike; in a lesion each is drawn for itself. So a square tells nothing,
    nor does a bag of them without their places: only who sees a patch at once can tell.

    Parameters
    ----------
    rng, lesion_rng
        Of the whole slide; of the squares in lesions.
    lesion
        (H, W) at 1/16 of level 0.

    Returns
    -------
    share
        (H, W), of the ordinary nuclei that stay: 1 or `SPARSE`.
    lesion
        (H, W), the patches of which half or more was lesion.
    """
    height, width = lesion.shape
    square = round(SQUARE_UM / LAYOUT_PX_UM)
    patch = square * SQUARES_PER_PATCH
    rows, columns = -(-height // patch), -(-width // patch)
    padded = np.zeros((rows * patch, columns * patch), bool)
    padded[:height, :width] = lesion
    atypical = padded.reshape(rows, patch, columns, patch).mean(axis=(1, 3)) >= 0.5

    def spread(values: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
        return np.repeat(np.repeat(values, size, axis=0), size, axis=1)

    alike = spread(rng.random((rows, columns)) < 0.5, patch)
    mixed = spread(lesion_rng.random((rows * SQUARES_PER_PATCH, columns * SQUARES_PER_PATCH)) < 0.5, square)
    inside = spread(atypical, patch)
    crowded = np.where(inside, mixed, alike)
    share = np.where(crowded, np.float32(1), np.float32(SPARSE))
    return share[:height, :width], inside[:height, :width]


def draw_pen(
    rng: np.random.Generator, layout: Layout, config: CohortConfig, *, px_um: float
) -> tuple[FloatArray | None, str]:
    """Draw pen strokes; None on a clean slide.

    Returns
    -------
    coverage
        (H, W) in [0, 1] on a grid of `px_um` µm a pixel, or None.
    colour
        `blue`, `green` or `black`.
    """
    colour = str(rng.choice(list(PEN_OPTICAL_DENSITY_RGB)))
    marked = rng.random() < config.pen_probability
    if not marked:
        return None, colour
    height_um, width_um = (side * MPP_L0 for side in config.shape_l0_yx)
    shape = (int(height_um / px_um), int(width_um / px_um))
    tissue = layout.depth_um > 0
    coverage = Image.new("L", (shape[1], shape[0]))
    drawing = ImageDraw.Draw(coverage)
    for _ in range(int(rng.integers(1, 3))):
        on_glass = rng.random() < 0.75
        strokes = [_stroke(rng, height_um, width_um) for _ in range(16)]
        stroke = min(strokes, key=lambda path: _share_inside(path, tissue)) if on_glass else strokes[0]
        width = max(1, int(rng.uniform(28, 60) / px_um))
        points = [(float(x), float(y)) for x, y in stroke / px_um]
        drawing.line(points, fill=255, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            drawing.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    ink = np.clip(0.85 + 0.12 * cloud_noise(rng, shape, 60 / px_um, octaves=4), 0, 1)
    return (np.asarray(coverage, np.float32) / 255 * ink).astype(np.float32), colour


def _stroke(rng: np.random.Generator, height_um: float, width_um: float) -> NDArray[np.float64]:
    """Draw a bent line, (N, 2) as (x, y) in µm; it may start near an edge and leave the slide."""
    start = rng.uniform(0, 1, 2) * (width_um, height_um)
    angle = rng.uniform(0, 2 * np.pi)
    bend = rng.uniform(-2.2, 2.2)
    length = rng.uniform(0.25, 0.7) * min(height_um, width_um)
    along = np.linspace(0, 1, 40)
    heading = angle + bend * along + 0.15 * np.sin(along * rng.uniform(4, 12))
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length / len(along)
    return start + np.cumsum(steps, axis=0)


def _share_inside(path_um: NDArray[np.float64], tissue: NDArray[np.bool_]) -> float:
    """Return the share of a path over tissue; beyond the slide counts too, or every stroke would run off the glass."""
    column, row = np.floor(path_um / LAYOUT_PX_UM).astype(int).T
    outside = (row < 0) | (column < 0) | (row >= tissue.shape[0]) | (column >= tissue.shape[1])
    inside = tissue[np.clip(row, 0, tissue.shape[0] - 1), np.clip(column, 0, tissue.shape[1] - 1)]
    return float(np.where(outside, 0.6, inside).mean())

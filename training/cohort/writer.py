"""Generated slides as files that OpenSlide reads; written to a temporary name, then moved: a file is whole or absent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.atomic import replacing
from training.cohort.config import LEVEL_DOWNSAMPLES, MPP_L0

TILE_PX = 256


def area_pyramid(
    rgb: NDArray[np.uint8], downsamples: Sequence[int] = LEVEL_DOWNSAMPLES
) -> list[NDArray[np.uint8]]:
    """Return the levels of a slide, by exact area average of level 0: (H / d, W / d, 3) for each downsample d."""
    levels = [rgb]
    # Sums, not means, go from level to level, so that nothing is rounded twice.
    sums: NDArray[np.unsignedinteger] = rgb.astype(np.uint16)
    for finer, coarser in itertools.pairwise(downsamples):
        factor = coarser // finer
        # Slice by slice: a reduction over two short axes is several times slower in numpy.
        rows = sums[0::factor].copy()
        for offset in range(1, factor):
            rows += sums[offset::factor]
        blocks = rows[:, 0::factor].astype(np.uint32)
        for offset in range(1, factor):
            blocks += rows[:, offset::factor]
        sums = blocks
        levels.append(((sums + coarser**2 // 2) // coarser**2).astype(np.uint8))
    return levels


def write_slide(
    path: Path,
    rgb: NDArray[np.uint8],
    *,
    jpeg_quality: int,
    mpp: float = MPP_L0,
    downsamples: Sequence[int] = LEVEL_DOWNSAMPLES,
) -> None:
    """Write a tiled pyramidal JPEG TIFF whose resolution tags say `mpp` µm a pixel.

    The bytes hold no time, software or file name: they depend on the pixels, the quality and the JPEG library alone.
    """
    with (
        replacing(path) as temporary,
        tifffile.TiffWriter(temporary) as tiff,
    ):
        for level, (downsample, pixels) in enumerate(
            zip(downsamples, area_pyramid(rgb, downsamples), strict=True)
        ):
            pixels_per_cm = 10_000 / (mpp * downsample)
            tiff.write(
                pixels,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",  # what goes in; the JPEG tiles and their tag are YCbCr
                compression="jpeg",
                compressionargs={"level": jpeg_quality, "outcolorspace": "YCBCR"},
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=0 if level == 0 else 1,
                metadata=None,
                software=False,
                maxworkers=1,  # the slides themselves are spread over the processes
            )


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a mask as an 8-bit PNG, 0 or 255."""
    with replacing(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(temporary, format="PNG")

"""Slides for the window's tests: shared ones, and generated ones with or without pixel size and colour profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_slide(name: str) -> Path:
    """A shared slide; skips where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"the shared slide {name} (../shared/data beside the repository) is absent")
    return path


def write_slide(
    path: Path, *, size_xy: tuple[int, int] = (2560, 1920), mpp: float | None = 0.5, icc: bytes | None = None
) -> Path:
    """A pyramid of levels 1, 4 and 16 with a stained oval in the middle."""
    width, height = size_xy
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.5) / 0.42) ** 2 + ((y / height - 0.5) / 0.42) ** 2 < 1
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 1), dtype=np.uint8)
    pixels = np.where(inside[..., None], np.array([190, 90, 170], np.uint8) + noise, np.uint8(245))
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    options: dict[str, object] = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
    if mpp is not None:
        options.update(resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER")
    with tifffile.TiffWriter(path) as writer:
        for level, step in enumerate((1, 4, 16)):
            profile = icc if level == 0 else None
            writer.write(
                pixels[::step, ::step],
                subfiletype=int(level > 0),
                metadata=None,
                iccprofile=profile,
                **options,
            )
    return path

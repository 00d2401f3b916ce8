"""The slide that benchmarks read: 40,960 px, JPEG, levels 1/4/16, tissue-like, made in seconds.

A few hundred tiles are drawn and encoded, and the file refers to each of them many times over in random order:
a tile costs a reader the same whether the one before was equal or not, and no 5 GB have to be compressed.
Each reference has its own copy of the bytes, so the file is as large as a real one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from napari_lrmil.atomic import replacing

SIDE_PX = 40_960
TILE_PX = 256
DOWNSAMPLES = (1, 4, 16)
MPP = 0.25
QUALITY = 80

_N_TISSUE, _N_GLASS = 192, 8
_DESCRIPTION = (
    "Aperio Image Library v12.0.15 \r\n{side}x{side} [0,0 {side}x{side}] ({tile}x{tile}) -> {side}x{side} "
    "JPEG/RGB Q={quality}|AppMag = 40|MPP = {mpp}"
)


def bench_slide(folder: Path | None = None, *, side_px: int = SIDE_PX, mpp: float = MPP) -> Path:
    """Return the path of the generated slide, made where it isn't yet.

    Parameters
    ----------
    folder : Path, optional
        Where it is kept between runs; the system's temporary folder if left out.
    side_px : int
        Width and height, a multiple of 16 tiles.
    mpp : float
        µm/px that the file says.
    """
    folder = folder or Path(tempfile.gettempdir()) / "lrmil-bench"
    name = f"tissue-{side_px}-q{QUALITY}-v2" if mpp == MPP else f"tissue-{side_px}-{mpp:g}-q{QUALITY}-v2"
    path = folder / f"{name}.svs"
    if not path.exists():
        with replacing(path) as unfinished:
            _write(unfinished, side_px, mpp)
    return path


def encoded_tiles(seed: int = 0) -> tuple[list[bytes], list[bytes]]:
    """Return JPEG tiles of tissue and of glass, as the slide holds them."""
    rng = np.random.default_rng(seed)
    return (
        [_encode(_tissue(rng)) for _ in range(_N_TISSUE)],
        [_encode(_glass(rng)) for _ in range(_N_GLASS)],
    )


def _write(path: Path, side_px: int, mpp: float) -> None:
    tissue, glass = encoded_tiles()
    rng = np.random.default_rng(1)

    def tiles(n_across: int) -> Iterator[bytes]:
        # A disc of tissue, so that overviews and tissue masks have something to find.
        middle = (n_across - 1) / 2
        for row in range(n_across):
            for col in range(n_across):
                inside = (row - middle) ** 2 + (col - middle) ** 2 <= (0.46 * n_across) ** 2
                pool = tissue if inside else glass
                yield pool[int(rng.integers(len(pool)))]

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level, downsample in enumerate(DOWNSAMPLES):
            if level == 1:
                # Aperio's second page is always a thumbnail, in strips; readers rely on that.
                writer.write(
                    np.full((768, 768, 3), 243, np.uint8),
                    photometric="ycbcr",
                    compression="jpeg",
                    rowsperstrip=16,
                    description=f"Aperio Image Library v12.0.15 \r\n{side_px}x{side_px} -> 768x768 - ",
                    metadata=None,
                )
            side = side_px // downsample
            writer.write(
                tiles(-(-side // TILE_PX)),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                description=_DESCRIPTION.format(side=side, tile=TILE_PX, quality=QUALITY, mpp=mpp),
                metadata=None,
            )


def _encode(rgb: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(rgb, level=QUALITY, subsampling="420"))


def _tissue(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw pink fibres and purple dots: about as hard for a JPEG codec as H&E at 20x."""
    fibres = ndimage.gaussian_filter(rng.standard_normal((TILE_PX, TILE_PX)), (1.2, 4.0))
    dots = ndimage.gaussian_filter((rng.random((TILE_PX, TILE_PX)) > 0.9975) * 1.0, 2.6)
    eosin = 0.35 + 0.5 * fibres / fibres.std() * 0.25
    haematoxylin = dots / dots.max()
    density = eosin[..., None] * (0.15, 0.75, 0.25) + haematoxylin[..., None] * (0.9, 1.1, 0.5)
    noise = rng.normal(0, 2.5, (TILE_PX, TILE_PX, 1))
    return np.asarray(np.clip(245 * np.exp(-np.clip(density, 0, None)) + noise, 0, 255), np.uint8)


def _glass(rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.asarray(np.clip(243 + rng.normal(0, 1.2, (TILE_PX, TILE_PX, 1)).repeat(3, 2), 0, 255), np.uint8)

"""What all writers share: pixels, the words that are planted, how a pyramid is cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.cohort.writer import area_pyramid

Pixels = NDArray[np.uint8]

MPP = 0.5
JPEG = 90
TEXT_TAGS = {
    "DocumentName": 269, "Make": 271, "Model": 272, "PageName": 285, "DateTime": 306, "Artist": 315,
    "HostComputer": 316, "ImageID": 32781, "Copyright": 33432, "UniqueCameraModel": 50708,
}  # fmt: skip
"""Fields of TIFF and EXIF that hold text of one's own."""


class Plant(Protocol):
    """What is written into a field."""

    def __call__(self, field: str, value: str = "") -> str:
        """Return the text for a field; `value` is what readers want to see there, where they want anything."""
        ...


class Layout(NamedTuple):
    """How a pyramid is cut.

    Attributes
    ----------
    tile_px : int
        Edge of a tile, a chunk, a frame.
    downsamples : tuple of int
        Of the levels, 1 first; each divides the next one.
    """

    tile_px: int = 256
    downsamples: tuple[int, ...] = (1, 4)

    def levels(self, pixels: Pixels) -> list[Pixels]:
        """Return the levels (height / d, width / d, 3) of a picture."""
        return area_pyramid(pixels, self.downsamples)


LAYOUT = Layout()


class Writer(Protocol):
    """Writes a slide of one format."""

    def __call__(
        self, folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT
    ) -> Path:
        """Return what is to be opened; a picture (height, width, 3) whose edges are multiples of the tile's fits all."""
        ...


def unplanted(field: str, value: str = "") -> str:
    """Return for a field what a slide of nobody has there."""
    return value or "x" * 10


def stained(side_px: int, seed: int, *, height_px: int | None = None) -> Pixels:
    """Return a picture (side or height, side, 3) of a pink and purple field on white glass; no two seeds look alike."""
    rng, height = np.random.default_rng(seed), height_px or side_px
    coarse = rng.integers(0, 90, (max(2, height // 12), max(2, side_px // 12), 3), np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((side_px, height), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:height, :side_px]
    inside = ((x / side_px - 0.5) ** 2 + (y / height - 0.5) ** 2 < 0.4**2)[..., None]
    return np.where(inside, np.array([130, 60, 130], np.uint8) + texture, np.uint8(244)).astype(np.uint8)


def small(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return a picture as a label, macro image or thumbnail of another size."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def tiles_of(pixels: Pixels, tile_px: int) -> list[Pixels]:
    """Return the tiles (tile_px, tile_px, 3), line by line; those at the edge are filled up with white."""
    found = []
    for top in range(0, pixels.shape[0], tile_px):
        for left in range(0, pixels.shape[1], tile_px):
            tile = np.full((tile_px, tile_px, 3), 255, np.uint8)
            part = pixels[top : top + tile_px, left : left + tile_px]
            tile[: part.shape[0], : part.shape[1]] = part
            found.append(tile)
    return found


def jpeg(pixels: Pixels, **options: object) -> bytes:
    """Return a picture as a JPEG file; options as Pillow takes them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG, **options)
    return buffer.getvalue()


def xmp(text: str) -> str:
    """Return XMP of which a text is the creator."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" dc:creator="{text}"/></rdf:RDF></x:xmpmeta>'
    )


def exif(kind: str, plant: Plant) -> Image.Exif:
    """Return EXIF with a text in each field that takes one."""
    found = Image.Exif()
    for name, code in {"ImageDescription": 270, **TEXT_TAGS}.items():
        found[code] = plant(f"{kind} EXIF {name}")
    found.get_ifd(0x8769)[37510] = b"ASCII\0\0\0" + plant(f"{kind} EXIF UserComment").encode()
    return found

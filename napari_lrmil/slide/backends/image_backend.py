"""A plain PNG or JPEG: a region saved from a slide. It has one level and never an mpp."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.backends.base import assemble, check_request, unquoted
from napari_lrmil.slide.damage import Damage
from napari_lrmil.slide.files import Chunk
from napari_lrmil.slide.pixel_size import Evidence

MAX_PIXELS = 2**26
"""The largest image that is decoded whole: 200 MB of RGB, for instance 8,192 x 8,192 px."""

MAX_EDGE_PX = 2**16
"""The longest edge. A picture a pixel wide and millions high is no region of a slide, and takes minutes to average."""

_STRIP_PIXELS = 2**22

_FORMATS = ("PNG", "JPEG")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class ImageBackend:
    """Decodes the picture at opening, turned upright as its EXIF says; the pixels stay in memory until `close`."""

    name = "image"
    chunks: tuple[Chunk, ...] = ()

    def __init__(self, path: Path) -> None:
        with _open_image(path) as image:
            self.vendor = str(image.format).lower()
            self._icc_profile: bytes | None = image.info.get("icc_profile")
            try:
                self._pixels, turned = _decoded(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise SlideError(
                    f"{path.name} opens, but its pixels can't be read ({unquoted(error, path)})"
                ) from error
        size_xy = (self._pixels.shape[1], self._pixels.shape[0])
        self.reason = "a plain image" + (", turned upright as its EXIF says" if turned else "")
        self.damage = Damage()  # decoded whole or not at all
        self.files: tuple[Path, ...] = (path,)
        self.level_dimensions_xy: tuple[tuple[int, int], ...] = (size_xy,)
        self.level_downsamples: tuple[float, ...] = (1.0,)
        # The resolution in such files is a printer's (72 dpi), never a microscope's.
        self.evidence: tuple[Evidence, ...] = ()
        self.shown_image = ""
        self.bounds_l0_xywh = (0, 0, *size_xy)
        self.objective_power: float | None = None
        self.associated_images: tuple[str, ...] = ()

    @property
    def icc_profile(self) -> bytes | None:
        return self._icc_profile

    def read_region(
        self,
        location_l0_xy: tuple[int, int],
        level: int,
        size_xy: tuple[int, int],
        *,
        keep_tiles: bool = True,
    ) -> NDArray[np.uint8]:
        check_request(level, 1, size_xy)
        return assemble(
            lambda _col, _row, _whole: self._pixels,
            tile_xy=self.level_dimensions_xy[0],
            level_size_xy=self.level_dimensions_xy[0],
            corner_xy=(int(location_l0_xy[0]), int(location_l0_xy[1])),
            size_xy=size_xy,
        )

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        raise SlideError(f"there is no associated image {name!r}")

    def close(self) -> None:
        self._pixels = np.empty((0, 0, 3), np.uint8)


def _decoded(image: Image.Image) -> tuple[NDArray[np.uint8], bool]:
    """The pixels (height, width, 3), clear ones white, read-only; and whether they were stored turned or mirrored."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    if turned:
        ImageOps.exif_transpose(image, in_place=True)
    pixels = _on_white(image)
    pixels.setflags(write=False)
    return pixels, turned


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """RGB of an image, white behind what is transparent; converted in strips, for a large one is in memory already."""
    pixels: NDArray[np.uint8] = np.empty((image.height, image.width, 3), np.uint8)
    transparent = "A" in image.getbands() or "transparency" in image.info
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        if transparent:
            rgba = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _open_image(path: Path) -> Image.Image:
    """An image whose header says that it may be decoded whole; a small file can hold a huge one."""
    with warnings.catch_warnings():
        # Pillow warns of sizes that are refused below anyway.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise SlideError(_too_large(path)) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise SlideError(f"{path.name} is not an image that can be read") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise SlideError(_too_large(path))
    if max(image.size) > MAX_EDGE_PX:
        size = f"{image.width} x {image.height} px"
        image.close()
        raise SlideError(
            f"{path.name} measures {size}, but an image without tiles may have {MAX_EDGE_PX} px an edge"
        )
    if image.mode not in _MODES:
        mode = image.mode
        image.close()
        raise SlideError(f"{path.name} holds pixels of mode {mode}, but a slide needs 8-bit RGB or grey")
    return image


def _too_large(path: Path) -> str:
    return (
        f"{path.name} has more than {MAX_PIXELS // 10**6} million pixels, too many for an image without "
        "tiles. Convert it to a tiled TIFF."
    )

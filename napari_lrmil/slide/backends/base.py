"""What `Slide` needs from a library that decodes slide files."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError


class Backend(Protocol):
    """A decoder of one open slide. Reads may come from several threads at once; `close` comes last."""

    name: str
    vendor: str
    level_dimensions_xy: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    mpp_xy: tuple[float, float] | None
    bounds_l0_xywh: tuple[int, int, int, int]
    objective_power: float | None

    def read_region(
        self, location_l0_xy: tuple[int, int], level: int, size_xy: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """RGB pixels (height, width, 3); white where the slide holds nothing."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_backend(path: Path) -> Backend:
    """Open `path` with the backend that reads it.

    Raises
    ------
    SlideError
        In one sentence, where no backend can.
    """
    from napari_lrmil.slide.backends.openslide_backend import OpenSlideBackend

    if not path.exists():
        raise SlideError(f"no such slide: {path}")
    return OpenSlideBackend(path)

"""A whole slide: one handle, its levels in µm, and reads that outlive no close."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError, UnknownMppError
from napari_lrmil.slide.backends import open_backend


class Slide:
    """An open slide.

    Parameters
    ----------
    path : path-like
    mpp : float, optional
        µm per level-0 pixel, overriding what the file says. Needed where it says nothing.

    Raises
    ------
    SlideError
        Where the file can't be opened or its pixels can't be read.
    """

    def __init__(self, path: str | Path, *, mpp: float | None = None) -> None:
        self.path = Path(path)
        if mpp is not None and not mpp > 0:
            raise SlideError(f"mpp must be above 0, got {mpp}")
        self._state = threading.Condition()
        self._reads_under_way = 0
        self._closed = False
        self._backend = open_backend(self.path)
        self.mpp_override = mpp
        try:
            self._probe()
        except SlideError:
            self._backend.close()
            raise

    def _probe(self) -> None:
        # Some broken files open and fail at the first read. Better refused now than after the coffee.
        level = len(self.level_dimensions_xy) - 1
        width, height = self.level_dimensions_xy[level]
        scale = self.level_downsamples[level]
        left, top = max(0, width // 2 - 128), max(0, height // 2 - 128)
        try:
            self.read_region(
                (int(left * scale), int(top * scale)), level, (min(256, width), min(256, height))
            )
        except SlideError as error:
            raise SlideError(f"{self.path.name} opens, but its pixels can't be read: {error}") from error

    @property
    def name(self) -> str:
        """File name without its ending: the slide's id where no table gives one."""
        return self.path.stem

    @property
    def level_dimensions_xy(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level in its own pixels."""
        return self._backend.level_dimensions_xy

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level."""
        return self._backend.level_downsamples

    @property
    def bounds_l0_xywh(self) -> tuple[int, int, int, int]:
        """The scanned area: left, top, width, height in level-0 pixels."""
        return self._backend.bounds_l0_xywh

    @property
    def has_mpp(self) -> bool:
        """Whether the pixel size is known."""
        return self.mpp_override is not None or self._backend.mpp_xy is not None

    @property
    def mpp_xy(self) -> tuple[float, float]:
        """µm per level-0 pixel along x and y.

        Raises
        ------
        UnknownMppError
        """
        if self.mpp_override is not None:
            return (self.mpp_override, self.mpp_override)
        if self._backend.mpp_xy is None:
            raise UnknownMppError(
                f"{self.path.name} doesn't say how many µm a pixel measures. Give it: --mpp on the command "
                "line, the column 'mpp' in a slide table, or the field 'µm/px' in the viewer "
                "(0.25 is usual for 40x, 0.5 for 20x)."
            )
        return self._backend.mpp_xy

    @property
    def level_mpps(self) -> tuple[float, ...]:
        """µm/px of each level, of the coarser axis where they differ."""
        coarser = max(self.mpp_xy)
        return tuple(coarser * downsample for downsample in self.level_downsamples)

    @property
    def metadata(self) -> dict[str, object]:
        """What may be shown and logged: no identifiers, no labels, no free text of the scanner."""
        return {
            "vendor": self._backend.vendor,
            "backend": self._backend.name,
            "levels": len(self.level_dimensions_xy),
            "size_px": self.level_dimensions_xy[0],
            "mpp": self.mpp_xy if self.has_mpp else None,
            "objective_power": self._backend.objective_power,
            "bounds_l0_xywh": self.bounds_l0_xywh,
        }

    def fingerprint(self) -> str:
        """A hash that tells whether a file is the same slide: its size, and its first and last MiB."""
        path = self.path
        if path.is_dir():
            path = sorted(entry for entry in path.iterdir() if entry.is_file())[0]
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
        return digest.hexdigest()

    def read_region(
        self, location_l0_xy: tuple[int, int], level: int, size_xy: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Pixels of one level.

        Parameters
        ----------
        location_l0_xy : (int, int)
            Top left corner in level-0 pixels; may lie outside the slide.
        level : int
        size_xy : (int, int)
            Width and height in pixels of that level.

        Returns
        -------
        (height, width, 3) uint8 array
            RGB, white where nothing was scanned.
        """
        with self._reading():
            return self._backend.read_region(location_l0_xy, level, size_xy)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._state:
            if self._closed:
                raise SlideError(f"{self.path.name} is closed")
            self._reads_under_way += 1
        try:
            yield
        finally:
            with self._state:
                self._reads_under_way -= 1
                self._state.notify_all()

    def close(self) -> None:
        """Close the file once the reads under way are done; later reads raise SlideError."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._state.wait_for(lambda: self._reads_under_way == 0)
        self._backend.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.level_dimensions_xy[0]
        return f"Slide({self.path.name!r}, {width} x {height} px, {len(self.level_dimensions_xy)} levels)"

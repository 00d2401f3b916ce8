"""Places of a slide that can't be decoded: shown as such, counted, and never taken for glass or tissue."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError

MAX_DAMAGED = 1024
"""Places beyond which a file isn't read any further: each may cost opening it again."""

_DARK, _LIGHT, _STRIPE_PX = 104, 152, 8
"""Grey stripes: no stain has their colour, so no mask takes them for tissue, and they are no white glass."""

Place = tuple[int, int, int, int, int]
"""Level; left, top, width and height in its pixels."""


class Damage:
    """The damaged places of one file, the same for all open handles of it: they share the cache of tiles, too.

    Parameters
    ----------
    file : hashable, optional
        The file's state, where `damage_of` is to know it.
    """

    def __init__(self, file: Hashable = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._places: set[Place] = set()

    def add(self, place: Place, why: str) -> None:
        """Note a place.

        Raises
        ------
        SlideError
            Where there are too many.
        """
        if self._file is not None:
            _damaged[self._file] = self
        with self._lock:
            self._places.add(place)
            if len(self._places) > MAX_DAMAGED:
                raise SlideError(
                    f"more than {MAX_DAMAGED} places of the slide can't be decoded ({why}): copy the file again"
                )

    @property
    def places(self) -> frozenset[Place]:
        """What was found so far: only what was read is known."""
        with self._lock:
            return frozenset(self._places)

    def touches(self, level: int, left: int, top: int, width: int, height: int) -> bool:
        """Whether a damaged place has a pixel in common with a rectangle of a level."""
        return any(
            at == level and x < left + width and left < x + w and y < top + height and top < y + h
            for at, x, y, w, h in self.places
        )

    def covers(self, level: int, left: int, top: int, width: int, height: int) -> bool:
        """Whether damaged places hold all of a (small) rectangle of a level."""
        damaged = np.zeros((height, width), np.bool_)
        for at, x, y, w, h in self.places:
            if at == level:
                damaged[max(0, y - top) : max(0, y + h - top), max(0, x - left) : max(0, x + w - left)] = True
        return bool(damaged.all())


_known: WeakValueDictionary[Hashable, Damage] = WeakValueDictionary()
_damaged: dict[Hashable, Damage] = {}
_known_lock = threading.Lock()


def damage_of(file: Hashable) -> Damage:
    """The damage of a file state (see `file_key`): from the first handle of it to the last one.

    Where places are damaged, it is known to the end of the process: their pixels are averaged into what the tile cache
    keeps.
    """
    with _known_lock:
        found = _known.get(file)
        if found is None:
            found = _known[file] = Damage(file)
        return found


def hatch(left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) that stand for a damaged rectangle of a level: grey stripes that continue over it."""
    across = np.arange(left, left + width)[None, :] + np.arange(top, top + height)[:, None]
    grey = np.where(across // _STRIPE_PX % 2, _LIGHT, _DARK).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)

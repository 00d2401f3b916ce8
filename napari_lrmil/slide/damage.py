"""Places of a slide that can't be decoded: shown as such, counted, and never taken for glass or tissue."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.cache import shared_cache

MAX_DAMAGED = 1024
"""Places beyond which a file isn't read any further: each may cost opening it again."""

MAX_DAMAGED_FILES = 64
"""Damaged files that are remembered once they are closed."""

_DARK, _LIGHT, _STRIPE_PX = 104, 152, 8
"""Grey stripes: no stain has their colour, so no mask takes them for tissue, and they are no white glass."""

Place = tuple[int, int, int, int, int]
"""Level; left, top, width and height in its pixels."""


class Damage:
    """The damaged places of one file, the same for all open handles of it: they share the cache of tiles, too.

    Parameters
    ----------
    file : hashable, optional
        What names the file, see `damage_of`.
    """

    def __init__(self, file: Hashable = None) -> None:
        self._lock = threading.Lock()
        self._places: set[Place] = set()
        self._file = file

    def add(self, place: Place, why: object) -> None:
        """Note a place.

        Raises
        ------
        SlideError
            Where there are too many.
        """
        with self._lock:
            self._places.add(place)
            if len(self._places) > MAX_DAMAGED:
                raise SlideError(
                    f"more than {MAX_DAMAGED} places of the slide can't be decoded ({why}): copy the file again"
                )
        if self._file is not None:
            _remember(self._file, self)

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


_open: WeakValueDictionary[Hashable, Damage] = WeakValueDictionary()
_damaged: OrderedDict[Hashable, Damage] = OrderedDict()
"""Those with places, the last used last."""
_known_lock = threading.Lock()


def damage_of(file: Hashable) -> Damage:
    """The damage of a file in its state (see `file_key`), the same for all handles of it.

    It outlives them where there is some, because pixels of damaged places are averaged into what the tile cache keeps: of
    the last `MAX_DAMAGED_FILES` files. When the older half of them goes, so does what the cache holds.
    """
    with _known_lock:
        damage = _open.get(file)
        if damage is None:
            damage = _open[file] = Damage(file)
        if file in _damaged:
            _damaged.move_to_end(file)
        return damage


def _remember(file: Hashable, damage: Damage) -> None:
    with _known_lock:
        _damaged[file] = damage
        if len(_damaged) <= MAX_DAMAGED_FILES:
            return
        before = len(_damaged)
        for old in list(_damaged)[: MAX_DAMAGED_FILES // 2]:
            del _damaged[old]
            if old in _open:  # by an open handle, which may still average what is damaged
                _damaged[old] = _open[old]
        forgotten = len(_damaged) < before
    if forgotten:
        shared_cache().clear()


def hatch(left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) that stand for a damaged rectangle of a level: grey stripes that continue over it."""
    across = np.arange(left, left + width)[None, :] + np.arange(top, top + height)[:, None]
    grey = np.where(across // _STRIPE_PX % 2, _LIGHT, _DARK).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)

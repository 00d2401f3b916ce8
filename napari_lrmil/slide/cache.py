"""Decoded tiles kept for the next read: one cache a process, bounded in bytes, for all slides and readers."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

DEFAULT_CACHE_BYTES = 192 * 2**20
"""Some 1,000 tiles of 256 px: several screens, or the seam rows of a wide slide's next line of tiles."""


class TileCache:
    """Least recently used tiles, bounded in bytes.

    Parameters
    ----------
    max_bytes : int
        0 keeps nothing.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._being_made: dict[Hashable, Future[NDArray[np.uint8] | None]] = {}
        self._max_bytes = max_bytes
        self._bytes = 0

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._max_bytes

    @property
    def used_bytes(self) -> int:
        """Held now; never above `max_bytes`."""
        return self._bytes

    def get(
        self, key: Hashable, make: Callable[[], NDArray[np.uint8]], *, keep: bool = True
    ) -> NDArray[np.uint8]:
        """The tile of `key`, made by `make` where it isn't held.

        Threads that want the same tile at once wait for the first of them instead of decoding it again.
        Where `make` raises, its own caller gets the error and the others try for themselves.

        Without `keep`, a tile that has to be made isn't held and is the caller's own: it evicts nothing, and
        memory that is used again at once is twice as fast to decode into.

        Returns
        -------
        array
            Read-only where others hold it too.
        """
        if not keep:
            with self._lock:
                held = self._tiles.get(key)
            return make() if held is None else held
        while True:
            with self._lock:
                tile = self._tiles.get(key)
                if tile is not None:
                    self._tiles.move_to_end(key)
                    return tile
                others = self._being_made.get(key)
                if others is None:
                    mine: Future[NDArray[np.uint8] | None] = Future()
                    self._being_made[key] = mine
            if others is None:
                return self._make(key, make, mine)
            tile = others.result()
            if tile is not None:
                return tile

    def _make(
        self,
        key: Hashable,
        make: Callable[[], NDArray[np.uint8]],
        mine: Future[NDArray[np.uint8] | None],
    ) -> NDArray[np.uint8]:
        tile: NDArray[np.uint8] | None = None
        try:
            tile = make()
            tile.setflags(write=False)
            return tile
        finally:
            with self._lock:
                del self._being_made[key]
                if tile is not None and tile.nbytes <= self._max_bytes:
                    self._tiles[key] = tile
                    self._bytes += tile.nbytes
                    self._evict()
            mine.set_result(tile)

    def _evict(self) -> None:
        while self._bytes > self._max_bytes:
            _, tile = self._tiles.popitem(last=False)
            self._bytes -= tile.nbytes

    def resize(self, max_bytes: int) -> None:
        """Change the bound, dropping what is above it."""
        if max_bytes < 0:
            raise ValueError(f"a cache can't hold {max_bytes} bytes")
        with self._lock:
            self._max_bytes = max_bytes
            self._evict()

    def clear(self) -> None:
        """Drop every tile."""
        with self._lock:
            self._tiles.clear()
            self._bytes = 0


@functools.cache
def shared_cache() -> TileCache:
    """The process's one cache. Keys name the file, so two handles of one slide share its tiles."""
    return TileCache()

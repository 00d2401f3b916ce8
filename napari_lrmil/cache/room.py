"""What lies in a cache, and making room in it: the least recently used leave first."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from napari_lrmil.atomic import write_text
from napari_lrmil.cache.files import remove_folder, remove_stale_scratch

DEFAULT_LIMIT_BYTES = 2 * 10**9
LIMIT_NAME = "limit.json"
RESULTS, THUMBNAILS = "results", "thumbnails"
JSON_NAME = "prediction.json"
"""Its time of change is the last use of the result beside it."""

_KEEP_SHARE = 0.9
"""Of the limit that stays when room is made, so that not every new result makes some."""


class Room:
    """The limit of a cache folder, and what keeps to it. Threads may share it.

    Parameters
    ----------
    root : Path
    limit_bytes : int, optional
        Default: what `set_limit` stored in the folder, else 2 GB.
    """

    def __init__(self, root: Path, limit_bytes: int | None) -> None:
        self._root = root
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._total_bytes: int | None = None

    @property
    def limit_bytes(self) -> int:
        """How much may be kept."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        try:
            return int(json.loads((self._root / LIMIT_NAME).read_text(encoding="utf-8"))["limit_bytes"])
        except (OSError, ValueError, LookupError, TypeError):
            return DEFAULT_LIMIT_BYTES

    def set_limit(self, limit_bytes: int) -> None:
        """Store the limit in the folder, and keep to it from now on."""
        write_text(self._root / LIMIT_NAME, json.dumps({"limit_bytes": limit_bytes}) + "\n")
        self._limit_bytes = None
        self.forget()
        self.make(kept=None, added_bytes=0)

    def forget(self) -> None:
        """Look again at the next call of `make`."""
        with self._lock:
            self._total_bytes = None

    def make(self, *, kept: Path | None, added_bytes: int) -> None:
        """Keep to the limit after `added_bytes` came; `kept` stays in any case.

        The folder is walked at first, then only when it is full.
        """
        with self._lock:
            limit = self.limit_bytes
            if self._total_bytes is not None:
                self._total_bytes += added_bytes
                if self._total_bytes <= limit:
                    return
            for kind in (RESULTS, THUMBNAILS):
                for shelf in listed(self._root / kind):
                    remove_stale_scratch(shelf)
            found = sorted(entries(self._root))
            total = sum(n_bytes for _, n_bytes, _ in found)
            for _, n_bytes, path in found if total > limit else []:
                if total <= limit * _KEEP_SHARE:
                    break
                if path != kept and _removed(path):
                    total -= n_bytes
            self._total_bytes = total


def entries(root: Path) -> Iterator[tuple[float, int, Path]]:
    """(last use, bytes, path) of each result and thumbnail."""
    for kind in (RESULTS, THUMBNAILS):
        for shelf in listed(root / kind):
            for path in listed(shelf):
                try:
                    stats = {file.name: file.stat() for file in (listed(path) if kind == RESULTS else [path])}
                except OSError:  # another process took it away meanwhile
                    continue
                used = stats.get(JSON_NAME if kind == RESULTS else path.name)
                # A result without its JSON is of no use: it goes first.
                yield used.st_mtime if used else 0.0, sum(stat.st_size for stat in stats.values()), path


def is_result(path: Path) -> bool:
    """Whether one of `entries` is a result; else it is a thumbnail."""
    return path.parent.parent.name == RESULTS


def touch(path: Path) -> None:
    """Used just now."""
    try:
        os.utime(path)
    except OSError:  # somebody else's cache: read-only is fine
        return


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, scratch left out; nothing where it is absent."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _removed(path: Path) -> bool:
    try:
        if is_result(path):
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # in use, on systems where that matters
        return False
    return True

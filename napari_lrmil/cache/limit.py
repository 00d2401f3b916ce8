"""How much a cache may hold: what lies in it, and deleting the least recently used when it is full."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from napari_lrmil.atomic import remove_folder, remove_stale_scratch, write_text
from napari_lrmil.outside import parse_json, read_file

DEFAULT_LIMIT_BYTES = 2 * 10**9
LIMIT_NAME = "limit.json"
RESULTS, THUMBNAILS = "results", "thumbnails"
JSON_NAME = "prediction.json"
"""Its time of change is the last use of the result beside it."""

_KEEP_SHARE = 0.9
"""Of the limit that stays when something is deleted, so that not every new result deletes some."""
_CLOCKS_DIFFER_S = 600.0
"""Between the computers that share a cache."""
_MOST_BYTES = 2**20
_STALE_S = 24 * 3600.0
"""Scratch this old was left by a process that was killed."""


class SizeLimit:
    """The limit of a cache folder, and keeping to it. Threads may share it.

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
            limit = parse_json(read_file(self._root / LIMIT_NAME, most_bytes=_MOST_BYTES))["limit_bytes"]
        except (OSError, ValueError, LookupError, TypeError):
            return DEFAULT_LIMIT_BYTES
        return limit if type(limit) is int and limit >= 0 else DEFAULT_LIMIT_BYTES

    def set_limit(self, limit_bytes: int) -> None:
        """Store the limit in the folder, and keep to it from now on."""
        write_text(self._root / LIMIT_NAME, json.dumps({"limit_bytes": limit_bytes}) + "\n")
        self._limit_bytes = None
        self.measure_again()
        self.enforce(keep=None, added_bytes=0)

    def measure_again(self) -> None:
        """Have the next call of `enforce` look what lies in the folder."""
        with self._lock:
            self._total_bytes = None

    def enforce(self, *, keep: Path | None, added_bytes: int) -> None:
        """Delete what is too much after `added_bytes` came; `keep` stays in any case.

        The folder is walked at first, then only when it is full.
        """
        with self._lock:
            limit = self.limit_bytes
            if self._total_bytes is not None:
                self._total_bytes += added_bytes
                if self._total_bytes <= limit:
                    return
            for kind in (RESULTS, THUMBNAILS):
                for shelf in visible_in(self._root / kind):
                    remove_stale_scratch(shelf, older_than_s=_STALE_S)
            # What was used in the future was so before the clock was set back: it is older than it looks.
            latest = time.time() + _CLOCKS_DIFFER_S
            found = sorted(entries(self._root), key=lambda entry: (entry[0] <= latest, entry))
            total = sum(n_bytes for _, n_bytes, _ in found)
            for _, n_bytes, path in found if total > limit else []:
                if total <= limit * _KEEP_SHARE:
                    break
                if path != keep and _removed(path):
                    total -= n_bytes
            self._total_bytes = total


def entries(root: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield (last use, bytes, path) of each result and thumbnail."""
    for kind in (RESULTS, THUMBNAILS):
        for shelf in visible_in(root / kind):
            for path in visible_in(shelf):
                try:
                    stats = {
                        file.name: file.stat() for file in (visible_in(path) if kind == RESULTS else [path])
                    }
                except OSError:  # another process took it away meanwhile
                    continue
                used = stats.get(JSON_NAME if kind == RESULTS else path.name)
                # A result without its JSON is of no use: it goes first.
                yield used.st_mtime if used else 0.0, sum(stat.st_size for stat in stats.values()), path


def is_result(path: Path) -> bool:
    """Whether one of `entries` is a result; else it is a thumbnail."""
    return path.parent.parent.name == RESULTS


def mark_used(path: Path) -> None:
    """Note that an entry was used just now."""
    try:
        os.utime(path)
    except OSError:  # somebody else's cache: read-only is fine
        return


def visible_in(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name, scratch left out; nothing where it is absent."""
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

"""Folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TRIES = 20
STALE_S = 24 * 3600.0
"""Scratch folders this old were left by a process that was killed."""


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that takes its place when the block ends well, else vanishes.

    Several processes may do so at once: the last one stays, and each is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        yield scratch
        for attempt in range(_TRIES):
            try:
                # A folder can't be moved over another one that holds files.
                remove_folder(path)
                os.rename(scratch, path)
                return
            except OSError:
                # Another process was quicker, or (on Windows) still reads the old one.
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.01 * attempt)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Away at once for everyone who looks by its name; then piece by piece. Absent is fine."""
    gone = path.parent / f".{uuid.uuid4().hex}"
    try:
        os.rename(path, gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def remove_stale_scratch(folder: Path) -> None:
    """Delete what killed processes left in `folder`."""
    oldest = time.time() - STALE_S
    try:
        hidden = [entry for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return
    for entry in hidden:
        try:
            if entry.stat(follow_symlinks=False).st_mtime >= oldest:
                continue
        except OSError:  # its process has just finished with it
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)

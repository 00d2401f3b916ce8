"""Folders that are whole or absent, and files that are known by their state."""

from __future__ import annotations

import hashlib
import json
import os
import re
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


def state_of(path: Path) -> str | None:
    """A hash of where a slide is and of the sizes and times of its files; None where it is absent.

    It changes whenever the slide may have; looking takes no reading of pixels. The path can't be got back
    from it.
    """
    try:
        where = path.resolve()
        parts = [where, *sorted(_parts_beside(where))]
        seen = [(part.name, stat.st_size, stat.st_mtime_ns) for part in parts for stat in [part.stat()]]
    except OSError:
        return None
    return hashlib.sha256(json.dumps([str(where), seen]).encode()).hexdigest()


def vms_parts(path: Path) -> set[str]:
    """Names of the files that a Hamamatsu VMS or VMU index names."""
    try:
        return set(re.findall(r"=[ \t]*([^\r\n]+?)[ \t]*(?:\r|\n|$)", path.read_text("latin-1")))
    except OSError:
        return set()


def _parts_beside(path: Path) -> list[Path]:
    """The files that hold the pixels where `path` alone doesn't."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return [part for part in path.iterdir() if part.is_file()]
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        return [part for part in path.with_suffix("").iterdir() if part.is_file()]
    if suffix in (".vms", ".vmu"):
        named = (path.parent / name for name in vms_parts(path) if "/" not in name and "\\" not in name)
        return [part for part in named if part.is_file()]
    if suffix == ".dcm":  # the levels of a slide are files side by side
        return [part for part in path.parent.iterdir() if part.suffix.lower() == ".dcm" and part != path]
    return []

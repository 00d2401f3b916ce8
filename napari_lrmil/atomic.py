"""Write a file or a folder whole or not at all: beside its place, then moved there.

A process that is killed meanwhile leaves what was there before, or nothing, and a hidden scratch beside it.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from napari_lrmil.table import spreadsheet_safe

_TRIES = 20
_RACES = (errno.ENOTEMPTY, errno.EEXIST)
"""What the losers of a race get; on Windows, who moves a folder that another one reads is refused access."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch file beside `path` that takes its place when the block ends well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The longest names leave no room for more.
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}-", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        give_usual_mode(scratch)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


LONGEST_NAME_BYTES = 240
"""Most file systems take names of 255 bytes, endings and all."""


def fitting_name(name: str, whole: str | None = None, *, most_bytes: int = LONGEST_NAME_BYTES) -> str:
    """Return a name that leaves room for an ending: itself, or where it is longer its beginning and a hash.

    Parameters
    ----------
    name : str
        Text that is encodable.
    whole : str, optional
        What it stands for, to be hashed; by default itself.
    most_bytes : int
        Above how many the hash comes.
    """
    raw = name.encode()
    if len(raw) <= most_bytes:
        return name
    mark = hashlib.sha256((name if whole is None else whole).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{raw[: LONGEST_NAME_BYTES - 9].decode('utf-8', 'ignore')}-{mark}"


def give_usual_mode(path: Path) -> None:
    """Let a file be read by whom the user's umask lets read new files.

    Scratch files, and what safetensors writes, are made for their owner's eyes alone.
    """
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    """The process's umask. Asking for it sets it for a moment, which other threads would notice; Linux tells it."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    with _umask_lock:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


_umask_lock = threading.Lock()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a scratch folder beside `path` that takes its place when the block ends well, else vanishes.

    What was there before stays until then, and where the last step fails. Several processes may do so at once: the last
    one's folder stays, and each is whole. For a moment between two folders there may be none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".writing-{path.name[:40]}-{uuid.uuid4().hex[:12]}"
    scratch.mkdir()
    try:
        yield scratch
        _put_folder(scratch, path)
    finally:
        _delete(scratch)


def remove_folder(path: Path) -> None:
    """Remove a folder at once for everyone who looks by its name; then piece by piece. Absent is fine."""
    gone = path.parent / f".writing-gone-{uuid.uuid4().hex[:12]}"
    try:
        os.replace(path, gone)
    except FileNotFoundError:
        return
    _delete(gone)


def remove_stale_scratch(folder: Path, *, older_than_s: float) -> None:
    """Delete what killed processes left in a folder that is ours alone: hidden entries that nobody has touched for long."""
    oldest = time.time() - older_than_s
    try:
        hidden = [entry for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return
    for entry in hidden:
        # Its process may just have finished with it.
        with suppress(OSError):
            if entry.stat(follow_symlinks=False).st_mtime < oldest:
                _delete(Path(entry.path))


def write_text(path: Path, text: str) -> None:
    """Write a text file, the same bytes on every system."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with a header line, the same bytes on every system; no text is left that a spreadsheet would run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        [spreadsheet_safe(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    write_text(path, text.getvalue())


def _put_folder(scratch: Path, path: Path) -> None:
    old = scratch.with_name(f"{scratch.name}-old")
    for attempt in range(_TRIES):
        # A folder can't be moved over another one that holds files.
        moved = False
        try:
            with suppress(FileNotFoundError):
                os.replace(path, old)
                moved = True
            os.replace(scratch, path)
            return
        except BaseException as error:
            if moved and not path.exists():
                with suppress(OSError):
                    os.replace(old, path)
            if attempt == _TRIES - 1 or not _is_race(error):
                raise
        finally:
            _delete(old)
        time.sleep(0.01 * attempt)


def _is_race(error: BaseException) -> bool:
    if sys.platform == "win32" and isinstance(error, PermissionError):
        return True
    return isinstance(error, OSError) and error.errno in _RACES


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)

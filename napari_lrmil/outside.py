"""What comes from outside: the bytes of a file, or an OSError; JSON, or a ValueError."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from napari_lrmil.errors import refuse_pipe

MOST_BYTES = 2**31


def read_file(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a file.

    Raises
    ------
    OSError
        Also where it is a pipe or a device, which never end, or is larger than `most_bytes`.
    """
    refuse_endless(path, most_bytes=most_bytes)
    return path.read_bytes()


def refuse_endless(path: Path, *, most_bytes: int = MOST_BYTES) -> None:
    """Refuse a file that reading wouldn't come to the end of in time.

    Raises
    ------
    OSError
        Where it is a pipe or a device, which never end, or is larger than `most_bytes`; or isn't there.
    """
    refuse_pipe(path)
    n_bytes = path.stat().st_size
    if n_bytes > most_bytes:
        raise OSError(errno.EFBIG, f"it has {n_bytes:,} bytes", str(path))


def parse_json(text: str | bytes) -> Any:  # whatever stands there: callers look at it
    """Return the value that a JSON text describes.

    Raises
    ------
    ValueError
        Where it isn't JSON, isn't text, or is nested too deeply or has numbers too long to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

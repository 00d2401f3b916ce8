"""Memory that nobody uses any more goes back to the system. No Qt."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """Ask the C library to give back what is free; where it has no such call, nothing happens.

    Tiles of slide after slide leave the cache in another order than they came, and what glibc then has free lies
    between things that live on. It keeps it and asks for more, some 7 MB a slide of 40,960 px without end. The call
    takes tens of milliseconds, without Python's lock.
    """
    if sys.platform != "linux":
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, such as musl
        return
    trim(0)

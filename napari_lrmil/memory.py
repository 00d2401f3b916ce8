"""Keep a process as small as what it holds, where the C library is glibc, and its garbage collection short.

glibc keeps freed blocks for the next time. Blocks of tens of MB that come and go in several threads, and tiles that leave
a cache in another order than they came, leave holes that it doesn't fill: it asks for more without end. Elsewhere
nothing is given back.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 8 * 2**20


def return_free_memory() -> None:
    """Give back what is free now.

    Some 7 MB a slide of 40,960 px in the window. The call takes tens of milliseconds, without Python's lock.
    """
    _call("malloc_trim", 0)


def give_large_blocks_back() -> None:
    """Have blocks of 8 MB or more go back as soon as they are freed, from now on.

    Some 3 MB a bag of 10,000 tiles in training, gigabytes an epoch.
    """
    _call("mallopt", _M_MMAP_THRESHOLD, _THRESHOLD_BYTES)


@contextmanager
def collect_only_new_objects() -> Iterator[None]:
    """Have garbage collection look only at objects that are made from now on, until the block ends.

    napari collects all garbage of the process whenever a layer is removed. With torch and its like loaded that takes
    longer than a change of slides itself, 0.2 to 0.7 s, and finds the layer only.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _call(name: str, *values: int) -> None:
    if sys.platform != "linux":
        return
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):  # another C library, such as musl
        return
    function(*values)

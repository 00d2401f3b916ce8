"""Keep the process as small as what it holds.

The C library keeps freed blocks for the next time, and blocks of tens of MB that come and go in several threads leave
holes that it doesn't fill: 3 MB a bag of 10,000 tiles, gigabytes an epoch.
"""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 8 * 2**20


def give_large_blocks_back() -> None:
    """Have blocks of 8 MB or more go back to the system as soon as they are freed (glibc; elsewhere nothing happens)."""
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    except (AttributeError, OSError, TypeError):
        return

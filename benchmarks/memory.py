"""Memory of this process."""

from __future__ import annotations

import resource
import sys


def peak_bytes() -> int:
    """Return the peak resident memory so far (Linux and macOS)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

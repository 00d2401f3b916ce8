"""Whole-slide classification from low-resolution tiles alone, in napari and on the command line."""

__version__ = "0.1.0"

RESULT_VERSION = 4
"""Raised whenever the same slide and bundle would give another result: results that were kept before aren't shown then."""

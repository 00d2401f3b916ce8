"""How slide files are called."""

from __future__ import annotations

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide"})
"""Only slides are called so."""
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
"""Slides and ordinary images are called so."""

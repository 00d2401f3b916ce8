"""Files that a cache is told of as if they were open slides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.cache import ResultCache


@dataclass(frozen=True)
class SeenSlide:
    """An open slide as far as the cache looks at it."""

    path: Path
    stated_mpp_xy: tuple[float, float] | None = (0.5, 0.5)

    def check_unchanged(self) -> None:
        """Nothing has changed."""


def remember(
    cache: ResultCache, path: Path, fingerprint: str, mpp_xy: tuple[float, float] | None = (0.5, 0.5)
) -> None:
    """Make a cache know a slide."""
    cache.remember_slide(SeenSlide(path, mpp_xy), fingerprint)

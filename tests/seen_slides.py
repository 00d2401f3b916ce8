"""Slides as the cache knows them, and verdicts on them: what the window does step by step, done at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.cache import ResultCache
from napari_lrmil.worklist import Worklist, WorklistItem
from napari_lrmil.worklist.reviews import Verdict


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


def load_results(
    worklist: Worklist, cache: ResultCache, bundle_sha256: str, key_of: Callable[[tuple[float, float]], str]
) -> list[WorklistItem]:
    """Take in what a cache holds of a list's slides; those that have a result now."""
    found = []
    for item in list(worklist):
        result = cache.known_summary(item.path, bundle_sha256, key_of, mpp=item.mpp)
        if result is not None:
            found.append(worklist.set_result(item.path, result))
    return found


def judge(
    worklist: Worklist, path: Path, verdict: Verdict | None, note: str | None = None, *, reviewer: str = ""
) -> WorklistItem:
    """Note a verdict and write it to the disk, which raises WorklistError where it can't be."""
    worklist.note_verdict(path, verdict, note, reviewer=reviewer)
    try:
        worklist.reviews.write_waiting()
    finally:
        worklist.look_what_is_saved()
    return worklist[path]

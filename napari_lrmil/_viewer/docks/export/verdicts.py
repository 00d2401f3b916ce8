"""What the reviewer said of a slide, out of the file beside it. No Qt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.worklist import REVIEW_NAME, ReviewFile, WorklistError

if TYPE_CHECKING:
    from napari_lrmil.export.slide_report import Verdict

_FOLDERS_UP = 3
"""A worklist's folder may lie above the slide's."""


def verdict_of(slide_path: Path) -> Verdict | None:
    """The latest verdict in the review file of the slide's folder, or of one above it.

    None where there is none, or its file can't be read: a report without it is better than no report.
    """
    from napari_lrmil.export.slide_report import Verdict

    for folder in list(slide_path.absolute().parents)[:_FOLDERS_UP]:
        try:
            file = ReviewFile(folder)
        except WorklistError:
            continue
        if not (file.beside.exists() or file.fallback.exists()):
            continue
        review = file.latest(slide_path)
        if review is not None:
            return Verdict(review.verdict, review.note, review.time or None)
    return None


__all__ = ["REVIEW_NAME", "verdict_of"]

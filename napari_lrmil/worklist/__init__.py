"""Worklists: the slides of a folder or table, their results, and the reviewer's verdicts."""

from napari_lrmil.errors import WorklistError
from napari_lrmil.worklist.listing import ListedSlide, find_slides, list_slides, read_slide_table
from napari_lrmil.worklist.model import UNKNOWN_FILE, Order, Status, Worklist, WorklistItem
from napari_lrmil.worklist.reviews import (
    REVIEW_NAME,
    VERDICTS,
    Check,
    Refused,
    Review,
    ReviewFile,
    Saved,
    Verdict,
)
from napari_lrmil.worklist.thumbnails import thumbnail

__all__ = [
    "REVIEW_NAME",
    "UNKNOWN_FILE",
    "VERDICTS",
    "Check",
    "ListedSlide",
    "Order",
    "Refused",
    "Review",
    "ReviewFile",
    "Saved",
    "Status",
    "Verdict",
    "Worklist",
    "WorklistError",
    "WorklistItem",
    "find_slides",
    "list_slides",
    "read_slide_table",
    "thumbnail",
]

"""What the export dock shows, as plain values, and its wording. No Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NO_SLIDE = "Open and classify a slide first."
NO_RESULT = "Classify the slide first: what is exported is its result."
NO_MODEL = "For reports, load the model that this result came from, or classify again."
CANCELLING = "Cancelling …"
CANCELLED = "Cancelled. Nothing was written."


@dataclass(frozen=True)
class ExportPanel:
    """Everything the dock shows. `progress` is (done, total), (0, 0) where the end isn't known; None at rest."""

    can_export: bool = False
    can_report: bool = False
    hint: str = ""
    progress: tuple[int, int] | None = None
    progress_text: str = ""
    cancelling: bool = False
    success: str = ""
    folder: str = ""
    error: str = ""


def saved_text(paths: Sequence[Path]) -> str:
    """Which files there are now, and where."""
    return f"Saved {' and '.join(path.name for path in paths)} in {paths[0].parent}."


def replace_text(names: Sequence[str]) -> str:
    """What to ask before files are replaced."""
    are, it = ("is", "it") if len(names) == 1 else ("are", "them")
    return f"{' and '.join(names)} {are} already there. Replace {it}?"

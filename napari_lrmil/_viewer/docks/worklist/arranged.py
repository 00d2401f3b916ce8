"""The rows that are shown: ordered, filtered, made anew only when something changed. No Qt."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil._viewer.docks.worklist.rows import Show, shown
from napari_lrmil.worklist import Order, Worklist, WorklistItem


class Arranged:
    """Order and filter, and what they make of a worklist."""

    def __init__(self) -> None:
        self.order, self.which, self.text = Order.UNSURE_FIRST, Show.ALL, ""
        self._ordered: list[WorklistItem] | None = None
        self._rows: tuple[WorklistItem, ...] | None = None
        self._at = -1

    def choose(self, order: Order | None, which: Show | None, text: str | None) -> None:
        """Change what is given."""
        self.order = self.order if order is None else order
        self.which = self.which if which is None else which
        self.text = self.text if text is None else text
        self._rows = None
        if order is not None:
            self._ordered = None

    def stale(self) -> None:
        """The list has changed."""
        self._rows = self._ordered = None

    def start_over(self) -> None:
        """It is another list."""
        self.stale()
        self._at = -1

    def rows(self, worklist: Worklist | None) -> tuple[WorklistItem, ...]:
        """The rows; the same object as long as nothing has changed."""
        if self._ordered is None:
            self._ordered = worklist.ordered(self.order) if worklist is not None else []
        if self._rows is None:
            self._rows = tuple(item for item in self._ordered if shown(item, self.which, self.text))
        return self._rows

    def remember(self, worklist: Worklist | None, path: Path | None) -> None:
        """Note where the open slide stands, for when its row goes away."""
        row = self._row_of(worklist, path)
        self._at = row if row >= 0 else self._at

    def neighbour(self, worklist: Worklist | None, path: Path | None, step: int) -> WorklistItem | None:
        """The row after (1) or before (-1) a slide; None at the end.

        A slide whose row went away, as by a verdict that the filter leaves out, still has its neighbours.
        """
        rows = self.rows(worklist)
        here = self._row_of(worklist, path)
        if here >= 0:
            target = here + step
        elif path is not None and self._at >= 0:
            target = self._at if step > 0 else self._at - 1
        else:
            target = 0 if step > 0 else len(rows) - 1
        return rows[target] if 0 <= target < len(rows) else None

    def _row_of(self, worklist: Worklist | None, path: Path | None) -> int:
        if path is None:
            return -1
        return next((row for row, item in enumerate(self.rows(worklist)) if item.path == path), -1)

"""What a run says on the terminal: steps, bars with time left, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class Advance(Protocol):
    """Moves a bar; `note` replaces the text behind it."""

    def __call__(self, n: int = 1, *, note: str = "") -> None: ...


class Reporter:
    """One console for a run. Bars where it is a terminal, a line a step where it is a file."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """Show a progress bar with the time left, and at the end the time it took."""
        columns = (
            # Within 80 columns: a cut number is worse than a short bar.
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(description, total=total, note="")

            def advance(n: int = 1, *, note: str = "") -> None:
                progress.advance(task, n)
                if note:
                    progress.update(task, note=note)

            yield advance

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Iterate under a bar."""
        with self.bar(description, total) as advance:
            for item in items:
                yield item
                advance()

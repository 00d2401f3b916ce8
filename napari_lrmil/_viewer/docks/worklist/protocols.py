"""What the worklist's presenter needs of the background. No Qt, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_lrmil.batch import BatchEvent
from napari_lrmil.cache import ResultSummary
from napari_lrmil.worklist import Worklist, WorklistItem

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo, ModelBundle

Found = Sequence[tuple[Path, ResultSummary]]
"""Results by the path of their slide."""


class ListJobs(Protocol):
    """Work in the background; reports come in the window's thread."""

    def open_list(
        self, path: Path, *, recursive: bool, done: Callable[[Worklist], None], failed: Callable[[str], None]
    ) -> None: ...
    def look_up(
        self, items: Sequence[WorklistItem], info: BundleInfo, found: Callable[[Found], None]
    ) -> None: ...


class BatchJobs(Protocol):
    """A batch in the background; reports come in the window's thread, none after `cancel_batch`."""

    def classify(
        self,
        items: Sequence[WorklistItem],
        bundle: ModelBundle,
        device: str,
        *,
        happened: Callable[[BatchEvent], None],
        done: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None: ...
    def cancel_batch(self) -> None: ...

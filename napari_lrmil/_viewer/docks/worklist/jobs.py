"""Listing, looking up, thumbnails and batches in threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.background import Background, in_one_step
from napari_lrmil._viewer.docks.worklist.saving import TableRequest, table_steps
from napari_lrmil._viewer.models import import_models
from napari_lrmil.batch import BatchEvent, classify
from napari_lrmil.cache import ResultCache, ResultKeys, ResultSummary
from napari_lrmil.worklist import Worklist, WorklistItem

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo, ModelBundle

_CHUNK = 64
_BATCH_ON_CPU, _BATCH_ON_GPU = 16, 128
_LIST, _LOOK_UP, _CLASSIFY, _SAVE = "list", "look up", "classify", "save table"


class QtListJobs:
    """`ListJobs`, `BatchJobs` and `TableJobs` on Qt's thread pool.

    Parameters
    ----------
    background : Background
    """

    def __init__(self, background: Background) -> None:
        self._background = background

    def open_list(
        self, path: Path, *, recursive: bool, done: Callable[[Worklist], None], failed: Callable[[str], None]
    ) -> None:
        """List a folder or table; asking for another one drops the first."""
        steps = in_one_step(lambda: Worklist.open(path, recursive=recursive))
        self._background.start(_LIST, steps, done=done, failed=failed)

    def look_up(
        self,
        items: Sequence[WorklistItem],
        info: BundleInfo,
        found: Callable[[Sequence[tuple[Path, ResultSummary]]], None],
    ) -> None:
        """Results that the cache holds of slides it has seen."""
        self._background.start(_LOOK_UP, _summaries(items, info), progressed=found)

    def classify(
        self,
        items: Sequence[WorklistItem],
        bundle: ModelBundle,
        device: str,
        *,
        happened: Callable[[BatchEvent], None],
        done: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        """Classify slides one after the other."""
        self._background.start(
            _CLASSIFY,
            _batch(items, bundle, device),
            progressed=happened,
            done=lambda _: done(),
            failed=failed,
        )

    def cancel_batch(self) -> None:
        """Stop after the tiles under way."""
        self._background.cancel(_CLASSIFY)

    def save_table(
        self,
        request: TableRequest,
        *,
        progressed: Callable[[int], None],
        done: Callable[[Path], None],
        failed: Callable[[str], None],
    ) -> None:
        """Write results, verdicts and notes; closing the dock before it is written leaves no file."""
        self._background.start(_SAVE, table_steps(request), progressed=progressed, done=done, failed=failed)


def _summaries(
    items: Sequence[WorklistItem], info: BundleInfo
) -> Generator[list[tuple[Path, ResultSummary]], None, None]:
    cache, keys, sha = ResultCache(), ResultKeys(info), info.weights_sha256
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        results = [(item.path, cache.known_summary(item.path, sha, keys(item.mpp))) for item in chunk]
        yield [(path, summary) for path, summary in results if summary is not None]


def _batch(
    items: Sequence[WorklistItem], bundle: ModelBundle, device_name: str
) -> Generator[BatchEvent, None, None]:
    import_models()
    from napari_lrmil.model.device import resolve_device

    device = resolve_device(device_name)
    # A copy: the main dock may move its model to another device meanwhile.
    own = replace(bundle, encoder=deepcopy(bundle.encoder).to(device), mil=deepcopy(bundle.mil).to(device))
    batch_size = _BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU
    with closing(classify(items, own, cache=ResultCache(), device=device, batch_size=batch_size)) as events:
        yield from events

"""Classify slides on a dask.distributed cluster. Slides and cache lie on a file system that all share."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from napari_lrmil import __version__
from napari_lrmil.batch.events import (
    BatchEvent,
    BatchItem,
    Kind,
    known_results,
    unique,
)
from napari_lrmil.cache import ResultCache, ResultKeys, typed_mpp
from napari_lrmil.errors import LRMILError, readable, reason_of
from napari_lrmil.slide.tiles import MAX_DAMAGED_SHARE

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo, ModelBundle


class ClusterError(LRMILError):
    """The cluster can't be used."""


class Job(NamedTuple):
    """A slide as a worker gets it."""

    path: str
    mpp: float | None
    bundle: str
    bundle_sha256: str
    cache_root: str
    device: str
    batch_size: int
    threads: int
    max_damaged: float


class Answer(NamedTuple):
    """What a worker says of it: where the result is, or why there is none."""

    fingerprint: str
    mpp_xy: tuple[float, float] | None
    cached: bool
    error: str
    needs_mpp: bool = False


def classify_on_cluster(
    items: Sequence[BatchItem],
    bundle: str,
    info: BundleInfo,
    *,
    address: str,
    cache: ResultCache,
    device: str = "auto",
    batch_size: int = 32,
    threads: int = 2,
    max_damaged: float = MAX_DAMAGED_SHARE,
    timeout_s: float = 30.0,
) -> Generator[BatchEvent, None, None]:
    """As `classify`, on the workers of a cluster; the results come through the cache.

    Each worker process loads the bundle once. Where a worker dies, its slide goes to another one, and what
    it had finished isn't done again. Closing the generator withdraws the slides that haven't begun.

    Parameters
    ----------
    items : sequence of BatchItem
    bundle : str
        Name or folder, as the workers find it too.
    info : BundleInfo
        Of that bundle: a worker that finds another one refuses it.
    address : str
        Of the scheduler, such as ``tcp://host:8786``.
    cache : ResultCache
        Its folder is seen by all workers.
    device, batch_size, threads, max_damaged
        For each worker.
    timeout_s : float
        How long scheduler and first worker may take to answer.

    Yields
    ------
    BatchEvent
        FINISHED and FAILED.

    Raises
    ------
    ClusterError
    """
    keys = ResultKeys(info)
    waiting = yield from known_results(unique(items), cache, info.sha256, keys, max_damaged)
    if not waiting:
        return
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise ClusterError(
            "--cluster needs dask.distributed: pip install 'napari-lrmil[cluster]', here and on the workers"
        ) from error
    jobs = [
        Job(
            str(item.path.absolute()),
            _given_mpp(item, cache),
            bundle,
            info.sha256,
            str(cache.root.absolute()),
            device,
            batch_size,
            threads,
            max_damaged,
        )
        for item in waiting
    ]
    try:
        client = distributed.Client(address, timeout=timeout_s, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no scheduler answers at {address} ({error}). Start one with: dask scheduler, and workers with: dask "
            "worker ADDRESS"
        ) from error
    with client:
        _check_workers(client, address, timeout_s)
        # With keys of their own, a second run isn't given the failures of the first.
        futures = client.map(_classify, jobs, pure=False)
        items_of = {future.key: item for future, item in zip(futures, waiting, strict=True)}
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                yield _event(future, items_of[future.key], info.sha256, cache, keys)
        finally:
            client.cancel(futures)


def _given_mpp(item: BatchItem, cache: ResultCache) -> float | None:
    """The µm/px of the list, else what was typed here for a slide that was seen before: workers may know other homes."""
    fingerprint = None if item.mpp is not None else cache.known_fingerprint(item.path)
    return item.mpp if fingerprint is None else typed_mpp(fingerprint)


def _check_workers(client: Any, address: str, timeout_s: float) -> None:
    try:
        client.wait_for_workers(1, timeout=timeout_s)
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"the cluster at {address} has no workers. Start some with: dask worker {address}"
        ) from error
    try:
        versions = client.run(_version)
    except (ImportError, AttributeError) as error:
        raise ClusterError(
            f"the workers lack napari-lrmil {__version__} ({error}). Install it where they run."
        ) from error
    others = sorted({version for version in versions.values() if version != __version__})
    if others:
        raise ClusterError(
            f"workers have napari-lrmil {', '.join(others)}, here is {__version__}. Install the same version."
        )


def _event(
    future: Any, item: BatchItem, bundle_sha256: str, cache: ResultCache, keys: ResultKeys
) -> BatchEvent:
    try:
        # Both wait: a worker that dies now takes its answer with it, and another one gives it again.
        error = future.exception()
        if error is not None:
            return BatchEvent(Kind.FAILED, item.path, error=f"the cluster gave it up ({reason_of(error)})")
        answer = Answer(*future.result())
    except CancelledError as lost:
        raise ClusterError("the cluster was lost. What is finished is kept: run the same again.") from lost
    if answer.error or answer.mpp_xy is None:
        return BatchEvent(Kind.FAILED, item.path, error=answer.error, needs_mpp=answer.needs_mpp)
    # One result is as large as the slide has tiles: the client need not hold them all.
    key = keys(answer.mpp_xy)
    prediction = cache.get(answer.fingerprint, bundle_sha256, key, slide_name=readable(item.path.stem))
    if prediction is None:
        raise ClusterError(
            f"a worker's result isn't in {cache.root} here. Name a folder that all share with --cache-dir."
        )
    return BatchEvent(Kind.FINISHED, item.path, prediction=prediction, cached=answer.cached)


def _version() -> str:
    return __version__


_loading = threading.Lock()
_loaded: dict[tuple[str, str, str], ModelBundle] = {}


def _bundle_of(job: Job) -> ModelBundle:
    """The bundle of a job, loaded once a worker process."""
    from napari_lrmil.model.bundle import load_bundle
    from napari_lrmil.model.device import resolve_device

    key = (job.bundle, job.bundle_sha256, job.device)
    with _loading:
        if key not in _loaded:
            bundle = load_bundle(job.bundle, device=resolve_device(job.device))
            if bundle.info.sha256 != job.bundle_sha256:
                raise ClusterError(f"the bundle {job.bundle} on the worker is another one than the one here")
            _loaded.clear()
            _loaded[key] = bundle
        return _loaded[key]


def _classify(job: Job) -> Answer:
    """On a worker: one slide into the cache, unless it is there."""
    from napari_lrmil.batch.local import classify
    from napari_lrmil.model.device import resolve_device
    from napari_lrmil.worklist import ListedSlide

    path = Path(job.path)
    try:
        bundle = _bundle_of(job)
        events = classify(
            [ListedSlide(path, path.stem, job.mpp)],
            bundle,
            cache=ResultCache(job.cache_root),
            device=resolve_device(job.device),
            batch_size=job.batch_size,
            threads=job.threads,
            max_damaged=job.max_damaged,
        )
        with closing(events):
            for event in events:
                if event.prediction is not None:
                    # A result that couldn't be kept can't be handed over either.
                    made = event.prediction
                    return Answer(made.slide_fingerprint, made.mpp_xy, event.cached, event.note)
                if event.kind is Kind.FAILED:
                    return Answer("", None, False, event.error, needs_mpp=event.needs_mpp)
    except Exception as error:  # noqa: BLE001  # whatever a slide does, the others go on
        return Answer("", None, False, reason_of(error))
    raise AssertionError("a batch ended without a word of its slide")

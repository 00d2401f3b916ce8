"""Classify slides one after the other on this computer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil.batch.events import (
    BatchEvent,
    BatchItem,
    Kind,
    known_results,
    unique,
    whole_enough,
)
from napari_lrmil.cache import ResultCache, ResultKeys, open_slide
from napari_lrmil.errors import SlideChangedError, reason_of
from napari_lrmil.slide.tiles import MAX_DAMAGED_SHARE

if TYPE_CHECKING:
    import torch

    from napari_lrmil.model.bundle import ModelBundle, UnloadedBundle
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide


class _Opened(NamedTuple):
    """A slide ready to be read, or closed again with its result where the cache had one."""

    slide: Slide
    prediction: SlidePrediction | None


def classify(
    items: Sequence[BatchItem],
    bundle: ModelBundle | UnloadedBundle,
    *,
    cache: ResultCache | None,
    device: torch.device,
    batch_size: int = 32,
    threads: int = 2,
    max_damaged: float = MAX_DAMAGED_SHARE,
) -> Generator[BatchEvent, None, None]:
    """Classify slides; what the cache holds comes first and at once.

    Closing the generator cancels the rest and leaves nothing open; running it again goes on where it was,
    through the cache. While one slide is computed, the next one is opened.

    Parameters
    ----------
    items : sequence of BatchItem
    bundle : ModelBundle or UnloadedBundle
        On `device`. Where the cache knows all slides, it isn't loaded.
    cache : ResultCache, optional
        None: nothing is looked up or kept.
    device : torch.device
    batch_size : int
        Tiles a step.
    threads : int
        Tiles decoded at once.
    max_damaged : float
        Share of a slide's tiles with tissue that may be damaged; kept results with more are computed again.

    Yields
    ------
    BatchEvent
        For each slide STARTED and PROGRESS where it is computed, then FINISHED or FAILED.

    Raises
    ------
    BundleError, EncoderError
        Where the bundle can't be loaded.
    """
    from napari_lrmil.model.bundle import UnloadedBundle

    keys, sha = ResultKeys(bundle.info), bundle.info.sha256

    def opened(item: BatchItem) -> _Opened:
        slide = open_slide(item.path, mpp=item.mpp)
        try:
            if cache is None:
                return _Opened(slide, None)
            fingerprint = slide.fingerprint()
            cache.remember_slide(slide, fingerprint)
            found = cache.get(fingerprint, sha, keys(slide.mpp_xy), slide_name=slide.name)
            if found is not None and not whole_enough(found, max_damaged):
                found = None
        except BaseException:
            slide.close()
            raise
        if found is not None:
            slide.close()
        return _Opened(slide, found)

    def as_it_is_now(ready: Future[_Opened], item: BatchItem) -> _Opened:
        """What was opened ahead; opened anew where the file was replaced while it waited."""
        try:
            found = ready.result()
        except SlideChangedError:
            return opened(item)
        try:
            found.slide.check_unchanged()
        except SlideChangedError:
            found.slide.close()
            return opened(item)
        return found

    waiting = yield from known_results(unique(items), cache, sha, keys, max_damaged)
    if not waiting:
        return
    model = bundle.load() if isinstance(bundle, UnloadedBundle) else bundle
    following: Future[_Opened] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="lrmil-open") as pool:
        try:
            for number, item in enumerate(waiting):
                yield BatchEvent(Kind.STARTED, item.path)
                ready = following or pool.submit(opened, item)
                following = None
                try:
                    slide, prediction = as_it_is_now(ready, item)
                    if number + 1 < len(waiting):
                        following = pool.submit(opened, waiting[number + 1])
                    if prediction is not None:
                        yield BatchEvent(Kind.FINISHED, item.path, prediction=prediction, cached=True)
                        continue
                    with slide:
                        prediction = yield from _computed(
                            slide, item, model, device, batch_size, threads, max_damaged
                        )
                except Exception as error:  # noqa: BLE001  # whatever a slide does, the others go on
                    yield BatchEvent.failed(item.path, error)
                    continue
                note = _kept(cache, prediction, keys(prediction.mpp_xy))
                yield BatchEvent(Kind.FINISHED, item.path, prediction=prediction, note=note)
        finally:
            if following is not None and not following.cancel():
                _close(following)


def _computed(
    slide: Slide,
    item: BatchItem,
    bundle: ModelBundle,
    device: torch.device,
    batch_size: int,
    threads: int,
    max_damaged: float,
) -> Generator[BatchEvent, None, SlidePrediction]:
    """The prediction of a slide; yields its progress as events."""
    from napari_lrmil.predict import predict_slide

    steps = predict_slide(
        slide, bundle, device=device, batch_size=batch_size, threads=threads, max_damaged=max_damaged
    )
    with closing(steps):
        while True:
            try:
                progress = next(steps)
            except StopIteration as stop:
                prediction: SlidePrediction = stop.value
                return prediction
            yield BatchEvent(Kind.PROGRESS, item.path, progress=progress)


def _kept(cache: ResultCache | None, prediction: SlidePrediction, key: str) -> str:
    """Keep a result; one that can't be kept is still one, and why is returned."""
    if cache is not None:
        try:
            cache.put(prediction, key)
        except Exception as error:  # noqa: BLE001  # the prediction is whole
            return reason_of(error)
    return ""


def _close(ready: Future[_Opened]) -> None:
    try:
        slide = ready.result().slide
    except Exception:  # noqa: BLE001  # nobody waits for it any more
        return
    slide.close()

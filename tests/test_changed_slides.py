"""A slide has one state from the first read to the stored result: another file in its place is told, never mixed up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_lrmil.batch import BatchEvent, Kind, classify
from napari_lrmil.cache import ResultCache, result_key
from napari_lrmil.errors import SlideChangedError
from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import ListedSlide
from napari_lrmil.worklist.thumbnails import thumbnail

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> ModelBundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def slides(cohort: Path, tmp_path: Path) -> list[Path]:
    """Three slides, and a fourth one that is none of them."""
    found = sorted((cohort.parent / "slides").iterdir())[:4]
    return [Path(shutil.copy(path, tmp_path / f"s{number}.tif")) for number, path in enumerate(found)]


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "cache")


def put_in_place(other: Path, path: Path, *, by_rename: bool = True) -> None:
    """Have another slide at a path, as a sync does (by renaming) or a copy (by writing over)."""
    if by_rename:
        shutil.copy(other, path.with_name("new"))
        os.replace(path.with_name("new"), path)
    else:
        path.write_bytes(other.read_bytes())


def truth(path: Path, bundle: ModelBundle) -> SlidePrediction:
    with Slide(path) as slide:
        return run_to_end(predict_slide(slide, bundle, device=CPU))


@pytest.mark.parametrize("by_rename", [True, False])
def test_an_open_slide_whose_file_is_replaced_has_no_result(
    slides: list[Path], bundle: ModelBundle, by_rename: bool
) -> None:
    with Slide(slides[0]) as slide:
        before = slide.fingerprint()
        put_in_place(slides[3], slides[0], by_rename=by_rename)
        with pytest.raises(SlideChangedError, match=r"s0\.tif changed while it was read.*Open it again"):
            slide.fingerprint()
        with pytest.raises(SlideChangedError):
            run_to_end(predict_slide(slide, bundle, device=CPU))
    with Slide(slides[0]) as slide:
        assert slide.fingerprint() != before


@pytest.mark.parametrize("change", ["replaced", "touched", "gone"])
def test_what_happens_while_tiles_are_read_is_noticed(
    slides: list[Path], bundle: ModelBundle, change: str
) -> None:
    with Slide(slides[0]) as slide:
        steps = predict_slide(slide, bundle, device=CPU, batch_size=4)
        next(steps)
        if change == "replaced":
            put_in_place(slides[3], slides[0])
        elif change == "touched":  # still being written, perhaps
            os.utime(slides[0])
        else:
            slides[0].unlink()
        with pytest.raises(SlideChangedError):
            run_to_end(steps)


def events_of(
    slides: list[Path], bundle: ModelBundle, cache: ResultCache | None, at_start: Callable[[Path], None]
) -> Generator[BatchEvent, None, None]:
    """What a batch says; `at_start` is called when a slide's turn comes, the next one being open already."""
    events = classify([ListedSlide(path, path.stem) for path in slides], bundle, cache=cache, device=CPU)
    with closing(events):
        for event in events:
            if event.progress is not None and event.progress.tiles_done:
                at_start(event.path)
            yield event


@pytest.mark.parametrize("cached", [False, True])
def test_a_slide_replaced_while_it_waits_is_read_as_it_is_then(
    slides: list[Path], bundle: ModelBundle, cache: ResultCache, cached: bool
) -> None:
    """Also where the cache has the result of the one that was there, under another path."""
    right = truth(slides[3], bundle)
    if cached:
        old = truth(slides[1], bundle)
        cache.put(old, result_key(bundle.info, mpp_xy=old.mpp_xy))
    replaced: list[Path] = []

    def at_start(path: Path) -> None:
        if path == slides[0] and not replaced:
            put_in_place(slides[3], slides[1])
            replaced.append(slides[1])

    found = {
        event.path: event.prediction
        for event in events_of(slides[:2], bundle, cache, at_start)
        if event.kind is Kind.FINISHED
    }
    second = found[slides[1]]
    assert second is not None
    assert replaced
    assert second.slide_fingerprint == right.slide_fingerprint
    np.testing.assert_allclose(second.class_probabilities, right.class_probabilities, atol=1e-6)


def test_a_slide_replaced_while_it_is_read_fails_alone_and_is_not_kept(
    slides: list[Path], bundle: ModelBundle, cache: ResultCache
) -> None:
    def at_start(path: Path) -> None:
        if path == slides[1]:
            put_in_place(slides[3], slides[1])

    ends = {
        event.path.name: (event.kind, event.error)
        for event in events_of(slides[:3], bundle, cache, at_start)
        if event.kind in (Kind.FINISHED, Kind.FAILED)
    }
    assert [kind for kind, _ in ends.values()] == [Kind.FINISHED, Kind.FAILED, Kind.FINISHED]
    assert "s1.tif changed while it was read" in ends["s1.tif"][1]
    assert cache.size().n_results == 2
    # Another time it is read as what it is now.
    right = truth(slides[3], bundle)
    (event,) = [
        event
        for event in classify([ListedSlide(slides[1], "s1")], bundle, cache=cache, device=CPU)
        if event.kind is Kind.FINISHED
    ]
    assert event.prediction is not None
    assert event.prediction.slide_fingerprint == right.slide_fingerprint
    np.testing.assert_allclose(event.prediction.class_probabilities, right.class_probabilities, atol=1e-6)


def test_a_replaced_slide_is_not_remembered(slides: list[Path], cache: ResultCache) -> None:
    with Slide(slides[0]) as slide:
        fingerprint = slide.fingerprint()
        put_in_place(slides[3], slides[0])
        cache.remember_slide(slide, fingerprint)
    assert cache.known_slide(slides[0]) is None


def test_a_picture_is_of_the_slide_that_it_is_kept_for(
    slides: list[Path], cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_lrmil.worklist import thumbnails

    drawn = thumbnails.overview

    def replaced_meanwhile(slide: Slide, *arguments: object, **options: object) -> object:
        pixels = drawn(slide, *arguments, **options)  # type: ignore[arg-type]
        put_in_place(slides[3], slides[0])
        return pixels

    monkeypatch.setattr(thumbnails, "overview", replaced_meanwhile)
    with pytest.raises(SlideChangedError):
        thumbnail(slides[0], cache=cache)
    assert cache.size().n_thumbnails == 0

"""Batches: cached slides at once, errors that stay with their slide, nothing left behind when stopped."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seen_slides import load_results

from napari_lrmil import predict
from napari_lrmil.batch import (
    BatchEvent,
    ClusterError,
    Kind,
    classify,
    classify_on_cluster,
    follow,
)
from napari_lrmil.cache import CacheError, ResultCache, ResultKeys, pixel_sizes, result_key
from napari_lrmil.model import bundle as model_bundle
from napari_lrmil.model.bundle import ModelBundle, load_bundle, load_info
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import ListedSlide, Status, Worklist, list_slides

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> ModelBundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def folder(cohort: Path, tmp_path: Path) -> Path:
    """Four different slides."""
    where = tmp_path / "slides"
    where.mkdir()
    for number, path in enumerate(sorted((cohort.parent / "slides").iterdir())[:4]):
        shutil.copy(path, where / f"s{number}.tif")
    return where


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread and no open slide stays behind."""
    before = _open_files()
    yield
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("lrmil")]
    assert threads == []
    # Slides that other tests share for the whole session were open before.
    assert _open_files() - before == set()


def _open_files() -> set[str]:
    """Slides and arrays that this process holds open."""
    files = set()
    if sys.platform == "linux":
        for link in Path("/proc/self/fd").iterdir():
            try:
                files.add(os.readlink(link))
            except FileNotFoundError:
                continue
    return {name for name in files if name.endswith((".tif", ".svs", ".safetensors"))}


def run(folder: Path, bundle: ModelBundle, cache: ResultCache | None, **options: Any) -> list[BatchEvent]:
    return list(classify(list_slides(folder), bundle, cache=cache, device=CPU, **options))


def ends(events: list[BatchEvent]) -> list[tuple[str, Kind, bool]]:
    return [
        (event.path.name, event.kind, event.cached)
        for event in events
        if event.kind in (Kind.FINISHED, Kind.FAILED)
    ]


def test_results_are_those_of_one_slide_alone(folder: Path, bundle: ModelBundle, cache: ResultCache) -> None:
    events = run(folder, bundle, cache)
    assert ends(events) == [(f"s{number}.tif", Kind.FINISHED, False) for number in range(4)]
    of_first = [event for event in events if event.path.name == "s0.tif"]
    assert of_first[0].kind is Kind.STARTED
    steps = [event.progress for event in of_first if event.progress is not None]
    assert (steps[0].tiles_done, steps[-1].tiles_done) == (0, steps[-1].tiles_total)
    for event in events:
        if event.prediction is not None:
            with Slide(event.path) as slide:
                alone = run_to_end(predict_slide(slide, bundle, device=CPU))
            np.testing.assert_allclose(
                event.prediction.class_probabilities, alone.class_probabilities, atol=1e-6
            )
            assert event.prediction.slide_fingerprint == alone.slide_fingerprint


def test_running_again_computes_nothing(
    folder: Path, bundle: ModelBundle, cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {event.path: event.prediction for event in run(folder, bundle, cache) if event.prediction}
    # Known slides aren't even opened.
    monkeypatch.setattr(pixel_sizes, "Slide", lambda *_, **__: pytest.fail("opened"))
    again = run(folder, bundle, cache)
    assert ends(again) == [(f"s{number}.tif", Kind.FINISHED, True) for number in range(4)]
    assert len(again) == 4
    for event in again:
        before = first[event.path]
        assert before is not None
        assert event.prediction is not None
        assert event.prediction.slide_name == before.slide_name
        np.testing.assert_array_equal(event.prediction.attention_logits, before.attention_logits)


def test_moved_and_renamed_slides_are_known_by_what_they_hold(
    folder: Path, bundle: ModelBundle, cache: ResultCache, tmp_path: Path
) -> None:
    run(folder, bundle, cache)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "s0.tif").rename(moved / "renamed.tif")
    events = run(moved, bundle, cache)
    assert {(name, cached) for name, _, cached in ends(events)} == {
        (name, True) for name in ("renamed.tif", "s1.tif", "s2.tif", "s3.tif")
    }
    names = {event.prediction.slide_name for event in events if event.prediction}
    assert names == {"renamed", "s1", "s2", "s3"}


def test_cached_slides_come_first(folder: Path, bundle: ModelBundle, cache: ResultCache) -> None:
    last = ListedSlide(folder / "s3.tif", "s3")
    list(classify([last], bundle, cache=cache, device=CPU))
    events = run(folder, bundle, cache)
    assert events[0].path == last.path
    assert ends(events)[0] == ("s3.tif", Kind.FINISHED, True)
    assert len(ends(events)) == 4


def test_mpp_given_is_another_result(folder: Path, bundle: ModelBundle, cache: ResultCache) -> None:
    path = folder / "s0.tif"
    first, second, third = (
        next(event for event in classify([item], bundle, cache=cache, device=CPU) if event.prediction)
        for item in (ListedSlide(path, "s0"), ListedSlide(path, "s0", 1.0), ListedSlide(path, "s0", 1.0))
    )
    assert [event.cached for event in (first, second, third)] == [False, False, True]
    assert second.prediction is not None
    assert second.prediction.mpp_xy == (1.0, 1.0)
    assert first.prediction is not None
    assert len(second.prediction.tiles) != len(first.prediction.tiles)


def test_without_a_cache_nothing_is_kept(
    folder: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRMIL_CACHE_DIR", str(tmp_path / "unused"))
    for _ in range(2):
        assert [cached for _, _, cached in ends(run(folder, bundle, None))] == [False] * 4
    assert not (tmp_path / "unused").exists()


def test_errors_stay_with_their_slide(
    folder: Path, bundle: ModelBundle, cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "s0.tif").write_bytes(b"no slide")
    really = predict.predict_slide

    def failing(slide: Slide, *rest: Any, **options: Any) -> Any:
        if slide.name == "s1":
            raise RuntimeError("out of memory")
        return really(slide, *rest, **options)

    monkeypatch.setattr(predict, "predict_slide", failing)
    items = [*list_slides(folder), ListedSlide(folder / "absent.svs", "absent")]
    events = list(classify(items, bundle, cache=cache, device=CPU))
    assert [(name, kind) for name, kind, _ in ends(events)] == [
        ("s0.tif", Kind.FAILED), ("s1.tif", Kind.FAILED), ("s2.tif", Kind.FINISHED), ("s3.tif", Kind.FINISHED),
        ("absent.svs", Kind.FAILED),
    ]  # fmt: skip
    errors = [event.error for event in events if event.error]
    assert "s0.tif is not a slide" in errors[0]
    assert errors[1:] == ["out of memory", f"no such slide: {folder / 'absent.svs'}"]
    monkeypatch.undo()
    # Next time only they are tried again.
    again = [event for event in run(folder, bundle, cache) if event.kind is Kind.STARTED]
    assert [event.path.name for event in again] == ["s0.tif", "s1.tif"]


def test_whatever_a_slide_raises_is_its_own_failure(
    folder: Path, bundle: ModelBundle, cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged files, of which the decoders make anything, and errors that no decoder foresees."""
    for name, text in (("a_null", "null"), ("b_deep", "[" * 100_000)):
        (folder / f"{name}.zarr").mkdir()
        (folder / f"{name}.zarr" / "zarr.json").write_text(text)
    raised = {
        "s0": RecursionError("maximum recursion depth exceeded"),
        "s1": MemoryError(),
        "s2": KeyError(7),
    }
    really = predict.predict_slide

    def failing(slide: Slide, *rest: Any, **options: Any) -> Any:
        if slide.name in raised:
            raise raised[slide.name]
        return really(slide, *rest, **options)

    monkeypatch.setattr(predict, "predict_slide", failing)
    events = run(folder, bundle, cache)
    assert [(name, kind) for name, kind, _ in ends(events)] == [
        ("a_null.zarr", Kind.FAILED), ("b_deep.zarr", Kind.FAILED), ("s0.tif", Kind.FAILED),
        ("s1.tif", Kind.FAILED), ("s2.tif", Kind.FAILED), ("s3.tif", Kind.FINISHED),
    ]  # fmt: skip
    errors = [event.error for event in events if event.error]
    assert all(
        error.startswith(name) for error, name in zip(errors[:2], ("a_null.zarr", "b_deep.zarr"), strict=True)
    )
    assert errors[2:] == ["it is nested too deeply", "the memory ran out", "it has no 7"]


def test_a_slide_that_is_removed_meanwhile_fails_alone(
    folder: Path, bundle: ModelBundle, cache: ResultCache
) -> None:
    events = []
    for event in classify(list_slides(folder), bundle, cache=cache, device=CPU):
        events.append(event)
        if event.kind is Kind.STARTED and event.path.name == "s0.tif":
            (folder / "s2.tif").unlink()
    assert [(name, kind) for name, kind, _ in ends(events)] == [
        ("s0.tif", Kind.FINISHED), ("s1.tif", Kind.FINISHED), ("s2.tif", Kind.FAILED), ("s3.tif", Kind.FINISHED)
    ]  # fmt: skip
    assert f"no such slide: {folder / 's2.tif'}" in [event.error for event in events]


@pytest.mark.parametrize("when", [Kind.STARTED, Kind.PROGRESS, Kind.FINISHED])
def test_closing_cancels_and_running_again_resumes(
    when: Kind, folder: Path, bundle: ModelBundle, cache: ResultCache
) -> None:
    events = classify(list_slides(folder), bundle, cache=cache, device=CPU, batch_size=2)
    for event in events:
        if event.path.name == "s1.tif" and event.kind is when:
            break
    events.close()  # what is left open or running then, `nothing_left` finds
    finished = 2 if when is Kind.FINISHED else 1
    assert cache.size().n_results == finished
    assert sum(cached for _, _, cached in ends(run(folder, bundle, cache))) == finished


def test_a_full_disk_costs_the_cache_not_the_result(
    folder: Path, bundle: ModelBundle, cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CacheError("the disk is full")

    monkeypatch.setattr(ResultCache, "put", full)
    events = [event for event in run(folder, bundle, cache) if event.kind is Kind.FINISHED]
    assert [event.note for event in events] == ["the disk is full"] * 4
    assert all(event.prediction is not None for event in events)


def test_one_slide_twice_is_done_once(folder: Path, bundle: ModelBundle, cache: ResultCache) -> None:
    items = list_slides(folder)[:1] * 3
    assert len(ends(list(classify(items, bundle, cache=cache, device=CPU)))) == 1


def test_the_next_slide_opens_while_one_is_computed(
    folder: Path, bundle: ModelBundle, cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    second = threading.Event()

    class Noted(Slide):
        def __init__(self, path: Path, **options: Any) -> None:
            super().__init__(path, **options)
            opened.append(f"{path.name} in {threading.current_thread().name}")
            if len(opened) > 1:
                second.set()

    monkeypatch.setattr(pixel_sizes, "Slide", Noted)
    events = classify(list_slides(folder), bundle, cache=cache, device=CPU)
    for event in events:
        if event.progress is not None and event.progress.tiles_done:
            break
    assert second.wait(60)
    assert [name.split()[0] for name in opened] == ["s0.tif", "s1.tif"]
    assert all("lrmil-open" in name for name in opened)
    events.close()


def test_a_worklist_follows(folder: Path, bundle: ModelBundle, cache: ResultCache, tiny_bundle: Path) -> None:
    (folder / "s3.tif").write_bytes(b"no slide")
    worklist = Worklist.open(folder)
    running = []
    for event in classify(list(worklist), bundle, cache=cache, device=CPU):
        follow(worklist, event)
        if event.kind is Kind.STARTED:
            running.append(worklist[event.path].status)
    assert set(running) == {Status.RUNNING}
    assert worklist.counts() | {Status.DONE: 3, Status.FAILED: 1} == worklist.counts()
    assert "not a slide" in worklist[folder / "s3.tif"].error
    # Opened anew, the list has it all from the cache at once.
    again = Worklist.open(folder)
    info = load_info(tiny_bundle)
    found = load_results(again, cache, info.sha256, ResultKeys(info))
    assert len(found) == 3
    assert [(item.label, item.probability) for item in again] == [
        (item.label, item.probability) for item in worklist
    ]


def test_real_slides(shared_file: Callable[[str], Path], cache: ResultCache, bundle: ModelBundle) -> None:
    """The same pixels in other containers; a broken one among them."""
    items = [
        ListedSlide(shared_file(name), name)
        for name in (
            "slides_repacked/cmu_aperio_pyramid.svs",
            "slides_repacked/mrxs/cmu.mrxs",
            "slides_real/CMU-1-Small-Region-dicom",
            "slides_real/fixtures_tiny/broken.svs",
        )
    ]
    for cached in (False, True):
        found = sorted(ends(list(classify(items, bundle, cache=cache, device=CPU))))
        assert found == [
            ("CMU-1-Small-Region-dicom", Kind.FINISHED, cached),
            ("broken.svs", Kind.FAILED, False),
            ("cmu.mrxs", Kind.FINISHED, cached),
            ("cmu_aperio_pyramid.svs", Kind.FINISHED, cached),
        ]


# --- cluster ---


def test_without_distributed_the_extra_is_named(
    folder: Path, tiny_bundle: Path, cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    events = classify_on_cluster(
        list_slides(folder),
        str(tiny_bundle),
        load_info(tiny_bundle),
        address="tcp://127.0.0.1:1",
        cache=cache,
    )
    with pytest.raises(ClusterError, match=r"pip install 'napari-lrmil\[cluster\]'"):
        next(events)


@pytest.mark.slow
def test_a_killed_worker_loses_no_slide_and_none_is_done_twice(
    cohort: Path, tiny_bundle: Path, cache: ResultCache, tmp_path: Path
) -> None:
    """Two worker processes; one is killed in the middle."""
    distributed = pytest.importorskip("distributed")
    slides = sorted((cohort.parent / "slides").iterdir())[:12]
    items = [ListedSlide(path, path.stem) for path in slides]
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"no slide")
    items.append(ListedSlide(broken, "broken"))
    info = load_info(tiny_bundle)
    with distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=":0"
    ) as local_cluster:
        victim, held = next(iter(local_cluster.workers.values())).pid, tmp_path / "held"
        loads = tmp_path / "loads"
        with distributed.Client(local_cluster, set_as_default=False) as client:
            client.run(_hold_before_second_result, victim, held)
            client.run(_note_loaded_bundles, loads)

        def begun() -> Any:
            return classify_on_cluster(
                items,
                str(tiny_bundle),
                info,
                address=local_cluster.scheduler_address,
                cache=cache,
                device="cpu",
            )

        finished: list[BatchEvent] = []
        for event in begun():
            finished.append(event)
            if len(finished) == 3:
                _wait_for(held)
                before = _written(cache)
                os.kill(victim, signal.SIGKILL)
        # Each slide once; what a worker had finished before it was killed was found in the cache.
        assert sorted((event.path.name, event.kind) for event in finished) == sorted(
            [(path.name, Kind.FINISHED) for path in slides] + [("broken.svs", Kind.FAILED)]
        )
        assert before
        assert before.items() <= _written(cache).items()
        assert cache.size().n_results == len(slides)
        # Again: all from the cache, but for the broken one.
        assert sorted(ends(list(begun()))) == sorted(
            [(path.name, Kind.FINISHED, True) for path in slides] + [("broken.svs", Kind.FAILED, False)]
        )
        processes = loads.read_text().split()
        assert (
            len(processes) == len(set(processes)) == 2
        )  # one bundle a worker process, over all of its slides
        # Workers that find another bundle under that name refuse it.
        other = info.model_copy(update={"weights_sha256": "0" * 64})
        events = classify_on_cluster(
            items[:1],
            str(tiny_bundle),
            other,
            address=local_cluster.scheduler_address,
            cache=cache,
            device="cpu",
        )
        assert "is another one than the one here" in next(events).error
    alone = run_to_end_of(slides[0], tiny_bundle)
    kept = cache.get(alone.slide_fingerprint, info.sha256, result_key(info, mpp_xy=alone.mpp_xy))
    assert kept is not None
    np.testing.assert_allclose(kept.class_probabilities, alone.class_probabilities, atol=1e-6)


def _hold_before_second_result(victim: int, held: Path) -> None:
    """In a worker: the process `victim` makes the file `held` instead of keeping its second result, and waits."""
    if os.getpid() != victim:
        return
    put, n_put = ResultCache.put, 0

    def holding(cache: ResultCache, prediction: SlidePrediction, tiles_key: str) -> None:
        nonlocal n_put
        n_put += 1
        if n_put == 2:
            held.touch()
            threading.Event().wait()
        put(cache, prediction, tiles_key)

    ResultCache.put = holding  # type: ignore[method-assign]


def _wait_for(path: Path) -> None:
    """Until another process has made a file."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"nobody made {path.name}"
        time.sleep(0.01)


def _written(cache: ResultCache) -> dict[str, tuple[int, int]]:
    """Which file each result is: writing it again would make another one."""
    return {
        path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in cache.root.glob("results/*/[!.]*/arrays.safetensors")
    }


def _note_loaded_bundles(loads: Path) -> None:
    """In a worker: write the process's number for each bundle that it loads."""
    load = model_bundle.load_bundle

    def noting(*args: Any, **options: Any) -> ModelBundle:
        with loads.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return load(*args, **options)

    model_bundle.load_bundle = noting  # type: ignore[assignment]


def run_to_end_of(path: Path, bundle: Path) -> Any:
    with Slide(path) as slide:
        return run_to_end(predict_slide(slide, load_bundle(bundle), device=CPU))


@pytest.mark.slow
def test_a_cluster_that_is_not_there(folder: Path, tiny_bundle: Path, cache: ResultCache) -> None:
    distributed = pytest.importorskip("distributed")
    items, info = list_slides(folder), load_info(tiny_bundle)

    def first(address: str) -> BatchEvent:
        return next(
            classify_on_cluster(items, str(tiny_bundle), info, address=address, cache=cache, timeout_s=1)
        )

    with pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1 "):
        first("tcp://127.0.0.1:1")
    with pytest.raises(ClusterError, match="no scheduler answers at nonsense"):
        first("nonsense://x")
    with (
        distributed.LocalCluster(
            n_workers=0, protocol="tcp://", processes=False, dashboard_address=":0"
        ) as empty,
        pytest.raises(ClusterError, match=r"has no workers\. Start some with: dask worker tcp://"),
    ):
        first(empty.scheduler_address)

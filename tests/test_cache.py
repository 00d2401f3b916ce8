"""The result cache gives back what was put in, whole or not at all, to the right asker alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from seen_slides import remember

from napari_lrmil import RESULT_VERSION
from napari_lrmil.cache import CacheError, ResultCache, default_cache_root, result_key, store, summarise
from napari_lrmil.cache.codec import flatten, restore
from napari_lrmil.model.bundle import load_bundle, load_info
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide

SHA = "b" * 64


@pytest.fixture(scope="module")
def prediction(tiny_bundle: Path, generated_slide: Path) -> SlidePrediction:
    """A real one."""
    with Slide(generated_slide) as slide:
        return run_to_end(predict_slide(slide, load_bundle(tiny_bundle), device=torch.device("cpu")))


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "cache")


def numbered(prediction: SlidePrediction, number: int) -> SlidePrediction:
    """As of another slide."""
    return dataclasses.replace(prediction, slide_fingerprint=f"{number:064x}")


def fetch(cache: ResultCache, prediction: SlidePrediction, key: str = "k" * 64) -> SlidePrediction | None:
    return cache.get(
        prediction.slide_fingerprint, prediction.bundle_sha256, key, slide_name=prediction.slide_name
    )


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Equal in type and value, field by field, to the last bit."""
    assert type(left) is type(right), where
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, where
        assert left.shape == right.shape, where
        assert left.tobytes() == right.tobytes(), where
    elif dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name), f"{where}.{field.name}")
    elif isinstance(left, tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert left == right or (left != left and right != right), where


def test_every_field_comes_back(cache: ResultCache, prediction: SlidePrediction) -> None:
    cache.put(prediction, "k" * 64)
    again = fetch(cache, prediction)
    assert_same(again, prediction)
    assert again is not None
    assert again.label == prediction.label


def filled(hint: Any, draw: st.DrawFn) -> Any:
    """A value of a type, of the kinds that results hold."""
    from types import NoneType, UnionType
    from typing import Union, get_args, get_origin

    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not NoneType]
        return None if draw(st.booleans()) else filled(kinds[0], draw)
    if origin is np.ndarray:
        dtype = get_args(arguments[1])[0]
        shape = draw(st.sampled_from([(0,), (3,), (2, 3), (0, 2)]))
        return np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(filled(arguments[0], draw) for _ in range(draw(st.integers(0, 3))))
        return tuple(filled(kind, draw) for kind in arguments)
    if hint is float:
        return draw(st.floats())
    if hint is int:
        return draw(st.integers(-(2**40), 2**40))
    if hint is bool:
        return draw(st.booleans())
    if hint is str:
        return draw(st.text(max_size=8))
    return {name: filled(kind, draw) for name, kind in get_type_hints(hint).items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_prediction_survives_json(data: st.DataObject) -> None:
    """Whatever the fields hold: made from their types, so that fields of the future are covered."""

    def build(hint: Any, values: Any) -> Any:
        if isinstance(values, dict):
            hints = get_type_hints(hint)
            return hint(**{name: build(hints[name], value) for name, value in values.items()})
        return values

    hints = get_type_hints(SlidePrediction)
    assert set(hints) == {field.name for field in dataclasses.fields(SlidePrediction)}
    values = {}
    for name, hint in hints.items():
        value = filled(hint, data.draw)
        if name == "tiles":
            value["grid"]["spec"] = {"tile_px": 7, "mpp": data.draw(st.floats(1e-3, 1e3))}
        values[name] = build(hint, value)
    original = SlidePrediction(**values)
    arrays: dict[str, NDArray[Any]] = {}
    text = json.dumps(flatten(original, arrays))
    assert_same(restore(SlidePrediction, json.loads(text), arrays), original)


def test_strides_and_scalars_are_kept() -> None:
    class Odd(NamedTuple):
        flipped: NDArray[np.float64]
        single: NDArray[np.float64]

    odd = Odd(np.arange(12.0).reshape(3, 4).T[::-1], np.array(2.5))
    arrays: dict[str, NDArray[Any]] = {}
    back = Odd(**{name: arrays[at["array"]] for name, at in flatten(odd, arrays).items()})
    np.testing.assert_array_equal(back.flipped, odd.flipped)
    assert back.single.shape == ()
    with pytest.raises(TypeError, match="extra is a set"):
        flatten({1}, {}, name="extra")


def test_no_name_of_the_slide_is_kept(cache: ResultCache, prediction: SlidePrediction) -> None:
    named = dataclasses.replace(prediction, slide_name="DOE^JOHN 1950-01-01")
    cache.put(named, "k" * 64)
    files = [path for path in cache.root.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"DOE" in path.read_bytes() or "DOE" in str(path)]
    assert cache.get(named.slide_fingerprint, named.bundle_sha256, "k" * 64) is not None
    again = fetch(cache, named)
    assert again is not None
    assert again.slide_name == "DOE^JOHN 1950-01-01"


def test_paths_are_kept_as_hashes_alone(cache: ResultCache, tmp_path: Path) -> None:
    slide = tmp_path / "DOE^JOHN.svs"
    slide.write_bytes(b"x")
    remember(cache, slide, "f" * 64)
    assert cache.known_fingerprint(slide) == "f" * 64
    for path in cache.root.rglob("*"):
        assert "DOE" not in path.name
        assert not path.is_file() or b"DOE" not in path.read_bytes()


def test_other_slides_bundles_and_settings_find_nothing(
    cache: ResultCache, prediction: SlidePrediction
) -> None:
    sha = prediction.bundle_sha256
    cache.put(prediction, "k" * 64)
    assert cache.get("0" * 64, sha, "k" * 64) is None
    # The folder's name holds twelve digits of each hash; the rest is checked inside.
    assert cache.get(prediction.slide_fingerprint, sha[:12] + "0" * 52, "k" * 64) is None
    assert cache.get(prediction.slide_fingerprint, sha, "k" * 63 + "x") is None
    assert cache.summary(prediction.slide_fingerprint, sha, "k" * 63 + "x") is None
    assert fetch(cache, prediction) is not None


def test_key_follows_all_that_changes_a_result(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = load_info(tiny_bundle)
    warmer = info.model_copy(update={"temperature": info.temperature * 2})
    stricter = info.model_copy(update={"tiles": info.tiles.model_copy(update={"min_tissue": 0.9})})
    in_colour = info.model_copy(
        update={"tiles": info.tiles.model_copy(update={"apply_icc": not info.tiles.apply_icc})}
    )
    keys = [result_key(each, mpp_xy=(0.5, 0.5)) for each in (info, warmer, stricter, in_colour)]
    keys += [result_key(info, mpp_xy=mpp_xy) for mpp_xy in ((0.25, 0.25), (0.5, 0.25))]
    assert len(set(keys)) == 6
    assert result_key(load_info(tiny_bundle), mpp_xy=(0.5, 0.5)) == keys[0]
    monkeypatch.setattr(store, "RESULT_VERSION", RESULT_VERSION + 1)
    assert result_key(info, mpp_xy=(0.5, 0.5)) not in keys


@pytest.mark.parametrize("name", ["prediction.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty", "other"])
def test_damage_counts_as_absent_and_is_replaced(
    name: str, damage: str, cache: ResultCache, prediction: SlidePrediction
) -> None:
    cache.put(prediction, "k" * 64)
    (path,) = cache.root.rglob(name)
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        # The first digit of a probability, or the last byte of an array.
        at = whole.index(b'"probability": 0.') + 17 if name.endswith("json") else len(whole) - 1
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"[1]"}[damage])
    assert fetch(cache, prediction) is None
    cache.put(prediction, "k" * 64)
    assert_same(fetch(cache, prediction), prediction)
    assert path.read_bytes() == whole


def test_summary_tells_the_same_without_arrays(cache: ResultCache, prediction: SlidePrediction) -> None:
    told = dataclasses.replace(
        prediction, prediction_set=("benign", "lesion"), ood_score=2.0, ood_threshold=1.0
    )
    cache.put(told, "k" * 64)
    (arrays,) = cache.root.rglob("arrays.safetensors")
    arrays.unlink()
    summary = cache.summary(told.slide_fingerprint, told.bundle_sha256, "k" * 64)
    assert summary == summarise(told)
    assert summary is not None
    assert (summary.called, summary.unsure, summary.out_of_distribution) == (told.called, True, True)
    assert (summary.answer, summary.label) == ("unlike training", None)


@pytest.mark.parametrize(("ood_score", "answer"), [(1.0, None), (9.0, "unlike training")])
def test_a_result_kept_with_a_label_by_an_earlier_version_is_none_on_an_unlike_slide(
    tmp_path: Path, prediction: SlidePrediction, ood_score: float, answer: str | None
) -> None:
    told = dataclasses.replace(prediction, ood_score=ood_score, ood_threshold=2.0)
    cache = ResultCache(tmp_path)
    cache.put(told, "k" * 64)
    (path,) = cache.root.rglob("prediction.json")
    document = json.loads(path.read_text())
    document["summary"]["label"] = document["summary"].pop("called")  # as it was written
    body = {name: part for name, part in document.items() if name not in ("format", "format_version")}
    del body["body_sha256"]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    document["body_sha256"] = hashlib.sha256(canonical).hexdigest()
    path.write_text(json.dumps(document))
    where = (told.slide_fingerprint, told.bundle_sha256, "k" * 64)
    summary, kept = cache.summary(*where), cache.get(*where)
    assert summary is not None
    assert kept is not None
    label = None if answer else told.called
    assert (summary.answer, summary.label) == (kept.answer, kept.label) == (answer or told.called, label)
    assert summary == summarise(told)


def test_least_recently_used_leave_first(tmp_path: Path, prediction: SlidePrediction) -> None:
    probe = ResultCache(tmp_path / "probe")
    probe.put(prediction, "k" * 64)
    one = probe.size().total_bytes
    cache = ResultCache(tmp_path / "cache", limit_bytes=round(5.5 * one))
    slides = [numbered(prediction, number) for number in range(6)]
    for age, slide in enumerate(slides[:5]):
        cache.put(slide, "k" * 64)
        (entry,) = cache.root.rglob(f"{slide.slide_fingerprint}-*")
        os.utime(entry / "prediction.json", (1e9 + age, 1e9 + age))
    assert fetch(cache, slides[0]) is not None  # used: now the youngest
    cache.put(slides[5], "k" * 64)
    kept = [number for number, slide in enumerate(slides) if fetch(cache, slide) is not None]
    # 6 don't fit into 5.5; 90 % of them are 4.95, so 4 stay.
    assert kept == [0, 3, 4, 5]
    assert cache.size().n_results == 4
    assert cache.size().total_bytes <= 5.5 * one


def test_the_newest_stays_however_small_the_limit(tmp_path: Path, prediction: SlidePrediction) -> None:
    cache = ResultCache(tmp_path / "cache", limit_bytes=1)
    for number in range(3):
        cache.put(numbered(prediction, number), "k" * 64)
        assert fetch(cache, numbered(prediction, number)) is not None
    assert cache.size().n_results == 1


def test_limit_is_stored_with_the_cache(tmp_path: Path, prediction: SlidePrediction) -> None:
    cache = ResultCache(tmp_path / "cache")
    assert cache.size().limit_bytes == 2 * 10**9
    for number in range(3):
        cache.put(numbered(prediction, number), "k" * 64)
    cache.set_limit(0)
    assert ResultCache(tmp_path / "cache").size().n_results == 0
    cache.set_limit(10**8)
    assert ResultCache(tmp_path / "cache").size().limit_bytes == 10**8
    with pytest.raises(CacheError):
        cache.set_limit(-1)


def test_clear_leaves_limit_and_strangers(cache: ResultCache, prediction: SlidePrediction) -> None:
    cache.put(prediction, "k" * 64)
    cache.write_thumbnail("a" * 64, 32, b"picture")
    cache.set_limit(10**8)
    (cache.root / "mine.txt").write_text("mine")
    assert cache.size()[:2] == (1, 1)
    cache.clear()
    assert cache.size() == (0, 0, 0, 10**8)
    assert sorted(path.name for path in cache.root.iterdir()) == ["limit.json", "mine.txt"]


def test_an_unwritable_place_is_told_with_the_cure(tmp_path: Path, prediction: SlidePrediction) -> None:
    (tmp_path / "file").write_text("")
    cache = ResultCache(tmp_path / "file" / "cache")
    assert fetch(cache, prediction) is None
    with pytest.raises(CacheError, match="LRMIL_CACHE_DIR"):
        cache.put(prediction, "k" * 64)
    remember(cache, tmp_path / "file", "a" * 64)
    cache.write_thumbnail("a" * 64, 32, b"picture")
    assert cache.read_thumbnail("a" * 64, 32) is None


def test_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LRMIL_CACHE_DIR", str(tmp_path))
    assert default_cache_root() == ResultCache().root == tmp_path
    monkeypatch.delenv("LRMIL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert default_cache_root() == tmp_path / "xdg" / "napari-lrmil"


def test_a_changed_slide_is_not_known(cache: ResultCache, tmp_path: Path) -> None:
    slide = tmp_path / "slide.svs"
    slide.write_bytes(b"one")
    remember(cache, slide, "1" * 64)
    assert cache.known_fingerprint(slide) == "1" * 64
    slide.write_bytes(b"other")
    assert cache.known_fingerprint(slide) is None
    assert cache.known_fingerprint(tmp_path / "absent.svs") is None


@pytest.mark.parametrize("change", [
    lambda text: text.replace("0.5", "0.25"), lambda text: text.replace("1111", "1112", 1), lambda text: text[:-9],
    lambda text: "[" * 100_000, lambda text: "9" * 5000, lambda text: "",
])  # fmt: skip
def test_what_is_known_of_a_slide_counts_as_absent_when_it_is_damaged(
    cache: ResultCache, tmp_path: Path, change: Callable[[str], str]
) -> None:
    slide = tmp_path / "slide.svs"
    slide.write_bytes(b"one")
    remember(cache, slide, "1" * 64, (0.5, 0.5))
    (file,) = (path for path in (cache.root / "seen").rglob("*") if path.is_file())
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))
    assert cache.known_slide(slide) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that have a name")
@pytest.mark.parametrize("name", ["prediction.json", "arrays.safetensors"])
def test_a_pipe_or_device_in_an_entry_is_not_waited_for(
    cache: ResultCache, prediction: SlidePrediction, name: str
) -> None:
    for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
        cache.put(prediction, "k" * 64)
        (file,) = cache.root.rglob(name)
        file.unlink()
        make(file)
        assert fetch(cache, prediction) is None


@pytest.mark.parametrize(
    "text", ['{"limit_bytes": -5}', '{"limit_bytes": 1e999}', "[" * 100_000, '{"limit_bytes": "1"}']
)
def test_a_damaged_limit_is_the_usual_one(tmp_path: Path, prediction: SlidePrediction, text: str) -> None:
    (tmp_path / "limit.json").write_text(text)
    cache = ResultCache(tmp_path)
    assert cache.size().limit_bytes == 2 * 10**9
    cache.put(prediction, "k" * 64)
    assert fetch(cache, prediction) is not None


def test_a_thumbnail_with_another_bit_counts_as_absent(cache: ResultCache) -> None:
    cache.write_thumbnail("1" * 64, 64, b"a picture")
    cache.write_thumbnail("2" * 64, 64, b"another one")
    assert cache.read_thumbnail("1" * 64, 64) == b"a picture"
    first, second = sorted(cache.root.rglob("*.jpg"))
    data = bytearray(first.read_bytes())
    data[3] ^= 1
    first.write_bytes(data)
    assert cache.read_thumbnail("1" * 64, 64) is None
    first.write_bytes(second.read_bytes())
    assert cache.read_thumbnail("1" * 64, 64) is None


@pytest.mark.parametrize(("head", "part"), [
    ("a.mrxs", "a/Data0000.dat"),
    ("a.vms", "a_image.jpg"),
    ("dicom", "dicom/one.dcm"),
    ("dicom/one.dcm", "dicom/two.dcm"),
])  # fmt: skip
def test_parts_beside_belong_to_a_slide(head: str, part: str, cache: ResultCache, tmp_path: Path) -> None:
    path = tmp_path / part
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"pixels")
    slide = tmp_path / head
    if slide.suffix:
        slide.write_text("[Virtual Microscope Specimen]\r\nImageFile=a_image.jpg\r\n")
    remember(cache, slide, "1" * 64)
    assert cache.known_fingerprint(slide) == "1" * 64
    path.write_bytes(b"other pixels")
    assert cache.known_fingerprint(slide) is None


def _put_many(root: str, prediction: SlidePrediction, marker: float, until: float) -> None:
    mine = dataclasses.replace(prediction, class_probabilities=np.array([marker, 1 - marker]), seconds=marker)
    cache = ResultCache(root)
    while time.time() < until:
        cache.put(mine, "k" * 64)


def test_writers_of_one_key_and_a_reader(tmp_path: Path, prediction: SlidePrediction) -> None:
    """Three processes write the same key over and over; what is read is always one of theirs, whole."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    until = time.time() + 2
    markers = (0.25, 0.5, 0.75)
    writers = [
        context.Process(target=_put_many, args=(str(tmp_path), prediction, marker, until))
        for marker in markers
    ]
    for writer in writers:
        writer.start()
    cache, found = ResultCache(tmp_path), 0
    while time.time() < until:
        result = fetch(cache, prediction)
        if result is not None:
            found += 1
            assert result.seconds in markers
            np.testing.assert_array_equal(result.class_probabilities, [result.seconds, 1 - result.seconds])
    for writer in writers:
        writer.join(20)
        assert writer.exitcode == 0
    assert found > 10
    assert fetch(cache, prediction) is not None
    (shelf,) = (tmp_path / "results").iterdir()
    assert len(list(shelf.iterdir())) == 1  # nothing half written is left


def test_a_killed_writer_leaves_results_whole_or_absent(tmp_path: Path, prediction: SlidePrediction) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    cache = ResultCache(tmp_path)
    for number in range(5):
        writer = context.Process(target=_put_many, args=(str(tmp_path), prediction, 0.5, time.time() + 60))
        writer.start()
        time.sleep(0.15 + 0.013 * number)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(20)
        result = fetch(cache, prediction)
        assert result is None or result.seconds == 0.5
    # What the killed ones left goes once it is a day old.
    (shelf,) = (tmp_path / "results").iterdir()
    (shelf / ".left").mkdir(exist_ok=True)
    for path in shelf.iterdir():
        if path.name.startswith("."):
            os.utime(path, (1e9, 1e9))
    ResultCache(tmp_path).set_limit(10**9)  # looks through the folder
    assert not [path for path in shelf.iterdir() if path.name.startswith(".")]


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, napari_lrmil.cache, napari_lrmil.worklist; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_thousand_summaries_are_quick(
    cache: ResultCache, prediction: SlidePrediction, record_property: Callable[[str, object], None]
) -> None:
    slides = [numbered(prediction, number) for number in range(1000)]
    for slide in slides[:100]:
        cache.put(slide, "k" * 64)
    started = time.perf_counter()
    found = [cache.summary(slide.slide_fingerprint, slide.bundle_sha256, "k" * 64) for slide in slides]
    took = time.perf_counter() - started
    record_property("seconds", took)
    assert sum(result is not None for result in found) == 100
    assert took < 2

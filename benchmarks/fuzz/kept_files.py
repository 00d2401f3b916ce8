"""python -m benchmarks.fuzz.kept_files: what the program keeps and reads again, broken in every way.

Cached results with what stands beside them, verdicts, annotations, and results as JSON and CSV. What is broken in a
cache is as if it weren't there, and never another slide's or model's result; what a reviewer wrote is never lost.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import cache as once
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.fuzz.attack import (
    JSON_TOKENS,
    Target,
    WrongValue,
    broken,
    flipped,
    main,
    spoil_file,
    with_odd_value,
)
from benchmarks.fuzz.small_model import MPP, classified, write_small_bundle, write_small_slide
from napari_lrmil._viewer.docks.annotations.store import AnnotationStore
from napari_lrmil.cache import CACHE_DIR_VARIABLE, ResultCache, ResultKeys, keep_typed_mpp, typed_mpp
from napari_lrmil.errors import LRMILError, WorklistError
from napari_lrmil.export.errors import ExportError, ResultFileError
from napari_lrmil.export.result import read_prediction, result_document, write_prediction
from napari_lrmil.heatmap import ATTENTION, channel_values
from napari_lrmil.model.bundle import BundleInfo, load_bundle
from napari_lrmil.predict import SlidePrediction
from napari_lrmil.worklist import REVIEW_NAME, Review, ReviewFile, thumbnail

_OTHER_MPP = 0.5
_EDGE_PX = 64
_DATA = "LRMIL_DATA_DIR"
_BOUNDS = (0, 0, 160, 128)
_NUMBERS = (b"2.0", b"0.5", b"0", b"-1", b"9" * 30, b"1e400")


def targets() -> Iterable[Target]:
    """Return what is attacked here."""
    return (
        Target("cache: typed size", _make_typed, _spoil_cache, _use_cache),
        Target("cache: stated size", _make_stated, _spoil_cache, _use_cache),
        Target("verdicts", _make_verdicts, _spoil_verdicts, _use_verdicts, WorklistError),
        Target("annotations", _make_annotations, _spoil_annotations, _use_annotations),
        Target("result: JSON", _make_result, _spoil_result, _use_result, (ResultFileError, ExportError)),
        Target("result: CSV", _make_result, _spoil_result_table, _use_result, (ResultFileError, ExportError)),
    )


class _Made(NamedTuple):
    """What is kept: the slide's result, and another one of the same slide under another µm/px."""

    info: BundleInfo
    right: SlidePrediction
    other: SlidePrediction


@once
def _made() -> _Made:
    with TemporaryDirectory() as folder:
        bundle = load_bundle(write_small_bundle(Path(folder) / "bundle"))
        right = classified(write_small_slide(Path(folder) / "slide.png"), bundle)
    other = replace(
        right, class_probabilities=right.class_probabilities[::-1].copy(), mpp_xy=(_OTHER_MPP, _OTHER_MPP)
    )
    assert other.called != right.called
    return _Made(bundle.info, right, other)


class _Open(NamedTuple):
    """An open slide, as the cache wants to know it."""

    path: Path
    stated_mpp_xy: tuple[float, float] | None

    def fingerprint(self) -> str:
        """That of the slide whose results are right."""
        return _made().right.slide_fingerprint

    def check_unchanged(self) -> None:
        """It never changes."""


def _slide(folder: Path) -> Path:
    """The slide: it stays where it is, as the cache knows it by that."""
    path = folder.parent / "slides" / "slide.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_small_slide(path)
    return path


def _enter(folder: Path) -> ResultCache:
    os.environ[_DATA] = str(folder / "data")
    os.environ[CACHE_DIR_VARIABLE] = str(folder / "cache")
    return ResultCache()


def _make_typed(folder: Path) -> None:
    _make_cache(folder, stated=None)
    keep_typed_mpp(_made().right.slide_fingerprint, MPP)


def _make_stated(folder: Path) -> None:
    _make_cache(folder, stated=(MPP, MPP))


def _make_cache(folder: Path, stated: tuple[float, float] | None) -> None:
    made, slide, cache = _made(), _slide(folder), _enter(folder)
    keys = ResultKeys(made.info)
    for prediction in (made.right, made.other):
        cache.put(prediction, keys(prediction.mpp_xy))
    cache.remember_slide(_Open(slide, stated), made.right.slide_fingerprint)
    thumbnail(slide, _EDGE_PX, cache=cache)
    cache.set_limit(10**9)
    cache.remember_slide(_Open(slide, stated), made.right.slide_fingerprint)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _spoil_cache(folder: Path, rng: Random) -> str:
    files = _files(folder / "cache") + _files(folder / "data")
    path = rng.choice(files)
    what = path.name[-24:]
    fault = rng.randrange(8)
    data = path.read_bytes()
    if fault == 0:
        return spoil_file(path, rng)
    if fault in (1, 2):
        path.write_bytes(flipped(data, rng))
        return f"a bit of {what}"
    if fault == 3:
        path.write_bytes(broken(data, (*JSON_TOKENS, *_NUMBERS), rng))
        return f"bytes of {what}"
    if fault == 4 and path.suffix != ".safetensors":
        old, new = rng.choice(_NUMBERS[:2]), rng.choice(_NUMBERS)
        path.write_bytes(data.replace(old, new))
        return f"{old!r} for {new[:9]!r} in {what}"
    if fault == 5:
        another = rng.choice(files)
        path.write_bytes(another.read_bytes())
        return f"{what} is {another.name[-24:]}"
    if fault == 6:
        entries = sorted({each.parent for each in files if each.name == "prediction.json"})
        first, second = entries
        shutil.move(first, folder / "moved")
        shutil.move(second, first)
        shutil.move(folder / "moved", second)
        return "two results in each other's place"
    try:
        document = json.loads(data)
    except ValueError:
        path.write_bytes(data[: rng.randrange(len(data))])
        return f"{what} cut"
    document, said = with_odd_value(document, rng)
    path.write_text(json.dumps(document), encoding="utf-8")
    return f"{said} in {what}"


def _use_cache(folder: Path) -> None:
    made, slide, cache = _made(), _slide(folder), _enter(folder)
    right, keys = made.right, ResultKeys(made.info)
    sha, fingerprint, key = right.bundle_sha256, right.slide_fingerprint, keys((MPP, MPP))
    for found in (
        cache.get(fingerprint, sha, key, slide_name=right.slide_name),
        cache.known_result(slide, sha, keys, mpp=None, slide_name=right.slide_name),
    ):
        if found is not None and result_document(found) != result_document(right):
            raise WrongValue("another result")
    for summary in (cache.summary(fingerprint, sha, key), cache.known_summary(slide, sha, keys, mpp=None)):
        if summary is not None and (summary.answer, summary.n_tiles) != (right.answer, len(right.tiles)):
            raise WrongValue("another summary")
    if typed_mpp(fingerprint) not in (None, MPP):
        raise WrongValue(f"typed {typed_mpp(fingerprint)} µm/px")
    known = cache.known_slide(slide)
    if known is not None and known.fingerprint != fingerprint:
        raise WrongValue("another fingerprint")
    picture = thumbnail(slide, _EDGE_PX, cache=cache)
    if not np.array_equal(picture, thumbnail(slide, _EDGE_PX)):
        raise WrongValue("another picture")
    cache.size()
    try:
        cache.put(right, key)
    except LRMILError:  # something lies in the way
        return
    again = cache.get(fingerprint, sha, key, slide_name=right.slide_name)
    if again is None or result_document(again) != result_document(right):
        raise WrongValue("what was kept anew isn't found")


# ---- verdicts


_REVIEWS = (
    Review(
        "a.svs", "agree", "fine", "lesion", "0" * 64, "1" * 64, "X", set_shown=("lesion",), unsure_shown=False
    ),
    Review("sub/b.svs", "disagree", "no: \N{MICRO SIGN}", "benign", "0" * 64),
    Review("a.svs", "unsure", "second thoughts"),
    Review("c.svs", None, "", None),
)


def _make_verdicts(folder: Path) -> None:
    os.environ[_DATA] = str(folder / "data")
    file = ReviewFile(folder)
    for review in _REVIEWS:
        file.add(review)
    file.write_waiting()


def _spoil_verdicts(folder: Path, rng: Random) -> str:
    path = folder / REVIEW_NAME
    fault = rng.randrange(6)
    if fault == 0:
        return spoil_file(path, rng)
    data = path.read_bytes()
    if fault < 4:
        path.write_bytes(
            broken(data, (*JSON_TOKENS, b"\n", b"\r\n", b'"agree"', b'"version": 2', b"\x1b[2J"), rng)
        )
        return "bytes"
    lines = [json.loads(line) for line in data.splitlines()]
    changed, said = with_odd_value(lines, rng)
    lines = changed if isinstance(changed, list) else [changed]
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return said


def _use_verdicts(folder: Path) -> None:
    os.environ[_DATA] = str(folder / "data")
    path = folder / REVIEW_NAME
    before = (
        path.read_bytes()
        if path.is_file() and path.stat().st_size < 10**6 and not path.is_symlink()
        else None
    )
    file = ReviewFile(folder)
    for name in ("a.svs", "sub/b.svs", "c.svs"):
        file.latest(folder / name)
    _ = file.note
    said = Review("new.svs", "agree", "kept", "lesion")
    file.add(said)
    file.write_waiting()
    if before is not None and not path.read_bytes().startswith(before):
        raise WrongValue("earlier lines were changed")
    again = ReviewFile(folder).latest(folder / "new.svs")
    if again is None or (again.verdict, again.note, again.label_shown) != ("agree", "kept", "lesion"):
        raise WrongValue(f"the new verdict is {again}")


# ---- annotations


_ANNOTATIONS = (
    '{"type": "FeatureCollection", "features": ['
    '{"type": "Feature", "id": "a", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},'
    ' "properties": {"objectType": "annotation", "name": "one", "classification": {"name": "x", "color": [1, 2, 3]}}},'
    '{"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 2], [3, 4.5]]},'
    ' "properties": {"objectType": "annotation"}}]}'
)


def _store(folder: Path) -> AnnotationStore:
    os.environ[_DATA] = str(folder / "data")
    return AnnotationStore(folder / "slide.png", "1" * 64, _BOUNDS)


def _make_annotations(folder: Path) -> None:
    _store(folder).beside.write_text(_ANNOTATIONS, encoding="utf-8")


def _spoil_annotations(folder: Path, rng: Random) -> str:
    path = _store(folder).beside
    fault = rng.randrange(6)
    if fault == 0:
        return spoil_file(path, rng)
    if fault < 4:
        path.write_bytes(
            broken(path.read_bytes(), (*JSON_TOKENS, b'"Polygon"', b'"Feature"', b"[0, 0]"), rng)
        )
        return "bytes"
    document, said = with_odd_value(json.loads(path.read_bytes()), rng)
    path.write_text(json.dumps(document), encoding="utf-8")
    return said


def _use_annotations(folder: Path) -> None:
    store = _store(folder)
    before = (
        store.beside.read_bytes() if store.beside.is_file() and store.beside.stat().st_size < 10**6 else None
    )
    loaded = store.load()
    store.save([*loaded.annotations], 1)
    again = _store(folder).load()
    if len(again.annotations) != len(loaded.annotations):
        raise WrongValue(f"{len(loaded.annotations)} annotations became {len(again.annotations)}")
    if (
        loaded.note
        and before
        and before not in [path.read_bytes() for path in folder.iterdir() if path.is_file()]
    ):
        raise WrongValue("what couldn't be read is gone")


# ---- results


def _make_result(folder: Path) -> None:
    write_prediction(_made().right, folder, stem="result")


def _spoil_result(folder: Path, rng: Random) -> str:
    path = folder / "result.json"
    fault = rng.randrange(7)
    data = path.read_bytes()
    if fault == 0:
        return spoil_file(path, rng)
    if fault == 1:
        path.write_bytes(flipped(data, rng))
        return "a bit"
    if fault < 4:
        path.write_bytes(broken(data, JSON_TOKENS, rng))
        return "bytes"
    document, said = with_odd_value(json.loads(data), rng)
    path.write_text(json.dumps(document), encoding="utf-8")
    return said


def _spoil_result_table(folder: Path, rng: Random) -> str:
    path = folder / "result.csv"
    fault = rng.randrange(4)
    data = path.read_bytes()
    if fault == 0:
        return spoil_file(path, rng)
    if fault == 1:
        path.write_bytes(flipped(data, rng))
        return "a bit"
    path.write_bytes(broken(data, (b"\n", b",", b'"', b"nan", b"-1", b"1e999", b"\0", b"\xff"), rng))
    return "bytes"


def _use_result(folder: Path) -> None:
    right, found = _made().right, read_prediction(folder / "result.json")
    if found.called != right.called or not np.allclose(
        found.class_probabilities, right.class_probabilities, atol=1e-3
    ):
        raise WrongValue(f"{found.called} {found.class_probabilities.tolist()}")
    if not np.array_equal(channel_values(found, ATTENTION), channel_values(right, ATTENTION)):
        raise WrongValue("other attention")
    if result_document(found).contributions != result_document(right).contributions:
        raise WrongValue("other contributions")
    write_prediction(found, folder / "again", stem="result")


if __name__ == "__main__":
    main(__doc__, targets)

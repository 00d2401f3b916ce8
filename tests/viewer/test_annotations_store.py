"""The file that keeps a slide's annotations, without a window."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from drawn_shapes import SHAPES

from napari_lrmil._viewer.docks.annotations import store
from napari_lrmil._viewer.docks.annotations.store import AnnotationsError, AnnotationStore
from napari_lrmil.export.geojson import read_annotations

BOUNDS = (1000, 2000, 5000, 4000)


@pytest.fixture
def slide_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "slides").mkdir()
    return tmp_path / "slides" / "a.svs"


def test_store_writes_beside_the_slide(slide_path: Path) -> None:
    kept = AnnotationStore(slide_path, "f" * 64, BOUNDS)
    assert kept.save([], 1) == ""
    assert list(slide_path.parent.iterdir()) == []  # nothing to keep, no file
    kept.save(SHAPES, 2)
    file = slide_path.with_name("a.svs.lrmil-annotations.geojson")
    assert list(slide_path.parent.iterdir()) == [file]
    first = json.loads(file.read_text(encoding="utf-8"))["features"][0]
    assert first["geometry"]["coordinates"][0][0] == [-1000, -2000]  # QuPath counts from the bounds
    found = AnnotationStore(slide_path, "f" * 64, BOUNDS).load()
    assert found.annotations == list(SHAPES)
    assert found.note == ""
    kept.save([], 3)
    assert AnnotationStore(slide_path, "f" * 64, BOUNDS).load().annotations == []


def test_store_in_a_read_only_folder(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.write_annotations

    def refusing(path: Path, *arguments: object, **options: object) -> Path:
        if path.parent == slide_path.parent:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write_annotations", refusing)
    kept = AnnotationStore(slide_path, "f" * 64, BOUNDS)
    assert "read-only" in kept.save(SHAPES, 1)
    renamed = slide_path.with_name("renamed.svs")  # the fingerprint finds it again
    found = AnnotationStore(renamed, "f" * 64, BOUNDS).load()
    assert found.annotations == list(SHAPES)
    assert "read-only" in found.note


def test_regions_that_an_earlier_version_kept_by_its_fingerprint_are_found(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.write_annotations

    def refusing(path: Path, *arguments: object, **options: object) -> Path:
        if path.parent == slide_path.parent:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(path, *arguments, **options)  # type: ignore[arg-type]

    before = tmp_path / "data" / "annotations" / f"{'e' * 64}.geojson"
    before.parent.mkdir(parents=True)
    write(before, SHAPES, bounds_l0_xywh=BOUNDS)
    os.utime(before, (1e9, 1e9))
    now = "0" * 40 + "e" * 24
    assert AnnotationStore(slide_path, "0" * 64, BOUNDS).load().annotations == []
    monkeypatch.setattr(store, "write_annotations", refusing)
    kept = AnnotationStore(slide_path, now, BOUNDS)
    found = kept.load()
    assert found.annotations == list(SHAPES)
    assert "read-only" in found.note
    kept.save([], 1)
    assert AnnotationStore(slide_path, now, BOUNDS).load().annotations == []  # not back again
    assert len(read_annotations(before, bounds_l0_xywh=BOUNDS)) == len(SHAPES)


def test_store_says_when_the_disk_is_full(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = AnnotationStore(slide_path, "f" * 64, BOUNDS)
    kept.save(SHAPES[:1], 1)

    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_annotations", full)
    with pytest.raises(AnnotationsError, match=r"No space left.*Free some space"):
        kept.save(SHAPES, 2)
    monkeypatch.undo()
    assert len(AnnotationStore(slide_path, "f" * 64, BOUNDS).load().annotations) == 1


@pytest.mark.parametrize("content", ["{ half a fi", None])
def test_store_never_overwrites_what_it_did_not_write(slide_path: Path, content: str | None) -> None:
    """Neither a damaged file, nor one that another program changed since it was read."""
    kept = AnnotationStore(slide_path, "f" * 64, BOUNDS)
    if content is None:
        kept.save(SHAPES[:1], 1)
        other = AnnotationStore(slide_path, "f" * 64, BOUNDS)
        other.load()
        other.save(SHAPES[:2], 1)
    else:
        kept.beside.write_text(content, encoding="utf-8")
        found = kept.load()
        assert found.annotations == []
        assert "can't be read" in found.note
    before = kept.beside.read_bytes()
    note = kept.save(SHAPES[2:], 2)
    (aside,) = slide_path.parent.glob("*.kept-*")
    assert aside.name in note
    assert aside.read_bytes() == before
    assert kept.load().annotations == list(SHAPES[2:])


def test_a_file_with_one_bad_region_is_kept_beside_what_was_read_of_it(slide_path: Path) -> None:
    kept = AnnotationStore(slide_path, "f" * 64, BOUNDS)
    kept.save(SHAPES, 1)
    document = json.loads(kept.beside.read_text(encoding="utf-8"))
    document["features"].append({"type": "Point", "coordinates": ["here"]})
    kept.beside.write_text(json.dumps(document), encoding="utf-8")
    before = kept.beside.read_bytes()
    again = AnnotationStore(slide_path, "f" * 64, BOUNDS)
    found = again.load()
    assert found.annotations == list(SHAPES)
    assert f"1 feature was left out: feature {len(SHAPES) + 1}: " in found.note
    again.save(SHAPES[:1], 1)
    (aside,) = slide_path.parent.glob("*.kept-*")
    assert aside.read_bytes() == before


def test_a_late_save_does_not_undo_a_newer_one(slide_path: Path) -> None:
    """One that waited for a thread while the slide was closed, which saves at once."""
    kept = AnnotationStore(slide_path, "f" * 64, BOUNDS)
    kept.save(SHAPES, 2)
    assert kept.save(SHAPES[:1], 1) == ""
    assert kept.load().annotations == list(SHAPES)


def test_a_save_that_failed_can_be_tried_again(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = AnnotationStore(slide_path, "f" * 64, BOUNDS)

    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_annotations", full)
        with pytest.raises(AnnotationsError):
            kept.save(SHAPES, 1)
    kept.save(SHAPES, 1)
    assert AnnotationStore(slide_path, "f" * 64, BOUNDS).load().annotations == list(SHAPES)


def test_what_is_set_aside_comes_back_where_nothing_can_be_written(
    slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, other = AnnotationStore(slide_path, "f" * 64, BOUNDS), AnnotationStore(slide_path, "f" * 64, BOUNDS)
    other.save(SHAPES, 1)

    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_annotations", full)
        with pytest.raises(AnnotationsError, match="No space left"):
            kept.save(SHAPES[:1], 1)
    assert AnnotationStore(slide_path, "f" * 64, BOUNDS).load().annotations == list(SHAPES)
    assert list(slide_path.parent.iterdir()) == [kept.beside]


def test_no_file_that_was_set_aside_is_overwritten(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by another of the same second."""
    monkeypatch.setattr(store.time, "strftime", lambda _: "20260101-000000")
    for count in (1, 2, 3):
        other = AnnotationStore(slide_path, "f" * 64, BOUNDS)
        other.load()
        other.save(SHAPES[:count], 1)
        AnnotationStore(slide_path, "f" * 64, BOUNDS).save([], 1)  # never read what is there
    found = [json.loads(path.read_text(encoding="utf-8")) for path in slide_path.parent.glob("*.kept-*")]
    assert sorted(len(each["features"]) for each in found) == [1, 2, 3]

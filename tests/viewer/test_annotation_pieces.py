"""Regions as napari holds them and as files keep them, without a window."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lrmil._viewer.docks.annotations import classes, store
from napari_lrmil._viewer.docks.annotations.pieces import (
    Piece,
    alike,
    annotation_of,
    area_l0_px2,
    box_of,
    pieces_of,
)
from napari_lrmil._viewer.docks.annotations.store import RegionsError, RegionStore
from napari_lrmil._viewer.docks.annotations.sync import as_drawn, what_changed
from napari_lrmil.export.annotation import Annotation

SQUARE = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
SHAPES = (
    Annotation("polygon", (SQUARE,)),
    Annotation("polygon", (((0, 0), (9, 1), (5, 8)),), name="a", class_name="Tumour", locked=True),
    Annotation("polygon", (SQUARE, ((20, 20), (30, 20), (25, 28))), ((((2, 2), (4, 2), (3, 4)),), ())),
    Annotation("line", (((0, 0), (5, 5), (9, 1)), ((1, 1), (2, 2)))),
    Annotation("points", (((3, 4), (5, 6)),)),
)
BOUNDS = (1000, 2000, 5000, 4000)


@pytest.mark.parametrize("annotation", SHAPES)
def test_pieces_and_back(annotation: Annotation) -> None:
    assert annotation_of(pieces_of(annotation), annotation) == annotation


def test_kinds_of_pieces() -> None:
    """Upright rectangles can be resized as such; QuPath's ellipses come back as ellipses."""
    ellipse = Annotation(
        "polygon", (((0, 5), (10, 0), (20, 5), (10, 10)),), geometry_extras={"isEllipse": True}
    )
    assert [piece.kind for piece in pieces_of(SHAPES[0])] == ["rectangle"]
    assert [piece.kind for piece in pieces_of(SHAPES[1])] == ["polygon"]
    assert [(piece.part, piece.hole) for piece in pieces_of(SHAPES[2])] == [(0, -1), (0, 0), (1, -1)]
    (piece,) = pieces_of(ellipse)
    assert piece.kind == "ellipse"
    assert piece.vertices_l0_yx.tolist() == [[0, 0], [0, 20], [10, 20], [10, 0]]


@given(left=st.floats(0, 2e5), top=st.floats(0, 2e5), width=st.floats(2, 1e4), height=st.floats(2, 1e4))
def test_ellipse_keeps_its_box(left: float, top: float, width: float, height: float) -> None:
    """The outline touches its box, so that QuPath, which goes by the box, gets the same ellipse."""
    box = np.array([(top, left), (top, left + width), (top + height, left + width), (top + height, left)])
    made = annotation_of([Piece("a", "ellipse", 0, -1, box)], None)
    assert made is not None
    assert made.geometry_extras == {"isEllipse": True}
    assert box_of(made) == pytest.approx((left, top, width, height), abs=1e-6)
    assert area_l0_px2(made) == pytest.approx(np.pi * width * height / 4, rel=5e-4)


def test_turned_ellipse_is_a_polygon() -> None:
    box = np.array([(0.0, 5.0), (5.0, 10.0), (10.0, 5.0), (5.0, 0.0)])
    made = annotation_of([Piece("a", "ellipse", 0, -1, box)], None)
    assert made is not None
    assert made.geometry_extras == {}


def test_area_is_less_its_holes() -> None:
    assert area_l0_px2(SHAPES[0]) == 100
    assert area_l0_px2(SHAPES[2]) == 100 + 40 - 2
    assert area_l0_px2(SHAPES[3]) == 0


def test_shape_without_extent_is_no_region() -> None:
    dot = np.zeros((4, 2))
    assert annotation_of([Piece("a", "rectangle", 0, -1, dot)], None) is None
    assert annotation_of([], None) is None


def new(original: Annotation | None) -> Annotation:
    return Annotation("points", (((0, 0),),), name=None if original is None else original.name, id="new")


def test_untouched_regions_keep_every_digit() -> None:
    """napari holds single precision; what wasn't moved isn't rounded by it."""
    fine = Annotation("polygon", (((123456.123, 1.001), (123460.777, 2.003), (123458.5, 9.009)),), id="a")
    drawn = as_drawn(pieces_of(fine))
    held = [
        piece._replace(vertices_l0_yx=piece.vertices_l0_yx.astype(np.float32)) for piece in pieces_of(fine)
    ]
    change = what_changed({"a": fine}, drawn, held, make=new)
    assert not change.changed
    assert change.annotations["a"] is fine


def test_moved_pasted_drawn_and_deleted() -> None:
    first, second = (
        Annotation("polygon", (SQUARE,), id="a", name="A"),
        Annotation("polygon", (SQUARE,), id="b"),
    )
    annotations = {"a": first, "b": second}
    drawn = as_drawn([*pieces_of(first), *pieces_of(second)])
    (piece,) = pieces_of(first)
    moved = piece._replace(vertices_l0_yx=piece.vertices_l0_yx + 5)
    change = what_changed(annotations, drawn, [moved, piece], make=new)  # b deleted, a moved and pasted
    assert change.removed == [second]
    assert box_of(change.annotations["a"]) == (5, 5, 10, 10)
    assert change.annotations["new"].name == "A"
    assert [each.region_id for each in change.pieces] == ["a", "new"]
    stray = Piece("", "rectangle", 0, -1, np.zeros((4, 2)))
    fresh = what_changed({}, {}, [piece._replace(region_id="")], make=new)
    assert list(fresh.annotations) == ["new"]
    assert what_changed({}, {}, [stray], make=new).strays == [0]


def test_regions_of_a_deleted_layer_stay() -> None:
    first = Annotation("polygon", (SQUARE,), id="a")
    assert not what_changed({"a": first}, {}, [], make=new).changed


def test_alike_forgives_rounding_only() -> None:
    one = Annotation("polygon", (((0, 0), (9, 1), (5, 8)),), id="a")
    near = Annotation("polygon", (((0.004, 0), (9, 1), (5, 8)),), id="a")
    far = Annotation("polygon", (((0.1, 0), (9, 1), (5, 8)),), id="a")
    assert alike(one, near)
    assert not alike(one, far)


def test_class_colours() -> None:
    stated = Annotation("points", (((0, 0),),), class_name="Tumour", class_color_rgb=(1, 2, 3))
    other = Annotation("points", (((0, 0),),), class_name="Fat")
    names = classes.class_names([stated, other], ["benign"])
    assert names == ("benign", "Tumour", "Fat")
    colours = classes.class_colours([stated, other], names)
    assert colours == {"Tumour": (1, 2, 3), "benign": classes.PALETTE[0], "Fat": classes.PALETTE[1]}


@pytest.fixture
def slide_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(store.DATA_DIR_VARIABLE, str(tmp_path / "data"))
    (tmp_path / "slides").mkdir()
    return tmp_path / "slides" / "a.svs"


def test_store_writes_beside_the_slide(slide_path: Path) -> None:
    regions = RegionStore(slide_path, "f" * 64, BOUNDS)
    assert regions.save([]) == ""
    assert list(slide_path.parent.iterdir()) == []  # nothing to keep, no file
    regions.save(SHAPES)
    file = slide_path.with_name("a.svs.lrmil-annotations.geojson")
    assert list(slide_path.parent.iterdir()) == [file]
    first = json.loads(file.read_text(encoding="utf-8"))["features"][0]
    assert first["geometry"]["coordinates"][0][0] == [-1000, -2000]  # QuPath counts from the bounds
    found = RegionStore(slide_path, "f" * 64, BOUNDS).load()
    assert found.annotations == list(SHAPES)
    assert found.note == ""
    regions.save([])
    assert RegionStore(slide_path, "f" * 64, BOUNDS).load().annotations == []


def test_store_in_a_read_only_folder(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.write_annotations

    def refusing(path: Path, *arguments: object, **options: object) -> Path:
        if path.parent == slide_path.parent:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write_annotations", refusing)
    regions = RegionStore(slide_path, "f" * 64, BOUNDS)
    assert "read-only" in regions.save(SHAPES)
    renamed = slide_path.with_name("renamed.svs")  # the fingerprint finds it again
    found = RegionStore(renamed, "f" * 64, BOUNDS).load()
    assert found.annotations == list(SHAPES)
    assert "read-only" in found.note


def test_store_says_when_the_disk_is_full(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = RegionStore(slide_path, "f" * 64, BOUNDS)
    regions.save(SHAPES[:1])

    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_annotations", full)
    with pytest.raises(RegionsError, match=r"No space left.*Free some space"):
        regions.save(SHAPES)
    monkeypatch.undo()
    assert len(RegionStore(slide_path, "f" * 64, BOUNDS).load().annotations) == 1


@pytest.mark.parametrize("content", ["{ half a fi", None])
def test_store_never_overwrites_what_it_did_not_write(slide_path: Path, content: str | None) -> None:
    """Neither a damaged file, nor one that another program changed since it was read."""
    regions = RegionStore(slide_path, "f" * 64, BOUNDS)
    if content is None:
        regions.save(SHAPES[:1])
        other = RegionStore(slide_path, "f" * 64, BOUNDS)
        other.load()
        other.save(SHAPES[:2])
    else:
        regions.beside.write_text(content, encoding="utf-8")
        found = regions.load()
        assert found.annotations == []
        assert "can't be read" in found.note
    before = regions.beside.read_bytes()
    note = regions.save(SHAPES[2:])
    (kept,) = slide_path.parent.glob("*.kept-*")
    assert kept.name in note
    assert kept.read_bytes() == before
    assert regions.load().annotations == list(SHAPES[2:])

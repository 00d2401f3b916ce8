"""Annotations as the pieces that napari draws, and back; their classes and colours."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_shapes import SHAPES, SQUARE
from hypothesis import given
from hypothesis import strategies as st

from napari_lrmil._viewer.docks.annotations import panel
from napari_lrmil._viewer.docks.annotations.pieces import (
    Piece,
    alike,
    annotation_of,
    area_l0_px2,
    as_drawn,
    box_of,
    pieces_of,
    read_edits,
)
from napari_lrmil.export.annotation import Annotation


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


def test_shape_without_extent_is_no_annotation() -> None:
    dot = np.zeros((4, 2))
    assert annotation_of([Piece("a", "rectangle", 0, -1, dot)], None) is None
    assert annotation_of([], None) is None


def new(original: Annotation | None) -> Annotation:
    return Annotation("points", (((0, 0),),), name=None if original is None else original.name, id="new")


def test_untouched_annotations_keep_every_digit() -> None:
    """napari holds single precision; what wasn't moved isn't rounded by it."""
    fine = Annotation("polygon", (((123456.123, 1.001), (123460.777, 2.003), (123458.5, 9.009)),), id="a")
    drawn = as_drawn(pieces_of(fine))
    held = [
        piece._replace(vertices_l0_yx=piece.vertices_l0_yx.astype(np.float32)) for piece in pieces_of(fine)
    ]
    edits = read_edits({"a": fine}, drawn, held, make=new)
    assert not edits.changed
    assert edits.annotations["a"] is fine


def test_moved_pasted_drawn_and_deleted() -> None:
    first, second = (
        Annotation("polygon", (SQUARE,), id="a", name="A"),
        Annotation("polygon", (SQUARE,), id="b"),
    )
    annotations = {"a": first, "b": second}
    drawn = as_drawn([*pieces_of(first), *pieces_of(second)])
    (piece,) = pieces_of(first)
    moved = piece._replace(vertices_l0_yx=piece.vertices_l0_yx + 5)
    edits = read_edits(annotations, drawn, [moved, piece], make=new)  # b deleted, a moved and pasted
    assert edits.removed == [second]
    assert box_of(edits.annotations["a"]) == (5, 5, 10, 10)
    assert edits.annotations["new"].name == "A"
    assert [each.annotation_id for each in edits.pieces] == ["a", "new"]
    stray = Piece("", "rectangle", 0, -1, np.zeros((4, 2)))
    fresh = read_edits({}, {}, [piece._replace(annotation_id="")], make=new)
    assert list(fresh.annotations) == ["new"]
    assert read_edits({}, {}, [stray], make=new).without_extent == [0]


def test_annotations_of_a_deleted_layer_stay() -> None:
    first = Annotation("polygon", (SQUARE,), id="a")
    assert not read_edits({"a": first}, {}, [], make=new).changed


def test_alike_forgives_rounding_only() -> None:
    one = Annotation("polygon", (((0, 0), (9, 1), (5, 8)),), id="a")
    near = Annotation("polygon", (((0.004, 0), (9, 1), (5, 8)),), id="a")
    far = Annotation("polygon", (((0.1, 0), (9, 1), (5, 8)),), id="a")
    assert alike(one, near)
    assert not alike(one, far)


def test_class_colours() -> None:
    stated = Annotation("points", (((0, 0),),), class_name="Tumour", class_color_rgb=(1, 2, 3))
    other = Annotation("points", (((0, 0),),), class_name="Fat")
    names = panel.class_names([stated, other], ["benign"])
    assert names == ("benign", "Tumour", "Fat")
    colours = panel.class_colours([stated, other], names)
    assert colours == {"Tumour": (1, 2, 3), "benign": panel.PALETTE[0], "Fat": panel.PALETTE[1]}

"""Annotations of every kind, for tests."""

from __future__ import annotations

from napari_lrmil.export.annotation import Annotation

SQUARE = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
SHAPES = (
    Annotation("polygon", (SQUARE,)),
    Annotation("polygon", (((0, 0), (9, 1), (5, 8)),), name="a", class_name="Tumour", locked=True),
    Annotation("polygon", (SQUARE, ((20, 20), (30, 20), (25, 28))), ((((2, 2), (4, 2), (3, 4)),), ())),
    Annotation("line", (((0, 0), (5, 5), (9, 1)), ((1, 1), (2, 2)))),
    Annotation("points", (((3, 4), (5, 6)),)),
)

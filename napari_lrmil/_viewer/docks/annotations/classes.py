"""Classes of regions and their colours. No Qt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from napari_lrmil.export.annotation import Annotation

RGB = tuple[int, int, int]

PALETTE: tuple[RGB, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (204, 121, 167),
)
"""Okabe and Ito's: told apart by colour-blind eyes. Those that H&E leaves free come first, its pink last."""
UNCLASSED: RGB = (60, 60, 60)


def class_names(annotations: Iterable[Annotation], model_classes: Sequence[str]) -> tuple[str, ...]:
    """The classes to offer: those of the model, then others in the order of their first region."""
    used = (annotation.class_name for annotation in annotations if annotation.class_name)
    return tuple(dict.fromkeys((*model_classes, *used)))


def class_colours(annotations: Iterable[Annotation], names: Sequence[str]) -> dict[str, RGB]:
    """A colour for each class: the file's own where it states one, else the first that is free."""
    stated: dict[str, RGB] = {}
    for annotation in annotations:
        if annotation.class_name and annotation.class_color_rgb is not None:
            stated.setdefault(annotation.class_name, annotation.class_color_rgb)
    free = [colour for colour in PALETTE if colour not in stated.values()] or list(PALETTE)
    colours, taken = dict(stated), 0
    for name in names:
        if name not in colours:
            colours[name] = free[taken % len(free)]
            taken += 1
    return colours

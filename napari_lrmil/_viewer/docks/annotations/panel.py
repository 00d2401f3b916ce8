"""What the annotations dock shows, as plain values: its rows, classes, colours and words. No Qt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil._viewer.docks.annotations.pieces import area_l0_px2
from napari_lrmil.export.annotation import Annotation

if TYPE_CHECKING:
    from napari_lrmil._viewer.docks.annotations.store import AnnotationStore
    from napari_lrmil.slide import Slide


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
PAN = "pan"
"""The tool that moves the view: none that draws is in hand."""
UNCLASSED: RGB = (60, 60, 60)
"""Of annotations without a class."""


class AnnotationRow(NamedTuple):
    """An annotation in the list."""

    annotation_id: str
    name: str
    class_name: str
    colour: RGB
    extent: str


@dataclass(frozen=True)
class AnnotationsPanel:
    """Everything the dock shows. `tool` is 'rectangle', 'ellipse', 'polygon', 'point' or 'pan'."""

    has_slide: bool = False
    ready: bool = False
    rows: tuple[AnnotationRow, ...] = ()
    classes: tuple[str, ...] = ()
    new_class: str = ""
    tool: str = PAN
    can_undo: bool = False
    bounded: bool = False
    status: str = ""
    error: str = ""


def class_names(annotations: Iterable[Annotation], model_classes: Sequence[str]) -> tuple[str, ...]:
    """The classes to offer: those of the model, then others in the order of their first annotation."""
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


def next_name(annotations: Iterable[Annotation]) -> str:
    """``Annotation 4`` where 3 is the highest so far."""
    numbers = [
        int(found[1])
        for each in annotations
        if each.name and (found := re.fullmatch(r"(?:Annotation|Region) (\d+)", each.name))
    ]
    return f"Annotation {max(numbers, default=0) + 1}"


def extent(annotation: Annotation, slide: Slide) -> str:
    """Area of a polygon; what it is, of lines and points."""
    if annotation.kind == "points":
        count = sum(len(ring) for ring in annotation.rings_l0_xy)
        return "point" if count == 1 else f"{count} points"
    if annotation.kind == "line":
        return "line"
    area_px2 = area_l0_px2(annotation)
    if not slide.has_mpp:
        return f"{area_px2:,.0f} px²"
    mpp_x, mpp_y = slide.mpp_xy
    area_um2 = area_px2 * mpp_x * mpp_y
    return f"{area_um2 / 1e6:.3g} mm²" if area_um2 >= 1e4 else f"{area_um2:,.0f} µm²"


def counted(count: int) -> str:
    """``1 annotation``, ``2 annotations``."""
    return "1 annotation" if count == 1 else f"{count:,} annotations"


def where_kept(store: AnnotationStore | None, count: int, *, saving: bool) -> str:
    """Where the annotations are kept, or what to do first."""
    if store is None:
        return "Looking for annotations kept earlier …"
    if saving:
        return "Saving …"
    if not count:
        return "Choose a tool and draw on the slide. Annotations are saved by themselves."
    beside = "beside the slide" if store.where == store.beside else "on this computer"
    return f"{counted(count)}, saved {beside}."


def imported(new: Sequence[Annotation], same: int, left_out: str = "") -> str:
    """What an import brought, and what of the file couldn't be read."""
    text = f"{counted(len(new))} imported"
    if same:
        text += f", {same:,} there already"
    notes = list(dict.fromkeys(note for each in new for note in each.notes))
    return " ".join([f"{text}.", *filter(None, [left_out]), *notes[:3]])


def too_many(count: int, limit: int) -> str:
    """Why nothing was imported."""
    return (
        f"The file holds {count:,} annotations; this panel shows up to {limit:,}. Nothing was imported. Export "
        "only the ones you need from QuPath (select them first)."
    )

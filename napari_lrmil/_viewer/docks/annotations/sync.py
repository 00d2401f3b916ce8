"""What the user did in napari's layers, told from what the layers hold now. Pure. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil._viewer.docks.annotations.pieces import Piece, annotation_of
from napari_lrmil.export.annotation import Annotation

Drawn = Mapping[tuple[str, int, int], tuple[str, NDArray[np.float32]]]
"""By `Piece.key`: kind and vertices as they were drawn last, in napari's single precision."""


class Change(NamedTuple):
    """The regions after what the user did.

    `pieces` are the layers' in their order, now with their regions; `strays` the places in it of shapes
    that have no extent and are no region.
    """

    annotations: dict[str, Annotation]
    pieces: list[Piece]
    strays: list[int]
    removed: list[Annotation]
    changed: bool


def as_drawn(pieces: Sequence[Piece]) -> dict[tuple[str, int, int], tuple[str, NDArray[np.float32]]]:
    """What to compare with next time."""
    return {piece.key: (piece.kind, piece.vertices_l0_yx.astype(np.float32)) for piece in pieces}


def what_changed(
    annotations: Mapping[str, Annotation],
    drawn: Drawn,
    pieces: Sequence[Piece],
    *,
    make: Callable[[Annotation | None], Annotation],
) -> Change:
    """Compare regions with what the layers hold.

    A region that wasn't touched stays the same object, to the last digit: napari rounds what it is given.

    Parameters
    ----------
    annotations : mapping of id to Annotation
    drawn : mapping
        See `as_drawn`. A region with no entry isn't in any layer, and is left alone.
    pieces : sequence of Piece
        What the layers hold.
    make : callable
        A new region without shape, for something drawn (None) or pasted (its original): new id, name, class.
    """
    groups: dict[str, list[Piece]] = {}
    seen: set[tuple[str, int, int]] = set()
    fresh: dict[str, Annotation] = {}
    labelled: list[Piece] = []
    for piece in pieces:
        if piece.region_id in annotations and piece.key not in seen and piece.key in drawn:
            seen.add(piece.key)
        elif piece.region_id in annotations:  # pasted: what was one region is one again
            original = piece.region_id
            if original not in fresh or any(
                (each.part, each.hole) == (piece.part, piece.hole) for each in groups[fresh[original].id]
            ):
                fresh[original] = make(annotations[original])
            piece = piece._replace(region_id=fresh[original].id)
        else:
            base = make(None)
            fresh[base.id] = base
            piece = Piece(base.id, piece.kind, 0, -1, piece.vertices_l0_yx)
        labelled.append(piece)
        groups.setdefault(piece.region_id, []).append(piece)
    after: dict[str, Annotation] = {}
    removed: list[Annotation] = []
    for region_id, annotation in annotations.items():
        keys = {key for key in drawn if key[0] == region_id}
        now = groups.get(region_id, [])
        if not keys or _untouched(keys, drawn, now):
            after[region_id] = annotation
            continue
        rebuilt = annotation_of(now, annotation)
        if rebuilt is None:
            removed.append(annotation)
        else:
            after[region_id] = rebuilt
    bases = {base.id: base for base in fresh.values()}
    for region_id, now in groups.items():
        if region_id not in annotations:
            built = annotation_of(now, bases.get(region_id))
            if built is not None:
                after[region_id] = built
    strays = [at for at, piece in enumerate(labelled) if piece.region_id not in after]
    same = after.keys() == annotations.keys() and all(after[key] is annotations[key] for key in after)
    return Change(after, labelled, strays, removed, not same)


def _untouched(keys: set[tuple[str, int, int]], drawn: Drawn, now: Sequence[Piece]) -> bool:
    if {piece.key for piece in now} != keys:
        return False
    return all(
        drawn[piece.key][0] == piece.kind
        and np.array_equal(drawn[piece.key][1], piece.vertices_l0_yx.astype(np.float32))
        for piece in now
    )

"""Bags: a slide's instance embeddings with its label, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_lrmil.model.mil import Bag
from napari_lrmil.slide.tiles import parents_in
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles

A = TypeVar("A")
B = TypeVar("B")
_SMALL = 2**20
"""Bytes of a bag."""


class Instances(Protocol):
    """Where bags come from: stored embeddings, or what is derived of them."""

    @property
    def key(self) -> str:
        """Changes with what they are made from, but for the slides themselves."""

    def instances(self, slide_id: str) -> NDArray[np.float16]:
        """Return the bag of a slide, (N, D)."""


class SlideBag(NamedTuple):
    """One slide: (N, D) embeddings and its class as an index."""

    name: str
    instance_embeddings: Tensor
    label: int

    def on(self, device: torch.device) -> Bag:
        """Return what a head reads of it."""
        return Bag(self.instance_embeddings.to(device))


class Bags(Sequence[SlideBag]):
    """The bags of labelled slides, of which the first that fit stay in memory.

    Not the last used: each epoch takes every bag once, and a cache that gives up what was longest unused would
    never hit.

    Parameters
    ----------
    store : Instances
    rows : iterable of SlideRow
        Their order is that of the bags.
    class_names : tuple of str
    cache_bytes : float
    """

    def __init__(
        self,
        store: Instances,
        rows: Iterable[SlideRow],
        class_names: tuple[str, ...],
        *,
        cache_bytes: float = 2**30,
    ) -> None:
        self._store = store
        self._names: list[str] = []
        labels = []
        for row in rows:
            if row.label is None:
                raise ValueError(f"{row.slide_id} has no label")
            self._names.append(row.slide_id)
            labels.append(class_names.index(row.label))
        self.labels: NDArray[np.int64] = np.asarray(labels, np.int64)
        """(number of bags,) classes"""
        self._left = cache_bytes
        self._kept: dict[int, NDArray[np.float16]] = {}

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> SlideBag: ...
    @overload
    def __getitem__(self, index: slice) -> list[SlideBag]: ...
    def __getitem__(self, index: int | slice) -> SlideBag | list[SlideBag]:
        """Return one bag, as float32."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        values = self._kept.get(index)
        if values is None:
            values = self._store.instances(self._names[index])
            if values.nbytes <= self._left:
                self._left -= values.nbytes
                self._kept[index] = values
        return SlideBag(
            self._names[index], torch.from_numpy(values.astype(np.float32)), int(self.labels[index])
        )

    def __iter__(self) -> Iterator[SlideBag]:
        return self.in_order(range(len(self)))

    def in_order(self, order: Iterable[int]) -> Iterator[SlideBag]:
        """Yield bags by index, the next one read while the last is used; small ones in memory just so."""
        order = list(order)
        # Handing a bag from thread to thread takes longer than turning a small one into float32.
        at_hand = all(index in self._kept and self._kept[index].nbytes <= _SMALL for index in order)
        return map(self.__getitem__, order) if at_hand else read_ahead(self.__getitem__, order)


def read_ahead(read: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield ``map(read, items)``, one read ahead in a thread of its own."""
    with ThreadPoolExecutor(1, thread_name_prefix="lrmil-read-ahead") as pool:
        waiting = None
        for item in items:
            following = pool.submit(read, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def parents_in_bag(tiles: SlideTiles, ratio: int) -> NDArray[np.int64]:
    """Return the index in the LR bag of the tile that each HR tile lies in, (M,); -1 where it isn't in the bag."""
    return parents_in(tiles.hr_places, tiles.lr_places, tiles.lr_shape_yx, ratio)


def means_of_children(
    tiles: SlideTiles, ratio: int, values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return for each LR tile of a slide the mean over its HR tiles, and how many it has.

    Parameters
    ----------
    tiles : SlideTiles
        N LR tiles, M HR tiles.
    ratio : int
    values : (M, D) array
        Of the HR tiles.

    Returns
    -------
    (N, D) array, (N,) array
        0 where a tile has none.
    """
    parent = parents_in_bag(tiles, ratio)
    known = parent >= 0
    sums = np.zeros((len(tiles.lr_places), values.shape[1]))
    np.add.at(sums, parent[known], values[known])
    counts = np.bincount(parent[known], minlength=len(sums))
    return sums / np.maximum(counts, 1)[:, None], counts

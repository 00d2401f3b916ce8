"""Bags: a slide's instance embeddings with its label, read when they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_lrmil.model.mil import AnyBag, Bag
from napari_lrmil.predict import bag_on_grid
from napari_lrmil.slide.tiles import parents_in
from training.data.table import SlideRow
from training.data.tile_index import Reading, SlideTiles, TileGeometry
from training.hashing import content_hash

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


@dataclass(frozen=True)
class Several:
    """Bags of several magnifications, all tiles of each, as prediction makes them of a slide.

    Attributes
    ----------
    stores : mapping
        Reading -> stored embeddings of its tiles, the coarsest first.
    tiles : mapping of str to SlideTiles
    geometry : TileGeometry
    """

    stores: Mapping[Reading, Instances]
    tiles: Mapping[str, SlideTiles]
    geometry: TileGeometry

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The tiles of each magnification, the coarsest first."""
        return tuple(self.stores)

    @property
    def key(self) -> str:
        """See `Instances`."""
        return content_hash("several", [(tuple(one), store.key) for one, store in self.stores.items()])

    def instances(self, slide_id: str) -> NDArray[np.float16]:
        """Return the finest bag of a slide, (N, D)."""
        return list(self.stores.values())[-1].instances(slide_id)

    def magnifications(self, slide_id: str) -> tuple[NDArray[np.float16], ...]:
        """Return the embeddings of each magnification, the coarsest first."""
        return tuple(store.instances(slide_id) for store in self.stores.values())

    def bags(self, slide_id: str, embeddings: Sequence[Tensor]) -> tuple[Bag, ...]:
        """Return them as a head reads them."""
        found: list[Bag] = []
        coarser: Reading | None = None
        for reading, values in zip(self.stores, embeddings, strict=True):
            here, parents = self.tiles[slide_id].several[reading], None
            if coarser is not None:
                there = self.tiles[slide_id].several[coarser]
                parents = parents_in(
                    here.places, there.places, there.shape_yx, coarser.times // reading.times
                )
            found.append(bag_on_grid(values, here.places, self.geometry.mpp(reading), parents))
            coarser = reading
        return tuple(found)


class SlideBag(NamedTuple):
    """One slide: (N, D) embeddings and its class as an index."""

    name: str
    instance_embeddings: Tensor
    """Of several magnifications those of the finest."""
    label: int
    several: tuple[Bag, ...] = ()
    """Of several magnifications all of them, the coarsest first."""

    def on(self, device: torch.device | str, dtype: torch.dtype | None = None) -> AnyBag:
        """Return what a head reads of it, its embeddings as `dtype`."""
        if self.several:
            return tuple(one.on(device, dtype) for one in self.several)
        return Bag(self.instance_embeddings).on(device, dtype)

    def part_for(self, choose: Callable[[AnyBag], AnyBag]) -> SlideBag:
        """Return what is left of several magnifications by `choose`, see `MILModel.part_to_read`; others stay as they are."""
        if not self.several:
            return self
        left = choose(self.several)
        assert isinstance(left, tuple)
        return self._replace(instance_embeddings=left[-1].embeddings, several=left)


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
        self._kept: dict[int, tuple[NDArray[np.float16], ...]] = {}
        self._view: Callable[[SlideBag], SlideBag] | None = None

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
        name, store = self._names[index], self._store
        values = self._kept.get(index)
        if values is None:
            values = store.magnifications(name) if isinstance(store, Several) else (store.instances(name),)
            n_bytes = sum(one.nbytes for one in values)
            if n_bytes <= self._left:
                self._left -= n_bytes
                self._kept[index] = values
        tensors = [torch.from_numpy(one.astype(np.float32)) for one in values]
        several = store.bags(name, tensors) if isinstance(store, Several) else ()
        bag = SlideBag(name, tensors[-1], int(self.labels[index]), several)
        return bag if self._view is None else self._view(bag)

    def seen_by(self, view: Callable[[SlideBag], SlideBag]) -> Bags:
        """Return these bags, each as `view` makes it when it is asked for."""
        found = copy.copy(self)
        found._view = view
        return found

    def __iter__(self) -> Iterator[SlideBag]:
        return self.in_order(range(len(self)))

    def in_order(self, order: Iterable[int]) -> Iterator[SlideBag]:
        """Yield bags by index, the next one read while the last is used; small ones in memory just so."""
        order = list(order)
        # Handing a bag from thread to thread takes longer than turning a small one into float32.
        at_hand = all(
            index in self._kept and sum(one.nbytes for one in self._kept[index]) <= _SMALL for index in order
        )
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

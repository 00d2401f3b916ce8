"""Stage 1's training pairs: an LR tile and the teacher's embeddings of its children."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_lrmil.slide import Slide, TileGrid, choose_level, read_tile
from training.data.store import EmbeddingStore, StoredRows
from training.data.tile_index import SlideTiles, TileGeometry
from training.files import allow_open_files

MIXED_SLIDES = 256
"""Slides that are open at once: the pairs of an epoch are drawn over all slides, and of so many come in random order."""
_OPEN_FILES = 8192
"""Enough for these slides, with several files or handles each, and their embeddings."""

Turned = tuple[NDArray[np.uint8], NDArray[np.int64]]


class PairBatch(NamedTuple):
    """This process's B pairs of a batch, K = ratio^2 children, L layers, D dimensions of the teacher."""

    tiles: Tensor
    """(B, T, T, 3) uint8"""
    child_embeddings: Tensor
    """(B, K, D)"""
    child_layer_tokens: Tensor
    """(L, B, K, D)"""
    child_scores: Tensor
    """(B, K) teacher's attention scores, zeros where weighting is uniform"""
    valid: Tensor
    """(B, K) bool: children with tissue"""
    slide_ids: tuple[str, ...]
    """B names"""
    weight: float
    """Of this part, so that the mean over processes of weight x mean loss is the mean over the whole batch."""
    n_pairs: int
    """Of the whole batch, all processes together"""

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch with its tensors on a device."""
        return self._replace(
            tiles=self.tiles.to(device),
            child_embeddings=self.child_embeddings.to(device),
            child_layer_tokens=self.child_layer_tokens.to(device),
            child_scores=self.child_scores.to(device),
            valid=self.valid.to(device),
        )


class SlidePairs:
    """All pairs of one slide: places of LR tiles in units of the HR grid, and their children's indices.

    Only what they follow from is held, so that a table of 1,000 slides of 10,000 tiles takes MB, not GB.
    """

    def __init__(self, tiles: SlideTiles, *, ratio: int, shifted: bool, min_children: float) -> None:
        self.tiles = tiles
        self._ratio, self._step = ratio, 1 if shifted else ratio
        rows, cols = tiles.lr_shape_yx[0] * ratio, tiles.lr_shape_yx[1] * ratio
        self._index_of = np.full((rows, cols), -1, np.int32)
        self._index_of[tiles.hr_places[:, 0], tiles.hr_places[:, 1]] = np.arange(len(tiles.hr_places))
        self._enough = (self._windows() >= 0).mean(axis=-1) >= min_children
        self._n = int(self._enough.sum())

    def __len__(self) -> int:
        return self._n

    @property
    def places_hr(self) -> NDArray[np.int64]:
        """(P, 2) (row, col) of the tiles' corners in the HR grid; made anew each time."""
        return np.asarray(np.argwhere(self._enough) * self._step, np.int64)

    @property
    def children(self) -> NDArray[np.int64]:
        """(P, ratio * ratio) indices of the HR tiles, -1 for one without tissue; made anew each time."""
        return np.asarray(self._windows()[self._enough], np.int64)

    def children_at(self, row: int, col: int) -> NDArray[np.int64]:
        """Return the (ratio * ratio,) children of the tile at one of `places_hr`."""
        window = self._index_of[row : row + self._ratio, col : col + self._ratio]
        return window.reshape(-1).astype(np.int64)

    def _windows(self) -> NDArray[np.int32]:
        windows = np.lib.stride_tricks.sliding_window_view(self._index_of, (self._ratio, self._ratio))
        windows = windows[:: self._step, :: self._step]
        return windows.reshape(*windows.shape[:2], self._ratio**2)  # row by row: y outer, x inner


def turn(tiles: NDArray[np.uint8], children: NDArray[np.int64], ratio: int, how: int) -> Turned:
    """Return one of the 8 turns and flips of a tile (T, T, 3), with its children (K,) permuted alike."""
    grid = children.reshape(ratio, ratio)
    tiles, grid = np.rot90(tiles, how % 4), np.rot90(grid, how % 4)
    if how >= 4:
        tiles, grid = tiles[:, ::-1], grid[:, ::-1]
    return tiles, grid.reshape(-1)


class PairLoader:
    """Batches of pairs over many slides; a process reads of pixels and embeddings what its own pairs need.

    Parameters
    ----------
    pairs : list of SlidePairs
    geometry : TileGeometry
    store : EmbeddingStore
        Of the HR tiles, with ``layer_class_tokens``.
    scores : callable, optional
        Slide id -> (M,) attention scores of its HR tiles.
    embeddings : str
        The store's array that holds the children's final class tokens.
    layer_tokens : str, optional
        That of their class tokens after some layers; None for no layers.
    layer_places : tuple of int, optional
        Which of the store's layers; None for all.
    batch_size, threads : int
        `batch_size` pairs over all processes.
    rank, world : int
        This process takes every `world`-th pair of a batch.
    """

    def __init__(
        self,
        pairs: list[SlidePairs],
        geometry: TileGeometry,
        store: EmbeddingStore,
        *,
        scores: Callable[[str], NDArray[np.float32]] | None,
        embeddings: str = "embedding",
        layer_tokens: str | None = "layer_class_tokens",
        layer_places: tuple[int, ...] | None = None,
        batch_size: int,
        threads: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._pairs = [item for item in pairs if len(item)]
        self._geometry, self._store, self._scores = geometry, store, scores
        self._arrays = embeddings, layer_tokens, layer_places
        self._batch_size, self._threads = batch_size, threads
        self._rank, self._world = rank, world

    @property
    def n_pairs(self) -> int:
        """Pairs of all slides."""
        return sum(len(item) for item in self._pairs)

    def steps(self, limit: int | None) -> int:
        """Return the number of batches that `batches` yields."""
        return -(-min(limit or self.n_pairs, self.n_pairs) // self._batch_size)

    def batches(
        self, rng: np.random.Generator, *, limit: int | None, turned: bool, start: int = 0
    ) -> Iterator[PairBatch]:
        """Yield one pass over the pairs, or over `limit` of them drawn without replacement from all slides alike.

        Parameters
        ----------
        rng : numpy Generator
        limit : int, optional
        turned : bool
        start : int
            Batches to leave out, which are not read.
        """
        which, inner, how = self._drawn(rng, limit, turned)
        with (
            _OpenPairs(self._pairs, self._open, self._threads) as slides,
            ThreadPoolExecutor(self._threads, thread_name_prefix="lrmil-pairs") as pool,
        ):
            waiting: deque[tuple[list[Future[_Loaded]], float, int]] = deque()
            for first in range(start * self._batch_size, len(which), self._batch_size):
                whole = range(first, min(first + self._batch_size, len(which)))
                mine = whole[self._rank :: self._world]
                weight = len(mine) * self._world / len(whole)
                mine = mine or whole[:1]  # all processes must step together, if only with weight 0
                jobs = [(int(which[one]), int(inner[one]), int(how[one])) for one in mine]
                # Opened before they are wanted: a batch is ready when the second one after it is asked for.
                opened = slides.of([slide for slide, _, _ in jobs])
                waiting.append(
                    (
                        [pool.submit(_load, opened[slide], pair, turns) for slide, pair, turns in jobs],
                        weight,
                        len(whole),
                    )
                )
                if len(waiting) > 2:
                    yield _collate(*waiting.popleft())
            while waiting:
                yield _collate(*waiting.popleft())

    def _drawn(
        self, rng: np.random.Generator, limit: int | None, turned: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
        """Return slides, their pairs' numbers and turns in the order of an epoch, (n,) each."""
        ends = np.cumsum([len(item) for item in self._pairs])
        n = min(limit or self.n_pairs, self.n_pairs)
        chosen = rng.permutation(rng.choice(self.n_pairs, n, replace=False) if n < self.n_pairs else n)
        which = np.searchsorted(ends, chosen, side="right").astype(np.int32)
        inner = (chosen - np.concatenate([[0], ends])[which]).astype(np.int32)
        # Slides that are open together come together; which these are, chance says.
        group = rng.permutation(len(ends)) // MIXED_SLIDES
        order = np.argsort(group[which], kind="stable")
        how = rng.integers(8, size=n, dtype=np.int8) if turned else np.zeros(n, np.int8)
        return which[order], inner[order], how

    def _open(self, index: int) -> _OpenSlide:
        item, (embeddings, layer_tokens, layer_places) = self._pairs[index], self._arrays
        name = item.tiles.row.slide_id
        check = index % self._world == self._rank  # together the processes check all
        with ExitStack() as opened:
            slide = self._geometry.open(item.tiles.row)
            opened.callback(slide.close)
            rows = opened.enter_context(self._store.rows(name, embeddings, check=check))
            layers = (
                None
                if layer_tokens is None
                else opened.enter_context(self._store.rows(name, layer_tokens, check=check))
            )
            found = _OpenSlide(
                item,
                slide,
                self._geometry.ratio,
                self._geometry.lr_grid(slide),
                choose_level(slide.level_mpps, self._geometry.mpp_lr),
                item.places_hr.astype(np.int32),
                rows,
                layers,
                layer_places,
                None if self._scores is None else self._scores(name),
            )
            opened.pop_all()  # it is `found` that is closed
            return found


@dataclass(frozen=True)
class _OpenSlide:
    """What is read of a slide."""

    pairs: SlidePairs
    slide: Slide
    ratio: int
    grid: TileGrid
    level: int
    places: NDArray[np.int32]
    embeddings: StoredRows
    layers: StoredRows | None
    layer_places: tuple[int, ...] | None
    scores: NDArray[np.float32] | None

    def close(self) -> None:
        """Close its files."""
        self.slide.close()
        self.embeddings.close()
        if self.layers is not None:
            self.layers.close()


class _OpenPairs:
    """Slides that are open: those that were wanted last, opened in threads of their own."""

    def __init__(self, pairs: list[SlidePairs], open_one: Callable[[int], _OpenSlide], threads: int) -> None:
        self._open_one = open_one
        self._opened: OrderedDict[int, Future[_OpenSlide]] = OrderedDict()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lrmil-open")
        if min(len(pairs), MIXED_SLIDES) > 64:
            allow_open_files(_OPEN_FILES)

    def __enter__(self) -> _OpenPairs:
        return self

    def of(self, wanted: list[int]) -> dict[int, Future[_OpenSlide]]:
        """Return the slides of a batch, and close what wasn't wanted for longest."""
        for index in wanted:
            if index not in self._opened:
                self._opened[index] = self._pool.submit(self._open_one, index)
            self._opened.move_to_end(index)
        found = {index: self._opened[index] for index in wanted}
        # Three batches are on their way, which may be more slides than that.
        while len(self._opened) > MIXED_SLIDES + 4 * len(wanted):
            _close(self._opened.popitem(last=False)[1])
        return found

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for one in self._opened.values():
            _close(one)


def _close(opened: Future[_OpenSlide]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()


class _Loaded(NamedTuple):
    """A pair."""

    slide_id: str
    tile: NDArray[np.uint8]
    children: NDArray[np.int64]
    embeddings: NDArray[np.float16]
    layers: NDArray[np.float16]
    scores: NDArray[np.float32]


def _load(opened: Future[_OpenSlide], number: int, how: int) -> _Loaded:
    one = opened.result()
    row, col = one.places[number].tolist()
    tile = read_tile(one.slide, one.grid, one.level, row / one.ratio, col / one.ratio)
    tile, children = turn(tile, one.pairs.children_at(row, col), one.ratio, how)
    # A child without tissue has index -1: it gets some embedding, and `valid` masks it.
    some = np.maximum(children, 0)
    embeddings = one.embeddings.take(some)
    layers = (
        np.empty((0, *embeddings.shape), np.float16)
        if one.layers is None
        else one.layers.take(some, one.layer_places)
    )
    scores = np.zeros(len(some), np.float32) if one.scores is None else one.scores[some]
    return _Loaded(one.pairs.tiles.row.slide_id, tile, children, embeddings, layers, scores)


def _collate(futures: list[Future[_Loaded]], weight: float, n_pairs: int) -> PairBatch:
    loaded = [future.result() for future in futures]
    return PairBatch(
        tiles=torch.from_numpy(np.stack([one.tile for one in loaded])),
        child_embeddings=torch.from_numpy(np.stack([one.embeddings for one in loaded])).float(),
        child_layer_tokens=torch.from_numpy(np.stack([one.layers for one in loaded], axis=1)).float(),
        child_scores=torch.from_numpy(np.stack([one.scores for one in loaded])),
        valid=torch.from_numpy(np.stack([one.children for one in loaded]) >= 0),
        slide_ids=tuple(one.slide_id for one in loaded),
        weight=weight,
        n_pairs=n_pairs,
    )

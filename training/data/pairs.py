"""Stage 1's training pairs: an LR tile and the teacher's embeddings of its children."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_lrmil.slide import Slide, choose_level, read_tile
from training.data.store import EmbeddingStore
from training.data.tile_index import SlideTiles, TileGeometry

WINDOW_SLIDES = 64
"""Slides open at once at most: pairs are shuffled within a window, so that memory doesn't grow with the table."""


Job = tuple[int, int, int]
Loaded = tuple[NDArray[np.uint8], NDArray[np.int64]]


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

    def _windows(self) -> NDArray[np.int32]:
        windows = np.lib.stride_tricks.sliding_window_view(self._index_of, (self._ratio, self._ratio))
        windows = windows[:: self._step, :: self._step]
        return windows.reshape(*windows.shape[:2], self._ratio**2)  # row by row: y outer, x inner


def turn(tiles: NDArray[np.uint8], children: NDArray[np.int64], ratio: int, how: int) -> Loaded:
    """Return one of the 8 turns and flips of a tile (T, T, 3), with its children (K,) permuted alike."""
    grid = children.reshape(ratio, ratio)
    tiles, grid = np.rot90(tiles, how % 4), np.rot90(grid, how % 4)
    if how >= 4:
        tiles, grid = tiles[:, ::-1], grid[:, ::-1]
    return tiles, grid.reshape(-1)


class PairLoader:
    """Batches of pairs over many slides, shuffled in windows of slides.

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
    window_bytes : float
        Embeddings held in memory at once, about.
    bytes_per_tile : int
        Of an HR tile's embeddings.
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
        window_bytes: float = 2**30,
        bytes_per_tile: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._pairs = [item for item in pairs if len(item)]
        self._geometry, self._store, self._scores = geometry, store, scores
        self._arrays = embeddings, layer_tokens, layer_places
        self._batch_size, self._threads = batch_size, threads
        self._rank, self._world = rank, world
        held = sum(len(item.tiles.hr_places) for item in self._pairs) * bytes_per_tile
        n_windows = max(1, math.ceil(held / window_bytes), math.ceil(len(self._pairs) / WINDOW_SLIDES))
        self._n_windows = max(1, min(n_windows, len(self._pairs)))

    @property
    def n_pairs(self) -> int:
        """Pairs of all slides."""
        return sum(len(item) for item in self._pairs)

    def batches(self, rng: np.random.Generator, *, limit: int | None, turned: bool) -> Iterator[PairBatch]:
        """Yield one pass over the pairs, or over `limit` of them drawn without replacement."""
        share = 1.0 if limit is None else min(1.0, limit / self.n_pairs)
        order = rng.permutation(len(self._pairs))
        left = min(limit or self.n_pairs, self.n_pairs)
        for number, part in enumerate(np.array_split(order, self._n_windows), start=1):
            window = [self._pairs[index] for index in part]
            last = number == self._n_windows
            wanted = left if last else min(left, round(share * sum(len(item) for item in window)))
            left -= wanted
            if not wanted:
                continue
            yield from self._window(window, rng, wanted, turned)

    def steps(self, limit: int | None) -> int:
        """Return the number of batches that `batches` yields at most; a window ends with a smaller one."""
        return -(-min(limit or self.n_pairs, self.n_pairs) // self._batch_size) + self._n_windows - 1

    def _window(
        self, window: list[SlidePairs], rng: np.random.Generator, wanted: int, turned: bool
    ) -> Iterator[PairBatch]:
        slides = [self._geometry.open(item.tiles.row) for item in window]
        try:
            data = _WindowData(window, slides, self._geometry, self._store, self._scores, *self._arrays)
            which = np.concatenate([np.full(len(item), index) for index, item in enumerate(window)])
            inner = np.concatenate([np.arange(len(item)) for item in window])
            chosen = rng.permutation(len(which))[:wanted]
            how = rng.integers(8, size=len(chosen)) if turned else np.zeros(len(chosen), int)
            jobs = list(zip(which[chosen].tolist(), inner[chosen].tolist(), how.tolist(), strict=True))
            with ThreadPoolExecutor(self._threads, thread_name_prefix="lrmil-pairs") as pool:
                waiting: deque[tuple[list[Job], list[Future[Loaded]], float, int]] = deque()
                for start in range(0, len(jobs), self._batch_size):
                    whole = jobs[start : start + self._batch_size]
                    mine = whole[self._rank :: self._world]
                    weight = len(mine) * self._world / len(whole)
                    mine = mine or whole[:1]  # all processes must step together, if only with weight 0
                    futures = [pool.submit(data.load, *job) for job in mine]
                    waiting.append((mine, futures, weight, len(whole)))
                    if len(waiting) > 2:
                        yield data.collate(*waiting.popleft())
                while waiting:
                    yield data.collate(*waiting.popleft())
        finally:
            for slide in slides:
                slide.close()


class _WindowData:
    """The open slides of a window and the teacher's embeddings of their HR tiles."""

    def __init__(
        self,
        window: list[SlidePairs],
        slides: list[Slide],
        geometry: TileGeometry,
        store: EmbeddingStore,
        scores: Callable[[str], NDArray[np.float32]] | None,
        embeddings: str,
        layer_tokens: str | None,
        layer_places: tuple[int, ...] | None,
    ) -> None:
        self._slides, self._ratio = slides, geometry.ratio
        self._grids = [geometry.lr_grid(slide) for slide in slides]
        self._levels = [choose_level(slide.level_mpps, geometry.mpp_lr) for slide in slides]
        ids = [item.tiles.row.slide_id for item in window]
        # Halves, as stored: a window is as large as memory allows.
        self._embeddings = [store.read(name, embeddings, dtype=np.float16) for name in ids]
        self._layers = [
            np.empty((0, *of_slide.shape), np.float16)
            if layer_tokens is None
            else store.read(name, layer_tokens, dtype=np.float16)[
                slice(None) if layer_places is None else list(layer_places)
            ]
            for name, of_slide in zip(ids, self._embeddings, strict=True)
        ]
        self._ids = ids
        self._places = [item.places_hr for item in window]
        self._children = [item.children for item in window]
        self._scores = [
            np.zeros(len(embeddings), np.float32) if scores is None else scores(name)
            for name, embeddings in zip(ids, self._embeddings, strict=True)
        ]

    def load(self, which: int, inner: int, how: int) -> Loaded:
        row, col = self._places[which][inner] / self._ratio
        tile = read_tile(self._slides[which], self._grids[which], self._levels[which], float(row), float(col))
        return turn(tile, self._children[which][inner], self._ratio, how)

    def collate(
        self, jobs: list[Job], futures: list[Future[Loaded]], weight: float, n_pairs: int
    ) -> PairBatch:
        tiles, children = zip(*(future.result() for future in futures), strict=True)
        rows = [(which, child) for (which, _, _), child in zip(jobs, children, strict=True)]
        # A child without tissue has index -1: it picks some embedding, and `valid` masks it.
        return PairBatch(
            tiles=torch.from_numpy(np.stack(tiles)),
            child_embeddings=torch.from_numpy(np.stack([self._embeddings[w][c] for w, c in rows])).float(),
            child_layer_tokens=torch.from_numpy(
                np.stack([self._layers[w][:, c] for w, c in rows], axis=1)
            ).float(),
            child_scores=torch.from_numpy(np.stack([self._scores[w][c] for w, c in rows])),
            valid=torch.from_numpy(np.stack(children) >= 0),
            slide_ids=tuple(self._ids[which] for which, _, _ in jobs),
            weight=weight,
            n_pairs=n_pairs,
        )

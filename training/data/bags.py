"""Bags: a slide's instance embeddings with its label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles


class Bag(NamedTuple):
    """One slide: (N, D) embeddings and its class as an index."""

    name: str
    instance_embeddings: Tensor
    label: int


def load_bags(store: EmbeddingStore, rows: Iterable[SlideRow], class_names: tuple[str, ...]) -> list[Bag]:
    """The bags of labelled slides, in the order of `rows`."""
    bags = []
    for row in rows:
        if row.label is None:
            raise ValueError(f"{row.slide_id} has no label")
        embeddings = torch.from_numpy(store.read(row.slide_id))
        bags.append(Bag(row.slide_id, embeddings, class_names.index(row.label)))
    return bags


def parents_in_bag(tiles: SlideTiles, ratio: int) -> NDArray[np.int64]:
    """Index in the LR bag of the tile that each HR tile lies in, shape (M,); -1 where it isn't in the bag."""
    index_of = np.full(tiles.lr_shape_yx, -1, np.int64)
    index_of[tiles.lr_places[:, 0], tiles.lr_places[:, 1]] = np.arange(len(tiles.lr_places))
    return index_of[tiles.hr_places[:, 0] // ratio, tiles.hr_places[:, 1] // ratio]

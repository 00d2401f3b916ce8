"""Bags that are made of stored embeddings: nothing is embedded for them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.slide.tiles import random_part
from training.data.bags import Instances, means_of_children
from training.data.store import EmbeddingStore
from training.data.tile_index import SlideTiles
from training.hashing import content_hash


@dataclass(frozen=True)
class Subset:
    """A random 1 / ratio^2 of a slide's HR tiles, one at least, the same as in serving: as many as there are LR tiles.

    Attributes
    ----------
    store : Instances
        Of HR tiles.
    tiles : mapping of str to SlideTiles
    ratio, seed : int
    """

    store: Instances
    tiles: Mapping[str, SlideTiles]
    ratio: int
    seed: int

    @property
    def key(self) -> str:
        """See `Instances`."""
        return content_hash("subset by places", self.store.key, self.ratio, self.seed)

    def chosen(self, slide_id: str) -> NDArray[np.int64]:
        """Return the indices of a slide's HR tiles that are taken, ascending."""
        return random_part(self.tiles[slide_id].hr_places, self.ratio**2, self.seed)

    def instances(self, slide_id: str) -> NDArray[np.float16]:
        """See `Instances`."""
        return self.store.instances(slide_id)[self.chosen(slide_id)]


@dataclass(frozen=True)
class ChildrenMean:
    """For each LR tile the mean of its children's HR embeddings, of those with tissue: what a perfect f' would say.

    Attributes
    ----------
    store : Instances
        Of HR tiles.
    tiles : mapping of str to SlideTiles
    ratio : int
    """

    store: Instances
    tiles: Mapping[str, SlideTiles]
    ratio: int

    @property
    def key(self) -> str:
        """See `Instances`."""
        return content_hash("children_mean", self.store.key, self.ratio)

    def instances(self, slide_id: str) -> NDArray[np.float16]:
        """See `Instances`."""
        tiles, children = self.tiles[slide_id], self.store.instances(slide_id).astype(np.float64)
        # A tile with tissue has a child with as much, by the same mask.
        return means_of_children(tiles, self.ratio, children)[0].astype(np.float16)


class RidgeFit(NamedTuple):
    """Y = X coefficients + intercept, for D inputs and E outputs."""

    coefficients: NDArray[np.float64]
    """(D, E)"""
    intercept: NDArray[np.float64]
    """(E,)"""
    strength: float
    """lambda of ||Y - X W||^2 + lambda ||W||^2, both centred"""


@dataclass(frozen=True)
class Ridged:
    """f(LR) mapped by ridge regression onto the mean of the children's HR embeddings: distillation without training.

    Attributes
    ----------
    store : Instances
        Of LR tiles.
    fit : RidgeFit
    fit_key : str
        What the fit was made from.
    """

    store: Instances
    fit: RidgeFit
    fit_key: str

    @property
    def key(self) -> str:
        """See `Instances`."""
        return content_hash("ridge", self.store.key, self.fit_key)

    def instances(self, slide_id: str) -> NDArray[np.float16]:
        """See `Instances`."""
        values = self.store.instances(slide_id).astype(np.float64)
        return (values @ self.fit.coefficients + self.fit.intercept).astype(np.float16)


_STRENGTHS = np.logspace(-6, 3, 19)
"""Of ridge regression, as shares of the inputs' largest eigenvalue."""


def fit_ridge(inputs: Instances, targets: Instances, slide_ids: Sequence[str]) -> RidgeFit:
    """Return the regression of some slides' tiles, of the strength with the least generalised cross-validation error.

    Tiles are read slide by slide; only sums of their products are held.

    Parameters
    ----------
    inputs, targets : Instances
        Of the same tiles.
    slide_ids : sequence of str
    """
    # Sums are taken around the first slide's means: else small variances would drown in large means.
    start = [one.instances(slide_ids[0]).astype(np.float64).mean(axis=0) for one in (inputs, targets)]
    (d, e), n = (len(one) for one in start), 0
    x_sum, y_sum = np.zeros(d), np.zeros(e)
    xx, xy, yy = np.zeros((d, d)), np.zeros((d, e)), 0.0
    for name in slide_ids:
        x = inputs.instances(name).astype(np.float64) - start[0]
        y = targets.instances(name).astype(np.float64) - start[1]
        n += len(x)
        x_sum, y_sum = x_sum + x.sum(axis=0), y_sum + y.sum(axis=0)
        xx, xy, yy = xx + x.T @ x, xy + x.T @ y, yy + float(np.square(y).sum())
    x_mean, y_mean = x_sum / n, y_sum / n
    xx, xy = xx - n * np.outer(x_mean, x_mean), xy - n * np.outer(x_mean, y_mean)
    yy -= n * float(np.square(y_mean).sum())
    values, vectors = np.linalg.eigh(xx)
    values, turned = np.maximum(values, 0), vectors.T @ xy
    power = np.square(turned).sum(axis=1)

    def error(strength: float) -> float:
        left = yy - float((power * (values + 2 * strength) / np.square(values + strength)).sum())
        freedom = 1 + float((values / (values + strength)).sum())
        return left / max(n - freedom, 1e-9) ** 2

    # Two inputs that are equal on every tile, or none that varies, leave strength 0 without meaning.
    strength = min(_STRENGTHS * max(float(values.max()), 1e-12), key=error)
    coefficients = vectors @ (turned / (values + strength)[:, None])
    return RidgeFit(coefficients, start[1] + y_mean - (start[0] + x_mean) @ coefficients, float(strength))


def write_shuffled(
    target: EmbeddingStore,
    source: EmbeddingStore,
    slide_ids: Sequence[str],
    names: Sequence[str],
    *,
    stamp: str,
    seed: int,
) -> None:
    """Store the tiles of some slides in random order over all of them: the same values, none at its tile.

    Parameters
    ----------
    target : EmbeddingStore
    source : EmbeddingStore
    slide_ids : sequence of str
    names : sequence of str
        Of the arrays, which stay together tile by tile.
    stamp : str
        Of each slide in `target`.
    seed : int
    """
    if all(target.has(name, stamp) for name in slide_ids):
        return
    target.prepare()
    ends = np.cumsum([source.n_tiles(name) for name in slide_ids])
    order = np.random.default_rng(seed).permutation(int(ends[-1]))
    with tempfile.TemporaryDirectory(dir=target.root) as folder:
        shuffled: dict[str, NDArray[np.float16]] = {}
        for array in names:
            for slide_id, end in zip(slide_ids, ends.tolist(), strict=True):
                values = np.moveaxis(source.read(slide_id, array, dtype=np.float16), -2, 0)  # (N, [L,] D)
                if array not in shuffled:  # on disk: all tiles of a run needn't fit into memory
                    shuffled[array] = np.memmap(
                        f"{folder}/{array}", np.float16, "w+", shape=(int(ends[-1]), *values.shape[1:])
                    )
                shuffled[array][order[end - len(values) : end]] = values
        for slide_id, start, end in zip(slide_ids, [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            arrays = {name: np.moveaxis(values[start:end], 0, -2) for name, values in shuffled.items()}
            target.write(slide_id, stamp=stamp, **arrays)
        shuffled.clear()

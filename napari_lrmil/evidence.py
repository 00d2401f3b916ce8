"""Which tiles carry a slide's classification, by leaving them out: exact, and checked against chance.

Attention says what the head weighed. What a tile does to the probability is another question, and an LR bag is small
enough to answer it exactly: classify the bag again without that tile. A head that has no short way to that, and is too
large to run as often as there are tiles, is asked so for the tiles that its gradient says matter most; the numbers of the
others are then estimates, and are called so wherever they are shown.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.model.calibration import VectorScaling, called_class

if TYPE_CHECKING:  # importing this module loads no torch: results are read without it
    from napari_lrmil.model.mil import AnyBag, MILModel

Array = NDArray[np.float64]

SATURATED_ABOVE = 0.99
"""A probability above this hardly moves when a tile is left out, whatever the tile says; its log-odds do."""

N_STEPS = 11
N_RANDOM = 20
_FEW_RANDOM = 5
"""Orders where a head is too slow for more."""
MOST_WORK = 1e11
"""Weights of the head times instances that leaving tiles out one by one may take: about half a minute on a core."""
MOST_RUNS = 2000
LEAST_EXACT = 16
"""Tiles that are left out exactly, however slow the head."""


class DeletionCurve(NamedTuple):
    """Probability of the called class as tiles are removed: by evidence, and in random orders.

    K steps. Where nothing is left, every class is equally likely by definition: all curves end in 1 / C.
    """

    fractions: Array
    """(K,) share of the tiles that is gone, from 0 to 1; small bags repeat some."""
    by_evidence: Array
    """(K,) the tiles that speak most for the class go first"""
    random_mean: Array
    """(K,) mean of the random orders"""
    random_low: Array
    """(K,) 5th percentile of the random orders"""
    random_high: Array
    """(K,) 95th percentile"""
    class_index: int
    """The class that is called, of the whole bag."""

    @property
    def saturated(self) -> bool:
        """Whether the probability is so high that taking tiles away hardly moves it."""
        return bool(self.by_evidence[0] > SATURATED_ABOVE)

    @property
    def area_gain(self) -> float:
        """Area between the random and the evidence curve, from -1 to 1.

        Positive: the tiles named as evidence matter more than tiles by chance. About 0: they don't, as where all tiles
        say the same.
        """
        gap = self.random_mean - self.by_evidence
        return float(np.sum(np.diff(self.fractions) * (gap[1:] + gap[:-1]) / 2))


class Evidence(NamedTuple):
    """What a head says of a bag of N tiles and of its parts, C classes; all in float64."""

    class_probabilities: Array
    """(C,) of the whole bag"""
    attention_scores: Array | None
    """(N,) of the class that is called, where each has its own; None where the head has no attention"""
    attention_logits: Array | None
    """(N,) the same before the softmax over the bag"""
    class_attention: Array | None
    """(C, N) attention scores of each class; None where all have the same, or none"""
    exact_tiles: NDArray[np.bool_] | None
    """(N,) whose contributions are exact, the others' being estimates; None: all"""
    class_contributions: Array
    """(N, C) probability of the whole bag minus that without tile n; positive: the tile speaks for the class."""
    log_odds_contributions: Array
    """(N, C) the same in log-odds of the class against all others, which tell tiles apart at any probability."""
    log_odds_alone: Array
    """(N, C) log-odds of the class in the bag that holds tile n alone; above 0 it is more probable than all others."""
    deletion: DeletionCurve


def explain(
    mil: MILModel,
    bag: AnyBag,
    *,
    scaling: VectorScaling,
    thresholds: Sequence[float] | None = None,
    n_random: int = N_RANDOM,
    seed: int = 0,
    most_work: float = MOST_WORK,
) -> Evidence:
    """Classify a bag, and find out what each tile does to the result: exactly, where that can be paid.

    Runs in float64 on the CPU, whatever the device of the model: a tile of a large bag moves the probability by less
    than float32 tells apart, and not every device has float64.

    Parameters
    ----------
    mil : MILModel
        Any head; it is copied, not changed.
    bag : (N, D) tensor, Bag or tuple of Bag
        Of several magnifications, the tiles are those of the finest; the coarser bags stay as they are when tiles go.
    scaling : VectorScaling
        Of the bag logits, before the softmax.
    thresholds : sequence of float, optional
        At which a class is called, see `called_class`; the deletion curve is of the class that is.
    n_random : int
        Random orders of the deletion curve.
    seed : int
        Of these orders.
    most_work : float
        See `MOST_WORK`. Of a head that would take more, tiles whose gradient promises little are estimated.

    Returns
    -------
    Evidence
        With N = 1 the bag without its tile is empty: every class is equally likely there, so that the
        contribution is p - 1 / C, and in log-odds as much.
    """
    import torch

    # Copied outside of inference mode: what is made inside could never be trained again.
    from napari_lrmil.model.mil.base import Bag, finest_bag

    exact = copy.deepcopy(mil).cpu().double().eval()
    several = bag if isinstance(bag, tuple) else (Bag.of(bag),)
    doubles = tuple(one.on("cpu", torch.float64) for one in several)
    instances: AnyBag = doubles if len(doubles) > 1 else doubles[0]
    n = len(finest_bag(instances))
    n_exact = _affordable(exact, n, most_work)
    if n_exact < n:
        n_random = min(n_random, _FEW_RANDOM)
    slopes = None if n_exact >= n else _slopes(exact, instances, scaling)
    with torch.inference_mode():
        output = exact(instances)
        whole_logits = scaling.scaled(output.bag_logits.numpy())
        whole = softmax(whole_logits)
        class_index = int(called_class(whole, thresholds))
        exact_tiles = None
        if slopes is None:
            without = scaling.scaled(exact.leave_one_out_logits(instances).numpy())  # (N, C)
        else:
            without, exact_tiles = _estimated(
                exact, instances, scaling, slopes, whole_logits, class_index, n_exact
            )
        if n == 1:
            without = np.zeros_like(without)  # nothing is left, and no bias speaks for a class either
        alone = scaling.scaled(exact.alone_logits(instances).numpy())  # (N, C)
        attention_logits = output.attention_logits_for(class_index)
        by_class = output.attention_scores
        orders = _removal_orders(without, class_index, n_random=n_random, seed=seed)
        n_removed, kept = _kept(orders)
        parts = scaling.scaled(exact.subset_logits(instances, torch.from_numpy(kept)).numpy())
        parts[~np.asarray(kept).any(axis=1)] = 0
        probabilities = softmax(parts)
    curves = probabilities[:, class_index].reshape(len(orders), N_STEPS)
    low, high = np.quantile(curves[1:], (0.05, 0.95), axis=0)
    return Evidence(
        class_probabilities=whole,
        attention_scores=None if attention_logits is None else torch.softmax(attention_logits, dim=0).numpy(),
        attention_logits=None if attention_logits is None else attention_logits.numpy(),
        class_attention=None if by_class is None or len(by_class) == 1 else by_class.numpy(),
        exact_tiles=exact_tiles,
        class_contributions=whole - softmax(without),
        log_odds_contributions=log_odds(whole_logits) - log_odds(without),
        log_odds_alone=log_odds(alone),
        deletion=DeletionCurve(
            fractions=n_removed / n,
            by_evidence=curves[0],
            random_mean=curves[1:].mean(axis=0),
            random_low=low,
            random_high=high,
            class_index=class_index,
        ),
    )


def _affordable(mil: MILModel, n: int, most_work: float) -> int:
    """How many of n tiles can be left out exactly: all where the head has a short way, or is small enough."""
    from napari_lrmil.model.mil import MILModel

    if type(mil).leave_one_out_logits is not MILModel.leave_one_out_logits:
        return n
    n_weights = sum(weights.numel() for weights in mil.parameters())
    runs = min(MOST_RUNS, int(most_work / max(1, n_weights * n)))
    return min(n, max(LEAST_EXACT, runs))


def _slopes(mil: MILModel, bag: AnyBag, scaling: VectorScaling) -> Array:
    """(N, C) by how much each scaled logit falls, to first order, where a tile becomes the mean of the tiles."""
    import torch

    from napari_lrmil.model.mil.base import finest_bag

    finest = finest_bag(bag)
    embeddings = finest.embeddings.detach().clone().requires_grad_()
    mil.requires_grad_(False)
    with torch.enable_grad():
        asked = replace(finest, embeddings=embeddings)
        logits = mil((*bag[:-1], asked) if isinstance(bag, tuple) else asked).bag_logits
        apart = finest.embeddings - finest.embeddings.mean(dim=0)
        falls = []
        for place in range(len(logits)):
            (gradient,) = torch.autograd.grad(logits[place], embeddings, retain_graph=True)
            falls.append((gradient * apart).sum(dim=1))
    found: Array = torch.stack(falls, dim=1).numpy() / np.asarray(scaling.temperatures)
    return found


def _estimated(
    mil: MILModel,
    bag: AnyBag,
    scaling: VectorScaling,
    slopes: Array,
    whole_logits: Array,
    class_index: int,
    n_exact: int,
) -> tuple[Array, NDArray[np.bool_]]:
    """(N, C) scaled logits without each tile, and which are exact.

    Exact are the tiles of steepest slope for and against the class, and a quarter spread evenly over the others, which says
    how the slopes of the rest have to be shifted and stretched to come nearest to the truth.
    """
    import torch

    order = np.argsort(log_odds(whole_logits - slopes)[:, class_index], kind="stable")
    n_spread = n_exact // 4
    n_ends = n_exact - n_spread
    first, last = (n_ends + 1) // 2, len(order) - n_ends // 2
    between = order[np.linspace(first, last - 1, n_spread).round().astype(np.int64)]
    chosen = np.concatenate([between, order[:first], order[last:]])
    kept = np.ones((n_exact, len(slopes)), bool)
    kept[np.arange(n_exact), chosen] = False
    truly = scaling.scaled(mil.subset_logits(bag, torch.from_numpy(kept)).numpy())
    without = np.empty_like(slopes)
    for one in range(slopes.shape[1]):
        steep, falls = slopes[between, one], whole_logits[one] - truly[:n_spread, one]
        middle = steep.mean()
        spread = float(((steep - middle) ** 2).sum())
        stretch = float(((steep - middle) * falls).sum()) / spread if spread > 0 else 0.0
        without[:, one] = whole_logits[one] - falls.mean() - stretch * (slopes[:, one] - middle)
    without[chosen] = truly
    exact = np.zeros(len(slopes), bool)
    exact[chosen] = True
    return without, exact


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


def log_odds(logits: Array) -> Array:
    """Return log(p / (1 - p)) of each class over the last axis, exact where p rounds to 0 or 1."""
    n_classes = logits.shape[-1]
    found: Array = np.empty_like(logits)
    for one in range(n_classes):
        others = np.delete(logits, one, axis=-1)
        top = others.max(axis=-1, keepdims=True)
        found[..., one] = logits[..., one] - top[..., 0] - np.log(np.exp(others - top).sum(axis=-1))
    return found


def _removal_orders(without: Array, class_index: int, *, n_random: int, seed: int) -> NDArray[np.int64]:
    """(1 + n_random, N) indices of the tiles as they go: by evidence first, then at random."""
    # The odds order the tiles as the probabilities do, but still tell them apart where those round to 1.
    odds = log_odds(without)[:, class_index]
    rng = np.random.default_rng(seed)
    return np.stack([np.argsort(odds, kind="stable"), *(rng.permutation(len(odds)) for _ in range(n_random))])


def _kept(orders: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How many tiles are gone at each step (K,), and which are left, (orders * K, N)."""
    n = orders.shape[1]
    n_removed = np.rint(np.linspace(0, 1, N_STEPS) * n).astype(np.int64)
    ranks = np.argsort(orders, axis=1)  # of each tile, when it goes
    return n_removed, (ranks[:, None, :] >= n_removed[:, None]).reshape(-1, n)

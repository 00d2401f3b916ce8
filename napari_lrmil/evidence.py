"""Which tiles carry a slide's classification, by leaving them out: exact, and checked against chance.

Attention says what the head weighed. What a tile does to the probability is another question, and an LR bag is small
enough to answer it exactly: classify the bag again without that tile. A head that has no short way to that, and has too
much work with a bag to be run as often as there are tiles, is asked so for the tiles that its gradient says matter most;
the numbers of the others are then estimates, and are called so wherever they are shown. What is too much is counted in
operations, not in seconds (`napari_lrmil.model.mil.work`): the same slide has the same evidence on every machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.model.calibration import VectorScaling, called_class

if TYPE_CHECKING:  # importing this module loads no torch: results are read without it
    import torch

    from napari_lrmil.model.mil import AnyBag, MILModel

Array = NDArray[np.float64]

SATURATED_ABOVE = 0.99
"""A probability above this hardly moves when a tile is left out, whatever the tile says; its log-odds do."""

N_STEPS = 11
N_RANDOM = 20
LEAST_RANDOM = 2
"""Orders where a head is too slow for more."""
MOST_WORK = 1.5e11
"""Work, see `napari_lrmil.model.mil.work`, that leaving tiles out one by one may take, and as much the tiles alone and
the deletion curve each: about 4 seconds on a core of 40 GFLOP/s in float64."""
LEAST_EXACT = 8
"""Tiles that are left out exactly, however slow the head."""
_COUNTED = 4
"""Tiles whose work is counted, of these."""


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
    """(N,) of which all is exact; of the others contributions are estimates, and so is what they say alone where that would
    have been too much work as well. None: all"""
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
        See `MOST_WORK`. Of a head that would take more, tiles whose gradient promises little are estimated, and random
        orders are fewer.

    Returns
    -------
    Evidence
        With N = 1 the bag without its tile is empty: every class is equally likely there, so that the
        contribution is p - 1 / C, and in log-odds as much.
    """
    import torch

    from napari_lrmil.model.mil.base import finest_bag

    # Copied outside of inference mode: what is made inside could never be trained again.
    exact = copy.deepcopy(mil).cpu().double().eval()
    instances = _on_cpu(bag, torch.float64)
    n = len(finest_bag(instances))
    with torch.inference_mode():
        output = exact(instances)
        whole_logits = scaling.scaled(output.bag_logits.numpy())
        whole = softmax(whole_logits)
        class_index = int(called_class(whole, thresholds))
    asked = _Asked(exact, instances, scaling)
    without, alone, exact_tiles = asked.tiles(whole_logits, class_index, most_work)
    with torch.inference_mode():
        if n == 1:
            without = np.zeros_like(without)  # nothing is left, and no bias speaks for a class either
        attention_logits = output.attention_logits_for(class_index)
        by_class = output.attention_scores
        orders = _removal_orders(without, class_index, n_random=n_random, seed=seed)
        n_removed, parts = asked.curves(orders, whole_logits, most_work, estimated=exact_tiles is not None)
        probabilities = softmax(parts.reshape(-1, parts.shape[-1]))
        orders = orders[: len(parts)]
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


def _on_cpu(bag: AnyBag, dtype: torch.dtype) -> AnyBag:
    """The bag, or the bags of several magnifications, in another precision."""
    from napari_lrmil.model.mil.base import Bag

    several = bag if isinstance(bag, tuple) else (Bag.of(bag),)
    cast = tuple(one.on("cpu", dtype) for one in several)
    return cast if len(cast) > 1 else cast[0]


class _Asked:
    """A head in float64 that is asked about parts of one bag of N tiles, C classes; all it says is scaled logits.

    Parameters
    ----------
    mil : MILModel
    bag : Bag or tuple of Bag
    scaling : VectorScaling
    """

    def __init__(self, mil: MILModel, bag: AnyBag, scaling: VectorScaling) -> None:
        from napari_lrmil.model.mil.base import finest_bag

        self.mil, self.bag, self.scaling = mil, bag, scaling
        self.n = len(finest_bag(bag))

    def tiles(
        self, whole_logits: Array, class_index: int, most_work: float
    ) -> tuple[Array, Array, NDArray[np.bool_] | None]:
        """The bag without each tile (N, C), each tile alone (N, C), and of which tiles both are exact, None: of all."""
        import torch

        from napari_lrmil.model.mil import MILModel
        from napari_lrmil.model.mil.base import finest_bag

        kind, places = type(self.mil), np.arange(self.n)
        # Some tiles of all sorts, in whatever order they come.
        sums = finest_bag(self.bag).embeddings.sum(dim=1).numpy()
        counted = np.argsort(sums, kind="stable")[
            np.linspace(0, self.n - 1, _COUNTED).round().astype(np.int64)
        ]
        n_exact, known = self.n, None
        if self.n > LEAST_EXACT and kind.leave_one_out_logits is MILModel.leave_one_out_logits:
            n_exact, known = _affordable(self._without, counted, self.n, most_work)
        all_alone = True
        if self.n > LEAST_EXACT and kind.alone_logits is MILModel.alone_logits:
            all_alone = _affordable(self._alone, counted, self.n, most_work)[0] == self.n
        with torch.inference_mode():
            if known is None or n_exact == self.n:
                without = self.scaling.scaled(self.mil.leave_one_out_logits(self.bag).numpy())
                # Whoever can leave out every tile can ask each alone: that is a part of the work.
                return without, self._alone(places), None
        slopes = self._slopes()
        order = np.argsort(log_odds(whole_logits - slopes)[:, class_index], kind="stable")
        others, n_spread = _chosen(order[~np.isin(order, counted)], n_exact - _COUNTED)
        chosen, n_spread = np.concatenate([counted, others]), _COUNTED + n_spread
        with torch.inference_mode():
            truly = np.concatenate([known, self._without(others)])
            without = _estimated(whole_logits - slopes, chosen, n_spread, truly)
            # A steep slope says that the tile speaks for the class, in the bag and alone.
            asked = places if all_alone else chosen
            alone = self._alone(asked)
            alone = alone if all_alone else _estimated(slopes, chosen, len(chosen), alone)
        exact = np.zeros(self.n, bool)
        exact[chosen] = True
        return without, alone, exact

    def curves(
        self, orders: NDArray[np.int64], whole_logits: Array, most_work: float, *, estimated: bool
    ) -> tuple[NDArray[np.int64], Array]:
        """How many tiles are gone at each step (K,), and what the rest says, (orders, K, C): of as many orders as can be paid.

        Where tiles are `estimated`, the random orders are asked about in float32: of these a mean is shown.
        """
        import torch

        from napari_lrmil.model.mil.work import WorkCounter

        def rest(some: NDArray[np.int64], asked: _Asked) -> Array:
            _, kept = _kept(some)
            steps = kept.reshape(len(some), N_STEPS, -1)
            found = np.zeros((len(some), N_STEPS, len(whole_logits)))
            known, empty = steps.all(axis=2), ~steps.any(axis=2)
            found[known] = whole_logits
            between = ~known & ~empty
            if between.any():
                parts = asked.mil.subset_logits(asked.bag, torch.from_numpy(steps[between]))
                found[between] = self.scaling.scaled(parts.double().numpy())
            return found

        n_removed, _ = _kept(orders[:1])
        with torch.inference_mode():
            with WorkCounter() as work:
                first = rest(orders[:1], self)
            n_random = min(len(orders) - 1, max(LEAST_RANDOM, int(most_work / max(1.0, work.done))))
            others = (
                [rest(orders[1 : 1 + n_random], self._single() if estimated else self)] if n_random else []
            )
        return n_removed, np.concatenate([first, *others])

    def _single(self) -> _Asked:
        """The same in float32, twice as fast."""
        import torch

        return _Asked(copy.deepcopy(self.mil).float(), _on_cpu(self.bag, torch.float32), self.scaling)

    def _without(self, tiles: NDArray[np.int64]) -> Array:
        """(n, C) of the bag without each of n tiles."""
        import torch

        kept = np.ones((len(tiles), self.n), bool)
        kept[np.arange(len(tiles)), tiles] = False
        return self.scaling.scaled(self.mil.subset_logits(self.bag, torch.from_numpy(kept)).numpy())

    def _alone(self, tiles: NDArray[np.int64]) -> Array:
        """(n, C) of each of n tiles alone."""
        import torch

        from napari_lrmil.model.mil.base import with_part

        part = self.bag if len(tiles) == self.n else with_part(self.bag, torch.from_numpy(tiles))
        return self.scaling.scaled(self.mil.alone_logits(part).numpy())

    def _slopes(self) -> Array:
        """(N, C) by how much each logit falls, to first order, where a tile becomes the mean of the tiles."""
        import torch

        from napari_lrmil.model.mil.base import finest_bag

        bag, finest = self.bag, finest_bag(self.bag)
        embeddings = finest.embeddings.detach().clone().requires_grad_()
        self.mil.requires_grad_(False)
        with torch.enable_grad():
            leaf = replace(finest, embeddings=embeddings)
            logits = self.mil((*bag[:-1], leaf) if isinstance(bag, tuple) else leaf).bag_logits
            apart = finest.embeddings - finest.embeddings.mean(dim=0)
            falls = []
            for place in range(len(logits)):
                (gradient,) = torch.autograd.grad(logits[place], embeddings, retain_graph=True)
                falls.append((gradient * apart).sum(dim=1))
        found: Array = torch.stack(falls, dim=1).numpy() / np.asarray(self.scaling.temperatures)
        return found


def _affordable(
    ask: Callable[[NDArray[np.int64]], Array], some: NDArray[np.int64], n: int, most_work: float
) -> tuple[int, Array]:
    """How many of n tiles `ask` can be asked about, and its answers for some, (k, C), which were counted.

    That is what one tile more takes, beside what all have in common.
    """
    import torch

    from napari_lrmil.model.mil.work import WorkCounter

    with torch.inference_mode():
        with WorkCounter() as one:
            first = ask(some[:1])
        with WorkCounter() as more:
            rest = ask(some[1:])
    of_one_more = (more.done - one.done) / (len(some) - 2)
    left = most_work - max(0.0, one.done - of_one_more)
    return min(n, max(LEAST_EXACT, int(left / max(1.0, of_one_more)))), np.concatenate([first, rest])


def _chosen(order: NDArray[np.int64], n_exact: int) -> tuple[NDArray[np.int64], int]:
    """Which tiles are asked about exactly, and how many of these, the first, are spread evenly.

    The others are those of steepest slope for and against the class, the ends of `order`.
    """
    n_spread = n_exact // 4
    n_ends = n_exact - n_spread
    first, last = (n_ends + 1) // 2, len(order) - n_ends // 2
    between = order[np.linspace(first, last - 1, n_spread).round().astype(np.int64)]
    return np.concatenate([between, order[:first], order[last:]]), n_spread


def _estimated(guess: Array, chosen: NDArray[np.int64], n_spread: int, truly: Array) -> Array:
    """(N, C) logits: true ones of the `chosen` tiles; of the others `guess`, shifted and stretched.

    So that it comes nearest to the truth of the first `n_spread`, which are as the others.
    """
    found = np.empty_like(guess)
    for one in range(guess.shape[1]):
        guessed, true = guess[chosen[:n_spread], one], truly[:n_spread, one]
        middle = guessed.mean()
        spread = float(((guessed - middle) ** 2).sum())
        stretch = float(((guessed - middle) * (true - true.mean())).sum()) / spread if spread > 0 else 0.0
        found[:, one] = true.mean() + stretch * (guess[:, one] - middle)
    found[chosen] = truly
    return found


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

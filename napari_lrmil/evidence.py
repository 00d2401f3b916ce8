"""Which tiles carry a slide's classification, by leaving them out: exact, and checked against chance.

Attention says what the head weighed. What a tile does to the probability is another question, and an LR bag is small
enough to answer it exactly: classify the bag again without that tile.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.model.calibration import VectorScaling, called_class

if TYPE_CHECKING:  # importing this module loads no torch: results are read without it
    from torch import Tensor

    from napari_lrmil.model.mil import MILModel

Array = NDArray[np.float64]

SATURATED_ABOVE = 0.99
"""A probability above this hardly moves when a tile is left out, whatever the tile says; its log-odds do."""

N_STEPS = 11
N_RANDOM = 20


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
    attention_scores: Array
    """(N,) of the class that is called, where each has its own"""
    attention_logits: Array
    """(N,) the same before the softmax over the bag"""
    class_contributions: Array
    """(N, C) probability of the whole bag minus that without tile n; positive: the tile speaks for the class."""
    log_odds_contributions: Array
    """(N, C) the same in log-odds of the class against all others, which tell tiles apart at any probability."""
    log_odds_alone: Array
    """(N, C) log-odds of the class in the bag that holds tile n alone; above 0 it is more probable than all others."""
    deletion: DeletionCurve


def explain(
    mil: MILModel,
    instance_embeddings: Tensor,
    *,
    scaling: VectorScaling,
    thresholds: Sequence[float] | None = None,
    n_random: int = N_RANDOM,
    seed: int = 0,
) -> Evidence:
    """Classify a bag, and find out exactly what each tile does to the result.

    Runs in float64 on the CPU, whatever the device of the model: a tile of a large bag moves the probability by less
    than float32 tells apart, and not every device has float64.

    Parameters
    ----------
    mil : MILModel
        Any head; it is copied, not changed.
    instance_embeddings : (N, D) tensor
    scaling : VectorScaling
        Of the bag logits, before the softmax.
    thresholds : sequence of float, optional
        At which a class is called, see `called_class`; the deletion curve is of the class that is.
    n_random : int
        Random orders of the deletion curve.
    seed : int
        Of these orders.

    Returns
    -------
    Evidence
        With N = 1 the bag without its tile is empty: every class is equally likely there, so that the
        contribution is p - 1 / C, and in log-odds as much.
    """
    import torch

    # Copied outside of inference mode: what is made inside could never be trained again.
    exact = copy.deepcopy(mil).cpu().double().eval()
    with torch.inference_mode():
        instances = instance_embeddings.cpu().double()
        output = exact(instances)
        whole_logits = scaling.scaled(output.bag_logits.numpy())
        whole = softmax(whole_logits)
        without = scaling.scaled(exact.leave_one_out_logits(instances).numpy())  # (N, C)
        if len(instances) == 1:
            without = np.zeros_like(without)  # nothing is left, and no bias speaks for a class either
        alone = scaling.scaled(exact.alone_logits(instances).numpy())  # (N, C)
        class_index = int(called_class(whole, thresholds))
        attention_logits = output.attention_logits_for(class_index)
        if attention_logits is None:
            raise ValueError("the head has no attention")
        orders = _removal_orders(without, class_index, n_random=n_random, seed=seed)
        n_removed, kept = _kept(orders)
        parts = scaling.scaled(exact.subset_logits(instances, torch.from_numpy(kept)).numpy())
        parts[~np.asarray(kept).any(axis=1)] = 0
        probabilities = softmax(parts)
    curves = probabilities[:, class_index].reshape(len(orders), N_STEPS)
    low, high = np.quantile(curves[1:], (0.05, 0.95), axis=0)
    return Evidence(
        class_probabilities=whole,
        attention_scores=torch.softmax(attention_logits, dim=0).numpy(),
        attention_logits=attention_logits.numpy(),
        class_contributions=whole - softmax(without),
        log_odds_contributions=log_odds(whole_logits) - log_odds(without),
        log_odds_alone=log_odds(alone),
        deletion=DeletionCurve(
            fractions=n_removed / len(instances),
            by_evidence=curves[0],
            random_mean=curves[1:].mean(axis=0),
            random_low=low,
            random_high=high,
            class_index=class_index,
        ),
    )


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

"""How far a result can be trusted: the classes that can't be ruled out, and whether the slide is a strange one.

Both come from slides that the model was not trained on, and both promise something countable: the set of classes holds
the true one at a stated rate, the warning is false at a stated rate. Each holds for slides like those it was
calibrated with, on average over them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Array = NDArray[np.float64]

TENSOR_NAMES = ("mean", "axes", "variances")
_TILES_AT_ONCE = 8192


class ConformalInfo(BaseModel):
    """Split conformal prediction: which classes a slide's set holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["lac"] = "lac"
    coverage: float = Field(gt=0, lt=1, description="least share of slides whose set holds the true class")
    n_calibration: int = Field(gt=0, description="slides")
    own_slides: bool = Field(
        default=False,
        description="whether they chose nothing else: neither the epoch nor the scaling (format version 3)",
    )
    quantile: float | None = Field(
        ge=0, le=1, description="classes of probability >= 1 - quantile are in the set; null: every class is"
    )


class OODInfo(BaseModel):
    """Distance of a slide's tiles to those of training: when to warn."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["mahalanobis"] = "mahalanobis"
    rank: int = Field(ge=0, description="axes with a variance of their own")
    threshold: float = Field(ge=0, description="warn above")
    false_alarm_rate: float = Field(gt=0, lt=1, description="at most, on slides like those of calibration")
    n_calibration: int = Field(gt=0, description="slides")
    n_training_tiles: int = Field(gt=0)


class TrustInfo(BaseModel):
    """The part ``trust`` of ``bundle.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conformal: ConformalInfo
    ood: OODInfo


@dataclass(frozen=True)
class TileGaussian:
    """Where training's tile embeddings lie: a Gaussian with `rank` axes of their own and one variance for the rest.

    The covariance of probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 1999), which fits into a
    bundle for any D.

    Attributes
    ----------
    mean : (D,) float64 tensor
    axes : (R, D) float64 tensor
        Orthonormal.
    variances : (R + 1,) float64 tensor
        Along the axes; the last one in every other direction.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        rank, dim = self.axes.shape
        if self.mean.shape != (dim,) or self.variances.shape != (rank + 1,) or rank >= dim:
            shapes = ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in TENSOR_NAMES)
            raise ValueError(f"these shapes don't belong together: {shapes}")
        if not all(bool(torch.isfinite(value).all()) for value in (self.mean, self.axes, self.variances)):
            raise ValueError("values that aren't finite")
        if not bool((self.variances > 0).all()):
            raise ValueError("a variance isn't above 0")

    def as_stored(self) -> TileGaussian:
        """Return it as a bundle gives it back, rounded to float32."""
        return TileGaussian(*(getattr(self, name).float().double() for name in TENSOR_NAMES))

    def tile_distances(self, instance_embeddings: Tensor) -> Array:
        """Squared Mahalanobis distance over D of each tile, shape (N,): about 1 for tiles like training's.

        Parameters
        ----------
        instance_embeddings : (N, D) tensor
        """
        # In parts: a large bag, centred and squared in float64, takes several times what it takes itself.
        parts = [self._distances(part) for part in torch.split(instance_embeddings.detach(), _TILES_AT_ONCE)]
        found: Array = torch.cat(parts).numpy()
        return found

    def _distances(self, instance_embeddings: Tensor) -> Tensor:
        centred = instance_embeddings.cpu().double() - self.mean  # (N, D)
        along = centred @ self.axes.T  # (N, R)
        rest = (centred.square().sum(dim=1) - along.square().sum(dim=1)).clamp_min(0)
        squared = (along.square() / self.variances[:-1]).sum(dim=1) + rest / self.variances[-1]
        return squared / len(self.mean)

    def slide_score(self, instance_embeddings: Tensor) -> float:
        """Mean of `tile_distances` over a slide's tiles."""
        return float(self.tile_distances(instance_embeddings).mean())


@dataclass(frozen=True)
class Trust:
    """`TrustInfo` with the tensors that it needs."""

    info: TrustInfo
    tiles: TileGaussian

    def prediction_set(self, class_probabilities: Array) -> NDArray[np.bool_]:
        """See the function of the same name."""
        return prediction_set(class_probabilities, self.info.conformal.quantile)

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored, float32."""
        return {name: getattr(self.tiles, name).float().contiguous() for name in TENSOR_NAMES}

    @classmethod
    def of(cls, info: TrustInfo, tensors: dict[str, Tensor]) -> Trust:
        """From what is stored.

        Raises
        ------
        ValueError
            Where tensors are missing, or not what `info` says.
        """
        if set(tensors) != set(TENSOR_NAMES):
            raise ValueError(f"tensors {sorted(tensors)} instead of {sorted(TENSOR_NAMES)}")
        if tensors["axes"].ndim != 2 or len(tensors["axes"]) != info.ood.rank:
            raise ValueError(f"axes of shape {tuple(tensors['axes'].shape)}, {info.ood.rank} are stated")
        return cls(info, TileGaussian(**{name: value.double() for name, value in tensors.items()}))


def conformal_quantile(scores: Array, coverage: float) -> float | None:
    """The k-th smallest of n scores, k = ceil((n + 1) coverage); None, for infinity, where k > n.

    A further score from the same source is at or below it with a probability of at least `coverage` (Vovk et al.,
    Algorithmic Learning in a Random World, 2005; Lei et al., JASA 2018).

    Parameters
    ----------
    scores : (n,) array
    coverage : float
    """
    rank = _rank(len(scores), coverage)
    return None if rank > len(scores) else float(np.sort(scores)[rank - 1])


def least_calibration(coverage: float) -> int:
    """The fewest slides whose quantile is finite."""
    return next(n for n in range(1, 10**9) if _rank(n, coverage) <= n)


def _rank(n: int, coverage: float) -> int:
    # Without the margin, 10 slides' worth of 0.9 may be a rounding error above 9.
    return max(1, math.ceil((n + 1) * coverage - 1e-9))


def fit_conformal(
    probabilities: Array, labels: NDArray[np.int64], coverage: float, *, own_slides: bool = False
) -> ConformalInfo:
    """Calibrate the sets on slides that the model was not trained on.

    The score is 1 - p of the true class (LAC, Sadinle et al., JASA 2019): of all sets with this coverage
    the smallest on average. One quantile for all classes, since few cohorts have the validation slides for one a class.

    It is 1 - coverage at least, so that a class as probable as the coverage is never left out: a model that is nearly
    always certain and right would call slides unsure at 0.99 otherwise. Larger sets keep the promise.

    Parameters
    ----------
    probabilities : (n, C) array
        At the bundle's temperature. With two classes the sets are the same at any temperature.
    labels : (n,) int array
    coverage : float
    own_slides : bool
        Whether these slides chose nothing else.
    """
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    quantile = conformal_quantile(scores, coverage)
    return ConformalInfo(
        coverage=coverage,
        n_calibration=len(labels),
        own_slides=own_slides,
        quantile=None if quantile is None else min(max(quantile, 1 - coverage), 1.0),
    )


def prediction_set(class_probabilities: Array, quantile: float | None) -> NDArray[np.bool_]:
    """Which classes can't be ruled out, shape (C,).

    Parameters
    ----------
    class_probabilities : (C,) array
    quantile : float or None
        None: with so few calibration slides none can be ruled out.

    Returns
    -------
    (C,) bool array
        None of them, where no class is as probable as the true one is on all but the rarest slides.
    """
    if quantile is None:
        return np.ones(len(class_probabilities), np.bool_)
    found: NDArray[np.bool_] = 1 - class_probabilities <= quantile
    return found


def ood_threshold(scores: Array, false_alarm_rate: float) -> tuple[float, float]:
    """The distance to warn above, and the rate of false alarms that it keeps to.

    Parameters
    ----------
    scores : (n,) array
        Of calibration slides.
    false_alarm_rate : float
        As wanted.

    Returns
    -------
    threshold, rate : float, float
        Below 1 / rate - 1 slides no threshold keeps the wanted rate: the largest score is taken, with its rate
        1 / (n + 1). A warning that can never come would be worse.
    """
    threshold = conformal_quantile(scores, 1 - false_alarm_rate)
    if threshold is None:
        return float(scores.max()), max(false_alarm_rate, 1 / (len(scores) + 1))
    return threshold, false_alarm_rate

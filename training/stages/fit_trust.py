"""The trust part of a bundle: fitted on training tiles, calibrated on validation slides."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from napari_lrmil.evidence import softmax
from napari_lrmil.model.mil import MILModel
from napari_lrmil.model.trust import OODInfo, TileGaussian, Trust, TrustInfo, fit_conformal, ood_threshold
from training.data.bags import Bag, Bags
from training.stages.heads import bag_logits

COVERAGE = 0.9
FALSE_ALARM_RATE = 0.05
MAX_TILES = 20_000
"""Of training, for the Gaussian: all slides have the same say."""
MAX_RANK = 64
"""Axes with a variance of their own: 0.4 MB of a bundle at 1,536 dimensions."""


def fit_trust(
    mil: MILModel,
    train: Bags,
    val: Bags,
    *,
    temperature: float,
    seed: int,
    device: torch.device,
    coverage: float = COVERAGE,
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> Trust:
    """Fit and calibrate; no test slide is touched.

    Parameters
    ----------
    mil : MILModel
    train, val : Bags
        Of the student's embeddings; read one bag at a time.
    temperature : float
        Of the bundle.
    seed : int
        Chooses the training tiles.
    device : torch.device
    coverage : float
        Least share of slides whose set of classes holds the true one.
    false_alarm_rate : float
        Largest share of slides like those of validation that are called strange.
    """
    tiles = sample_tiles(train, n_slides=len(train), rng=np.random.default_rng(seed))
    gaussian = fit_gaussian(tiles)
    probabilities = softmax(bag_logits(mil, val, device) / temperature)
    scores = np.asarray([gaussian.slide_score(bag.instance_embeddings) for bag in val])
    threshold, rate = ood_threshold(scores, false_alarm_rate)
    info = TrustInfo(
        conformal=fit_conformal(probabilities, val.labels, coverage),
        ood=OODInfo(
            rank=len(gaussian.axes),
            threshold=threshold,
            false_alarm_rate=rate,
            n_calibration=len(scores),
            n_training_tiles=len(tiles),
        ),
    )
    return Trust(info, gaussian)


def trust_metrics(
    trust: Trust, probabilities: NDArray[np.float64], labels: NDArray[np.int64], test: Iterable[Bag]
) -> dict[str, float]:
    """Return what became of the promises on test slides: coverage, slides that are unsure, slides called strange."""
    sets = np.stack([trust.prediction_set(values) for values in probabilities])
    strange = [trust.tiles.slide_score(bag.instance_embeddings) > trust.info.ood.threshold for bag in test]
    return {
        "test_set_coverage": float(sets[np.arange(len(labels)), labels].mean()),
        "test_unsure": float((sets.sum(axis=1) != 1).mean()),
        "test_out_of_distribution": float(np.mean(strange)),
    }


def sample_tiles(bags: Iterable[Bag], *, n_slides: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return at most `MAX_TILES` tiles (M, D), as many of each slide as of any other that has them."""
    share = max(1, MAX_TILES // n_slides)
    chosen = []
    for bag in bags:
        n = len(bag.instance_embeddings)
        places = np.sort(rng.permutation(n)[:share])
        chosen.append(bag.instance_embeddings[torch.from_numpy(places)].double().numpy())
    return np.concatenate(chosen)


def fit_gaussian(tiles: NDArray[np.float64]) -> TileGaussian:
    """Return mean and shrunk covariance (Ledoit & Wolf, J. Multivariate Anal. 2004), reduced to `MAX_RANK` axes.

    Parameters
    ----------
    tiles : (M, D) array
    """
    dim = tiles.shape[1]
    covariance, _ = ledoit_wolf(tiles)
    variances, vectors = np.linalg.eigh(covariance)  # rising
    # Tiles that are all alike have none; anything else is infinitely far from them then, but for this.
    variances = np.maximum(variances, max(float(variances[-1]) * 1e-9, 1e-12))[::-1]
    rank = min(MAX_RANK, dim - 1)
    kept = np.concatenate([variances[:rank], [variances[rank:].mean()]])
    return TileGaussian(
        mean=torch.from_numpy(tiles.mean(axis=0)),
        axes=torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1][:, :rank].T)),
        variances=torch.from_numpy(kept),
    )

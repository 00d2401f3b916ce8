"""The trust part of a bundle: fitted on training tiles, calibrated on validation slides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from napari_lrmil.evidence import softmax
from napari_lrmil.model.calibration import VectorScaling
from napari_lrmil.model.trust import OODInfo, TileGaussian, Trust, TrustInfo, fit_conformal, ood_threshold
from training.data.bags import Bags, SlideBag
from training.data.predictions import Predictions
from training.metrics import share_of_patients
from training.stages.calibrate import fit_scaling, patient_weights

COVERAGE = 0.9
CROSS_FITS = 5
FALSE_ALARM_RATE = 0.05
MAX_TILES = 20_000
"""Of training, for the Gaussian: all slides have the same say."""
MAX_RANK = 64
"""Axes with a variance of their own: 0.4 MB of a bundle at 1,536 dimensions."""


def fit_trust(
    train: Bags,
    held_out: Bags,
    *,
    probabilities: NDArray[np.float64],
    seed: int,
    chose_nothing: bool = False,
    coverage: float = COVERAGE,
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> Trust:
    """Fit and calibrate; no test slide is touched.

    Parameters
    ----------
    train, held_out : Bags
        Of the student's embeddings; read one bag at a time.
    probabilities : (n, C) array
        Of the held-out slides, by a scaling that wasn't fitted on them: see `honest_probabilities`.
    seed : int
        Chooses the training tiles.
    chose_nothing : bool
        Whether the held-out slides didn't choose the epoch either.
    coverage : float
        Least share of slides whose set of classes holds the true one.
    false_alarm_rate : float
        Largest share of slides like those of validation that are called strange.
    """
    tiles = sample_tiles(train, n_slides=len(train), rng=np.random.default_rng(seed))
    gaussian = fit_gaussian(tiles).as_stored()  # so that the limit is of the distances that a bundle measures
    scores = np.asarray([gaussian.slide_score(bag.instance_embeddings) for bag in held_out])
    threshold, rate = ood_threshold(scores, false_alarm_rate)
    info = TrustInfo(
        conformal=fit_conformal(probabilities, held_out.labels, coverage, own_slides=chose_nothing),
        ood=OODInfo(
            rank=len(gaussian.axes),
            threshold=threshold,
            false_alarm_rate=rate,
            n_calibration=len(scores),
            n_training_tiles=len(tiles),
        ),
    )
    return Trust(info, gaussian)


def trust_metrics(trust: Trust, test: Predictions, test_bags: Iterable[SlideBag]) -> dict[str, float]:
    """Return what became of the promises on test slides: coverage, slides that are unsure, slides called strange."""
    sets = np.stack([trust.prediction_set(values) for values in test.probabilities])
    strange = [
        trust.tiles.slide_score(bag.instance_embeddings) > trust.info.ood.threshold for bag in test_bags
    ]
    held = share_of_patients(sets[np.arange(len(test.labels)), test.labels], test.patients)
    return {
        "test_set_coverage": held.value,
        "test_set_coverage_low": held.low,
        "test_set_coverage_high": held.high,
        "test_unsure": float((sets.sum(axis=1) != 1).mean()),
        "test_out_of_distribution": float(np.mean(strange)),
    }


def honest_probabilities(
    bag_logits: NDArray[np.float64], labels: NDArray[np.int64], patients: Sequence[str], *, seed: int
) -> NDArray[np.float64]:
    """Return probabilities of validation slides, each by a scaling fitted on the other patients of validation.

    For the sets of classes where there are too few validation slides for a part of their own.

    Parameters
    ----------
    bag_logits : (n, C) array
    labels : (n,) int array
    patients : sequence of n str
    seed : int
        Deals the patients.
    """
    names = sorted(set(patients))
    part = np.random.default_rng(seed).permutation(len(names)) % CROSS_FITS
    part_of = np.asarray([part[names.index(name)] for name in patients])
    weights, n_classes = patient_weights(patients), bag_logits.shape[1]
    found = np.empty_like(bag_logits)
    for one in range(CROSS_FITS):
        rest = part_of != one
        # Where the others lack a class, nothing can be fitted without it: as the head says.
        whole = set(labels[rest].tolist()) == set(range(n_classes))
        scaling = (
            fit_scaling(bag_logits[rest], labels[rest], weights[rest])
            if whole
            else VectorScaling.of_temperature(1.0, n_classes)
        )
        found[~rest] = softmax(scaling.scaled(bag_logits[~rest]))
    return found


def sample_tiles(bags: Iterable[SlideBag], *, n_slides: int, rng: np.random.Generator) -> NDArray[np.float64]:
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

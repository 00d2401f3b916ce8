"""The trust part of a bundle, fitted on bags whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from run_helpers import absolute_rows

from napari_lrmil.evidence import softmax
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.mil import ABMILSpec, build_mil
from napari_lrmil.model.trust import Trust, fit_conformal, prediction_set
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from training.data.bags import Bags
from training.data.predictions import Predictions
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.metrics import wilson
from training.stages import fit_trust as trust_fit
from training.stages.calibrate import served_outputs
from training.stages.fit_trust import (
    fit_gaussian,
    fit_trust,
    honest_probabilities,
    sample_tiles,
    trust_metrics,
)

DIM = 6


def bags(root: Path, n: int, *, seed: int, shift: float = 0.0, tiles: int = 30) -> Bags:
    """Slides of tiles around 0 along uneven axes; those of class "b" move along the first."""
    rng = np.random.default_rng(seed)
    store, rows = EmbeddingStore(root), []
    scale = np.linspace(3, 0.5, DIM)
    for index in range(n):
        label = "ab"[index % 2]
        values = rng.normal(size=(tiles, DIM)) * scale + shift
        values[:, 0] += 2.0 * (label == "b")
        store.write(f"s{seed}-{index}", embedding=values)
        rows.append(SlideRow(f"s{seed}-{index}", Path("none"), f"p{index}", label))
    return Bags(store, rows, ("a", "b"))


def test_gaussian_is_that_of_the_tiles() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(20_000, DIM)) * np.linspace(3, 0.5, DIM) + 7
    found = fit_gaussian(tiles)
    assert found.axes.shape == (DIM - 1, DIM)
    np.testing.assert_allclose(found.mean.numpy(), 7, atol=0.1)
    np.testing.assert_allclose(found.variances.sqrt().numpy(), np.linspace(3, 0.5, DIM), rtol=0.05)
    np.testing.assert_allclose((found.axes @ found.axes.T).numpy(), np.eye(DIM - 1), atol=1e-9)
    # The mean of a chi-square of D, over D.
    assert found.slide_score(torch.from_numpy(tiles)) == pytest.approx(1, rel=0.02)


def test_many_dimensions_are_kept_small_and_still_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_fit, "MAX_RANK", 3)
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(4000, 40)) * np.linspace(3, 0.5, 40)
    found = fit_gaussian(tiles)
    assert found.axes.shape == (3, 40)
    assert found.slide_score(torch.from_numpy(tiles)) == pytest.approx(1, rel=0.02)


def test_tiles_all_alike_give_finite_numbers() -> None:
    found = fit_gaussian(np.ones((10, DIM)))
    assert found.slide_score(torch.ones(2, DIM)) == 0
    assert found.slide_score(torch.zeros(2, DIM)) > 1e6


def test_all_slides_have_the_same_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_fit, "MAX_TILES", 40)
    train = bags(tmp_path, 4, seed=0, tiles=30)
    tiles = sample_tiles(train, n_slides=4, rng=np.random.default_rng(1))
    again = sample_tiles(train, n_slides=4, rng=np.random.default_rng(1))
    assert tiles.shape == (40, DIM)
    np.testing.assert_array_equal(tiles, again)
    for index, bag in enumerate(train):
        own = {tuple(row) for row in bag.instance_embeddings.double().numpy()}
        assert {tuple(row) for row in tiles[10 * index : 10 * index + 10]} <= own
        assert len({tuple(row) for row in tiles[10 * index : 10 * index + 10]}) == 10


def test_fitted_on_slides_it_warns_of_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mil = build_mil(ABMILSpec(embed_dim=DIM, n_classes=2))
    train, val, test = (bags(tmp_path, n, seed=seed) for seed, n in ((0, 30), (1, 40), (2, 40)))
    logits = np.stack([output.bag_logits.numpy() for output in served_outputs(mil, val)])
    probabilities = softmax(logits / 1.5)
    trust = fit_trust(train, val, probabilities=probabilities, seed=0)
    conformal, ood = trust.info.conformal, trust.info.ood
    assert (conformal.coverage, conformal.n_calibration) == (0.9, 40)
    assert (ood.n_training_tiles, ood.n_calibration, ood.rank) == (900, 40, DIM - 1)
    assert ood.false_alarm_rate == 0.05
    # The sets keep to the promise on the calibration slides themselves: k = ceil(41 * 0.9) of 40 hold the label.
    names = tuple(f"p{index}" for index in range(40))
    as_table = Predictions(("a", "b"), names, names, val.labels, probabilities, val.labels)
    told = trust_metrics(trust, as_table, test)
    assert told["test_set_coverage"] == 37 / 40
    assert (told["test_set_coverage_low"], told["test_set_coverage_high"]) == wilson(37 / 40, 40)
    assert told["test_out_of_distribution"] <= 0.15
    strange = bags(tmp_path, 10, seed=3, shift=4.0)
    assert trust_metrics(trust, as_table, strange)["test_out_of_distribution"] == 1.0


@pytest.mark.slow
def test_a_runs_bundle_says_of_its_test_slides_what_was_counted(finished: Path, cohort: Path) -> None:
    """Train/serve skew: scores from stored embeddings, and from the files anew."""
    model = load_bundle(finished / "run" / "fold0" / "bundle")
    assert model.trust is not None
    conformal, metrics = model.trust.info.conformal, model.info.provenance.metrics
    assert (conformal.n_calibration, conformal.quantile) == (3, None)  # three can't promise 90 %
    assert (metrics["test_set_coverage"], metrics["test_unsure"]) == (1.0, 1.0)
    strange = []
    for row in absolute_rows(cohort):
        if row["fold"] == "test":
            with Slide(row["path"]) as slide:
                result = run_to_end(predict_slide(slide, model, device=torch.device("cpu")))
            assert result.prediction_set == model.info.class_names
            strange.append(result.out_of_distribution)
    assert np.mean(strange) == metrics["test_out_of_distribution"]


def test_the_limit_is_of_the_distances_that_a_bundle_measures(tmp_path: Path) -> None:
    """A bundle rounds the Gaussian to float32: the limit is one of the distances measured with what it gives back."""
    train, val = bags(tmp_path, 30, seed=0), bags(tmp_path, 40, seed=1, shift=1000.0)
    trust = fit_trust(train, val, probabilities=np.full((40, 2), 0.5), seed=0)
    served = Trust.of(trust.info, trust.tensors())
    scores = [served.tiles.slide_score(bag.instance_embeddings) for bag in val]
    assert trust.info.ood.threshold in scores
    assert sum(score > trust.info.ood.threshold for score in scores) == 1  # k = ceil(41 * 0.95) of 40 aren't


def test_a_slide_is_scaled_by_what_the_others_say() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    logits = rng.normal(size=(20, 2)) * 3
    patients = [f"p{index // 2}" for index in range(20)]
    found = honest_probabilities(logits, labels, patients, seed=0)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    turned = labels.copy()
    turned[:2] = 1 - turned[:2]  # the labels of one patient: its own slides don't learn of it, others do
    other = honest_probabilities(logits, turned, patients, seed=0)
    np.testing.assert_array_equal(found[:2], other[:2])
    assert not np.array_equal(found[2:], other[2:])


@pytest.mark.slow
def test_sets_keep_their_promise_where_calibration_has_slides_of_its_own_and_not_where_it_chose_the_epoch() -> (
    None
):
    """100 heads, each the best of 200 on its validation slides, whose logits say nothing of the label.

    Such a choice finds a head that is right by chance on the slides that chose it: sets calibrated there hold the true
    class of new slides too rarely; those of other slides hold it as often as promised.
    """
    rng = np.random.default_rng(1)
    held = {"own": [], "chose": []}
    for _ in range(100):
        labels = np.arange(20) % 2
        heads = rng.normal(size=(200, 20, 2))
        best = min(
            heads,
            key=lambda logits: -np.log(softmax(logits)[np.arange(20), labels]).mean(),
        )
        for name, logits in (("own", rng.normal(size=(20, 2))), ("chose", best)):
            quantile = fit_conformal(softmax(logits), labels, 0.8).quantile
            new_labels, new = rng.integers(2, size=200), softmax(rng.normal(size=(200, 2)))
            sets = np.stack([prediction_set(p, quantile) for p in new])
            held[name].append(sets[np.arange(200), new_labels].mean())
    assert np.mean(held["own"]) >= 0.79
    assert np.mean(held["chose"]) < 0.75

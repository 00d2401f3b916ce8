"""Generated image bags: what is drawn, and that heads learn to find the digit in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from napari_lrmil.model.mil import HEADS as REGISTRY
from napari_lrmil.model.mil import Bag
from training.studies.image_bags import (
    HEADS,
    TARGET,
    ImageBag,
    RandomFeatures,
    app,
    as_bag,
    auc_of,
    draw_bags,
    draw_digit,
)

Problem = tuple[RandomFeatures, list[ImageBag], list[ImageBag], float]
POINTS_AT_TILES = ("abmil", "abmil gated", "clam_sb", "clam_mb", "focus")


@pytest.fixture(scope="module")
def problem() -> Problem:
    """100 bags to train, 200 to test, and the AUC of mean pooling: the same for all heads."""
    rng, features = np.random.default_rng(0), RandomFeatures(0, n_images=1000)
    train, test = draw_bags(100, rng), draw_bags(200, rng)
    return features, train, test, auc_of("mean", train, test, features, seed=0, epochs=10)


def test_every_head_of_the_registry_is_asked() -> None:
    assert {spec["name"] for spec in HEADS.values()} == set(REGISTRY)


@pytest.mark.parametrize("head", [name for name in HEADS if name not in ("mean", "max")])
def test_heads_learn_to_find_the_digit(problem: Problem, head: str) -> None:
    """One digit of ten decides, which the mean over the bag dilutes.

    A head that can point at a tile must be better than mean pooling on the same bags. The others are linear in these
    embeddings (DSMIL), or split a bag of ten or have more to learn than 100 bags teach: they must be at least half as far
    from chance as mean pooling is, which is beyond three standard errors of an AUC of 0.5 on 200 bags (0.041 each).
    Max pooling isn't asked: no one of these features is the digit, and after 40 epochs it is at 0.59 still.
    """
    features, train, test, of_mean = problem
    least = of_mean if head in POINTS_AT_TILES else (0.5 + of_mean) / 2
    assert (0.5 + of_mean) / 2 > 0.5 + 3 * 0.041
    assert auc_of(head, train, test, features, seed=0, epochs=10) > least


def test_bags_are_those_of_the_protocol() -> None:
    bags = draw_bags(200, np.random.default_rng(0))
    assert [bag.label for bag in bags] == [0, 1] * 100
    sizes = [len(bag.images) for bag in bags]
    assert np.mean(sizes) == pytest.approx(10, abs=0.5)
    assert np.std(sizes) == pytest.approx(2, abs=0.4)
    assert all(
        ((bag.digits == TARGET).any(), bag.images.shape[1:]) == (bool(bag.label), (28, 28)) for bag in bags
    )
    counts = np.bincount(np.concatenate([bag.digits for bag in bags]), minlength=10)
    assert counts.min() > 0.5 * counts.mean()


def test_a_digit_is_drawn_otherwise_each_time_and_the_same_from_a_seed() -> None:
    one, other = (draw_digit(9, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.abs(one - other).max() > 0.3
    assert np.array_equal(one, draw_digit(9, np.random.default_rng(0)))
    assert one[8:20, 8:20].max() > 0.4  # it lies in the middle
    assert one[0].mean() < 0.2


def test_coarse_tiles_are_four_digits_of_the_bag() -> None:
    (bag,) = draw_bags(1, np.random.default_rng(3))
    features = RandomFeatures(0, n_images=100)
    found = as_bag(bag, features, 2)
    assert isinstance(found, tuple)
    coarse, fine = found
    n = len(bag.images)
    assert (len(coarse), len(fine)) == (-(-n // 4), n)
    assert fine.parents is not None
    assert fine.parents.tolist() == [index // 4 for index in range(n)]
    whole = np.block([[bag.images[0], bag.images[1]], [bag.images[2], bag.images[3]]])
    small = whole.reshape(28, 2, 28, 2).mean(axis=(1, 3))[None].astype(np.float32)
    torch.testing.assert_close(coarse.embeddings[:1], features(small), rtol=1e-3, atol=1e-3)
    single = as_bag(bag, features, 1)
    assert isinstance(single, Bag)
    assert torch.equal(single.embeddings, fine.embeddings)


def test_the_command_prints_a_row_a_head_and_refuses_what_it_does_not_have() -> None:
    told = CliRunner().invoke(app, ["--bags", "4,6", "--n-test", "6", "--heads", "mean,max"])
    assert told.exit_code == 0, told.output
    rows = [line for line in told.output.splitlines() if line.startswith("| m")]
    assert [row.split("|")[1].strip() for row in rows] == ["mean", "max"]
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row.split("|")[2:4])
    for words, said in (
        (["--heads", "none"], "no heads of these names"),
        (["--bags", "x"], "numbers"),
        (["--bags", "1"], "two bags"),
    ):
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code != 0
        assert said in refused.output

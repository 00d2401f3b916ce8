"""Attention against lesions: hand-computed values, and what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cohort.localisation import (
    SlideLocalisation,
    average_slides,
    gather_on_parents,
    localise_slide,
    tile_lesion_fractions,
)


def places_of(rows: int, cols: int) -> np.ndarray:
    return np.argwhere(np.ones((rows, cols), bool))


# --- lesion share of tiles --------------------------------------------------------------------------------------------


def test_lesion_share_by_hand() -> None:
    mask = np.zeros((4, 6), bool)
    mask[0:2, 1:3] = True  # half of tile (0, 0), half of tile (0, 1)
    mask[3, 5] = True  # a quarter of tile (1, 2)
    found = tile_lesion_fractions(mask, np.asarray([[0, 0], [0, 1], [0, 2], [1, 2]]), 2.0)
    np.testing.assert_array_equal(found, [0.5, 0.5, 0, 0.25])


def test_what_reaches_outside_the_mask_is_no_lesion() -> None:
    """Tiles of 2 px on a mask of 3 x 3: the last one has a single pixel inside; one beyond has none."""
    found = tile_lesion_fractions(np.ones((3, 3), bool), np.asarray([[0, 0], [0, 1], [1, 1], [5, 5]]), 2.0)
    np.testing.assert_array_equal(found, [1, 0.5, 0.25, 0])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    tile=st.sampled_from([1.0, 2.0, 3.5, 6.4]),
)
def test_lesion_share_equals_the_mean_of_the_crop(seed: int, height: int, width: int, tile: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    places = places_of(int(height // tile), int(width // tile))
    padded = np.pad(mask, 50)
    for (row, col), found in zip(places, tile_lesion_fractions(mask, places, tile), strict=True):
        top, bottom, left, right = (round(value * tile) + 50 for value in (row, row + 1, col, col + 1))
        assert found == pytest.approx(padded[top:bottom, left:right].mean())


def test_a_mask_coarser_than_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match="too coarse"):
        tile_lesion_fractions(np.ones((3, 3), bool), places_of(2, 2), 0.5)


def test_children_sum_up_on_their_parents() -> None:
    hr_places = np.asarray(
        [[0, 0], [1, 1], [0, 2], [3, 3], [9, 9]]
    )  # parents of ratio 2: (0, 0) twice, (0, 1), (1, 1)
    lr_places = np.asarray([[1, 1], [0, 0], [0, 1], [1, 0]])
    found = gather_on_parents(np.asarray([0.1, 0.2, 0.3, 0.25, 0.15]), hr_places, lr_places, 2)
    np.testing.assert_allclose(found, [0.25, 0.3, 0.3, 0])


# --- one slide --------------------------------------------------------------------------------------------------------


def test_auprc_and_pointing_by_hand() -> None:
    """Ranks: lesion, not, lesion, not, not. Precision at the two lesions is 1 and 2/3, so the AUPRC is 5/6."""
    scores = np.asarray([0.05, 0.4, 0.3, 0.2, 0.05])
    lesion = np.asarray([0.0, 0.9, 0.1, 0.25, 0.24])
    found = localise_slide(scores, lesion)
    assert found == pytest.approx((5 / 6, 1.0, 2 / 5))
    assert localise_slide(scores, lesion, min_lesion=0.5) == pytest.approx((1.0, 1.0, 1 / 5))
    assert localise_slide(-scores, lesion).hit == 0


def test_equal_attention_is_chance_exactly() -> None:
    """Uniform attention points nowhere: both measures are the prevalence, not a stroke of luck of the order."""
    lesion = np.asarray([1.0, 0, 0, 0, 0, 1.0, 0, 0])
    assert localise_slide(np.full(8, 1 / 8), lesion) == pytest.approx((0.25, 0.25, 0.25))


def test_random_attention_is_near_the_prevalence() -> None:
    rng = np.random.default_rng(0)
    lesion = (np.arange(200) < 30).astype(float)
    found = np.mean([localise_slide(rng.random(200), lesion) for _ in range(600)], axis=0)
    assert found[2] == pytest.approx(0.15)
    assert found[1] == pytest.approx(0.15, abs=0.05)
    assert 0.15 < found[0] < 0.19  # a random order's average precision lies a little above, by the finite bag


def test_a_slide_without_lesion_tiles_has_nothing_to_find() -> None:
    with pytest.raises(ValueError, match="no tile"):
        localise_slide(np.ones(3), np.asarray([0, 0.1, 0.2]))


# --- many slides ------------------------------------------------------------------------------------------------------


def test_means_over_slides_with_intervals_over_patients() -> None:
    slides = [SlideLocalisation(0.2, 0, 0.1), SlideLocalisation(0.4, 1, 0.2), SlideLocalisation(0.9, 1, 0.3)]
    found = average_slides(slides, ["a", "b", "c"], n_resamples=500, rng=np.random.default_rng(0))
    assert found.auprc.value == pytest.approx(0.5)
    assert found.hit.value == pytest.approx(2 / 3)
    assert (found.prevalence, found.n_slides) == (pytest.approx(0.2), 3)
    assert found.auprc.low < 0.3
    assert found.auprc.high > 0.7


def test_one_patient_has_an_interval_without_width() -> None:
    slides = [SlideLocalisation(0.2, 0, 0.1), SlideLocalisation(0.4, 1, 0.2)]
    found = average_slides(slides, ["a", "a"], n_resamples=100, rng=np.random.default_rng(0))
    assert found.auprc == pytest.approx((0.3, 0.3, 0.3))

"""How well f' stands in for f on HR: ranks and tissue rules by hand, and what a perfect or a blind encoder gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_helpers import rerun

from napari_lrmil.errors import ConfigError
from training.data.tile_index import index_slides
from training.progress import Reporter
from training.run.layout import RunDir
from training.run.prepare import prepare
from training.studies.stand_in import (
    CLASSES,
    Region,
    TileTruth,
    kinds,
    measure,
    page,
    ranks_of_right_tile,
    shares,
    stand_in,
)


def test_ranks_by_hand() -> None:
    wanted = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    said = np.array([[2.0, 0.1], [1.0, 0.9], [0.0, 5.0]])
    # Cosines with the three: the first is nearest to itself; the second to the third, then to the first, then to itself;
    # the third to the second, then to itself.
    assert ranks_of_right_tile(said, wanted).tolist() == [1, 3, 2]
    assert ranks_of_right_tile(wanted, wanted).tolist() == [1, 1, 1]
    assert ranks_of_right_tile(np.ones((3, 2)), np.ones((3, 2))).tolist() == [3, 3, 3]  # no credit for a tie


def test_tissue_classes_by_the_rule() -> None:
    assert [CLASSES[kind] for kind in kinds(np.array([0.9, 0.25, 0.24]), np.array([0.5, 0.49, 0.0]))] == [
        "pale",
        "cell-rich",
        "stroma",
    ]


def test_shares_of_pixels() -> None:
    tile = np.full((1, 4, 4, 3), 250, np.uint8)
    tile[0, :2] = (90, 60, 140)  # haematoxylin
    tile[0, 2] = (200, 110, 160)  # eosin
    nuclear, pale = shares(tile, 0.05)
    assert nuclear.tolist() == [0.5]
    assert pale.tolist() == [0.25]


def regions(rng: np.random.Generator, n: int, noise: float) -> list[Region]:
    found = []
    for _ in range(n):
        wanted = rng.standard_normal((60, 6))
        nuclear = 1 / (1 + np.exp(-wanted[:, 0]))
        kind = (nuclear > 0.5).astype(np.int64) + 1
        said = wanted + noise * rng.standard_normal(wanted.shape)
        found.append(Region(said, wanted, TileTruth(nuclear, kind)))
    return found


def test_a_perfect_encoder_stands_in_and_a_blind_one_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    perfect = measure(regions(rng, 6, 0.0), regions(rng, 4, 0.0), same_space=True)
    assert perfect.first == perfect.reciprocal_rank == 1
    assert perfect.first_by_ridge > 0.95
    assert perfect.explained > 0.99
    assert perfect.cka == pytest.approx(1)
    assert perfect.nuclear > 0.99
    assert perfect.tissue > 0.95
    blind = measure(regions(rng, 6, 1e4), regions(rng, 4, 1e4), same_space=True)
    assert blind.first < 4 / 60
    assert blind.reciprocal_rank == pytest.approx(sum(1 / k for k in range(1, 61)) / 60, abs=0.03)
    assert blind.explained < 0.05
    assert abs(blind.nuclear) < 0.25
    assert blind.tissue == pytest.approx(0.5, abs=0.15)


def test_another_width_is_read_by_ridge_alone() -> None:
    rng = np.random.default_rng(1)
    turned = rng.standard_normal((6, 9))
    parts = [[one._replace(lr=one.wanted @ turned) for one in regions(rng, n, 0.0)] for n in (6, 3)]
    found = measure(*parts, same_space=False)
    assert math.isnan(found.first)
    assert math.isnan(found.nuclear)
    assert found.first_by_ridge > 0.8  # the ridge shrinks


@pytest.mark.slow
def test_of_a_run(copied: Callable[..., Path]) -> None:
    folder = copied()
    rerun(folder, "--stage1.scope", "shared", "--stage1.slides", "unlabelled")
    prepared = prepare(
        RunDir(folder / "run").read_config(), skip_bad=False, reporter=Reporter(), writes=False
    )
    context = prepared.context
    rows = context.labelled[:2]
    left_out = index_slides(rows, context.geometry, skip_bad=False, reporter=Reporter(), threads=1)
    found = stand_in(prepared, left_out)
    assert set(found) == {"f on LR", "f' on LR", "f on HR"}
    text = page({"run": found}, len(rows), 2)
    assert "| f' of run |" in text
    with pytest.raises(ConfigError, match="learned from patients that are left out"):
        stand_in(prepared, context.tiles_of([row for row in context.rows if row.label is None]))

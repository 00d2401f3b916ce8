"""``training.cohort --reference`` on cohorts too small to measure: a message, not a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from training.cohort.__main__ import app
from training.cohort.reference import LowTiles, auc_interval, check_enough_tiles
from training.data.table import SlideRow


def test_a_tiny_cohort_is_told_to_grow(cohort: Path, tmp_path: Path, one_thread: None) -> None:
    folder = Path(shutil.copytree(cohort.parent, tmp_path / "cohort"))
    args = ["--slides", "2/6/3/4", "--size", "512x512", "--seed", "77", "--workers", "1", "--reference"]
    done = CliRunner().invoke(app, [str(folder), *args])
    assert done.exit_code == 2, done.output
    said = " ".join(done.output.split())
    assert "error: too few tiles to measure how hard the cohort is: the" in said
    assert "Generate more slides (--slides) or larger ones (--size)" in said
    assert done.exception is None or isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("fractions", [[0.0] * 40, [0.9] * 40, [0.0, 0.9] * 10, [0.3] * 40])
def test_parts_without_a_class_or_with_too_few_tiles_are_refused(fractions: list[float]) -> None:
    row = SlideRow("s", Path("s.tif"), "p", "lesion")
    tiles = np.zeros((len(fractions), 4, 4, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"the 1 val slides have \d+ clear LR tiles, \d+ of them lesion"):
        check_enough_tiles("val", [LowTiles(row, tiles, np.asarray(fractions))])
    check_enough_tiles("val", [LowTiles(row, np.zeros((40, 4, 4, 3), np.uint8), np.asarray([0.0, 0.9] * 20))])


def test_an_interval_over_one_patient_a_class_is_refused_where_it_is_not_defined() -> None:
    labels = np.asarray([0] * 50 + [1])
    scores = np.linspace(0, 1, 51)
    patients = ["a"] * 50 + ["b"]
    assert auc_interval(labels, scores, patients).value == 1
    with pytest.raises(ConfigError, match="too few for an interval"):
        auc_interval(labels[:50], scores[:50], patients[:50])

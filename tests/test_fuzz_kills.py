"""The short form of `benchmarks/fuzz/kills.py`; for training runs see `train/test_resume.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.fuzz.kills import Tally, attack, attack_predict, attack_verdicts, begin_empty, classified

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def test_verdicts_that_were_reported_as_saved_outlive_kills(tmp_path: Path) -> None:
    def one(work: Path, seed: int, _: int, tally: Tally) -> None:
        attack_verdicts(work, seed, tally)

    tally = attack("verdicts", one, count=12, seed=3, folder=tmp_path)
    assert tally.faults == []
    assert tally.reported >= 12


@pytest.mark.slow
def test_results_that_were_reported_outlive_kills(cohort: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    reference = classified(tmp_path, cohort.parent / "slides", tiny_bundle)

    def one(work: Path, seed: int, n_kills: int, tally: Tally) -> None:
        attack_predict(reference, work, seed, n_kills, tally)

    tally = attack("predict", begin_empty(one), count=4, seed=3, folder=tmp_path)
    assert tally.faults == []
    assert tally.reported > 0

"""The short form of the attacks in `benchmarks/fuzz`: a few mutants of each kind, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import bundles, exchange_files
from benchmarks.fuzz.attack import Target, attack

TARGETS = {target.name: target for module in (exchange_files, bundles) for target in module.targets()}
NEVER_RIGHT = {"weight file: pickles that run code"}


@pytest.mark.filterwarnings("ignore")  # torch's, of what it reads
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_broken_is_right_or_refused(name: str, tmp_path: Path) -> None:
    target: Target = TARGETS[name]
    tally = attack(target, tmp_path, seed=1, count=40)
    assert tally.faults == []
    assert tally.counts["refused"] > 0
    assert (tally.counts["right"] > 0) == (name not in NEVER_RIGHT)

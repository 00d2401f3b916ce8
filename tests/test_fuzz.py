"""The short form of the attacks in `benchmarks/fuzz`: a few mutants of each kind, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import bundles, exchange_files, kept_files, run_configs, run_files
from benchmarks.fuzz.attack import Target, attack

TARGETS = {
    target.name: target
    for module in (exchange_files, bundles, kept_files, run_configs)
    for target in module.targets()
}
NEVER_REFUSED = {"cache: typed size", "cache: stated size", "annotations"}
"""What is broken there counts as absent."""
NEVER_RIGHT = {"weight file: pickles that run code"}
SELDOM_RIGHT = {"result: CSV"}
"""A hash sees every change but that of nothing."""


@pytest.mark.filterwarnings("ignore")  # torch's, of what it reads
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_broken_is_right_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Target = TARGETS[name]
    monkeypatch.setenv("LRMIL_DATA_DIR", "")  # the attacks name their own, this takes them back
    monkeypatch.setenv("LRMIL_CACHE_DIR", "")
    tally = attack(target, tmp_path, seed=1, count=40)
    assert tally.faults == []
    assert (tally.counts["refused"] > 0) == (name not in NEVER_REFUSED)
    if name not in SELDOM_RIGHT:
        assert (tally.counts["right"] > 0) == (name not in NEVER_RIGHT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", run_files.targets(), ids=lambda target: target.name)
def test_a_run_whose_files_are_broken_ends_as_undisturbed_or_says_why(target: Target, tmp_path: Path) -> None:
    tally = attack(target, tmp_path, seed=1, count=15)
    assert tally.faults == []
    assert tally.counts["right"] > 0

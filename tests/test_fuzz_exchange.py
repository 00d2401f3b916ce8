"""The short form of `benchmarks/fuzz/exchange_files.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz.exchange_files import attack, kinds


@pytest.mark.parametrize("name", sorted(kinds()))
def test_broken_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    counts, faults = attack(name, kinds()[name], count=80, seed=1, folder=tmp_path)
    assert faults == []
    assert counts["read"] > 0
    assert counts["refused"] > 0

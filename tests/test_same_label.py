"""One slide, one bundle: the same result whatever the way to it; the figures are in docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

from benchmarks.same_label import differences

# Embeddings are rounded to 11 bits, and the order of sums may tip a value over to the next.
PROBABILITY, ATTENTION = 1e-3, 2e-2


def test_the_same_label_and_attention_whatever_the_way(tmp_path: Path, tiny_bundle: Path) -> None:
    found = differences(tmp_path, str(tiny_bundle), side_px=768)
    assert len(found) == 20
    assert [each.way for each in found if not each.same_label] == []
    assert [each for each in found if each.probability > PROBABILITY or each.attention > ATTENTION] == []
    (kept,) = [each for each in found if each.way == "out of the cache"]
    assert kept.probability == kept.attention == 0

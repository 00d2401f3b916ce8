"""Slides whose ids are longer than a file system takes names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from run_helpers import absolute_rows, python, read_rows, write_config, write_rows

from training.data.store import EmbeddingStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names of bytes")
NAMES = ("n" * 300 + "a", "n" * 300 + "b", "\u53f0" * 90)


def test_embeddings_of_long_names_stay_apart(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    for number, name in enumerate(NAMES):
        store.write(name, embedding=np.full((3, 4), number, np.float32))
    for number, name in enumerate(NAMES):
        assert store.has(name)
        np.testing.assert_array_equal(store.read(name), np.full((3, 4), number, np.float16))


@pytest.mark.slow
def test_a_run_on_slides_with_long_names(cohort: Path, tmp_path: Path) -> None:
    rows = absolute_rows(cohort)
    tested = [row for row in rows if row["fold"] == "test"]
    for row, name in zip(tested, NAMES, strict=False):
        row["slide_id"] = name
    write_config(tmp_path, write_rows(tmp_path / "slides.csv", rows))
    done = python(tmp_path, "-m", "training.run", "config.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    said = read_rows(tmp_path / "run" / "fold0" / "predictions" / "lrmil.csv")
    assert set(NAMES) <= {row["slide_id"] for row in said}
    again = python(tmp_path, "-m", "training.run", "config.toml")
    assert again.returncode == 0
    assert "Embedding" not in again.stdout

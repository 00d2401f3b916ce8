"""Fixtures of the slide tests: the shared files, and a guard against leaked file handles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from slide_files import open_files

from napari_lrmil.slide.cache import shared_cache

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def no_leaked_handles() -> Iterator[None]:
    """Fail the test that leaves a slide's file open."""
    before = open_files()
    yield
    after = open_files()
    if len(after) > len(before):
        gc.collect()
        after = open_files()
    leaked = [path for path in after if path not in before and not path.startswith(("/dev", "/usr", "/lib"))]
    assert not leaked, f"left open: {leaked}"


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    """No test reads the tiles that another one decoded."""
    shared_cache().clear()
    yield
    shared_cache().clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared slides; skips where it isn't."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared slides (../shared/data beside the repository) are absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cmu_svs(shared_data: Path) -> Path:
    """A real Aperio slide, 2220 x 2967 px at 0.499 µm/px, one level."""
    return shared_data / "slides_real" / "CMU-1-Small-Region.svs"

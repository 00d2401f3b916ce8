"""The short form of `benchmarks/fuzz/slides.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.formats import stained
from benchmarks.fuzz.slide_formats import SIZE_XY, write_all
from benchmarks.fuzz.slides import attack
from napari_lrmil.slide import Slide

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("whole"))


def test_the_whole_slides_are_read(whole: dict[str, Path]) -> None:
    backends, drawn = set(), stained(SIZE_XY[0], 0, height_px=SIZE_XY[1]).astype(int)
    for name, path in whole.items():
        with Slide(path) as slide:
            backends.add(slide.metadata["backend"])
            left, top, width, height = slide.bounds_l0_xywh
            assert (width, height) == SIZE_XY
            found = slide.read_region((left, top), 0, SIZE_XY).astype(int)
            assert np.abs(found - drawn).mean() < 2, name
    assert backends == {"tiff", "openslide", "ome-zarr", "deepzoom", "image"}


def test_broken_slides_are_read_or_refused(whole: dict[str, Path], tmp_path: Path) -> None:
    found = list(attack(whole, range(60), seed=1, folder=tmp_path))
    assert {each["verdict"] for each in found} == {"pixels", "refused"}, found

"""Magnification, the map's geometry and the facts of a slide, without a window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lrmil._viewer.canvas import Area, magnification_of, zoom_of
from napari_lrmil._viewer.docks.overview.field import Fit
from napari_lrmil._viewer.docks.overview.panel import MASKED_NOTE, slide_facts
from napari_lrmil._viewer.magnifier import MAGNIFICATIONS, magnification_text, scanned_area
from napari_lrmil.slide import Slide


def test_10x_is_1_um_a_pixel() -> None:
    assert magnification_of(1.0) == 10
    assert magnification_of(0.25) == 40
    assert zoom_of(20) == 2.0  # two pixels a µm
    assert [magnification_of(1 / zoom_of(value)) for value in MAGNIFICATIONS] == list(MAGNIFICATIONS)


@pytest.mark.parametrize(
    ("um_per_px", "text"),
    [(1 / 0.75, "7.5× · 1.33 µm/px"), (0.25, "40× · 0.25 µm/px"), (123.4, "0.081× · 123 µm/px")],
)
def test_magnification_text(um_per_px: float, text: str) -> None:
    assert magnification_text(um_per_px) == text


def test_what_is_larger_than_the_scan_says_so() -> None:
    """At 0.25 µm a pixel a scan of 0.5 shows each of its pixels twice as large."""
    assert magnification_text(0.5, 0.5) == "20× · 0.5 µm/px"
    assert magnification_text(0.25, 0.5) == "40× · 0.25 µm/px · enlarged beyond the scan's 20×"
    assert magnification_text(0.2501, 0.2528) == "40× · 0.25 µm/px"  # a scanner's 0.2528 counts as 40×


@given(
    st.floats(1, 1e5),
    st.floats(1, 1e5),
    st.floats(50, 2000),
    st.floats(50, 2000),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_fit_there_and_back(width: float, height: float, w: float, h: float, x: float, y: float) -> None:
    fit = Fit.of(Area(10, 20, height, width), (w, h))
    left, top, drawn_width, drawn_height = fit.to_px_xywh(fit.area)
    assert min(left, top) >= -1e-6
    assert drawn_width <= w + 1e-6
    assert drawn_height <= h + 1e-6
    assert drawn_width / drawn_height == pytest.approx(width / height, rel=1e-6)
    world = fit.to_world_yx((left + x * drawn_width, top + y * drawn_height))
    assert world == pytest.approx((10 + y * height, 20 + x * width), rel=1e-6, abs=1e-6)


def test_facts_hold_no_identifier(shared_file: Callable[[str], Path]) -> None:
    with Slide(shared_file("slides_real/CMU-1-Small-Region.svs")) as slide:
        facts = dict(slide_facts(slide))
        said = " ".join(facts.values())
    assert facts["Objective"] == "20×"
    assert facts["Pixel size"] == "0.499 µm/px (the aperio header)"
    assert "CMU" not in said
    assert "macro" not in said
    assert "file name" in MASKED_NOTE


def test_facts_of_bounds_and_unknown_mpp(shared_file: Callable[[str], Path], slide_without_mpp: Path) -> None:
    with Slide(shared_file("slides_repacked/cmu_leica.scn")) as slide:
        left, top, width, height = slide.bounds_l0_xywh
        assert (left, top) != (0, 0)
        assert f"at x {left:,}, y {top:,}" in dict(slide_facts(slide))["Bounds"]
        mpp_x, mpp_y = slide.mpp_xy
        assert scanned_area(slide) == pytest.approx(
            (top * mpp_y, left * mpp_x, height * mpp_y, width * mpp_x)
        )
    with Slide(slide_without_mpp) as slide:
        facts = dict(slide_facts(slide))
        assert facts["Pixel size"] == "not stated"
        assert "Scanned area" not in facts
        assert scanned_area(slide) == (0, 0, 1920, 2560)

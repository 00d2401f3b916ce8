"""How much the canvas magnifies the current slide, in words and by keys; whatever docks are open. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from napari_lrmil._viewer.canvas import Area, Canvas, magnification_of, zoom_of

if TYPE_CHECKING:
    from napari_lrmil.slide import Slide

MAGNIFICATIONS = (1, 2, 5, 10, 20, 40)
"""The presets; Ctrl+1 to Ctrl+6."""
_WHOLE = 0.95
"""Of the canvas, that the whole slide fills."""
_ROUNDING = 0.95
"""Scanners of 40× have 0.2528 µm/px as well."""


def magnification_text(um_per_px: float, finest_um_per_px: float = 0.0) -> str:
    """``7.5× · 1.33 µm/px``.

    Parameters
    ----------
    um_per_px : float
        Of a device-independent pixel of the canvas.
    finest_um_per_px : float
        Of the scan: a finer picture shows no more than that one, and says so.
    """
    text = f"{_figures(magnification_of(um_per_px))}× · {_figures(um_per_px)} µm/px"
    if um_per_px >= _ROUNDING * finest_um_per_px:
        return text
    return f"{text} · enlarged beyond the scan's {_figures(magnification_of(finest_um_per_px))}×"


def scanned_area(slide: Slide) -> Area:
    """The slide's bounds in world units: µm, or pixels where their size isn't known."""
    left, top, width, height = slide.bounds_l0_xywh
    mpp_x, mpp_y = slide.mpp_xy if slide.has_mpp else (1.0, 1.0)
    return Area(top * mpp_y, left * mpp_x, height * mpp_y, width * mpp_x)


class Magnifier:
    """Magnifies the current slide, and says how much.

    Parameters
    ----------
    canvas : Canvas
    current : callable
        Returns the current slide, or None.
    """

    def __init__(self, canvas: Canvas, current: Callable[[], Slide | None]) -> None:
        self._canvas, self._current = canvas, current

    @property
    def text(self) -> str:
        """How much the slide is magnified; empty without one, or where its pixel size isn't known."""
        slide = self._current()
        if slide is None or not slide.has_mpp:
            return ""
        return magnification_text(1 / self._canvas.zoom, min(slide.mpp_xy))

    def show(self) -> None:
        """Say it on the canvas."""
        self._canvas.show_magnification(self.text)

    def magnify(self, magnification: float) -> None:
        """Show this magnification; the middle of the field stays where it is."""
        if self._um_per_px is not None:
            self._canvas.go_to(self._canvas.field.center_yx, zoom=zoom_of(magnification))

    def by_step(self, steps: int) -> None:
        """To the next preset up or down; from the lowest on to the whole slide."""
        if self._um_per_px is None:
            return
        now = magnification_of(self._um_per_px)
        if steps > 0:
            above = [each for each in MAGNIFICATIONS if each > now * 1.01]
            self.magnify(above[0] if above else MAGNIFICATIONS[-1])
        else:
            below = [each for each in MAGNIFICATIONS if each < now * 0.99]
            self.magnify(below[-1]) if below else self.whole_slide()

    def whole_slide(self) -> None:
        """Fit the slide's scanned area into the canvas."""
        slide = self._current()
        if slide is not None:
            self._canvas.fit(scanned_area(slide), share=_WHOLE)

    @property
    def _um_per_px(self) -> float | None:
        """Of a device-independent pixel of the canvas; None where the slide's pixel size isn't known."""
        slide = self._current()
        return 1 / self._canvas.zoom if slide is not None and slide.has_mpp else None


def _figures(value: float) -> str:
    """Three figures, without the exponents that ``g`` gives large numbers."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

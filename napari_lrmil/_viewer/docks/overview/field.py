"""Magnification in words, and places on the map. World coordinates as everywhere: level-0 µm, (y, x)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil._viewer.canvas import Area, magnification_of

if TYPE_CHECKING:
    from napari_lrmil.slide import Slide

MAGNIFICATIONS = (1, 2, 5, 10, 20, 40)
"""The presets; Ctrl+1 to Ctrl+6."""


def magnification_text(um_per_px: float | None) -> str:
    """``7.5× · 1.33 µm/px``; empty where the pixel size isn't known."""
    if um_per_px is None:
        return ""
    return f"{_figures(magnification_of(um_per_px))}× · {_figures(um_per_px)} µm/px"


def scanned_area(slide: Slide) -> Area:
    """The slide's bounds in world units: µm, or pixels where their size isn't known."""
    left, top, width, height = slide.bounds_l0_xywh
    mpp_x, mpp_y = slide.mpp_xy if slide.has_mpp else (1.0, 1.0)
    return Area(top * mpp_y, left * mpp_x, height * mpp_y, width * mpp_x)


class Fit(NamedTuple):
    """How `area` lies in a widget: whole, centred, undistorted."""

    area: Area
    px_per_unit: float
    offset_px_xy: tuple[float, float]

    @classmethod
    def of(cls, area: Area, widget_px_xy: tuple[float, float]) -> Fit:
        """The largest one."""
        scale = min(widget_px_xy[0] / area.width, widget_px_xy[1] / area.height)
        offset = (
            (widget_px_xy[0] - area.width * scale) / 2,
            (widget_px_xy[1] - area.height * scale) / 2,
        )
        return cls(area, scale, offset)

    def to_px_xywh(self, part: Area) -> tuple[float, float, float, float]:
        """Where a part of the world lies in the widget."""
        return (
            self.offset_px_xy[0] + (part.left - self.area.left) * self.px_per_unit,
            self.offset_px_xy[1] + (part.top - self.area.top) * self.px_per_unit,
            part.width * self.px_per_unit,
            part.height * self.px_per_unit,
        )

    def to_world_yx(self, px_xy: tuple[float, float]) -> tuple[float, float]:
        """The place under a point of the widget."""
        return (
            self.area.top + (px_xy[1] - self.offset_px_xy[1]) / self.px_per_unit,
            self.area.left + (px_xy[0] - self.offset_px_xy[0]) / self.px_per_unit,
        )


def _figures(value: float) -> str:
    """Three figures, without the exponents that ``g`` gives large numbers."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

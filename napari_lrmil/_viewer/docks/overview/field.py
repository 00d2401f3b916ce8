"""Places on the map. World coordinates as everywhere: level-0 µm, (y, x)."""

from __future__ import annotations

from typing import NamedTuple

from napari_lrmil._viewer.canvas import Area


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

"""The overview map: the slide small, the field as a rectangle. It draws, and says where it was clicked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QResizeEvent
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_lrmil._viewer.canvas import Area, DrawnHeatmap
from napari_lrmil._viewer.docks.overview.field import Fit
from napari_lrmil._viewer.qt.parts import to_image

_FIELD_PEN, _FIELD_HALO = QColor("#0072B2"), QColor("white")
_LEAST_FIELD_PX = 8.0
_ARROWS = {
    Qt.Key.Key_Up: (-1, 0),
    Qt.Key.Key_Down: (1, 0),
    Qt.Key.Key_Left: (0, -1),
    Qt.Key.Key_Right: (0, 1),
}


class OverviewMap(QWidget):
    """Click or drag to move the field; arrow keys, + and -, Home."""

    place_chosen = Signal(float, float)
    moved = Signal(int, int)
    zoomed = Signal(int)
    whole_wanted = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._area: Area | None = None
        self._field: Area | None = None
        self._picture: QImage | None = None
        self._heat: tuple[QImage, Area] | None = None
        self.setObjectName("lrmil_overview_map")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMinimumHeight(160)
        self.setCursor(Qt.CursorShape.CrossCursor)
        self.setAccessibleName("Overview map")
        self.setToolTip(
            "The whole slide; the rectangle is what you see. Click or drag to go there. With the keyboard: "
            "arrows move, + and - magnify, Home shows the whole slide."
        )

    def show_picture(self, pixels: NDArray[np.uint8] | None, area: Area | None) -> None:
        """Show the slide, or nothing yet."""
        self._area = area
        self._picture = None if pixels is None else to_image(pixels)
        self._fit_height()
        self.update()

    def show_heatmap(self, heatmap: DrawnHeatmap | None) -> None:
        """Show a heatmap over it."""
        self._heat = None
        if heatmap is not None:
            self._heat = (to_image(heatmap.rgba), heatmap.area)
        self.update()

    def show_field(self, field: Area | None) -> None:
        """Show what the canvas shows."""
        if field != self._field:
            self._field = field
            self.update()

    @property
    def field_px_xywh(self) -> tuple[float, float, float, float] | None:
        """Where the rectangle is drawn."""
        fit = self._fit
        if fit is None or self._field is None:
            return None
        return fit.to_px_xywh(self._field)

    def sizeHint(self) -> QSize:
        """As wide as the dock, as high as the slide's shape asks for."""
        return QSize(280, 220)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Keep the slide's proportions, so that no room is wasted."""
        super().resizeEvent(event)
        self._fit_height()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Slide, heatmap, field."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor(128, 128, 128, 40))
        fit = self._fit
        if fit is not None and self._area is not None:
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, True)
            if self._picture is not None:
                painter.drawImage(QRectF(*fit.to_px_xywh(self._area)), self._picture)
                painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, False)
                if self._heat is not None:
                    painter.drawImage(QRectF(*fit.to_px_xywh(self._heat[1])), self._heat[0])
            if self._field is not None:
                self._paint_field(painter, QRectF(*fit.to_px_xywh(self._field)))
        if self.hasFocus():
            painter.setPen(QPen(self.palette().highlight().color(), 2))
            painter.drawRect(self.rect().adjusted(1, 1, -1, -1))
        painter.end()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Go there."""
        if event.button() == Qt.MouseButton.LeftButton:
            self._choose(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Go along."""
        if event.buttons() & Qt.MouseButton.LeftButton:
            self._choose(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Arrows, plus, minus, Home; all other keys are the window's."""
        key, ordinary = event.key(), not event.modifiers() & Qt.KeyboardModifier.ControlModifier
        if ordinary and key in _ARROWS:
            self.moved.emit(*_ARROWS[key])
        elif ordinary and key in (Qt.Key.Key_Plus, Qt.Key.Key_Equal):
            self.zoomed.emit(1)
        elif ordinary and key == Qt.Key.Key_Minus:
            self.zoomed.emit(-1)
        elif ordinary and key == Qt.Key.Key_Home:
            self.whole_wanted.emit()
        else:
            super().keyPressEvent(event)

    @property
    def _fit(self) -> Fit | None:
        if self._area is None or not self._area.width or not self._area.height:
            return None
        return Fit.of(self._area, (float(self.width()), float(self.height())))

    def _fit_height(self) -> None:
        if self._area is not None and self._area.width:
            wanted = round(self.width() * self._area.height / self._area.width)
            self.setFixedHeight(min(300, max(90, wanted)))

    def _choose(self, event: QMouseEvent) -> None:
        fit = self._fit
        if fit is not None:
            at = QPointF(event.position()) if hasattr(event, "position") else event.localPos()
            self.place_chosen.emit(*fit.to_world_yx((at.x(), at.y())))

    def _paint_field(self, painter: QPainter, box: QRectF) -> None:
        # At high magnification the field is smaller than a pixel here: what is drawn never is.
        grow_x = max(0.0, _LEAST_FIELD_PX - box.width()) / 2
        grow_y = max(0.0, _LEAST_FIELD_PX - box.height()) / 2
        inside = QRectF(self.rect()).adjusted(1.5, 1.5, -1.5, -1.5)
        box = box.adjusted(-grow_x, -grow_y, grow_x, grow_y).intersected(inside)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        for pen in (QPen(_FIELD_HALO, 4), QPen(_FIELD_PEN, 2)):
            painter.setPen(pen)
            painter.drawRect(box)

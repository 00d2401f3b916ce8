"""Small figures, painted in the colours of the theme."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QLineF, QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QFontMetricsF, QImage, QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_lrmil._viewer.docks.classify.evidence import ColourBarPanel, CurvePanel
from napari_lrmil.heatmap import colour_table

_LINE = QColor("#e8890c")
"""Reads on dark and on light; the random band is the text colour, so that they differ without hue too."""
_SLIM = 4


class Figure(QWidget):
    """A widget of fixed height that paints itself.

    Parameters
    ----------
    height_px : int
    """

    def __init__(self, height_px: int) -> None:
        super().__init__()
        self._height_px = height_px
        self.setFixedHeight(height_px)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        """Any width."""
        return QSize(240, self._height_px)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw with the theme's text colour."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self.draw(painter, self.palette().color(QPalette.ColorRole.WindowText))
        painter.end()

    def draw(self, painter: QPainter, ink: QColor) -> None:
        """Paint everything."""
        raise NotImplementedError


class ColourBar(Figure):
    """Colours, the values at their ends, the unit, and a mark at the threshold."""

    def __init__(self) -> None:
        super().__init__(52)
        self._panel: ColourBarPanel | None = None

    def show_bar(self, panel: ColourBarPanel) -> None:
        """Show this bar."""
        if panel != self._panel:
            self._panel = panel
            ends = f"{panel.low} to {panel.high}"
            self.setAccessibleName(f"Colour bar: {ends}, {panel.unit}")
            self.setToolTip(f"What the colours mean: {ends}, {panel.unit}")
            self.update()

    def draw(self, painter: QPainter, ink: QColor) -> None:
        """Bar, ends, unit, threshold."""
        panel = self._panel
        if panel is None:
            return
        metrics = QFontMetricsF(self.font())
        bar = QRectF(1, 4, self.width() - 2, 12)
        table = colour_table(panel.colormap, signed=panel.signed)
        # Opaque here: on the slide the cold end lets the tissue through, which is nothing a bar can show.
        image = QImage(len(table), 1, QImage.Format.Format_RGB32)
        for x, (red, green, blue, _) in enumerate(table.tolist()):
            image.setPixelColor(x, 0, QColor.fromRgbF(red, green, blue))
        painter.drawImage(bar, image)
        painter.setPen(QPen(ink, 1))
        painter.drawRect(bar)
        if panel.threshold > 0:
            painter.setPen(QPen(ink, 2))
            for at in _threshold_places(panel):
                x = bar.left() + at * bar.width()
                painter.drawLine(QLineF(x, bar.top() - 3, x, bar.bottom() + 3))
        painter.setPen(ink)
        line = QRectF(0, bar.bottom() + 2, self.width(), metrics.height())
        painter.drawText(line, Qt.AlignmentFlag.AlignLeft, panel.low)
        painter.drawText(line, Qt.AlignmentFlag.AlignHCenter, panel.middle)
        painter.drawText(line, Qt.AlignmentFlag.AlignRight, panel.high)
        unit = metrics.elidedText(panel.unit, Qt.TextElideMode.ElideRight, self.width())
        painter.drawText(line.translated(0, metrics.height()), Qt.AlignmentFlag.AlignHCenter, unit)


def _threshold_places(panel: ColourBarPanel) -> tuple[float, ...]:
    if not panel.signed:
        return (panel.threshold,)
    return (0.5 - panel.threshold / 2, 0.5 + panel.threshold / 2)


class CurvePlot(Figure):
    """The deletion curve against random orders."""

    def __init__(self) -> None:
        super().__init__(172)
        self._panel: CurvePanel | None = None

    def show_curve(self, panel: CurvePanel) -> None:
        """Show this curve."""
        if panel == self._panel:
            return
        self._panel = panel
        self.setAccessibleName(f"Deletion curve of {panel.class_name}. {panel.text}")
        self.setToolTip(
            f"How the probability of {panel.class_name} falls as tiles are taken away. Orange: those that speak most "
            "for it first. Grey: random orders (mean, 5th to 95th percentile). The lower the orange line lies, the "
            "more these tiles carry the result. With no tile left every class is equally likely."
        )
        self.update()

    def draw(self, painter: QPainter, ink: QColor) -> None:
        """Axes, band, lines, names."""
        panel = self._panel
        if panel is None:
            return
        metrics = QFontMetricsF(self.font())
        high = metrics.height()
        area = QRectF(
            metrics.horizontalAdvance("100 %") + 6,
            high + 4,
            self.width() - metrics.horizontalAdvance("100 %") - 12,
            self.height() - 3 * high - 10,
        )
        self._axes(painter, ink, area, metrics, panel.class_name)

        def line(values: Sequence[float]) -> list[QPointF]:
            return [
                QPointF(area.left() + x * area.width(), area.bottom() - y * area.height())
                for x, y in zip(panel.fractions, values, strict=True)
            ]

        band, grey = QColor(ink), QColor(ink)
        band.setAlpha(60)
        grey.setAlpha(190)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(band)
        painter.drawPolygon(QPolygonF(line(panel.random_high) + line(panel.random_low)[::-1]))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(grey, 1.5, Qt.PenStyle.DashLine))
        painter.drawPolyline(QPolygonF(line(panel.random_mean)))
        painter.setPen(QPen(_LINE, 2.2))
        painter.drawPolyline(QPolygonF(line(panel.by_evidence)))
        self._key(painter, ink, grey, high)

    def _axes(
        self, painter: QPainter, ink: QColor, area: QRectF, metrics: QFontMetricsF, class_name: str
    ) -> None:
        faint = QColor(ink)
        faint.setAlpha(50)
        high = metrics.height()
        for share in (0.0, 0.5, 1.0):
            y = area.bottom() - share * area.height()
            x = area.left() + share * area.width()
            painter.setPen(QPen(faint, 1))
            painter.drawLine(QLineF(area.left(), y, area.right(), y))
            painter.setPen(ink)
            text = f"{share:.0%}".replace("%", " %")
            painter.drawText(
                QRectF(0, y - high / 2, area.left() - _SLIM, high),
                Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter,
                text,
            )
            width = metrics.horizontalAdvance(text)
            left = min(max(x - width / 2, area.left()), self.width() - width - 1)
            painter.drawText(QPointF(left, area.bottom() + metrics.ascent() + 2), text)
        painter.setPen(QPen(ink, 1))
        painter.drawLine(QLineF(area.bottomLeft(), area.bottomRight()))
        painter.drawLine(QLineF(area.bottomLeft(), area.topLeft()))
        painter.drawText(
            QRectF(area.left(), self.height() - high, area.width(), high),
            Qt.AlignmentFlag.AlignHCenter,
            "tiles taken away",
        )
        title = metrics.elidedText(f"p({class_name})", Qt.TextElideMode.ElideRight, self.width() * 0.4)
        painter.drawText(QPointF(0, metrics.ascent()), title)

    def _key(self, painter: QPainter, ink: QColor, grey: QColor, high: float) -> None:
        metrics = QFontMetricsF(self.font())
        right = float(self.width())
        for text, pen in (
            ("random", QPen(grey, 1.5, Qt.PenStyle.DashLine)),
            ("by evidence", QPen(_LINE, 2.2)),
        ):
            right -= metrics.horizontalAdvance(text)
            painter.setPen(ink)
            painter.drawText(QPointF(right, metrics.ascent()), text)
            painter.setPen(pen)
            painter.drawLine(QLineF(right - 22, high / 2, right - 4, high / 2))
            right -= 32

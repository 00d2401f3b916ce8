"""A slide's report as a PDF of one page.

ReportLab: BSD, kept up since 2000, pure Python without system libraries, and it lays text out in boxes of
a given size, so that one page stays one page whatever a note says.
"""

from __future__ import annotations

import io
from xml.sax.saxutils import escape

import numpy as np
from reportlab.lib.colors import Color, HexColor, black
from reportlab.lib.pagesizes import A4, LETTER
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph

from napari_lrmil.export.painting import font_path, length_text, nice_length
from napari_lrmil.export.report_content import ReportContent
from napari_lrmil.export.report_html import tiles_line, tiles_title
from napari_lrmil.wording import NOT_TO_BE_USED, percent_text

FONT, BOLD = "LRMILSans", "LRMILSans-Bold"
MISSING = "▯"
"""Stands for a character that the font lacks."""
_MARGIN, _GAP = 32.0, 12.0
_GREY, _BLUE, _AMBER = HexColor("#555555"), HexColor("#2a5a83"), HexColor("#b35900")
_CUT = " … (cut; the HTML report has all)"


def render_pdf(content: ReportContent, *, page: str) -> bytes:
    """The whole file: one page.

    Parameters
    ----------
    content : ReportContent
    page : {'A4', 'letter'}
    """
    register_fonts()
    buffer = io.BytesIO()
    size = A4 if page == "A4" else LETTER
    canvas = Canvas(buffer, pagesize=size, pageCompression=1)
    canvas.setTitle(f"LRMIL report: {content.name}")
    canvas.setAuthor("napari-lrmil")
    canvas.setSubject(content.note)
    _Sheet(canvas, content, size).draw()
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


class _Sheet:
    """Draws from the top downwards; `y` is where the next thing may begin."""

    def __init__(self, canvas: Canvas, content: ReportContent, size: tuple[float, float]) -> None:
        self.canvas, self.content = canvas, content
        self.width, self.y = size[0] - 2 * _MARGIN, size[1] - _MARGIN
        self.overview_height = size[1] - 600

    def draw(self) -> None:
        self._head()
        self._overview()
        if self.content.withheld_line:
            self._withheld()
            self._slide(_MARGIN, self.y, self.width)
        else:
            self._tiles()
            self._curve_and_slide()
        self._card()

    def text(
        self,
        text: str,
        x: float,
        top: float,
        width: float,
        height: float,
        *,
        size: float = 8,
        bold: bool = False,
        color: Color = black,
    ) -> float:
        """Set a text into a box, smaller and at last cut where it is too long. Returns its bottom."""
        markup = escape(printable(text)).replace("\n", "<br/>")
        while True:
            style = ParagraphStyle(
                "text", fontName=BOLD if bold else FONT, fontSize=size, leading=size * 1.25, textColor=color
            )
            style.splitLongWords = 1
            paragraph = Paragraph(markup, style)
            _, used = paragraph.wrap(width, height)
            if used <= height + 0.1:
                paragraph.drawOn(self.canvas, x, top - used)
                return float(top - used)
            if size > 6.2:
                size = max(6.0, size - 0.5)
                continue
            # Far too long: cut to about what fits, then a little more each time.
            keep = (
                min(len(text) - 1, int(len(text) * height / used))
                if _CUT not in text
                else len(text) * 9 // 10
            )
            text = text.removesuffix(_CUT)[: max(1, keep - len(_CUT))].rstrip() + _CUT
            if keep <= len(_CUT):
                return top
            markup = escape(printable(text)).replace("\n", "<br/>")

    def picture(self, jpeg: bytes, x: float, top: float, width: float, height: float) -> tuple[float, float]:
        """Fit a picture into a box at its top left. Returns its size."""
        reader = ImageReader(io.BytesIO(jpeg))
        px_x, px_y = reader.getSize()
        zoom = min(width / px_x, height / px_y)
        size = (px_x * zoom, px_y * zoom)
        self.canvas.drawImage(reader, x, top - size[1], *size)
        return size

    def _head(self) -> None:
        content, canvas = self.content, self.canvas
        self.text("LRMIL slide report", _MARGIN, self.y, self.width * 0.4, 20, size=14, bold=True)
        name = printable(content.name.replace("\n", " "))
        size = 9.0
        while size > 6 and pdfmetrics.stringWidth(name, FONT, size) > self.width * 0.6:
            size -= 0.5
        name = one_line(name, size, self.width * 0.6)
        canvas.setFont(FONT, size)
        canvas.drawRightString(_MARGIN + self.width, self.y - 13, name)
        self.y -= 24
        canvas.setStrokeColor(_AMBER)
        canvas.setLineWidth(1.2)
        canvas.rect(_MARGIN, self.y - 17, self.width, 17, fill=0)
        self.text(content.note, _MARGIN + 6, self.y - 3, self.width - 12, 12, size=9, bold=True)
        self.y -= 17 + _GAP

    def _overview(self) -> None:
        content, canvas, height = self.content, self.canvas, self.overview_height
        column = (self.width - 2 * _GAP) * 0.31
        width, used = self.picture(content.plain_jpeg, _MARGIN, self.y, column, height)
        bar_um = nice_length(0.5 * content.picture_px[0] * content.um_per_px)
        bar = width * bar_um / (content.picture_px[0] * content.um_per_px)
        canvas.setFillColor(black)
        canvas.rect(_MARGIN, self.y - used - 7, bar, 2.2, fill=1, stroke=0)
        self.text(length_text(bar_um), _MARGIN, self.y - used - 9, column, 10, size=7)
        x = _MARGIN + column + _GAP
        if not content.withheld_line:
            used = max(used, self._overlay(x, column, height))
            x += column + _GAP
        result = self._result(x, self.y, _MARGIN + self.width - x, height + 34)
        self.y = min(result, self.y - used - 38) - _GAP

    def _overlay(self, x: float, column: float, height: float) -> float:
        """Draw the heatmap at `x`. Returns the picture's height."""
        content, canvas = self.content, self.canvas
        width, used = self.picture(content.overlay_jpeg, x, self.y, column, height)
        colours = content.scale.colours(np.linspace(content.scale.low, content.scale.high, 64), thin=False)
        for number, (r, g, b, _) in enumerate(colours.tolist()):
            canvas.setFillColorRGB(r / 255, g / 255, b / 255)
            canvas.rect(x + number * width / 64, self.y - used - 9, width / 64 + 0.3, 5, fill=1, stroke=0)
        canvas.setFillColor(black)
        canvas.setFont(FONT, 7)
        canvas.drawString(x, self.y - used - 17, f"{content.scale.low:.2g}")
        canvas.drawRightString(x + width, self.y - used - 17, f"{content.scale.high:.2g}")
        self.text(
            f"{content.scale.label}; clear: no tile read; numbers: tiles below",
            x,
            self.y - used - 19,
            column,
            18,
            size=7,
        )
        return used

    def _result(self, x: float, top: float, width: float, height: float) -> float:
        content, canvas, floor = self.content, self.canvas, top - height
        y = self.text(content.result_line, x, top, width, 30, size=14, bold=True) - 4
        for warning in content.warnings:
            bottom = self.text(f"⚠ {warning}", x + 6, y, width - 6, 48, size=8, bold=True, color=_AMBER)
            canvas.setFillColor(_AMBER)
            canvas.rect(x, bottom - 1, 2.5, y - bottom, fill=1, stroke=0)
            y = bottom - 4
        if not content.withheld_line:
            y = self._classes(x, y, width)
        for line in (*(() if content.withheld_line else content.label_trust), *content.trust):
            y = self.text(line, x, y, width, max(9.0, min(27.0, y - floor - 50)), size=7.5) - 2
        y = self.text("Reviewer", x, y - 2, width, 12, size=9, bold=True) - 1
        y = self.text(content.verdict_text, x, y, width, 11, size=7.5) - 1
        if content.verdict.note:
            y = self.text(content.verdict.note, x, y, width, y - floor, size=7.5)
        return y

    def _withheld(self) -> None:
        """Set what the model would say into a box that says that it is not to be used; pictures are left to the HTML."""
        content, top = self.content, self.y
        x, width = _MARGIN + 6, self.width - 12
        y = self.text(f"⚠ {NOT_TO_BE_USED}", x, top - 4, width, 24, size=8, bold=True, color=_AMBER) - 2
        y = self.text(content.withheld_line, x, y, width, 24, size=8, color=_GREY) - 2
        y = self._classes(x, y, width / 2)
        for line in content.label_trust:
            y = self.text(line, x, y, width, 20, size=7, color=_GREY) - 1
        self.canvas.setStrokeColor(_AMBER)
        self.canvas.setLineWidth(1.2)
        self.canvas.rect(_MARGIN, y - 4, self.width, top - y + 4, fill=0)
        self.y = y - 4 - _GAP

    def _classes(self, x: float, y: float, width: float) -> float:
        """Draw a bar a class. Returns where the next thing may begin."""
        content, canvas = self.content, self.canvas
        ranked = sorted(content.classes, key=lambda pair: -pair[1])
        shown = content.classes if len(content.classes) <= 6 else tuple(ranked[:5])
        for name, probability in shown:
            canvas.setFillColor(black)
            canvas.setFont(FONT, 7.5)
            canvas.drawString(x, y - 8.5, one_line(printable(name), 7.5, width * 0.4))
            canvas.drawRightString(x + width, y - 8.5, percent_text(probability, decimals=1))
            left, length = x + width * 0.43, width * 0.38
            canvas.setFillColor(HexColor("#e6e6e6"))
            canvas.rect(left, y - 9, length, 7, fill=1, stroke=0)
            canvas.setFillColor(_BLUE)
            canvas.rect(left, y - 9, length * probability, 7, fill=1, stroke=0)
            y -= 11.5
        if len(shown) < len(content.classes):
            rest = f"and {len(content.classes) - len(shown)} less probable classes"
            y = self.text(rest, x, y, width, 10, size=7)
        return y - 3

    def _heading(self, text: str, x: float, width: float, y: float) -> float:
        return self.text(text, x, y, width, 13, size=9, bold=True) - 4

    def _tiles(self) -> None:
        content = self.content
        self.y = self._heading(tiles_title(content), _MARGIN, self.width, self.y)
        if not content.tiles:
            self.y = self.text(tiles_line(content), _MARGIN, self.y, self.width, 20, size=7, color=_GREY)
            self.y -= _GAP / 2
            return
        columns = max(6, len(content.tiles))
        step = (self.width + 6) / columns
        for number, tile in enumerate(content.tiles):
            x = _MARGIN + number * step
            self.picture(tile.jpeg, x, self.y, step - 6, step - 6)
            self.canvas.setStrokeColor(HexColor("#bbbbbb"))
            self.canvas.setLineWidth(0.5)
            self.canvas.rect(x, self.y - step + 6, step - 6, step - 6, fill=0)
            caption = (
                f"{number + 1}. p {tile.contribution:+.4f}\n"
                f"log-odds {tile.log_odds:+.3g}, alone {tile.log_odds_alone:+.2g}\n"
                + ("" if tile.attention is None else f"attention {tile.attention:.2g}×")
            )
            self.text(caption, x, self.y - step + 4, step - 6, 28, size=6.5)
        self.y -= step + 25
        self.y = (
            self.text(tiles_line(content), _MARGIN, self.y, self.width, 20, size=7, color=_GREY) - _GAP / 2
        )

    def _curve_and_slide(self) -> None:
        half = (self.width - _GAP * 1.5) / 2
        top = self.y
        below = self._heading("Do these tiles matter?", _MARGIN, half, top)
        self._curve(_MARGIN + 22, below - 82, half - 24, 80)
        bottom = self.text(self.content.curve_line, _MARGIN, below - 106, half, 34, size=7)
        x = _MARGIN + half + _GAP * 1.5
        self._slide(x, top, half)
        self.y = min(bottom - _GAP / 2, self.y)

    def _slide(self, x: float, top: float, width: float) -> None:
        facts = self._facts(self.content.slide_facts, x, self._heading("Slide", x, width, top), width, 130)
        self.y = facts - _GAP / 2

    def _curve(self, x: float, y: float, width: float, height: float) -> None:
        canvas, curve = self.canvas, self.content.deletion
        canvas.setStrokeColor(HexColor("#999999"))
        canvas.setLineWidth(0.6)
        canvas.rect(x, y, width, height, fill=0)

        def trace(values: list[float]) -> list[tuple[float, float]]:
            pairs = zip(curve.fractions.tolist(), values, strict=True)
            return [(x + width * share, y + height * value) for share, value in pairs]

        def path(points: list[tuple[float, float]], *, fill: bool) -> None:
            line = canvas.beginPath()
            line.moveTo(*points[0])
            for point in points[1:]:
                line.lineTo(*point)
            canvas.drawPath(line, stroke=int(not fill), fill=int(fill))

        canvas.setFillColor(HexColor("#d9d9d9"))
        path(trace(curve.random_high.tolist()) + trace(curve.random_low.tolist())[::-1], fill=True)
        canvas.setStrokeColor(HexColor("#666666"))
        canvas.setLineWidth(1)
        canvas.setDash(4, 3)
        path(trace(curve.random_mean.tolist()), fill=False)
        canvas.line(x + 110, y - 19, x + 126, y - 19)
        canvas.setDash()
        canvas.setStrokeColor(HexColor("#0072b2"))
        canvas.setLineWidth(1.6)
        path(trace(curve.by_evidence.tolist()), fill=False)
        canvas.line(x, y - 19, x + 16, y - 19)
        canvas.setFillColor(black)
        canvas.setFont(FONT, 6.5)
        canvas.drawRightString(x - 3, y + height - 5, "1")
        canvas.drawRightString(x - 3, y, "0")
        canvas.drawString(x, y - 8, "0%")
        canvas.drawRightString(x + width, y - 8, "100% of the tiles removed")
        canvas.drawString(x + 20, y - 21, "strongest tiles first")
        canvas.drawString(x + 130, y - 21, "random order, 5–95%")
        canvas.saveState()
        canvas.translate(x - 12, y + height / 2)
        canvas.rotate(90)
        canvas.drawCentredString(0, 0, one_line(printable(f"p({self.content.called})"), 6.5, height))
        canvas.restoreState()

    def _card(self) -> None:
        self.y = self._heading("Model card", _MARGIN, self.width, self.y)
        self._facts(self.content.model_facts, _MARGIN, self.y, self.width, self.y - _MARGIN)

    def _facts(
        self, facts: tuple[tuple[str, str], ...], x: float, top: float, width: float, height: float
    ) -> float:
        y, floor, key = top, top - height, 66.0
        for number, (name, value) in enumerate(facts):
            # What comes after needs a line each; the rest is this one's.
            room = min(46.0, y - floor - 10.5 * (len(facts) - number - 1))
            self.text(name, x, y, key, 10, size=7, color=_GREY)
            y = min(y - 9, self.text(value, x + key, y, width - key, max(9.0, room), size=7)) - 1.5
        return y


def register_fonts() -> None:
    if FONT not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(TTFont(FONT, font_path()))
        pdfmetrics.registerFont(TTFont(BOLD, font_path(bold=True)))
        pdfmetrics.registerFontFamily(FONT, normal=FONT, bold=BOLD, italic=FONT, boldItalic=BOLD)


def printable(text: str) -> str:
    """Characters that the font lacks as empty boxes, line ends as they are, other controls as spaces."""
    known = pdfmetrics.getFont(FONT).face.charToGlyph
    return "".join(
        char if char == "\n" or ord(char) in known else (" " if ord(char) < 32 else MISSING) for char in text
    )


def one_line(text: str, size: float, width: float) -> str:
    """Without its middle where it is too long."""
    shown, kept = text, text
    while pdfmetrics.stringWidth(shown, FONT, size) > width and len(kept) > 2:
        half = len(kept) // 2
        kept = kept[: half - 1] + kept[half + 1 :]
        shown = f"{kept[: len(kept) // 2]}…{kept[len(kept) // 2 :]}"
    return shown

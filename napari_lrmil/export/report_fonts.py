"""Fonts of PDF reports, and texts that fit them."""

from __future__ import annotations

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont

from napari_lrmil.export.painting import font_path

FONT, BOLD = "LRMILSans", "LRMILSans-Bold"
MISSING = "▯"


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

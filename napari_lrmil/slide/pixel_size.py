"""How many µm a pixel of a slide measures: one decision on all that is said of it.

Each backend hands over what it found (`Evidence`), the most trusted first: OME-XML of the image that is read, OME-Zarr's
scales or a DICOM file, what a scanner wrote into its own header, TIFF resolution tags. The first believable one counts;
what speaks against it is told beside it, and not believed values are named, never used.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from napari_lrmil.errors import SlideError

MIN_MPP, MAX_MPP = 0.05, 20.0
"""What a pixel of a slide can measure, µm: an oil immersion scan with every pixel doubled, and an overview at 0.5x."""

MAX_ASPECT = 2.5
"""A pixel that is longer than this along one axis is a mistake in the file, such as a unit forgotten for one axis."""

_AGREEMENT = 0.02
"""Values this close say the same: scanners round, and nominal values differ by about 1 %."""

_PREFIXES = {
    "": 0,
    "d": -1,
    "c": -2,
    "m": -3,
    "u": -6,
    "µ": -6,
    "μ": -6,
    "n": -9,
    "p": -12,
    "f": -15,
    "da": 1,
    "h": 2,
    "k": 3,
    "M": 6,
}
_PREFIX_WORDS = {
    "deci": -1,
    "centi": -2,
    "milli": -3,
    "micro": -6,
    "nano": -9,
    "pico": -12,
    "femto": -15,
    "kilo": 3,
}
_UNIT_UM = {
    **{f"{prefix}m": 10.0 ** (6 + power) for prefix, power in _PREFIXES.items()},
    **{f"{word}meter": 10.0 ** (6 + power) for word, power in ({"": 0} | _PREFIX_WORDS).items()},
    **dict.fromkeys(("Å", "angstrom"), 1e-4),
    **dict.fromkeys(("in", "inch"), 25_400.0),
    **dict.fromkeys(("ft", "foot"), 304_800.0),
    **dict.fromkeys(("yd", "yard"), 914_400.0),
    "thou": 25.4,
    "li": 25_400.0 / 12,
    "pt": 25_400.0 / 72,
}
"""Lengths as OME-XML abbreviates them, and as OME-Zarr writes them out; those of the sky and of roads are left out."""
_TAG_UNIT_UM = {2: 25_400.0, 3: 10_000.0, "inch": 25_400.0, "centimeter": 10_000.0}

TIFF_TAG, OME_XML, OME_ZARR, DICOM = "the TIFF tag", "OME-XML", "OME-Zarr", "DICOM"


@dataclass(frozen=True)
class Evidence:
    """What one place in a file says of its pixels.

    Attributes
    ----------
    source : str
        Where it stands, as in "0.5 from OME-XML".
    mpp_xy : (float, float)
        µm per level-0 pixel along x and y; may be absurd.
    """

    source: str
    mpp_xy: tuple[float, float]

    @property
    def doubt(self) -> str:
        """Why it isn't believed; empty where it is."""
        if not all(is_plausible(mpp) for mpp in self.mpp_xy):
            return f"{MIN_MPP:g} to {MAX_MPP:g} µm/px is plausible"
        if max(self.mpp_xy) / min(self.mpp_xy) > MAX_ASPECT:
            return "pixels of a slide are about square"
        return ""


@dataclass(frozen=True)
class PixelSize:
    """The decision.

    Attributes
    ----------
    mpp_xy : (float, float) or None
        µm per level-0 pixel along x and y; None where nothing believable is said.
    source : str
        Where it is from; empty where it is unknown.
    doubt : str
        What was found and isn't believed, where the size is unknown; empty where nothing was found.
    text : str
        For people: "0.5 from OME-XML; the TIFF tag says 353".
    """

    mpp_xy: tuple[float, float] | None
    source: str
    doubt: str
    text: str


def decide(evidence: Sequence[Evidence]) -> PixelSize:
    """Return the pixel size that the first believable evidence gives, and what is to be told of the others.

    Parameters
    ----------
    evidence : sequence of Evidence
        The most trusted first.
    """
    chosen = next((each for each in evidence if not each.doubt), None)
    if chosen is None:
        doubts = [f"{number_text(each.mpp_xy)} ({each.source}; {each.doubt})" for each in _distinct(evidence)]
        doubt = " and ".join(doubts)
        return PixelSize(None, "", doubt, f"unknown; not believed: {doubt}" if doubt else "unknown")
    others = [each for each in _distinct(evidence) if each is not chosen and not _agree(each, chosen)]
    told = [f"{number_text(chosen.mpp_xy)} from {chosen.source}"]
    told += [f"{each.source} says {number_text(each.mpp_xy)}" for each in others]
    return PixelSize(chosen.mpp_xy, chosen.source, "", "; ".join(told))


def is_plausible(mpp: float) -> bool:
    """Return whether a pixel of a slide can measure this, in µm."""
    return MIN_MPP <= mpp <= MAX_MPP


def check_given(mpp: float) -> None:
    """Refuse a pixel size that somebody gave and no slide has.

    Raises
    ------
    SlideError
    """
    if not is_plausible(mpp):
        hint = "; it is meant in µm, not in nm" if mpp >= 50 else ""
        raise SlideError(
            f"{mpp:g} µm/px isn't plausible: mpp must lie between {MIN_MPP:g} and {MAX_MPP:g} "
            f"(0.25 is usual for 40x, 0.5 for 20x){hint}"
        )


def parse_mpp(text: str) -> float | None:
    """Return the number that somebody typed, with point or comma whatever the locale; None where it is none."""
    match = re.fullmatch(r"\s*(\d*)[.,]?(\d*)\s*", text)
    if match is None or not (match[1] or match[2]):
        return None
    return float(f"{match[1] or 0}.{match[2] or 0}")


def number_text(mpp_xy: tuple[float, float]) -> str:
    """A pixel size in short: one number where both axes agree."""
    x, y = (f"{mpp:,.0f}" if mpp >= 100 else f"{mpp:.3g}" for mpp in mpp_xy)
    return x if x == y else f"{x} × {y}"


def unit_um(unit: object) -> float | None:
    """How many µm a unit of OME-XML or OME-Zarr has; None where it is no length, as a pixel is none."""
    return _UNIT_UM.get(unit) if isinstance(unit, str) else None


def tag_evidence(x: float | None, y: float | None, unit: int | str | None) -> list[Evidence]:
    """What TIFF resolution tags say: pixels per unit along x and y, and the unit as number or as OpenSlide spells it."""
    um = _TAG_UNIT_UM.get(unit) if unit is not None else None
    if um is None or not x or not y or not (0 < x < math.inf and 0 < y < math.inf):
        return []
    return [Evidence(TIFF_TAG, (um / x, um / y))]


def ome_evidence(xml: str | None, size_xy: tuple[int, int], *, ifd: int | None = None) -> list[Evidence]:
    """What OME-XML says of the image that is read.

    Parameters
    ----------
    xml : str, optional
    size_xy : (int, int)
        Width and height of the image that is read: the XML may describe several.
    ifd : int, optional
        The number of its directory in the file, which tells images of one size apart.
    """
    if not xml or "OME" not in xml:
        return []
    try:
        images = [pixels for pixels in ET.fromstring(xml).iter() if pixels.tag.rpartition("}")[2] == "Pixels"]
    except (ET.ParseError, ValueError):
        return []
    fits = [pixels for pixels in images if _size_of(pixels) == size_xy]
    here = [pixels for pixels in fits if ifd is not None and ifd in _ifds_of(pixels)]
    for pixels in (here or fits)[:1]:
        x, y = (_ome_size(pixels, axis) for axis in "XY")
        if x is not None and y is not None:
            return [Evidence(OME_XML, (x, y))]
    return []


def _ome_size(pixels: ET.Element, axis: str) -> float | None:
    """PhysicalSizeX or Y in µm, which is its default unit; None where it isn't said. It may be absurd."""
    unit = unit_um(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        size = float(pixels.get(f"PhysicalSize{axis}", "0"))
    except ValueError:
        return None
    return size * unit if unit is not None and size else None


def _size_of(pixels: ET.Element) -> tuple[int, int] | None:
    try:
        return (int(pixels.get("SizeX", "")), int(pixels.get("SizeY", "")))
    except ValueError:
        return None


def _ifds_of(pixels: ET.Element) -> set[int]:
    ifds = set()
    for data in pixels:
        if data.tag.rpartition("}")[2] == "TiffData":
            try:
                ifds.add(int(data.get("IFD", "0")))
            except ValueError:
                continue
    return ifds


def _agree(one: Evidence, other: Evidence) -> bool:
    return all(math.isclose(a, b, rel_tol=_AGREEMENT) for a, b in zip(one.mpp_xy, other.mpp_xy, strict=True))


def _distinct(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Without what one source says twice, as OpenSlide and tifffile do of one tag."""
    kept: list[Evidence] = []
    for each in evidence:
        if not any(each.source == other.source and _agree(each, other) for other in kept):
            kept.append(each)
    return kept

"""What the overview dock says, as plain values: the facts of a slide, and what is kept back. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_lrmil.slide import Slide

NO_SLIDE = "Open a slide to see where you are on it."
NO_MPP = "Enter the slide's µm/px in the panel “LRMIL: classify slide” to see magnifications."
MASKED_NOTE = (
    "Not shown, since it can say who the patient is: file name and folder, barcode and label, the scanner's "
    "free text, date and serial numbers."
)

_VENDOR_UNKNOWN = ("", "tiff", "generic-tiff", None)


@dataclass(frozen=True)
class OverviewPanel:
    """Words and switches; `hint` says what to do where something is missing."""

    hint: str = NO_SLIDE
    has_slide: bool = False
    can_magnify: bool = False
    facts: tuple[tuple[str, str], ...] = ()
    associated: tuple[str, ...] = ()
    heatmap_shown: bool = True
    has_heatmap: bool = False


def overview_panel(slide: Slide | None, *, has_heatmap: bool, heatmap_shown: bool) -> OverviewPanel:
    """Of a slide, or of none."""
    if slide is None:
        return OverviewPanel(heatmap_shown=heatmap_shown)
    return OverviewPanel(
        hint="" if slide.has_mpp else NO_MPP,
        has_slide=True,
        can_magnify=slide.has_mpp,
        facts=slide_facts(slide),
        associated=slide.associated_images,
        heatmap_shown=heatmap_shown,
        has_heatmap=has_heatmap,
    )


def slide_facts(slide: Slide) -> tuple[tuple[str, str], ...]:
    """(what, value) pairs out of `Slide.metadata`, which holds no identifiers."""
    said = slide.metadata
    width, height = slide.level_dimensions_xy[0]
    left, top, bounds_width, bounds_height = slide.bounds_l0_xywh
    vendor = said["vendor"]
    facts = [
        ("Format", "not stated" if vendor in _VENDOR_UNKNOWN else str(vendor)),
        ("Objective", _power(said["objective_power"])),
        ("Pixel size", _pixel_size(slide)),
        ("Size", f"{width:,} × {height:,} px"),
    ]
    if slide.has_mpp:
        mpp_x, mpp_y = slide.mpp_xy
        facts.append(
            ("Scanned area", f"{bounds_width * mpp_x / 1000:.2f} × {bounds_height * mpp_y / 1000:.2f} mm")
        )
    if (left, top, bounds_width, bounds_height) != (0, 0, width, height):
        facts.append(("Bounds", f"{bounds_width:,} × {bounds_height:,} px at x {left:,}, y {top:,}"))
    steps = ", ".join(f"{scale:.4g}" for scale in slide.level_downsamples)
    facts.append(("Levels", f"{len(slide.level_downsamples)} (downsamples {steps})"))
    facts.append(("Colour profile", _profile(slide)))
    facts.append(("Read by", str(said["backend"])))
    return tuple(facts)


def _power(power: object) -> str:
    return f"{power:g}×" if isinstance(power, int | float) else "not stated"


def _pixel_size(slide: Slide) -> str:
    if not slide.has_mpp:
        doubt = slide.pixel_size.doubt
        return f"unknown; not believed: {doubt}" if doubt else "not stated"
    mpp_x, mpp_y = slide.mpp_xy
    size = f"{mpp_x:.4g}" if mpp_x == mpp_y else f"{mpp_x:.4g} × {mpp_y:.4g}"
    stated, _, contradictions = slide.pixel_size.text.partition("; ")
    origin = "entered by hand" if slide.mpp_override is not None else stated.partition(" from ")[2]
    return f"{size} µm/px ({'; '.join(filter(None, (origin, contradictions)))})"


def _profile(slide: Slide) -> str:
    if not slide.has_icc_profile:
        return "none"
    return "applied" if slide.icc else "there, not applied"


def confirmation_text(name: str) -> str:
    """What to ask before an associated image is shown."""
    return (
        f"The image “{name}” can show the patient's name, number or barcode. "
        "It is shown in a window of its own and is never saved or exported. Show it?"
    )

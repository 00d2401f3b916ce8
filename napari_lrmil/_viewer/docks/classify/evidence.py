"""The evidence of a result in words: what the heatmap shows, its scale, a tile's values. No Qt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from napari_lrmil.heatmap import (
    DIVERGING,
    SEQUENTIAL,
    HeatmapLook,
    Scaling,
    Unit,
    channel_titles,
    channels_of,
    shown_heatmap,
    unit_of,
)
from napari_lrmil.wording import ATTENTION_NOTE, curve_text, evidence_notes, with_minus_sign

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction

SCALINGS = (Scaling.RAW, Scaling.PERCENTILE)
UNITS = tuple(Unit)
_UNIT_NAMES = ("percentage points", "log-odds", "tile alone, log-odds")
_SCALING_NAMES = ("in real units", "percentile (relative)")
_MAP_NAMES = {"BrBG": "brown to teal", "PuOr": "orange to purple", "RdBu": "red to blue"}
SMOOTH_KEY = "Shift-H"
"""In the canvas: the tiles in place of a smooth heatmap, or the reverse."""
NO_TILE = "Move the mouse over the slide to read a tile's values."

_ATTENTION_LEGEND = (
    "Attention as a multiple of the slide's average tile; up to 1× is cold, so where no tile stands out, nothing "
    f"is hot. {ATTENTION_NOTE}"
)
_CONTRIBUTION_LEGEND = (
    "What the probability of {name} loses without the tile, worked out exactly by leaving each one out: above 0 the "
    "tile speaks for {name}, below against. The scale reaches ±1 point at least, so small changes stay cold."
)
_LOG_ODDS_LEGEND = (
    "What the log-odds of {name} lose without the tile, worked out exactly by leaving each one out: above 0 the tile "
    "speaks for {name}, below against. They tell tiles apart where the probability is saturated."
)
_ALONE_LEGEND = (
    "What the model would say of each tile if it were the whole slide, in log-odds of {name}: above 0 {name} is more "
    "probable than all else, below it isn't."
)
_LEGENDS = {Unit.POINTS: _CONTRIBUTION_LEGEND, Unit.LOG_ODDS: _LOG_ODDS_LEGEND, Unit.ALONE: _ALONE_LEGEND}
_RELATIVE_LEGEND = " Percentiles only rank this slide's tiles: some are always hot, whatever they mean."


@dataclass(frozen=True)
class ColourBarPanel:
    """A colour bar in the unit of the scale; `threshold` is its place from 0 to 1 above the cold end."""

    colormap: str
    signed: bool
    low: str
    middle: str
    high: str
    unit: str
    threshold: float


@dataclass(frozen=True)
class CurvePanel:
    """The deletion curve, (fraction removed, probability) each, and what it says in a sentence."""

    class_name: str
    fractions: tuple[float, ...]
    by_evidence: tuple[float, ...]
    random_mean: tuple[float, ...]
    random_low: tuple[float, ...]
    random_high: tuple[float, ...]
    gain: float
    text: str


@dataclass(frozen=True)
class EvidencePanel:
    """Everything of the evidence section but the layer's own opacity and visibility.

    `unit_applies` is False of attention, which has one unit; `notes` say what must be known beside the evidence.
    """

    channels: tuple[str, ...]
    channel_index: int
    units: tuple[str, ...]
    unit_index: int
    unit_applies: bool
    notes: str
    scalings: tuple[str, ...]
    scaling_index: int
    colormaps: tuple[str, ...]
    colormap_index: int
    smooth: bool
    threshold: float
    threshold_text: str
    bar: ColourBarPanel
    legend: str
    curve: CurvePanel


def evidence_panel(prediction: SlidePrediction, look: HeatmapLook) -> EvidencePanel:
    """The section's values for a look that fits the prediction."""
    shown = shown_heatmap(prediction, look)
    maps = DIVERGING if look.signed else SEQUENTIAL
    unit = unit_of(prediction, look.unit)
    legend = _LEGENDS[unit].format(name=look.channel) if look.signed else _ATTENTION_LEGEND
    if prediction.exact_tiles is not None:
        legend = legend.replace(
            "worked out exactly by leaving each one out", "exact or estimated as said above"
        )
    relative = look.scaling is Scaling.PERCENTILE
    return EvidencePanel(
        channels=channel_titles(prediction),
        channel_index=channels_of(prediction).index(look.channel),
        units=_UNIT_NAMES,
        unit_index=UNITS.index(unit),
        unit_applies=look.signed,
        notes="\n".join(evidence_notes(prediction)),
        scalings=_SCALING_NAMES,
        scaling_index=SCALINGS.index(look.scaling),
        colormaps=tuple(_MAP_NAMES.get(name, name) for name in maps),
        colormap_index=maps.index(look.colormap),
        smooth=look.smooth,
        threshold=look.threshold,
        threshold_text=_threshold_text(shown.threshold, look, unit),
        bar=_bar(shown.limits, look, unit),
        legend=legend + (_RELATIVE_LEGEND if relative else ""),
        curve=curve_panel(prediction),
    )


def curve_panel(prediction: SlidePrediction) -> CurvePanel:
    """The faithfulness figure."""
    curve = prediction.deletion
    return CurvePanel(
        class_name=prediction.class_names[curve.class_index],
        fractions=tuple(curve.fractions.tolist()),
        by_evidence=tuple(curve.by_evidence.tolist()),
        random_mean=tuple(curve.random_mean.tolist()),
        random_low=tuple(curve.random_low.tolist()),
        random_high=tuple(curve.random_high.tolist()),
        gain=curve.area_gain,
        text=curve_text(curve),
    )


def changed_look(
    prediction: SlidePrediction,
    look: HeatmapLook,
    *,
    channel: int | None = None,
    unit: int | None = None,
    scaling: int | None = None,
    colormap: int | None = None,
    threshold: float | None = None,
    smooth: bool | None = None,
) -> HeatmapLook:
    """The look with what is given changed; whole numbers are places in the lists of the panel."""
    if channel is not None:
        look = replace(look, channel=channels_of(prediction)[channel])
    if unit is not None:
        look = replace(look, unit=UNITS[unit])
    if scaling is not None:
        look = replace(look, scaling=SCALINGS[scaling])
    if colormap is not None:
        look = _with_colormap(look, colormap)
    if threshold is not None:
        look = replace(look, threshold=min(max(threshold, 0.0), 1.0))
    if smooth is not None:
        look = replace(look, smooth=smooth)
    return look


def _with_colormap(look: HeatmapLook, index: int) -> HeatmapLook:
    if look.signed:
        return replace(look, diverging=DIVERGING[index])
    return replace(look, sequential=SEQUENTIAL[index])


def _threshold_text(threshold: float, look: HeatmapLook, unit: Unit) -> str:
    if look.threshold == 0:
        return "all tiles"
    if look.scaling is Scaling.PERCENTILE:
        return f"from {threshold:.0f} %"
    if not look.signed:
        return f"from {threshold:.1f}×"
    return f"from ±{threshold:.2f}" + (" pp" if unit is Unit.POINTS else "")


def _bar(limits: tuple[float, float], look: HeatmapLook, unit_of_values: Unit) -> ColourBarPanel:
    low, high = limits
    if look.scaling is Scaling.PERCENTILE:
        unit = "percentile of size, with its sign" if look.signed else "percentile of this slide's tiles"
        texts = (
            with_minus_sign(f"{low:+.0f}") if look.signed else "0",
            "0" if look.signed else "50",
            f"{high:.0f}",
        )
    elif look.signed:
        unit, decimals = {
            Unit.POINTS: (f"percentage points of p({look.channel})", 1),
            Unit.LOG_ODDS: (f"log-odds of {look.channel}", 2),
            Unit.ALONE: (f"log-odds of {look.channel}, tile alone", 1),
        }[unit_of_values]
        texts = (with_minus_sign(f"{low:+.{decimals}f}"), "0", f"{high:+.{decimals}f}")
    else:
        unit = "attention, × the average tile"
        texts = (f"≤ {low:g}×", "", f"{high:.1f}×")
    threshold = look.threshold * high
    start = 0.0 if look.signed else low
    return ColourBarPanel(
        colormap=look.colormap,
        signed=look.signed,
        low=texts[0],
        middle=texts[1],
        high=texts[2],
        unit=unit,
        threshold=max(0.0, (threshold - start) / (high - start)),
    )

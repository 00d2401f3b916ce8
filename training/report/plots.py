"""The report's plots as inline SVG: small panels that the page lays out. No text of a user goes into them.

Colours are written as CSS variables (``--s0`` ...), so that one picture serves a light and a dark page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from training.metrics import Interval
from training.report.stats import Array, Bin, Roc

# Okabe-Ito's colours, told apart with any colour vision; yellow is left out, it drowns on white.
_SERIES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#767676", "#111111")
_DASHES = ((), (5, 1.5), (2, 1), (6, 1.5, 1.5, 1.5), (1, 1), (8, 2), (3, 1, 1, 1, 1, 1), (4, 3))
_INK, _GRID, _PAPER, _SOFT = "#101112", "#d8d9da", "#fdfdfe", "#8b8c8d"

_SETTINGS: dict[str, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
}


class Series(NamedTuple):
    """How a method, class or fold is drawn: a place in colours and dashes."""

    place: int

    @property
    def _colour_place(self) -> int:
        # Where colours run out they begin again at the second: the first is LRMIL's alone.
        return self.place if self.place < len(_SERIES) else 1 + (self.place - 1) % (len(_SERIES) - 1)

    @property
    def colour(self) -> str:
        """Light mode's, replaced by a variable in the SVG."""
        return _SERIES[self._colour_place]

    @property
    def dashes(self) -> tuple[float, ...]:
        """On and off lengths in line widths; empty for a solid line."""
        return _DASHES[self._colour_place]

    @property
    def css(self) -> str:
        """The variable."""
        return f"var(--s{self._colour_place})"

    @property
    def dash_array(self) -> str:
        """As SVG wants it, for a line 2 px wide."""
        return " ".join(f"{2 * length:g}" for length in self.dashes) or "none"


def roc_panel(name: str, curves: Sequence[tuple[Roc, Series, bool]]) -> str:
    """Draw ROC curves in one square.

    Parameters
    ----------
    name : str
        Of the panel; unique on the page.
    curves : sequence of (Roc, Series, bool)
        The last says whether it is the one to look at, drawn thick.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.8)
        for curve, series, bold in curves:
            _line(axes, curve.false_positive, curve.true_positive, series, width=2.0 if bold else 1.0)
        axes.set(
            xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false positive rate", ylabel="true positive rate"
        )
        axes.set_aspect("equal")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])

    return _panel(name, draw, size_in=(3.0, 3.0))


def calibration_panel(name: str, bins: Sequence[Bin], series: Series, *, n_classes: int) -> str:
    """Draw accuracy with its 95 % interval over confidence, and below it the slides of each bin.

    The axis starts at the smallest confidence that `n_classes` allow.
    """
    first = math.floor(10 / n_classes) / 10
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(3.0, 3.6), layout="constrained")
        top, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _style(top)
        _style(counts)
        top.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.8)
        x = [one.confidence for one in bins]
        y = np.array([one.accuracy for one in bins])
        reach = np.array(
            [[one.accuracy - one.accuracy_low, one.accuracy_high - one.accuracy] for one in bins]
        )
        top.errorbar(x, y, yerr=np.maximum(reach.T, 0), color=series.colour, fmt="o-", linewidth=1.2,
                     elinewidth=1, markersize=4, capsize=2)  # fmt: skip
        top.set(ylim=(-0.03, 1.03), ylabel="accuracy")
        most = max(one.n for one in bins)
        counts.bar(
            [(one.low + one.high) / 2 for one in bins],
            [one.n for one in bins],
            width=[0.9 * (one.high - one.low) for one in bins],
            color=series.colour,
        )
        for one in bins:
            counts.text((one.low + one.high) / 2, one.n + 0.05 * most, str(one.n), ha="center", fontsize=8)
        counts.set(
            xlim=(first, 1), ylim=(0, 1.35 * most), xlabel="confidence (largest probability)", ylabel="slides"
        )
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        counts.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(name, figure)


class Spot(NamedTuple):
    """A row of the front: a cost, the AUC on test slides with its interval, and whether it was chosen."""

    cost: float
    auc: Interval
    series: Series
    chosen: bool


def front_panel(name: str, spots: Sequence[Spot], *, label: str, bar: float) -> str:
    """Draw AUC over a cost, which is on a logarithmic axis; a ring marks what was chosen, a line the AUC that is asked for.

    Parameters
    ----------
    name : str
    spots : sequence of Spot
        Those of one cost are drawn side by side.
    label : str
        Of the cost.
    bar : float
        AUC of the teacher less the margin.
    """

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.axhline(bar, color=_SOFT, linewidth=0.8)
        costs = [spot.cost for spot in spots]
        low, high = min(costs), max(costs)
        step = max(1.08, (high / low) ** 0.04)
        for place, spot in enumerate(spots):
            same = [other for other, cost in enumerate(costs) if cost == spot.cost]
            x = spot.cost * step ** (same.index(place) - (len(same) - 1) / 2)
            if math.isfinite(spot.auc.low):
                axes.plot([x, x], [spot.auc.low, spot.auc.high], color=spot.series.colour, linewidth=1.2)
            axes.plot(x, spot.auc.value, "o", markersize=5, color=spot.series.colour)
            if spot.chosen:
                axes.plot(x, spot.auc.value, "o", markersize=11, markerfacecolor="none",
                          markeredgecolor=_INK, markeredgewidth=1)  # fmt: skip
        axes.set(ylim=(-0.03, 1.03), xlim=(low / 1.6, high * 1.6), xlabel=label, ylabel="AUC on test slides")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())

    return _panel(name, draw, size_in=(3.0, 2.6))


class Trace(NamedTuple):
    """One line of a training plot; `kept` is the row of the epoch whose weights were kept."""

    epochs: Array
    values: Array
    series: Series
    kept: int | None


def curve_panel(name: str, traces: Sequence[Trace], *, label: str, unit_range: bool = False) -> str:
    """Draw a quantity over epochs; a ring marks the epoch that was kept.

    Parameters
    ----------
    name : str
    traces : sequence of Trace
    label : str
        Of the y axis.
    unit_range : bool
        The quantity lies in 0 to 1, as an AUC does.
    """

    def draw(axes: Axes) -> None:
        for trace in traces:
            _line(axes, trace.epochs + 1, trace.values, trace.series, width=1.3)
            if len(trace.epochs) == 1:
                axes.plot(trace.epochs + 1, trace.values, ".", color=trace.series.colour, markersize=4)
            if trace.kept is not None:
                axes.plot(
                    trace.epochs[trace.kept] + 1,
                    trace.values[trace.kept],
                    "o",
                    markersize=5.5,
                    markerfacecolor=_PAPER,
                    markeredgecolor=trace.series.colour,
                    markeredgewidth=1.4,
                )
        if unit_range:
            axes.set_ylim(-0.03, 1.03)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.margins(x=0.04)

    return _panel(name, draw, size_in=(3.0, 2.2))


def _line(axes: Axes, x: Array, y: Array, series: Series, *, width: float) -> None:
    line = axes.plot(x, y, color=series.colour, linewidth=width)[0]
    if series.dashes:
        line.set_dashes(series.dashes)


def _style(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.grid(color=_GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _panel(name: str, draw: Callable[[Axes], None], *, size_in: tuple[float, float]) -> str:
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=size_in, layout="constrained")
        axes = figure.add_subplot()
        _style(axes)
        draw(axes)
        return _svg(name, figure)


def _svg(name: str, figure: Figure) -> str:
    """Return the figure as an element for the page, hidden from screen readers: its caption says what it shows."""
    figure.patch.set_visible(False)
    text = io.StringIO()
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, count=1, flags=re.S)  # in a page it would reach everything
    svg = (
        re.sub(r' (?:xmlns|xmlns:xlink|width|height|version)="[^"]*"', "", svg[: svg.index(">")], flags=re.S)
        + (svg[svg.index(">") :])
    )
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    # Ids are unique within a figure only.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--s{index})")
    shades = {_INK: "currentColor", _GRID: "var(--grid)", _PAPER: "var(--paper)", _SOFT: "var(--soft)"}
    for colour, variable in shades.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)

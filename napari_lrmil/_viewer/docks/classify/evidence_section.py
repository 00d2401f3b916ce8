"""The evidence in the dock: what the heatmap shows and how, the value under the cursor, the deletion curve."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QLabel, QSlider

from napari_lrmil._viewer.docks.classify.evidence import NO_TILE
from napari_lrmil._viewer.docks.classify.panel import Panel
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.plots import ColourBar, CurvePlot
from napari_lrmil._viewer.qt.section import Section


class EvidenceSection(Section):
    """Shows an `EvidencePanel`, or hides; `chosen` carries what `Evidence.choose` takes."""

    chosen = Signal(dict)
    heatmap_toggled = Signal(bool)
    opacity_moved = Signal(float)

    def __init__(self) -> None:
        super().__init__()
        self.shown = QCheckBox("Show heatm&ap")
        self.shown.setToolTip("Show or hide the heatmap over the slide")
        self.channel = parts.narrow_combo(
            tool_tip="Attention: what the model looked at. Contribution: what the probability of a class loses "
            "without the tile, worked out exactly by leaving each tile out once",
            name="Heatmap of",
        )
        self.scaling = parts.narrow_combo(
            tool_tip="Real units: a slide without evidence stays cold. Percentile: ranks the tiles of this slide alone",
            name="Heatmap scale",
        )
        self.colormap = parts.narrow_combo(
            tool_tip="Colours: all are even steps to the eye and hold for colour-blind readers",
            name="Heatmap colours",
        )
        self.threshold = _slider("Tiles below this value are clear", "Heatmap threshold")
        self.threshold_text = QLabel()
        self.threshold_text.setMinimumWidth(84)
        self.opacity = _slider("How strongly the heatmap covers the slide", "Heatmap opacity")
        self.bar = ColourBar()
        self.hover = parts.wrapped_label(NO_TILE)
        self.hover.setToolTip(
            "Values of the tile under the cursor: attention, × the average; contributions, points"
        )
        self.hover.setAccessibleName("Values of the tile under the cursor")
        self.legend = parts.wrapped_label()
        self.curve = CurvePlot()
        self.curve_text = parts.wrapped_label()
        self._lay_out()
        self._connect()

    def show_panel(self, panel: Panel) -> None:
        """Show evidence, or nothing."""
        evidence = panel.evidence
        self.setVisible(evidence is not None)
        if evidence is None:
            return
        self.shown.setChecked(panel.heatmap_visible)
        parts.fill_combo(self.channel, evidence.channels, evidence.channel_index)
        parts.fill_combo(self.scaling, evidence.scalings, evidence.scaling_index)
        parts.fill_combo(self.colormap, evidence.colormaps, evidence.colormap_index)
        _place(self.threshold, evidence.threshold)
        _place(self.opacity, panel.heatmap_opacity)
        self.threshold_text.setText(evidence.threshold_text)
        self.bar.show_bar(evidence.bar)
        self.legend.setText(evidence.legend)
        self.curve.show_curve(evidence.curve)
        self.curve_text.setText(evidence.curve.text)

    def show_hover(self, text: str) -> None:
        """Show the values under the cursor."""
        if (text or NO_TILE) != self.hover.text():
            self.hover.setText(text or NO_TILE)

    def _lay_out(self) -> None:
        self.hover.setMinimumHeight(3 * self.hover.fontMetrics().height())  # what is below stays where it is
        self.hover.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.add_heading("Evidence")
        self.column.addWidget(self.hover)
        self.column.addWidget(self.shown)
        self.add_field("&Show", self.channel)
        self.add_field("Scale", self.scaling)
        self.column.addWidget(self.bar)
        self.add_field("&Threshold", self.threshold, self.threshold_text)
        self.add_field("&Opacity", self.opacity)
        self.add_field("Colo&urs", self.colormap)
        self.column.addWidget(self.legend)
        self.add_heading("Do these tiles carry the result?")
        self.column.addWidget(self.curve)
        self.column.addWidget(self.curve_text)

    def _connect(self) -> None:
        self.shown.clicked.connect(self.heatmap_toggled)
        for combo, name in (
            (self.channel, "channel"),
            (self.scaling, "scaling"),
            (self.colormap, "colormap"),
        ):
            combo.activated.connect(lambda index, name=name: self.chosen.emit({name: index}))
        _when_moved(self.opacity, self.opacity_moved.emit)
        _when_moved(self.threshold, lambda value: self.chosen.emit({"threshold": value}))


def _slider(tool_tip: str, name: str) -> QSlider:
    slider = QSlider(Qt.Orientation.Horizontal)
    slider.setRange(0, 100)
    slider.setToolTip(tool_tip)
    slider.setAccessibleName(name)
    return slider


def _place(slider: QSlider, value: float) -> None:
    if not slider.isSliderDown():
        slider.setValue(round(value * 100))


def _when_moved(slider: QSlider, report: Any) -> None:
    """By mouse or keys; not by the program."""
    slider.sliderMoved.connect(lambda percent: report(percent / 100))
    slider.actionTriggered.connect(lambda _: report(slider.sliderPosition() / 100))

"""The parts of the main dock, top to bottom. Each shows its share of a `ClassifyPanel` and sends what the user did."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QRegularExpression, Qt, Signal
from qtpy.QtGui import QRegularExpressionValidator
from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSlider,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil._viewer.docks.classify.evidence import NO_TILE, SMOOTH_KEY
from napari_lrmil._viewer.docks.classify.panel import ClassifyPanel
from napari_lrmil._viewer.docks.classify.plots import ColourBar, CurvePlot
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.section import Section
from napari_lrmil._viewer.window import State
from napari_lrmil.slide.pixel_size import parse_mpp
from napari_lrmil.wording import NOT_FOR_DIAGNOSIS

_SET_TIP = (
    "The classes that can't be ruled out. For at least this share of slides, of the kind that the model was calibrated "
    "with, the true class is among them (split conformal prediction). Several classes, or none: unsure."
)


class SlideSection(Section):
    """Which slide, and its pixel size where the file doesn't give it."""

    open_clicked = Signal()
    slide_chosen = Signal(int)
    mpp_given = Signal(object, bool)
    """µm/px, or None for what the file says; and whether the folder's other slides get it, too."""
    icc_toggled = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self.slides = parts.narrow_combo(
            tool_tip="The slide to classify; choosing one shows it", name="Slide"
        )
        self.open = QPushButton("Open …")
        self.open.setToolTip("Open a slide file")
        self.facts = parts.wrapped_label()
        self.change_mpp = QPushButton("Change …")
        self.change_mpp.setToolTip("Correct how many µm a pixel measures")
        self.change_mpp.setAccessibleName("Change µm per pixel")
        self.change_mpp.setCheckable(True)
        # No spin box: that reads 0.25 as 25 where the decimal mark is a comma.
        self.mpp = QLineEdit()
        self.mpp.setValidator(QRegularExpressionValidator(QRegularExpression(r"\s*\d{0,6}[.,]?\d{0,8}\s*")))
        self.mpp.setPlaceholderText("0.25")
        self.mpp.setMinimumWidth(60)
        self.mpp.setToolTip(
            "How many µm one pixel of the finest level measures: usually 0.25 at 40×, 0.5 at 20×. Point or comma, as you "
            "like. It is kept, and used again when this slide is opened. Empty: what the file says."
        )
        self.mpp.setAccessibleName("µm per pixel")
        self.set_mpp = QPushButton("Set")
        self.set_mpp.setToolTip("Use this pixel size for the slide")
        self.folder_too = QCheckBox("Also for this folder")
        self.folder_too.setToolTip(
            "Keep this pixel size, too, for the other slides of the folder that don't say how large their pixels are"
        )
        self.icc = QCheckBox("Colour profile (ICC)")
        self.icc.setToolTip(
            "Show the scanner's colours through the profile in the file. The model reads what its card says, either way."
        )
        self.add_heading("Slide", self.open)
        self.column.addWidget(self.slides)
        facts_row = self.add_row(self.facts, self.change_mpp)
        facts_row.layout().setStretch(0, 1)
        facts_row.layout().setAlignment(self.change_mpp, Qt.AlignmentFlag.AlignTop)
        self.column.addWidget(self.icc)
        mpp_title = QLabel("µm/p&x")
        mpp_title.setBuddy(self.mpp)
        self.mpp_row = self.add_row(mpp_title, self.mpp, self.set_mpp)
        self.open.clicked.connect(lambda: self.open_clicked.emit())
        self.slides.activated.connect(self.slide_chosen)
        self.column.addWidget(self.folder_too)
        self._shown: tuple[str, int] = ("", -1)
        self._mpp_unknown = False
        self.set_mpp.clicked.connect(self._give_mpp)
        self.mpp.returnPressed.connect(self._give_mpp)
        self.change_mpp.toggled.connect(self._show_mpp_row)
        self.icc.clicked.connect(self.icc_toggled)

    def show_panel(self, panel: ClassifyPanel) -> None:
        """Show slides, facts, and the mpp field where it is wanted."""
        parts.fill_combo(self.slides, panel.slide_names, panel.slide_index)
        self.slides.setEnabled(bool(panel.slide_names))
        parts.show_text(self.facts, panel.slide_facts)
        self.facts.setToolTip(f"µm/px: {panel.mpp_source}" if panel.mpp_source else "")
        shown = (panel.mpp_text, panel.slide_index)
        if shown != self._shown:  # else what is being typed would go
            self._shown = shown
            self.mpp.setText(panel.mpp_text)
            self.change_mpp.setChecked(False)
            self.folder_too.setChecked(False)
        self._mpp_unknown = panel.state is State.NEEDS_MPP
        self.change_mpp.setVisible(bool(panel.mpp_text))
        self._show_mpp_row()
        self.icc.setVisible(panel.icc_available)
        self.icc.setChecked(panel.icc_applied)

    def _show_mpp_row(self) -> None:
        shown = self._mpp_unknown or self.change_mpp.isChecked()
        self.mpp_row.setVisible(shown)
        self.folder_too.setVisible(shown)

    def _give_mpp(self) -> None:
        text = self.mpp.text().strip()
        mpp = parse_mpp(text)
        if mpp is not None or not text:
            self.mpp_given.emit(mpp, self.folder_too.isChecked())
            if mpp is not None and self.mpp.text() == self._shown[0]:
                self.change_mpp.setChecked(False)  # nothing changes, so no panel comes


class ModelSection(Section):
    """Which model, what it is, and where it computes."""

    browse_clicked = Signal()
    hub_clicked = Signal()
    card_clicked = Signal()
    bundle_chosen = Signal(int)
    device_chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.bundles = parts.narrow_combo(tool_tip="The model to classify with", name="Model")
        self.browse = QPushButton("Browse …")
        self.browse.setToolTip("Choose a model of your own: a folder with bundle.json")
        self.card = QPushButton("Card …")
        self.card.setToolTip("What the model is, what it was trained on, and how far to trust it")
        self.card.setAccessibleName("Model card")
        self.hub = QPushButton("Hub …")
        self.hub.setToolTip("Load a model from the Hugging Face hub by its name: owner/name")
        self.hub.setAccessibleName("Model from the hub")
        self.banner = parts.wrapped_label(NOT_FOR_DIAGNOSIS, style=parts.BANNER_STYLE)
        self.banner.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.banner.setToolTip(
            "This model shows how the program works. Its answers mean nothing for a patient."
        )
        self.facts = parts.wrapped_label()
        self.devices = parts.narrow_combo(
            tool_tip="Where to compute; 'auto' takes the fastest there is", name="Device"
        )
        device_title = QLabel("Device")
        device_title.setBuddy(self.devices)
        self.add_heading("Model", self.browse, self.hub, self.card)
        self.column.addWidget(self.bundles)
        self.column.addWidget(self.banner)
        self.column.addWidget(self.facts)
        self.add_row(device_title, self.devices)
        self.browse.clicked.connect(lambda: self.browse_clicked.emit())
        self.card.clicked.connect(lambda: self.card_clicked.emit())
        self.hub.clicked.connect(lambda: self.hub_clicked.emit())
        self.bundles.activated.connect(self.bundle_chosen)
        self.devices.activated.connect(lambda index: self.device_chosen.emit(self.devices.itemText(index)))

    def show_panel(self, panel: ClassifyPanel) -> None:
        """Show models, the card of the one in use, and devices."""
        running = panel.state is State.RUNNING
        parts.fill_combo(self.bundles, panel.bundle_names, panel.bundle_index)
        parts.fill_combo(self.devices, panel.devices, panel.devices.index(panel.device))
        for widget in (self.bundles, self.browse, self.devices):
            widget.setEnabled(not running)
        self.card.setVisible(panel.card_available)
        parts.show_text(self.facts, panel.bundle_facts)
        self.banner.setVisible(panel.bundle_is_demonstration)


class RunSection(Section):
    """Classify and cancel, progress, and what is missing or went wrong."""

    classify_clicked = Signal()
    cancel_clicked = Signal()
    reopen_clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.classify = QPushButton("Classify")
        self.classify.setStyleSheet(parts.PRIMARY_STYLE)
        self.classify.setToolTip("Read the slide's tissue and classify it; the window stays usable meanwhile")
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop; nothing is kept")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(10)
        self.bar.setAccessibleName("Progress")
        self.progress_text = parts.wrapped_label()
        self.hint = parts.wrapped_label(style=parts.HINT_STYLE)
        self.error = parts.wrapped_label(style=parts.ERROR_STYLE)
        self.earlier = parts.wrapped_label()
        self.earlier.setToolTip("Another model's result is put away; choose that model to see it again")
        self.reopen = QPushButton("Open again")
        self.reopen.setToolTip("Show the file that is there now, in the place of the one that was opened")
        self.column.addSpacing(6)
        for widget in (
            self.classify,
            self.cancel,
            self.bar,
            self.progress_text,
            self.hint,
            self.error,
            self.earlier,
            self.reopen,
        ):
            self.column.addWidget(widget)
        self.classify.clicked.connect(lambda: self.classify_clicked.emit())
        self.cancel.clicked.connect(lambda: self.cancel_clicked.emit())
        self.reopen.clicked.connect(lambda: self.reopen_clicked.emit())

    def show_panel(self, panel: ClassifyPanel) -> None:
        """Show the button that makes sense now, progress, hint and error."""
        running = panel.progress is not None
        self.classify.setVisible(not running)
        self.classify.setEnabled(panel.can_classify)
        self.cancel.setVisible(running)
        self.bar.setVisible(running)
        if panel.progress is not None:
            done, total = panel.progress
            self.bar.setRange(0, total)
            self.bar.setValue(done)
        parts.show_text(self.progress_text, panel.progress_text)
        parts.show_text(self.hint, panel.hint)
        parts.show_text(self.error, panel.error)
        parts.show_text(self.earlier, panel.earlier)
        self.reopen.setVisible(panel.can_reopen)


_REVEAL, _HIDE = "Show what it would say", "Hide what it would say"


class ResultSection(Section):
    """Shows a `ResultPanel`, or hides; `reveal_clicked` says whether a withheld label is wanted."""

    reveal_clicked = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self.strange = parts.Notice(style=parts.BANNER_STYLE)
        self.strange.setAccessibleName("Warning: slide unlike the training slides, or of another stain")
        self.label = parts.wrapped_label(style="QLabel { font-size: 22px; font-weight: bold; }")
        self.reveal = QPushButton(_REVEAL)
        self.reveal.setCheckable(True)
        self.reveal.setToolTip(
            "Label, probabilities and heatmap of a slide unlike those of training; they are not to be used. Hidden again "
            "with the next slide"
        )
        self.withheld = parts.Notice(style=parts.BANNER_STYLE)
        self.withheld.setAccessibleName("Not to be used: what the model would say")
        self.set = parts.wrapped_label()
        self.set.setToolTip(_SET_TIP)
        self.bars = parts.ClassBars()
        self.warning = parts.wrapped_label(NOT_FOR_DIAGNOSIS, style=parts.BANNER_STYLE)
        self.warning.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.distance = parts.wrapped_label()
        self.distance.setToolTip(
            "How far the slide's tiles lie from those of training, as the model sees them: about 1 is alike."
        )
        self.details = parts.wrapped_label()
        self.add_heading("Result")
        for widget in (
            self.strange,
            self.label,
            self.reveal,
            self.withheld,
            self.set,
            self.bars,
            self.warning,
            self.details,
            self.distance,
        ):
            self.column.addWidget(widget)
        self.reveal.clicked.connect(self.reveal_clicked)

    def show_panel(self, panel: ClassifyPanel) -> None:
        """Show a result, or nothing."""
        result = panel.result
        self.setVisible(result is not None)
        if result is None:
            return
        self.strange.show_text(result.strange_text)
        self.label.setText(result.headline)
        self.label.setToolTip(result.headline_tip)
        self.reveal.setVisible(result.withheld)
        self.reveal.setChecked(result.revealed)
        self.reveal.setText(_HIDE if result.revealed else _REVEAL)
        self.withheld.show_text(result.withheld_text)
        parts.show_text(self.set, result.set_text)
        self.set.setStyleSheet(parts.HINT_STYLE if result.unsure else "")
        self.bars.show_classes(result.classes)
        self.bars.setVisible(bool(result.classes))
        self.details.setText(result.details)
        parts.show_text(
            self.distance, "" if result.distance_text in result.strange_text else result.distance_text
        )
        self.warning.setVisible(result.demonstration and not panel.bundle_is_demonstration)


class EvidenceSection(Section):
    """Shows an `EvidencePanel`, or hides; `chosen` carries what `Evidence.choose` takes."""

    chosen = Signal(dict)
    heatmap_toggled = Signal(bool)
    opacity_moved = Signal(float)

    def __init__(self) -> None:
        super().__init__()
        self.shown = QCheckBox("Show heatm&ap")
        self.shown.setToolTip("Show or hide the heatmap over the slide")
        self.smooth = QCheckBox("Smooth")
        self.smooth.setToolTip(
            "Colours run from tile to tile, though each tile has one value. In the canvas "
            f"{SMOOTH_KEY.replace('-', '+')} shows the tiles"
        )
        self.channel = parts.narrow_combo(
            tool_tip="Attention: what the model looked at. Contribution: what the probability of a class loses "
            "without the tile, worked out exactly by leaving each tile out once",
            name="Heatmap of",
        )
        self.unit = parts.narrow_combo(
            tool_tip="What is counted of a tile: percentage points or log-odds that the class loses without it, or what "
            "the model says of the tile alone. Log-odds tell tiles apart where the probability is near 100 %",
            name="Contributions in",
        )
        self.notes = parts.wrapped_label(style=parts.HINT_STYLE)
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

    def show_panel(self, panel: ClassifyPanel) -> None:
        """Show evidence, or nothing."""
        evidence = panel.evidence
        self.setVisible(evidence is not None)
        if evidence is None:
            return
        self.shown.setChecked(panel.heatmap_visible)
        self.smooth.setChecked(evidence.smooth)
        parts.fill_combo(self.channel, evidence.channels, evidence.channel_index)
        parts.fill_combo(self.unit, evidence.units, evidence.unit_index)
        self.unit.setEnabled(evidence.unit_applies)
        parts.show_text(self.notes, evidence.notes)
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
            # It grows and never shrinks: what is below would move away from the mouse.
            wanted = self.hover.heightForWidth(self.hover.width())
            if wanted > self.hover.minimumHeight():
                self.hover.setMinimumHeight(wanted)

    def _lay_out(self) -> None:
        self.hover.setMinimumHeight(3 * self.hover.fontMetrics().height())  # what is below stays where it is
        self.hover.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.add_heading("Evidence")
        self.column.addWidget(self.hover)
        self.add_row(self.shown, self.smooth)
        self.add_field("&Quantity", self.channel)
        self.add_field("In", self.unit)
        self.add_field("Scale", self.scaling)
        self.column.addWidget(self.notes)
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
        self.smooth.clicked.connect(lambda smooth: self.chosen.emit({"smooth": smooth}))
        for combo, name in (
            (self.channel, "channel"),
            (self.unit, "unit"),
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


def _when_moved(slider: QSlider, report: Callable[[float], None]) -> None:
    """By mouse or keys; not by the program."""
    slider.sliderMoved.connect(lambda percent: report(percent / 100))
    slider.actionTriggered.connect(lambda _: report(slider.sliderPosition() / 100))


class CardDialog(QDialog):
    """Text of a model card; the slide stays usable beside it.

    Parameters
    ----------
    markdown : str
    parent : QWidget
    """

    def __init__(self, markdown: str, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Model card")
        self.text = QTextBrowser()
        self.text.setMarkdown(markdown)
        self.text.setOpenLinks(False)  # a card comes from strangers, and nothing leaves the window unasked
        self.text.setAccessibleName("Model card")
        self.text.setToolTip("What the model is, what it was trained on, and how far to trust it")
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.close)
        column = QVBoxLayout(self)
        column.addWidget(self.text)
        column.addWidget(buttons)
        self.resize(620, 640)

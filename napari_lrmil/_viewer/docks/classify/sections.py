"""The parts of the dock, top to bottom. Each shows its share of a `Panel` and sends what the user did."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QLabel,
    QProgressBar,
    QPushButton,
)

from napari_lrmil._viewer.docks.classify.panel import Panel, State
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.section import Section
from napari_lrmil.wording import NOT_FOR_DIAGNOSIS


class SlideSection(Section):
    """Which slide, and its pixel size where the file doesn't give it."""

    open_clicked = Signal()
    slide_chosen = Signal(int)
    mpp_given = Signal(float)
    icc_toggled = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self.slides = parts.narrow_combo(
            tool_tip="The slide to classify; choosing one shows it", name="Slide"
        )
        self.open = QPushButton("Open …")
        self.open.setToolTip("Open a slide file")
        self.facts = parts.wrapped_label()
        self.mpp = QDoubleSpinBox()
        self.mpp.setDecimals(4)
        self.mpp.setRange(0.05, 50.0)
        self.mpp.setSingleStep(0.05)
        self.mpp.setValue(0.5)
        self.mpp.setToolTip(
            "How many µm one pixel of the finest level measures: usually 0.25 at 40×, 0.5 at 20×"
        )
        self.mpp.setAccessibleName("µm per pixel")
        self.set_mpp = QPushButton("Set")
        self.set_mpp.setToolTip("Use this pixel size for the slide")
        self.icc = QCheckBox("Colour profile (ICC)")
        self.icc.setToolTip(
            "Show the scanner's colours through the profile in the file. The model reads what its card says, either way."
        )
        self.add_heading("Slide", self.open)
        self.column.addWidget(self.slides)
        self.column.addWidget(self.facts)
        self.column.addWidget(self.icc)
        mpp_title = QLabel("µm/p&x")
        mpp_title.setBuddy(self.mpp)
        self.mpp_row = self.add_row(mpp_title, self.mpp, self.set_mpp)
        self.open.clicked.connect(lambda: self.open_clicked.emit())
        self.slides.activated.connect(self.slide_chosen)
        self.set_mpp.clicked.connect(lambda: self.mpp_given.emit(self.mpp.value()))
        self.icc.clicked.connect(self.icc_toggled)

    def show_panel(self, panel: Panel) -> None:
        """Show slides, facts, and the mpp field where it is wanted."""
        parts.fill_combo(self.slides, panel.slide_names, panel.slide_index)
        self.slides.setEnabled(bool(panel.slide_names))
        parts.show_text(self.facts, panel.slide_facts)
        self.mpp_row.setVisible(panel.state is State.NEEDS_MPP)
        self.icc.setVisible(panel.icc_available)
        self.icc.setChecked(panel.icc_applied)


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
        self.add_heading("Model", self.browse, self.hub)
        self.add_row(self.bundles, self.card)
        self.column.addWidget(self.banner)
        self.column.addWidget(self.facts)
        self.add_row(device_title, self.devices)
        self.browse.clicked.connect(lambda: self.browse_clicked.emit())
        self.card.clicked.connect(lambda: self.card_clicked.emit())
        self.hub.clicked.connect(lambda: self.hub_clicked.emit())
        self.bundles.activated.connect(self.bundle_chosen)
        self.devices.activated.connect(lambda index: self.device_chosen.emit(self.devices.itemText(index)))

    def show_panel(self, panel: Panel) -> None:
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
        self.column.addSpacing(6)
        for widget in (self.classify, self.cancel, self.bar, self.progress_text, self.hint, self.error):
            self.column.addWidget(widget)
        self.classify.clicked.connect(lambda: self.classify_clicked.emit())
        self.cancel.clicked.connect(lambda: self.cancel_clicked.emit())

    def show_panel(self, panel: Panel) -> None:
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

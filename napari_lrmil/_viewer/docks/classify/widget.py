"""The dock "LRMIL: classify slide": slide, model, classify, result, heatmap; the main one, which the others follow."""

from __future__ import annotations

from functools import partial
from typing import Any

from napari.utils.notifications import show_info, show_warning
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QFileDialog, QInputDialog
from superqt.utils import QSignalThrottler

from napari_lrmil._viewer.background import in_one_step
from napari_lrmil._viewer.docks.classify.evidence import SMOOTH_KEY
from napari_lrmil._viewer.docks.classify.kept_results import KeptResults
from napari_lrmil._viewer.docks.classify.panel import ClassifyPanel
from napari_lrmil._viewer.docks.classify.presenter import ClassifyPresenter
from napari_lrmil._viewer.docks.classify.sections import (
    CardDialog,
    EvidenceSection,
    ModelSection,
    ResultSection,
    RunSection,
    SlideSection,
)
from napari_lrmil._viewer.docks.classify.typed_mpp import TypedMpp
from napari_lrmil._viewer.docks.dock import Dock
from napari_lrmil._viewer.magnifier import MAGNIFICATIONS
from napari_lrmil._viewer.models import hub_name
from napari_lrmil._viewer.qt.drops import DropTarget
from napari_lrmil._viewer.qt.notices import ShortNotices
from napari_lrmil._viewer.sample_data import DEMO_BUNDLE_DIR
from napari_lrmil._viewer.session_keeper import SessionKeeper
from napari_lrmil._viewer.settings import Settings, follow_settings, read_settings
from napari_lrmil._viewer.undocked import dock_is_gone, dock_takes_over, keep_one_current
from napari_lrmil._viewer.window import Change, Controller
from napari_lrmil.memory import return_free_memory
from napari_lrmil.model.naming import DEMO_BUNDLE, bundle_folder, is_bundle
from napari_lrmil.slide.files import SHARED_SUFFIXES, SLIDE_SUFFIXES
from napari_lrmil.slide.probe import start_helper

CLASSIFY_KEY, COPY_KEY = "K", "Shift-C"
_FILE_FILTER = f"Slides ({' '.join(f'*{suffix}' for suffix in sorted(SLIDE_SUFFIXES | SHARED_SUFFIXES))})"
_WIDTH_PX = 300
_TIDY_MS = 2000
_KEEP_MS = 1000
_LEAST_HEIGHT_PX = 240
"""With less, other docks beside it would leave no room for label and warnings."""


class ClassifyWidget(Dock):
    """Choose a slide and a model, classify, and see the label and where it comes from."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("lrmil_classify")
        self.slide_section = SlideSection()
        self.model_section = ModelSection()
        self.run_section = RunSection()
        self.result_section = ResultSection()
        self.evidence_section = EvidenceSection()
        self._notices: ShortNotices | None = None
        self._lay_out()
        settings = read_settings()
        self.controller = Controller(self.canvas, self.background, settings)
        self.presenter = ClassifyPresenter(self, self.controller, self.canvas)
        self.typed_mpp = TypedMpp(self.controller, self.background, show_warning, show_info)
        self.kept_results = KeptResults(self.controller, self.background, settings, show_warning)
        self.session = SessionKeeper(
            self.controller, self.canvas, self.background, keeping=settings.keep_session
        )
        self._keep_soon = QSignalThrottler(QSignalThrottler.EmissionPolicy.Trailing, self)
        self._keep_soon.setTimeout(_KEEP_MS)
        self._keep_soon.triggered.connect(self.session.keep)
        self.session.changed.connect(self._keep_soon.throttle)
        self._tidy_soon = QSignalThrottler(QSignalThrottler.EmissionPolicy.Trailing, self)
        self._tidy_soon.setTimeout(_TIDY_MS)
        self._tidy_soon.triggered.connect(self._return_memory)
        self.controller.changed.connect(self._slides_changed)
        self.ending.callback(self.background.shutdown)
        self.ending.callback(follow_settings(self._apply_settings))
        self.ending.callback(self.controller.shutdown)
        self.ending.callback(self.session.close)
        self._connect()
        dock_takes_over(napari_viewer)
        self.ending.callback(dock_is_gone, napari_viewer)
        self.canvas.layers_changed.connect(self.controller.layers_changed)
        if self.canvas.slides():
            self.canvas.show_scale_bar()
        self.controller.begin()
        self.presenter.refresh(Change.ALL)
        DropTarget(self, is_bundle, lambda path: self.controller.load_bundle(str(bundle_folder(path))))
        bundle = settings.default_bundle
        if bundle and (bundle != DEMO_BUNDLE or DEMO_BUNDLE_DIR.exists()):
            self.controller.load_bundle(bundle)
        start_helper()  # before somebody opens the first slide

    def showEvent(self, event: QShowEvent) -> None:
        """Look after the notices of the window once there is one."""
        super().showEvent(event)
        if self._notices is None:
            self._notices = ShortNotices(self)
            self.ending.callback(self._notices.close)

    def show_panel(self, panel: ClassifyPanel) -> None:
        """Show a panel."""
        for section in self._sections:
            section.show_panel(panel)

    def show_hover(self, text: str) -> None:
        """Show the values under the cursor."""
        self.evidence_section.show_hover(text)

    def _slides_changed(self, change: Change) -> None:
        if Change.SLIDES in change:
            self._tidy_soon.throttle()
        if change & (Change.SLIDE | Change.PIXELS):
            self.controller.magnifier.show()

    def _return_memory(self) -> None:
        """What a slide that was closed, whoever closed it, has left in the C library."""
        self.background.start("memory", in_one_step(return_free_memory))

    @property
    def _sections(self) -> tuple[Any, ...]:
        return (
            self.slide_section,
            self.model_section,
            self.run_section,
            self.result_section,
            self.evidence_section,
        )

    def closing(self) -> None:
        """Take the label off the canvas: no dock would take it off another slide."""
        self.session.close()
        self.controller.shutdown()
        self.canvas.show_text("")
        self.canvas.show_title("")
        dock_is_gone(self.viewer)
        if self.canvas.slides():
            keep_one_current(self.viewer)

    def _apply_settings(self, settings: Settings) -> None:
        self.controller.apply_settings(settings)
        self.kept_results.apply_settings(settings)
        self.session.choose(keeping=settings.keep_session)

    def _lay_out(self) -> None:
        for section in self._sections:
            self.column.addWidget(section)
        self.column.addStretch(1)
        self.setMinimumSize(
            _WIDTH_PX, _LEAST_HEIGHT_PX
        )  # narrower would cut what stands beside the scroll bar

    def _connect(self) -> None:
        controller = self.controller
        self.slide_section.open_clicked.connect(self._browse_slide)
        self.slide_section.slide_chosen.connect(controller.choose_slide)
        self.slide_section.mpp_given.connect(
            lambda mpp, folder_too: self.typed_mpp.give(mpp, folder_too=folder_too)
        )
        self.slide_section.icc_toggled.connect(controller.set_icc)
        self.model_section.browse_clicked.connect(self._browse_bundle)
        self.model_section.hub_clicked.connect(self._ask_hub)
        self.model_section.bundle_chosen.connect(controller.choose_bundle)
        self.model_section.device_chosen.connect(controller.choose_device)
        self.run_section.classify_clicked.connect(controller.classify)
        self.run_section.cancel_clicked.connect(controller.cancel)
        self.run_section.reopen_clicked.connect(controller.reopen_slide)
        self.model_section.card_clicked.connect(self._show_card)
        self.result_section.reveal_clicked.connect(controller.reveal_label)
        self.canvas.bind_key(CLASSIFY_KEY, controller.classify)
        self.canvas.bind_key(COPY_KEY, self.copy_view)
        evidence = self.evidence_section
        evidence.heatmap_toggled.connect(lambda shown: controller.set_heatmap(visible=shown))
        evidence.opacity_moved.connect(lambda value: controller.set_heatmap(opacity=value))
        evidence.chosen.connect(lambda choice: self.presenter.choose_evidence(**choice))
        self.canvas.bind_key(SMOOTH_KEY, self.presenter.toggle_smooth)
        magnifier = controller.magnifier
        for number, value in enumerate(MAGNIFICATIONS, start=1):
            self.canvas.bind_key(f"Control-{number}", partial(magnifier.magnify, value))
        self.canvas.camera_moved.connect(self.soon(magnifier.show))

    def copy_view(self) -> None:
        """Put what is seen of the slide, with its label, colour bar and scale bar, into the clipboard."""
        if self.controller.slide is not None:
            self.canvas.show_scale_bar()
            self.viewer.window.clipboard(flash=True, canvas_only=True)
            self.viewer.status = "The view is in the clipboard"

    def _show_card(self) -> None:
        CardDialog(self.presenter.card, self).show()

    def _browse_slide(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a slide", "", f"{_FILE_FILTER};;All files (*)")
        if path:
            self.controller.open_slide(path)

    def _browse_bundle(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Choose a model: a folder with bundle.json")
        if path:
            self.controller.load_bundle(path)

    def _ask_hub(self) -> None:
        name, given = QInputDialog.getText(
            self,
            "A model from the Hugging Face hub",
            "Name: owner/name, optionally @revision and #sha256=… of its weights",
        )
        if given and name.strip():
            self.controller.load_bundle(hub_name(name))

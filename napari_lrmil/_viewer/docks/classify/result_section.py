"""The result in the dock: label, probabilities, set of classes, warnings, how it was made."""

from __future__ import annotations

from qtpy.QtCore import Qt

from napari_lrmil._viewer.docks.classify.panel import Panel
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.section import Section
from napari_lrmil.wording import NOT_FOR_DIAGNOSIS

_SET_TIP = (
    "The classes that can't be ruled out. For at least this share of slides, of the kind that the model was calibrated "
    "with, the true class is among them (split conformal prediction). Several classes, or none: unsure."
)


class ResultSection(Section):
    """Shows a `ResultPanel`, or hides."""

    def __init__(self) -> None:
        super().__init__()
        self.strange = parts.Notice(style=parts.BANNER_STYLE)
        self.strange.setAccessibleName("Warning: slide unlike the training slides")
        self.label = parts.wrapped_label(style="QLabel { font-size: 22px; font-weight: bold; }")
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
            self.set,
            self.bars,
            self.warning,
            self.details,
            self.distance,
        ):
            self.column.addWidget(widget)

    def show_panel(self, panel: Panel) -> None:
        """Show a result, or nothing."""
        result = panel.result
        self.setVisible(result is not None)
        if result is None:
            return
        self.strange.show_text(result.strange_text)
        self.label.setText(result.headline)
        self.label.setToolTip(
            f"The most probable class is {result.label}, but others can't be ruled out"
            if result.unsure
            else "The most probable class"
        )
        self.set.setText(result.set_text)
        self.set.setStyleSheet(parts.HINT_STYLE if result.unsure else "")
        self.bars.show_classes(result.classes)
        self.details.setText(result.details)
        parts.show_text(self.distance, "" if result.strange_text else result.distance_text)
        self.warning.setVisible(result.demonstration and not panel.bundle_is_demonstration)

"""What the dock widget shows, as plain values, and the wording of it. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import PredictProgress, SlidePrediction

NOT_FOR_DIAGNOSIS = "DEMONSTRATION ONLY – NOT FOR DIAGNOSIS"
DEMO_BUNDLE_NAME = "Demonstration model"


class State(StrEnum):
    """Where the user is."""

    NO_SLIDE = "no slide"
    NEEDS_MPP = "needs mpp"
    LOADING_BUNDLE = "loading bundle"
    NO_BUNDLE = "no bundle"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class ResultPanel:
    """One prediction in words: label, (class, probability) from most to least probable, and how it was made."""

    label: str
    classes: tuple[tuple[str, float], ...]
    details: str
    demonstration: bool


@dataclass(frozen=True)
class Panel:
    """Everything the dock widget shows. Showing one needs no other knowledge.

    An index of -1 means that nothing is chosen. `progress` is (done, total) in tiles, None where nothing
    runs and (0, 0) where the end isn't known yet.
    """

    state: State
    slide_names: tuple[str, ...] = ()
    slide_index: int = -1
    slide_facts: str = ""
    icc_available: bool = False
    icc_applied: bool = False
    bundle_names: tuple[str, ...] = ()
    bundle_index: int = -1
    bundle_facts: str = ""
    bundle_is_demonstration: bool = False
    devices: tuple[str, ...] = ("auto",)
    device: str = "auto"
    can_classify: bool = False
    progress: tuple[int, int] | None = None
    progress_text: str = ""
    hint: str = ""
    error: str = ""
    result: ResultPanel | None = None
    heatmap_visible: bool = False
    heatmap_opacity: float = 0.0


HINTS = {
    State.NO_SLIDE: "Open a slide: the button above, File > Open, or drop it on the window.",
    State.NEEDS_MPP: (
        "This slide doesn't say how large its pixels are. Enter µm/px above: usually 0.25 at 40×, 0.5 at 20×."
    ),
    State.LOADING_BUNDLE: "Loading the model …",
    State.NO_BUNDLE: "Choose a model: a folder with bundle.json.",
    State.CANCELLED: "Cancelled. Nothing was kept; classify again at any time.",
}


def slide_facts(slide: Slide) -> str:
    """Size in pixels and mm, mpp and magnification, as far as the file says."""
    width, height = slide.level_dimensions_xy[0]
    facts = [f"{width:,} × {height:,} px"]
    if slide.has_mpp:
        mpp_x, mpp_y = slide.mpp_xy
        facts.append(f"{width * mpp_x / 1000:.1f} × {height * mpp_y / 1000:.1f} mm")
        facts.append(f"{mpp_x:.3g} µm/px")
    power = slide.metadata["objective_power"]
    if isinstance(power, float):
        facts.append(f"{power:g}×")
    return " · ".join(facts)


def bundle_facts(info: BundleInfo) -> str:
    """The model card in three lines: classes, what is read, encoder."""
    return (
        f"Classes: {', '.join(info.class_names)}\n"
        f"Reads {info.tiles.mpp:g} µm/px in {info.tiles.tile_px} px tiles\n"
        f"Encoder: {info.encoder.architecture}"
    )


def progress_text(slide_name: str, progress: PredictProgress | None) -> str:
    """Tiles done and time left."""
    if progress is None or not progress.tiles_total:
        return f"{slide_name}: looking for tissue …"
    text = f"{slide_name}: {progress.tiles_done:,} of {progress.tiles_total:,} tiles"
    left = progress.seconds_left
    return text if left is None else f"{text}, {duration_text(left)} left"


def duration_text(seconds: float) -> str:
    """Seconds as a reader says them."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def percent_text(probability: float) -> str:
    """A probability in whole percent, never rounded to a certainty it doesn't claim."""
    if probability > 0.99:
        return "> 99 %" if probability < 1 else "100 %"
    if probability < 0.01:
        return "< 1 %" if probability > 0 else "0 %"
    return f"{probability:.0%}".replace("%", " %")


def result_panel(prediction: SlidePrediction) -> ResultPanel:
    """A prediction in words."""
    classes = sorted(
        zip(prediction.class_names, prediction.class_probabilities.tolist(), strict=True),
        key=lambda pair: -pair[1],
    )
    took = f"{prediction.seconds:.1f} s" if prediction.seconds < 10 else duration_text(prediction.seconds)
    details = (
        f"{len(prediction.tiles):,} tiles in {took} on {prediction.device}\n"
        f"Level {prediction.level} at {prediction.level_mpp:.3g} µm/px\n"
        f"Model: {prediction.bundle_name}"
    )
    return ResultPanel(prediction.label, tuple(classes), details, prediction.demonstration)


def overlay_text(prediction: SlidePrediction) -> str:
    """What stands on the slide itself: class probabilities, the label first."""
    result = result_panel(prediction)
    lines = [f"{name}  {percent_text(probability)}" for name, probability in result.classes]
    if result.demonstration:
        lines += NOT_FOR_DIAGNOSIS.lower().split(" – ")  # two lines: the canvas may be narrow
    return "\n".join(lines)

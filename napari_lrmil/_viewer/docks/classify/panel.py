"""What the dock widget shows, as plain values, and the wording of it. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.docks.classify.result import ResultPanel
from napari_lrmil._viewer.models import DEMO_BUNDLE
from napari_lrmil._viewer.window import State
from napari_lrmil.slide import Slide
from napari_lrmil.wording import duration_text

if TYPE_CHECKING:
    from napari_lrmil._viewer.docks.classify.evidence import EvidencePanel
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import PredictProgress

DEMO_BUNDLE_NAME = "Demonstration model"


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
    evidence: EvidencePanel | None = None
    card_available: bool = False
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


def bundle_name(bundle_path: str) -> str:
    """A model in the list."""
    return DEMO_BUNDLE_NAME if bundle_path == DEMO_BUNDLE else Path(bundle_path).name


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

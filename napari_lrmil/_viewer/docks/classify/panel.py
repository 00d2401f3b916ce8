"""What the main dock shows, as plain values and in words; the evidence is in `evidence`. No Qt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil._viewer.window import State
from napari_lrmil.errors import readable
from napari_lrmil.model.naming import DEMO_BUNDLE
from napari_lrmil.slide import Slide
from napari_lrmil.wording import (
    NOT_FOR_DIAGNOSIS,
    NOT_TO_BE_USED,
    answer_text,
    distance_text,
    duration_text,
    operating_text,
    percent_text,
    set_text,
    slide_warnings,
    speed_text,
    time_taken_text,
    withheld_text,
)

if TYPE_CHECKING:
    from napari_lrmil._viewer.docks.classify.evidence import EvidencePanel
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.model.speed import Speed
    from napari_lrmil.predict import PredictProgress, SlidePrediction

DEMO_BUNDLE_NAME = "Demonstration model"


@dataclass(frozen=True)
class ResultPanel:
    """One prediction in words: (class, probability) from most to least probable, and how it was made.

    `headline` is the answer, or that it is unsure, and `headline_tip` what it means; `set_text` says which classes are left
    at the bundle's coverage; `strange_text` says why the slide itself makes the result doubtful, empty where nothing does.
    Of a slide unlike those of training, where the label is `withheld`, classes and set are empty until it is `revealed`:
    then `withheld_text` is what the model would say, and that it is not to be used.
    """

    classes: tuple[tuple[str, float], ...]
    details: str
    demonstration: bool
    headline: str
    unsure: bool
    set_text: str
    strange_text: str
    distance_text: str
    headline_tip: str
    withheld: bool = False
    revealed: bool = False
    withheld_text: str = ""


@dataclass(frozen=True)
class ClassifyPanel:
    """Everything the dock widget shows. Showing one needs no other knowledge.

    `mpp_text` is what stands in the field µm/px, `mpp_source` where the value is from and what speaks against it. An
    index of -1 means that nothing is chosen. `progress` is (done, total) in tiles, None where nothing
    runs and (0, 0) where the end isn't known yet.
    """

    state: State
    slide_names: tuple[str, ...] = ()
    slide_index: int = -1
    slide_facts: str = ""
    mpp_text: str = ""
    mpp_source: str = ""
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
    earlier: str = ""
    can_reopen: bool = False
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
    lines = [" · ".join(facts)]
    size = slide.pixel_size
    if slide.has_mpp and (";" in size.text or slide.mpp_override is not None):
        lines.append(f"µm/px: {size.text}")
    if slide.shown_image:
        lines.append(f"Image {slide.shown_image}")
    return "\n".join(lines)


def hint_text(state: State, slide: Slide | None) -> str:
    """What to do next."""
    if state is State.NEEDS_MPP and slide is not None and slide.pixel_size.doubt:
        return (
            f"What the file says of its pixels isn't believed: {slide.pixel_size.doubt}. Enter µm/px above: usually 0.25 "
            "at 40×, 0.5 at 20×."
        )
    return HINTS.get(state, "")


def distinct_names(slides: Sequence[Slide]) -> tuple[str, ...]:
    """Names of slides for a list; of those that are called the same, with their folder, and counted where that is one."""
    alike = Counter(slide.name for slide in slides)
    names = [
        slide.name if alike[slide.name] == 1 else f"{slide.name} in {slide.path.parent.name}"
        for slide in slides
    ]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({names[: at + 1].count(name)})"
        for at, name in enumerate(names)
    )


def title_text(slide: Slide) -> str:
    """A slide in the window's title: with its folder, for slides of several are called alike."""
    return f"{slide.name} in {readable(slide.path.absolute().parent.name)}"


def bundle_name(bundle_path: str, info: BundleInfo | None) -> str:
    """A model in the list: as results call it, with the start of its hash; by its folder until it was loaded."""
    if info is not None:
        return model_text(info.name, info.sha256)
    return DEMO_BUNDLE_NAME if bundle_path == DEMO_BUNDLE else Path(bundle_path).name


def model_text(name: str, sha256: str) -> str:
    """A model as it is called everywhere: its name, and the start of the hash of the whole bundle."""
    return f"{name} ({sha256[:8]})"


def earlier_text(prediction: SlidePrediction) -> str:
    """What another model said of the slide, which isn't what is shown."""
    words = [answer_text(prediction)]
    words += ["unsure"] if prediction.unsure and prediction.label is not None else []
    model = model_text(prediction.bundle_name, prediction.bundle_sha256)
    return f"Earlier, by {model}: {', '.join(words)}"


def bundle_facts(info: BundleInfo, speed: Speed | None = None) -> str:
    """The model card in a few lines: classes, what is read, how long that takes, encoder."""
    read = ", then parts of it at ".join(f"{mpp:g} µm/px" for mpp in info.mpps)
    lines = [
        f"Classes: {', '.join(info.class_names)}",
        f"Reads {read} in {info.tiles.tile_px} px tiles",
        *([speed_text(speed)] if speed else []),
        f"Encoder: {info.encoder.architecture}",
    ]
    return "\n".join(lines)


def progress_text(slide_name: str, progress: PredictProgress | None) -> str:
    """Tiles done and time left."""
    if progress is None or not progress.tiles_total:
        return f"{slide_name}: looking for tissue …"
    text = f"{slide_name}: {progress.tiles_done:,} of {progress.tiles_total:,} tiles"
    text += f". {progress.note}" if progress.note else ""
    left = progress.seconds_left
    return text if left is None else f"{text}, {duration_text(left)} left"


def result_panel(prediction: SlidePrediction, *, revealed: bool = False) -> ResultPanel:
    """A prediction in words; `revealed` shows what is withheld of a slide unlike those of training."""
    withheld = prediction.label is None
    hidden, unsure = withheld and not revealed, prediction.unsure and not withheld
    classes = sorted(
        zip(prediction.class_names, prediction.class_probabilities.tolist(), strict=True),
        key=lambda pair: (pair[0] != prediction.called, -pair[1]),
    )
    called = "" if hidden else operating_text(prediction)
    tip = "The class that is called"
    if withheld:
        tip = "The slide is farther from those of training than the model's limit: there is no label"
    elif unsure:
        tip = f"The class that is called is {prediction.called}, but others can't be ruled out"
    details = (f"{called}\n" if called else "") + (
        f"{len(prediction.tiles):,} tiles in {time_taken_text(prediction.seconds)} on {prediction.device}\n"
        f"Level {prediction.level} at {prediction.level_mpp:.3g} µm/px\n"
        f"Model: {model_text(prediction.bundle_name, prediction.bundle_sha256)}\n"
        f"LRMIL {prediction.version}"
    )
    return ResultPanel(
        classes=() if hidden else tuple(classes),
        details=details,
        demonstration=prediction.demonstration,
        headline="Unsure" if unsure else prediction.answer,
        unsure=unsure,
        set_text="" if hidden else set_text(prediction),
        strange_text="\n".join(slide_warnings(prediction)),
        distance_text=distance_text(prediction),
        headline_tip=tip,
        withheld=withheld,
        revealed=withheld and revealed,
        withheld_text=f"{withheld_text(prediction)}. {NOT_TO_BE_USED}" if withheld and revealed else "",
    )


def card_markdown(info: BundleInfo) -> str:
    """The model card without its head for machines."""
    from napari_lrmil.model.card import render_card

    card = render_card(info.model_dump(mode="json"), info.mpps)
    return card.split("---\n", 2)[2].lstrip() if card.startswith("---\n") else card


def overlay_text(prediction: SlidePrediction, *, revealed: bool = False) -> str:
    """What stands on the slide itself: class probabilities, the label first; of a slide without one, the answer.

    A withheld label never stands there: of a picture of the slide nobody would know that it isn't the answer.
    """
    result = result_panel(prediction)
    lines = [f"{name}  {percent_text(probability)}" for name, probability in result.classes]
    if result.withheld:
        lines = [result.headline] + (["heatmap not to be used"] if revealed else [])
    if result.unsure:
        lines.append("unsure")
    if prediction.tiles.immunostained:
        lines.append("not H&E")
    if result.demonstration:
        lines += NOT_FOR_DIAGNOSIS.lower().split(" – ")  # two lines: the canvas may be narrow
    return "\n".join(lines)

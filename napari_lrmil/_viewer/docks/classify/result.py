"""A result in words: probabilities, the classes that are left, warnings, the model card. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_lrmil.wording import (
    NOT_FOR_DIAGNOSIS,
    distance_text,
    percent_text,
    set_text,
    time_taken_text,
    unlike_training_text,
)

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction


@dataclass(frozen=True)
class ResultPanel:
    """One prediction in words: label, (class, probability) from most to least probable, and how it was made.

    `headline` is the label, or that there is none; `set_text` says which classes are left at the bundle's
    coverage; `strange_text` is empty where the slide looks like those of training, or nothing is known.
    """

    label: str
    classes: tuple[tuple[str, float], ...]
    details: str
    demonstration: bool
    headline: str
    unsure: bool
    set_text: str
    strange_text: str
    distance_text: str


def result_panel(prediction: SlidePrediction) -> ResultPanel:
    """A prediction in words."""
    classes = sorted(
        zip(prediction.class_names, prediction.class_probabilities.tolist(), strict=True),
        key=lambda pair: -pair[1],
    )
    details = (
        f"{len(prediction.tiles):,} tiles in {time_taken_text(prediction.seconds)} on {prediction.device}\n"
        f"Level {prediction.level} at {prediction.level_mpp:.3g} µm/px\n"
        f"Model: {prediction.bundle_name} ({prediction.bundle_sha256[:8]})\n"
        f"LRMIL {prediction.version}"
    )
    return ResultPanel(
        label=prediction.label,
        classes=tuple(classes),
        details=details,
        demonstration=prediction.demonstration,
        headline="Unsure" if prediction.unsure else prediction.label,
        unsure=prediction.unsure,
        set_text=set_text(prediction),
        strange_text=unlike_training_text(prediction),
        distance_text=distance_text(prediction),
    )


def card_markdown(info: BundleInfo) -> str:
    """The model card without its head for machines."""
    from napari_lrmil.model.card import render_card

    card = render_card(info.model_dump(mode="json"))
    return card.split("---\n", 2)[2].lstrip() if card.startswith("---\n") else card


def overlay_text(prediction: SlidePrediction) -> str:
    """What stands on the slide itself: class probabilities, the label first."""
    result = result_panel(prediction)
    lines = [f"{name}  {percent_text(probability)}" for name, probability in result.classes]
    if result.unsure:
        lines.append("unsure")
    if result.strange_text:
        lines.append("unlike the training slides")
    if result.demonstration:
        lines += NOT_FOR_DIAGNOSIS.lower().split(" – ")  # two lines: the canvas may be narrow
    return "\n".join(lines)

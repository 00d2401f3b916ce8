"""A result in words: probabilities, the classes that are left, warnings, the model card. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction

NOT_FOR_DIAGNOSIS = "DEMONSTRATION ONLY – NOT FOR DIAGNOSIS"


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
        strange_text=strange_text(prediction),
        distance_text=_distance_text(prediction),
    )


def set_text(prediction: SlidePrediction) -> str:
    """The classes that are left at the bundle's coverage, in plain words."""
    left, coverage = prediction.prediction_set, prediction.coverage
    if left is None or coverage is None:
        return "No set of classes: this model states none."
    share = f"{coverage:.0%}".replace("%", " %")
    if not left:
        return f"Unsure: no class is probable enough at {share}"
    if len(left) == 1:
        return f"Set at {share}: {{{left[0]}}}"
    return f"Unsure: {', '.join(left[:-1])} or {left[-1]} at {share}"


def strange_text(prediction: SlidePrediction) -> str:
    """The warning that a slide is unlike those of training; empty where there is no reason to warn."""
    if not prediction.out_of_distribution:
        return ""
    return (
        "This slide looks unlike the training slides, by stain, scanner or tissue: don't rely on the result. "
        f"{_distance_text(prediction)}."
    )


def _distance_text(prediction: SlidePrediction) -> str:
    if prediction.ood_score is None or prediction.ood_threshold is None:
        return "Distance to the training slides: this model states none"
    return f"Distance to the training slides: {prediction.ood_score:.3g} (warning above {prediction.ood_threshold:.3g})"


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

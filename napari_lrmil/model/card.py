"""The model card of a bundle, as a model hub shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DEMONSTRATION_NOTE = "Demonstration only, not for diagnosis."
UNLIKE_TRAINING = "unlike training"
"""The answer where there is no label: the slide is farther from those of training than the model's limit."""
_SAID_OF_SLIDES = (UNLIKE_TRAINING, "unsure")
ATTENTION = "attention"
"""The heatmap's channel of attention; every other channel but `ATTENTION_FOR` is the name of a class."""
ATTENTION_FOR = "attention for "
"""Begins the heatmap's channel of one class's attention, where each has its own."""


def why_no_class(name: str) -> str | None:
    """Return why no class may be called so, in words that follow "it is"; None where one may.

    The program itself says it of slides, or a channel of the heatmap has this name and would show in place of the class.
    """
    said = " ".join(name.split()).casefold()
    if said in _SAID_OF_SLIDES:
        return "what the program itself says of slides"
    if said == ATTENTION or f"{said} ".startswith(ATTENTION_FOR):
        return "what the program itself calls a channel of the heatmap"
    return None


def render_card(info: dict[str, Any], mpps: Sequence[float] = ()) -> str:
    """Markdown with a YAML head from the JSON of a bundle.

    Parameters
    ----------
    info : dict
        `BundleInfo` as plain JSON values.
    mpps : sequence of float
        Of each magnification that it reads, the coarsest first; by default that of its tiles.
    """
    tiles, mil, provenance = info["tiles"], info["mil"], info["provenance"]
    warning = f"> **{DEMONSTRATION_NOTE}**\n\n" if info["demonstration"] else ""
    measured = provenance["metrics"]
    metrics = "\n".join(
        f"| {name} | {_with_interval(measured, name)} |"
        for name in sorted(measured)
        if not name.endswith(_PARTS) and not name.startswith(_CALLED)
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(provenance["versions"].items()))
    return f"""---
license: {info["licence"]}
library_name: napari-lrmil
pipeline_tag: image-classification
tags:
- pathology
- whole-slide-image
- multiple-instance-learning
- lrmil
---

# {info["name"]}

{warning}{info["description"]}

## Use

```
lrmil predict SLIDE --bundle PATH_OF_THIS_FOLDER --out RESULTS
```

or load it in napari: Plugins > LRMIL.

| | |
|---|---|
| classes | {", ".join(info["class_names"])} |
| reads | {tiles_text(tiles, mpps)} |
| distilled from | {_teacher_text(info)} |
| encoder | {info["encoder"]["architecture"]}, tokens of {info["token_px"]} px |
| aggregator | {mil["name"]}, {mil["embed_dim"]}-d{", gated" if mil.get("gated") else ""} |
{_decision_rows(info)}

{_choice_text(provenance)}## Training data

{provenance["training_data"]}

## Evaluation

| metric | value |
|---|---|
{metrics or "| none | |"}

{_called_text(info)}## How far to trust a result

{_trust_text(info.get("trust"))}
**Evidence.** Each tile's contribution to a class is the probability of the slide minus the probability of the slide
without that tile, worked out exactly; where a head must be run anew for each tile and a slide has many, the tiles that it heeds
least are estimated, and marked so. Whether these tiles matter is checked by removing them, most important first,
against removing tiles at random. Contributions show what the model used, tile by tile; tiles that say the same
can stand in for each other, and then each of them alone counts for little.

## Limits

A probability is a statement about slides like those it was trained on. Attention shows what the model weighed,
not why. The model has not been cleared as a medical device.

## Provenance

Made {provenance["created"]} at commit {provenance["commit"]}, config {provenance["config_sha256"][:12]}, with {versions}.
"""


def _teacher_text(info: dict[str, Any]) -> str:
    return (
        f"tiles at {info['teacher_mpp']:g} µm/px"
        if info["distilled"]
        else "nothing: trained on its own tiles"
    )


def tiles_text(tiles: dict[str, Any], mpps: Sequence[float]) -> str:
    """Say which tiles a bundle reads: its ``tiles``, and µm/px of each magnification, the finest last."""
    one_in = tiles.get("one_in", 1)
    part = f"a random 1/{one_in} of the " if one_in > 1 else ""
    *coarser, finest = mpps or (tiles["mpp"],)
    read = (
        "".join(f"{mpp:g} µm/px, of the parts that it chooses there at " for mpp in coarser)
        + f"{finest:g} µm/px"
    )
    least = f"{tiles['min_tissue']:.0%}"
    return f"{part}tiles of {tiles['tile_px']} px at {read} with at least {least} tissue, nothing finer"


def _choice_text(provenance: dict[str, Any]) -> str:
    choice = provenance.get("choice")
    return f"## Why this model\n\n{choice}\n\n" if choice else ""


_PARTS = ("_low", "_high", "_patients")
"""What a metric with an interval has beside its value."""
_CALLED = ("test_sensitivity", "test_specificity")


def _with_interval(metrics: dict[str, float], name: str, form: str = ".4g") -> str:
    ends = [metrics.get(name + part) for part in _PARTS[:2]]
    shown = " [{}, {}]".format(*(format(end, form) for end in ends)) if None not in ends else ""
    return format(metrics[name], form) + shown


def _called_text(info: dict[str, Any]) -> str:
    """Sensitivity and specificity at the operating point; empty where they weren't measured."""
    metrics, point = info["provenance"]["metrics"], info.get("operating_point")
    if point is None:
        return ""
    names = {"test_sensitivity": f"sensitivity for {point['positive']}", "test_specificity": "specificity"}
    if point["positive"] is None:
        names = {f"test_sensitivity_{name}": f"sensitivity for {name}" for name in info["class_names"]}
    said = [
        f"{words} {_with_interval(metrics, name, '.2f')} ({_patients(metrics.get(f'{name}_patients'))})"
        for name, words in names.items()
        if name in metrics
    ]
    if not said:
        return ""
    return f"At its operating point, on test slides of its fold: {'; '.join(said)}. By patient, with 95 % Wilson intervals.\n\n"


def _patients(count: float | None) -> str:
    return "patients unknown" if count is None else f"{count:.0f} patient{'' if count == 1 else 's'}"


def _decision_rows(info: dict[str, Any]) -> str:
    names, scaling, point = info["class_names"], info.get("scaling"), info.get("operating_point")
    if scaling is None:
        rows = [f"| temperature | {info['temperature']:.4g} |"]
    else:
        values = zip(names, scaling["temperatures"], scaling["biases"], strict=True)
        rows = [
            "| bag logits | "
            + "; ".join(f"{name}: over {over:.4g}, plus {plus:+.3g}" for name, over, plus in values)
            + " |"
        ]
    if point is None:
        return "\n".join([*rows, "| label | the most probable class |"])
    if len(names) == 2:
        called = f"{names[1]} from a probability of {point['thresholds'][1]:.3g} on"
    else:
        pairs = ", ".join(
            f"{name} {value:.3g}" for name, value in zip(names, point["thresholds"], strict=True)
        )
        called = f"the largest multiple of the class's threshold: {pairs}"
    chosen = (
        "the largest sum of the classes' sensitivities (Youden)"
        if point["rule"] == "youden"
        else f"a {point['rule']} of {point['wanted']:.3g} for {point['positive']}"
    )
    return "\n".join([*rows, f"| label | {called}; chosen on validation, by patient, for {chosen} |"])


def _trust_text(trust: dict[str, Any] | None) -> str:
    if trust is None:
        return (
            "This bundle states no coverage and no distance to its training slides: probabilities come without a set "
            "of classes, and a slide of another kind comes without a warning.\n"
        )
    # Here: that module needs torch, and others read the note above without it.
    from napari_lrmil.model.trust import least_calibration

    conformal, ood = trust["conformal"], trust["ood"]
    coverage, n = conformal["coverage"], conformal["n_calibration"]
    if conformal["quantile"] is None:
        promise = (
            f"With {_slides(n)} to calibrate on, {coverage:.0%} can't be promised for fewer than all classes:\n"
            f"it takes {least_calibration(coverage)}. So every slide is reported as unsure."
        )
    else:
        promise = (
            f"A result names every class of probability {1 - conformal['quantile']:.3g} or more. On slides like the\n"
            f"{_slides(n)} of calibration this set holds the true class at least {coverage:.0%} of the time: on average\n"
            "over slides, not within each class (split conformal prediction, LAC). Several classes in the set, or none:\n"
            "unsure."
        )
    return f"""**Set of classes.** {promise}
{_calibration_slides(conformal)}

**Slides of another kind.** A warning is given where a slide's tiles are on average farther than {ood["threshold"]:.3g}
from {ood["n_training_tiles"]:,} training tiles (squared Mahalanobis distance per dimension). By chance at most
{ood["false_alarm_rate"]:.0%} of slides like those of calibration ({_slides(ood["n_calibration"])}) get it. No warning
doesn't mean that the slide suits the model.
"""


def _calibration_slides(conformal: dict[str, Any]) -> str:
    if conformal.get("own_slides"):
        return "The calibration slides were not trained on, and chose nothing else: neither the epoch nor the thresholds."
    return (
        "The calibration slides were not trained on, but they chose the epoch, which makes the head look a little better on\n"
        "them than on new slides: see also the coverage on test slides, where the table above has it."
    )


def _slides(count: int) -> str:
    return f"{count} slide" if count == 1 else f"{count} slides"

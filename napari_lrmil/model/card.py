"""The model card of a bundle, as a model hub shows it."""

from __future__ import annotations

from typing import Any

DEMONSTRATION_NOTE = "Demonstration only, not for diagnosis."


def render_card(info: dict[str, Any]) -> str:
    """Markdown with a YAML head from the JSON of a bundle.

    Parameters
    ----------
    info : dict
        `BundleInfo` as plain JSON values.
    """
    tiles, mil, provenance = info["tiles"], info["mil"], info["provenance"]
    warning = f"> **{DEMONSTRATION_NOTE}**\n\n" if info["demonstration"] else ""
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(provenance["metrics"].items()))
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
| reads | tiles of {tiles["tile_px"]} px at {tiles["mpp"]:g} µm/px with at least {tiles["min_tissue"]:.0%} tissue, nothing finer |
| distilled from | tiles at {info["teacher_mpp"]:g} µm/px |
| encoder | {info["encoder"]["architecture"]}, tokens of {info["token_px"]} px |
| aggregator | {mil["name"]}, {mil["embed_dim"]}-d{", gated" if mil["gated"] else ""} |
| temperature | {info["temperature"]:.4g} |

## Training data

{provenance["training_data"]}

## Evaluation

| metric | value |
|---|---|
{metrics or "| none | |"}

## How far to trust a result

{_trust_text(info.get("trust"))}
**Evidence.** Each tile's contribution to a class is the probability of the slide minus the probability of the slide
without that tile, worked out exactly. Whether these tiles matter is checked by removing them, most important first,
against removing tiles at random. Contributions show what the model used, tile by tile; tiles that say the same
can stand in for each other, and then each of them alone counts for little.

## Limits

A probability is a statement about slides like those it was trained on. Attention shows what the model weighed,
not why. The model has not been cleared as a medical device.

## Provenance

Made {provenance["created"]} at commit {provenance["commit"]}, config {provenance["config_sha256"][:12]}, with {versions}.
"""


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
The calibration slides were not trained on, but they chose the epoch and the temperature: see also the coverage on
test slides, where the table above has it.

**Slides of another kind.** A warning is given where a slide's tiles are on average farther than {ood["threshold"]:.3g}
from {ood["n_training_tiles"]:,} training tiles (squared Mahalanobis distance per dimension). By chance at most
{ood["false_alarm_rate"]:.0%} of slides like those of calibration ({_slides(ood["n_calibration"])}) get it. No warning
doesn't mean that the slide suits the model.
"""


def _slides(count: int) -> str:
    return f"{count} slide" if count == 1 else f"{count} slides"

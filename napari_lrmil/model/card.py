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

## Limits

A probability is a statement about slides like those it was trained on. Attention shows what the model weighed,
not why. The model has not been cleared as a medical device.

## Provenance

Made {provenance["created"]} at commit {provenance["commit"]}, config {provenance["config_sha256"][:12]}, with {versions}.
"""

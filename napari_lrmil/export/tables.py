"""A prediction as JSON (the slide) and CSV (its tiles)."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from napari_lrmil import __version__
from napari_lrmil.atomic import write_text
from napari_lrmil.model.card import DEMONSTRATION_NOTE
from napari_lrmil.predict import SlidePrediction

TILE_COLUMNS = (
    "row",
    "col",
    "x_l0_px",
    "y_l0_px",
    "width_l0_px",
    "height_l0_px",
    "attention_score",
    "attention_logit",
)


def prediction_json(prediction: SlidePrediction) -> dict[str, object]:
    """The slide-level part as plain values; lengths carry their unit in their name."""
    tiles = prediction.tiles
    return {
        "slide": prediction.slide_name,
        "label": prediction.label,
        "class_probabilities": dict(
            zip(prediction.class_names, prediction.class_probabilities.tolist(), strict=True)
        ),
        "note": DEMONSTRATION_NOTE if prediction.demonstration else "Not cleared as a medical device.",
        "bundle": {"name": prediction.bundle_name, "weights_sha256": prediction.bundle_sha256},
        "tiles": {
            "count": len(tiles),
            "tile_px": tiles.grid.spec.tile_px,
            "mpp": tiles.grid.spec.mpp,
            "grid_shape_yx": list(tiles.grid.shape_yx),
            "origin_l0_xy": list(tiles.grid.origin_l0_xy),
            "tile_l0_xy": list(tiles.grid.tile_l0_xy),
        },
        "slide_mpp_xy": list(prediction.mpp_xy),
        "read_level": prediction.level,
        "read_level_mpp": prediction.level_mpp,
        "seconds": round(prediction.seconds, 3),
        "device": prediction.device,
        "version": __version__,
    }


def write_prediction(
    prediction: SlidePrediction, out_dir: str | Path, *, stem: str | None = None
) -> tuple[Path, Path]:
    """Write ``<stem>.json`` and ``<stem>.csv``, each whole or not at all.

    Parameters
    ----------
    prediction : SlidePrediction
    out_dir : path-like
        Made where missing.
    stem : str, optional
        Default: the slide's name.

    Returns
    -------
    (Path, Path)
        JSON, and CSV with a row per tile: corner and size in level-0 pixels, attention after and before
        the softmax over the slide.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    stem = prediction.slide_name if stem is None else stem
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(TILE_COLUMNS)
    tiles = prediction.tiles
    width, height = tiles.grid.tile_l0_xy
    for index, (x, y) in enumerate(tiles.corners_l0_xy):
        writer.writerow(
            [
                int(tiles.rows[index]),
                int(tiles.cols[index]),
                f"{x:.3f}",
                f"{y:.3f}",
                f"{width:.3f}",
                f"{height:.3f}",
                f"{prediction.attention_scores[index]:.8g}",
                f"{prediction.attention_logits[index]:.8g}",
            ]
        )
    paths = (out / f"{stem}.json", out / f"{stem}.csv")
    # The JSON comes last, an older one goes first: where it exists, the prediction is complete.
    paths[0].unlink(missing_ok=True)
    write_text(paths[1], table.getvalue())
    write_text(paths[0], json.dumps(prediction_json(prediction), indent=2) + "\n")
    return paths

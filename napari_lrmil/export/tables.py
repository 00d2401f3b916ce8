"""A prediction as JSON (the slide) and CSV (its tiles); a folder of slides as one CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil import __version__
from napari_lrmil.atomic import write_text
from napari_lrmil.model.card import DEMONSTRATION_NOTE

if TYPE_CHECKING:  # predict loads torch
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
    tiles = prediction.tiles
    width, height = tiles.grid.tile_l0_xy
    rows = (
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
        for index, (x, y) in enumerate(tiles.corners_l0_xy)
    )
    paths = (out / f"{stem}.json", out / f"{stem}.csv")
    # The JSON comes last, an older one goes first: where it exists, the prediction is complete.
    paths[0].unlink(missing_ok=True)
    write_text(paths[1], csv_text(TILE_COLUMNS, rows))
    write_text(paths[0], json.dumps(prediction_json(prediction), indent=2) + "\n")
    return paths


_FOLDER_COLUMNS = (
    *("unsure", "prediction_set", "out_of_distribution", "ood_score", "tiles", "seconds"),
    *("verdict", "note", "error", "fingerprint", "bundle_sha256", "version"),
)


class FolderRow(NamedTuple):
    """A slide of a folder: its prediction, or why there is none, and what the reviewer said."""

    slide: str
    """Its name or id; left out of the file unless identifiers are wanted."""
    prediction: SlidePrediction | None = None
    verdict: str = ""
    note: str = ""
    error: str = ""


def shown_name(prediction: SlidePrediction, *, show_identifiers: bool) -> str:
    """The slide's name, which can hold a patient's, or a neutral one by its fingerprint."""
    return prediction.slide_name if show_identifiers else f"slide {prediction.slide_fingerprint[:8]}"


def write_folder_table(
    path: str | Path, rows: Sequence[FolderRow], *, show_identifiers: bool = False
) -> Path:
    """``predictions.csv`` of a folder, a row a slide in the order given, whole or not at all.

    Columns: slide, label, p_<class> for every class of any row, unsure, prediction_set (joined by ``;``),
    out_of_distribution, ood_score, tiles, seconds, verdict, note, error, fingerprint, bundle_sha256, version.
    What isn't known is empty. A text that a spreadsheet would run as a formula (beginning with ``= + - @``,
    a tab or a line break) gets an apostrophe in front.

    Parameters
    ----------
    path : path-like
    rows : sequence of FolderRow
    show_identifiers : bool
        Without it, slides are named by their fingerprint, slides that failed by their place in the list, and
        errors, which can name a file, are ``failed``. Notes are written as the reviewer wrote them.
    """
    classes = list(
        dict.fromkeys(name for row in rows if row.prediction for name in row.prediction.class_names)
    )
    columns = ["slide", "label", *(spreadsheet_safe(f"p_{name}") for name in classes), *_FOLDER_COLUMNS]
    table: list[list[str]] = []
    for number, row in enumerate(rows, start=1):
        found = row.prediction
        if show_identifiers:
            name, error = row.slide, row.error
        else:
            name = shown_name(found, show_identifiers=False) if found else f"slide {number}"
            error = "failed" if row.error else ""
        name = spreadsheet_safe(name)
        reviewed = [spreadsheet_safe(text) for text in (row.verdict, row.note, error)]
        if found is None:
            table.append([name, "", *("" for _ in classes), *[""] * 6, *reviewed, "", "", ""])
            continue
        by_class = dict(zip(found.class_names, found.class_probabilities.tolist(), strict=True))
        stated = found.prediction_set is not None
        strange = found.ood_score is not None and found.ood_threshold is not None
        table.append(
            [name, spreadsheet_safe(found.label)]
            + [f"{by_class[name]:.6g}" if name in by_class else "" for name in classes]
            + [str(found.unsure).lower() if stated else ""]
            + [spreadsheet_safe(";".join(found.prediction_set or ()))]
            + [str(found.out_of_distribution).lower() if strange else ""]
            + ["" if found.ood_score is None else f"{found.ood_score:.6g}"]
            + [str(len(found.tiles)), f"{found.seconds:.3f}", *reviewed]
            + [found.slide_fingerprint, found.bundle_sha256, found.version]
        )
    path = Path(path)
    write_text(path, csv_text(columns, table))
    return path


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV, a line a row; texts from outside go through `spreadsheet_safe` first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def spreadsheet_safe(text: str) -> str:
    """The text, with an apostrophe in front where a spreadsheet would run it as a formula."""
    # The csv module leaves a lone carriage return unquoted, and readers take it for the end of a row.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\n")) else text

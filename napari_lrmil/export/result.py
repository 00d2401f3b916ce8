"""A prediction as files and back: one JSON document of the slide, and one CSV with a row a tile.

Both are described in docs/exports.md; docs/result.schema.json is the JSON schema of the document. All numbers have as many
digits as it takes to read the same prediction back, bit for bit.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import reason_of
from napari_lrmil.evidence import DeletionCurve
from napari_lrmil.export.errors import ExportError, ResultFileError
from napari_lrmil.export.tables import csv_text
from napari_lrmil.heatmap import speaking_tiles
from napari_lrmil.model.calibration import answer_of
from napari_lrmil.outside import parse_json, read_file
from napari_lrmil.slide import TileGrid, TileSet, TileSpec
from napari_lrmil.table import spreadsheet_safe
from napari_lrmil.wording import NOT_TO_BE_USED, Status, curve_text, evidence_notes, status_of, use_note

if TYPE_CHECKING:  # predict loads torch
    from napari_lrmil.predict import SlidePrediction

FORMAT, FORMAT_VERSION = "lrmil-prediction", 3
_MOST_BYTES = 2**28
_MOST_PLACES = 10**8
"""Of a grid of tiles."""
_SAME, _SAME_IN_CURVE = 1e-6, 1e-3
"""The curve is worked out in single precision."""

_PLACE_COLUMNS = ("row", "col", "x_l0_px", "y_l0_px", "width_l0_px", "height_l0_px")
_VALUE_COLUMNS = ("tissue_fraction", "attention_score", "attention_logit")
_CLASS_COLUMNS = ("contribution", "log_odds_contribution", "log_odds_alone")

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class BundleOfResult(_Part):
    """The model that made the result."""

    name: str
    weights_sha256: str
    """Hash of its weights."""
    sha256: str | None = None
    """Hash of the whole bundle: weights and all that its bundle.json says; null where an earlier version wrote this."""


class LeftOutTile(_Part):
    """A tile with some tissue, too little to be read."""

    row: int
    col: int
    tissue_fraction: Share


class TilesOfResult(_Part):
    """The tile grid, and which of its tiles were read; the CSV has a row for each of those."""

    count: int
    """Tiles that were read."""
    tile_px: int
    """Edge of a tile as the model sees it, in pixels."""
    mpp: Number
    """µm a pixel of a tile measures."""
    grid_shape_yx: tuple[int, int]
    """Rows and columns."""
    origin_l0_xy: tuple[Number, Number]
    """Top left corner of tile (0, 0) in level-0 pixels, (0, 0) at the corner of the slide's first pixel."""
    tile_l0_xy: tuple[Number, Number]
    """Size of a tile in level-0 pixels."""
    brown_share: Share = 0.0
    """Of the stained area, the share that is brown as an immunostain is."""
    left_out: tuple[LeftOutTile, ...]
    """Tiles with some tissue that were not read; all other tiles of the grid hold none."""


class TileContribution(_Part):
    """What one tile does to a class, and what it says of it alone."""

    row: int
    col: int
    contribution: Number
    """Probability with all tiles minus that without this one."""
    log_odds_contribution: Number
    """The same in log-odds of the class against all others: it tells tiles apart where the probability is saturated."""
    log_odds_alone: Number
    """Log-odds of the class where this tile is the whole slide."""


class ClassContributions(_Part):
    """The tiles that speak most for a class and most against it; the CSV has the contributions of all."""

    highest: TileContribution | None
    """null where no tile speaks for the class."""
    lowest: TileContribution | None
    """null where none speaks against it."""


class DeletionOfResult(_Part):
    """Probability of the called class as tiles are removed: whether the heatmap names tiles that matter."""

    class_name: str
    fractions: tuple[Share, ...]
    """Share of the tiles that is gone at each step."""
    by_evidence: tuple[Share, ...]
    """The tiles that speak most for the class go first."""
    random_mean: tuple[Share, ...]
    """Mean of random orders."""
    random_low: tuple[Share, ...]
    """Their 5th percentile."""
    random_high: tuple[Share, ...]
    """Their 95th percentile."""
    area_gain: Number
    """Area between the random and the evidence curve, -1 to 1; about 0 or below: don't rely on the heatmap."""
    meaning: str
    """The same in words."""


class WithheldLabel(_Part):
    """What the model says of a slide that is unlike those of training; not to be used."""

    label: str
    """The class that would be called."""
    class_probabilities: dict[str, Share]
    prediction_set: tuple[str, ...] | None
    """Classes that could not be ruled out at `coverage`; null where the model states none."""
    deletion_curve: DeletionOfResult
    """It names that class, and begins with its probability."""
    note: str
    """That it is not to be used, and why."""


class ResultDocument(_Part):
    """The result of one slide.

    Whoever shows `answer` shows `status` beside it: only ``["ok"]`` means that there is nothing to warn of. There is either
    a `label`, which is the answer, or `withheld`: then the answer is ``unlike training``.
    """

    format: Literal["lrmil-prediction"]
    format_version: Literal[3]
    slide: str
    """Name of the slide, or a neutral one by its fingerprint."""
    answer: str
    """The label; ``unlike training`` where the slide is farther from those of training than the model's limit."""
    label: str | None
    """The class that is called: the one whose probability is the largest multiple of its threshold. null where the slide is
    unlike those of training."""
    withheld: WithheldLabel | None
    """What would be said of a slide that is unlike those of training, and is not to be used; null where there is a label."""
    status: Annotated[tuple[Status, ...], Field(min_length=1)]
    """``ok`` alone, or all of these that hold. ``unsure``: several classes remain possible, or none is probable enough.
    ``unlike training``: the slide is farther from those of training than the limit. ``other stain``: it looks
    immunostained, and the model is made for H&E. ``damaged tiles``: some can't be decoded.
    ``demonstration``: the model is made to show the program, not for diagnosis."""
    class_probabilities: dict[str, Share] | None
    """null where there is no label."""
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    """The classes in the model's order."""
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None
    """The model's operating point, by class; null where it states none: the most probable class is called."""
    demonstration: bool
    """Whether the model is made to show the program, not for diagnosis."""
    note: str
    """What the result may be used for."""
    prediction_set: tuple[str, ...] | None
    """Classes that can't be ruled out at `coverage`; null where the model states none, or there is no label."""
    coverage: Share | None
    """Least share of slides whose set holds the true class."""
    ood_score: Number | Literal["nan", "inf", "-inf"] | None
    """Distance of the slide's tiles to those of training; null where the model states none."""
    ood_threshold: Number | None
    """Where the warning ``unlike training`` starts."""
    contributions: dict[str, ClassContributions]
    """By class."""
    attention: Literal["none", "of all", "by class"] = "of all"
    """Whether the model weighs the tiles, for all classes alike or for each class; `attention_score` of the CSV is then of the
    class that is called."""
    exact_tiles: int | None = None
    """How many tiles have exact contributions, where those of the others are estimates; null where all are exact."""
    saturated: bool
    """Whether the probability is so high that it hardly moves when a tile is left out."""
    evidence_notes: tuple[str, ...]
    """What must be known beside contributions and heatmaps, as the window and reports say it; empty where nothing must."""
    deletion_curve: DeletionOfResult | None
    """null where there is no label."""
    bundle: BundleOfResult
    slide_fingerprint: str
    """The same for a renamed copy of the slide."""
    slide_mpp_xy: tuple[Number, Number]
    """µm per level-0 pixel."""
    read_level: int
    """The one level that was read."""
    read_level_mpp: Number
    tiles: TilesOfResult
    damaged_tiles: int = 0
    """Tiles of which a part couldn't be decoded; tiles in which the tissue mask couldn't look for tissue count, too."""
    tiles_csv_sha256: Sha256
    """Hash of the CSV that was written with this document."""
    seconds: Number
    """That the prediction took when it was made."""
    device: str
    version: str
    """Of the program that made the result, which may be older than the one that wrote the file."""

    @property
    def called(self) -> str:
        """The label, or the one that is withheld."""
        return self.withheld.label if self.withheld is not None else self.label or ""

    @property
    def probabilities(self) -> dict[str, float]:
        """Of all classes, withheld or not."""
        held = self.class_probabilities if self.withheld is None else self.withheld.class_probabilities
        return held or {}

    @property
    def curve(self) -> DeletionOfResult | None:
        """Of the class that is called, withheld or not; a sound document has one."""
        return self.deletion_curve if self.withheld is None else self.withheld.deletion_curve


def result_schema() -> str:
    """The text of docs/result.schema.json."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | ResultDocument.model_json_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def tile_columns(class_names: Sequence[str], *, by_class: bool = False, estimated: bool = False) -> list[str]:
    """Columns of the tile CSV: place, values, and for each class contributions and what the tile says alone.

    Then, of a model with an attention a class, each one's; and where some contributions are estimates, which are exact.
    """
    return [
        *_PLACE_COLUMNS,
        *_VALUE_COLUMNS,
        *(spreadsheet_safe(f"{kind}_{name}") for kind in _CLASS_COLUMNS for name in class_names),
        *(spreadsheet_safe(f"attention_score_{name}") for name in class_names if by_class),
        *(("exact",) if estimated else ()),
    ]


def tile_table(prediction: SlidePrediction) -> str:
    """The tile CSV: a row a tile that was read, in the order of the grid."""
    tiles = prediction.tiles
    places = np.column_stack([tiles.corners_l0_xy, np.tile(tiles.grid.tile_l0_xy, (len(tiles), 1))])
    none = np.full(len(tiles), np.nan)
    by_class, exact = prediction.class_attention, prediction.exact_tiles
    values = np.column_stack(
        [
            tiles.tissue_fraction[tiles.rows, tiles.cols].astype(np.float64),
            none if prediction.attention_scores is None else prediction.attention_scores,
            none if prediction.attention_logits is None else prediction.attention_logits,
            prediction.class_contributions,
            prediction.log_odds_contributions,
            prediction.log_odds_alone,
            *(() if by_class is None else (by_class.T,)),
            *(() if exact is None else (exact.astype(np.float64),)),
        ]
    )
    if prediction.attention_scores is None:  # cells that say nothing are empty
        of_tiles = [[cell if cell == cell else "" for cell in row] for row in values.tolist()]
    else:
        of_tiles = values.tolist()
    rows = zip(tiles.rows.tolist(), tiles.cols.tolist(), places.tolist(), of_tiles, strict=True)
    # The csv module writes a float as repr does: the shortest text that is read as the same number.
    return csv_text(
        tile_columns(prediction.class_names, by_class=by_class is not None, estimated=exact is not None),
        ([row, col, *place, *value] for row, col, place, value in rows),
    )


def result_document(prediction: SlidePrediction) -> ResultDocument:
    """The JSON document of a prediction.

    Raises
    ------
    ExportError
        Where the prediction holds numbers that aren't finite.
    """
    tiles, curve, score = prediction.tiles, prediction.deletion, prediction.ood_score
    probabilities = dict(zip(prediction.class_names, prediction.class_probabilities.tolist(), strict=True))
    withheld = prediction.label is None
    left_out = tiles.tissue_fraction.copy()
    left_out[tiles.rows, tiles.cols] = 0
    ood_score = score if score is None or np.isfinite(score) else str(float(score))
    curve_of_class = {
        "class_name": prediction.class_names[curve.class_index],
        "fractions": tuple(curve.fractions.tolist()),
        "by_evidence": tuple(curve.by_evidence.tolist()),
        "random_mean": tuple(curve.random_mean.tolist()),
        "random_low": tuple(curve.random_low.tolist()),
        "random_high": tuple(curve.random_high.tolist()),
        "area_gain": curve.area_gain,
        "meaning": curve_text(curve),
    }
    try:
        return ResultDocument.model_validate(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "slide": prediction.slide_name,
                "answer": prediction.answer,
                "label": prediction.label,
                "withheld": {
                    "label": prediction.called,
                    "class_probabilities": probabilities,
                    "prediction_set": prediction.prediction_set,
                    "deletion_curve": curve_of_class,
                    "note": NOT_TO_BE_USED,
                }
                if withheld
                else None,
                "status": status_of(prediction),
                "class_probabilities": None if withheld else probabilities,
                "class_names": prediction.class_names,
                "thresholds": None
                if prediction.thresholds is None
                else dict(zip(prediction.class_names, prediction.thresholds, strict=True)),
                "demonstration": prediction.demonstration,
                "note": use_note(demonstration=prediction.demonstration),
                "prediction_set": None if withheld else prediction.prediction_set,
                "coverage": prediction.coverage,
                "ood_score": ood_score,
                "ood_threshold": prediction.ood_threshold,
                "contributions": {
                    name: {
                        "highest": _contribution(prediction, speaking_tiles(prediction, name), number),
                        "lowest": _contribution(
                            prediction, speaking_tiles(prediction, name, against=True), number
                        ),
                    }
                    for number, name in enumerate(prediction.class_names)
                },
                "attention": "none"
                if prediction.attention_scores is None
                else "of all"
                if prediction.class_attention is None
                else "by class",
                "exact_tiles": None if prediction.exact_tiles is None else int(prediction.exact_tiles.sum()),
                "saturated": prediction.saturated,
                "evidence_notes": evidence_notes(prediction),
                "deletion_curve": None if withheld else curve_of_class,
                "bundle": {
                    "name": prediction.bundle_name,
                    "weights_sha256": prediction.weights_sha256,
                    "sha256": prediction.bundle_sha256,
                },
                "slide_fingerprint": prediction.slide_fingerprint,
                "slide_mpp_xy": prediction.mpp_xy,
                "read_level": prediction.level,
                "read_level_mpp": prediction.level_mpp,
                "tiles": {
                    "count": len(tiles),
                    "tile_px": tiles.grid.spec.tile_px,
                    "mpp": tiles.grid.spec.mpp,
                    "grid_shape_yx": tiles.grid.shape_yx,
                    "origin_l0_xy": tiles.grid.origin_l0_xy,
                    "tile_l0_xy": tiles.grid.tile_l0_xy,
                    "brown_share": tiles.brown_share,
                    "left_out": tuple(
                        {"row": row, "col": col, "tissue_fraction": float(left_out[row, col])}
                        for row, col in np.argwhere(left_out).tolist()
                    ),
                },
                "damaged_tiles": prediction.damaged_tiles,
                "tiles_csv_sha256": _sha256(tile_table(prediction)),
                "seconds": prediction.seconds,
                "device": prediction.device,
                "version": prediction.version,
            }
        )
    except ValidationError as error:
        raise ExportError(
            f"the result of {prediction.slide_name} can't be written: {reason_of(error)}. Check the model, and "
            "classify again."
        ) from error


def write_prediction(
    prediction: SlidePrediction, out_dir: str | Path, *, stem: str | None = None
) -> tuple[Path, Path]:
    """Write ``<stem>.json`` and ``<stem>.csv``, each whole or not at all; one that holds the same stays as it is.

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
        The JSON, a `ResultDocument`, and the CSV, `tile_table`.

    Raises
    ------
    ExportError
    OSError
    """
    out = Path(out_dir)
    stem = prediction.slide_name if stem is None else stem
    document = _json_text(result_document(prediction).model_dump(mode="json"))
    json_path, csv_path = out / f"{stem}.json", out / f"{stem}.csv"
    out.mkdir(parents=True, exist_ok=True)
    table = tile_table(prediction)
    # The JSON comes last, an older one goes first: where it exists, the prediction is complete. What is there already
    # stays untouched, so that a run that goes on has at no moment less than before.
    if not _holds(csv_path, table):
        json_path.unlink(missing_ok=True)
        write_text(csv_path, table)
    if not _holds(json_path, document):
        write_text(json_path, document)
    return json_path, csv_path


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def read_document(path: str | Path) -> ResultDocument:
    """The JSON alone: all but the values of the tiles.

    Raises
    ------
    ResultFileError
        Where it isn't such a file, is damaged, or is of a version that this program can't read.
    """
    path = Path(path)
    cure = f"Export it again, or classify the slide again with: lrmil predict ... --out {path.parent}"
    text = _read_text(path)
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise ResultFileError(f"{path.name} is damaged: it is not JSON ({error}). {cure}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        older = isinstance(raw, dict) and "format" not in raw and {"label", "read_level"} <= raw.keys()
        what = "was written before results could be read back" if older else "is not the result of a slide"
        raise ResultFileError(f"{path.name} {what}. {cure}")
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ResultFileError(
            f"{path.name} has format version {version}; this program reads up to {FORMAT_VERSION}. Update napari-lrmil."
        )
    if version == 1:
        raise ResultFileError(
            f"{path.name} was written before log-odds were part of results. Export it again, or classify the slide again with: "
            f"lrmil predict ... --out {path.parent} --overwrite"
        )
    try:
        document = ResultDocument.model_validate_json(json.dumps(_as_now(raw)))
    except ValidationError as error:
        raise ResultFileError(f"{path.name} is damaged: {reason_of(error)}. {cure}") from error
    wrong = _contradictions(document)
    if wrong:
        raise ResultFileError(f"{path.name} is damaged: {wrong}. {cure}")
    return document


def read_prediction(path: str | Path, tiles_csv: str | Path | None = None) -> SlidePrediction:
    """The prediction that `write_prediction` was given, equal in every field.

    Parameters
    ----------
    path : path-like
        The JSON.
    tiles_csv : path-like, optional
        The CSV with the tiles; default: beside the JSON under the same name.

    Raises
    ------
    ResultFileError
        Where a file is missing or damaged, isn't a result, or the two don't belong together.
    """
    from napari_lrmil.predict import SlidePrediction

    path = Path(path)
    document = read_document(path)
    csv_path = path.with_suffix(".csv") if tiles_csv is None else Path(tiles_csv)
    values = _read_tiles(csv_path, document, path.name)
    grid = TileGrid(
        TileSpec(document.tiles.tile_px, document.tiles.mpp),
        document.tiles.origin_l0_xy,
        document.tiles.tile_l0_xy,
        document.tiles.grid_shape_yx,
    )
    rows, cols = (values[:, number].astype(np.int64) for number in (0, 1))
    tissue, scores, logits, *of_classes = values[:, len(_PLACE_COLUMNS) :].T.copy()
    attended = document.attention != "none"
    n_classes = len(document.class_names)
    contributions, in_log_odds, alone = (
        np.column_stack(of_classes[start : start + n_classes]) for start in range(0, 3 * n_classes, n_classes)
    )
    by_class, exact = of_classes[3 * n_classes :], None
    if document.exact_tiles is not None:
        exact = by_class.pop().astype(bool)
    tissue_fraction = np.zeros(grid.shape_yx, np.float32)
    tissue_fraction[rows, cols] = tissue
    for tile in document.tiles.left_out:
        tissue_fraction[tile.row, tile.col] = tile.tissue_fraction
    curve = document.curve
    assert curve is not None  # see `_contradictions`
    prediction = SlidePrediction(
        slide_name=document.slide,
        class_names=document.class_names,
        class_probabilities=np.array([document.probabilities[name] for name in document.class_names]),
        attention_scores=scores if attended else None,
        attention_logits=logits if attended else None,
        class_attention=np.stack(by_class) if by_class else None,
        exact_tiles=exact,
        class_contributions=contributions,
        log_odds_contributions=in_log_odds,
        log_odds_alone=alone,
        deletion=DeletionCurve(
            np.array(curve.fractions),
            np.array(curve.by_evidence),
            np.array(curve.random_mean),
            np.array(curve.random_low),
            np.array(curve.random_high),
            document.class_names.index(curve.class_name),
        ),
        tiles=TileSet(grid, document.read_level, rows, cols, tissue_fraction, document.tiles.brown_share),
        mpp_xy=document.slide_mpp_xy,
        level=document.read_level,
        level_mpp=document.read_level_mpp,
        seconds=document.seconds,
        bundle_name=document.bundle.name,
        bundle_sha256=document.bundle.sha256 or document.bundle.weights_sha256,
        weights_sha256=document.bundle.weights_sha256,
        demonstration=document.demonstration,
        device=document.device,
        slide_fingerprint=document.slide_fingerprint,
        version=document.version,
        prediction_set=document.prediction_set
        if document.withheld is None
        else document.withheld.prediction_set,
        coverage=document.coverage,
        ood_score=None if document.ood_score is None else float(document.ood_score),
        ood_threshold=document.ood_threshold,
        damaged_tiles=document.damaged_tiles,
        thresholds=None
        if document.thresholds is None
        else tuple(document.thresholds[name] for name in document.class_names),
    )
    if (prediction.answer, prediction.called, status_of(prediction)) != (
        document.answer,
        document.called,
        document.status,
    ):
        raise ResultFileError(
            f"{path.name} is damaged: answer and status don't follow from its numbers. Export it again."
        )
    return prediction


_OF_LABEL = ("label", "class_probabilities", "prediction_set", "deletion_curve")
"""Fields that a slide unlike those of training has in `withheld` alone."""


def _as_now(raw: dict[str, object]) -> dict[str, object]:
    """A document as it is written now: version 2 had a label whatever the slide was like, the first of version 3 left the
    curve of a label that was withheld beside it."""
    withheld = raw.get("withheld")
    if raw.get("format_version") == 2:
        status = raw.get("status")
        unlike = isinstance(status, list) and Status.UNLIKE_TRAINING in status
        now = raw | {"format_version": FORMAT_VERSION, "answer": raw.get("label"), "withheld": None}
        if unlike:
            held = {name: raw[name] for name in _OF_LABEL if name in raw} | {"note": NOT_TO_BE_USED}
            now |= {"answer": Status.UNLIKE_TRAINING, "withheld": held} | dict.fromkeys(_OF_LABEL)
        return now
    if isinstance(withheld, dict) and "deletion_curve" not in withheld and "deletion_curve" in raw:
        return raw | {
            "withheld": withheld | {"deletion_curve": raw["deletion_curve"]},
            "deletion_curve": None,
        }
    return raw


def _read_tiles(path: Path, document: ResultDocument, json_name: str) -> NDArray[np.float64]:
    """(N, columns) of a tile CSV, checked against its document."""
    cure = f"Give the CSV that was written with {json_name}, or export both again."
    text = _read_text(path)
    columns = tile_columns(
        document.class_names,
        by_class=document.attention == "by class",
        estimated=document.exact_tiles is not None,
    )
    try:
        header, *rows = csv.reader(io.StringIO(text)) if text else [[]]
        if header != columns:
            raise ResultFileError(f"{path.name} is not the table of these tiles: other columns. {cure}")
        if _sha256(text) != document.tiles_csv_sha256:
            raise ResultFileError(f"{path.name} belongs to another result, or was changed. {cure}")
        empty = ("", "") if document.attention == "none" else ()
        start = len(_PLACE_COLUMNS) + 1
        if any(tuple(row[start : start + len(empty)]) != empty for row in rows):
            raise ValueError("it has an attention, and the JSON says that there is none")
        values = np.array(
            [
                [
                    float("nan") if empty and 0 <= place - start < 2 else float(cell)
                    for place, cell in enumerate(row)
                ]
                for row in rows
            ]
        )
    except (csv.Error, ValueError) as error:
        raise ResultFileError(f"{path.name} is damaged: {error}. {cure}") from error
    if values.shape != (document.tiles.count, len(columns)):
        raise ResultFileError(f"{path.name} is damaged: it hasn't {document.tiles.count} tiles. {cure}")
    places = values[:, :2]
    if (places < 0).any() or (places >= document.tiles.grid_shape_yx).any():
        raise ResultFileError(f"{path.name} is damaged: a tile lies outside of the grid. {cure}")
    return values


def _contradictions(document: ResultDocument) -> str:
    """What of a document can't be true, in words; empty for one that is sound."""
    names, curve, withheld = document.class_names, document.curve, document.withheld
    unlike = Status.UNLIKE_TRAINING in document.status
    if unlike != (withheld is not None) or unlike != (document.label is None):
        return "it has a label and withholds one, or neither"
    given = (document.class_probabilities, document.prediction_set, document.deletion_curve)
    if unlike and given != (None, None, None):
        return "it withholds a label and gives its probability"
    if curve is None:
        return "it has a label and no deletion_curve"
    left = document.prediction_set if withheld is None else withheld.prediction_set
    n_rows, n_cols = document.tiles.grid_shape_yx
    steps = (curve.fractions, curve.by_evidence, curve.random_mean, curve.random_low, curve.random_high)
    if len(set(names)) != len(names) or set(document.probabilities) != set(names):
        return "class_names and class_probabilities name different classes"
    if document.thresholds is not None and set(document.thresholds) != set(names):
        return "class_names and thresholds name different classes"
    if set(document.contributions) != set(names):
        return "class_names and contributions name different classes"
    if not {document.called, curve.class_name, *(left or ())} <= set(names):
        return "it names a class that the model doesn't have"
    if document.answer != answer_of(document.called, out_of_distribution=unlike):
        return "answer doesn't follow from label and status"
    if len({len(step) for step in steps}) != 1:
        return "the parts of its deletion_curve differ in length"
    if n_rows < 1 or n_cols < 1 or n_rows * n_cols > _MOST_PLACES:
        return f"no slide has a grid of {n_rows} x {n_cols} tiles"
    if not all(0 <= tile.row < n_rows and 0 <= tile.col < n_cols for tile in document.tiles.left_out):
        return "a tile lies outside of the grid"
    tiles = document.tiles
    sizes = (tiles.tile_px, tiles.mpp, *tiles.tile_l0_xy, *document.slide_mpp_xy, document.read_level_mpp)
    if min(sizes) <= 0 or min(document.read_level, document.damaged_tiles, document.seconds) < 0:
        return "a size, level or count is negative or 0"
    if abs(sum(document.probabilities.values()) - 1) > _SAME:
        return "class_probabilities don't sum to 1"
    if not curve.fractions or (
        curve.fractions[0] == 0
        and abs(curve.by_evidence[0] - document.probabilities[curve.class_name]) > _SAME_IN_CURVE
    ):
        return "its deletion_curve doesn't begin with the probability of the class"
    return ""


def _contribution(
    prediction: SlidePrediction, tiles: list[int], class_number: int
) -> dict[str, int | float] | None:
    """The first of the tiles, None where there is none."""
    if not tiles:
        return None
    tile = tiles[0]
    return {
        "row": int(prediction.tiles.rows[tile]),
        "col": int(prediction.tiles.cols[tile]),
        "contribution": float(prediction.class_contributions[tile, class_number]),
        "log_odds_contribution": float(prediction.log_odds_contributions[tile, class_number]),
        "log_odds_alone": float(prediction.log_odds_alone[tile, class_number]),
    }


def _json_text(value: Mapping[str, object]) -> str:
    """JSON for people too: a line a field; lists of numbers, and small objects in lists, stay on one line."""

    def text(value: object, indent: str) -> str:
        inner = indent + "  "
        if isinstance(value, dict) and value:
            lines = [f"{inner}{json.dumps(key)}: {text(part, inner)}" for key, part in value.items()]
            return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(f"{inner}{json.dumps(part)}" for part in value) + f"\n{indent}]"
        return json.dumps(value, allow_nan=False)

    return text(value, "") + "\n"


def _read_text(path: Path) -> str:
    try:
        return read_file(path, most_bytes=_MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise ResultFileError(f"{path} can't be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ResultFileError(f"{path.name} is damaged, or no result: it is not UTF-8 text.") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""What a slide's report says, in plain values: HTML and PDF only set it."""

from __future__ import annotations

import io
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from napari_lrmil import __version__
from napari_lrmil.export.painting import Scale, font_path, grid_values, overlay, scale_of, thumbnail
from napari_lrmil.export.tables import shown_name
from napari_lrmil.heatmap import main_channel, speaking_tiles
from napari_lrmil.wording import (
    ATTENTION_NOTE,
    answer_text,
    curve_text,
    distance_text,
    evidence_notes,
    operating_text,
    set_text,
    slide_warnings,
    time_taken_text,
    use_note,
    withheld_text,
)

if TYPE_CHECKING:  # both load torch
    from napari_lrmil.evidence import DeletionCurve
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide

FINGERPRINT_NOTE = (
    "SHA-256 of the sizes of the slide's files, the beginning and end of each and blocks between; "
    "not of every byte, and not of its name."
)

_THUMBNAIL_PX = 900
_TILE_MAX_PX = 768


class ReportProgress(NamedTuple):
    """How far a report is."""

    done: int
    total: int
    doing: str


class Verdict(NamedTuple):
    """What the reviewer said of a slide."""

    decision: Literal["agree", "disagree", "unsure"] | None = None
    note: str = ""
    when: datetime | str | None = None
    answer: str | None = None
    """That the verdict was given on; empty where none was shown, None where that isn't known."""


class ReportTile(NamedTuple):
    """One tile as a picture."""

    jpeg: bytes
    mpp: float
    attention: float | None
    """Times the average tile; None where the model has none."""
    contribution: float
    log_odds: float
    log_odds_alone: float


@dataclass(frozen=True)
class ReportContent:
    """All that a report shows; pictures are encoded already.

    Of a slide unlike those of training `withheld_line` is what the model would say of it, which is not to be used; so are
    then `classes`, `label_trust`, and all evidence, which is for the class that is `called`.
    """

    name: str
    called: str
    result_line: str
    withheld_line: str
    warnings: tuple[str, ...]
    note: str
    classes: tuple[tuple[str, float], ...]
    label_trust: tuple[str, ...]
    """What is said quietly of the label."""
    trust: tuple[str, ...]
    """The same of the slide."""
    plain_jpeg: bytes
    overlay_jpeg: bytes
    picture_px: tuple[int, int]
    um_per_px: float
    scale: Scale
    tiles: tuple[ReportTile, ...]
    evidence_notes: tuple[str, ...]
    tile_um: float
    read_mpp: float
    has_attention: bool
    all_exact: bool
    """Whether each tile was left out; else some contributions are estimates."""
    deletion: DeletionCurve
    curve_line: str
    verdict: Verdict
    verdict_text: str
    model_facts: tuple[tuple[str, str], ...]
    slide_facts: tuple[tuple[str, str], ...]


def gather(
    prediction: SlidePrediction,
    slide: Slide,
    info: BundleInfo,
    *,
    verdict: Verdict | None,
    n_tiles: int,
    show_identifiers: bool,
    written: datetime,
    total: int,
) -> Generator[ReportProgress, None, ReportContent]:
    """Read the pictures and put the text together, step by step."""
    yield ReportProgress(0, total, "reading the overview")
    plain = thumbnail(slide, max_px=_THUMBNAIL_PX)
    channel = main_channel(prediction)
    scale = scale_of(prediction, channel)
    left, top, width, height = (float(value) for value in slide.bounds_l0_xywh)
    marked = overlay(
        plain,
        grid_values(prediction, channel),
        prediction.tiles.grid,
        scale,
        area_l0_xywh=(left, top, width, height),
    ).convert("RGB")
    predicted = prediction.called_index
    contributions = prediction.class_contributions[:, predicted]
    order = speaking_tiles(prediction, prediction.called)[:n_tiles]
    _mark(marked, prediction, order, (left, top), plain.width / width)
    tiles = []
    for number, index in enumerate(order):
        yield ReportProgress(1 + number, total, f"reading tile {number + 1} of {len(order)}")
        jpeg, mpp = _tile_jpeg(prediction, slide, index)
        scores = prediction.attention_scores
        attention = None if scores is None else float(scores[index] * len(prediction.tiles))
        in_log_odds, alone = (
            float(values[index, predicted])
            for values in (prediction.log_odds_contributions, prediction.log_odds_alone)
        )
        tiles.append(ReportTile(jpeg, mpp, attention, float(contributions[index]), in_log_odds, alone))
    warnings, label_trust, trust = _warnings_and_trust(prediction)
    verdict = verdict or Verdict()
    return ReportContent(
        name=shown_name(prediction, show_identifiers=show_identifiers),
        called=prediction.called,
        # As in the window: who reads the first line alone must not take what is unsure for a label.
        result_line=("Unsure: " if prediction.unsure and prediction.label is not None else "")
        + answer_text(prediction, decimals=1, between=", "),
        withheld_line=withheld_text(prediction, decimals=1),
        warnings=warnings,
        note=use_note(demonstration=prediction.demonstration),
        classes=tuple(zip(prediction.class_names, prediction.class_probabilities.tolist(), strict=True)),
        label_trust=label_trust,
        trust=trust,
        plain_jpeg=_jpeg(plain),
        overlay_jpeg=_jpeg(marked),
        picture_px=plain.size,
        um_per_px=width * prediction.mpp_xy[0] / plain.width,
        scale=scale,
        tiles=tuple(tiles),
        evidence_notes=evidence_notes(prediction),
        tile_um=prediction.tiles.grid.spec.tile_um,
        read_mpp=prediction.tiles.grid.spec.mpp,
        has_attention=prediction.attention_scores is not None,
        all_exact=prediction.exact_tiles is None,
        deletion=prediction.deletion,
        curve_line=" ".join(
            (
                curve_text(prediction.deletion),
                *((ATTENTION_NOTE,) if prediction.attention_scores is not None else ()),
            )
        ),
        verdict=verdict,
        verdict_text=_verdict_text(verdict, prediction.answer),
        model_facts=_model_facts(prediction, info),
        slide_facts=_slide_facts(prediction, slide, written),
    )


def _mark(
    picture: Image.Image,
    prediction: SlidePrediction,
    order: list[int],
    corner_l0_xy: tuple[float, float],
    px_per_l0: float,
) -> None:
    """Outline the tiles of the report and number them as there."""
    tiles = prediction.tiles
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype(font_path(bold=True), 26)
    for number, index in enumerate(order, start=1):
        row, col = int(tiles.rows[index]), int(tiles.cols[index])
        ends = (tiles.grid.corner_l0_xy(row, col), tiles.grid.corner_l0_xy(row + 1, col + 1))
        box = [
            (value - corner) * px_per_l0
            for end in ends
            for value, corner in zip(end, corner_l0_xy, strict=True)
        ]
        draw.rectangle(box, outline="black", width=3)
        middle = ((box[0] + min(box[2], picture.width)) / 2, (box[1] + min(box[3], picture.height)) / 2)
        draw.text(
            middle, str(number), fill="white", stroke_fill="black", stroke_width=3, font=font, anchor="mm"
        )


def _tile_jpeg(prediction: SlidePrediction, slide: Slide, index: int) -> tuple[bytes, float]:
    """A tile finer than the model read it, where the slide and the page's weight allow it."""
    from napari_lrmil.slide.picture import close_up

    tiles = prediction.tiles
    pixels = close_up(slide, tiles.grid, int(tiles.rows[index]), int(tiles.cols[index]), max_px=_TILE_MAX_PX)
    return _jpeg(Image.fromarray(pixels)), tiles.grid.spec.tile_um / len(pixels)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def _warnings_and_trust(
    prediction: SlidePrediction,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What is set off beside the answer, and what is said quietly of label and slide; in the words of the window."""
    warnings = list(slide_warnings(prediction))
    of_label: list[str] = []
    labelled = prediction.label is not None
    (warnings if prediction.unsure and labelled else of_label).append(set_text(prediction))
    of_label += filter(None, [operating_text(prediction)])
    return tuple(warnings), tuple(of_label), (distance_text(prediction),) if labelled else ()


def _verdict_text(verdict: Verdict, answer: str) -> str:
    """What the reviewer said, and that it was of another answer than this report's, where it was."""
    if verdict.decision is None and not verdict.note:
        return "Not reviewed."
    said = {
        "agree": "Agrees with the model.",
        "disagree": "Disagrees with the model.",
        "unsure": "The reviewer is unsure.",
        None: "No verdict.",
    }
    if verdict.answer not in (None, answer):
        then = f"when the answer was {verdict.answer}" if verdict.answer else "when there was no label"
        said |= {
            "agree": f"Agreed, {then}.",
            "disagree": f"Disagreed, {then}.",
            "unsure": f"The reviewer was unsure, {then}.",
        }
    when = verdict.when.isoformat(" ", "minutes") if isinstance(verdict.when, datetime) else verdict.when
    return said[verdict.decision] + (f" ({when})" if when else "")


def _model_facts(prediction: SlidePrediction, info: BundleInfo) -> tuple[tuple[str, str], ...]:
    tiles = info.tiles
    # What may be long comes last: where a page is full, that is cut.
    return (
        ("Model", info.name),
        ("Use", use_note(demonstration=info.demonstration)),
        ("Licence", info.licence),
        ("Reads", f"tiles of {tiles.tile_px} px at {tiles.mpp:g} µm/px, ≥ {tiles.min_tissue:.0%} tissue"),
        ("Made", info.provenance.created[:10]),
        ("Bundle", f"SHA-256 of weights and settings {prediction.bundle_sha256}"),
        ("Training data", info.provenance.training_data),
        ("About", info.description),
    )


def _slide_facts(prediction: SlidePrediction, slide: Slide, written: datetime) -> tuple[tuple[str, str], ...]:
    mpp_x, mpp_y = prediction.mpp_xy
    _, _, width, height = slide.bounds_l0_xywh
    pixel = f"{mpp_x:.4g}" if mpp_x == mpp_y else f"{mpp_x:.4g} × {mpp_y:.4g}"
    return (
        ("Scanned area", f"{width * mpp_x / 1000:.2f} × {height * mpp_y / 1000:.2f} mm at {pixel} µm/px"),
        (
            "Tiles read",
            f"{len(prediction.tiles)} from level {prediction.level} ({prediction.level_mpp:.3g} µm/px)",
        ),
        ("Time taken", f"{time_taken_text(prediction.seconds)} on {prediction.device}"),
        ("Fingerprint", f"{prediction.slide_fingerprint}. {FINGERPRINT_NOTE}"),
        ("Classified by", f"napari-lrmil {prediction.version}"),
        ("Report", f"napari-lrmil {__version__}, {written.isoformat(' ', 'minutes')}"),
    )

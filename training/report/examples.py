"""Test slides with their heatmaps, made as any user makes them: from the fold's bundle and the slide file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from napari_lrmil.errors import BundleError, EncoderError, LRMILError, SlideError
from napari_lrmil.export.painting import (
    Area,
    Scale,
    attention_scale,
    contribution_scale,
    grid_values,
    nice_length,
    overlay,
    thumbnail,
    values_of,
)
from napari_lrmil.heatmap import main_channel
from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide, TileGrid, TileSpec
from training.data.predictions import Predictions
from training.data.table import SlideRow
from training.methods import OURS
from training.progress import Reporter
from training.report.data import FoldData, RunData

LONG_EDGE_PX = 560
MANY_CLASSES = 4


class Choice(NamedTuple):
    """A slide chosen by rule; `number` is its place among all test slides, from 1."""

    fold: int
    slide_id: str
    number: int
    label: int
    predicted: int
    probabilities: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the label was predicted."""
        return self.label == self.predicted


@dataclass(frozen=True)
class Example:
    """A chosen slide as it is shown; `problem` says why there is no picture."""

    choice: Choice
    thumbnail: str = ""
    overlay: str = ""
    aspect: float = 1.0
    bar_um: float = 0.0
    bar_share: float = 0.0
    highest: float | None = 0.0
    n_tiles: int = 0
    problem: str = ""
    detail: str = ""
    remark: str = ""


class _Classified(NamedTuple):
    """A slide's picture and prediction, kept until the scale that all slides share is known."""

    picture: Image.Image
    area_l0_xywh: Area
    prediction: SlidePrediction


def choose(data: RunData, n_examples: int | None) -> list[Choice]:
    """The slides to show: by class the most confidently right ones, then the most confidently wrong ones, in turns.

    Parameters
    ----------
    data : RunData
    n_examples : int, optional
        At most; default two a class, of up to four classes.
    """
    queues: dict[tuple[bool, int], list[Choice]] = {
        (right, label): [] for right in (True, False) for label in range(len(data.class_names))
    }
    number = 0
    for fold in data.folds:
        one: Predictions = fold.predictions[OURS.key]
        for slide_id, label, row, predicted in zip(
            one.slide_ids, one.labels.tolist(), one.probabilities, one.called.tolist(), strict=True
        ):
            number += 1
            choice = Choice(fold.fold, slide_id, number, label, predicted, tuple(row.tolist()))
            queues[choice.right, label].append(choice)
    for queue in queues.values():
        queue.sort(key=lambda choice: (-choice.probabilities[choice.predicted], choice.number))
    wanted = 2 * min(len(data.class_names), MANY_CLASSES) if n_examples is None else n_examples
    deepest = max(len(queue) for queue in queues.values())
    order = [queue[depth] for depth in range(deepest) for queue in queues.values() if depth < len(queue)]
    # In turns, but shown together: right ones of a class, then wrong ones.
    return sorted(order[:wanted], key=lambda choice: (not choice.right, choice.label))


def make_examples(
    data: RunData, choices: list[Choice], *, device: torch.device, reporter: Reporter | None = None
) -> tuple[list[Example], Scale]:
    """Read and classify the chosen slides.

    Parameters
    ----------
    data : RunData
    choices : list of Choice
    device : torch.device
    reporter : Reporter, optional
        For a bar.

    Returns
    -------
    (list of Example, Scale)
        And the scale of attention that all of them share.
    """
    folds = {fold.fold: fold for fold in data.folds}
    found: list[tuple[Choice, _Classified | LRMILError]] = []
    steps = choices if reporter is None else reporter.track(choices, "Report: examples", len(choices))
    for choice in steps:
        found.append((choice, _try(data, folds[choice.fold], choice, device)))
    shown = [one.prediction for _, one in found if isinstance(one, _Classified)]
    values = [values_of(one, main_channel(one)) for one in shown]
    together = np.concatenate(values or [np.ones(1)])
    attended = all(one.attention_scores is not None for one in shown)
    scale = attention_scale(together) if attended else contribution_scale(together)
    return [_shown(choice, one, scale) for choice, one in found], scale


def colour_bar(scale: Scale) -> str:
    """The scale as a picture: what a tile looks like over white, from the lowest value to the highest."""
    n_px = 256
    values = np.linspace(scale.low, scale.high, n_px, dtype=np.float32)[None]
    grid = TileGrid(TileSpec(1, 1.0), (0.0, 0.0), (1.0, 12.0), values.shape)
    white = Image.new("RGB", (n_px, 12), "white")
    painted = overlay(white, values, grid, scale, area_l0_xywh=(0.0, 0.0, float(n_px), 12.0))
    return _data_uri(painted, "PNG")


def _try(data: RunData, fold: FoldData, choice: Choice, device: torch.device) -> _Classified | LRMILError:
    try:
        row = data.rows.get(choice.slide_id)
        if row is None:
            raise SlideError("the slide table doesn't tell where the slide is")
        bundle = load_bundle(fold.bundle, device=device)
        with _opened(row, data, icc=bundle.info.tiles.apply_icc) as slide:
            return _classify(slide, bundle, device)
    except LRMILError as error:
        return error


@contextmanager
def _opened(row: SlideRow, data: RunData, *, icc: bool) -> Iterator[Slide]:
    """The slide with the mpp that the run gave it: of the table, of the file, of the config, in that order."""
    slide = Slide(row.path, mpp=row.mpp, icc=icc)
    if not slide.has_mpp:
        slide.close()
        slide = Slide(row.path, mpp=data.config.get("data", {}).get("mpp"), icc=icc)
    with slide:
        yield slide


def _classify(slide: Slide, bundle: ModelBundle, device: torch.device) -> _Classified:
    prediction = run_to_end(predict_slide(slide, bundle, device=device))
    left, top, width, height = (float(value) for value in slide.bounds_l0_xywh)
    return _Classified(thumbnail(slide, max_px=LONG_EDGE_PX), (left, top, width, height), prediction)


def _shown(choice: Choice, one: _Classified | LRMILError, scale: Scale) -> Example:
    if isinstance(one, LRMILError):
        missing = "bundle" if isinstance(one, BundleError | EncoderError) else "slide file"
        return Example(
            choice, problem=f"No picture: the {missing} is missing or can't be read.", detail=str(one)
        )
    prediction = one.prediction
    now = prediction.class_probabilities[choice.predicted]
    before = choice.probabilities[choice.predicted]
    remark = ""
    if abs(now - before) > 0.05:
        remark = f"The bundle now gives {now:.2f} where the run gave {before:.2f}: slide or bundle have changed since."
    width_um = one.area_l0_xywh[2] * prediction.mpp_xy[0]
    bar_um = nice_length(width_um / 4)
    values = grid_values(prediction, main_channel(prediction))
    heat = overlay(one.picture, values, prediction.tiles.grid, scale, area_l0_xywh=one.area_l0_xywh)
    return Example(
        choice,
        thumbnail=_data_uri(one.picture, "JPEG"),
        overlay=_data_uri(heat.convert("RGB"), "JPEG"),
        aspect=one.picture.width / one.picture.height,
        bar_um=bar_um,
        bar_share=bar_um / width_um,
        highest=None if prediction.attention_scores is None else float(np.nanmax(values)),
        n_tiles=len(prediction.tiles),
        remark=remark,
    )


def _data_uri(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    options: dict[str, int] = {"quality": 88, "subsampling": 0} if kind == "JPEG" else {"optimize": 1}
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"

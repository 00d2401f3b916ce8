"""Test slides with their heatmaps, made as any user makes them: from the fold's bundle and the slide file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.errors import LRMILError, SlideError
from napari_lrmil.heatmap import Heatmap, attention_heatmap, heat_opacity
from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.slide.picture import overview
from training.data.table import SlideRow
from training.progress import Reporter
from training.report.data import OURS, FoldData, Predictions, RunData

LONG_EDGE_PX = 560
LOW, LEAST_TOP = 1.0, 4.0
"""The scale that the viewer takes: from a tile that counts as much as any other up to 4 times that, or more."""
OPACITY = 0.7
MANY_CLASSES = 4

Pixels = NDArray[np.uint8]


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
    highest: float = 0.0
    n_tiles: int = 0
    problem: str = ""
    detail: str = ""
    remark: str = ""


class _Made(NamedTuple):
    thumbnail: Pixels
    width_um: float
    heat: NDArray[np.float32]
    values: NDArray[np.float32]
    probabilities: NDArray[np.float64]


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
        one: Predictions = fold.predictions[OURS]
        for slide_id, label, row in zip(one.slide_ids, one.labels.tolist(), one.probabilities, strict=True):
            number += 1
            predicted = int(row.argmax())
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
) -> tuple[list[Example], float]:
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
    (list of Example, float)
        And the top of the colour scale that all of them share, in times uniform attention.
    """
    folds = {fold.fold: fold for fold in data.folds}
    found: list[tuple[Choice, _Made | LRMILError]] = []
    steps = choices if reporter is None else reporter.track(choices, "Report: examples", len(choices))
    for choice in steps:
        found.append((choice, _try(data, folds[choice.fold], choice, device)))
    values = [made.values for _, made in found if isinstance(made, _Made)]
    top = max(LEAST_TOP, float(np.percentile(np.concatenate(values), 99))) if values else LEAST_TOP
    return [_shown(choice, made, top) for choice, made in found], top


def colour_bar() -> str:
    """The scale as a picture: what a tile looks like over white, from the lowest value to the highest."""
    heat = np.linspace(LOW, LEAST_TOP, 256, dtype=np.float32)[None].repeat(12, axis=0)
    return _data_uri(blend(np.full((*heat.shape, 3), 255, np.uint8), heat, LEAST_TOP), "PNG")


def blend(thumbnail: Pixels, heat: NDArray[np.float32], top: float) -> Pixels:
    """Attention over a picture as the viewer draws it; NaN leaves the picture as it is.

    Parameters
    ----------
    thumbnail : (height, width, 3) uint8 array
    heat : (height, width) array
        Attention relative to uniform.
    top : float
        End of the scale.
    """
    share = np.clip((np.nan_to_num(heat, nan=LOW) - LOW) / (top - LOW), 0, 1)
    colours = matplotlib.colormaps["viridis"](share)[..., :3] * 255
    alpha = OPACITY * heat_opacity(share, signed=False)
    alpha = np.where(np.isnan(heat), 0.0, alpha)[..., None]
    return np.asarray(np.rint(thumbnail * (1 - alpha) + colours * alpha), np.uint8)


def _try(data: RunData, fold: FoldData, choice: Choice, device: torch.device) -> _Made | LRMILError:
    try:
        row = data.rows.get(choice.slide_id)
        if row is None:
            raise SlideError("the slide table doesn't tell where the slide is")
        bundle = load_bundle(fold.bundle, device=device)
        with _opened(row, data, icc=bundle.info.tiles.apply_icc) as slide:
            return _make(slide, bundle, device)
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


def _make(slide: Slide, bundle: ModelBundle, device: torch.device) -> _Made:
    prediction = run_to_end(predict_slide(slide, bundle, device=device))
    heatmap = attention_heatmap(prediction)
    left, top, width, height = slide.bounds_l0_xywh
    mpp_x, mpp_y = slide.mpp_xy
    width_um, height_um = width * mpp_x, height * mpp_y
    thumbnail = overview(slide, LONG_EDGE_PX)
    size_xy = thumbnail.shape[1], thumbnail.shape[0]
    heat = _on_pixels(heatmap, (left * mpp_x, top * mpp_y), (width_um, height_um), size_xy)
    read = heatmap.values[np.isfinite(heatmap.values)]
    return _Made(thumbnail, width_um, heat, read, prediction.class_probabilities)


def _on_pixels(
    heatmap: Heatmap,
    corner_um_xy: tuple[float, float],
    size_um_xy: tuple[float, float],
    size_px_xy: tuple[int, int],
) -> NDArray[np.float32]:
    """The value of the tile under the middle of each pixel of a picture; NaN outside the grid."""
    places = []
    for axis, n_tiles in ((1, heatmap.values.shape[0]), (0, heatmap.values.shape[1])):
        middles = (np.arange(size_px_xy[axis]) + 0.5) * size_um_xy[axis] / size_px_xy[axis]
        offset = corner_um_xy[axis] + middles - heatmap.corner_um_xy[axis]
        places.append(np.clip(np.floor(offset / heatmap.pixel_um_xy[axis]), -1, n_tiles).astype(int) + 1)
    # A frame of NaN takes the pixels outside.
    framed = np.pad(heatmap.values, 1, constant_values=np.nan)
    return np.asarray(framed[np.ix_(places[0], places[1])], np.float32)


def _shown(choice: Choice, made: _Made | LRMILError, top: float) -> Example:
    if isinstance(made, LRMILError):
        missing = "bundle" if type(made).__name__ in ("BundleError", "EncoderError") else "slide file"
        return Example(
            choice, problem=f"No picture: the {missing} is missing or can't be read.", detail=str(made)
        )
    now = made.probabilities[choice.predicted]
    before = choice.probabilities[choice.predicted]
    remark = ""
    if abs(now - before) > 0.05:
        remark = f"The bundle now gives {now:.2f} where the run gave {before:.2f}: slide or bundle have changed since."
    bar_um = scale_bar_um(made.width_um)
    height, width = made.heat.shape
    return Example(
        choice,
        thumbnail=_data_uri(made.thumbnail, "JPEG"),
        overlay=_data_uri(blend(made.thumbnail, made.heat, top), "JPEG"),
        aspect=width / height,
        bar_um=bar_um,
        bar_share=bar_um / made.width_um,
        highest=float(made.values.max()),
        n_tiles=len(made.values),
        remark=remark,
    )


def scale_bar_um(width_um: float) -> float:
    """The longest of 1, 2, 5, 10 ... that takes at most a quarter of a picture's width."""
    room = width_um / 4
    power = 10.0 ** math.floor(math.log10(room))
    return max(step * power for step in (1, 2, 5) if step * power <= room)


def _data_uri(pixels: Pixels, kind: str) -> str:
    file = io.BytesIO()
    options: dict[str, int] = {"quality": 88, "subsampling": 0} if kind == "JPEG" else {"optimize": 1}
    Image.fromarray(pixels).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"

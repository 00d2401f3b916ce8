"""Classify a slide with a bundle, without a window: tiles at the student's mpp -> embeddings -> label."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil.model.bundle import BundleInfo, ModelBundle
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.slide import Slide, TileGrid, TileSet, TileSpec, iter_tiles, make_tile_grid
from napari_lrmil.slide.tiles import tissue_tiles_of
from napari_lrmil.slide.tissue import tissue_mask


class PredictProgress(NamedTuple):
    """How far a prediction is."""

    tiles_done: int
    tiles_total: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before the first tile."""
        if not self.tiles_done:
            return None
        return self.seconds / self.tiles_done * (self.tiles_total - self.tiles_done)


@dataclass(frozen=True)
class SlidePrediction:
    """What a bundle says of one slide, N tiles, C classes.

    Attributes
    ----------
    slide_name : str
    class_names : tuple of str
    class_probabilities : (C,) float64 array
        Softmax of the bag logits over the bundle's temperature.
    attention_scores, attention_logits : (N,) float64 arrays
        After and before the softmax over the bag.
    tiles : TileSet
        Where the N tiles lie.
    mpp_xy : (float, float)
        µm per level-0 pixel.
    level, level_mpp : int, float
        The one level that was read.
    seconds : float
        Tissue, reading, embedding and aggregation.
    bundle_name, bundle_sha256 : str
    demonstration : bool
        Not for diagnosis.
    device : str
    """

    slide_name: str
    class_names: tuple[str, ...]
    class_probabilities: NDArray[np.float64]
    attention_scores: NDArray[np.float64]
    attention_logits: NDArray[np.float64]
    tiles: TileSet
    mpp_xy: tuple[float, float]
    level: int
    level_mpp: float
    seconds: float
    bundle_name: str
    bundle_sha256: str
    demonstration: bool
    device: str

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.class_names[int(self.class_probabilities.argmax())]


def embed_tiles(
    encoder: Encoder,
    slide: Slide,
    grid: TileGrid,
    level: int,
    places: list[tuple[float, float]],
    *,
    device: torch.device,
    batch_size: int,
    threads: int = 2,
) -> Iterator[torch.Tensor]:
    """Embeddings (B, D) of tiles, batch by batch, on `device`.

    The one path from pixels to embeddings at inference; training embeds through the same function.

    Parameters
    ----------
    encoder : Encoder
        In eval mode, on `device`.
    slide, grid, level
        Where to read.
    places : list of (row, col)
    device : torch.device
    batch_size : int
    threads : int
        Tiles decoded at once.
    """
    for tiles in iter_tiles(slide, grid, level, places, batch_size=batch_size, threads=threads):
        # The yield stays outside: inference mode would hold in the caller too.
        with torch.inference_mode():
            embeddings = encoder(encoder.preprocess(torch.from_numpy(tiles).to(device))).embedding
        yield embeddings


def student_tiles(slide: Slide, info: BundleInfo) -> TileSet:
    """The tiles of a slide that a bundle reads: the same ones as in its training.

    There one mask serves both nested grids, which sets its pixel size; so it does here.

    Raises
    ------
    NoTissueError, UnknownMppError, SlideError
    """
    spec = TileSpec(info.tiles.tile_px, info.tiles.mpp)
    grid = make_tile_grid(bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=spec)
    ratio = max(1, round(info.tiles.mpp / info.teacher_mpp))
    mask = tissue_mask(slide, grid, divisible_by=ratio)
    return tissue_tiles_of(slide, grid, mask, min_tissue=info.tiles.min_tissue)


def predict_slide(
    slide: Slide,
    bundle: ModelBundle,
    *,
    device: torch.device,
    batch_size: int = 32,
    threads: int = 2,
) -> Generator[PredictProgress, None, SlidePrediction]:
    """Classify a slide step by step.

    A generator: it yields progress after each batch, so that the caller can show it and can cancel by
    closing it; the prediction is its return value (``result = yield from ...``, or `run_to_end`).

    Parameters
    ----------
    slide : Slide
    bundle : ModelBundle
        On `device`.
    device : torch.device
    batch_size : int
    threads : int
        Tiles decoded at once.

    Raises
    ------
    NoTissueError, UnknownMppError, SlideError
    """
    started = time.perf_counter()
    info = bundle.info
    embeddings: list[torch.Tensor] = []
    with slide.in_colours(icc=info.tiles.apply_icc) as source:
        tiles = student_tiles(source, info)
        yield PredictProgress(0, len(tiles), time.perf_counter() - started)
        done = 0
        batches = embed_tiles(
            bundle.encoder,
            source,
            tiles.grid,
            tiles.level,
            tiles.places,
            device=device,
            batch_size=batch_size,
            threads=threads,
        )
        for batch in batches:
            embeddings.append(batch)
            done += len(batch)
            yield PredictProgress(done, len(tiles), time.perf_counter() - started)
    with torch.inference_mode():
        output = bundle.mil(torch.cat(embeddings).float())
        probabilities = torch.softmax(output.bag_logits.double() / info.temperature, dim=0)
    return SlidePrediction(
        slide_name=slide.name,
        class_names=info.class_names,
        class_probabilities=probabilities.cpu().numpy(),
        attention_scores=output.attention_scores.double().cpu().numpy(),
        attention_logits=output.attention_logits.double().cpu().numpy(),
        tiles=tiles,
        mpp_xy=slide.mpp_xy,
        level=tiles.level,
        level_mpp=slide.level_mpps[tiles.level],
        seconds=time.perf_counter() - started,
        bundle_name=info.name,
        bundle_sha256=info.weights_sha256,
        demonstration=info.demonstration,
        device=str(device),
    )


def run_to_end(steps: Generator[PredictProgress, None, SlidePrediction]) -> SlidePrediction:
    """The result of `predict_slide`, for callers without progress."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: SlidePrediction = stop.value
            return result

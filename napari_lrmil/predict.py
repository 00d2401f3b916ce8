"""Classify a slide with a bundle, without a window: tiles at the student's mpp -> embeddings -> label."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil import __version__
from napari_lrmil.errors import SlideError
from napari_lrmil.evidence import SATURATED_ABOVE, DeletionCurve, explain
from napari_lrmil.model.bundle import BundleInfo, ModelBundle
from napari_lrmil.model.calibration import answer_of, called_class
from napari_lrmil.model.card import UNLIKE_TRAINING
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import Bag, MILModel
from napari_lrmil.slide import Slide, TileGrid, TileSet, TileSpec, find_tiles, iter_tiles
from napari_lrmil.slide.tiles import MAX_DAMAGED_SHARE, check_damage, find_magnifications, parents_in

T = TypeVar("T")


class PredictProgress(NamedTuple):
    """How far a prediction is."""

    tiles_done: int
    tiles_total: int
    seconds: float
    note: str = ""
    """What else the user should know."""

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
        Softmax of the bag logits, scaled as the bundle says.
    attention_scores, attention_logits : (N,) float64 arrays, optional
        After and before the softmax over the bag, of the class that is called where each has its own; None where the head has
        no attention.
    class_contributions : (N, C) float64 array
        Probability of the whole slide minus that without tile n: positive where the tile speaks for the class.
    log_odds_contributions : (N, C) float64 array
        The same in log-odds of the class against all others.
    log_odds_alone : (N, C) float64 array
        Log-odds of the class where tile n is the whole slide.
    deletion : DeletionCurve
        Whether removing these tiles does more than removing any.
    tiles : TileSet
        Where the N tiles lie.
    mpp_xy : (float, float)
        µm per level-0 pixel.
    level, level_mpp : int, float
        The one level that was read.
    seconds : float
        Tissue, reading, embedding, aggregation and evidence.
    bundle_name, bundle_sha256 : str
        The hash is of the whole bundle, see `BundleInfo.sha256`.
    demonstration : bool
        Not for diagnosis.
    device : str
    slide_fingerprint : str
        The same for a renamed copy of the slide.
    version : str
        Of this program.
    prediction_set : tuple of str, optional
        Classes that can't be ruled out at `coverage`: one, several, or none where no class is probable enough. None
        where the bundle states no coverage.
    coverage : float, optional
        Least share of slides, like those it was calibrated with, whose set holds the true class.
    ood_score, ood_threshold : float, optional
        Distance of the slide's tiles to those of training, and where the warning starts; None where the
        bundle states none.
    thresholds : tuple of C floats, optional
        At which a class is called, see `called_class`; None where the bundle states none: the most probable class is.
    damaged_tiles : int
        Tiles of which a part couldn't be decoded, which the model saw as grey stripes, and tiles that may hold tissue that
        couldn't be seen.
    weights_sha256 : str
        Hash of the bundle's weights alone; empty where it isn't known.
    class_attention : (C, N) float64 array, optional
        Attention scores of each class; None where all have the same, or there is none.
    exact_tiles : (N,) bool array, optional
        Tiles whose contributions are exact, those of the others being estimates; None: all are.
    """

    slide_name: str
    class_names: tuple[str, ...]
    class_probabilities: NDArray[np.float64]
    attention_scores: NDArray[np.float64] | None
    attention_logits: NDArray[np.float64] | None
    class_contributions: NDArray[np.float64]
    log_odds_contributions: NDArray[np.float64]
    log_odds_alone: NDArray[np.float64]
    deletion: DeletionCurve
    tiles: TileSet
    mpp_xy: tuple[float, float]
    level: int
    level_mpp: float
    seconds: float
    bundle_name: str
    bundle_sha256: str
    demonstration: bool
    device: str
    slide_fingerprint: str
    version: str
    prediction_set: tuple[str, ...] | None = None
    coverage: float | None = None
    ood_score: float | None = None
    ood_threshold: float | None = None
    damaged_tiles: int = 0
    weights_sha256: str = ""
    thresholds: tuple[float, ...] | None = None
    class_attention: NDArray[np.float64] | None = None
    exact_tiles: NDArray[np.bool_] | None = None

    @property
    def answer(self) -> str:
        """The label, or `UNLIKE_TRAINING` where there is none: what is said of the slide, wherever it is said."""
        return answer_of(self.called, out_of_distribution=self.out_of_distribution)

    @property
    def label(self) -> str | None:
        """The class that is called; None where the slide is unlike those of training, see `called`."""
        return None if self.answer == UNLIKE_TRAINING else self.called

    @property
    def called_index(self) -> int:
        """Of the class that is called."""
        return int(called_class(self.class_probabilities, self.thresholds))

    @property
    def called(self) -> str:
        """The class that is called at the bundle's operating point; without one, the most probable class.

        Where it isn't the `answer`, it is not to be used.
        """
        return self.class_names[self.called_index]

    @property
    def called_probability(self) -> float:
        """Of the class that is called."""
        return float(self.class_probabilities[self.called_index])

    @property
    def saturated(self) -> bool:
        """Whether the probability of the called class is so high that it hardly moves when a tile is left out."""
        return self.called_probability > SATURATED_ABOVE

    @property
    def unsure(self) -> bool:
        """Whether the set holds another class than is called, or none; False where the bundle states no coverage."""
        return self.prediction_set is not None and self.prediction_set != (self.called,)

    @property
    def out_of_distribution(self) -> bool:
        """Whether the slide is farther from training's than slides should be; False where that isn't known."""
        if self.ood_score is None or self.ood_threshold is None:
            return False
        return not self.ood_score <= self.ood_threshold  # a score that isn't a number is strange too


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
    smaller: Callable[[int], None] | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the embeddings (B, D) of tiles, batch by batch, on `device`: float32 that float16 can hold.

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
    smaller : callable, optional
        Told how many tiles go to the model at once from now on, where its memory doesn't take `batch_size`. Default:
        a warning in the log.

    Raises
    ------
    MemoryError, RuntimeError
        Where the memory doesn't take a single tile.
    """
    at_once = batch_size
    for tiles in iter_tiles(slide, grid, level, places, batch_size=batch_size, threads=threads):
        start = 0
        while start < len(tiles):
            part = tiles[start : start + at_once]
            try:
                # The yield stays outside: inference mode would hold in the caller too.
                with torch.inference_mode():
                    embeddings = encoder(encoder.preprocess(torch.from_numpy(part).to(device))).embedding
                    # Halves are what training stores: the head learned, was evaluated and was calibrated on these.
                    halves = embeddings.half().float()
            except (MemoryError, RuntimeError) as error:
                if len(part) == 1 or not _is_out_of_memory(error):
                    raise
                at_once = (len(part) + 1) // 2
            else:
                start += len(part)
                yield halves
                continue
            # Out of the except block, so that the error no longer holds what was on the device.
            if device.type == "cuda":
                torch.cuda.empty_cache()
            (smaller or _log_smaller)(at_once)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the device's memory, or the computer's, was too small: torch says it in several ways."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(
        said in text
        for said in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    )


def _smaller_text(at_once: int) -> str:
    return f"The memory doesn't take as many tiles at once: going on with {at_once}."


def _log_smaller(at_once: int) -> None:
    logging.getLogger(__name__).warning(_smaller_text(at_once))


def student_tiles(slide: Slide, info: BundleInfo) -> TileSet:
    """The tiles of a slide that a bundle reads, at whichever µm/px: the same ones as in its training, see `find_tiles`.

    Raises
    ------
    NoTissueError, UnknownMppError, SlideError
    """
    return find_tiles(
        slide,
        TileSpec(info.tiles.tile_px, info.tiles.mpp * info.tiles.within),
        min_tissue=info.tiles.min_tissue,
        ratio=max(1, round(info.tiles.mpp * info.tiles.within / info.teacher_mpp)),
        within=info.tiles.within,
        one_in=info.tiles.one_in,
        seed=info.tiles.seed,
    )


def bundle_tiles(slide: Slide, info: BundleInfo) -> tuple[TileSet, ...]:
    """The tiles that a bundle may read, at each magnification of its head, the coarsest first.

    Of several, see `find_magnifications`.

    Raises
    ------
    NoTissueError, UnknownMppError, SlideError
    """
    factors = info.mil.factors
    if len(factors) == 1:
        return (student_tiles(slide, info),)
    finest = TileSpec(info.tiles.tile_px, info.tiles.mpp)
    return find_magnifications(slide, finest, factors, min_tissue=info.tiles.min_tissue)


def parents_of(tiles: TileSet, coarser: TileSet) -> NDArray[np.int64]:
    """(N,) index of the tile of a coarser set in which each tile lies; -1 where that one isn't among them."""
    places, theirs = (np.stack([one.rows, one.cols], axis=1) for one in (tiles, coarser))
    ratio = tiles.grid.shape_yx[0] // coarser.grid.shape_yx[0]
    return parents_in(places, theirs, coarser.grid.shape_yx, ratio)


def _ratio(info: BundleInfo) -> int:
    if len(info.mil.factors) > 1:
        return info.mil.factors[0]
    return max(1, round(info.tiles.mpp / info.teacher_mpp))


class ReadBags(NamedTuple):
    """What was read of a slide at each magnification, the coarsest first."""

    tiles: tuple[TileSet, ...]
    bags: tuple[Bag, ...]
    """Of several, the finer ones with `Bag.parents`, as indices in what was read of the next coarser."""


def read_bags(
    encoder: Encoder,
    mil: MILModel,
    slide: Slide,
    sets: Sequence[TileSet],
    *,
    device: torch.device,
    batch_size: int,
    threads: int = 2,
    smaller: Callable[[int], None] | None = None,
) -> Generator[tuple[int, int], None, ReadBags]:
    """Read and embed a slide's tiles batch by batch: the coarsest all, of finer ones those that the head asks for.

    A generator of how many tiles are read, and of how many: as far as that is known, since the head asks for finer ones when
    it has seen the coarser.

    Parameters
    ----------
    encoder : Encoder
    mil : MILModel
    slide : Slide
    sets : sequence of TileSet
        Those that may be read, one a magnification, the coarsest first.
    device, batch_size, threads, smaller
        As in `embed_tiles`.

    Raises
    ------
    SlideError
        Where the head asks for tiles that hold none with tissue.
    """
    read: list[TileSet] = []
    bags: list[Bag] = []
    done, total = 0, len(sets[0])
    for tiles in sets:
        parents = None
        if bags:
            with torch.inference_mode():
                wanted = mil.children_to_read(bags).cpu().numpy()
            tiles, parents = _children(tiles, read[-1], wanted)
            if not len(tiles):
                raise SlideError(
                    f"{slide.path.name} has no result: the model wants to look closer at tiles that hold no tile of "
                    f"{tiles.grid.spec.mpp:g} µm/px with enough tissue"
                )
            total += len(tiles)
        embeddings: list[torch.Tensor] = []
        batches = embed_tiles(
            encoder,
            slide,
            tiles.grid,
            tiles.level,
            tiles.places,
            device=device,
            batch_size=batch_size,
            threads=threads,
            smaller=smaller,
        )
        for batch in batches:
            embeddings.append(batch)
            done += len(batch)
            yield done, total
        places = np.stack([tiles.rows, tiles.cols], axis=1)
        bags.append(bag_on_grid(torch.cat(embeddings).float(), places, tiles.grid.spec.mpp, parents))
        embeddings.clear()  # a large bag isn't kept twice
        read.append(tiles)
    return ReadBags(tuple(read), tuple(bags))


def predict_slide(
    slide: Slide,
    bundle: ModelBundle,
    *,
    device: torch.device,
    batch_size: int = 32,
    threads: int = 2,
    max_damaged: float = MAX_DAMAGED_SHARE,
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
    max_damaged : float
        Share of the tiles with tissue that may be damaged.

    Raises
    ------
    NoTissueError, UnknownMppError, SlideError
        The last also where more tiles than allowed are damaged.
    """
    started = time.perf_counter()
    info = bundle.info
    fingerprint = slide.fingerprint()
    with slide.in_colours(icc=info.tiles.apply_icc) as source:
        sets = bundle_tiles(source, info)
        damage = [
            partial(check_damage, source, tiles, ratio=_ratio(info), max_damaged=max_damaged)
            for tiles in sets
        ]
        damaged = max(count() for count in damage)
        note = ""
        yield PredictProgress(0, len(sets[0]), time.perf_counter() - started)

        def smaller(at_once: int) -> None:
            nonlocal note
            note = _smaller_text(at_once)

        reading = read_bags(
            bundle.encoder,
            bundle.mil,
            source,
            sets,
            device=device,
            batch_size=batch_size,
            threads=threads,
            smaller=smaller,
        )
        with closing(reading):  # a caller that closes this one closes the slide's readers with it
            while True:
                try:
                    done, total = next(reading)
                except StopIteration as stop:
                    read: ReadBags = stop.value
                    break
                damaged = max(count() for count in damage)
                yield PredictProgress(done, total, time.perf_counter() - started, note)
        source.check_unchanged()
    slide.check_unchanged()  # the pixels are of the slide whose fingerprint it is
    tiles, instances = read.tiles[-1], read.bags[-1].embeddings
    point = info.operating_point
    thresholds = None if point is None else point.thresholds
    evidence = explain(bundle.mil, read.bags, scaling=info.vector_scaling, thresholds=thresholds)
    numbers = (evidence.class_probabilities, evidence.attention_logits, evidence.class_contributions)
    if not all(np.isfinite(values).all() for values in numbers if values is not None):
        raise SlideError(
            f"{slide.path.name} has no result: {info.name} gave numbers that aren't finite. The model is damaged, or made "
            "for other tiles"
        )
    left: tuple[str, ...] | None = None
    trust = bundle.trust
    if trust is not None:
        in_set = trust.prediction_set(evidence.class_probabilities)
        left = tuple(name for name, kept in zip(info.class_names, in_set, strict=True) if kept)
    return SlidePrediction(
        slide_name=slide.name,
        class_names=info.class_names,
        class_probabilities=evidence.class_probabilities,
        attention_scores=evidence.attention_scores,
        attention_logits=evidence.attention_logits,
        class_contributions=evidence.class_contributions,
        log_odds_contributions=evidence.log_odds_contributions,
        log_odds_alone=evidence.log_odds_alone,
        class_attention=evidence.class_attention,
        exact_tiles=evidence.exact_tiles,
        deletion=evidence.deletion,
        prediction_set=left,
        coverage=None if trust is None else trust.info.conformal.coverage,
        ood_score=None if trust is None else trust.tiles.slide_score(instances),
        ood_threshold=None if trust is None else trust.info.ood.threshold,
        tiles=tiles,
        damaged_tiles=damaged,
        mpp_xy=slide.mpp_xy,
        level=tiles.level,
        level_mpp=slide.level_mpps[tiles.level],
        seconds=time.perf_counter() - started,
        bundle_name=info.name,
        bundle_sha256=info.sha256,
        weights_sha256=info.weights_sha256,
        demonstration=info.demonstration,
        thresholds=thresholds,
        device=str(device),
        slide_fingerprint=fingerprint,
        version=__version__,
    )


def _children(
    tiles: TileSet, coarser: TileSet, wanted: NDArray[np.int64]
) -> tuple[TileSet, NDArray[np.int64]]:
    """The tiles that lie in some of the coarser ones, and in which."""
    parents = parents_of(tiles, coarser)
    kept = np.isin(parents, wanted)
    return replace(tiles, rows=tiles.rows[kept], cols=tiles.cols[kept]), parents[kept]


def bag_on_grid(
    embeddings: torch.Tensor, places: NDArray[np.int64], mpp: float, parents: NDArray[np.int64] | None
) -> Bag:
    """Return a bag of one magnification as heads read it, in training and serving.

    Parameters
    ----------
    embeddings : (N, D) tensor
    places : (N, 2) int64 array
        (row, col) in the grid of its tiles.
    mpp : float
        µm/px of the tiles.
    parents : (N,) int64 array, optional
        See `Bag`.
    """
    device = embeddings.device
    return Bag(
        embeddings,
        places=torch.from_numpy(np.ascontiguousarray(places[:, ::-1])).to(device),
        mpp=mpp,
        parents=None if parents is None else torch.from_numpy(parents).to(device),
    )


def run_to_end(steps: Generator[object, None, T]) -> T:
    """The result of `predict_slide`, or of others that go step by step, for callers without progress."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result

"""The student that is just good enough: what each row costs a slide, and the cheapest that is shown to be good enough.

Rows are compared with the teacher on validation slides, which choose, and on test slides, which report. What isn't shown
to lose less than the margin isn't thereby shown to lose more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import AnyBag, Bag, MILModel
from napari_lrmil.predict import read_bags, run_to_end
from napari_lrmil.slide import TileSpec, choose_level, find_tiles
from napari_lrmil.slide.cache import shared_cache
from napari_lrmil.slide.tiles import find_magnifications, pixels_of_tiles, random_part
from training.data.table import SlideRow
from training.data.tile_index import Reading, SlideTiles, TileGeometry
from training.intervals import FoldScores, within_fold_auc
from training.methods import TEACHER
from training.noninferiority import Comparison, compare_with_teacher, least_patients, patients_by_class
from training.section import Section

_MEGABYTE, _CHANNELS = 1e6, 3


class FrontSection(Section):
    """The cheapest reading that is shown to be no worse than the teacher, but for a margin."""

    margin: float = Field(
        default=0.02, gt=0, lt=0.5, description="of AUC, that a cheaper row may lose against the teacher"
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="chance, at most, that any row is wrongly said to lose less than the margin (Holm, over all rows)",
    )
    rows: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="keys of the rows that may be chosen; the fewer, the fewer patients it takes. Default: all of which a bundle "
        "can be made: an encoder, all of its tiles, a head",
    )
    slides: int = Field(default=3, ge=1, description="test slides whose seconds are measured")


class Tiles(NamedTuple):
    """Which tiles of a slide a row reads, as `find_tiles` takes it."""

    within: int
    """Tiles along an edge of an LR tile: 1 for LR, the ratio for HR."""
    one_in: int = 1
    """A random 1 / one_in of them."""
    seed: int = 0
    """Of the choice."""

    def places(self, tiles: SlideTiles, ratio: int) -> NDArray[np.int64]:
        """Return (row, col) of these tiles of a slide, (N, 2)."""
        places = tiles.places(self.within, ratio)
        return places if self.one_in == 1 else places[random_part(places, self.one_in, self.seed)]


class Served(NamedTuple):
    """How a row reads a slide: rows with the same cost the same."""

    encoder: Encoder
    mil: MILModel
    tiles: Tiles
    times: tuple[int, ...] = (1,)
    """How many times coarser than these each magnification of the head is, see `MILSpec.factors`."""

    def asked(self, embeddings: torch.Tensor) -> AnyBag:
        """Return what the head is asked about where each magnification has these embeddings (N, D), to try it."""
        if len(self.times) == 1:
            return embeddings
        place = torch.arange(len(embeddings), device=embeddings.device)
        return tuple(Bag(embeddings, parents=place) for _ in self.times)


class Counted(NamedTuple):
    """What a head of several magnifications reads of one slide, by its own choice."""

    tiles: int
    """Of all magnifications."""
    n_bytes: int
    """Of the pixels that they are made of."""


class ReadCost(NamedTuple):
    """One slide, read once."""

    seconds: float
    """Opening, tissue, reading, embedding, head."""
    tiles: int
    """Of all magnifications."""
    level: int
    """Of the finest."""
    pixels_read: dict[int, int]
    """Level -> pixels, by the reader's own count."""
    file_bytes: int | None
    """That this process read of files meanwhile, as they are stored; None where the system doesn't count."""


class Costs(BaseModel):
    """What a reading costs a slide, on average."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    tiles: float
    megabytes: float
    """Of decoded pixels, from the level that the tiles are read from, without the overview that finds the tissue."""
    file_megabytes: float | None = None
    """Read from the file as it is stored, of the slides that are timed, overview and tables of the file included; None where
    the system doesn't count it."""

    @property
    def read_megabytes(self) -> float:
        """Read from the file, or where that isn't known, of decoded pixels."""
        return self.megabytes if self.file_megabytes is None else self.file_megabytes


class Timed(BaseModel):
    """How the seconds were measured."""

    model_config = ConfigDict(frozen=True)

    n_slides: int
    device: str
    cores: int
    load: float | None
    """Processes that wanted a core when it began, this one included; None where the system doesn't say."""


class FrontRow(BaseModel):
    """A row of the front; `val` and `test` are None for the teacher, `candidate` says whether it could be chosen."""

    model_config = ConfigDict(frozen=True)

    key: str
    name: str
    mpp: float
    costs: Costs
    of_teacher: Costs
    """Shares of what the teacher costs."""
    val_auc: float
    test_auc: float
    val: Comparison | None
    test: Comparison | None


class Front(BaseModel):
    """All rows, the cheapest first, and which of them is exported."""

    model_config = ConfigDict(frozen=True)

    margin: float
    alpha: float
    rows: tuple[FrontRow, ...]
    chosen: str
    patients: dict[str, int]
    """Validation patients of each class."""
    timed: Timed

    def row(self, key: str) -> FrontRow:
        """Return a row."""
        return next(row for row in self.rows if row.key == key)


def slides_to_time(tiles: Sequence[SlideTiles], n: int) -> list[SlideTiles]:
    """Return n slides, spread evenly from the smallest to the largest."""
    by_size = sorted(tiles, key=lambda one: (len(one.lr_places), one.row.slide_id))
    places = np.linspace(0, len(by_size) - 1, min(n, len(by_size)) + 2)[1:-1] if n < len(by_size) else None
    return by_size if places is None else [by_size[place] for place in np.rint(places).astype(int).tolist()]


def read_cost(
    row: SlideRow,
    geometry: TileGeometry,
    reading: Served,
    *,
    device: torch.device,
    batch_size: int,
    threads: int,
) -> ReadCost:
    """Read one slide from file to bag logits, with a new handle and nothing kept from before but by the system.

    Raises
    ------
    SlideError
    RuntimeError
        Where something finer was read than the tiles need: what is promised of the costs doesn't hold then.
    """
    shared_cache().clear()
    before = _file_bytes()
    started = time.perf_counter()
    with geometry.open(row) as slide:
        if len(reading.times) > 1:
            spec = geometry.finest(reading.tiles.within)
            sets = find_magnifications(slide, spec, reading.times, min_tissue=geometry.min_tissue)
        else:
            sets = (
                find_tiles(
                    slide,
                    TileSpec(geometry.tile_px, geometry.mpp_lr),
                    min_tissue=geometry.min_tissue,
                    ratio=geometry.ratio,
                    **reading.tiles._asdict(),
                ),
            )
        read = run_to_end(
            read_bags(
                reading.encoder,
                reading.mil,
                slide,
                sets,
                device=device,
                batch_size=batch_size,
                threads=threads,
            )
        )
        tiles = read.tiles[-1]
        with torch.inference_mode():
            reading.mil(read.bags if len(reading.times) > 1 else read.bags[0]).bag_logits.cpu()
        seconds = time.perf_counter() - started
        pixels = slide.pixels_read
        finest = min(slide.level_mpps[level] for level in pixels)
        if finest < slide.level_mpps[tiles.level]:
            raise RuntimeError(f"{finest:g} µm/px was read where {tiles.grid.spec.mpp:g} µm/px are enough")
        after = _file_bytes()
    n_bytes = None if before is None or after is None else after - before
    return ReadCost(seconds, sum(map(len, read.tiles)), tiles.level, pixels, n_bytes)


def _file_bytes() -> int | None:
    """Return how many bytes this process has read so far, by the system's count; only Linux has one a process."""
    try:
        counts = Path("/proc/self/io").read_text(encoding="ascii")
        return int(dict(line.split(": ") for line in counts.splitlines())["rchar"])
    except (OSError, ValueError, KeyError):
        return None


def tile_costs(tiles: SlideTiles, geometry: TileGeometry, reads: Sequence[Tiles]) -> dict[Tiles, int]:
    """Return how many bytes of pixels some tiles of a slide are made of; nothing is read."""
    with geometry.open(tiles.row) as slide:
        found = {}
        for read in reads:
            grid = geometry.lr_grid(slide).subdivide(read.within)
            level = choose_level(slide.level_mpps, grid.spec.mpp)
            places = [(row, col) for row, col in read.places(tiles, geometry.ratio).tolist()]
            found[read] = _CHANNELS * pixels_of_tiles(slide, grid, level, places)
        return found


def count_read(
    tiles: SlideTiles, geometry: TileGeometry, read: Mapping[Reading, NDArray[np.int64]]
) -> Counted:
    """Return how many tiles some are, and of how many bytes of pixels; nothing is read.

    Parameters
    ----------
    tiles : SlideTiles
    geometry : TileGeometry
    read : mapping
        Reading -> (row, col) of the tiles that are read of it, (N, 2).
    """
    with geometry.open(tiles.row) as slide:
        n_bytes = 0
        for reading, places in read.items():
            grid = geometry.grid(slide, reading)
            level = choose_level(slide.level_mpps, grid.spec.mpp)
            wanted = [(row, col) for row, col in places.tolist()]
            n_bytes += _CHANNELS * pixels_of_tiles(slide, grid, level, wanted)
    return Counted(sum(map(len, read.values())), n_bytes)


def measure_costs(
    readings: Mapping[str, Served],
    timed: Sequence[SlideTiles],
    every: Sequence[SlideTiles],
    geometry: TileGeometry,
    *,
    bytes_of: Callable[[SlideTiles], Mapping[Tiles, int]],
    counted: Mapping[str, Sequence[Counted]] | None = None,
    device: torch.device,
    batch_size: int,
    threads: int,
) -> tuple[dict[str, Costs], Timed]:
    """Return what each reading costs a slide on average: tiles and bytes of every slide, seconds of those that are timed.

    Parameters
    ----------
    readings : mapping
        By name.
    timed, every : sequences of SlideTiles
    geometry : TileGeometry
    bytes_of : callable
        See `tile_costs`.
    counted : mapping, optional
        Reading of several magnifications, by name -> what its head reads of every slide.
    device : torch.device
    batch_size, threads : int
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    n_bytes = [bytes_of(tiles) for tiles in every]
    for tiles in timed:  # opened once in another process first, where this one hasn't opened it
        geometry.open(tiles.row).close()
    found: dict[str, list[ReadCost]] = {name: [] for name in readings}
    blank = torch.zeros((1, geometry.tile_px, geometry.tile_px, 3), dtype=torch.uint8)
    for reading in readings.values():  # libraries loaded, memory mapped
        with torch.inference_mode():
            embedding = reading.encoder(reading.encoder.preprocess(blank.to(device))).embedding
            reading.mil(reading.asked(embedding.float()))
    for turn, tiles in enumerate(timed):
        order = list(readings) if turn % 2 == 0 else list(readings)[::-1]
        for name in order:
            cost = read_cost(
                tiles.row, geometry, readings[name], device=device, batch_size=batch_size, threads=threads
            )
            found[name].append(cost)
    costs = {}
    for name, reading in readings.items():
        if counted is not None and name in counted:
            counts = [one.tiles for one in counted[name]]
            of_pixels = [one.n_bytes for one in counted[name]]
        else:
            counts = [len(reading.tiles.places(one, geometry.ratio)) for one in every]
            of_pixels = [of_slide[reading.tiles] for of_slide in n_bytes]
        of_file = [cost.file_bytes for cost in found[name] if cost.file_bytes is not None]
        costs[name] = Costs(
            seconds=float(np.mean([cost.seconds for cost in found[name]])),
            tiles=float(np.mean(counts)),
            megabytes=float(np.mean(of_pixels)) / _MEGABYTE,
            file_megabytes=float(np.mean(of_file)) / _MEGABYTE if of_file else None,
        )
    return costs, Timed(n_slides=len(timed), device=str(device), cores=os.cpu_count() or 1, load=load)


def find_front(
    val: Mapping[str, Sequence[FoldScores]],
    test: Mapping[str, Sequence[FoldScores]],
    costs: Mapping[str, Costs],
    mpps: Mapping[str, float],
    names: Mapping[str, str],
    timed: Timed,
    class_names: Sequence[str],
    section: FrontSection,
    *,
    n_resamples: int,
    seed: int,
    shared: Collection[str] = (),
) -> Front:
    """Compare rows with the teacher and choose the cheapest that is shown, on validation, to lose less than the margin.

    Of rows that cost the same, and pass, the one with the best validation AUC is taken.

    Parameters
    ----------
    val, test : mappings
        Row -> folds, the teacher's among them.
    costs, mpps, names : mappings
        Of each row.
    timed : Timed
    class_names : sequence of str
    section : FrontSection
    n_resamples, seed : int
    shared : collection of str
        See `resample_aucs`.
    """
    teacher = TEACHER.key

    def against_teacher(scores: Mapping[str, Sequence[FoldScores]]) -> dict[str, Comparison]:
        rows = {key: folds for key, folds in scores.items() if key != teacher}
        return compare_with_teacher(
            scores[teacher],
            rows,
            margin=section.margin,
            alpha=section.alpha,
            # Enough to tell the smallest of Holm's levels from 0.
            n_resamples=max(n_resamples, round(20 * len(rows) / section.alpha)),
            seed=seed,
            shared=shared,
        )

    on_val, on_test = against_teacher(val), against_teacher(test)
    of_teacher = costs[teacher]
    rows = [
        FrontRow(
            key=key,
            name=names[key],
            mpp=mpps[key],
            costs=costs[key],
            of_teacher=_shares(costs[key], of_teacher),
            val_auc=within_fold_auc(val[key]),
            test_auc=within_fold_auc(test[key]),
            val=on_val.get(key),
            test=on_test.get(key),
        )
        for key in val
    ]
    rows.sort(key=lambda row: (row.costs.seconds, -row.val_auc))
    counts = patients_by_class(val[teacher]).tolist()
    return Front(
        margin=section.margin,
        alpha=section.alpha,
        rows=tuple(rows),
        chosen=next(row.key for row in rows if row.val is None or row.val.shown),
        patients=dict(zip(class_names, counts, strict=True)),
        timed=timed,
    )


def _shares(costs: Costs, of: Costs) -> Costs:
    of_file = costs.file_megabytes, of.file_megabytes
    return Costs(
        seconds=costs.seconds / of.seconds,
        tiles=costs.tiles / of.tiles,
        megabytes=costs.megabytes / of.megabytes,
        file_megabytes=of_file[0] / of_file[1] if of_file[0] is not None and of_file[1] else None,
    )


def front_text(front: Front) -> str:
    """Say which row is the cheapest that is good enough, in plain words."""
    what = f"not worse than {TEACHER.name} by more than {front.margin:g} AUC"
    if front.chosen == TEACHER.key:
        return (
            f"Cheapest that is shown to be {what}: none of the others; the teacher is exported. That a row isn't shown to be "
            "as good doesn't say that it is worse. "
            + _patients_text(
                front.patients, sum(row.val is not None for row in front.rows), front.margin, front.alpha
            )
        ).strip()
    row = front.row(front.chosen)
    shares = row.of_teacher
    assert row.test is not None
    confirmed = (
        "shown there too"
        if row.test.p <= front.alpha
        else "not shown there, which doesn't say that it is worse"
    )
    return (
        f"Cheapest that is shown to be {what}: {row.name}, with {shares.seconds:.0%} of the seconds, "
        f"{shares.tiles:.0%} of the tiles and {shares.read_megabytes:.0%} of the bytes. It was chosen on validation slides; on "
        f"test slides it loses {row.test.difference:+.3f} and less than {row.test.limit:.3f} at {1 - front.alpha:.0%}: "
        f"{confirmed}."
    )


def choice_text(front: Front) -> str:
    """Say in a bundle's card why it, and not a cheaper or a dearer one, was exported."""
    row = front.row(front.chosen)
    others = "; ".join(
        f"{one.name} ({one.mpp:g} µm/px, {one.of_teacher.seconds:.0%} of the teacher's seconds): "
        + (
            f"loses {one.val.difference:+.3f} and less than {one.val.limit:.3f}, "
            + ("shown" if one.val.shown else "not shown")
            if one.val is not None
            else f"AUC {one.val_auc:.3f}"
        )
        for one in front.rows
    )
    on_test = (
        ""
        if row.test is None
        else f" On test slides it loses {row.test.difference:+.3f} and less than {row.test.limit:.3f}."
    )
    counts = ", ".join(f"{count} {name}" for name, count in front.patients.items())
    return (
        f"{front_text(front)}\n\nThe choice was made on validation slides ({counts}; patients), among: {others}. Losses are of "
        f"AUC against {TEACHER.name}, with one-sided limits at {1 - front.alpha:.0%} by bootstrap over patients and "
        f"trainings; “shown” holds for all rows at once (Holm).{on_test}"
    )


def timed_text(front: Front) -> str:
    """Say how the costs were measured."""
    timed = front.timed
    load = "" if timed.load is None else f", of which {timed.load:.1f} were wanted when it began"
    slides = "1 test slide" if timed.n_slides == 1 else f"{timed.n_slides} test slides"
    return (
        f"Seconds: reading, embedding and head, {slides}, each opened anew, {timed.device}, {timed.cores} cores{load}. "
        "MB: read from the file as it is stored, these slides (where the system doesn't count that: of decoded pixels). Tiles "
        "and MB of decoded pixels: all test slides, without the overview that finds the tissue."
    )


def planned_text(
    names: Sequence[str], patients: Mapping[str, int], section: FrontSection, n_readings: int
) -> str:
    """Say before a run how it will end, and whether there are patients enough for it.

    Parameters
    ----------
    names : sequence of str
        Of the rows that may be chosen, without the teacher.
    patients : mapping
        Validation patients of each class.
    section : FrontSection
    n_readings : int
        Ways of reading a slide, the teacher's among them.
    """
    slides = "1 test slide is" if section.slides == 1 else f"{section.slides} test slides are"
    return (
        f"At the end: the cheapest of {', '.join(names)} that is shown on validation slides to lose less than "
        f"{section.margin:g} AUC against {TEACHER.name}; {slides} read anew in each of {n_readings} ways. "
        + _patients_text(patients, len(names), section.margin, section.alpha)
    ).strip()


def _patients_text(patients: Mapping[str, int], n_rows: int, margin: float, alpha: float) -> str:
    """Say that there are too few patients where not even a row that loses nothing could pass."""
    name, fewest = min(patients.items(), key=lambda pair: pair[1])
    needed = least_patients(margin=margin, alpha=alpha, n_rows=max(1, n_rows), n_classes=len(patients))
    if fewest >= needed:
        return ""
    return (
        f"With {fewest} validation patient{'' if fewest == 1 else 's'} of {name} nothing can be shown: for {n_rows} "
        f"row{'' if n_rows == 1 else 's'} it takes {needed} of each class or more."
    )

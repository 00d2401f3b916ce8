"""Which tiles each slide of the table has, found and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.markup import escape

from napari_lrmil.atomic import fitting_name
from napari_lrmil.errors import ConfigError, UnknownMppError, reason_of
from napari_lrmil.slide import Slide, TileGrid, TileSpec, find_nested_tiles, tile_grid
from napari_lrmil.slide.identity import stamp_of
from napari_lrmil.slide.tiles import check_damage, find_magnifications, holding
from training.data.table import SlideRow
from training.files import Json, remembered
from training.hashing import content_hash
from training.progress import Reporter
from training.section import Section


class TilesSection(Section):
    """The tiles of student (LR) and teacher (HR)."""

    tile_px: int = Field(default=256, gt=0, description="edge of a tile, both resolutions")
    mpp_lr: float = Field(default=2.0, gt=0, description="µm/px of the student: 2.0 is 5x")
    ratio: int = Field(default=4, ge=2, description="mpp_lr / mpp_hr: 4 makes the teacher's 0.5 µm/px, 20x")
    min_tissue: float = Field(default=0.25, ge=0, le=1, description="smallest share of tissue of a tile")
    apply_icc: bool = Field(
        default=False, description="convert to sRGB by the slides' ICC profiles, as at inference"
    )

    def geometry(self, default_mpp: float | None) -> TileGeometry:
        """Return what is read of a slide; `default_mpp` is that of slides which say none themselves."""
        return TileGeometry(
            self.tile_px, self.mpp_lr, self.ratio, self.min_tissue, default_mpp, self.apply_icc
        )


MID_FACTOR = 2
"""Tiles along the edge of an LR tile at the resolution between LR and HR: 10x between 5x and 20x."""


class Reading(NamedTuple):
    """Which tiles an encoder reads, and of which pixels."""

    factor: int
    """Tiles along the edge of an LR tile: 1 for LR tiles, ratio for HR tiles."""
    enlarged: bool = False
    """Of the LR tile's pixels, enlarged `factor` times, instead of finer ones."""
    coarsest: int = 1
    """For a head of several magnifications: how many times coarser than these its coarsest is, on whose grid all lie. 1: for
    one of one magnification."""
    times: int = 1
    """How many times as wide the tiles are as those of `factor`: the head's coarser ones."""

    @property
    def is_of_several(self) -> bool:
        """Whether these are tiles for a head of several magnifications, which has tiles of its own."""
        return self.coarsest > 1


class Magnifications(NamedTuple):
    """What a head of several magnifications reads."""

    factor: int
    """Of its finest tiles, see `Reading`."""
    times: tuple[int, ...]
    """How many times coarser each is, the coarsest first; see `MILSpec.factors`."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The tiles of each."""
        return tuple(Reading(self.factor, False, self.times[0], times) for times in self.times)


class OnGrid(NamedTuple):
    """Tiles with tissue in a grid."""

    shape_yx: tuple[int, int]
    places: NDArray[np.int64]
    """(N, 2), (row, col), row by row."""


@dataclass(frozen=True)
class SlideTiles:
    """The tiles with tissue of one slide in both nested grids.

    Attributes
    ----------
    row : SlideRow
    lr_shape_yx : (int, int)
        Shape of the LR grid; the HR grid is `ratio` times as large.
    lr_places, hr_places : (N, 2), (M, 2) int64 arrays
        (row, col) in their grids, row by row.
    several : mapping
        Reading -> the tiles of it, of heads of several magnifications. Their grids have the origin of these two, and tiles at
        the same places, but another tissue mask: which tiles count may differ.
    """

    row: SlideRow
    lr_shape_yx: tuple[int, int]
    lr_places: NDArray[np.int64]
    hr_places: NDArray[np.int64]
    several: Mapping[Reading, OnGrid] = field(default_factory=dict)

    def places_of(self, reading: Reading, ratio: int) -> NDArray[np.int64]:
        """Return the tiles with tissue that an encoder reads, (N, 2), row by row; `ratio` is mpp_lr / mpp_hr."""
        return self.several[reading].places if reading.is_of_several else self.places(reading.factor, ratio)

    def places(self, factor: int, ratio: int) -> NDArray[np.int64]:
        """Return the tiles with tissue of the grid that has `factor` tiles along an LR tile's edge, (N, 2), row by row.

        Of a grid that is neither LR nor HR, these are the tiles that hold a part of an HR tile with tissue.

        Parameters
        ----------
        factor : int
        ratio : int
            mpp_lr / mpp_hr
        """
        if factor in (1, ratio):
            return self.lr_places if factor == 1 else self.hr_places
        return holding(self.hr_places, self.lr_shape_yx, factor, ratio)


@dataclass(frozen=True)
class TileGeometry:
    """Tile size, both resolutions and the tissue rule of a run."""

    tile_px: int
    mpp_lr: float
    ratio: int
    min_tissue: float
    default_mpp: float | None
    apply_icc: bool = False

    @property
    def lr_spec(self) -> TileSpec:
        """The student's tiles."""
        return TileSpec(self.tile_px, self.mpp_lr)

    def open(self, row: SlideRow) -> Slide:
        """Open a slide with the mpp of the table, of its file, or of the config, in that order."""
        slide = Slide(row.path, mpp=row.mpp, icc=self.apply_icc)
        if not slide.has_mpp and self.default_mpp is not None:
            slide.close()
            slide = Slide(row.path, mpp=self.default_mpp, icc=self.apply_icc)
        return slide

    def lr_grid(self, slide: Slide) -> TileGrid:
        """Return the grid of LR tiles; `subdivide(ratio)` makes the HR one."""
        return tile_grid(slide, self.lr_spec)

    def finest(self, factor: int) -> TileSpec:
        """Return the tiles of which `factor` lie along the edge of an LR tile."""
        return TileSpec(self.tile_px, self.mpp_lr / factor)

    def grid(self, slide: Slide, reading: Reading) -> TileGrid:
        """Return the grid of some tiles; of enlarged LR tiles that of the LR tiles."""
        if not reading.is_of_several:
            return self.lr_grid(slide).subdivide(1 if reading.enlarged else reading.factor)
        finest = self.finest(reading.factor)
        coarsest = tile_grid(slide, TileSpec(finest.tile_px, finest.mpp * reading.coarsest))
        return coarsest.subdivide(reading.coarsest // reading.times)

    def mpp(self, reading: Reading) -> float:
        """Return the µm/px of some tiles, as their grid has it."""
        if reading.is_of_several:
            coarsest = self.finest(reading.factor).mpp * reading.coarsest
            return coarsest / (reading.coarsest // reading.times)
        return self.mpp_lr / reading.factor


def index_slides(
    rows: list[SlideRow],
    geometry: TileGeometry,
    *,
    skip_bad: bool,
    reporter: Reporter,
    threads: int,
    known: Path | None = None,
    several: Collection[Magnifications] = (),
) -> list[SlideTiles]:
    """Open every slide, find its tissue tiles, and report all that are unusable at once.

    Parameters
    ----------
    rows : list of SlideRow
    geometry : TileGeometry
    skip_bad : bool
        Go on without the unusable ones instead.
    reporter : Reporter
    threads : int
    known : Path, optional
        Folder that keeps the tiles of unchanged slides for the next time.
    several : collection of Magnifications
        Of the run's heads that read more than one.

    Raises
    ------
    ConfigError
        Listing every slide that is missing, unreadable, of unknown mpp, too coarse, or without tissue.
    """
    found: list[SlideTiles] = []
    bad: list[str] = []
    for row, result in zip(
        rows,
        reporter.track(
            _examine(rows, geometry, threads, known, tuple(several)), "Checking slides", len(rows)
        ),
        strict=True,
    ):
        if isinstance(result, SlideTiles):
            found.append(result)
        else:
            bad.append(f"{row.slide_id}: {result}")
    if bad:
        listing = "\n  ".join(bad)
        if not skip_bad:
            raise ConfigError(
                f"{len(bad)} of {len(rows)} slides can't be used (--skip-bad-slides goes on without them):\n  {listing}"
            )
        reporter.say(f"[yellow]Skipped {len(bad)} of {len(rows)} slides:[/]\n  {escape(listing)}")
    if not found:
        raise ConfigError("no slide of the table can be used")
    return found


def _examine(
    rows: list[SlideRow],
    geometry: TileGeometry,
    threads: int,
    known: Path | None,
    several: tuple[Magnifications, ...],
) -> Iterator[SlideTiles | str]:
    def examine(row: SlideRow) -> SlideTiles | str:
        found = _remembered(row, geometry, known)
        return found if isinstance(found, str) else _with_several(found, geometry, known, several)

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(examine, rows)


def _with_several(
    tiles: SlideTiles, geometry: TileGeometry, known: Path | None, several: tuple[Magnifications, ...]
) -> SlideTiles | str:
    """Return a slide's tiles with those of some magnifications too, kept in a folder for each."""
    found: dict[Reading, OnGrid] = {}
    row = tiles.row
    for wanted in several:

        def examine(wanted: Magnifications = wanted) -> dict[str, Json]:
            try:
                with geometry.open(row) as slide:
                    sets = find_magnifications(
                        slide, geometry.finest(wanted.factor), wanted.times, min_tissue=geometry.min_tissue
                    )
                    for one in sets:
                        check_damage(slide, one, ratio=wanted.times[0])
                    slide.check_unchanged()
            except Exception as error:  # as of `_examine_one`
                mpps = ", ".join(f"{geometry.mpp(reading):g}" for reading in wanted.readings)
                text = f"for a head that reads {mpps} µm/px: {reason_of(error)}"
                raise _UnusableSlide(text) from error
            found: dict[str, Json] = {}
            for times, one in zip(wanted.times, sets, strict=True):
                found[f"places_{times}"] = np.stack([one.rows, one.cols], axis=1).tolist()
                found[f"shape_yx_{times}"] = list(one.grid.shape_yx)
            return found

        try:
            if known is None:
                saved = examine()
            else:
                name = f"{wanted.factor}_{'-'.join(map(str, wanted.times))}"
                saved = remembered(
                    known / name / f"{fitting_name(row.slide_id)}.json",
                    content_hash(stamp_of(row.path), row.mpp, geometry, tuple(wanted)),
                    examine,
                )
        except _UnusableSlide as error:
            return str(error)
        for reading in wanted.readings:
            places, shape = (
                np.asarray(saved[f"{what}_{reading.times}"], np.int64) for what in ("places", "shape_yx")
            )
            found[reading] = OnGrid((int(shape[0]), int(shape[1])), places.reshape(-1, 2))
    return replace(tiles, several=found) if found else tiles


def _remembered(row: SlideRow, geometry: TileGeometry, known: Path | None) -> SlideTiles | str:
    stamp = None
    if known is not None:
        # A slide that fails here is opened like any other, and then says what is wrong.
        with suppress(Exception):
            stamp = stamp_of(row.path)
    if known is None or stamp is None:
        return _examine_one(row, geometry)

    def examine() -> dict[str, Json]:
        found = _examine_one(row, geometry)
        if isinstance(found, str):
            raise _UnusableSlide(found)
        return {
            "lr_shape_yx": list(found.lr_shape_yx),
            "lr_places": found.lr_places.tolist(),
            "hr_places": found.hr_places.tolist(),
        }

    try:
        saved = remembered(
            known / f"{fitting_name(row.slide_id)}.json", content_hash(stamp, row.mpp, geometry), examine
        )
    except _UnusableSlide as error:
        return str(error)
    lr, hr, shape = (np.asarray(saved[name], np.int64) for name in ("lr_places", "hr_places", "lr_shape_yx"))
    return SlideTiles(row, (int(shape[0]), int(shape[1])), lr.reshape(-1, 2), hr.reshape(-1, 2))


class _UnusableSlide(Exception):
    """A slide without usable tiles; the text says why."""


def _examine_one(row: SlideRow, geometry: TileGeometry) -> SlideTiles | str:
    try:
        with geometry.open(row) as slide:
            lr, hr = find_nested_tiles(
                slide, geometry.lr_spec, min_tissue=geometry.min_tissue, ratio=geometry.ratio
            )
            check_damage(slide, lr, ratio=geometry.ratio)
            slide.check_unchanged()
    except UnknownMppError:
        return (
            "its µm/px is unknown; fill the column 'mpp' of the table, or set data.mpp for all such slides "
            "(0.25 at 40x, 0.5 at 20x)"
        )
    except Exception as error:  # noqa: BLE001  # whatever a slide does, it is told of and the others go on
        return reason_of(error)
    return SlideTiles(
        row, lr.grid.shape_yx, np.stack([lr.rows, lr.cols], axis=1), np.stack([hr.rows, hr.cols], axis=1)
    )

"""python -m training.studies.osteosarcoma SRC OUT: real tissue as slides, single regions and mosaics of them.

SRC holds JPEG regions of 1024 px at 10x (1.0 µm/px). Each is cropped to its upper left 896 px, which are 8 x 8 HR tiles
of 112 px at 1.0 µm/px and 2 x 2 LR tiles of 112 px at 4.0 µm/px: no tile reaches outside. Colours stay as they are.

    OUT/regions/slides.csv               one slide a region; patient_id is the block, site the patient
    OUT/mosaics/slides.csv, masks/       3 x 3 regions of one fold; positive where one to three are viable tumour
    OUT/mosaics/regions.csv              which region lies where

With ``--by patient`` there are two tables instead, slides_patient0.csv and slides_patient1.csv (mosaics_patient0/ and 1/):
each half of the patients is tested once, by students that never saw a patient of it. With ``--by one-patient`` there are
regions only: a table slides_without_PATIENT.csv for each patient who has both classes, who is its test part.

Mosaics of one part share its regions and aren't independent. Their patient_id is therefore the part: intervals resample
five groups of mosaics, not sixty mosaics, and are coarse. note.txt in each folder says so, and what is confounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from napari_lrmil.atomic import write_csv, write_text
from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training.cohort.writer import write_mask, write_slide
from training.progress import Reporter
from training.studies.mosaics import SIDE, Mosaic, compose, plan_mosaics, viable_mask
from training.studies.regions import (
    N_FOLDS,
    Region,
    confound_note,
    deal_blocks,
    deal_patients,
    find_regions,
    leave_patients_out,
)

MPP_L0 = 1.0
"""µm a pixel of the regions measures: 10x."""
CROP_PX = 896
DOWNSAMPLES = (1, 4)
MASK_DOWNSAMPLE = 8
"""Level-0 pixels a pixel of the masks measures: 8 µm, as in the generated cohort."""
JPEG_QUALITY = 90
PARTS_OF_MOSAICS = {"train": 3, "val": 1, "test": 2}
"""Mosaics in a named part, as a multiple of those in a fold."""

UNITS = {
    "regions": "Intervals resample blocks. Blocks of one patient are alike, so the intervals are narrower than they should be.",
    "mosaics": "Mosaics of one part of the split share its regions. Intervals resample whole parts: they are few, and the "
    "intervals coarse.",
}
"""What stands in for patients in a bootstrap, and what that does to intervals."""


class By(StrEnum):
    """What isn't shared between training and test."""

    BLOCK = "block"
    PATIENT = "patient"
    ONE_PATIENT = "one-patient"


app = Commands(add_completion=False, pretty_exceptions_enable=False)


def build(src: Path, out: Path, *, by: By, mosaics: int, seed: int, reporter: Reporter) -> list[Path]:
    """Write all slides and tables.

    Parameters
    ----------
    src : Path
        Folder of the regions.
    out : Path
        Made where missing; files of the same names are replaced.
    by : By
    mosaics : int
        A fold; even.
    seed : int
    reporter : Reporter

    Returns
    -------
    list of Path
        The tables.

    Raises
    ------
    ConfigError
        Where a region is unreadable or too small, or the split isn't possible.
    """
    regions = find_regions(src)
    if by is By.BLOCK:
        splits = {"": [str(fold) for fold in deal_blocks(regions, N_FOLDS, seed=seed)]}
    elif by is By.PATIENT:
        splits = {f"_patient{index}": parts for index, parts in enumerate(deal_patients(regions, seed=seed))}
    else:
        dealt = leave_patients_out(regions, seed=seed)
        splits = {f"_without_{patient}": parts for patient, parts in dealt.items()}
    # One patient's regions are too few for mosaics of their own.
    planned = {
        suffix: _plan(regions, parts, mosaics, seed)
        for suffix, parts in splits.items()
        if by is not By.ONE_PATIENT
    }
    pixels = {
        region.region_id: read_region(region)
        for region in reporter.track(regions, "Reading regions", len(regions))
    }
    for region in reporter.track(regions, "Writing regions", len(regions)):
        _write(out / "regions" / _file(region.region_id), pixels[region.region_id])
    tables = []
    for suffix, parts in splits.items():
        tables.append(_write_regions(out / "regions" / f"slides{suffix}.csv", regions, parts))
        if suffix in planned:
            tables.append(_write_mosaics(out / f"mosaics{suffix}", planned[suffix], pixels, reporter))
    for folder in sorted({table.parent for table in tables}):
        units = UNITS["regions" if folder.name == "regions" else "mosaics"]
        write_text(folder / "note.txt", f"{confound_note(regions, by_block=by is By.BLOCK)} {units}\n")
    return tables


def read_region(region: Region) -> NDArray[np.uint8]:
    """Read the upper left of the image, (896, 896, 3) uint8.

    Raises
    ------
    ConfigError
    """
    try:
        with Image.open(region.path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{region.path.name} can't be read: {error}") from error
    if min(pixels.shape[:2]) < CROP_PX:
        raise ConfigError(
            f"{region.path.name} has {pixels.shape[1]} x {pixels.shape[0]} px; at least {CROP_PX} are needed"
        )
    return np.ascontiguousarray(pixels[:CROP_PX, :CROP_PX])


def _plan(regions: list[Region], parts: Sequence[str], per_fold: int, seed: int) -> list[Mosaic]:
    return [
        mosaic
        for part in sorted(set(parts))
        for mosaic in plan_mosaics(
            [region for region, its_part in zip(regions, parts, strict=True) if its_part == part],
            part=part,
            n=per_fold * PARTS_OF_MOSAICS.get(part, 1),
            seed=seed,
        )
    ]


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    write_slide(path, pixels, jpeg_quality=JPEG_QUALITY, mpp=MPP_L0, downsamples=DOWNSAMPLES)


def _file(slide_id: str) -> str:
    return f"slides/{slide_id}.tif"


def _write_regions(path: Path, regions: list[Region], parts: Sequence[str]) -> Path:
    write_csv(
        path,
        ("slide_id", "path", "patient_id", "label", "fold", "site", "mpp", "kind"),
        (
            (
                region.region_id,
                _file(region.region_id),
                region.block,
                region.label,
                part,
                region.patient,
                MPP_L0,
                region.kind,
            )
            for region, part in zip(regions, parts, strict=True)
        ),
    )
    return path


def _write_mosaics(
    folder: Path, mosaics: list[Mosaic], pixels: dict[str, NDArray[np.uint8]], reporter: Reporter
) -> Path:
    for mosaic in reporter.track(mosaics, f"Writing {folder.name}", len(mosaics)):
        _write(folder / _file(mosaic.slide_id), compose(mosaic.cells, pixels))
        write_mask(
            folder / "masks" / f"{mosaic.slide_id}.png", viable_mask(mosaic.cells, CROP_PX // MASK_DOWNSAMPLE)
        )
    write_csv(
        folder / "regions.csv",
        ("slide_id", "row", "col", "region_id", "block", "patient", "kind", "quarter_turns", "flipped"),
        (
            (
                mosaic.slide_id,
                *divmod(place, SIDE),
                cell.region.region_id,
                cell.region.block,
                cell.region.patient,
                cell.region.kind,
                cell.quarter_turns,
                int(cell.flipped),
            )
            for mosaic in mosaics
            for place, cell in enumerate(mosaic.cells)
        ),
    )
    table = folder / "slides.csv"
    write_csv(
        table,
        ("slide_id", "path", "patient_id", "label", "fold", "mpp"),
        (
            (
                mosaic.slide_id,
                _file(mosaic.slide_id),
                f"part-{mosaic.part}",
                mosaic.label,
                mosaic.part,
                MPP_L0,
            )
            for mosaic in mosaics
        ),
    )
    return table


@app.command()
def main(
    src: Annotated[
        Path, typer.Argument(help="Folder of JPEG regions, Class___Case-1-A2-X-Y_N.jpg.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Where slides and tables go.", show_default=False)],
    by: Annotated[By, typer.Option(help="What training and test don't share.")] = By.BLOCK,
    mosaics: Annotated[int, typer.Option(help="Mosaics a fold, half of them positive.")] = 12,
    seed: Annotated[int, typer.Option(help="Of folds and mosaics.")] = 0,
) -> None:
    """Make slides of the osteosarcoma regions: one each, and (but for one-patient) mosaics of 3 x 3 of one fold."""
    with errors_as_messages():
        for table in build(src, out, by=by, mosaics=mosaics, seed=seed, reporter=Reporter()):
            typer.echo(f"Wrote {table}.")


if __name__ == "__main__":
    app(prog_name="python -m training.studies.osteosarcoma")

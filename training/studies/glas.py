"""python -m training.studies.glas SRC OUT: the colon regions of the GlaS challenge as slides, dealt by patient ten times.

SRC holds labels.csv (image, patient_id, label) and JPEG regions at 20x, 0.62 µm/px, of 775 x 522 px at most. They are for
research: neither they nor a model made of them belong in a package.

    OUT/slides/*.tif          one slide a region, cut to a multiple of four pixels, levels 1/2/4
    OUT/dealing0.csv ...      a table for `training.run`: the 16 patients dealt at random into 4 folds by patient, dealt again
                              until every fold has both classes

With ``--unlabelled SLIDES.csv`` the slides of another table stand in each of them without a label, for stage 1 on other
patients (`stage1.slides = "unlabelled"`), and two more tables are written:

    OUT/others.csv            the other way round: those slides with their labels, the colon regions without
    OUT/left_out.csv          with ``--left-out N``: N of those slides, by patient, which stand in none of the dealings, so that
                              what stage 1 learned from the rest can be measured on them (`training.studies.stand_in`)

Ten dealings are ten looks at the same 16 patients, never 160 patients.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image, UnidentifiedImageError

from napari_lrmil.atomic import write_csv
from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training.cohort.writer import write_slide
from training.data.table import SlideRow, read_table
from training.progress import Reporter

MPP_L0 = 0.62
"""µm a pixel of the regions measures."""
DOWNSAMPLES = (1, 2, 4)
JPEG_QUALITY = 95
N_FOLDS = 4
_MOST_DRAWS = 10_000
_COLUMNS = ("slide_id", "path", "patient_id", "label", "fold", "mpp")

app = Commands(add_completion=False, pretty_exceptions_enable=False)


class Region(NamedTuple):
    """One image of labels.csv."""

    path: Path
    patient_id: str
    label: str


def find_regions(src: Path) -> list[Region]:
    """Return the regions that labels.csv names, in its order.

    Raises
    ------
    ConfigError
        Where it is missing or lacks a column, or an image that it names does.
    """
    table = src / "labels.csv"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = [
                Region(src / row["image"], row["patient_id"], row["label"]) for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{table} isn't the table of the GlaS regions (image, patient_id, label): {error}"
        ) from error
    missing = [region.path.name for region in rows if not region.path.is_file()]
    if missing or not rows:
        raise ConfigError(
            f"{src} lacks {missing[0] if missing else 'regions: ' + table.name + ' has no row'}"
        )
    return rows


def deal(regions: list[Region], *, seed: int) -> dict[str, int]:
    """Deal the patients into folds, at random among the dealings whose folds all have both classes.

    Returns
    -------
    dict
        Patient -> fold, 0 to 3.

    Raises
    ------
    ConfigError
        Where no such dealing was found.
    """
    rng = np.random.default_rng(seed)
    patients = sorted({region.patient_id for region in regions})
    labels = {region.label for region in regions}
    for _ in range(_MOST_DRAWS):
        order = rng.permutation(len(patients))
        fold_of = {patients[index]: place % N_FOLDS for place, index in enumerate(order)}
        held = {(fold_of[region.patient_id], region.label) for region in regions}
        if len(held) == N_FOLDS * len(labels):
            return fold_of
    raise ConfigError(f"{len(patients)} patients can't be dealt into {N_FOLDS} folds of both classes")


def left_out_patients(rows: Sequence[SlideRow], n_slides: int, *, seed: int = 0) -> set[str]:
    """Return patients in random order, each as long as the slides of all don't become more than `n_slides`."""
    slides = Counter(row.patient_id for row in rows)
    patients = sorted(slides)
    chosen: set[str] = set()
    for index in np.random.default_rng(seed).permutation(len(patients)):
        patient = patients[index]
        if slides[patient] + sum(slides[other] for other in chosen) <= n_slides:
            chosen.add(patient)
    return chosen


def build(
    src: Path,
    out: Path,
    *,
    unlabelled: Path | None,
    dealings: int,
    left_out: int = 0,
    reporter: Reporter,
) -> list[Path]:
    """Write slides and tables.

    Parameters
    ----------
    src : Path
        Folder of the regions.
    out : Path
        Made where missing; files of the same names are replaced.
    unlabelled : Path, optional
        Table of other slides, whose labels are left out.
    dealings : int
        Tables to write; number k is of seed k.
    left_out : int
        Slides of the other table that stand in none of them.
    reporter : Reporter

    Raises
    ------
    ConfigError
        Where a region can't be read.
    """
    regions = find_regions(src)
    for region in reporter.track(regions, "Writing regions", len(regions)):
        try:
            with Image.open(region.path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise ConfigError(f"{region.path.name} can't be read: {error}") from error
        height, width = (edge - edge % DOWNSAMPLES[-1] for edge in pixels.shape[:2])
        write_slide(
            out / "slides" / f"{region.path.stem}.tif",
            np.ascontiguousarray(pixels[:height, :width]),
            jpeg_quality=JPEG_QUALITY,
            mpp=MPP_L0,
            downsamples=DOWNSAMPLES,
        )
    every = [] if unlabelled is None else read_table(unlabelled)
    aside = left_out_patients(every, left_out)
    others = [row for row in every if row.patient_id not in aside]
    tables = []
    for seed in range(dealings):
        fold_of = deal(regions, seed=seed)
        ours = (
            (
                region.path.stem,
                f"slides/{region.path.stem}.tif",
                f"glas-{region.patient_id}",
                region.label,
                fold_of[region.patient_id],
                MPP_L0,
            )
            for region in regions
        )
        tables.append(out / f"dealing{seed}.csv")
        write_csv(tables[-1], _COLUMNS, (*ours, *map(_without_label, others)))
    if every:
        known = ((*_without_label(row)[:3], row.label, "", row.mpp or "") for row in every if row.label)
        colon = (
            (region.path.stem, f"slides/{region.path.stem}.tif", f"glas-{region.patient_id}", "", "", MPP_L0)
            for region in regions
        )
        tables.append(out / "others.csv")
        write_csv(tables[-1], _COLUMNS, (*known, *colon))
    if aside:
        tables.append(out / "left_out.csv")
        write_csv(tables[-1], _COLUMNS, [_without_label(row) for row in every if row.patient_id in aside])
    return tables


def _without_label(row: SlideRow) -> tuple[object, ...]:
    return row.slide_id, row.path.resolve(), row.patient_id, "", "", row.mpp or ""


@app.command()
def main(
    src: Annotated[Path, typer.Argument(help="Folder of labels.csv and its regions.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Where slides and tables go.", show_default=False)],
    unlabelled: Annotated[
        Path | None, typer.Option(help="Table of other slides, to stand in each table without a label.")
    ] = None,
    dealings: Annotated[int, typer.Option(help="Tables, each with the patients dealt anew.", min=1)] = 10,
    left_out: Annotated[
        int, typer.Option(help="Slides of the other table that stand in none of these.", min=0)
    ] = 0,
) -> None:
    """Make slides of the GlaS regions, and tables that deal their patients into folds."""
    with errors_as_messages():
        made = build(
            src, out, unlabelled=unlabelled, dealings=dealings, left_out=left_out, reporter=Reporter()
        )
        for table in made:
            typer.echo(f"Wrote {table}.")


if __name__ == "__main__":
    app(prog_name="python -m training.studies.glas")

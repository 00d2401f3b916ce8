"""python -m training.studies.kfold_table COHORT: the generated cohort as a table to be dealt into folds.

`slides.csv` of a cohort fixes which slides train and test. `slides_kfold.csv` beside it has the same slides without the
column fold: a run then deals the labelled ones into folds by patient. Unlabelled slides stay unlabelled, each of a
patient of its own, and serve stage 1 in every fold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_lrmil.atomic import write_csv
from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training.data.table import read_table

app = Commands(add_completion=False, pretty_exceptions_enable=False)


def write_kfold_table(cohort: Path) -> Path:
    """Write ``slides_kfold.csv`` beside ``slides.csv``.

    Raises
    ------
    ConfigError
        Where the table is missing or wrong, or an unlabelled slide is of a patient with labelled ones.
    """
    rows = read_table(cohort / "slides.csv")
    labelled = {row.patient_id for row in rows if row.label is not None}
    shared = sorted({row.patient_id for row in rows if row.label is None} & labelled)
    if shared:
        raise ConfigError(f"unlabelled and labelled slides share the patients {', '.join(shared[:5])}")
    out = cohort / "slides_kfold.csv"
    write_csv(
        out,
        ("slide_id", "path", "patient_id", "label", "mpp"),
        (
            (
                row.slide_id,
                row.path.relative_to(cohort).as_posix(),
                row.patient_id,
                row.label or "",
                row.mpp or "",
            )
            for row in rows
        ),
    )
    return out


@app.command()
def main(
    cohort: Annotated[Path, typer.Argument(help="Folder of a generated cohort.", show_default=False)],
) -> None:
    """Write slides_kfold.csv beside the cohort's slides.csv: the same slides without fixed parts."""
    with errors_as_messages():
        typer.echo(f"Wrote {write_kfold_table(cohort)}.")


if __name__ == "__main__":
    app(prog_name="python -m training.studies.kfold_table")

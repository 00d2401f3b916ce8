"""python -m training.tables: slide tables of published data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from napari_lrmil.errors import ConfigError
from napari_lrmil.terminal import Commands, errors_as_messages
from training.tables.bracs import draft_bracs
from training.tables.build import Draft, Missing, Shared, SlideFolder, write_table
from training.tables.camelyon16 import draft_camelyon16
from training.tables.camelyon17 import draft_camelyon17
from training.tables.clam import apply_split, read_dataset, split_files
from training.tables.tcga import Study, draft_tcga

app = Commands(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Write the slide table of a published data set from its own label files.",
)

Slides = Annotated[
    Path, typer.Option("--slides", help="Folder with the slides, at any depth.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", help="The table to write.")]
MissingOption = Annotated[
    Missing, typer.Option("--missing", help="Slides that aren't in the folder: stop, leave out, or write.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the table.")]
SharedOption = Annotated[
    Shared,
    typer.Option(
        "--shared-patients",
        help="Patients in two parts of the split: stop, or keep their slides in the held-out part only.",
    ),
]
Labels = Annotated[Path, typer.Argument(show_default=False)]


@dataclass(frozen=True)
class _Target:
    slides: SlideFolder
    out: Path
    missing: Missing
    force: bool

    def write(self, draft: Draft, out: Path | None = None, *, suffix: str = ".svs") -> None:
        write_table(
            draft,
            self.slides,
            out or self.out,
            missing=self.missing,
            force=self.force,
            console=Console(),
            suffix=suffix,
        )


@contextmanager
def _target(slides: Path, out: Path, missing: Missing, force: bool) -> Iterator[_Target]:
    """Give a command the place of its table, and show its errors as messages."""
    with errors_as_messages():
        if out.exists() and not force:
            raise ConfigError(f"{out} exists already; --force replaces it")
        yield _Target(SlideFolder(slides), out, missing, force)


def _classes(number: int, allowed: tuple[int, ...]) -> int:
    if number not in allowed:
        raise typer.BadParameter(
            f"{number} is none of {', '.join(map(str, allowed))}", param_hint="--classes"
        )
    return number


@app.command()
def tcga(
    study: Annotated[
        Study,
        typer.Argument(
            help="brca: IDC or ILC; nsclc: LUAD or LUSC; rcc: KIRC, KIRP or KICH.", show_default=False
        ),
    ],
    files: Annotated[
        Path, typer.Argument(help="The GDC portal's sample sheet (TSV) or manifest.", show_default=False)
    ],
    slides: Slides,
    clinical: Annotated[
        Path | None,
        typer.Option(help="The portal's clinical.tsv; needed for brca, and with a manifest."),
    ] = None,
    out: Out = Path("slides.csv"),
    frozen: Annotated[bool, typer.Option("--frozen", help="Frozen sections too.")] = False,
    missing: MissingOption = Missing.error,
    force: Force = False,
) -> None:
    """TCGA, from the GDC portal's files: diagnostic slides of tumours; the tissue source is the site."""
    with _target(slides, out, missing, force) as target:
        target.write(draft_tcga(study, files, clinical, frozen=frozen))


@app.command()
def bracs(
    labels: Annotated[
        Path,
        typer.Argument(help="BRACS.xlsx, its sheet WSI_Information as CSV, or ACMIL's bracs.csv."),
    ],
    slides: Slides,
    out: Out = Path("slides.csv"),
    classes: Annotated[int, typer.Option(help="7, or 3: benign, atypical, malignant.")] = 7,
    split: Annotated[
        Path | None,
        typer.Option(help="A CLAM-style split file instead of the split in the label file."),
    ] = None,
    shared_patients: SharedOption = Shared.error,
    missing: MissingOption = Missing.error,
    force: Force = False,
) -> None:
    """BRACS, with its official split."""
    with _target(slides, out, missing, force) as target:
        n_classes = _classes(classes, (7, 3))
        target.write(draft_bracs(labels, n_classes=n_classes, split=split, shared=shared_patients))


@app.command()
def camelyon16(
    slides: Slides,
    labels: Annotated[
        Path | None,
        typer.Argument(
            help="testing/reference.csv, or a CSV of all slides with case_id, slide_id, label.",
            show_default=False,
        ),
    ] = None,
    out: Out = Path("slides.csv"),
    val: Annotated[float, typer.Option(help="Share of the training slides that validates.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Which ones: same seed, same slides.")] = 0,
    missing: MissingOption = Missing.error,
    force: Force = False,
) -> None:
    """CAMELYON16: its official test slides; validation is taken from training."""
    with _target(slides, out, missing, force) as target:
        target.write(draft_camelyon16(labels, target.slides, val_share=val, seed=seed), suffix=".tif")


@app.command()
def camelyon17(
    labels: Annotated[
        Path, typer.Argument(help="stage_labels.csv, or ACMIL's camelyon17.csv.", show_default=False)
    ],
    slides: Slides,
    out: Out = Path("slides.csv"),
    classes: Annotated[int, typer.Option(help="4: negative, itc, micro, macro; or 2.")] = 4,
    missing: MissingOption = Missing.error,
    force: Force = False,
) -> None:
    """CAMELYON17's labelled slides; the centre is the site. Folds are dealt when training starts."""
    with _target(slides, out, missing, force) as target:
        target.write(draft_camelyon17(labels, n_classes=_classes(classes, (4, 2))), suffix=".tif")


@app.command()
def clam(
    labels: Annotated[Path, typer.Argument(help="CSV with case_id, slide_id, label.", show_default=False)],
    slides: Slides,
    split: Annotated[
        Path | None,
        typer.Argument(
            help="splits_N.csv or splits_N_bool.csv; with --all-splits their folder. Without it folds are dealt when "
            "training starts.",
            show_default=False,
        ),
    ] = None,
    out: Out = Path("slides.csv"),
    all_splits: Annotated[
        bool, typer.Option("--all-splits", help="A table for each split: slides_0.csv, slides_1.csv, ...")
    ] = False,
    shared_patients: SharedOption = Shared.error,
    missing: MissingOption = Missing.error,
    force: Force = False,
) -> None:
    """Tables made for CLAM, with its split files."""
    with _target(slides, out, missing, force) as target:
        entries = read_dataset(labels)
        if not all_splits:
            target.write(Draft(entries) if split is None else apply_split(entries, split, shared_patients))
            return
        if split is None:
            raise ConfigError("--all-splits needs the folder of the split files after the label file")
        outs = {n: out.with_stem(f"{out.stem}_{n}") for n in split_files(split)}
        there = [str(path) for path in outs.values() if path.exists()]
        if there and not force:
            raise ConfigError(f"{', '.join(there)} exist already; --force replaces them")
        for number, path in split_files(split).items():
            target.write(apply_split(entries, path, shared_patients), outs[number])


if __name__ == "__main__":
    app(prog_name="python -m training.tables")

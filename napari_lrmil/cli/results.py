"""What a run of `lrmil predict` writes and shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import LRMILError, SlideError
from napari_lrmil.export.tables import (
    PREDICTIONS_NAME,
    FolderRow,
    csv_text,
    spreadsheet_safe,
    write_folder_table,
)
from napari_lrmil.wording import Status

if TYPE_CHECKING:
    from napari_lrmil.batch import BatchEvent
    from napari_lrmil.cache import ResultSummary

ERRORS_NAME = "errors.csv"
MAX_ROWS = 30
"""Slides that the screen shows one by one; more are a matter for the table."""


@dataclass
class Outcome:
    """How a run went, by slide.

    Attributes
    ----------
    stems : dict of Path to str
        Every slide of the run in order, and the name of its results.
    done : dict of Path to ResultSummary
    cached : set of Path
        Of those done, the ones that were there before.
    failed : dict of Path to str
    """

    stems: dict[Path, str]
    done: dict[Path, ResultSummary] = field(default_factory=dict)
    cached: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)

    def take(self, event: BatchEvent, out: Path | None) -> None:
        """Note how a slide ended, and write its files where there is a folder for them.

        Raises
        ------
        LRMILError
            Where the folder can't take them: no slide after this one would fare better.
        """
        from napari_lrmil.cache import summarise
        from napari_lrmil.export.errors import ExportError
        from napari_lrmil.export.result import write_prediction

        if event.prediction is None:
            self.failed[event.path] = event.error
            return
        if out is not None:
            try:
                write_prediction(event.prediction, out, stem=self.stems[event.path])
            except ExportError as error:
                self.failed[event.path] = str(error)
                return
            except OSError as error:
                raise LRMILError(f"{out} can't take results ({error.strerror or error})") from error
        self.done[event.path] = summarise(event.prediction)
        if event.cached:
            self.cached.add(event.path)

    def write(self, out: Path, class_names: Sequence[str]) -> None:
        """``predictions.csv``, and ``errors.csv`` where a slide failed, each whole or not at all."""
        rows = [
            FolderRow(stem, self.done.get(path), error=self.failed.get(path, ""))
            for path, stem in self.stems.items()
            if path in self.done or path in self.failed
        ]
        try:
            write_folder_table(out / PREDICTIONS_NAME, rows, class_names=class_names, show_identifiers=True)
            if self.failed:
                # A table that `lrmil predict` takes, to run the failed ones again: path and id stay as they are.
                failures = [
                    (path.absolute(), self.stems[path], spreadsheet_safe(text))
                    for path, text in self.failed.items()
                ]
                write_text(out / ERRORS_NAME, csv_text(["path", "slide_id", "error"], failures))
            else:
                (out / ERRORS_NAME).unlink(missing_ok=True)
        except OSError as error:
            raise LRMILError(f"{out} can't take the results ({error.strerror or error})") from error

    def slides_table(self, class_names: Sequence[str]) -> RenderableType:
        """A row for each slide that is done."""
        table = Table("slide", "label", *map(escape, class_names), "tiles", "seconds")
        for path, stem in self.stems.items():
            if path not in self.done:
                continue
            result = self.done[path]
            # That the model is a demonstration is said once, above the table.
            marks = [mark for mark in result.status if mark not in (Status.OK, Status.DEMONSTRATION)]
            table.add_row(
                escape(stem),
                escape(result.label) + (f" [yellow]({', '.join(marks)})[/]" if marks else ""),
                *(f"{value:.3f}" for value in result.class_probabilities),
                str(result.n_tiles),
                "cached" if path in self.cached else f"{result.seconds:.1f}",
            )
        return table

    def counts_table(self) -> RenderableType:
        """How many slides went which way."""
        table = Table("slides", "computed", "from cache", "failed", "unsure", "unlike training", "left")
        table.add_row(
            str(len(self.stems)),
            str(len(self.done) - len(self.cached)),
            str(len(self.cached)),
            f"[bold red]{len(self.failed)}[/]" if self.failed else "0",
            _count(r.unsure for r in self.done.values() if r.prediction_set is not None),
            _count(r.out_of_distribution for r in self.done.values() if r.ood_score is not None),
            str(len(self.stems) - len(self.done) - len(self.failed)),
        )
        return table


def unique_stems(slides: Iterable[tuple[Path, str]]) -> dict[Path, str]:
    """Return a name for each slide's results: its id, or where ids are the same, its file name, then with its folder's.

    Parameters
    ----------
    slides : iterable of (path, id)

    Raises
    ------
    SlideError
        Where two slides would still get the same name.
    """
    pairs = [(path, name.replace("/", "_").replace("\\", "_")) for path, name in slides]
    _refuse_same(sorted(path.name for path, count in Counter(path for path, _ in pairs).items() if count > 1))
    stems = [stem for _, stem in pairs]
    reserved = [Path(PREDICTIONS_NAME).stem, Path(ERRORS_NAME).stem]
    for longer in (lambda path: path.name, lambda path: f"{path.absolute().parent.name}_{path.name}"):
        taken = Counter(stems + reserved)
        stems = [
            longer(path) if taken[stem] > 1 else stem for (path, _), stem in zip(pairs, stems, strict=True)
        ]
    counts = Counter(stems)
    _refuse_same(sorted(stem for stem in counts if counts[stem] > 1))
    return {path: stem for (path, _), stem in zip(pairs, stems, strict=True)}


def _refuse_same(names: list[str]) -> None:
    if names:
        named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise SlideError(f"two slides would write the same results: {named}. Run them apart.")


def refuse_existing(out: Path, stems: Iterable[str], overwrite: bool) -> None:
    """Refuse to replace the files of an earlier run unless asked to.

    Raises
    ------
    SlideError
    """
    there = [
        stem for stem in stems if any((out / f"{stem}{ending}").exists() for ending in (".json", ".csv"))
    ]
    if there and not overwrite:
        raise SlideError(
            f"{out} already holds results of {len(there)} of these slides ({', '.join(there[:3])}"
            f"{', ...' if len(there) > 3 else ''}). Add --overwrite to replace them."
        )


def make_folder(out: Path) -> None:
    """Make the folder of the results before the work, so that it isn't done in vain.

    Raises
    ------
    LRMILError
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LRMILError(f"{out} can't be the folder of the results: {error.strerror}") from error


def _count(marks: Iterable[bool]) -> str:
    """Return how many are true; a dash where the bundle doesn't tell."""
    known = list(marks)
    return str(sum(known)) if known else "-"

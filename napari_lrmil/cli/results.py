"""What a run of `lrmil predict` writes and shows."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from napari_lrmil.atomic import fitting_name, write_text
from napari_lrmil.errors import LRMILError, SlideError, readable
from napari_lrmil.export.tables import (
    FAILED,
    PREDICTIONS_NAME,
    FolderRow,
    csv_text,
    folder_columns,
    folder_table,
)
from napari_lrmil.table import as_it_was, spreadsheet_safe
from napari_lrmil.wording import Status, counted_answer, counts_text

if TYPE_CHECKING:
    from napari_lrmil.batch import BatchEvent
    from napari_lrmil.cache import ResultSummary
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction

ERRORS_NAME = "errors.csv"
_SAME_PROBABILITY = 1e-3
"""Two computers, or batches of two sizes, give the same result within this."""
MAX_ROWS = 30
"""Slides that the screen shows one by one; more are a matter for the table."""


@dataclass
class Outcome:
    """How a run went, by slide, on the way into its files.

    Attributes
    ----------
    stems : dict of Path to str
        Every slide of the run in order, and the name of its results.
    class_names : sequence of str
    out : Path, optional
        Folder of the files; None: the results go into the cache alone.
    overwrite : bool
        Whether files of other results may be replaced.
    done : dict of Path to ResultSummary
    cached : set of Path
        Of those done, the ones that were there before.
    failed : dict of Path to str
    """

    stems: dict[Path, str]
    class_names: Sequence[str]
    out: Path | None = None
    overwrite: bool = False
    done: dict[Path, ResultSummary] = field(default_factory=dict)
    cached: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)
    _earlier: dict[Path, str] = field(default_factory=dict)
    """Rows of an earlier run for slides that this one hasn't come to: a run that goes on takes nothing away."""

    def take(self, event: BatchEvent) -> None:
        """Note how a slide ended, and write its files, and its line of the tables, where there is a folder for them.

        Raises
        ------
        LRMILError
            Where the folder can't take them: no slide after this one would fare better.
        """
        from napari_lrmil.cache import summarise
        from napari_lrmil.export.errors import ExportError

        error = event.error
        if event.prediction is not None:
            if self.out is None:
                # What the cache doesn't keep is nowhere.
                error = event.note and f"its result ({event.prediction.answer}) isn't kept: {event.note}"
            else:
                try:
                    self._write_result(event.prediction, event.path)
                except ExportError as fault:
                    error = str(fault)
                except OSError as fault:
                    raise self._full(fault) from fault
            if not error:
                self.done[event.path] = summarise(event.prediction)
                if event.cached:
                    self.cached.add(event.path)
        if error:
            self.failed[event.path] = error
        self._add_line(event.path)

    def _write_result(self, prediction: SlidePrediction, path: Path) -> None:
        from napari_lrmil.export.errors import ExportError
        from napari_lrmil.export.result import read_document, result_document, write_prediction

        assert self.out is not None
        stem = self.stems[path]
        there = self.out / f"{stem}.json"
        if not self.overwrite and there.exists():
            old, new = read_document(there), result_document(prediction)
            same = all(
                abs(old.probabilities.get(name, 2.0) - value) < _SAME_PROBABILITY
                for name, value in new.probabilities.items()
            )
            if not same or old.slide_fingerprint != new.slide_fingerprint:
                raise ExportError(
                    f"{there} is the result of another slide or of other settings. Add --overwrite to replace it."
                )
        write_prediction(prediction, self.out, stem=stem)

    def _add_line(self, path: Path) -> None:
        """Add a slide to the tables, which are complete up to there whenever the program ends."""
        if self.out is None:
            return
        if len(self.done) + len(self.failed) == 1:  # the first one: the tables of an earlier run go
            self._earlier = {} if self.overwrite else self._rows_of_before()
            self.write()
            return
        row = self._predictions([path])
        try:
            if path not in self._earlier:
                _append(self.out / PREDICTIONS_NAME, row)
            elif self._earlier[path] != _rows_alone(row):
                self.write()
            if path in self.failed:
                _append(self.out / ERRORS_NAME, self._errors([path]))
        except OSError as error:
            raise self._full(error) from error

    def write(self) -> None:
        """``predictions.csv`` in the order of the run, and ``errors.csv`` where a slide failed, each whole or not at all."""
        if self.out is None:
            return
        ended = [path for path in self.stems if path in self.done or path in self.failed]
        already = set(ended)
        earlier = "".join(row for path, row in self._earlier.items() if path not in already)
        try:
            write_text(self.out / PREDICTIONS_NAME, self._predictions(ended) + earlier)
            if self.failed:
                write_text(
                    self.out / ERRORS_NAME, self._errors([path for path in ended if path in self.failed])
                )
            else:
                (self.out / ERRORS_NAME).unlink(missing_ok=True)
        except OSError as error:
            raise self._full(error) from error

    def _rows_of_before(self) -> dict[Path, str]:
        """The rows of results that are still there."""
        assert self.out is not None
        try:
            with (self.out / PREDICTIONS_NAME).open(newline="", encoding="utf-8") as file:
                columns, *rows = csv.reader(file)
        except (OSError, ValueError, csv.Error):  # an empty file has no columns
            return {}
        if columns != folder_columns(self.class_names):
            return {}
        by_name = {as_it_was(row[0]): row for row in rows if len(row) == len(columns)}
        said_to_be_there = {path: by_name[stem] for path, stem in self.stems.items() if stem in by_name}
        return {
            path: _rows_alone(csv_text(columns, [row]))
            for path, row in said_to_be_there.items()
            if row[columns.index("status")] != FAILED and (self.out / f"{self.stems[path]}.json").exists()
        }

    def _predictions(self, paths: Sequence[Path]) -> str:
        rows = [
            FolderRow(self.stems[path], self.done.get(path), error=self.failed.get(path, ""))
            for path in paths
        ]
        return folder_table(rows, class_names=self.class_names, show_identifiers=True)

    def _errors(self, paths: Sequence[Path]) -> str:
        # A table that `lrmil predict` takes, to run the failed ones again.
        failures = [
            tuple(map(spreadsheet_safe, (str(path.absolute()), self.stems[path], self.failed[path])))
            for path in paths
        ]
        return csv_text(["path", "slide_id", "error"], failures)

    def _full(self, error: OSError) -> LRMILError:
        return LRMILError(f"{self.out} can't take results ({error.strerror or error})")

    def slides_table(self) -> RenderableType:
        """A row for each slide that is done."""
        table = Table("slide", "answer", *map(escape, self.class_names), "tiles", "seconds")
        for path, stem in self.stems.items():
            if path not in self.done:
                continue
            result = self.done[path]
            marks = _marks(result)
            table.add_row(
                escape(stem),
                escape(result.answer) + (f" [yellow]({', '.join(marks)})[/]" if marks else ""),
                *("-" if result.label is None else f"{value:.3f}" for value in result.class_probabilities),
                str(result.n_tiles),
                "cached" if path in self.cached else f"{result.seconds:.1f}",
            )
        return table

    def line(self, path: Path) -> str:
        """How a slide went, for an output that is no terminal."""
        number = f"{len(self.done) + len(self.failed)}/{len(self.stems)} {self.stems[path]}"
        if path in self.failed:
            return readable(f"{number}: failed: {self.failed[path]}")
        result = self.done[path]
        time = "from cache" if path in self.cached else f"{result.seconds:.1f} s"
        answer = result.answer if result.label is None else f"{result.label} {result.probability:.3f}"
        told = ", ".join([answer, *_marks(result), time])
        return readable(f"{number}: {told}")

    def answers_text(self) -> str:
        """How many slides have which answer; empty where none has one."""
        if not self.done:
            return ""
        told = [
            counts_text(
                counted_answer(one.answer, one.label, unsure=one.unsure) for one in self.done.values()
            )
        ]
        told += [f"{len(self.failed):,} failed"] if self.failed else []
        left = len(self.stems) - len(self.done) - len(self.failed)
        told += [f"{left:,} left"] if left else []
        return readable(f"{len(self.stems):,} slides: {', '.join(told)}")

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


def _marks(result: ResultSummary) -> list[str]:
    """What stands beside an answer on the screen; that the model is a demonstration is said once, above."""
    said = {Status.OK, Status.DEMONSTRATION}
    said |= {Status.UNLIKE_TRAINING, Status.UNSURE} if result.label is None else set()
    return [mark for mark in result.status if mark not in said]


def unique_stems(slides: Iterable[tuple[Path, str]]) -> dict[Path, str]:
    """Return a name for each slide's results: its id, or where ids are the same, its file name, then with its folder's.

    What isn't text in a name is replaced. Names that a file system would refuse as too long are cut, and those that are
    still the same get a hash of the path at their end.

    Parameters
    ----------
    slides : iterable of (path, id)

    Raises
    ------
    SlideError
        Where a slide is named twice.
    """
    pairs = [(path, _file_name(name)) for path, name in slides]
    twice = sorted(path.name for path, count in Counter(path for path, _ in pairs).items() if count > 1)
    if twice:
        named = ", ".join(twice[:3]) + (", ..." if len(twice) > 3 else "")
        raise SlideError(f"two slides would write the same results: {named}. Run them apart.")
    stems = [stem for _, stem in pairs]
    reserved = [Path(PREDICTIONS_NAME).stem, Path(ERRORS_NAME).stem]
    for longer in (_name_of, _name_with_folder, _name_with_hash):
        taken = Counter(stems + reserved)
        stems = [
            longer(path) if taken[stem] > 1 else stem for (path, _), stem in zip(pairs, stems, strict=True)
        ]
    return {path: stem for (path, _), stem in zip(pairs, stems, strict=True)}


def _name_of(path: Path) -> str:
    return _file_name(path.name)


def _name_with_folder(path: Path) -> str:
    return _file_name(f"{path.absolute().parent.name}_{path.name}")


def _name_with_hash(path: Path) -> str:
    return fitting_name(_name_of(path), str(path.absolute()), most_bytes=0)


def _file_name(name: str) -> str:
    """A name as that of a file: text, in one folder, and short enough with an ending."""
    plain = readable(name).replace("/", "_").replace("\\", "_").replace("\n", "_").replace("\t", "_")
    return fitting_name(plain, name)


def refuse_existing(out: Path, stems: Iterable[str], info: BundleInfo) -> None:
    """Refuse to replace the files of an earlier run, unless they are of this bundle: then the run goes on.

    Raises
    ------
    SlideError
    """
    there = [stem for stem in stems if _is_other(out, stem, info)]
    if there:
        raise SlideError(
            f"{out} already holds results of {len(there)} of these slides ({', '.join(there[:3])}"
            f"{', ...' if len(there) > 3 else ''}). Add --overwrite to replace them."
        )


def _is_other(out: Path, stem: str, info: BundleInfo) -> bool:
    """Whether files of a slide are there that this bundle didn't write."""
    from napari_lrmil.export.errors import ResultFileError
    from napari_lrmil.export.result import read_document, tile_columns

    json_path, csv_path = out / f"{stem}.json", out / f"{stem}.csv"
    if json_path.exists():
        try:
            made_by = read_document(json_path).bundle
            return made_by.weights_sha256 != info.weights_sha256 or made_by.sha256 not in (None, info.sha256)
        except ResultFileError:
            return True
    if not csv_path.exists():
        return False
    # Killed between the two files, a run leaves the table alone, and no line of the slide in its own table.
    try:
        with csv_path.open(newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file), [])
        with (out / PREDICTIONS_NAME).open(newline="", encoding="utf-8") as file:
            told = {row.get("slide") for row in csv.DictReader(file)}
    except (OSError, ValueError, csv.Error):
        return True
    return columns != tile_columns(info.class_names) or spreadsheet_safe(stem) in told


def _append(path: Path, table: str) -> None:
    """Add the rows of a table to a file in one write; a new file gets the header too."""
    if not path.exists():
        write_text(path, table)
        return
    with path.open("ab", buffering=0) as file:
        file.write(_rows_alone(table).encode())


def _rows_alone(table: str) -> str:
    """A table without its header."""
    return table.partition("\n")[2]


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

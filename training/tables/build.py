"""From a data set's entries to the table: slides found, patients checked, counts shown."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.model_selection import StratifiedGroupKFold

from napari_lrmil.atomic import replacing, write_csv
from napari_lrmil.errors import ConfigError
from napari_lrmil.slide.files import DICOM_SUFFIX, SLIDE_SUFFIXES, TIFF_SUFFIXES
from training.data.splits import make_splits, some
from training.data.table import read_table

SUFFIXES = SLIDE_SUFFIXES | TIFF_SUFFIXES | {DICOM_SUFFIX}
_ORDER = ("train", "val", "test")


class Missing(StrEnum):
    """What happens to slides that aren't in the folder."""

    error = "error"
    skip = "skip"
    keep = "keep"


class Shared(StrEnum):
    """What happens to patients in two parts of an official split."""

    error = "error"
    drop = "drop"


@dataclass(frozen=True)
class Entry:
    """One slide of a label file, before it is found on disk."""

    slide_id: str
    patient_id: str
    label: str
    site: str = ""
    fold: str = ""
    file_name: str = ""
    """With its ending, where the label file says it; else any slide called `slide_id`."""
    folder: str = ""
    """Name of the folder it lies in, where that is known: tells copies apart."""


@dataclass(frozen=True)
class Draft:
    """Entries of a data set, and what to tell about how they came about."""

    entries: list[Entry]
    notes: list[str] = field(default_factory=list)


class SlideFolder:
    """The slide files below a folder, links followed."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ConfigError(f"no such folder of slides: {root}")
        self.root = root
        self.files: list[Path] = []
        self._named: dict[str, list[Path]] = {}
        for folder, subfolders, names in os.walk(root, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    self.files.append(path)
                    self._named.setdefault(path.name, []).append(path)
                    self._named.setdefault(path.stem, []).append(path)

    def find(self, entry: Entry) -> Path | None:
        """Return the slide of an entry.

        Raises
        ------
        ConfigError
            Where several files could be it.
        """
        found = self._named.get(entry.file_name or entry.slide_id, [])
        if len(found) > 1:
            found = [path for path in found if path.parent.name == entry.folder] or found
        if len(found) > 1:
            raise ConfigError(
                f"{len(found)} files could be slide {entry.slide_id}: {some([str(path) for path in found], 3)}. "
                "Leave one of them below the folder"
            )
        return found[0] if found else None

    def expected(self, entry: Entry, suffix: str) -> Path:
        """Return where a slide that isn't there yet will probably lie."""
        return self.root / entry.folder / (entry.file_name or entry.slide_id + suffix)


def check_patients(entries: list[Entry], shared: Shared = Shared.error) -> Draft:
    """Refuse a named split that has a patient in two parts.

    With `Shared.drop`, a patient's slides stay only where they are held out most: test before val before
    train, so that the published val and test stay whole.

    Raises
    ------
    ConfigError
        Naming the patients and their parts.
    """
    parts: dict[str, set[str]] = {}
    for entry in entries:
        parts.setdefault(entry.patient_id, set()).add(entry.fold)
    torn = {patient: found for patient, found in sorted(parts.items()) if len(found) > 1}
    if not torn:
        return Draft(entries)
    if shared is Shared.error:
        named = [f"{patient} ({', '.join(sorted(found, key=_rank))})" for patient, found in torn.items()]
        raise ConfigError(
            f"{len(torn)} patients are in two parts of the split, which leaks: {some(named)}. "
            "--shared-patients drop keeps their slides in the held-out part only"
        )
    kept = [
        entry
        for entry in entries
        if entry.patient_id not in torn or entry.fold == max(torn[entry.patient_id], key=_rank)
    ]
    left_out = [entry.slide_id for entry in entries if entry not in kept]
    note = f"left out {len(left_out)} slides of {len(torn)} patients who are also in a held-out part: {some(left_out)}"
    return Draft(kept, [note])


def hold_out(entries: list[Entry], share: float, seed: int) -> list[Entry]:
    """Move a share of the training slides to val, by patient and stratified by label.

    Raises
    ------
    ConfigError
        Where the share isn't between 0.05 and 0.5.
    """
    if not 0.05 <= share <= 0.5:
        raise ConfigError(f"the share of validation must be from 0.05 to 0.5, got {share}")
    train = [entry for entry in entries if entry.fold == "train"]
    if not train:
        return entries
    n_parts = round(1 / share)
    rarest = min(Counter(entry.label for entry in train).values())
    if rarest < n_parts:
        raise ConfigError(
            f"validation can't be taken from training: a class has only {rarest} training slides, and a share of "
            f"{share} needs {n_parts}"
        )
    splitter = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed)
    _, chosen = next(
        splitter.split(train, [entry.label for entry in train], [entry.patient_id for entry in train])
    )
    val = {train[index].slide_id for index in chosen.tolist()}
    return [replace(entry, fold="val") if entry.slide_id in val else entry for entry in entries]


def write_table(
    draft: Draft,
    slides: SlideFolder,
    out: Path,
    *,
    missing: Missing,
    force: bool,
    console: Console,
    suffix: str = ".svs",
) -> None:
    """Find the slides, write the table and show what is in it.

    Parameters
    ----------
    draft : Draft
    slides : SlideFolder
    out : Path
        Paths in it are relative where the slides lie below its folder.
    missing : Missing
    force : bool
        Replace `out`.
    console : Console
    suffix : str
        Ending of missing slides that are kept, where the label file doesn't say it.

    Raises
    ------
    ConfigError
        Where `out` is there already, slides are missing, or the table wouldn't be read.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} exists already; --force replaces it")
    found = {entry.slide_id: slides.find(entry) for entry in draft.entries}
    absent = [slide_id for slide_id, path in found.items() if path is None]
    if absent and missing is Missing.error:
        raise ConfigError(
            f"{len(absent)} of {len(found)} slides are not below {slides.root}: {some(absent)}. "
            "--missing skip leaves them out, --missing keep writes them all the same"
        )
    notes = list(draft.notes)
    entries = draft.entries
    if absent and missing is Missing.skip:
        entries = [entry for entry in entries if found[entry.slide_id] is not None]
        notes.append(
            f"left out {len(absent)} of {len(found)} slides that are not below {slides.root}: {some(absent)}"
        )
    elif absent:
        notes.append(f"{len(absent)} of {len(found)} slides are not below {slides.root} yet: {some(absent)}")
    if not entries:
        raise ConfigError(f"no slide is left for the table; {'; '.join(notes)}")
    paths = [found[entry.slide_id] or slides.expected(entry, suffix) for entry in entries]
    optional = [name for name in ("site", "fold") if any(getattr(entry, name) for entry in entries)]
    cells = (
        [entry.slide_id, _path_text(path, out), entry.patient_id, entry.label]
        + [getattr(entry, name) for name in optional]
        for entry, path in zip(entries, paths, strict=True)
    )
    with replacing(out) as scratch:
        write_csv(scratch, ["slide_id", "path", "patient_id", "label", *optional], cells)
        said: list[str] = []
        try:
            rows = read_table(scratch, allow_similar_names=True, note=said.append)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(scratch), "the table would be refused")) from error
    for note in [*notes, *(text.removeprefix(f"{scratch.name}: ") for text in said)]:
        console.print(f"[yellow]Note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    _show(entries, console)
    try:
        make_splits(rows, n_folds=5, seed=0)
    except ConfigError as error:
        console.print(
            f"[yellow]As it stands, training refuses this table:[/] {escape(str(error))}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Wrote {escape(str(out))}: {len(entries)} slides.", highlight=False, soft_wrap=True)


def _path_text(path: Path, out: Path) -> str:
    path, folder = path.absolute(), out.parent.absolute()
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _show(entries: list[Entry], console: Console) -> None:
    """Show slides and patients of each class, by part of the split, and where they come from."""
    labels = sorted({entry.label for entry in entries})
    folds = sorted({entry.fold for entry in entries if entry.fold}, key=_rank)
    table = Table("class", "slides", "patients", *folds)
    for label in [*labels, None]:
        chosen = [entry for entry in entries if label is None or entry.label == label]
        by_fold = Counter(entry.fold for entry in chosen)
        table.add_row(
            escape(label) if label is not None else "[bold]all",
            str(len(chosen)),
            str(len({entry.patient_id for entry in chosen})),
            *[str(by_fold[fold]) for fold in folds],
        )
    console.print(table)
    by_site: dict[str, Counter[str]] = {}
    for entry in entries:
        if entry.site:
            by_site.setdefault(entry.site, Counter())[entry.label] += 1
    if not by_site:
        return
    most = sorted(by_site, key=lambda site: (-by_site[site].total(), site))
    table = Table("site", *map(escape, labels))
    for site in most[:12]:
        table.add_row(escape(site), *[str(by_site[site][label]) for label in labels])
    if len(most) > 12:
        rest = sum((by_site[site] for site in most[12:]), Counter())
        table.add_row(f"{len(most) - 12} more", *[str(rest[label]) for label in labels])
    console.print(table)


def _rank(fold: str) -> tuple[int, str]:
    return (_ORDER.index(fold) if fold in _ORDER else len(_ORDER), fold)

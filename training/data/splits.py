"""Folds: by patient, stratified by label, and where wanted without a site in two parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel
from sklearn.model_selection import StratifiedGroupKFold

from napari_lrmil.errors import ConfigError, is_one_line, shortened
from napari_lrmil.model.bundle import LONGEST_NAME
from napari_lrmil.model.card import why_no_class
from training.data.site_folds import deal_sites
from training.data.table import SlideRow
from training.hashing import content_hash

SPLIT_NAMES = ("train", "val", "calibration", "test", "unlabelled")

_LEAST_CALIBRATION, _LEAST_VALIDATION = 9, 12
"""Slides: fewer can't promise 90 %, and fewer would choose an epoch badly."""


class Split(NamedTuple):
    """Rows by use in one fold; `extra` has no labels and serves stage 1 only.

    `val` chooses epochs, scalings and thresholds. `calibration` was taken out of it and chooses nothing: the sets of classes
    are calibrated on it. It is empty where validation has too few slides for two parts.
    """

    fold: int
    train: tuple[SlideRow, ...]
    val: tuple[SlideRow, ...]
    test: tuple[SlideRow, ...]
    extra: tuple[SlideRow, ...]
    calibration: tuple[SlideRow, ...] = ()

    @property
    def labelled(self) -> tuple[SlideRow, ...]:
        """Training, validation, calibration and test slides."""
        return (*self.train, *self.val, *self.calibration, *self.test)


def class_names(rows: list[SlideRow]) -> tuple[str, ...]:
    """Return the labels in alphabetical order.

    Raises
    ------
    ConfigError
        Where there are fewer than two, or a bundle couldn't hold one: it is more than a name on one line, or `why_no_class`
        says why.
    """
    names = tuple(sorted({row.label for row in rows if row.label is not None}))
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise ConfigError(f"a classifier needs at least two classes; the column 'label' holds {found}")
    odd = next((name for name in names if len(name) > LONGEST_NAME or not is_one_line(name)), None)
    if odd is not None:
        raise ConfigError(
            f"the label {shortened(odd)!r} is no name of a class: it has more than {LONGEST_NAME} characters, or "
            "characters that move the cursor"
        )
    for name in names:
        if why := why_no_class(name):
            raise ConfigError(
                f"the label {name!r} can't be the name of a class: it is {why}. Call it otherwise in "
                "the column 'label'"
            )
    return names


def make_splits(
    rows: list[SlideRow],
    *,
    n_folds: int,
    seed: int,
    preserved_sites: bool = False,
    calibration: float = 0.0,
) -> list[Split]:
    """Return splits by patient.

    The column fold decides where the table has it: the names train, val, test (and calibration, unlabelled) make one
    fixed split; whole numbers are folds of which each is tested once, the next one validates. Without
    the column, patients are dealt into `n_folds` folds, stratified by label. Unlabelled slides serve a
    numbered fold only where their patient and fold aren't held out in it.

    Parameters
    ----------
    rows : list of SlideRow
    n_folds : int
        Where the table has no column fold.
    seed : int
    preserved_sites : bool
        No site (hospital) is in two parts of a split either: else the test slides' staining and scanner
        are known from training, and results look better than they are (Howard et al., Nature
        Communications 2021). Whole sites are dealt, so folds are less even. Where the column fold
        decides, it is checked.
    calibration : float
        Share of the validation patients that calibrates sets of classes and chooses nothing, where both parts are
        large enough then and the table names none.

    Raises
    ------
    ConfigError
        Where a patient is in two parts, a part is empty, or lacks a class. With `preserved_sites` also
        where a site is in two parts, isn't given, or a class comes from fewer sites than there are folds.
    """
    names = class_names(rows)
    if preserved_sites:
        _check_sites(rows)
    labelled = [row for row in rows if row.label is not None]
    extra = tuple(row for row in rows if row.label is None)
    folds = {row.fold for row in labelled}
    if None in folds and len(folds) > 1:
        missing = [row.slide_id for row in labelled if row.fold is None]
        raise ConfigError(f"column 'fold' is empty for {len(missing)} labelled slides: {some(missing)}")
    if folds == {None}:
        dealt = _deal_sites(labelled, n_folds, seed) if preserved_sites else _deal(labelled, n_folds, seed)
        splits = _numbered_splits(labelled, dealt, extra, preserved_sites)
    elif folds <= set(SPLIT_NAMES):
        parts = {part: tuple(row for row in labelled if row.fold == part) for part in SPLIT_NAMES}
        if parts["unlabelled"]:
            raise ConfigError(
                f"slides marked unlabelled have a label: {some([row.slide_id for row in parts['unlabelled']])}"
            )
        held_out = [row.slide_id for row in extra if row.fold in ("val", "calibration", "test")]
        if held_out:
            raise ConfigError(f"slides of val or test have no label: {some(held_out)}")
        splits = [
            Split(0, parts["train"], parts["val"], parts["test"], extra, calibration=parts["calibration"])
        ]
    elif all(fold is not None and fold.isdecimal() for fold in folds):
        numbers = [int(row.fold or 0) for row in labelled]
        splits = _numbered_splits(labelled, numbers, extra, preserved_sites)
    else:
        odd = sorted(fold for fold in folds if fold and fold not in SPLIT_NAMES and not fold.isdecimal())
        raise ConfigError(
            f"column 'fold' mixes kinds or holds {', '.join(map(repr, odd)) or 'both'}: use either whole numbers or "
            f"the names {', '.join(SPLIT_NAMES)}"
        )
    for split in splits:
        _check_split(split, names, preserved_sites)
    return [_with_calibration(split, calibration, seed) for split in splits]


def _with_calibration(split: Split, share: float, seed: int) -> Split:
    """Take a share of each class's validation patients out of validation, where both parts are large enough then."""
    if split.calibration or not share:
        return split
    labels: dict[str, set[str]] = {}
    for row in split.val:
        labels.setdefault(row.patient_id, set()).add(row.label or "")
    alike: dict[tuple[str, ...], list[str]] = {}
    for patient, found in sorted(labels.items()):
        alike.setdefault(tuple(sorted(found)), []).append(patient)
    rng = np.random.default_rng((seed, split.fold))
    chosen: set[str] = set()
    for _, patients in sorted(alike.items()):
        chosen |= set(rng.permutation(patients)[: round(share * len(patients))].tolist())
    calibration = tuple(row for row in split.val if row.patient_id in chosen)
    val = tuple(row for row in split.val if row.patient_id not in chosen)
    classes = {row.label for row in split.val}
    if (
        len(calibration) < _LEAST_CALIBRATION
        or len(val) < _LEAST_VALIDATION
        or {row.label for row in val} != classes
        or {row.label for row in calibration} != classes
    ):
        return split
    return split._replace(val=val, calibration=calibration)


def splits_key(
    rows: Iterable[SlideRow],
    *,
    n_folds: int,
    seed: int,
    preserved_sites: bool = False,
    calibration: float = 0.0,
) -> str:
    """Return a hash of what `make_splits` deals from: splits of the same key needn't be dealt anew."""
    dealt = [(row.slide_id, row.patient_id, row.label, row.fold, row.site) for row in rows]
    return content_hash(n_folds, seed, preserved_sites, calibration, dealt)


class _KeptFold(BaseModel):
    """The ids of a fold's slides by use."""

    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    extra: tuple[str, ...]
    calibration: tuple[str, ...] = ()


class KeptSplits(BaseModel):
    """Splits as a run keeps them: every slide once, with what the table says of it, and each fold's ids."""

    key: str
    """See `splits_key`."""
    slides: tuple[SlideRow, ...]
    folds: tuple[_KeptFold, ...]

    @classmethod
    def of(cls, splits: Sequence[Split], key: str) -> KeptSplits:
        """Describe splits."""
        rows = {row.slide_id: row for split in splits for row in (*split.labelled, *split.extra)}
        ids = [
            {part: tuple(row.slide_id for row in getattr(split, part)) for part in Split._fields[1:]}
            for split in splits
        ]
        folds = tuple(_KeptFold(fold=split.fold, **parts) for split, parts in zip(splits, ids, strict=True))
        return cls(key=key, slides=tuple(rows.values()), folds=folds)

    def splits(self, rows: Iterable[SlideRow] | None = None) -> list[Split]:
        """Return the splits again.

        Parameters
        ----------
        rows : iterable of SlideRow, optional
            As the table has them now (a slide may lie elsewhere); default as they were.

        Raises
        ------
        KeyError
            Where a slide isn't among them.
        """
        by_id = {row.slide_id: row for row in (self.slides if rows is None else rows)}

        def part(names: tuple[str, ...]) -> tuple[SlideRow, ...]:
            return tuple(by_id[name] for name in names)

        return [
            Split(
                kept.fold,
                part(kept.train),
                part(kept.val),
                part(kept.test),
                part(kept.extra),
                part(kept.calibration),
            )
            for kept in self.folds
        ]


def label_imbalance(splits: Sequence[Split]) -> float:
    """Return how far labels are from even over the test parts: 0 is perfect.

    The largest difference, over test parts and classes, between the share of a class's slides that the
    part holds and one over the number of parts. With five folds, 0.05 means that some fold tests 15 or
    25 % of a class instead of 20.
    """
    counts = [Counter(row.label for row in split.test) for split in splits]
    totals: Counter[str | None] = sum(counts, Counter())
    return max(
        abs(count[name] / total - 1 / len(splits)) for count in counts for name, total in totals.items()
    )


def shared_between(
    parts: dict[str, Iterable[SlideRow]], key: Callable[[SlideRow], str | None]
) -> dict[str, list[str]]:
    """Return the patients or sites that are in two parts, with the names of these parts, in order."""
    where: dict[str, list[str]] = {}
    for part, rows in parts.items():
        for row in rows:
            name = key(row)
            if name is not None and part not in where.setdefault(name, []):
                where[name].append(part)
    return {name: found for name, found in sorted(where.items()) if len(found) > 1}


def some(names: Sequence[str], most: int = 10) -> str:
    """Name the first of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_sites(rows: list[SlideRow]) -> None:
    without = [row.slide_id for row in rows if row.site is None]
    if without:
        raise ConfigError(
            f"preserved sites need the column 'site'; it is empty for {len(without)} slides: {some(without)}"
        )
    sites: dict[str, set[str]] = {}
    for row in rows:
        sites.setdefault(row.patient_id, set()).add(row.site or "")
    torn = sorted(patient for patient, found in sites.items() if len(found) > 1)
    if torn:
        raise ConfigError(
            f"preserved sites need each patient at one site; {len(torn)} patients have several: {some(torn)}"
        )


def _deal(rows: list[SlideRow], n_folds: int, seed: int) -> list[int]:
    patients = {row.patient_id for row in rows}
    if len(patients) < n_folds:
        raise ConfigError(
            f"{n_folds} folds need as many patients; there are {len(patients)} (data.n_folds sets it)"
        )
    for name in sorted({row.label for row in rows if row.label is not None}):
        n_of_class = len({row.patient_id for row in rows if row.label == name})
        if n_of_class < n_folds:
            raise ConfigError(
                f"{n_folds} folds need as many patients of each class; {name!r} has {n_of_class} (data.n_folds sets it)"
            )
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold_of = np.zeros(len(rows), int)
    parts = splitter.split(rows, [row.label for row in rows], [row.patient_id for row in rows])
    for fold, (_, test) in enumerate(parts):
        fold_of[test] = fold
    return fold_of.tolist()


def _deal_sites(rows: list[SlideRow], n_folds: int, seed: int) -> list[int]:
    sites = sorted({row.site or "" for row in rows})
    names = sorted({row.label or "" for row in rows})
    counts = np.zeros((len(sites), len(names)), np.int64)
    for row in rows:
        counts[sites.index(row.site or ""), names.index(row.label or "")] += 1
    for name, n_sites in zip(names, (counts > 0).sum(axis=0).tolist(), strict=True):
        if n_sites < n_folds:
            raise ConfigError(
                f"{n_folds} folds without a site in two of them need each class from as many sites; {name!r} comes "
                f"from {n_sites}. Use fewer folds (data.n_folds) or data.preserved_sites = false"
            )
    fold_of = deal_sites(counts, n_folds=n_folds, seed=seed)
    if fold_of is None:
        raise ConfigError(
            f"no way was found to deal {len(sites)} sites into {n_folds} folds that hold every class each. Use fewer "
            "folds (data.n_folds) or data.preserved_sites = false"
        )
    return [int(fold_of[sites.index(row.site or "")]) for row in rows]


def _numbered_splits(
    rows: list[SlideRow], folds: list[int], extra: tuple[SlideRow, ...], preserved_sites: bool
) -> list[Split]:
    numbers = sorted(set(folds))
    if len(numbers) < 3:
        raise ConfigError(f"train, validation and test need at least 3 folds; there are {len(numbers)}")
    splits = []
    for place, fold in enumerate(numbers):
        val_fold = numbers[(place + 1) % len(numbers)]
        where: dict[str, list[SlideRow]] = {"test": [], "val": [], "train": []}
        for row, number in zip(rows, folds, strict=True):
            where["test" if number == fold else "val" if number == val_fold else "train"].append(row)
        held_out = [row for part in ("val", "test") for row in where[part]]
        patients = {row.patient_id for row in held_out}
        sites = {row.site for row in held_out} if preserved_sites else set()
        usable = tuple(
            row
            for row in extra
            if row.patient_id not in patients
            and row.site not in sites
            and not (row.fold and row.fold.isdecimal() and int(row.fold) in (fold, val_fold))
        )
        splits.append(Split(fold, tuple(where["train"]), tuple(where["val"]), tuple(where["test"]), usable))
    return splits


def _check_split(split: Split, names: tuple[str, ...], preserved_sites: bool) -> None:
    parts = {"train": split.train, "val": split.val, "test": split.test}
    # Unlabelled slides are trained on, so that they may share patients with train.
    used = {"train": (*split.train, *split.extra), "val": split.val, "test": split.test}
    used |= {"calibration": split.calibration} if split.calibration else {}
    shared = shared_between(dict(used), lambda row: row.patient_id)
    if shared:
        slides = [row.slide_id for rows in (*parts.values(), split.calibration, split.extra) for row in rows]
        patients = [
            row.patient_id for rows in (*parts.values(), split.calibration, split.extra) for row in rows
        ]
        found = [slide for slide, patient in zip(slides, patients, strict=True) if patient in shared]
        raise ConfigError(
            f"fold {split.fold}: {len(shared)} patients are in two parts of the split, which leaks; their slides: "
            f"{some(found)}"
        )
    if preserved_sites and (sites := shared_between(dict(used), lambda row: row.site)):
        raise ConfigError(
            f"fold {split.fold}: {len(sites)} sites are in two parts of the split: {some(list(sites))}. The column "
            "'fold' deals them so; change it, or set data.preserved_sites = false"
        )
    for part, rows in parts.items():
        absent = [name for name in names if name not in {row.label for row in rows}]
        if absent:
            raise ConfigError(
                f"fold {split.fold}: {part} has no slide of class {', '.join(absent)} ({len(rows)} slides in all)"
            )

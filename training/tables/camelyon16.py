"""CAMELYON16: training labels are the slides' names, test labels stand in reference.csv; or ACMIL's CSV."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from napari_lrmil.errors import ConfigError
from training.data.splits import some
from training.tables.build import Draft, Entry, Shared, SlideFolder, check_patients, hold_out
from training.tables.clam import is_dataset, read_dataset
from training.tables.source import Layout, first_line, read_source

_NAME = re.compile(r"(normal|tumor|test)_\d+")
_DUPLICATE = "test_049"
"""The organisers withdrew it: a copy of another slide."""
REFERENCE = Layout(
    "CAMELYON16's reference.csv",
    needed={"slide": ("slide", "name", "image_name", "image", "slide_id"), "label": ("label", "class")},
    optional={"type": ("type",), "size": ("size", "metastasis")},
)
_LABELS = {"normal": "normal", "negative": "normal", "0": "normal", "tumor": "tumor", "1": "tumor"}


def draft_camelyon16(labels: Path | None, slides: SlideFolder, *, val_share: float, seed: int) -> Draft:
    """Return the entries of CAMELYON16: the official test set, and validation taken from training.

    Parameters
    ----------
    labels : Path, optional
        reference.csv (test slides; training slides are those in the folder), or a CSV of all slides with
        the columns case_id, slide_id, label. Without it the folder may hold training slides only.
    slides : SlideFolder
    val_share : float
        Of the training slides, stratified by label, patients kept together.
    seed : int

    Raises
    ------
    ConfigError
    """
    notes = []
    if labels is not None and is_dataset(labels):
        entries = [_labelled(entry) for entry in read_dataset(labels)]
        several = len(entries) - len({entry.patient_id for entry in entries})
        if several:
            notes.append(
                f"{labels.name} gives some slides one case_id ({several} slides more than cases). CAMELYON16 itself "
                "publishes no patients, so this can't be verified; such slides are kept in one part"
            )
    else:
        entries = _from_names(slides, {} if labels is None else _read_reference(labels))
        notes.append("CAMELYON16 publishes no patients: each slide counts as one of its own")
    if any(entry.slide_id == _DUPLICATE for entry in entries):
        entries = [entry for entry in entries if entry.slide_id != _DUPLICATE]
        notes.append(f"left out {_DUPLICATE}: a copy of another slide, which the organisers withdrew")
    if not any(entry.fold == "test" for entry in entries):
        notes.append("no test slides: the table gets no split, and is dealt into folds by patient")
        return Draft([replace(entry, fold="") for entry in entries], notes)
    check_patients(entries, Shared.error)
    return Draft(hold_out(entries, val_share, seed), notes)


def _labelled(entry: Entry) -> Entry:
    label = _LABELS.get(entry.label.lower())
    match = _NAME.fullmatch(entry.slide_id)
    if label is None or match is None:
        raise ConfigError(
            f"slide {entry.slide_id!r} with label {entry.label!r}: expected are slides normal_N, tumor_N and test_N "
            "with label normal or 0, tumor or 1"
        )
    if match[1] in ("normal", "tumor") and match[1] != label:
        raise ConfigError(f"slide {entry.slide_id} is labelled {label}, its name says otherwise")
    return replace(entry, label=label, fold="test" if match[1] == "test" else "train")


def _read_reference(path: Path) -> dict[str, str]:
    line = first_line(path)
    named = None if not line or not _NAME.match(line[0]) else ("slide", "label", "type", "size")[: len(line)]
    records = read_source(path, header=named).records(REFERENCE)
    return {record["slide"].removesuffix(".tif"): record["label"] for record in records}


def _from_names(slides: SlideFolder, reference: dict[str, str]) -> list[Entry]:
    names = sorted({path.stem for path in slides.files if _NAME.fullmatch(path.stem)})
    train = [name for name in names if not name.startswith("test_")]
    tests = sorted(reference) or [name for name in names if name.startswith("test_")]
    unlabelled = [name for name in tests if name not in reference and name != _DUPLICATE]
    if unlabelled:
        raise ConfigError(
            f"{len(unlabelled)} test slides have no label: {some(unlabelled)}. Give testing/reference.csv of "
            "CAMELYON16"
        )
    if not train:
        raise ConfigError(f"no slides normal_N or tumor_N are below {slides.root}")
    labelled = [Entry(name, name, name.partition("_")[0]) for name in train]
    labelled += [Entry(name, name, reference[name]) for name in tests if name in reference]
    return [_labelled(entry) for entry in labelled]

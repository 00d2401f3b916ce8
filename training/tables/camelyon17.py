"""CAMELYON17: stage_labels.csv, or ACMIL's CSV of a part of it. The centre is the site."""

from __future__ import annotations

import re
from pathlib import Path

from napari_lrmil.errors import ConfigError
from training.tables.build import Draft, Entry
from training.tables.clam import is_dataset, read_dataset
from training.tables.source import Layout, read_source

STAGES = Layout("CAMELYON17's stage_labels.csv", needed={"name": ("patient",), "stage": ("stage",)})
CLASSES = ("negative", "itc", "micro", "macro")
_SLIDE = re.compile(r"patient_(\d{3})_node_\d")
_BINARY = {"0": "negative", "1": "positive", "negative": "negative", "positive": "positive"}


def draft_camelyon17(labels: Path, *, n_classes: int) -> Draft:
    """Return the entries of CAMELYON17's training slides; patients 0-19 are centre 0, 20-39 centre 1, and so on.

    Parameters
    ----------
    labels : Path
    n_classes : int
        4: negative, itc, micro, macro; 2: negative, positive (isolated tumour cells count as positive).

    Raises
    ------
    ConfigError
    """
    if not is_dataset(labels):
        records = read_source(labels).records(STAGES)
        # Rows of patients (patient_000.zip) hold pN stages.
        found = {
            record["name"].removesuffix(".tif"): record["stage"].lower()
            for record in records
            if record["name"].endswith(".tif")
        }
        if not found:
            raise ConfigError(f"{labels.name} has no row patient_NNN_node_N.tif")
        return Draft([_entry(slide, stage, n_classes) for slide, stage in found.items()])
    entries = read_dataset(labels)
    drafted = [_entry(entry.slide_id, entry.label.lower(), n_classes) for entry in entries]
    differ = sum(one.patient_id != other.patient_id for one, other in zip(drafted, entries, strict=True))
    note = (
        f"patients are read from the slides' names: {differ} of {len(entries)} case_ids in {labels.name} differ "
        "(patient_04 stands for patients 040 to 049)"
    )
    return Draft(drafted, [note] if differ else [])


def _entry(slide: str, stage: str, n_classes: int) -> Entry:
    match = _SLIDE.fullmatch(slide)
    if match is None:
        raise ConfigError(f"slide {slide!r}: expected is a name like patient_004_node_2")
    if n_classes == 4 and stage in _BINARY and stage not in CLASSES:
        raise ConfigError(f"slide {slide} is labelled {stage!r}, which is one of two classes: --classes 2")
    label = stage if n_classes == 4 else _BINARY.get(stage, "positive" if stage in CLASSES else "")
    if label not in (*CLASSES, "positive"):
        raise ConfigError(f"slide {slide}: stage {stage!r} is none of {', '.join(CLASSES)}")
    number = int(match[1])
    # The centres of the hundred test patients aren't published.
    site = f"centre_{number // 20}" if number < 100 else ""
    return Entry(slide, f"patient_{match[1]}", label, site)

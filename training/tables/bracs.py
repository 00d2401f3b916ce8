"""BRACS: the official BRACS.xlsx (or its sheet as CSV), or the CSV of the ACMIL code, with the official split."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.errors import ConfigError
from training.data.splits import some
from training.tables.build import Draft, Entry, Shared, check_patients
from training.tables.clam import apply_split
from training.tables.source import Layout, Record, first_line, read_source

SHEET = "WSI_Information"
CLASSES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
"""Normal, pathological benign, usual ductal hyperplasia, flat epithelial atypia, atypical ductal hyperplasia,
ductal carcinoma in situ, invasive carcinoma; in the order of the numbers that other tables give them."""
GROUPS = {
    "N": "benign",
    "PB": "benign",
    "UDH": "benign",
    "FEA": "atypical",
    "ADH": "atypical",
    "DCIS": "malignant",
    "IC": "malignant",
}
_PARTS = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "val": "val",
    "testing": "test",
    "test": "test",
}

OFFICIAL = Layout(
    f"BRACS.xlsx (sheet {SHEET}) or that sheet as CSV",
    needed={
        "slide": ("WSI Filename",),
        "patient": ("Patient Id",),
        "label": ("WSI label",),
        "part": ("Set",),
    },
    optional={"rois": ("RoI number", "RoI", "RoI count")},
)
ACMIL = Layout(
    "the BRACS table of ACMIL",
    needed={
        "patient": ("case_id",),
        "slide": ("slide_id",),
        "part": ("split_info",),
        "label": ("label",),
    },
    optional={"path": ("full_path",), "row": ("",)},
)


def draft_bracs(labels: Path, *, n_classes: int, split: Path | None, shared: Shared) -> Draft:
    """Return the entries of BRACS with its split.

    Parameters
    ----------
    labels : Path
    n_classes : int
        7, or 3: benign, atypical, malignant.
    split : Path, optional
        A CLAM-style split file instead of the split in `labels`.
    shared : Shared
        What happens to patients in two parts.

    Raises
    ------
    ConfigError
    """
    is_sheet = labels.suffix.lower() == ".xlsx"
    layout = ACMIL if not is_sheet and ACMIL.fits(first_line(labels)) else OFFICIAL
    records = read_source(labels, sheet=SHEET if is_sheet else None).records(layout)
    entries = [_entry(record, n_classes) for record in records]
    notes = []
    if len({entry.patient_id for entry in entries}) == len(entries):
        notes.append(
            f"{labels.name} gives each slide a patient of its own, but BRACS has several slides of many patients: "
            "leaks between the parts can't be seen. BRACS.xlsx names the patients"
        )
    drafted = check_patients(entries, shared) if split is None else apply_split(entries, split, shared)
    return Draft(drafted.entries, notes + drafted.notes)


def _entry(record: Record, n_classes: int) -> Entry:
    slide = record["slide"].removesuffix(".svs")
    label = record["label"].upper()
    if label.isdecimal() and int(label) < len(CLASSES):
        label = CLASSES[int(label)]
    if label not in CLASSES:
        raise ConfigError(f"slide {slide}: label {record['label']!r} is none of {', '.join(CLASSES)}")
    folder = record.get("path", "").replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
    if folder.startswith("Type_") and folder != f"Type_{label}":
        raise ConfigError(f"slide {slide}: label {record['label']!r} is {label}, but its folder is {folder}")
    part = _PARTS.get(record["part"].lower())
    if part is None:
        raise ConfigError(f"slide {slide}: set {record['part']!r} is none of {some(list(_PARTS))}")
    return Entry(slide, record["patient"], GROUPS[label] if n_classes == 3 else label, fold=part)

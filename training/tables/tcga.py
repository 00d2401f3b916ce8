"""TCGA: the GDC portal's sample sheet or manifest, with its clinical TSV.

A slide's barcode says most: ``TCGA-A1-A0SB-01Z-00-DX1`` is a slide of patient TCGA-A1-A0SB, whose tissue
came from site A1; sample type 01 is a primary tumour (01-09 are tumours, 10-19 normal), DX1 the first
diagnostic slide (TS, MS and BS are frozen sections).
"""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from napari_lrmil.errors import ConfigError
from training.tables.build import SUFFIXES, Draft, Entry
from training.tables.source import Layout, Record, first_line, read_source


class Study(StrEnum):
    """The classification tasks."""

    brca = "brca"
    nsclc = "nsclc"
    rcc = "rcc"


_CLASSES = {
    Study.nsclc: {"TCGA-LUAD": "LUAD", "TCGA-LUSC": "LUSC"},
    Study.rcc: {"TCGA-KIRC": "KIRC", "TCGA-KIRP": "KIRP", "TCGA-KICH": "KICH"},
}
_DIAGNOSES = {
    "infiltrating duct carcinoma, nos": "IDC",
    "lobular carcinoma, nos": "ILC",
    "infiltrating lobular carcinoma, nos": "ILC",
}
_ABSENT = {"", "--", "'--", "not reported", "unknown"}
_BARCODE = re.compile(r"(TCGA-(\w{2})-\w{4})-(\d{2})[A-Z]-\d{2}-([A-Z]{2})\w*\b", re.ASCII)

SAMPLE_SHEET = Layout(
    "a GDC sample sheet",
    needed={"id": ("File ID",), "name": ("File Name",), "project": ("Project ID",), "case": ("Case ID",)},
    # Exports of before 2024 say Sample Type, later ones Tissue Type.
    optional={"tissue": ("Tissue Type", "Sample Type")},
    closed=False,
)
MANIFEST = Layout(
    "a GDC manifest",
    needed={"id": ("id",), "name": ("filename",)},
    optional={"md5": ("md5",), "size": ("size",), "state": ("state",)},
)
CLINICAL = Layout(
    "a GDC clinical TSV",
    needed={"case": ("case_submitter_id", "cases.submitter_id", "submitter_id")},
    optional={
        "project": ("project_id", "project.project_id", "cases.project.project_id"),
        "diagnosis": ("primary_diagnosis", "diagnoses.primary_diagnosis"),
        "is_primary": ("diagnosis_is_primary_disease", "diagnoses.diagnosis_is_primary_disease"),
        "classification": ("classification_of_tumor", "diagnoses.classification_of_tumor"),
    },
    closed=False,  # some two hundred columns, which change with the portal
)


class Clinical(NamedTuple):
    """What the clinical TSV says of a patient: all values that its rows hold."""

    projects: set[str]
    diagnoses: set[str]


class _LeftOut(Exception):
    """A file that makes no entry, and why: words that follow a number."""


def draft_tcga(study: Study, files: Path, clinical: Path | None, *, frozen: bool) -> Draft:
    """Return the entries of a TCGA task.

    Parameters
    ----------
    study : Study
        brca: IDC or ILC by the primary diagnosis; nsclc: LUAD or LUSC, rcc: KIRC, KIRP or KICH by project.
    files : Path
        Sample sheet or manifest.
    clinical : Path, optional
        Needed for brca, and wherever a manifest doesn't tell the project.
    frozen : bool
        Frozen sections too.

    Raises
    ------
    ConfigError
    """
    columns = first_line(files)
    layout = MANIFEST if MANIFEST.fits(columns) and not SAMPLE_SHEET.fits(columns) else SAMPLE_SHEET
    records = read_source(files).records(layout)
    if clinical is None and (study is Study.brca or layout is MANIFEST):
        why = "the classes of brca are diagnoses" if study is Study.brca else "a manifest names no project"
        raise ConfigError(f"{why}: give the portal's clinical.tsv with --clinical")
    patients = read_clinical(clinical) if clinical is not None else {}
    if study is Study.brca and not any(found.diagnoses for found in patients.values()):
        raise ConfigError(
            f"{clinical} has no primary diagnosis in it: expected is the column 'primary_diagnosis' or "
            "'diagnoses.primary_diagnosis'"
        )
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    for record in records:
        try:
            entries.append(_entry(record, study, patients, frozen))
        except _LeftOut as reason:
            left_out[str(reason)] += 1
    notes = [f"left out {number} {why}" for why, number in left_out.most_common()]
    if not entries:
        raise ConfigError(f"{files.name} has no slide for {study.value}; " + "; ".join(notes))
    return Draft(entries, notes)


def read_clinical(path: Path) -> dict[str, Clinical]:
    """Read projects and diagnoses of each patient: the TSV has a row a treatment, and says much twice.

    Where it tells the primary disease from earlier, later or metastatic ones, only that one counts.

    Raises
    ------
    ConfigError
    """
    rows: dict[str, list[Record]] = {}
    for record in read_source(path).records(CLINICAL):
        rows.setdefault(record["case"], []).append(record)
    found = {}
    for case, records in rows.items():
        primary = (
            [record for record in records if record["is_primary"].lower() == "true"]
            or [record for record in records if record["classification"].lower() == "primary"]
            or records
        )
        found[case] = Clinical(
            {record["project"] for record in records if record["project"].lower() not in _ABSENT},
            {record["diagnosis"] for record in primary if record["diagnosis"].lower() not in _ABSENT},
        )
    return found


def _entry(record: Record, study: Study, patients: dict[str, Clinical], frozen: bool) -> Entry:
    """Return the entry of a file, or raise _LeftOut."""
    name = record["name"]
    if Path(name).suffix.lower() not in SUFFIXES:
        raise _LeftOut("files that are no slides")
    match = _BARCODE.match(name)
    if match is None:
        raise ConfigError(f"{name} doesn't begin with a TCGA slide barcode such as TCGA-A1-A0SB-01Z-00-DX1")
    patient, site, sample, kind = match.groups()
    cases = [case.strip() for case in record.get("case", patient).split(",")]
    if patient not in cases:
        raise ConfigError(f"{name} is listed under Case ID {record['case']}, its barcode says {patient}")
    if kind != "DX" and not frozen:
        raise _LeftOut("frozen sections (--frozen takes them in)")
    if not 1 <= int(sample) <= 9 or "normal" in record.get("tissue", "").lower():
        raise _LeftOut("slides of normal tissue")
    known = patients.get(patient)
    project = record["project"].split(",")[0].strip() if "project" in record else _project(patient, known)
    if study is Study.brca and project == "TCGA-BRCA":
        label = _diagnosis(known)
    elif project in _CLASSES.get(study, {}):
        label = _CLASSES[study][project]
    else:
        raise _LeftOut(f"slides of project {project}")
    return Entry(Path(name).stem, patient, label, site, file_name=name, folder=record["id"])


def _project(patient: str, known: Clinical | None) -> str:
    if known is None:
        raise _LeftOut("slides whose patient the clinical TSV lacks")
    if len(known.projects) != 1:
        raise ConfigError(f"the clinical TSV gives patient {patient} {len(known.projects)} projects, not one")
    (project,) = known.projects
    return project


def _diagnosis(known: Clinical | None) -> str:
    """Return IDC or ILC, or raise _LeftOut."""
    if known is None:
        raise _LeftOut("slides whose patient the clinical TSV lacks")
    if not known.diagnoses:
        raise _LeftOut("slides without a primary diagnosis")
    if len(known.diagnoses) > 1:
        raise _LeftOut(f"slides with several primary diagnoses: {' and '.join(sorted(known.diagnoses))}")
    (diagnosis,) = known.diagnoses
    if diagnosis.lower() not in _DIAGNOSES:
        raise _LeftOut(f"slides of {diagnosis}")
    return _DIAGNOSES[diagnosis.lower()]

"""The osteosarcoma regions: what a file's name says, and how blocks or patients are dealt into parts of a split."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from napari_lrmil.errors import ConfigError

VIABLE = "Viable"
LABELS = ("other", "viable")
N_FOLDS = 5

_NAME = re.compile(r"(?P<kind>[A-Za-z-]+)___(?P<block>(?P<patient>Case-\d+|P\d+)(-[A-Za-z]\w*)+)-\d+-\d+_\d+")


class Region(NamedTuple):
    """One image of the folder."""

    path: Path
    kind: str
    """As in the name: Viable, Non-Viable-Tumor (necrotic) or Non-Tumor."""
    block: str
    """The tissue block: Case-48-P5-C18."""
    patient: str
    """Case-48."""

    @property
    def label(self) -> str:
        """viable or other."""
        return LABELS[self.kind == VIABLE]

    @property
    def region_id(self) -> str:
        """The file's name without its ending."""
        return self.path.stem.replace("___", "-")


def find_regions(folder: Path) -> list[Region]:
    """Return all regions of a folder, sorted by name.

    Raises
    ------
    ConfigError
        Where there is none, or a JPEG has another name.
    """
    paths = sorted([*folder.glob("*.jpg"), *folder.glob("*.jpeg")])
    if not paths:
        raise ConfigError(
            f"{folder} holds no JPEG. Give the folder of the regions, named Class___Case-1-A2-X-Y_N.jpg."
        )
    regions = []
    for path in paths:
        found = _NAME.fullmatch(path.stem)
        if found is None:
            raise ConfigError(
                f"{path.name} isn't named as a region: Class___Case-1-A2-X-Y_N.jpg, where Case-1-A2 is the block"
            )
        regions.append(Region(path, found["kind"], found["block"], found["patient"]))
    return regions


def deal_blocks(regions: list[Region], n_folds: int, *, seed: int) -> list[int]:
    """Return a fold for each region, by block: large blocks first, each to the fold that leaves classes most even.

    Parameters
    ----------
    regions : list of Region
    n_folds : int
    seed : int
        Decides between blocks of one size, and between folds that are equally good.

    Returns
    -------
    list of int
        In the order of `regions`.

    Raises
    ------
    ConfigError
        Where a fold would lack viable tumour or have nothing else.
    """
    rng = np.random.default_rng(seed)
    kinds = sorted({region.kind for region in regions})
    total = np.asarray([sum(region.kind == kind for region in regions) for kind in kinds], float)
    held: dict[str, Counter[str]] = {}
    for region in regions:
        held.setdefault(region.block, Counter())[region.kind] += 1
    blocks = list(held)
    blocks = [blocks[index] for index in rng.permutation(len(blocks))]
    blocks.sort(key=lambda block: -held[block].total())
    counts = np.zeros((n_folds, len(kinds)))
    fold_of = {}
    for block in blocks:
        added = np.asarray([held[block][kind] for kind in kinds], float)
        # How far each class would be from an even share of itself; the other folds stay as they are.
        cost = (np.square(counts + added - total / n_folds) - np.square(counts - total / n_folds)) @ (
            1 / total
        )
        tied = np.flatnonzero(np.isclose(cost, cost.min()))
        fold = int(rng.choice(tied))
        counts[fold] += added
        fold_of[block] = fold
    folds = [fold_of[region.block] for region in regions]
    for fold in range(n_folds):
        labels = {region.label for region, number in zip(regions, folds, strict=True) if number == fold}
        if labels != set(LABELS):
            raise ConfigError(
                f"{len(blocks)} blocks can't be dealt into {n_folds} folds of both classes: fold {fold} has "
                f"{' and '.join(sorted(labels)) or 'nothing'}. Try another --seed."
            )
    return folds


def deal_patients(regions: list[Region], *, seed: int) -> list[list[str]]:
    """Deal two splits that share no patient: each half of the patients is tested once.

    Three parts of whole patients don't exist where only two of them have viable tumour. So a third of the other half
    validates, by block: choice of the epoch is on known patients, the test is not.

    Returns
    -------
    list of list of str
        For each of the two splits the part of each region: train, val or test.

    Raises
    ------
    ConfigError
        Where the patients can't be halved so that both halves have both classes.
    """
    patients = sorted({region.patient for region in regions})
    halves = [
        {patients[0], *others}
        for size in range(len(patients) - 1)
        for others in itertools.combinations(patients[1:], size)
    ]

    def unevenness(half: set[str]) -> float:
        counts = [
            [
                sum(region.label == label and (region.patient in half) == inside for region in regions)
                for label in LABELS
            ]
            for inside in (True, False)
        ]
        if min(map(min, counts)) == 0:
            return float("inf")
        return float(sum(abs(ours - theirs) / (ours + theirs) for ours, theirs in zip(*counts, strict=True)))

    best = min(halves, key=unevenness, default=set())
    if not best or unevenness(best) == float("inf"):
        raise ConfigError(f"{len(patients)} patients can't be halved so that both halves have both classes")
    return [_parts(regions, tested, seed=seed) for tested in (best, set(patients) - best)]


def leave_patients_out(regions: list[Region], *, seed: int) -> dict[str, list[str]]:
    """Deal one split for each patient who has both classes: tested alone, by students that saw nothing of that patient.

    A patient of one class can't be tested alone, since an AUC counts pairs within a fold. A third of the others
    validates, by block.

    Returns
    -------
    dict of str to list of str
        For each patient who is tested the part of each region: train, val or test.

    Raises
    ------
    ConfigError
        Where no patient has both classes, or the others can't be dealt.
    """
    labels: dict[str, set[str]] = {}
    for region in regions:
        labels.setdefault(region.patient, set()).add(region.label)
    tested = sorted(patient for patient, theirs in labels.items() if len(theirs) == len(LABELS))
    if not tested:
        raise ConfigError("no patient has both classes, so none can be tested alone")
    return {patient: _parts(regions, {patient}, seed=seed) for patient in tested}


def _parts(regions: list[Region], tested: set[str], *, seed: int) -> list[str]:
    """Return the part of each region: test where its patient is tested, else train or, a third by block, val."""
    rest = [region for region in regions if region.patient not in tested]
    folds = iter(deal_blocks(rest, 3, seed=seed))
    return [
        "test" if region.patient in tested else "val" if next(folds) == 0 else "train" for region in regions
    ]


def confound_note(regions: list[Region], *, by_block: bool) -> str:
    """Say what labels are confounded with, counted; `by_block`: whether a patient can be in training and test."""
    viable = [region for region in regions if region.kind == VIABLE]
    by_patient = Counter(region.patient for region in viable)
    (patient, most), *_ = by_patient.most_common(1)
    without = sorted({region.patient for region in regions} - by_patient.keys())
    blocks = {region.block for region in regions}
    return (
        f"{len(regions)} regions of {len(blocks)} blocks of {len({region.patient for region in regions})} patients. "
        f"Label and patient are confounded: {most} of {len(viable)} viable regions are of {patient}"
        + (f", and {' and '.join(without)} {'has' if len(without) == 1 else 'have'} none" if without else "")
        + ". "
        + (
            "Split by block: blocks of one patient are in training and test. "
            if by_block
            else "Split by patient. "
        )
        + "The numbers show that the pipeline runs on real tissue; they are no clinical performance."
    )

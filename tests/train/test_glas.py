"""GlaS regions as slides: sizes, pixel size, and patients dealt so that no fold lacks a class or shares a patient."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_lrmil.errors import ConfigError
from napari_lrmil.slide import Slide
from training.data.splits import make_splits
from training.data.table import read_table
from training.progress import Reporter
from training.studies.glas import N_FOLDS, Region, build, deal, find_regions

CLASSES = {
    1: "benign",
    2: "malignant",
    3: "both",
    4: "benign",
    5: "both",
    6: "malignant",
    7: "both",
    8: "both",
}


def smooth(width: int, height: int, seed: int) -> np.ndarray:
    """Coloured noise that JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def regions(src: Path) -> list[Region]:
    """Eight patients, four of them with both classes, as labels.csv and JPEGs of two sizes."""
    rows = []
    for patient, kind in CLASSES.items():
        labels = ("benign", "malignant") if kind == "both" else (kind, kind)
        for n, label in enumerate(labels):
            name = f"train_{patient}{n}.jpg"
            Image.fromarray(smooth(131, 90 + n, seed=patient)).save(src / name, quality=95)
            rows.append((name, str(patient), label, "train"))
    with (src / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "patient_id", "label", "published_split"), *rows])
    return find_regions(src)


def test_regions_become_slides_of_their_size(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    found = regions(src)
    other = tmp_path / "others.csv"
    other.write_text(f"slide_id,path,patient_id,label\nA1,{src / 'train_10.jpg'},AP1,malignant\n")
    tables = build(src, tmp_path / "out", unlabelled=other, dealings=2, reporter=Reporter())
    assert [path.name for path in tables] == ["dealing0.csv", "dealing1.csv", "others.csv"]
    with Slide(tmp_path / "out" / "slides" / "train_11.tif") as slide:
        assert slide.level_dimensions_xy == ((128, 88), (64, 44), (32, 22))
        assert slide.mpp_xy == pytest.approx((0.62, 0.62), rel=1e-4)
        whole = slide.read_region((0, 0), 0, slide.level_dimensions_xy[0])
    original = np.asarray(Image.open(src / "train_11.jpg").convert("RGB"))
    height, width = whole.shape[:2]
    assert np.abs(whole.astype(int) - original[:height, :width]).mean() < 3
    rows = read_table(tables[0])
    assert [(row.slide_id, row.label) for row in rows if row.label is None] == [("A1", None)]
    assert len(rows) == len(found) + 1


def test_slides_left_out_stand_in_no_dealing_and_their_patients_neither(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    regions(src)
    other = tmp_path / "others.csv"
    paths = sorted(src.glob("*.jpg"))[:9]
    lines = [
        f"A{place},{path},AP{place // 2},{'malignant' if place % 2 else ''}"
        for place, path in enumerate(paths)
    ]
    other.write_text("slide_id,path,patient_id,label\n" + "\n".join(lines) + "\n")
    tables = build(src, tmp_path / "out", unlabelled=other, dealings=1, left_out=4, reporter=Reporter())
    dealt, others, aside = (list(csv.DictReader(table.read_text().splitlines())) for table in tables)
    assert tables[2].name == "left_out.csv"
    assert len(aside) == 3  # of patients with two slides or one, as many as fit into four
    assert {row["patient_id"] for row in aside}.isdisjoint(row["patient_id"] for row in dealt)
    assert len([row for row in dealt if not row["label"]]) == 6
    # The other way round, all with their labels, and the colon regions without.
    assert [row["label"] for row in others if row["slide_id"].startswith("A")] == ["malignant"] * 4
    assert all(not row["label"] for row in others if row["patient_id"].startswith("glas-"))


def test_every_fold_has_both_classes_and_patients_of_its_own(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    found = regions(src)
    dealings = [deal(found, seed=seed) for seed in range(5)]
    assert len({tuple(sorted(one.items())) for one in dealings}) > 1
    assert dealings[0] == deal(found, seed=0)
    for fold_of in dealings:
        held = {(fold_of[region.patient_id], region.label) for region in found}
        assert held == {(fold, label) for fold in range(N_FOLDS) for label in ("benign", "malignant")}


def test_folds_of_a_table_split_by_patient(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    regions(src)
    (table,) = build(src, tmp_path / "out", unlabelled=None, dealings=1, reporter=Reporter())
    splits = make_splits(read_table(table), n_folds=5, seed=0)
    assert len(splits) == N_FOLDS
    tested = [row.patient_id for split in splits for row in split.test]
    assert sorted(set(tested)) == sorted(f"glas-{patient}" for patient in CLASSES)
    for split in splits:
        parts = [{row.patient_id for row in part} for part in (split.train, split.val, split.test)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    few = [Region(tmp_path / "a.jpg", "1", "benign"), Region(tmp_path / "b.jpg", "2", "malignant")]
    with pytest.raises(ConfigError, match="2 patients can't be dealt into 4 folds of both classes"):
        deal(few, seed=0)


def test_a_folder_without_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels\.csv isn't the table"):
        find_regions(tmp_path)

"""The table of a folder: complete, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from napari_lrmil.cache import summarise
from napari_lrmil.export.tables import FolderRow, folder_columns, write_folder_table
from napari_lrmil.predict import SlidePrediction

COLUMNS = [
    *("slide", "answer", "label", "status", "p_benign", "p_lesion", "unsure", "prediction_set", "coverage"),
    *("out_of_distribution", "ood_score", "ood_threshold"),
    *("label_not_to_be_used", "probabilities_not_to_be_used", "tiles", "seconds", "verdict", "note", "error"),
    *("fingerprint", "bundle", "bundle_sha256", "version"),
]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_folder_table(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    certain = replace(
        leica_prediction,
        prediction_set=("benign", "lesion"),
        coverage=0.9,
        ood_score=3.5,
        ood_threshold=2.0,
        seconds=1.23456,
        version="0.0.9",
    )
    rows = [
        FolderRow("cmu_leica", summarise(leica_prediction), "agree", "sieht gut aus; µ ≥ –"),
        FolderRow("other", summarise(certain), "disagree", "two\nlines, and a comma"),
        FolderRow("broken", error="broken.svs can't be read"),
    ]
    path = write_folder_table(tmp_path / "predictions.csv", rows, show_identifiers=True)
    plain, strange, broken = rows_of(path)
    assert list(plain) == COLUMNS == folder_columns(("benign", "lesion"))
    assert plain["slide"] == leica_prediction.slide_name
    called = leica_prediction.called
    assert (plain["label"], plain["status"]) == (called, "demonstration")
    assert float(plain["p_benign"]) == pytest.approx(leica_prediction.class_probabilities[0], rel=1e-5)
    assert {plain[name] for name in COLUMNS[6:14]} == {""}
    assert plain["note"] == "sieht gut aus; µ ≥ –"
    assert plain["fingerprint"] == leica_prediction.slide_fingerprint
    assert plain["tiles"] == str(len(leica_prediction.tiles))
    assert (plain["answer"], strange["answer"], strange["label"]) == (called, "unlike training", "")
    assert (strange["p_benign"], strange["p_lesion"], strange["prediction_set"]) == ("", "", "")
    assert strange["label_not_to_be_used"] == called
    given = dict(part.split("=") for part in strange["probabilities_not_to_be_used"].split(";"))
    assert [float(p) for p in given.values()] == pytest.approx(certain.class_probabilities, rel=1e-5)
    assert list(given) == ["benign", "lesion"]
    assert strange["unsure"] == "true"
    assert (strange["out_of_distribution"], strange["ood_score"], strange["ood_threshold"]) == (
        *("true", "3.5", "2"),
    )
    assert (strange["status"], strange["coverage"]) == ("unsure;unlike training;demonstration", "0.9")
    assert (strange["bundle"], strange["version"]) == (certain.bundle_name, "0.0.9")
    assert strange["seconds"] == "1.235"
    assert strange["note"] == "two\nlines, and a comma"
    assert broken["slide"] == "broken"
    assert broken["error"] == "broken.svs can't be read"
    assert broken["status"] == "failed"
    assert {broken[name] for name in (*COLUMNS[1:3], *COLUMNS[4:18], *COLUMNS[19:])} == {""}


def test_identifiers_stay_out_by_default(leica_prediction: SlidePrediction, tmp_path: Path) -> None:
    named = replace(leica_prediction, slide_name="MUSTERMANN_Erika_1950")
    rows = [
        FolderRow("MUSTERMANN_Erika_1950", summarise(named), "agree"),
        FolderRow("MUSTERMANN_Hans", error="MUSTERMANN_Hans.svs can't be read"),
    ]
    path = write_folder_table(tmp_path / "predictions.csv", rows)
    assert "MUSTERMANN" not in path.read_text(encoding="utf-8")
    first, second = rows_of(path)
    assert first["slide"] == f"slide {leica_prediction.slide_fingerprint[:8]}"
    assert (second["slide"], second["error"]) == ("slide 2", "failed")


@pytest.mark.parametrize(
    "text", ["=1+1", "+49 30 1", "-2", "@SUM(A1)", "\t=1", "\r=1", "  =1", '=HYPERLINK("x")']
)
def test_no_text_runs_as_a_formula(leica_prediction: SlidePrediction, tmp_path: Path, text: str) -> None:
    classes = replace(leica_prediction, slide_name=text, class_names=(text, "lesion"))
    rows = [FolderRow(text, summarise(classes), text, text), FolderRow(text, error=text)]
    path = write_folder_table(tmp_path / "predictions.csv", rows, show_identifiers=True)
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    expected = text.replace("\r", "\n")
    assert cells.count(f"'{expected}") >= 5
    assert all(len(row) == len(COLUMNS) for row in rows_of(path))
    assert not [cell for cell in cells if cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_classes_of_several_bundles_and_an_empty_folder(
    leica_prediction: SlidePrediction, tmp_path: Path
) -> None:
    other = replace(leica_prediction, class_names=("lesion", "necrosis"))
    rows = [FolderRow("a", summarise(leica_prediction)), FolderRow("b", summarise(other))]
    path = write_folder_table(tmp_path / "p.csv", rows)
    first, second = rows_of(path)
    assert [name for name in first if name.startswith("p_")] == ["p_benign", "p_lesion", "p_necrosis"]
    assert first["p_necrosis"] == second["p_benign"] == ""
    assert first["p_benign"] == second["p_lesion"] != ""
    path = write_folder_table(tmp_path / "empty.csv", [], class_names=("benign", "lesion"))
    assert path.read_text(encoding="utf-8").splitlines() == [",".join(COLUMNS)]

"""Slide tables of published data sets, from their real label files or files of the published columns."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from run_helpers import read_rows
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from training.config import load_config
from training.data.splits import Split, make_splits
from training.data.table import SlideRow, read_table
from training.tables.__main__ import app
from training.tables.build import Entry, SlideFolder, hold_out
from training.tables.clam import read_dataset, read_split
from training.tables.source import Layout, read_source

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
SharedFile = Callable[[str], Path]


def run(*words: object, code: int = 0) -> str:
    """Run the command; what it printed, on one line where a line was wrapped."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def rows_of(out: Path) -> list[SlideRow]:
    return read_table(out)


def split_of(out: Path) -> Split:
    (split,) = make_splits(read_table(out), n_folds=5, seed=0)
    return split


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(path: Path, lines: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)
    return path


# --- TCGA ------------------------------------------------------------------------------------------------------------

HEAD_OLD = [
    "File ID",
    "File Name",
    "Data Category",
    "Data Type",
    "Project ID",
    "Case ID",
    "Sample ID",
    "Sample Type",
]
HEAD_NEW = [*HEAD_OLD[:7], "Tissue Type", "Tumor Descriptor", "Specimen Type", "Preservation Method"]


def svs(case: str, sample: str = "01Z", slide: str = "DX1", number: int = 1) -> str:
    return f"{case}-{sample}-00-{slide}.{number:08X}-0000-4000-8000-000000000000.svs"


def sheet_line(
    file_id: str, name: str, project: str, tissue: str = "Tumor", case: str | None = None
) -> list[str]:
    case = case or name[:12]
    sample = f"{case}-{name[13:16]}"
    rest = [tissue, "Primary", "Solid Tissue", "FFPE"]
    return [file_id, name, "Biospecimen", "Slide Image", project, case, sample, *rest]


BRCA = [
    sheet_line("f1", svs("TCGA-A1-A0SB"), "TCGA-BRCA"),
    sheet_line("f2", svs("TCGA-A1-A0SB", slide="DX2"), "TCGA-BRCA"),
    sheet_line("f3", svs("TCGA-A2-A04N"), "TCGA-BRCA"),
    sheet_line("f4", svs("TCGA-A2-A04N", "01A", "TS1"), "TCGA-BRCA"),  # frozen
    sheet_line("f5", svs("TCGA-A2-A04P", "11A", "DX1"), "TCGA-BRCA", "Normal"),
    sheet_line("f6", svs("TCGA-B6-A0I1"), "TCGA-BRCA"),  # mucinous
    sheet_line("f7", svs("TCGA-B6-A0I2"), "TCGA-BRCA"),  # not in the clinical file
    sheet_line("f8", svs("TCGA-B6-A0I3"), "TCGA-BRCA"),  # diagnosis not reported
    sheet_line("f9", svs("TCGA-B6-A0I4"), "TCGA-BRCA"),  # both diagnoses
    sheet_line("f10", svs("TCGA-05-4244"), "TCGA-LUAD"),
    sheet_line("f11", "abc.FPKM.txt.gz", "TCGA-BRCA", case="TCGA-A1-A0SB"),
]
DIAGNOSES = {
    "TCGA-A1-A0SB": ["Infiltrating duct carcinoma, NOS"] * 3,  # a row a treatment
    "TCGA-A2-A04N": ["Lobular carcinoma, NOS"],
    "TCGA-B6-A0I1": ["Mucinous adenocarcinoma"],
    "TCGA-B6-A0I3": ["'--"],
    "TCGA-B6-A0I4": ["Infiltrating duct carcinoma, NOS", "Lobular carcinoma, NOS"],
    "TCGA-05-4244": ["Adenocarcinoma, NOS"],
}


def clinical(path: Path, *, prefixed: bool) -> Path:
    """As the portal exports it since 2024 (prefixed), or did before."""
    head = (
        [
            "project.project_id",
            "cases.case_id",
            "cases.submitter_id",
            "diagnoses.primary_diagnosis",
            "treatments.x",
        ]
        if prefixed
        else ["case_id", "case_submitter_id", "project_id", "primary_diagnosis", "treatment_type"]
    )
    lines = [head]
    for case, diagnoses in DIAGNOSES.items():
        project = "TCGA-LUAD" if case.startswith("TCGA-05") else "TCGA-BRCA"
        for diagnosis in diagnoses:
            lines.append(
                [project, "uuid", case, diagnosis, "'--"]
                if prefixed
                else ["uuid", case, project, diagnosis, "'--"]
            )
    return write(path, lines, "\t")


@pytest.fixture
def gdc(tmp_path: Path) -> Path:
    """A download: the client's folders, sample sheet, manifest and clinical file."""
    write(tmp_path / "sheet.tsv", [HEAD_NEW, *BRCA], "\t")
    manifest = [["id", "filename", "md5", "size", "state"]]
    manifest += [[line[0], line[1], "0" * 32, "1000", "released"] for line in BRCA]
    write(tmp_path / "manifest.txt", manifest, "\t")
    clinical(tmp_path / "clinical.tsv", prefixed=True)
    clinical(tmp_path / "clinical_old.tsv", prefixed=False)
    touch(tmp_path / "slides", *(f"{line[0]}/{line[1]}" for line in BRCA), "f1/logs/x.parcel")
    return tmp_path


@pytest.mark.parametrize("files", ["sheet.tsv", "manifest.txt"])
@pytest.mark.parametrize("diagnoses", ["clinical.tsv", "clinical_old.tsv"])
def test_brca_by_diagnosis(gdc: Path, files: str, diagnoses: str) -> None:
    out = gdc / "brca.csv"
    said = run(
        "tcga", "brca", gdc / files, "--clinical", gdc / diagnoses, "--slides", gdc / "slides", "--out", out
    )
    rows = rows_of(out)
    assert [(row.patient_id, row.label, row.site) for row in rows] == [
        ("TCGA-A1-A0SB", "IDC", "A1"),
        ("TCGA-A1-A0SB", "IDC", "A1"),
        ("TCGA-A2-A04N", "ILC", "A2"),
    ]
    assert rows[0].slide_id == BRCA[0][1].removesuffix(".svs")
    assert rows[0].path == gdc / "slides" / "f1" / BRCA[0][1]
    assert all(row.path.exists() and row.fold is None for row in rows)
    for why in (
        "1 frozen sections (--frozen takes them in)",
        "1 slides of normal tissue",
        "1 slides of Mucinous adenocarcinoma",
        "1 slides whose patient the clinical TSV lacks",
        "1 slides without a primary diagnosis",
        "1 slides with several primary diagnoses: Infiltrating duct carcinoma, NOS and Lobular carcinoma, NOS",
        "1 slides of project TCGA-LUAD",
        "1 files that are no slides",
    ):
        assert f"left out {why}" in said
    assert "training refuses this table: 5 folds need as many patients" in said
    assert "Wrote" in said


def test_a_second_cancer_of_the_patient_does_not_count(gdc: Path) -> None:
    write(
        gdc / "clinical.tsv",
        [
            ["cases.submitter_id", "diagnoses.primary_diagnosis", "diagnoses.diagnosis_is_primary_disease"],
            ["TCGA-A1-A0SB", "Infiltrating duct carcinoma, NOS", "true"],
            ["TCGA-A1-A0SB", "Basal cell carcinoma, NOS", "false"],
            ["TCGA-A2-A04N", "Lobular carcinoma, NOS", "true"],
        ],
        "\t",
    )
    run("tcga", "brca", gdc / "sheet.tsv", "--clinical", gdc / "clinical.tsv", "--slides", gdc / "slides",
        "--out", gdc / "a.csv")  # fmt: skip
    assert Counter(row.label for row in rows_of(gdc / "a.csv")) == {"IDC": 2, "ILC": 1}


@pytest.mark.parametrize(("study", "projects"), [
    ("nsclc", ("LUAD", "LUSC")),
    ("rcc", ("KIRC", "KIRP", "KICH")),
])  # fmt: skip
def test_lung_and_kidney_by_project(tmp_path: Path, study: str, projects: tuple[str, ...]) -> None:
    """Sixty patients of twelve sites: the table is read and split, also by site."""
    lines = [
        sheet_line(f"f{i}", svs(f"TCGA-{i % 12 + 10}-{i:04}", number=i), f"TCGA-{projects[i // 12 % len(projects)]}",
                   "Primary Tumor")[:8]
        for i in range(72)
    ]  # fmt: skip
    sheet = write(tmp_path / "sheet.tsv", [HEAD_OLD, *lines], "\t")
    touch(tmp_path / "slides", *(line[1] for line in lines))  # one folder for all
    run("tcga", study, sheet, "--slides", tmp_path / "slides", "--out", tmp_path / "slides.csv")
    rows = rows_of(tmp_path / "slides.csv")
    assert Counter(row.label for row in rows) == Counter(projects[i // 12 % len(projects)] for i in range(72))
    assert {row.site for row in rows} == {str(number) for number in range(10, 22)}
    assert len(make_splits(rows, n_folds=5, seed=0)) == 5
    for split in make_splits(rows, n_folds=5, seed=0, preserved_sites=True):
        assert not {row.site for row in split.train} & {row.site for row in split.test}


def test_frozen_sections_where_wanted(gdc: Path) -> None:
    run("tcga", "brca", gdc / "sheet.tsv", "--clinical", gdc / "clinical.tsv", "--slides", gdc / "slides",
        "--out", gdc / "a.csv", "--frozen")  # fmt: skip
    assert sum("-TS1" in row.slide_id for row in rows_of(gdc / "a.csv")) == 1


@pytest.mark.parametrize(("words", "message"), [
    (["brca", "sheet.tsv"], "the classes of brca are diagnoses: give the portal's clinical.tsv with --clinical"),
    (["nsclc", "manifest.txt"], "a manifest names no project: give the portal's clinical.tsv"),
    (["rcc", "sheet.tsv"], "sheet.tsv has no slide for rcc; left out 7 slides of project TCGA-BRCA"),
    (["nsclc", "clinical.tsv"], "is not a GDC sample sheet: no column 'File ID', 'File Name', 'Project ID', 'Case ID'"),
    (["brca", "sheet.tsv", "--clinical", "manifest.txt"], "is not a GDC clinical TSV: no column 'case_submitter_id'"),
    (["nsclc", "nothing.tsv"], "no such file"),
])  # fmt: skip
def test_wrong_tcga_files(gdc: Path, words: list[str], message: str) -> None:
    given = [gdc / word if "." in word else word for word in words]
    said = run("tcga", *given, "--slides", gdc / "slides", "--out", gdc / "out.csv", code=1)
    assert message in said
    assert not (gdc / "out.csv").exists()


def test_a_barcode_that_contradicts_its_case(gdc: Path) -> None:
    line = sheet_line("f1", svs("TCGA-A1-A0SB"), "TCGA-LUAD", case="TCGA-A2-A0SB")
    sheet = write(gdc / "sheet.tsv", [HEAD_NEW, line], "\t")
    said = run("tcga", "nsclc", sheet, "--slides", gdc / "slides", "--out", gdc / "out.csv", code=1)
    assert "is listed under Case ID TCGA-A2-A0SB, its barcode says TCGA-A1-A0SB" in said


# --- slides on disk --------------------------------------------------------------------------------------------------

CLAM_HEAD = ["case_id", "slide_id", "label"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A CLAM CSV of twelve patients, their slides but one, and no split."""
    lines = [[f"p{i}", f"s{i}", "ab"[i % 2]] for i in range(12)]
    write(tmp_path / "labels.csv", [CLAM_HEAD, *lines])
    touch(tmp_path / "slides", *(f"{i % 3}/s{i}.ndpi" for i in range(11)))
    return tmp_path


def test_missing_slides_stop_are_left_out_or_kept(small: Path) -> None:
    words = ["clam", small / "labels.csv", "--slides", small / "slides", "--out", small / "out.csv"]
    assert "1 of 12 slides are not below" in run(*words, code=1)
    assert not (small / "out.csv").exists()
    assert "left out 1 of 12 slides" in run(*words, "--missing", "skip")
    assert [row.slide_id for row in rows_of(small / "out.csv")] == [f"s{i}" for i in range(11)]
    assert "1 of 12 slides are not below" in run(*words, "--missing", "keep", "--force")
    last = rows_of(small / "out.csv")[-1]
    assert (last.slide_id, last.path) == ("s11", small / "slides" / "s11.svs")


def test_nothing_is_overwritten_unless_wanted(small: Path) -> None:
    words = ["clam", small / "labels.csv", "--slides", small / "slides", "--out", small / "out.csv"]
    (small / "out.csv").write_text("mine")
    assert "exists already; --force replaces it" in run(*words, "--missing", "skip", code=1)
    assert (small / "out.csv").read_text() == "mine"
    run(*words, "--missing", "skip", "--force")
    assert len(rows_of(small / "out.csv")) == 11


def test_paths_are_relative_below_the_table_and_absolute_elsewhere(small: Path) -> None:
    words = ["clam", small / "labels.csv", "--slides", small / "slides", "--missing", "skip", "--out"]
    run(*words, small / "out.csv")
    assert "s0,slides/0/s0.ndpi,p0,a" in (small / "out.csv").read_text()
    (small / "tables").mkdir()
    run(*words, small / "tables" / "out.csv")
    assert f"s0,{small}/slides/0/s0.ndpi,p0,a" in (small / "tables" / "out.csv").read_text()
    assert all(row.path.exists() for row in rows_of(small / "tables" / "out.csv"))


def test_two_files_of_one_slide_are_an_error(small: Path) -> None:
    touch(small / "slides", "copy/s3.tif")
    said = run("clam", small / "labels.csv", "--slides", small / "slides", "--out", small / "out.csv", code=1)
    assert "2 files could be slide s3" in said


def test_the_gdc_folder_tells_copies_apart(tmp_path: Path) -> None:
    slides = SlideFolder(touch(tmp_path, "u1/a.svs", "u2/a.svs", ".hidden/b.svs", "c.txt"))
    assert slides.find(Entry("a", "p", "x", file_name="a.svs", folder="u2")) == tmp_path / "u2" / "a.svs"
    assert slides.find(Entry("b", "p", "x")) is None
    assert len(slides.files) == 2
    with pytest.raises(ConfigError, match="no such folder of slides"):
        SlideFolder(tmp_path / "none")


def test_counts_of_classes_and_sites_are_shown(tmp_path: Path) -> None:
    lines = [["patient", "stage"], ["patient_000.zip", "pN1"]]
    lines += [[f"patient_{i:03}_node_0.tif", ("negative", "macro")[i % 2]] for i in range(0, 100, 5)]
    slides = touch(tmp_path / "slides", *(line[0] for line in lines[2:]))
    said = run(
        "camelyon17",
        write(tmp_path / "stage_labels.csv", lines),
        "--slides",
        slides,
        "--out",
        tmp_path / "o.csv",
    )
    assert "│ all │ 20 │ 20 │" in said
    assert "│ centre_0 │ 2 │ 2 │" in said
    assert "Wrote" in said


# --- CAMELYON --------------------------------------------------------------------------------------------------------


def test_the_real_camelyon16_table(shared_file: SharedFile, tmp_path: Path) -> None:
    labels = shared_file("label_csvs/acmil/camelyon16.csv")
    given = read_rows(labels)
    slides = touch(tmp_path / "slides", *(f"images/{line['slide_id']}.tif" for line in given))
    out = tmp_path / "slides.csv"
    said = run("camelyon16", labels, "--slides", slides, "--out", out)
    split = split_of(out)
    assert [len(part) for part in split[1:]] == [216, 54, 129, 0, 0]
    assert Counter(row.label for row in split.test) == {"normal": 80, "tumor": 49}
    assert Counter(row.label for row in split.val) == {"normal": 32, "tumor": 22}
    assert Counter(row.label for row in (*split.train, *split.val)) == {"normal": 159, "tumor": 111}
    assert {row.slide_id: row.patient_id for row in rows_of(out)} == {
        line["slide_id"]: line["case_id"] for line in given
    }
    assert "gives some slides one case_id (37 slides more than cases)" in said


def test_camelyon16_by_names_and_reference(tmp_path: Path) -> None:
    names = [f"normal_{i:03}" for i in range(1, 21)] + [f"tumor_{i:03}" for i in range(1, 11)]
    tests = [f"test_{i:03}" for i in (*range(1, 9), 49)]
    slides = touch(
        tmp_path / "slides",
        *(f"training/{name.partition('_')[0]}/{name}.tif" for name in names),
        *(f"testing/images/{name}.tif" for name in tests),
        "testing/mask/test_001_mask.tif",
    )
    lines = [
        [name, *(("Tumor", "IDC", "Macro") if i % 2 else ("Normal", "None", "None"))]
        for i, name in enumerate(tests)
    ]
    reference = write(tmp_path / "reference.csv", lines)
    out = tmp_path / "slides.csv"
    said = run("camelyon16", reference, "--slides", slides, "--out", out)
    split = split_of(out)
    assert Counter(row.label for row in split.test) == {"normal": 4, "tumor": 4}
    assert Counter(row.label for row in split.val) == {"normal": 4, "tumor": 2}
    assert "left out test_049: a copy of another slide" in said
    again = tmp_path / "again.csv"
    run("camelyon16", reference, "--slides", slides, "--out", again, "--seed", 1, "--val", 0.5)
    assert {row.slide_id for row in split_of(again).val} != {row.slide_id for row in split.val}
    assert len(split_of(again).val) == 15
    # A header line, as some copies have it, changes nothing.
    write(reference, [["image_name", "label", "type", "size"], *lines])
    run("camelyon16", reference, "--slides", slides, "--out", again, "--force")
    assert again.read_text() == out.read_text()
    assert "8 test slides have no label" in run(
        "camelyon16", "--slides", slides, "--out", again, "--force", code=1
    )


def test_camelyon16_training_alone_gets_no_split(tmp_path: Path) -> None:
    slides = touch(
        tmp_path / "slides", *(f"{kind}_{i:03}.tif" for kind in ("normal", "tumor") for i in range(1, 11))
    )
    assert "no test slides" in run("camelyon16", "--slides", slides, "--out", tmp_path / "o.csv")
    assert len(make_splits(rows_of(tmp_path / "o.csv"), n_folds=5, seed=0)) == 5


def test_a_camelyon16_label_against_the_name(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.csv", [CLAM_HEAD, ["p1", "normal_001", "1"]])
    said = run("camelyon16", labels, "--slides", tmp_path, "--out", tmp_path / "o.csv", code=1)
    assert "slide normal_001 is labelled tumor, its name says otherwise" in said


def test_the_real_camelyon17_table_names_patients_anew(shared_file: SharedFile, tmp_path: Path) -> None:
    """Its case_id is patient_04 for patients 040 to 049."""
    labels = shared_file("label_csvs/acmil/camelyon17.csv")
    out = tmp_path / "slides.csv"
    said = run("camelyon17", labels, "--classes", 2, "--slides", tmp_path, "--out", out, "--missing", "keep")
    rows = rows_of(out)
    assert Counter(row.label for row in rows) == {"negative": 114, "positive": 50}
    assert len({row.patient_id for row in rows}) == 83
    assert {(row.patient_id, row.site) for row in rows if row.slide_id == "patient_047_node_2"} == {
        ("patient_047", "centre_2")
    }
    assert "164 of 164 case_ids" in said
    folds = make_splits(rows, n_folds=5, seed=0, preserved_sites=True)  # five centres, five folds
    assert all(len({row.site for row in fold.test}) == 1 for fold in folds)
    assert "one of two classes: --classes 2" in run(
        "camelyon17", labels, "--slides", tmp_path, "--out", out, "--force", code=1
    )


def test_camelyon17_stages(tmp_path: Path) -> None:
    stages = ("negative", "itc", "micro", "macro")
    lines = [["patient", "stage"]]
    for patient in range(100):
        lines.append([f"patient_{patient:03}.zip", "pN0(i+)"])
        lines += [
            [f"patient_{patient:03}_node_{node}.tif", stages[(patient + node) % 4]] for node in range(5)
        ]
    labels = write(tmp_path / "stage_labels.csv", lines)
    slides = touch(tmp_path / "slides", *(line[0] for line in lines if line[0].endswith(".tif")))
    run("camelyon17", labels, "--slides", slides, "--out", tmp_path / "four.csv")
    rows = rows_of(tmp_path / "four.csv")
    assert Counter(row.label for row in rows) == dict.fromkeys(stages, 125)
    assert Counter(row.site for row in rows) == {f"centre_{i}": 100 for i in range(5)}
    assert len({row.patient_id for row in rows}) == 100
    run("camelyon17", labels, "--classes", 2, "--slides", slides, "--out", tmp_path / "two.csv")
    assert Counter(row.label for row in rows_of(tmp_path / "two.csv")) == {"negative": 125, "positive": 375}
    write(labels, [["patient", "stage", "notes"], ["patient_000_node_0.tif", "macro", "?"]])
    said = run("camelyon17", labels, "--slides", slides, "--out", tmp_path / "x.csv", code=1)
    assert "unknown columns 'notes'. Expected are the columns 'patient', 'stage'" in said


# --- BRACS and CLAM --------------------------------------------------------------------------------------------------


def test_the_real_bracs_table(shared_file: SharedFile, tmp_path: Path) -> None:
    labels = shared_file("label_csvs/acmil/bracs.csv")
    given = read_rows(labels)
    slides = touch(tmp_path / "BRACS_WSI", *(line["full_path"].partition("/BRACS_WSI/")[2] for line in given))
    said = run("bracs", labels, "--slides", slides, "--out", tmp_path / "seven.csv")
    split = split_of(tmp_path / "seven.csv")
    assert [len(part) for part in split[1:]] == [395, 65, 87, 0, 0]
    assert Counter(row.label for row in rows_of(tmp_path / "seven.csv")) == {
        "N": 44, "PB": 147, "UDH": 74, "FEA": 41, "ADH": 48, "DCIS": 61, "IC": 132,
    }  # fmt: skip
    assert all(row.path.parent.name == f"Type_{row.label}" for row in rows_of(tmp_path / "seven.csv"))
    assert "gives each slide a patient of its own" in said
    run("bracs", labels, "--classes", 3, "--slides", slides, "--out", tmp_path / "three.csv")
    assert Counter(row.label for row in rows_of(tmp_path / "three.csv")) == {
        "benign": 44 + 147 + 74, "atypical": 41 + 48, "malignant": 61 + 132,
    }  # fmt: skip
    said = CliRunner().invoke(
        app, ["bracs", str(labels), "--classes", "5", "--slides", str(slides), "--out", "x.csv"]
    )
    assert said.exit_code == 2


@pytest.mark.parametrize("name", ["splits_0.csv", "splits_0_bool.csv"])
def test_the_real_bracs_split_files(shared_file: SharedFile, tmp_path: Path, name: str) -> None:
    """Both forms say the same, and agree with the split in the label file; two slides they lack."""
    labels = shared_file("label_csvs/acmil/bracs.csv")
    split_file = shared_file(f"label_csvs/mambamil_bracs_official/{name}")
    for command in ("bracs", "clam"):
        split = ["--split", split_file] if command == "bracs" else [split_file]
        out = tmp_path / f"{command}.csv"
        said = run(command, labels, *split, "--slides", tmp_path, "--out", out, "--missing", "keep")
        assert [len(part) for part in split_of(out)[1:]] == [394, 64, 87, 0, 0]
        assert f"2 slides are not in {name}: BRACS_1003717, BRACS_1003660" in said
        official = {line["slide_id"]: line["split_info"] for line in read_rows(labels)}
        assert all(row.fold == official[row.slide_id] for row in rows_of(out))


BRACS_LINES: list[list[object]] = [
    ["WSI Filename", "Patient Id", "RoI", "WSI label", "Set"],
    *[
        [
            f"BRACS_{i}",
            float(i // 2),
            i % 4,
            ("N", "FEA", "IC")[i // 2 % 3],
            ("Training", "Validation", "Testing")[i // 12],
        ]
        for i in range(36)
    ],
]


def bracs_xlsx(path: Path, lines: list[list[object]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Readme"
    sheet = book.create_sheet("WSI_Information")
    for line in lines:
        sheet.append(line)
    book.save(path)
    book.close()
    return path


def test_bracs_official_sheet_as_xlsx_and_csv(tmp_path: Path) -> None:
    slides = touch(tmp_path / "slides", *(f"{line[0]}.svs" for line in BRACS_LINES[1:]))
    xlsx = bracs_xlsx(tmp_path / "BRACS.xlsx", BRACS_LINES)
    text = write(tmp_path / "BRACS.csv", [[str(cell) for cell in line] for line in BRACS_LINES])
    run("bracs", xlsx, "--slides", slides, "--out", tmp_path / "x.csv")
    run("bracs", text, "--slides", slides, "--out", tmp_path / "c.csv")
    split = split_of(tmp_path / "x.csv")
    assert [len(part) for part in split[1:]] == [12, 12, 12, 0, 0]
    assert rows_of(tmp_path / "x.csv")[4].patient_id == "2"  # spreadsheets keep numbers as 2.0
    assert [(row.slide_id, row.label, row.fold) for row in rows_of(tmp_path / "x.csv")] == [
        (row.slide_id, row.label, row.fold) for row in rows_of(tmp_path / "c.csv")
    ]


def test_a_patient_in_two_parts_stops_or_stays_held_out(tmp_path: Path) -> None:
    lines = [list(line) for line in BRACS_LINES]
    lines[1][1] = lines[36][1]  # BRACS_0 of training, BRACS_34 and 35 of testing
    lines[2][1] = lines[24][1]  # BRACS_1 of training, BRACS_22 and 23 of validation
    xlsx = bracs_xlsx(tmp_path / "BRACS.xlsx", lines)
    slides = touch(tmp_path / "slides", *(f"{line[0]}.svs" for line in lines[1:]))
    words = ["bracs", xlsx, "--slides", slides, "--out", tmp_path / "o.csv"]
    said = run(*words, code=1)
    assert "2 patients are in two parts of the split, which leaks: 11 (train, val), 17 (train, test)" in said
    said = run(*words, "--shared-patients", "drop")
    assert "left out 2 slides of 2 patients who are also in a held-out part: BRACS_0, BRACS_1" in said
    assert [len(part) for part in split_of(tmp_path / "o.csv")[1:]] == [10, 12, 12, 0, 0]


@pytest.mark.parametrize(("change", "message"), [
    ((0, 3, "Diagnosis"), "no column 'WSI label' and unknown columns 'Diagnosis'"),
    ((5, 3, "XYZ"), "slide BRACS_4: label 'XYZ' is none of N, PB, UDH"),
    ((5, 4, "Trial"), "slide BRACS_4: set 'Trial' is none of training"),
])  # fmt: skip
def test_wrong_bracs_sheets(tmp_path: Path, change: tuple[int, int, str], message: str) -> None:
    lines = [[str(cell) for cell in line] for line in BRACS_LINES]
    lines[change[0]][change[1]] = change[2]
    said = run(
        "bracs", write(tmp_path / "b.csv", lines), "--slides", tmp_path, "--out", tmp_path / "o.csv", code=1
    )
    assert message in said


def clam_splits(folder: Path, n: int) -> Path:
    """Splits of twenty slides s0 to s19, the numbers as CLAM writes them."""
    folder.mkdir()
    for number in range(n):
        order = [f"s{(i + 4 * number) % 20}" for i in range(20)]
        columns = [order[:12], order[12:16], order[16:]]
        lines = [["", "train", "val", "test"]]
        lines += [[str(i), *(column[i] if i < len(column) else "" for column in columns)] for i in range(12)]
        write(folder / f"splits_{number}.csv", lines)
        lines = [["", "train", "val", "test"]]
        lines += [[slide, *(str(slide in column) for column in columns)] for slide in sorted(order)]
        write(folder / f"splits_{number}_bool.csv", lines)
        write(
            folder / f"splits_{number}_descriptor.csv", [["", "train", "val", "test"], ["a", "6", "2", "2"]]
        )
    return folder


@pytest.fixture
def clam(tmp_path: Path) -> Path:
    lines = [[f"p{i}", f"s{i}", "ab"[i % 2], "12.5"] for i in range(20)]
    write(tmp_path / "labels.csv", [[*CLAM_HEAD, "survival_months"], *lines])
    touch(tmp_path / "slides", *(f"s{i}.svs" for i in range(20)))
    clam_splits(tmp_path / "splits", 3)
    return tmp_path


def test_each_clam_split_makes_a_table(clam: Path) -> None:
    words = [
        "clam",
        clam / "labels.csv",
        clam / "splits",
        "--slides",
        clam / "slides",
        "--out",
        clam / "t.csv",
    ]
    run(*words, "--all-splits")
    assert sorted(path.name for path in clam.glob("t*.csv")) == ["t_0.csv", "t_1.csv", "t_2.csv"]
    for number in range(3):
        split = split_of(clam / f"t_{number}.csv")
        assert {row.slide_id for row in split.test} == {f"s{(i + 4 * number) % 20}" for i in range(16, 20)}
        assert [len(part) for part in split[1:]] == [12, 4, 4, 0, 0]
    assert "exist already; --force replaces them" in run(*words, "--all-splits", code=1)
    assert read_split(clam / "splits" / "splits_1.csv") == read_split(clam / "splits" / "splits_1_bool.csv")


def test_clam_split_files_that_cannot_be_used(clam: Path) -> None:
    def said(split: str, *more: str) -> str:
        return run("clam", clam / "labels.csv", clam / "splits" / split, "--slides", clam / "slides", "--out",
                   clam / "t.csv", *more, code=1)  # fmt: skip

    assert "give splits_N.csv, not its _descriptor" in said("splits_0_descriptor.csv")
    head = ["", "train", "val", "test"]
    write(clam / "splits" / "twice.csv", [head, ["0", "s1", "s1", "s2"]])
    assert "1 slides aren't in exactly one part: s1 (train, val)" in said("twice.csv")
    write(clam / "splits" / "unknown.csv", [head, ["0", "s1", "s3", "other"]])
    assert "names 1 slides that the label file lacks: other" in said("unknown.csv")
    write(clam / "splits" / "columns.csv", [["", "train", "valid", "test"], ["0", "s1", "s3", "s2"]])
    assert "no column 'val' and unknown columns 'valid'" in said("columns.csv")


@pytest.mark.parametrize("ending", ["", ".0"])
def test_clam_slides_whose_names_are_numbers(tmp_path: Path, ending: str) -> None:
    """Accession numbers; pandas writes 1008.0 into a column that has empty cells."""
    ids = [f"10{n:02}" for n in range(12)]
    lines = [[f"P{n // 2}", one, "AB"[n // 6]] for n, one in enumerate(ids)]
    write(tmp_path / "labels.csv", [CLAM_HEAD, *lines])
    touch(tmp_path / "slides", *(f"{one}.tiff" for one in ids))
    parts = {"train": ids[:2] + ids[6:8] + ids[4:6], "val": ids[2:4] + ids[8:9], "test": ids[9:]}
    rows = [
        [
            str(n),
            *(
                f"{part[n]}{ending if len(part) < 6 else ''}" if n < len(part) else ""
                for part in parts.values()
            ),
        ]
        for n in range(6)
    ]
    write(tmp_path / "splits_0.csv", [["", *parts], *rows])
    of_slide = {one: name for name, part in parts.items() for one in part}
    flags = [[f"{one}{ending}", *(str(name == of_slide[one]) for name in parts)] for one in ids]
    write(tmp_path / "splits_0_bool.csv", [["", *parts], *flags])
    known = set(ids)
    assert read_split(tmp_path / "splits_0.csv", known) == of_slide
    assert read_split(tmp_path / "splits_0_bool.csv", known) == of_slide
    out = tmp_path / "t.csv"
    lines[8][0] = "P9"  # 1008 validates, 1009 tests
    write(tmp_path / "labels.csv", [CLAM_HEAD, *lines])
    run(
        "clam",
        tmp_path / "labels.csv",
        tmp_path / "splits_0.csv",
        "--slides",
        tmp_path / "slides",
        "--out",
        out,
    )
    assert {row.slide_id: row.fold for row in rows_of(out)} == of_slide
    write(tmp_path / "splits_0_descriptor.csv", [["", *parts], ["0", "1000", "1002", "1009"]])
    with pytest.raises(ConfigError, match="not its _descriptor"):
        read_split(tmp_path / "splits_0_descriptor.csv", known)


def test_label_files_are_read_with_the_same_care(tmp_path: Path) -> None:
    layout = Layout("a thing", {"a": ("A",), "b": ("B",)})

    def records(text: bytes) -> list[dict[str, str]]:
        (tmp_path / "x.csv").write_bytes(text)
        return read_source(tmp_path / "x.csv").records(layout)

    assert records(b"A;B\n\n1;x, y\n") == [{"a": "1", "b": "x, y"}]
    assert records("a\tb\n1\té\n".encode("utf-16")) == [{"a": "1", "b": "é"}]
    with pytest.raises(ConfigError, match=r"more cells than the 2 columns in line 4"):
        records(b"A,B\n1,x\n\n2,x, y\n")
    with pytest.raises(ConfigError, match=r"twice the column 'A' \(columns 1 and 3\)"):
        records(b"A,B,a\n1,x,2\n")
    (tmp_path / "clam.csv").write_text("case_id,slide_id,label\n\np,s,x\np,s2,nan\n")
    with pytest.raises(ConfigError, match=r"empty cells.* in line 4"):
        read_dataset(tmp_path / "clam.csv")


def test_names_that_look_like_one_are_said_when_the_table_is_written(clam: Path) -> None:
    lines = [[f"p{i}", f"s{i}", ("a", "b", "A")[i % 3]] for i in range(20)]
    write(clam / "labels.csv", [CLAM_HEAD, *lines])
    said = run("clam", clam / "labels.csv", "--slides", clam / "slides", "--out", clam / "t.csv")
    assert "Note: label: 'a' (lines 2, 5, 8, 11, 14 and 2 more) and 'A' (lines 4, " in said
    assert "data.allow_similar_names = true" in said


def test_a_patient_in_two_parts_of_a_clam_split_is_named(clam: Path) -> None:
    lines = [[f"p{i}", f"s{i}", "ab"[i % 2]] for i in range(20)]
    lines[0][0] = "p18"  # s0 is trained on, s18 tests
    write(clam / "labels.csv", [CLAM_HEAD, *lines])
    split = clam / "splits" / "splits_0.csv"
    said = run(
        "clam", clam / "labels.csv", split, "--slides", clam / "slides", "--out", clam / "t.csv", code=1
    )
    assert "1 patients are in two parts of the split, which leaks: p18 (train, test)" in said


# --- parts -----------------------------------------------------------------------------------------------------------


def test_validation_is_held_out_by_patient_and_label() -> None:
    entries = [Entry(f"s{i}", f"p{i // 2}", "ab"[i // 2 % 2], fold="train") for i in range(80)]
    entries += [Entry("t", "pt", "a", fold="test")]
    done = hold_out(entries, 0.25, seed=0)
    val = [entry for entry in done if entry.fold == "val"]
    assert Counter(entry.label for entry in val) == {"a": 10, "b": 10}
    assert not {entry.patient_id for entry in val} & {
        entry.patient_id for entry in done if entry.fold != "val"
    }
    assert hold_out(entries, 0.25, seed=0) == done
    with pytest.raises(ConfigError, match=r"from 0\.05 to 0\.5, got 0\.9"):
        hold_out(entries, 0.9, seed=0)
    with pytest.raises(ConfigError, match="a class has only 1 training slides"):
        hold_out([*entries, Entry("c", "pc", "c", fold="train")], 0.25, seed=0)


def test_what_no_table_is(tmp_path: Path) -> None:
    layout = Layout("a thing", {"a": ("A",)})
    for name, data, message in (
        ("x.csv", b"", "has no rows"),
        ("y.csv", b"a,b\n", "has no rows"),
        ("z.csv", b"a\n\xff\xfe\x00\n", "can't be read as CSV"),
        ("w.xlsx", b"no zip", "can't be read as xlsx"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            read_source(tmp_path / name).records(layout)
    with pytest.raises(ConfigError, match="no such file"):
        read_source(tmp_path / "none.xlsx")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_loads(path: Path) -> None:
    config = load_config(path)
    assert config.export.training_data
    text = path.read_text()
    if path.stem in ("tcga_brca", "tcga_nsclc", "tcga_rcc", "bracs", "camelyon16"):
        study = path.stem.partition("_")[2]
        assert f"python -m training.tables {'tcga ' + study if study else path.stem}" in text
        assert (config.tiles.mpp_lr, config.tiles.ratio) == (2.0, 4)
        assert config.tiles.tile_px in (224, 256)

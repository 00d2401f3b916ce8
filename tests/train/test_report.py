"""The run report: numbers, plots, privacy, and what it says where something is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from report_helpers import Page, make_run, write_csv
from run_helpers import absolute_rows, read_rows, write_rows
from typer.testing import CliRunner

from napari_lrmil.errors import LRMILError
from training.config import RunConfig
from training.metrics import auc
from training.report.__main__ import app
from training.report.build import build_report
from training.report.data import read_run
from training.report.examples import choose
from training.run.layout import RunDir

DATE = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
FIVE = ("teacher_hr", "lr_scratch", "stage1_only", "stage2_only", "lrmil")


def page_of(run_dir: Path, out: Path, **options: object) -> Page:
    return Page(
        build_report(run_dir, out=out, date=DATE, device="cpu", **options).read_text(encoding="utf-8")
    )


@pytest.fixture(scope="module")
def real(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of the tiny run, with its examples."""
    return page_of(finished / "run", tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """Three classes, two folds, three methods."""
    return make_run(tmp_path / "run")


def number(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def assert_comparison(page: Page, results: dict[str, dict[str, float]], names: dict[str, str]) -> None:
    for method, name in names.items():
        result = results[method]
        cells = page.row(name, 12)
        marked = " !" if result["n_unfitted"] and method != "rgb" else ""
        assert cells[1] == number(result["train_auc"]) + marked
        value, low, high = result["auc_interval"]
        assert cells[2] == f"{number(value)} [{number(low)}, {number(high)}]"
        if method == "lrmil":
            assert cells[4] == ""
        else:
            value, low, high = result["lrmil_minus_this"]
            assert cells[4] == f"{signed(value)} [{signed(low)}, {signed(high)}]"
        wanted = ("balanced_accuracy", "accuracy", "weighted_f1", "brier", "ece")
        assert cells[6:] == [*(number(result[key]) for key in wanted), str(result["n_test"])]


# --- a real run ---


def test_numbers_are_those_of_results_json(real: Page, finished: Path) -> None:
    results = json.loads((finished / "run" / "results.json").read_text())
    names = {
        "teacher_hr": "teacher on HR",
        "lr_scratch": "LR from scratch",
        "stage1_only": "stage 1 only",
        "stage2_only": "stage 2 only",
        "lrmil": "LRMIL",
    }
    assert set(names) <= set(results)
    assert_comparison(real, results, names)


def test_says_what_f_is_and_which_rows_read_more_than_lr(real: Page) -> None:
    assert "f is the teacher's encoder, as it came; f′ is the student's" in real.text
    assert "Pixels finer than LR are read by: teacher on HR. All other rows read LR tiles alone." in real.text


def test_says_what_was_held_out(real: Page) -> None:
    # 6 training, 3 validation and 4 test slides, one a patient, and 2 without label.
    (row,) = [row for row in real.rows if len(row) == 13 and row[0] == "0"]
    assert (row[1], row[2], row[4], row[5], row[7], row[8]) == ("6", "6", "3", "3", "4", "4")
    assert row[10:12] == ["0", "2"]
    assert row[12].startswith("lesion from 0.")


def test_examples_are_pictures(real: Page) -> None:
    pictures = [value for value in real.values("src") if value.startswith("data:image/jpeg")]
    assert len(pictures) == 8  # four slides, each without and with its heatmap
    assert len(set(pictures)) == 8
    assert all(attributes.get("alt") for tag, attributes in real.tags if tag == "img")
    assert "changed since" not in real.text  # the bundle says what the run said


def test_stands_alone_and_is_whole(real: Page) -> None:
    assert not real.unbalanced
    assert not real.open
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in real.tags)
    assert all(value.startswith("data:image/") for value in real.values("src"))
    links = [*real.values("href"), *real.values("xlink:href")]
    ids = real.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    assert "@import" not in real.html
    assert set(re.findall(r"url\((.)", real.html)) <= {"#"}
    assert set(re.findall(r"url\(#([^)]*)\)", real.html)) <= set(ids)
    assert "http" not in real.html
    assert not any(name.startswith("on") for _, attributes in real.tags for name in attributes)


def test_plots_take_their_colours_from_the_page(real: Page) -> None:
    plots = re.findall(r'<svg aria-hidden="true".*?</svg>', real.html, flags=re.S)
    assert len(plots) > 10
    assert not [plot for plot in plots if re.search(r"(stroke|fill)(: |=\")(#|rgb)", plot)]


def test_names_nobody_unless_asked(real: Page, finished: Path, cohort: Path, tmp_path: Path) -> None:
    rows = read_rows(cohort)
    config = json.loads((finished / "run" / "config.json").read_text())
    secrets = {row["slide_id"] for row in rows} | {row["patient_id"] for row in rows}
    secrets |= {str(Path(config["data"]["slides"]).parent), str(finished)}
    assert not [secret for secret in secrets if secret in real.html]
    shown = page_of(finished / "run", tmp_path / "shown.html", n_examples=1, show_identifiers=True)
    assert "test-0" in shown.text
    assert config["data"]["slides"] in shown.text


def test_same_run_same_bytes(finished: Path, tmp_path: Path, one_thread: None) -> None:
    pages = [
        page_of(finished / "run", tmp_path / name, n_examples=1).html for name in ("one.html", "two.html")
    ]
    assert pages[0] == pages[1]
    assert "2030-01-02 03:04 UTC" in pages[0]


def test_missing_slide_gets_a_note(copied: Callable[..., Path], cohort: Path, tmp_path: Path) -> None:
    folder = copied()
    shown = choose(read_run(folder / "run"), 2)
    gone = shown[0].slide_id
    table = write_rows(
        tmp_path / "slides.csv",
        [
            row | ({"path": str(tmp_path / "no.tif")} if row["slide_id"] == gone else {})
            for row in absolute_rows(cohort)
        ],
    )
    config = json.loads((folder / "run" / "config.json").read_text())
    config["data"]["slides"] = str(table)
    RunDir(folder / "run").write_config(RunConfig.model_validate(config))
    page = page_of(folder / "run", tmp_path / "report.html", n_examples=2)
    assert page.text.count("No picture: the slide file is missing or can't be read.") == 1
    assert len([value for value in page.values("src") if "jpeg" in value]) == 2 * (len(shown) - 1)
    assert gone not in page.html
    assert "no.tif" not in page.html


def test_missing_bundle_gets_a_note(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied()
    shutil.rmtree(folder / "run" / "fold0" / "bundle")
    page = page_of(folder / "run", tmp_path / "report.html", n_examples=1)
    assert "No picture: the bundle is missing or can't be read." in page.text
    assert "No readable bundle: fold 0." in page.text


# --- a run by hand ---


def test_three_classes(by_hand: Path, tmp_path: Path) -> None:
    page = page_of(by_hand, tmp_path / "report.html")
    results = json.loads((by_hand / "results.json").read_text())
    assert_comparison(page, results, {"teacher_hr": "teacher on HR", "rgb": "colour alone", "lrmil": "LRMIL"})
    of_fold = [fold.predictions["lrmil"] for fold in read_run(by_hand).folds]
    for index, name in enumerate("abc"):
        each = []  # both folds have as many pairs
        for one in of_fold:
            scores = one.probabilities[:, index]
            positive = (one.labels == index).astype(np.int64)
            each.append(auc(positive, np.stack([1 - scores, scores], axis=1)))
        assert f"{name} {np.mean(each):.3f}" in page.text
    assert "did not fit its own training slides (AUC there below 0.9" in page.text
    assert "Trainings: 1 of 2 of teacher on HR." in page.text
    for method, name in (("teacher_hr", "teacher on HR"), ("lrmil", "LRMIL")):
        result = results[method]
        of_class = [number(value) for value in result["auc_by_class"].values()]
        assert page.row(name, 5)[1:] == [number(result["auc"]), *of_class]
    ours = read_run(by_hand).pooled("lrmil")
    predicted = ours.probabilities.argmax(axis=1)
    for index, name in enumerate("abc"):
        row = page.row(name, 5)
        counts = [int(((ours.labels == index) & (predicted == other)).sum()) for other in range(3)]
        assert [cell.split()[0] for cell in row[1:]] == [*map(str, counts), "6"]
        # A count and its share of the row are two lines of one cell.
        assert [cell.split(maxsplit=1)[1] for cell in row[1:4]] == [f"{100 * n / 6:.0f} %" for n in counts]


def test_shortcut_baselines_stand_apart(by_hand: Path, tmp_path: Path) -> None:
    page = page_of(by_hand, tmp_path / "report.html")
    first = [row[0] for row in page.rows]
    assert first.index("LRMIL") < first.index("Shortcut baselines") < first.index("colour alone")
    assert "takes no pathology" in page.text


def test_mean_and_deviation_of_folds(by_hand: Path, tmp_path: Path) -> None:
    data = read_run(by_hand)
    values = [
        auc(fold.predictions["lrmil"].labels, fold.predictions["lrmil"].probabilities) for fold in data.folds
    ]
    mean, half = (values[0] + values[1]) / 2, abs(values[0] - values[1]) / 2
    page = page_of(by_hand, tmp_path / "report.html")
    # The sample's deviation of two values is their half distance times the root of 2.
    assert f"{mean:.3f} ± {half * 2**0.5:.3f}" in [row[1] for row in page.rows if row[0] == "mean ± sd"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run_dir = make_run(
        tmp_path / "run",
        class_names=(f"a{evil}", "_$b$ & \\frac", '"><img src=x onerror=alert(1)>'),
        methods=("lrmil", "new<b>method"),
        prefix=f"s{evil}",
        name=f"run{evil}",
    )
    for show in (False, True):
        page = page_of(run_dir, tmp_path / "report.html", show_identifiers=show)
        assert "script" not in {tag for tag, _ in page.tags}
        assert not page.unbalanced
        assert evil in page.text  # as text
        assert not [value for value in page.values("src") if not value.startswith("data:")]
        assert not page.values("onerror")
        assert (f"s{evil}-" in page.text) is show


def test_without_table_and_bundles(by_hand: Path, tmp_path: Path) -> None:
    page = page_of(by_hand, tmp_path / "report.html")
    assert "The slide table isn't where the config says" in page.text
    assert page.text.count("No picture: ") == 6
    assert "secret-study" not in page.html
    assert "123 bootstrap resamples" in page.text


@pytest.mark.parametrize(
    "place", ["fold0/student_encoder.csv", "fold0/metrics/stage1.csv", "shared/metrics/stage1.csv"]
)
def test_stage_1_curves_wherever_they_are(by_hand: Path, tmp_path: Path, place: str) -> None:
    write_csv(by_hand / place, [["epoch", "train_loss", "val_loss"], [0.0, 1.0, 0.91], [1.0, 0.5, 0.82]])
    page = page_of(by_hand, tmp_path / "report.html", n_examples=0)
    assert "Stage 1: the student encoder" in page.text
    assert "0.82" in page.text
    # Runs of earlier versions shared an encoder of all slides by default, and their configs don't say so.
    transductive = place.startswith("shared")
    assert (
        "has read the pixels of validation and test slides" in " ".join(page.text.split())
    ) is transductive
    assert ("LRMIL, transductive" in page.html) is transductive


def test_examples_are_chosen_by_the_stated_rule(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", class_names=("no", "yes"), methods=("lrmil",), n_folds=1, per_fold=4)
    rows = [
        ("s0", "no", 0.6),
        ("s1", "no", 0.9),
        ("s2", "no", 0.3),
        ("s3", "yes", 0.2),
        ("s4", "yes", 0.4),
        ("s5", "yes", 0.45),
        ("s6", "yes", 0.45),
    ]
    write_csv(
        run_dir / "fold0" / "predictions" / "lrmil.csv",
        [["slide_id", "patient_id", "label", "p_no", "p_yes", "called"]]
        + [[name, name, label, p_no, 1 - p_no, "no" if p_no >= 0.5 else "yes"] for name, label, p_no in rows],
    )
    results = json.loads((run_dir / "results.json").read_text())
    results["lrmil"]["n_test"] = len(rows)
    (run_dir / "results.json").write_text(json.dumps(results))
    data = read_run(run_dir)
    # Surest right ones of each class, the surest wrong one (of "no" alone), then the next right ones.
    assert [item.slide_id for item in choose(data, 3)] == ["s1", "s3", "s2"]
    assert [item.slide_id for item in choose(data, None)] == ["s1", "s0", "s3", "s2"]
    assert [item.slide_id for item in choose(data, 99)] == ["s1", "s0", "s3", "s4", "s5", "s6", "s2"]
    assert [item.number for item in choose(data, 3)] == [2, 4, 3]
    assert choose(data, 0) == []


# --- what isn't there ---


@pytest.mark.parametrize("part", ["config.json", "results.json", "fold1/predictions/rgb.csv"])
def test_unfinished_run_names_the_part(by_hand: Path, part: str) -> None:
    (by_hand / part).unlink()
    with pytest.raises(LRMILError, match=rf"not a finished run: it has no {re.escape(part)}.*training\.run"):
        build_report(by_hand)
    assert not (by_hand / "report.html").exists()


def test_part_of_the_folds_is_no_run(by_hand: Path) -> None:
    shutil.rmtree(by_hand / "fold1")
    with pytest.raises(LRMILError, match="18 test slides, the folds' predictions of 9"):
        build_report(by_hand)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("results.json", "{"),
        ("results.json", "[]"),
        ("results.json", '{"teacher_hr": {}}'),
        ("fold0/predictions/lrmil.csv", "slide_id,patient_id,label,p_a,p_b,p_c\ns,p,zebra,1,0,0\n"),
        ("fold0/predictions/lrmil.csv", "slide_id,patient_id,label,p_a,p_b,p_c\ns,p,a,1\n"),
        ("fold0/predictions/lrmil.csv", "nonsense\n"),
        ("fold0/metrics/lrmil.csv", "epoch,val_loss\n0,nothing\n"),
    ],
)
def test_damaged_files_are_named(by_hand: Path, part: str, text: str) -> None:
    (by_hand / part).write_text(text)
    with pytest.raises(LRMILError, match=re.escape(part)):
        build_report(by_hand)


def test_command(by_hand: Path, tmp_path: Path) -> None:
    out = tmp_path / "else" / "page.html"
    done = CliRunner().invoke(app, [str(by_hand), "--out", str(out), "--examples", "0", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert out.is_file()
    assert "page.html" in done.output.replace("\n", "")
    failed = CliRunner().invoke(app, [str(tmp_path / "nothing")])
    assert failed.exit_code == 1
    assert "no run directory" in failed.output
    assert "Traceback" not in failed.output

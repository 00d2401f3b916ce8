"""A slide unlike those of training has no label, wherever a result is told: files, tables, command line and window."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import lrmil, message

from napari_lrmil._viewer.docks.classify.panel import earlier_text, overlay_text, result_panel
from napari_lrmil._viewer.docks.worklist.panel import Show, cells, is_shown, prediction_text
from napari_lrmil.cache import summarise
from napari_lrmil.cli.results import Outcome
from napari_lrmil.export.report_content import ReportContent, gather
from napari_lrmil.export.result import result_document
from napari_lrmil.export.tables import FolderRow, folder_table
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.calibration import UNLIKE_TRAINING, answer_of
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.wording import answer_text, counted_answer, counts_text
from napari_lrmil.worklist import Worklist

REAL = "slides_real/CMU-1-Small-Region.svs"


def test_the_rule() -> None:
    assert answer_of("lesion", out_of_distribution=False) == "lesion"
    assert answer_of("lesion", out_of_distribution=True) == UNLIKE_TRAINING == "unlike training"


def test_counts() -> None:
    answers = ["benign"] * 3 + ["unlike training"] * 9 + ["lesion"] * 7
    assert counts_text(answers) == "7 lesion, 3 benign, 9 unlike training"
    assert counts_text([]) == ""
    told = [("lesion", "lesion", True), ("lesion", "lesion", False), ("unlike training", None, True)]
    counted = [counted_answer(answer, label, unsure=unsure) for answer, label, unsure in told]
    assert counts_text(counted) == "1 lesion, 1 lesion (unsure), 1 unlike training"


@pytest.fixture(scope="module")
def real(shared_file: Callable[[str], Path]) -> SlidePrediction:
    """Of a real slide, by the packaged model, which knows generated ones."""
    with Slide(shared_file(REAL)) as slide:
        return run_to_end(predict_slide(slide, load_bundle("demo"), device=torch.device("cpu")))


@settings(max_examples=80, deadline=None)
@given(
    p=st.floats(0, 1),
    left=st.sampled_from([None, (), ("qa",), ("qb",), ("qa", "qb")]),
    score=st.one_of(st.floats(0, 1e6), st.just(float("nan")), st.just(float("inf"))),
    limit=st.one_of(st.none(), st.floats(0, 1e6)),
    thresholds=st.sampled_from([None, (0.2, 0.8)]),
    revealed=st.booleans(),
)
def test_no_output_of_an_unlike_slide_names_a_class_as_its_answer(
    real: SlidePrediction,
    tmp_path_factory: pytest.TempPathFactory,
    p: float,
    left: tuple[str, ...] | None,
    score: float,
    limit: float | None,
    thresholds: tuple[float, float] | None,
    revealed: bool,
) -> None:
    made = replace(
        real,
        class_names=("qa", "qb"),
        class_probabilities=np.array([1 - p, p]),
        prediction_set=left,
        coverage=None if left is None else 0.9,
        ood_score=score,
        ood_threshold=limit,
        thresholds=thresholds,
    )
    unlike = limit is not None and not score <= limit
    document, summary = result_document(made), summarise(made)
    (row,) = csv.DictReader(folder_table([FolderRow("s", summary)]).splitlines())
    path = tmp_path_factory.getbasetemp() / "s.svs"
    path.touch()
    worklist = Worklist.open(path.parent)
    item = worklist.set_result(path, summary)
    outcome = Outcome({path: "s"}, made.class_names, done={path: summary})
    panel = result_panel(made, revealed=revealed)
    heads = [
        answer_text(made),
        outcome.line(path),
        outcome.answers_text(),
        overlay_text(made, revealed=revealed),
        panel.headline,
        earlier_text(made),
        prediction_text(item),
        *cells(item),
    ]
    answers = {made.answer, summary.answer, document.answer, row["answer"], item.answer}
    assert len(answers) == 1
    labels = {made.label, summary.label, document.label, row["label"] or None, item.label}
    assert len(labels) == 1
    if unlike:
        assert answers == {"unlike training"}
        assert labels == {None}
        assert not [text for text in heads if re.search("q[ab]", text)]
        assert document.class_probabilities is document.prediction_set is None
        assert {row[name] for name in ("p_qa", "p_qb", "prediction_set")} == {""}
        assert row["label_not_to_be_used"] == made.called
        assert not is_shown(item, Show.ALL, made.called)  # nor is it found by the class
        assert panel.classes == () or "Not to be used" in panel.withheld_text
    else:
        assert answers == labels == {made.called}
        assert document.withheld is None
        assert row["label_not_to_be_used"] == row["probabilities_not_to_be_used"] == ""
        assert not panel.withheld


def test_a_real_slide_from_the_command_line(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    slide, out = shared_file(REAL), tmp_path / "out"
    args = (
        "predict",
        slide,
        "--bundle",
        "demo",
        "--out",
        out,
        "--device",
        "cpu",
        "--cache-dir",
        tmp_path / "c",
    )
    for _ in ("computed", "from cache"):
        done = lrmil(*args)
        assert done.exit_code == 0, done.output
        said = message(done)
        assert "unlike training" in said
        assert not re.search("(lesion|benign) [0-9]", said)
        told = json.loads((out / f"{slide.stem}.json").read_text(encoding="utf-8"))
        assert (told["answer"], told["label"], told["format_version"]) == ("unlike training", None, 3)
        assert told["withheld"]["label"] in told["class_names"]
        with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
            (row,) = csv.DictReader(file)
        assert (row["answer"], row["label"], row["p_benign"], row["p_lesion"]) == (
            "unlike training",
            "",
            "",
            "",
        )


def test_a_batch_ends_with_how_many_have_which_answer(
    shared_file: Callable[[str], Path], generated_slide: Path, tmp_path: Path
) -> None:
    done = lrmil(
        *("predict", shared_file(REAL), generated_slide, "--bundle", "demo", "--device", "cpu"),
        *("--cache-dir", tmp_path / "cache", "--out", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.output
    assert re.search("2 slides: 1 (benign|lesion), 1 unlike training", message(done))


def content_of(prediction: SlidePrediction, path: Path) -> ReportContent:
    from datetime import UTC, datetime

    with Slide(path) as slide:
        content: ReportContent = run_to_end(
            gather(
                prediction,
                slide,
                load_bundle("demo").info,
                verdict=None,
                n_tiles=1,
                show_identifiers=False,
                written=datetime.now(UTC),
                total=1,
            )
        )
    return content


def test_the_first_line_of_a_report_says_that_a_label_is_unsure(
    real: SlidePrediction, shared_file: Callable[[str], Path]
) -> None:
    known = replace(real, ood_score=0.0, prediction_set=(real.called,))
    assert content_of(known, shared_file(REAL)).result_line.startswith(f"{real.called}, ")
    unsure = replace(known, prediction_set=real.class_names)
    assert content_of(unsure, shared_file(REAL)).result_line.startswith(f"Unsure: {real.called}, ")


def test_a_reports_headline(real: SlidePrediction, shared_file: Callable[[str], Path]) -> None:
    content = content_of(real, shared_file(REAL))
    assert content.result_line == "unlike training"
    assert content.withheld_line.startswith(f"It would say: {real.called} ")
    assert not [text for text in content.warnings + content.trust if re.search("lesion|benign", text)]

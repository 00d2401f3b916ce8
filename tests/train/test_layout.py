"""A run directory gives back what was put into it, and says what it lacks."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import absolute_rows, write_config, write_rows

from napari_lrmil.errors import ConfigError
from training.config import load_config
from training.data.predictions import (
    Predictions,
    SlideAttention,
    parse_predictions,
    pool,
    write_predictions,
)
from training.data.splits import make_splits, splits_key
from training.data.table import DataSection, SlideRow
from training.methods import (
    BY_KEY,
    METHOD_KEYS,
    METHODS,
    OURS,
    SHORTCUT_KEYS,
    TEACHER,
    in_table_order,
    wanted_methods,
)
from training.progress import Reporter
from training.run import prepare as prepare_module
from training.run.layout import RunDir
from training.run.markers import RunDirError
from training.run.prepare import prepare, splits_of
from training.stages.distill_slides import TeacherOutput

NAMES = ("a", "b", "c")


def rows(n: int = 18) -> list[SlideRow]:
    return [SlideRow(f"s{i}", Path(f"/slides/{i}.tif"), f"p{i}", NAMES[i % 3], mpp=0.5) for i in range(n)]


def predictions(first: int) -> Predictions:
    rng = np.random.default_rng(first)
    ids = tuple(f"s{first + i}" for i in range(4))
    probabilities = rng.dirichlet(np.ones(3), 4)
    return Predictions(
        NAMES,
        ids,
        tuple(f"p,{name}" for name in ids),
        np.array([0, 2, 1, 0]),
        probabilities,
        np.array([1, 2, 1, 0]),
    )


def test_predictions_come_back_to_the_last_digit(tmp_path: Path) -> None:
    fold = RunDir(tmp_path).fold(3)
    one = predictions(0)
    fold.write_predictions("lrmil", one)
    back = fold.read_predictions("lrmil")
    assert back[:3] == one[:3]
    np.testing.assert_array_equal(back.called, one.called)
    np.testing.assert_array_equal(back.labels, one.labels)
    np.testing.assert_array_equal(back.probabilities, one.probabilities)
    assert [folder.number for folder in RunDir(tmp_path).tested_folds()] == [3]
    both = pool([one, predictions(4)])
    assert both.slide_ids == tuple(f"s{i}" for i in range(8))
    assert both.probabilities.shape == (8, 3)


def test_tables_of_earlier_versions_called_the_most_probable_class(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text(
        "slide_id,patient_id,label,p_a,p_b,temperature\ns,p,a,0.4,0.6,1.5\nt,q,b,0.7,0.3,1.5\n"
    )
    assert parse_predictions((tmp_path / "old.csv").read_bytes()).called.tolist() == [1, 0]


def test_no_name_in_predictions_runs_as_a_formula(tmp_path: Path) -> None:
    names = ("=1+1", "+x", "'=1", "'plain", "-2\n", "@sum")
    odd = Predictions(
        ("=a", "'b"), names, tuple(reversed(names)), np.arange(6) % 2, np.full((6, 2), 0.5), np.arange(6) // 3
    )
    write_predictions(tmp_path / "predictions.csv", odd)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    back = parse_predictions((tmp_path / "predictions.csv").read_bytes())
    assert back[:3] == odd[:3]
    np.testing.assert_array_equal(back.labels, odd.labels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide,p_a,p_b\n", "the columns are slide, p_a, p_b"),
        ("slide_id,patient_id,label,p_a\n", "not those of predictions"),
        ("slide_id,patient_id,label,p_a,p_b\n", "no rows"),
        ("slide_id,patient_id,label,p_a,p_b\ns,p,zebra,1,0\n", "s is labelled 'zebra', not a or b"),
        ("slide_id,patient_id,label,p_a,p_b\ns,p,a,1\n", "damaged"),
    ],
)
def test_damaged_predictions_are_told(tmp_path: Path, text: str, said: str) -> None:
    fold = RunDir(tmp_path).fold(0)
    fold.predictions("lrmil").parent.mkdir(parents=True)
    fold.predictions("lrmil").write_text(text)
    with pytest.raises(ConfigError, match=rf"lrmil\.csv can't be read as predictions: .*{said}"):
        fold.read_predictions("lrmil")


def test_attention_and_the_teachers_outputs_come_back(tmp_path: Path) -> None:
    fold = RunDir(tmp_path).fold(0)
    attention = {
        "s/1": SlideAttention(np.array([0.25, 0.75]), np.array([[0, 1], [2, 3]])),
        "s2": SlideAttention(np.array([1.0]), np.array([[4, 5]])),
    }
    fold.write_attention("lrmil", attention)
    assert fold.attended_methods() == ["lrmil"]
    back = fold.read_attention("lrmil")
    assert back.keys() == attention.keys()
    for name, one in attention.items():
        np.testing.assert_array_equal(back[name].scores, one.scores)
        np.testing.assert_array_equal(back[name].places, one.places)
    outputs = {"s1": TeacherOutput(torch.tensor([1.0, 2.0]), torch.tensor([-1.0]), torch.tensor([1.0]))}
    fold.write_teacher_outputs(outputs)
    for value, expected in zip(fold.read_teacher_outputs()["s1"], outputs["s1"], strict=True):
        assert torch.equal(value, expected)


def test_splits_are_kept_and_read_back_and_never_dealt_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, data = RunDir(tmp_path), DataSection(slides=Path("slides.csv"), n_folds=3)
    slides = [*rows(), SlideRow("extra", Path("/e.tif"), "pe", None)]
    dealt = splits_of(run_dir, slides, data, seed=0, writes=True)
    kept = run_dir.read_splits()
    assert kept is not None
    assert kept.splits() == dealt  # all that the table says of a slide is in it
    written = run_dir.splits_json.read_bytes()

    def another_deal(*args: object, **options: object) -> None:
        raise AssertionError("dealt anew")

    monkeypatch.setattr(prepare_module, "make_splits", another_deal)
    # Slides that lie elsewhere are the same slides.
    moved = [replace(row, path=Path("/elsewhere") / row.path.name) for row in slides]
    again = splits_of(run_dir, moved, data, seed=0, writes=False)
    assert [[row.slide_id for row in split.test] for split in again] == [
        [row.slide_id for row in split.test] for split in dealt
    ]
    assert all(row.path.parent == Path("/elsewhere") for split in again for row in split.labelled)
    assert run_dir.splits_json.read_bytes() == written
    for other, seed in ((slides[1:], 0), (slides, 1)):  # other slides and another seed are another deal
        with pytest.raises(AssertionError, match="dealt anew"):
            splits_of(run_dir, other, data, seed=seed, writes=True)


def test_what_splits_are_dealt_from_decides_their_key() -> None:
    first = rows()
    key = splits_key(first, n_folds=3, seed=0)
    assert splits_key([replace(row, path=Path("x"), mpp=None) for row in first], n_folds=3, seed=0) == key
    others = [
        splits_key(first, n_folds=4, seed=0),
        splits_key(first, n_folds=3, seed=1),
        splits_key(first, n_folds=3, seed=0, preserved_sites=True),
        splits_key(first[:-1], n_folds=3, seed=0),
        splits_key([replace(first[0], label="b"), *first[1:]], n_folds=3, seed=0),
        splits_key([replace(first[0], patient_id="p1"), *first[1:]], n_folds=3, seed=0),
    ]
    assert len({key, *others}) == 7


@pytest.mark.parametrize("text", ["", "{}", '{"key": "k", "slides": 3, "folds": []}'])
def test_damaged_splits_are_dealt_again(tmp_path: Path, text: str) -> None:
    run_dir, data = RunDir(tmp_path), DataSection(slides=Path("slides.csv"), n_folds=3)
    run_dir.splits_json.write_text(text)
    with pytest.raises(RunDirError, match=r"splits\.json can't be read as splits"):
        run_dir.read_splits()
    said: list[str] = []
    dealt = make_splits(rows(), n_folds=3, seed=0)
    assert splits_of(run_dir, rows(), data, seed=0, writes=True, tell=said.append) == dealt
    assert said == ["splits.json isn't as it was written; the splits are dealt anew"]
    assert run_dir.read_splits() is not None
    assert splits_of(run_dir, rows(), data, seed=0, writes=True, tell=said.append) == dealt
    assert len(said) == 1


def test_splits_that_were_changed_are_dealt_again(tmp_path: Path) -> None:
    """A test slide in the training part is a leak that no result shows."""
    run_dir, data = RunDir(tmp_path), DataSection(slides=Path("slides.csv"), n_folds=3)
    dealt = splits_of(run_dir, rows(), data, seed=0, writes=True)
    document = json.loads(run_dir.splits_json.read_text())
    document["folds"][0]["train"].append(document["folds"][0]["test"][0])
    run_dir.splits_json.write_text(json.dumps(document))
    with pytest.raises(RunDirError, match=r"splits\.json isn't as this run wrote it"):
        run_dir.read_splits()
    assert splits_of(run_dir, rows(), data, seed=0, writes=True) == dealt


@pytest.mark.slow
def test_a_run_keeps_the_splits_of_the_slides_that_it_can_use(cohort: Path, tmp_path: Path) -> None:
    table = absolute_rows(cohort)
    for row in table:
        del row["fold"]
    table[0]["path"] = "gone.tif"
    config = load_config(
        write_config(tmp_path, write_rows(tmp_path / "slides.csv", table)),
        ["--data.n_folds", "3", "--run.out_dir", str(tmp_path / "run")],
    )
    found = prepare(config, skip_bad=True, reporter=Reporter(Console(file=io.StringIO())))
    kept = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert [fold["test"] for fold in kept["folds"]] == [
        [row.slide_id for row in split.test] for split in found.splits
    ]
    assert table[0]["slide_id"] not in {slide["slide_id"] for slide in kept["slides"]}


def test_what_a_run_directory_lacks_is_told(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is no run directory.* it has no config\.json"):
        run_dir.read_config()
    run_dir.prepare()
    run_dir.config_json.write_text('{"run": {"out_dir": "x", "speed": 3}}')
    with pytest.raises(ConfigError, match=r"isn't a config of this version"):
        run_dir.read_config()
    config = load_config(write_config(tmp_path, tmp_path / "slides.csv"))
    run_dir.write_config(config)
    assert run_dir.read_config() == config


# --- the table of methods --------------------------------------------------------------------------------------------


def test_the_table_of_methods() -> None:
    assert (*METHOD_KEYS, *SHORTCUT_KEYS) == tuple(method.key for method in METHODS)
    assert len({method.name for method in METHODS}) == len({method.full_name for method in METHODS}) == 8
    assert wanted_methods(("teacher_hr",), ("rgb",)) == (TEACHER, BY_KEY["rgb"], OURS)
    assert wanted_methods(("lrmil", "lr_scratch"), ()) == (OURS, BY_KEY["lr_scratch"])
    keys = ["rgb", "lrmil", "new", "teacher_hr"]
    assert in_table_order(keys) == ["teacher_hr", "lrmil", "new", "rgb"]
    assert in_table_order(keys, ours_last=True) == ["teacher_hr", "new", "lrmil", "rgb"]
    assert [method.key for method in METHODS if method.is_distilled] == ["stage2_only", "lrmil"]


def test_a_marker_that_is_damaged_marks_nothing(tmp_path: Path) -> None:
    markers = RunDir(tmp_path).markers
    markers.write("fold0/test", "key")
    assert markers.is_done("fold0/test", "key")
    marker = markers.path("fold0/test")
    for text in (
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'{"key": "key"}',
        b'{"key": "key", "files": {"a": {"size": "1"}}}',
    ):
        marker.write_bytes(text)
        assert not markers.is_done("fold0/test", "key")
    marker.unlink()
    marker.mkdir()
    assert not markers.is_done("fold0/test", "key")

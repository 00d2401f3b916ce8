"""The cheapest row that is good enough: chosen on validation, measured on the run's own slides, exported, and served."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import read_rows, rerun, write_config, write_rows
from typer.testing import CliRunner

from napari_lrmil.cli.main import app
from napari_lrmil.model.bundle import ModelBundle, load_bundle, load_info
from napari_lrmil.predict import predict_slide, run_to_end, student_tiles
from napari_lrmil.slide import Slide
from napari_lrmil.slide.tiles import find_nested_tiles, find_tiles
from training.config import RunConfig, load_config
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles, TileGeometry
from training.progress import Reporter
from training.run.cli import run
from training.run.layout import RunDir
from training.stages.front import Front, Served, Tiles, read_cost, slides_to_time, tile_costs

CPU = torch.device("cpu")


def front_of(folder: Path) -> Front:
    found = RunDir(folder / "run").read_front()
    assert found is not None
    return found


def said_on_validation(folder: Path, positive_scores: dict[str, float], n: int = 600) -> None:
    """Give each row validation slides of so many patients; the teacher ranks them all, a row those above its share."""
    run_dir = RunDir(folder / "run")
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    for method, known in positive_scores.items():
        p = np.where(rng.random(n) < known, 0.1 + 0.8 * labels, 0.5) + 0.01 * rng.random(n)
        write_rows(
            folder / "run" / "fold0" / "val_predictions" / f"{method}.csv",
            [
                {
                    "slide_id": f"s{place}",
                    "patient_id": f"p{place}",
                    "label": ("benign", "lesion")[label],
                    "p_benign": repr(1 - value),
                    "p_lesion": repr(value),
                    "called": ("benign", "lesion")[int(value > 0.5)],
                }
                for place, (label, value) in enumerate(zip(labels.tolist(), p.tolist(), strict=True))
            ],
        )
        step = run_dir.fold(0).test_step(method)
        marker = run_dir.markers.find(step)
        assert marker is not None
        assert marker.files is not None
        run_dir.markers.write(step, marker.key, [run_dir.root / name for name in marker.files])


def test_too_few_patients_show_nothing_and_the_teacher_is_exported(finished: Path) -> None:
    front = front_of(finished)
    assert front.chosen == "teacher_hr"
    assert [row.key for row in front.rows][-1] == "teacher_hr"
    assert not any(row.val.shown for row in front.rows if row.val is not None)
    said = " ".join((finished / "stdout.txt").read_text().split())
    assert "none of the others; the teacher is exported" in said
    assert "nothing can be shown: for 4 rows it takes 217 of each class or more" in said
    assert "inferior" not in said
    info = load_info(finished / "run" / "fold0" / "cheapest")
    assert (info.tiles.mpp, info.tiles.within, info.distilled) == (0.5, 4, False)
    card = (finished / "run" / "fold0" / "cheapest" / "README.md").read_text()
    assert "The choice was made on validation slides" in card
    assert "by more than 0.02 AUC" in card
    assert "0.5 µm/px" in card
    assert load_info(finished / "run" / "fold0" / "bundle").tiles.mpp == 2.0
    results = json.loads((finished / "run" / "results.json").read_text())
    assert results["teacher_hr"]["front"]["chosen"] is True
    assert results["lrmil"]["front"]["val"]["shown"] is False
    page = (finished / "run" / "report.html").read_text()
    assert "What it costs to be good enough" in page
    assert "front-seconds" in page


@pytest.mark.parametrize(
    ("known", "chosen", "mpp"),
    [
        ({"lr_scratch": 1.0, "lrmil": 0.99, "stage1_only": 0.5, "stage2_only": 0.5}, "lr_scratch", 2.0),
        ({"lr_scratch": 0.1, "lrmil": 0.2, "stage1_only": 0.1, "stage2_only": 0.1}, "teacher_hr", 0.5),
    ],
    ids=["LR passes", "detail at HR only"],
)
def test_the_cheapest_that_passes_on_validation_is_exported(
    copied: Callable[..., Path], known: dict[str, float], chosen: str, mpp: float
) -> None:
    folder = copied()
    said_on_validation(folder, {"teacher_hr": 1.0} | known)
    _, said = rerun(folder, "--evaluate.bootstrap", "2000")
    front = front_of(folder)
    assert front.chosen == chosen
    assert front.row("lr_scratch").costs.seconds < front.row("teacher_hr").costs.seconds
    assert load_info(folder / "run" / "fold0" / "cheapest").tiles.mpp == mpp
    words = " ".join(said.split())
    if chosen == "lr_scratch":
        assert "not worse than teacher on HR by more than 0.02 AUC: LR from scratch, with" in words
        assert "Bundle of LR from scratch" in words
        assert not load_info(folder / "run" / "fold0" / "cheapest").distilled
        # The student's bundle stays, and says nothing of a choice; where it is the choice itself, no other is written.
        assert not load_info(folder / "run" / "fold0" / "bundle").provenance.choice
        said_on_validation(folder, {"teacher_hr": 1.0} | known | {"lr_scratch": 0.3, "lrmil": 1.0})
        rerun(folder, "--evaluate.bootstrap", "2000")
        assert front_of(folder).chosen == "lrmil"
        assert "not worse than" in load_info(folder / "run" / "fold0" / "bundle").provenance.choice
        assert not (folder / "run" / "fold0" / "cheapest").exists()
    else:
        assert "nothing can be shown" not in words  # there are enough, and the rows are worse
        assert not any(row.val.shown for row in front.rows if row.val is not None)


def test_rows_of_the_config_alone_are_asked_and_odd_ones_are_refused(
    copied: Callable[..., Path],
) -> None:
    folder = copied()
    rerun(folder, "--front.rows", '["lr_scratch"]', "--export.cheapest", "false")
    assert {row.key for row in front_of(folder).rows} == {"teacher_hr", "lr_scratch"}
    assert not (folder / "run" / "fold0" / "cheapest").exists()
    rerun(folder, "--evaluate.methods", '["lr_scratch"]')  # nothing to compare with
    assert RunDir(folder / "run").read_front() is None
    values = {"run": {"out_dir": "r"}, "data": {"slides": "s"}}
    for rows in ((), ("teacher_hr",)):
        with pytest.raises(ValueError, match=r"front\.rows"):
            RunConfig.model_validate(values | {"front": {"rows": rows}})


def geometry() -> TileGeometry:
    return TileGeometry(tile_px=32, mpp_lr=2.0, ratio=4, min_tissue=0.25, default_mpp=None)


def test_costs_are_exact_and_nothing_finer_is_read(finished: Path, generated_slide: Path) -> None:
    row = SlideRow(slide_id="a", path=generated_slide, patient_id="p", label=None)
    with Slide(generated_slide) as slide:
        lr, hr = find_nested_tiles(slide, geometry().lr_spec, min_tissue=0.25, ratio=4)
    tiles = SlideTiles(
        row, lr.grid.shape_yx, np.stack([lr.rows, lr.cols], axis=1), np.stack([hr.rows, hr.cols], axis=1)
    )
    mid = {(row // 2, col // 2) for row, col in hr.places}  # hold a tile with tissue at 20x
    n_part = round(len(hr) / 16)
    # The levels are 0.5 and 2 µm/px; 1 µm/px is made of 2 x 2 pixels.
    expected = {
        Tiles(1): (1, len(lr), len(lr)),
        Tiles(2): (0, len(mid), 4 * len(mid)),
        Tiles(4): (0, len(hr), len(hr)),
        Tiles(4, 16, 3): (0, n_part, n_part),
    }
    n_bytes = tile_costs(tiles, geometry(), list(expected))
    assert n_bytes == {read: n * 32 * 32 * 3 for read, (_, _, n) in expected.items()}
    bundle = load_bundle(finished / "run" / "fold0" / "bundle")
    of_file = {}
    for read, (level, n_tiles, _) in expected.items():
        reading = Served(bundle.encoder, bundle.mil, read)
        cost = read_cost(row, geometry(), reading, device=CPU, batch_size=64, threads=2)
        assert (cost.tiles, cost.level) == (n_tiles, level)
        assert min(cost.pixels_read) == level
        assert 3 * cost.pixels_read[level] == n_bytes[read]
        assert cost.seconds > 0
        of_file[read] = cost.file_bytes
    if sys.platform == "linux":
        size = generated_slide.stat().st_size
        assert all(n is not None and 0 < n < 3 * size for n in of_file.values())
        assert (
            of_file[Tiles(1)] < of_file[Tiles(4, 16, 3)] <= of_file[Tiles(4)]
        )  # the part touches all stored tiles


@pytest.mark.parametrize("read", [Tiles(2), Tiles(4, 16, 3), Tiles(4, 16, 4)])
def test_serving_finds_the_tiles_of_training(generated_slide: Path, read: Tiles) -> None:
    row = SlideRow(slide_id="named otherwise", path=generated_slide, patient_id="p", label=None)
    with Slide(generated_slide) as slide:
        lr, hr = find_nested_tiles(slide, geometry().lr_spec, min_tissue=0.25, ratio=4)
        tiles = SlideTiles(
            row, lr.grid.shape_yx, np.stack([lr.rows, lr.cols], axis=1), np.stack([hr.rows, hr.cols], axis=1)
        )
        found = find_tiles(slide, geometry().lr_spec, min_tissue=0.25, ratio=4, **read._asdict())
    assert found.places == [tuple(place) for place in read.places(tiles, 4).tolist()]
    assert found.grid.spec.mpp == 2.0 / read.within
    if read.one_in == 1:
        assert set(found.places) == {(row // 2, col // 2) for row, col in hr.places}
        assert found.tissue_fraction.shape == found.grid.shape_yx
    else:
        assert len(found) == round(len(hr) / 16)
        assert set(found.places) < set(hr.places)
        assert found.places != [tuple(place) for place in Tiles(4, 16, 5).places(tiles, 4).tolist()]


def test_a_reading_finer_than_it_should_be_is_an_error(
    finished: Path, generated_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = SlideRow(slide_id="a", path=generated_slide, patient_id="p", label=None)
    bundle = load_bundle(finished / "run" / "fold0" / "bundle")
    original = TileGeometry.open

    def peeking(self: TileGeometry, row: SlideRow) -> Slide:
        slide = original(self, row)
        slide.read_region((0, 0), 0, (8, 8))
        return slide

    monkeypatch.setattr(TileGeometry, "open", peeking)
    with pytest.raises(RuntimeError, match=r"0\.5 µm/px was read where 2 µm/px are enough"):
        read_cost(
            row,
            geometry(),
            Served(bundle.encoder, bundle.mil, Tiles(1)),
            device=CPU,
            batch_size=64,
            threads=2,
        )


def test_timed_slides_are_spread_over_the_sizes() -> None:
    slides = [
        SlideTiles(
            SlideRow(slide_id=f"{n}", path=Path("x"), patient_id="p", label=None),
            (n, 1),
            np.zeros((n, 2), np.int64),
            np.zeros((n, 2), np.int64),
        )
        for n in (9, 1, 5, 7, 3)
    ]
    assert [len(one.lr_places) for one in slides_to_time(slides, 1)] == [5]
    assert [len(one.lr_places) for one in slides_to_time(slides, 3)] == [3, 5, 7]
    assert len(slides_to_time(slides, 9)) == 5


def test_an_hr_bundle_finds_the_tiles_of_its_training_and_runs_from_the_command_line(
    finished: Path, generated_slide: Path, tmp_path: Path
) -> None:
    path = finished / "run" / "fold0" / "cheapest"
    bundle = load_bundle(path)
    with Slide(generated_slide) as slide:
        hr = find_nested_tiles(slide, geometry().lr_spec, min_tissue=0.25, ratio=4).hr
        found = student_tiles(slide, bundle.info)
        assert found.grid == hr.grid
        assert found.places == hr.places
        result = run_to_end(predict_slide(slide, bundle, device=CPU))
        assert result.level == 0
        assert len(result.attention_scores) == len(hr)
    done = CliRunner().invoke(
        app, ["predict", str(generated_slide), "--bundle", str(path), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    (row,) = read_rows(tmp_path / "out" / "predictions.csv")
    assert row["label"] == result.label
    (document,) = (tmp_path / "out").rglob("*.json")
    tiles = json.loads(document.read_text())["tiles"]
    assert tiles["mpp"] == 0.5


def test_a_usual_bundle_keeps_its_hash(tiny_bundle: Path) -> None:
    """Keys that say nothing for a distilled student are not in its hash, by which results are kept, nor in its file."""
    info = load_info(tiny_bundle)
    raw = json.loads((tiny_bundle / "bundle.json").read_text())
    assert "within" not in raw["tiles"]
    assert "distilled" not in raw
    assert "choice" not in raw["provenance"]
    other = info.model_copy(update={"tiles": info.tiles.model_copy(update={"within": 4})})
    assert other.sha256 != info.sha256
    with pytest.raises(ValueError, match=r"'tiles.within' in format version"):
        type(info).model_validate(other.model_dump(mode="json") | {"format_version": 1, "trust": None})


ROWS = """
[[compare]]
set = "decisive"

[[compare]]
key = "ten-x"
name = "10x"
embedding = "mid"

[[compare]]
key = "part"
embedding = "hr_subset"

[[compare]]
key = "small-tokens"
embedding = "student"
losses = ["ce", "bag", "soft", "hard"]
student = { token_px = 4 }
mil = { hidden_dim = 8 }
"""


def is_cheaper(front: Front, key: str) -> bool:
    """Whether a row took less time than the teacher, as measured: on slides this small, a busy machine can say otherwise."""
    return front.row(key).costs.seconds < front.row("teacher_hr").costs.seconds


@pytest.mark.slow
def test_rows_between_are_chosen_by_what_they_say_and_their_bundles_say_it_too(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    """Real validation predictions, too few for the usual margin: at half an AUC two patients of each class are enough."""
    table = [row | {"path": str(cohort.parent / row["path"])} for row in read_rows(cohort)]
    for label in ("benign", "lesion"):
        first = next(row for row in table if row["fold"] == "train" and row["label"] == label)
        first["fold"] = "val"
    path = write_config(tmp_path, write_rows(tmp_path / "slides.csv", table))
    path.write_text(path.read_text() + ROWS)
    asked = {
        "ten-x": (1.0, 2, 1),
        "part": (0.5, 4, 16),
        "small-tokens": (2.0, 1, 1),
        "lr_scratch": (2.0, 1, 1),
    }
    more = ("--front.margin", "0.49", "--front.alpha", "0.49", "--evaluate.bootstrap", "400")
    plan = io.StringIO()
    words = ["--run.out_dir", str(tmp_path / "run"), *more]
    run(
        load_config(path, words),
        skip_bad=False,
        reporter=Reporter(Console(file=plan, width=400)),
        dry_run=True,
    )
    said = " ".join(plan.getvalue().split())
    assert (
        "cheapest of LR from scratch, stage 1 only, stage 2 only, LRMIL, 10x, f on a random part of HR"
        in said
    )
    assert "read anew in each of 5 ways" in said
    assert "nothing can be shown: for 7 rows it takes 4 of each class or more" in said
    passed = []

    def says_what_was_measured(bundle: ModelBundle, key: str) -> None:
        for told in read_rows(tmp_path / "run" / "fold0" / "predictions" / f"{key}.csv"):
            where = next(one["path"] for one in table if one["slide_id"] == told["slide_id"])
            with Slide(where) as slide:
                result = run_to_end(predict_slide(slide, bundle, device=CPU))
            assert result.class_probabilities[1] == pytest.approx(float(told["p_lesion"]), abs=2e-3)

    for key, (mpp, _, _) in asked.items():
        rerun(tmp_path, *more, "--front.rows", json.dumps([key]))
        front = front_of(tmp_path)
        row = front.row(key)
        assert row.mpp == mpp
        assert row.val is not None
        shown = row.val.p <= 0.49 and is_cheaper(front, key)
        assert front.chosen == (key if shown else "teacher_hr")
        assert row.costs.tiles < front.row("teacher_hr").costs.tiles
        passed += [key] if shown else []
        bundle = load_bundle(tmp_path / "run" / "fold0" / "cheapest")
        says_what_was_measured(bundle, front.chosen)
    assert passed, "no row passes: nothing but the teacher was exported"
    for key, (mpp, within, one_in) in asked.items():  # each of them exported, where validation had said so
        said_on_validation(tmp_path, {"teacher_hr": 1.0, key: 1.0})
        rerun(tmp_path, "--front.rows", json.dumps([key]))
        front = front_of(tmp_path)
        assert front.chosen == (key if is_cheaper(front, key) else "teacher_hr")
        if front.chosen != key:
            continue
        bundle = load_bundle(tmp_path / "run" / "fold0" / "cheapest")
        tiles = bundle.info.tiles
        assert (tiles.mpp, tiles.within, tiles.one_in) == (mpp, within, one_in)
        assert bundle.info.token_px == (4 if key == "small-tokens" else 8)
        says_what_was_measured(bundle, key)

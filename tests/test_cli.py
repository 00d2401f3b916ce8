"""`lrmil`: what it writes, what it refuses, and what it says when a slide or a bundle is wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import held_predict
import numpy as np
import pytest
import tifffile
import torch
from held_predict import KEPT
from rich.console import Console
from seen_slides import load_results
from typer.testing import CliRunner, Result

from napari_lrmil import __version__, batch
from napari_lrmil.batch import BatchEvent
from napari_lrmil.cache import ResultCache, ResultKeys
from napari_lrmil.cli import console
from napari_lrmil.cli.main import app
from napari_lrmil.cli.results import Outcome
from napari_lrmil.export import result as result_files
from napari_lrmil.export.result import read_prediction, tile_columns
from napari_lrmil.export.tables import folder_columns
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.card import DEMONSTRATION_NOTE
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import Worklist

REAL = ("slides_real/CMU-1-Small-Region.svs", "slides_repacked/cmu_aperio_pyramid.svs")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results of a test stay with it."""
    monkeypatch.setenv("LRMIL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lrmil(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def message(result: Result) -> str:
    """Both streams on one line: the console wraps and pads."""
    return " ".join(result.output.split())


def read_tiles(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == tile_columns(("benign", "lesion"))
        return [{key: float(value) for key, value in row.items()} for row in reader]


@pytest.fixture
def slide(generated_slide: Path, tmp_path: Path) -> Path:
    """A slide to rename, beside nothing else."""
    folder = tmp_path / "slides"
    folder.mkdir()
    return Path(shutil.copy(generated_slide, folder / "one.tif"))


def test_files_hold_the_prediction(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    result = lrmil("predict", slide, "--bundle", tiny_bundle, "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "one.csv",
        "one.json",
        "predictions.csv",
    ]
    assert DEMONSTRATION_NOTE in message(result)
    with Slide(slide) as opened:
        model = load_bundle(tiny_bundle)
        expected = run_to_end(predict_slide(opened, model, device=torch.device("cpu")))
    told = json.loads((tmp_path / "out" / "one.json").read_text())
    assert told["label"] == expected.label
    assert told["class_probabilities"] == pytest.approx(
        dict(zip(expected.class_names, expected.class_probabilities, strict=True))
    )
    assert told["note"] == DEMONSTRATION_NOTE
    assert told["bundle"] == {
        "name": "Tiny",
        "weights_sha256": model.info.weights_sha256,
        "sha256": model.info.sha256,
    }
    assert (told["read_level"], told["read_level_mpp"], told["slide_mpp_xy"]) == (1, 2.0, [0.5, 0.5])
    assert told["tiles"]["count"] == len(expected.tiles)
    assert (told["status"], told["version"]) == (["demonstration"], __version__)
    again = read_prediction(tmp_path / "out" / "one.json")
    np.testing.assert_array_equal(again.class_contributions, expected.class_contributions)
    np.testing.assert_array_equal(again.log_odds_contributions, expected.log_odds_contributions)
    np.testing.assert_array_equal(again.log_odds_alone, expected.log_odds_alone)
    rows = read_tiles(tmp_path / "out" / "one.csv")
    assert len(rows) == len(expected.tiles)
    assert [row["attention_score"] for row in rows] == pytest.approx(expected.attention_scores, rel=1e-6)
    assert [row["attention_logit"] for row in rows] == pytest.approx(expected.attention_logits, rel=1e-6)
    assert sum(row["attention_score"] for row in rows) == pytest.approx(1, abs=1e-5)
    # 32 px at 2 µm/px are 128 level-0 pixels of 0.5 µm.
    for row in rows:
        assert (row["x_l0_px"], row["y_l0_px"]) == (row["col"] * 128, row["row"] * 128)
        assert (row["width_l0_px"], row["height_l0_px"]) == (128, 128)


@pytest.mark.slow
@pytest.mark.parametrize("entry", [["-m", "napari_lrmil"], ["lrmil"]])
def test_real_slides_from_a_shell(
    entry: list[str], shared_file: Callable[[str], Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    slides = [shared_file(name) for name in REAL]
    program = [sys.executable, *entry] if entry[0] == "-m" else [str(Path(sys.executable).with_name("lrmil"))]
    done = subprocess.run(
        [*program, "predict", *map(str, slides), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"COLUMNS": "60"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for path in slides:
        told = json.loads((tmp_path / "out" / f"{path.stem}.json").read_text())
        rows = read_tiles(tmp_path / "out" / f"{path.stem}.csv")
        with Slide(path) as opened:
            mpp_x, mpp_y = opened.mpp_xy
            left, top, width, height = opened.bounds_l0_xywh
        assert told["slide_mpp_xy"] == pytest.approx([mpp_x, mpp_y])
        for row in rows:
            assert row["x_l0_px"] == pytest.approx(left + row["col"] * 64 / mpp_x, abs=1e-3)
            assert row["y_l0_px"] == pytest.approx(top + row["row"] * 64 / mpp_y, abs=1e-3)
            assert left <= row["x_l0_px"] < left + width
            assert top <= row["y_l0_px"] < top + height


def test_results_are_never_replaced_unasked(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("predict", slide, "--bundle", tiny_bundle, "--out", out)
    assert lrmil(*args).exit_code == 0
    (out / "one.json").write_text("mine")
    refused = lrmil(*args)
    assert refused.exit_code == 2
    assert "already holds results of 1 of these slides (one). Add --overwrite" in message(refused)
    assert (out / "one.json").read_text() == "mine"
    (out / "one.json").unlink()
    assert lrmil(*args).exit_code == 2  # a table alone may be somebody's too
    assert lrmil(*args, "--overwrite").exit_code == 0
    assert json.loads((out / "one.json").read_text())["label"]


def test_an_interrupted_overwrite_leaves_no_json_beside_another_table(
    slide: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("predict", slide, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert lrmil(*args).exit_code == 0
    write = result_files.write_text

    def failing(path: Path, text: str) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(result_files, "write_text", failing)
    assert lrmil(*args, "--overwrite", "--mpp", "0.6").exit_code != 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.csv", "predictions.csv"]


def test_one_bad_slide_does_not_stop_the_others(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    broken = slide.parent / "broken.svs"
    broken.write_bytes(b"no slide")
    missing = slide.parent / "missing.svs"
    result = lrmil("predict", broken, missing, slide, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "2 of 3 slides failed" in message(result)
    assert "broken.svs" in message(result)
    assert "missing.svs" in message(result)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["errors.csv", "one.csv", "one.json", "predictions.csv"]


def test_unknown_mpp_and_its_cure(tiny_bundle: Path, generated_slide: Path, tmp_path: Path) -> None:
    with Slide(generated_slide) as opened:
        pixels = opened.read_region((0, 0), 0, opened.level_dimensions_xy[0])
    path = tmp_path / "nompp.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None)
    args = ("predict", path, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    result = lrmil(*args)
    assert result.exit_code == 2
    assert "nompp.tif doesn't say how many µm a pixel measures. Give it: --mpp" in message(result)
    result = lrmil(*args, "--mpp", "0.5")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "nompp.json").read_text())["slide_mpp_xy"] == [0.5, 0.5]
    assert lrmil(*args, "--overwrite", "--mpp", "0").exit_code == 2


@pytest.mark.parametrize("name", ["[old]", "x[/]y", "[bold red]z"])
def test_brackets_in_names_are_no_markup(name: str, slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    odd = slide.parent / f"{name}.tif"
    # "x[/]y" is a path with a folder on its way.
    odd.parent.mkdir(exist_ok=True)
    shutil.copy(slide, odd)
    result = lrmil("predict", odd, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert odd.stem in message(result)
    missing = odd.with_name(f"{odd.stem}-missing.tif")
    result = lrmil("predict", missing, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert missing.name in message(result)


@pytest.mark.parametrize(("args", "said"), [
    (("--bundle", "nowhere"), "error: no bundle at nowhere"),
    (("--device", "cuda:99"), "error: no device 'cuda:99' here; there is: auto, "),
    (("--device", "gpu"), "error: no device 'gpu' here"),
    (("--batch-size", "0"), "batch-size"),
])  # fmt: skip
def test_wrong_options_are_told_before_anything_is_read(
    args: tuple[str, str], said: str, slide: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    options = {"--bundle": str(tiny_bundle), "--out": str(tmp_path / "out")} | dict([args])
    result = lrmil("predict", slide, *(word for pair in options.items() for word in pair))
    assert result.exit_code != 0
    assert said in message(result)
    assert "Traceback" not in result.output
    assert not list((tmp_path / "out").glob("*"))


def test_a_bundle_of_the_future(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(tiny_bundle, tmp_path / "newer"))
    raw = json.loads((newer / "bundle.json").read_text())
    (newer / "bundle.json").write_text(json.dumps(raw | {"format_version": 99}))
    result = lrmil("predict", slide, "--bundle", newer, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "has format version 99; this program reads up to 3" in message(result)


def test_a_file_where_the_results_should_go(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    result = lrmil("predict", slide, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "can't be the folder of the results" in message(result)
    assert (tmp_path / "out").read_text() == "a file"


def test_slides_of_one_name_keep_apart(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copy(slide, slide.with_suffix(".tiff")))
    result = lrmil("predict", slide, twin, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["one.tif.csv", "one.tif.json", "one.tiff.csv", "one.tiff.json", "predictions.csv"]
    result = lrmil("predict", slide, slide, "--bundle", tiny_bundle, "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert "two slides would write the same results: one.tif" in message(result)


def test_info_of_a_bundle_says_what_it_reads_and_how_long_that_takes(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # no bundle, such as where `make demo` writes
    edge_mm = 64 * 2.0 / 1000
    told = message(lrmil("info", "demo"))
    assert "tiles of 64 px at 2 µm/px" in told
    assert f"at most {round(100 / edge_mm**2):,} tiles" in told  # 1 cm² is 100 mm²
    assert "on cpu" in told
    assert load_bundle("demo").info.sha256[:40] in told.replace(" │ │ │ ", "")
    info = load_bundle(tiny_bundle).info
    for given in (tiny_bundle, tiny_bundle / "bundle.json"):
        assert info.name in message(lrmil("info", given))
    assert lrmil("info", tmp_path / "none" / "demo").exit_code == 1
    assert lrmil("info", tmp_path).exit_code == 1


def test_info_tells_levels_and_no_identifier(
    shared_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "out", Console(width=200))
    result = lrmil("info", shared_file(REAL[0]))
    assert result.exit_code == 0, result.output
    assert "2220 x 2967 px, 1/1, 0.499 µm/px" in message(result)
    for secret in ("Filename", "ScanScope ID", "CPAPERIOCS", "User"):
        assert secret not in result.output


def test_version_and_help() -> None:
    assert lrmil("--version").output.strip() == f"lrmil {__version__}"
    shown: Any = lrmil("predict", "--help")
    assert shown.exit_code == 0
    assert "--bundle" in shown.output


def test_table_numbers_read_back_exactly_enough(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    lrmil("predict", slide, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    rows = read_tiles(tmp_path / "out" / "one.csv")
    logits = np.array([row["attention_logit"] for row in rows])
    scores = np.exp(logits - logits.max())
    np.testing.assert_allclose(scores / scores.sum(), [row["attention_score"] for row in rows], rtol=1e-4)


# --- folders, tables, cache ---


@pytest.fixture
def folder(cohort: Path, tmp_path: Path) -> Path:
    """Three different slides, one of them deeper."""
    where = tmp_path / "slides"
    (where / "deep").mkdir(parents=True)
    for name, path in zip(
        ("a.tif", "b.tif", "deep/a.tif"), sorted((cohort.parent / "slides").iterdir()), strict=False
    ):
        shutil.copy(path, where / name)
    return where


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def counts(result: Result) -> dict[str, str]:
    """The last row of the table of counts."""
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    names = ("slides", "computed", "cached", "failed", "unsure", "strange", "left")
    return dict(zip(names, rows[-1].replace("│", " ").split(), strict=True))


def test_a_folder_fills_the_cache_that_the_window_reads(
    folder: Path, tiny_bundle: Path, own_cache: Path
) -> None:
    result = lrmil("predict", folder, "--bundle", tiny_bundle)
    assert result.exit_code == 0, result.output
    assert counts(result) == {
        "slides": "2", "computed": "2", "cached": "0", "failed": "0", "unsure": "-", "strange": "-", "left": "0"
    }  # fmt: skip
    worklist, info = Worklist.open(folder), load_bundle(tiny_bundle).info
    found = load_results(worklist, ResultCache(), info.sha256, ResultKeys(info))
    assert [item.slide_id for item in found] == ["a", "b"]
    deeper = lrmil("predict", folder, "--bundle", tiny_bundle, "--recursive")
    assert counts(deeper) == counts(result) | {"slides": "3", "computed": "1", "cached": "2"}
    assert "LRMIL_CACHE_DIR" in message(lrmil("predict", "--help"))
    assert ResultCache(own_cache).size().n_results == 3


def test_another_bundle_is_another_result(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert counts(lrmil("predict", folder, "--bundle", tiny_bundle))["computed"] == "2"
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    raw = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps(raw | {"temperature": 3.0}))  # the same weights
    assert counts(lrmil("predict", folder, "--bundle", other))["computed"] == "2"
    assert counts(lrmil("predict", folder, "--bundle", tiny_bundle))["cached"] == "2"


def test_tables_of_all_slides_and_of_errors(
    folder: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    (folder / "b.tif").write_bytes(b"no slide")
    table = tmp_path / "table.csv"
    table.write_text(
        "path,slide_id,mpp\nslides/a.tif,case 1,\nslides/b.tif,,\nslides/deep/a.tif,case/2,1.0\n"
    )
    out = tmp_path / "out"
    args = ("predict", table, "--bundle", tiny_bundle, "--out", out)
    result = lrmil(*args)
    assert result.exit_code == 1
    assert "1 of 3 slides failed" in message(result)
    first, failed, second = read_csv(out / "predictions.csv")
    assert list(first) == folder_columns(("benign", "lesion"))
    told = json.loads((out / "case 1.json").read_text())
    assert (first["slide"], second["slide"]) == ("case 1", "case_2")
    assert first["label"] == told["label"]
    assert {name: float(first[f"p_{name}"]) for name in ("benign", "lesion")} == pytest.approx(
        told["class_probabilities"], abs=1e-5
    )
    assert int(first["tiles"]) == told["tiles"]["count"]
    assert first["status"] == "demonstration"
    for name in ("unsure", "prediction_set", "coverage", "out_of_distribution", "ood_score", "ood_threshold"):
        assert first[name] == ""  # this bundle can't tell
    assert (first["bundle"], first["version"]) == ("Tiny", __version__)
    assert (failed["slide"], failed["label"], failed["status"], failed["p_lesion"]) == ("b", "", "failed", "")
    assert "not a slide" in failed["error"]
    with Slide(folder / "a.tif") as opened:
        assert first["fingerprint"] == opened.fingerprint()
    assert first["bundle_sha256"] == load_bundle(tiny_bundle).info.sha256
    assert json.loads((out / "case_2.json").read_text())["slide_mpp_xy"] == [1.0, 1.0]
    (error,) = read_csv(out / "errors.csv")
    assert (error["path"], error["slide_id"]) == (str(folder / "b.tif"), "b")
    assert "not a slide" in error["error"]
    # The list of errors is itself a table to run again.
    shutil.copy(folder / "a.tif", folder / "b.tif")
    again = lrmil("predict", out / "errors.csv", "--bundle", tiny_bundle, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert lrmil(*args, "--overwrite").exit_code == 0
    assert not (out / "errors.csv").exists()
    assert len(read_csv(out / "predictions.csv")) == 3


def test_no_name_runs_as_a_formula_in_the_table(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (folder / "b.tif").write_bytes(b"no slide")
    table = tmp_path / "table.csv"
    table.write_text("path,slide_id\nslides/a.tif,=1+1\nslides/b.tif,-2\n")
    out = tmp_path / "out"
    assert lrmil("predict", table, "--bundle", tiny_bundle, "--out", out).exit_code == 1
    row, failed = read_csv(out / "predictions.csv")
    assert (row["slide"], failed["slide"]) == ("'=1+1", "'-2")
    assert (out / "=1+1.json").exists()
    (error,) = read_csv(out / "errors.csv")
    assert error["slide_id"] == "'-2"
    # This table is run again, under the names that were given.
    shutil.copy(folder / "a.tif", folder / "b.tif")
    again = lrmil("predict", out / "errors.csv", "--bundle", tiny_bundle, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "-2.json").exists()


def test_slides_of_one_name_in_two_folders(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (folder / "predictions.tif").write_bytes((folder / "a.tif").read_bytes())
    result = lrmil("predict", folder, "-r", "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == [
        "b.json", "deep_a.tif.json", "predictions.tif.json", "slides_a.tif.json"
    ]  # fmt: skip
    assert len(read_csv(tmp_path / "out" / "predictions.csv")) == 4


def test_no_cache_computes_and_keeps_nothing(
    folder: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    args = (
        "predict",
        folder,
        "--bundle",
        tiny_bundle,
        "--out",
        tmp_path / "out",
        "--overwrite",
        "--no-cache",
    )
    assert [counts(lrmil(*args))["computed"] for _ in range(2)] == ["2", "2"]
    assert not own_cache.exists()
    refused = lrmil("predict", folder, "--bundle", tiny_bundle, "--no-cache")
    assert refused.exit_code == 2
    assert "with --no-cache nothing would stay: give --out" in message(refused)
    refused = lrmil(*args, "--cluster", "tcp://127.0.0.1:1")
    assert "leave --no-cache out" in message(refused)


def test_a_cluster_that_is_not_there(
    folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = lrmil("predict", folder, "--bundle", tiny_bundle, "--cluster", "tcp://127.0.0.1:1")
    assert result.exit_code == 2
    assert "pip install 'napari-lrmil[cluster]'" in message(result)
    assert "Stopped with 2 of 2 slides left" in message(result)


@pytest.mark.parametrize("given", ["demo", "tiny", "tiny/bundle.json"])
def test_workers_get_a_bundle_by_its_place_or_name(
    given: str, folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def noted(items: object, bundle: str, info: object, **_: object) -> Generator[BatchEvent, None, None]:
        asked.append(bundle)
        yield from ()

    monkeypatch.setattr(batch, "classify_on_cluster", noted)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # no bundle, such as where `make demo` writes
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    lrmil("predict", folder, "--bundle", given, "--cluster", "tcp://127.0.0.1:1")
    assert asked == ["demo" if given == "demo" else str(tmp_path / "tiny")]


def test_an_empty_folder_and_a_wrong_table(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = lrmil("predict", tmp_path / "empty", "--bundle", tiny_bundle)
    assert result.exit_code == 2
    assert "holds no slides" in message(result)
    (tmp_path / "table.csv").write_text("file\na.svs\n")
    assert "column 'path' is missing" in message(
        lrmil("predict", tmp_path / "table.csv", "--bundle", tiny_bundle)
    )


def test_a_full_disk_stops_with_a_message(
    folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result_files, "write_text", full)
    result = lrmil("predict", folder, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "can't take results (No space left on device)" in message(result)
    assert "give the same command again" in message(result)
    assert "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_run_that_is_stopped_goes_on(
    how: str, cohort: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    """By Ctrl-C, by whoever ends it, or by the machine; a real process, in the middle of its slides, where it says that it is."""
    slides = cohort.parent / "slides"
    n_slides = len(list(slides.iterdir()))
    assert n_slides > KEPT + 1
    arguments = ["predict", str(slides), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "out")]
    arguments += ["--device", "cpu"]
    environment = os.environ | {"LRMIL_CACHE_DIR": str(own_cache), "COLUMNS": "300"}
    program = subprocess.Popen(
        [sys.executable, held_predict.__file__, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert program.stdout is not None
    try:
        said = program.stdout.readline()
        program.send_signal(signal.Signals[how])
        _, told = program.communicate(timeout=300)
    finally:
        program.kill()  # of no effect on one that has ended
    assert said == "held\n", told
    assert ResultCache(own_cache).size().n_results == KEPT
    assert program.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}[how]
    if how != "SIGKILL":
        assert "Traceback" not in told
        left = f"Stopped with {n_slides - KEPT} of {n_slides} slides left."
        assert f"{left} To go on, give the same command again." in told
    # Whatever the end, the table is complete up to there, and the error stream told each slide.
    assert len(read_csv(tmp_path / "out" / "predictions.csv")) == KEPT
    assert len(re.findall(rf"^\d/{n_slides} \S+: \w+ [01]\.\d+, [0-9.]+ s$", told, re.MULTILINE)) == KEPT
    again = lrmil(*arguments)
    assert again.exit_code == 0, again.output
    found = counts(again)
    assert (int(found["cached"]), int(found["computed"])) == (KEPT, n_slides - KEPT)
    assert len(read_csv(tmp_path / "out" / "predictions.csv")) == n_slides
    assert len(list((tmp_path / "out").glob("*.json"))) == n_slides


def test_a_run_goes_on_in_its_folder_and_in_no_other(
    folder: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    out = tmp_path / "out"
    args = ("predict", folder, "--bundle", tiny_bundle, "--out", out)
    assert lrmil(*args).exit_code == 0
    # Killed between the two files of a slide, before it had a line in the table; and with a slide not begun.
    (out / "b.json").unlink()
    table = (out / "predictions.csv").read_text()
    (out / "predictions.csv").write_text("".join(table.splitlines(keepends=True)[:-1]))
    for options, found in (((), ("0", "2")), (("--no-cache",), ("2", "0"))):
        again = lrmil(*args, *options)
        assert again.exit_code == 0, again.output
        assert (counts(again)["computed"], counts(again)["cached"]) == found
        assert (out / "predictions.csv").read_text().count("\n") == 3
        assert (out / "b.json").exists()
    # Slides of the same names in another folder, and the results of another bundle, are somebody's.
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "deep" / "a.tif", other / "a.tif")
    shutil.copy(folder / "b.tif", other / "b.tif")
    kept = (out / "a.json").read_text()
    mixed = lrmil("predict", other, "--bundle", tiny_bundle, "--out", out)
    assert mixed.exit_code == 1
    assert "a.json is the result of another slide or of other settings. Add --overwrite" in message(mixed)
    refused = lrmil("predict", folder, "--bundle", "demo", "--out", out)
    assert refused.exit_code == 2
    assert "already holds results of 2 of these slides (a, b)" in message(refused)
    assert (out / "a.json").read_text() == kept


def test_a_run_that_goes_on_and_is_stopped_again_takes_no_row_away(
    folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    args = ("predict", folder, "--bundle", tiny_bundle, "--out", out)
    assert lrmil(*args).exit_code == 0
    before = read_csv(out / "predictions.csv")
    really = Outcome.take
    for options in ((), ("--no-cache",)):

        def take_one(outcome: Outcome, event: BatchEvent) -> None:
            really(outcome, event)
            raise KeyboardInterrupt

        monkeypatch.setattr(Outcome, "take", take_one)
        stopped = lrmil(*args, *options)
        assert stopped.exit_code == 130
        rows = read_csv(out / "predictions.csv")
        assert [row["label"] for row in rows] == [row["label"] for row in before]
        monkeypatch.setattr(Outcome, "take", really)
        assert lrmil(*args, *options).exit_code == 0
        assert [row["slide"] for row in read_csv(out / "predictions.csv")] == [row["slide"] for row in before]
    # A row without its files is a result no more, and what is to be replaced isn't kept.
    monkeypatch.setattr(Outcome, "take", take_one)
    assert lrmil(*args, "--overwrite").exit_code == 130
    assert len(read_csv(out / "predictions.csv")) == 1
    monkeypatch.setattr(Outcome, "take", really)
    assert lrmil(*args).exit_code == 0
    (out / f"{before[1]['slide']}.json").unlink()
    (out / f"{before[1]['slide']}.csv").unlink()
    monkeypatch.setattr(Outcome, "take", take_one)
    assert lrmil(*args).exit_code == 130
    assert [row["slide"] for row in read_csv(out / "predictions.csv")] == [before[0]["slide"]]


def test_files_of_a_run_that_goes_on_are_there_at_every_moment(
    folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at any write, it leaves the result of each slide that had one."""
    out = tmp_path / "out"
    args = ("predict", folder, "--bundle", tiny_bundle, "--out", out)
    assert lrmil(*args).exit_code == 0
    stems = [row["slide"] for row in read_csv(out / "predictions.csv")]

    def no_power(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    for options in ((), ("--no-cache",)):
        with monkeypatch.context() as patch:
            patch.setattr(result_files, "write_text", no_power)
            lrmil(*args, *options)
            for stem in stems:
                read_prediction(out / f"{stem}.json")
    # Another result in its place: until it is whole there is none.
    (out / f"{stems[0]}.csv").write_text(",".join(tile_columns(("benign", "lesion"))) + "\n")
    with monkeypatch.context() as patch:
        patch.setattr(result_files, "write_text", no_power)
        assert lrmil(*args).exit_code == 130
        assert not (out / f"{stems[0]}.json").exists()
    assert lrmil(*args, "--overwrite").exit_code == 0
    read_prediction(out / f"{stems[0]}.json")


def test_a_result_that_is_kept_nowhere_is_a_failure(
    folder: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    own_cache.write_text("a file where the cache should be")
    result = lrmil("predict", folder, "--bundle", tiny_bundle)
    assert result.exit_code == 2
    assert "isn't kept: the result cache in" in message(result)
    result = lrmil("predict", folder, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "note: the result cache in" in message(result)


def test_an_output_that_is_no_terminal_gets_a_line_a_slide(folder: Path, tiny_bundle: Path) -> None:
    (folder / "b.tif").write_bytes(b"no slide")
    result = lrmil("predict", folder, "--bundle", tiny_bundle)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if re.match(r"\d/2 ", line)]
    assert re.fullmatch(r"1/2 a: (benign|lesion) [01]\.\d{3}, \d+\.\d s", lines[0])
    assert lines[1].startswith("2/2 b: failed: b.tif is not a slide")
    assert "1/2 a: " in lrmil("predict", folder, "--bundle", tiny_bundle).stderr
    assert ", from cache" in lrmil("predict", folder, "--bundle", tiny_bundle).stderr


def test_the_exit_status_is_in_the_help() -> None:
    assert (
        "Exit status: 0 all slides have a result, 1 some failed, or not all that was printed could be written, 2 nothing "
        "could be done, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."
    ) in " ".join(re.sub("[│╭╰─]", " ", lrmil("predict", "--help").output).split())


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_names_that_are_too_long_or_no_text(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [
        "n" * 247,
        "n" * 246 + "m",
        "\u53f0" * 83,
        os.fsdecode(b"Pr\xe4parat"),
        os.fsdecode(b"Pr\xe5parat"),
        "a\nb\x1b[31m",
    ]
    for name in names:
        shutil.copy(slide, folder / f"{name}.tif"[-255:])
    (folder / os.fsdecode(b"bad\xff.tif")).write_bytes(b"no slide")
    out = tmp_path / "out"
    result = lrmil("predict", folder, "--bundle", tiny_bundle, "--out", out)
    assert result.exit_code == 1
    assert "bad\ufffd.tif is not a slide" in message(result)
    assert "\x1b" not in result.output
    rows = read_csv(out / "predictions.csv")
    assert len(rows) == 7
    done = [row["slide"] for row in rows if row["status"] != "failed"]
    assert len(set(done)) == 6
    for name in done:
        assert read_prediction(out / f"{name}.json").label
    assert (out / "a_b\ufffd[31m.json").exists()
    assert sum(re.fullmatch(r"n{231}-[0-9a-f]{8}", name) is not None for name in done) == 2
    # The same names the next time: the run goes on.
    assert counts(lrmil("predict", folder, "--bundle", tiny_bundle, "--out", out))["cached"] == "6"


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_links_to_nowhere_and_pipes_stop_nothing(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = slide.parent
    (folder / "loop").symlink_to(folder)
    (folder / "self.tif").symlink_to("self.tif")
    (folder / "gone.tif").symlink_to("nowhere.tif")
    os.mkfifo(folder / "pipe.tif")
    out = tmp_path / "out"
    result = lrmil("predict", folder, "-r", "--bundle", tiny_bundle, "--out", out)
    assert result.exit_code == 1
    rows = {row["slide"]: row["error"] for row in read_csv(out / "predictions.csv")}
    assert sorted(rows) == ["gone", "one", "self"]
    assert rows["one"] == ""
    assert "is a link that leads nowhere" in rows["gone"]
    assert "is a link that leads nowhere" in rows["self"]
    refused = lrmil("predict", folder / "pipe.tif", "--bundle", tiny_bundle)
    assert refused.exit_code == 2
    assert "pipe.tif is neither a file nor a folder" in message(refused)


@pytest.mark.skipif(sys.platform != "linux", reason="rights of folders")
def test_a_folder_without_access_is_told_and_stops_nothing(
    slide: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    """A real process without the superuser's rights."""
    drop = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("the superuser may read everything")
        drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    closed = slide.parent / "closed"
    closed.mkdir(mode=0)
    out = tmp_path / "out"
    words = ["predict", slide.parent, "--recursive", "-b", tiny_bundle, "--out", out]
    done = subprocess.run(
        [*drop, sys.executable, "-m", "napari_lrmil", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "error: closed can't be read (Permission denied)" in done.stderr
    assert sorted(row["slide"] for row in read_csv(out / "predictions.csv")) == ["closed", "one"]


def test_the_home_of_nobody_is_a_plain_name(
    slide: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRMIL_CACHE_DIR", "~nosuchuser/cache")
    assert lrmil("predict", slide, "--bundle", tiny_bundle).exit_code == 0
    assert (tmp_path / "~nosuchuser" / "cache").is_dir()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_of_any_character_set(
    encoding: str, slide: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    """Real processes: what can't be shown is replaced, in results, errors and help."""
    odd = slide.parent / "\u53f0 \u00b5 \u03bb.tif"
    slide.rename(odd)
    with (tmp_path / "log.txt").open("wb") as log:
        for words in (
            ["predict", odd, "-b", tiny_bundle, "--out", tmp_path / "out"],
            ["info", odd],
            ["predict", "--help"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "napari_lrmil", *map(str, words)],
                stdout=log,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert b"Traceback" not in done.stderr
    told = (tmp_path / "log.txt").read_bytes().decode(encoding)
    assert ("? \u00b5 ?" if encoding == "cp1252" else "? ? ?") in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_an_output_that_is_full_costs_no_slide(
    full: str, folder: Path, tiny_bundle: Path, tmp_path: Path, own_cache: Path
) -> None:
    """Real processes: a log on a full disk ends nothing, and an exit status says that what was to be told is lost."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        with Path("/dev/full").open("wb") as nowhere:
            return subprocess.run(
                [sys.executable, "-m", "napari_lrmil", *map(str, words)],
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {full: nowhere},
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=False,
            )

    out = tmp_path / "out"
    done = run("predict", folder, "-b", tiny_bundle, "--out", out)
    assert [row["slide"] for row in read_csv(out / "predictions.csv")] == ["a", "b"]
    told = run("info", folder / "b.tif")
    if full == "stderr":
        assert (done.returncode, told.returncode) == (0, 0)
        assert "Results: " in done.stdout
        return
    for ended in (done, told):
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        assert "error: not all that was to be told could be written (No space left on device)" in ended.stderr
    helped = CliRunner().invoke(app, ["predict", "--help"], env={"COLUMNS": "200"}).output
    assert "1 some failed, or not all that was printed could be written" in " ".join(helped.split())


@pytest.mark.parametrize("mpp", ["nan", "0", "-1", "353"])
def test_a_pixel_size_that_no_slide_has_is_refused_once(mpp: str, folder: Path, tiny_bundle: Path) -> None:
    result = lrmil("predict", folder, "--bundle", tiny_bundle, f"--mpp={mpp}")
    assert result.exit_code == 2
    assert result.output.count("isn't plausible: mpp must lie between 0.05 and 20") == 1


def test_cache_commands(folder: Path, tiny_bundle: Path, own_cache: Path) -> None:
    lrmil("predict", folder, "--bundle", tiny_bundle)
    shown = lrmil("cache", "info")
    assert f"folder {own_cache} results 2 thumbnails 0 size 0.0 MB of at most 2.00 GB" in message(shown)
    assert "of at most 0.50 GB" in message(lrmil("cache", "limit", "0.5"))
    assert CliRunner().invoke(app, ["cache", "clear"], input="n\n").exit_code == 1
    assert ResultCache(own_cache).size().n_results == 2
    assert "Deleted 2 results" in message(lrmil("cache", "clear", "--yes"))
    assert ResultCache(own_cache).size() == (0, 0, 0, 5 * 10**8)
    assert lrmil("cache", "limit", "-1").exit_code == 2
    elsewhere = lrmil("cache", "info", "--cache-dir", own_cache / "none")
    assert "results 0" in message(elsewhere)


def test_status_stands_beside_the_label_wherever_it_is_told(tmp_path: Path) -> None:
    """An immunostain given to the packaged model, which is made for H&E and knows its training slides."""
    pixels = np.full((1024, 2048, 3), 243, np.uint8)
    noise = np.random.default_rng(0).integers(-25, 25, (100, 200, 1)).repeat(8, 0).repeat(8, 1)
    pixels[100:900, 200:1800] = np.clip(np.array([150, 105, 70]) + noise, 0, 255)
    tifffile.imwrite(
        tmp_path / "brown.tiff",
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="deflate",
        resolution=(20_000, 20_000),  # 0.5 µm
        resolutionunit="CENTIMETER",
    )
    out = tmp_path / "out"
    result = lrmil("predict", tmp_path / "brown.tiff", "--bundle", "demo", "--out", out, "--device", "cpu")
    assert result.exit_code == 0, (
        result.output
    )  # it was classified; that it is doubtful is said beside the label
    told = json.loads((out / "brown.json").read_text(encoding="utf-8"))
    assert told["status"][-3:] == ["unlike training", "other stain", "demonstration"]
    assert told["tiles"]["brown_share"] > 0.9
    (row,) = read_csv(out / "predictions.csv")
    assert (row["answer"], row["label"], row["status"]) == ("unlike training", "", ";".join(told["status"]))
    assert (told["answer"], told["label"]) == ("unlike training", None)
    marks = "unlike training (other stain)"
    assert marks in " ".join(result.output.split()) + message(result)
    again = lrmil("predict", tmp_path / "brown.tiff", "--bundle", "demo", "--out", out, "--device", "cpu")
    assert again.exit_code == 0
    assert json.loads((out / "brown.json").read_text(encoding="utf-8"))["status"] == told["status"]
    assert marks in " ".join(again.output.split()) + message(again)


def _with_damaged_tile(source: Path, path: Path, bundle: Path) -> Path:
    """A copy of a slide in which one stored tile with tissue, of the level that is read, is overwritten."""
    done = json.loads(_result_of(source, path.parent / "whole", bundle).read_text(encoding="utf-8"))
    with (path.parent / "whole" / f"{source.stem}.csv").open(encoding="utf-8", newline="") as file:
        x, y = next((float(row["x_l0_px"]), float(row["y_l0_px"])) for row in csv.DictReader(file))
    shutil.copy(source, path)
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[done["read_level"]].keyframe
        scale = tif.series[0].shape[1] / page.imagewidth
        across = -(-page.imagewidth // page.tilewidth)
        tile = int(y / scale) // page.tilelength * across + int(x / scale) // page.tilewidth
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    return path


def _result_of(slide: Path, out: Path, bundle: Path, *options: object) -> Path:
    done = lrmil("predict", slide, "--bundle", bundle, "--out", out, *options)
    assert done.exit_code == 0, done.output
    return out / f"{slide.stem}.json"


def test_damaged_tiles_are_said_and_too_many_are_refused(
    generated_slide: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    damaged = _with_damaged_tile(generated_slide, tmp_path / f"damaged{generated_slide.suffix}", tiny_bundle)
    options = ("--cache-dir", tmp_path / "cache")
    result = _result_of(damaged, tmp_path / "lenient", tiny_bundle, "--max-damaged", 1, *options)
    document = json.loads(result.read_text(encoding="utf-8"))
    assert document["damaged_tiles"] >= 1
    assert "damaged tiles" in document["status"]
    # The kept result is no way around a stricter limit.
    strict = lrmil(
        "predict",
        damaged,
        "--bundle",
        tiny_bundle,
        "--out",
        tmp_path / "strict",
        "--max-damaged",
        0,
        *options,
    )
    assert strict.exit_code != 0
    errors = (tmp_path / "strict" / "errors.csv").read_text(encoding="utf-8")
    assert f"{document['damaged_tiles']} of " in errors
    assert "--max-damaged" in errors


def test_kept_results_load_no_model(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """What the cache knows takes no weights; what it doesn't know takes them, and says where they are missing."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert lrmil("predict", folder, "--bundle", bundle).exit_code == 0
    (bundle / "model.safetensors").unlink()
    again = lrmil("predict", folder, "--bundle", bundle)
    assert again.exit_code == 0, again.output
    assert ", from cache" in again.stderr
    fresh = lrmil("predict", folder, "--bundle", bundle, "--no-cache", "--out", tmp_path / "out")
    assert fresh.exit_code == 2
    assert "model.safetensors" in message(fresh)

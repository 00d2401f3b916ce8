"""`lrmil`: what it writes, what it refuses, and what it says when a slide or a bundle is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner, Result

from napari_lrmil import __version__, cli
from napari_lrmil.export import tables
from napari_lrmil.export.tables import TILE_COLUMNS
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.card import DEMONSTRATION_NOTE
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide

REAL = ("slides_real/CMU-1-Small-Region.svs", "slides_repacked/cmu_aperio_pyramid.svs")


def lrmil(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def message(result: Result) -> str:
    """Both streams on one line: the console wraps and pads."""
    return " ".join(result.output.split())


def read_tiles(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == TILE_COLUMNS
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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.csv", "one.json"]
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
    assert told["bundle"] == {"name": "Tiny", "weights_sha256": model.info.weights_sha256}
    assert (told["read_level"], told["read_level_mpp"], told["slide_mpp_xy"]) == (1, 2.0, [0.5, 0.5])
    assert told["tiles"]["count"] == len(expected.tiles)
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
        timeout=120,
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
    assert refused.exit_code == 1
    assert "already holds results of 1 of these slides (one). Add --overwrite" in message(refused)
    assert (out / "one.json").read_text() == "mine"
    (out / "one.json").unlink()
    assert lrmil(*args).exit_code == 1  # a table alone may be somebody's too
    assert lrmil(*args, "--overwrite").exit_code == 0
    assert json.loads((out / "one.json").read_text())["label"]


def test_an_interrupted_overwrite_leaves_no_json_beside_another_table(
    slide: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("predict", slide, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert lrmil(*args).exit_code == 0
    write = tables.write_text

    def failing(path: Path, text: str) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(tables, "write_text", failing)
    assert lrmil(*args, "--overwrite").exit_code != 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.csv"]


def test_one_bad_slide_does_not_stop_the_others(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    broken = slide.parent / "broken.svs"
    broken.write_bytes(b"no slide")
    missing = slide.parent / "missing.svs"
    result = lrmil("predict", broken, missing, slide, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "2 of 3 slides failed" in message(result)
    assert "broken.svs" in message(result)
    assert "missing.svs" in message(result)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.csv", "one.json"]


def test_unknown_mpp_and_its_cure(tiny_bundle: Path, generated_slide: Path, tmp_path: Path) -> None:
    with Slide(generated_slide) as opened:
        pixels = opened.read_region((0, 0), 0, opened.level_dimensions_xy[0])
    path = tmp_path / "nompp.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None)
    args = ("predict", path, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    result = lrmil(*args)
    assert result.exit_code == 1
    assert "nompp.tif doesn't say how many µm a pixel measures. Give it: --mpp" in message(result)
    result = lrmil(*args, "--mpp", "0.5")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "nompp.json").read_text())["slide_mpp_xy"] == [0.5, 0.5]
    assert lrmil(*args, "--overwrite", "--mpp", "0").exit_code == 1


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
    assert result.exit_code == 1
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
    (newer / "bundle.json").write_text(json.dumps(raw | {"format_version": 2}))
    result = lrmil("predict", slide, "--bundle", newer, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "has format version 2; this program reads up to 1" in message(result)


def test_a_file_where_the_results_should_go(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    result = lrmil("predict", slide, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "can't be the folder of the results" in message(result)
    assert (tmp_path / "out").read_text() == "a file"


def test_slides_of_one_name_keep_apart(slide: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copy(slide, slide.with_suffix(".tiff")))
    result = lrmil("predict", slide, twin, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["one.tif.csv", "one.tif.json", "one.tiff.csv", "one.tiff.json"]
    result = lrmil("predict", slide, slide, "--bundle", tiny_bundle, "--out", tmp_path / "other")
    assert result.exit_code == 1
    assert "two slides would write the same results: one.tif" in message(result)


def test_info_tells_levels_and_no_identifier(
    shared_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_out", cli.Console(width=200))
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

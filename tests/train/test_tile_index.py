"""Every slide is checked before work starts, and all that are unusable are listed at once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from rich.console import Console

from napari_lrmil.errors import ConfigError
from napari_lrmil.slide.geometry import children_of
from training.data.table import SlideRow, read_table
from training.data.tile_index import SlideTiles, TileGeometry, index_slides
from training.progress import Reporter

GEOMETRY = TileGeometry(tile_px=32, mpp_lr=2.0, ratio=4, min_tissue=0.25, default_mpp=None)


def quiet() -> tuple[Reporter, io.StringIO]:
    text = io.StringIO()
    return Reporter(Console(file=text, width=300)), text


def index(
    rows: list[SlideRow], geometry: TileGeometry = GEOMETRY, skip_bad: bool = False
) -> list[SlideTiles]:
    return index_slides(rows, geometry, skip_bad=skip_bad, reporter=quiet()[0], threads=2)


def tiff(path: Path, value: int, mpp: float | None = 0.5, stain: bool = False) -> Path:
    pixels = np.full((512, 512, 3), value, np.uint8)
    if stain:
        pixels[64:448, 64:448] = (180, 80, 160)
    options: dict[str, object] = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.fixture
def rows(cohort: Path, tmp_path: Path) -> list[SlideRow]:
    """Two good slides and one of each kind of bad."""
    good = read_table(cohort)[:2]
    (tmp_path / "torn.svs").write_bytes(good[0].path.read_bytes()[:3000])
    (tmp_path / "[text].svs").write_text("no slide")
    bad = {
        "missing": tmp_path / "nowhere.svs",
        "torn": tmp_path / "torn.svs",
        "text": tmp_path / "[text].svs",
        "nompp": tiff(tmp_path / "nompp.tif", 240, mpp=None, stain=True),
        "white": tiff(tmp_path / "white.tif", 244),
        "coarse": tiff(tmp_path / "coarse.tif", 240, mpp=1.0, stain=True),
    }
    return [good[0], *(SlideRow(name, path, f"p-{name}", "benign") for name, path in bad.items()), good[1]]


def test_all_unusable_slides_are_listed_at_once(rows: list[SlideRow]) -> None:
    with pytest.raises(ConfigError) as caught:
        index(rows)
    said = str(caught.value)
    assert "6 of 8 slides can't be used (--skip-bad-slides goes on without them)" in said
    for name in ("missing", "torn", "text", "nompp", "white", "coarse"):
        assert f"\n  {name}: " in said
    lines = dict(line.strip().split(": ", 1) for line in said.splitlines()[1:])
    assert "column 'mpp'" in lines["nompp"]
    assert "data.mpp" in lines["nompp"]
    assert "no tissue" in lines["white"]
    assert "0.5 µm/px is needed" in lines["coarse"]  # fine enough for the student, not for the teacher


def test_skipping_goes_on_and_says_what_it_skipped(rows: list[SlideRow]) -> None:
    reporter, text = quiet()
    found = index_slides(rows, GEOMETRY, skip_bad=True, reporter=reporter, threads=2)
    assert [item.row.slide_id for item in found] == [rows[0].slide_id, rows[-1].slide_id]
    assert "Skipped 6 of 8 slides:" in text.getvalue()
    assert "[text].svs" in text.getvalue()


@pytest.mark.parametrize("keeps", [False, True])
def test_skipping_survives_whatever_a_damaged_slide_raises(
    rows: list[SlideRow], tmp_path: Path, keeps: bool
) -> None:
    bad = []
    for name, metadata in (("null", "null"), ("deep", "[" * 100_000)):
        folder = tmp_path / f"{name}.zarr"
        folder.mkdir()
        (folder / "zarr.json").write_text(metadata)
        bad.append(SlideRow(name, folder, name, "benign"))
    bad.append(SlideRow("loop", tmp_path / "loop.tif", "loop", "benign"))
    bad[-1].path.symlink_to("loop.tif")
    reporter, text = quiet()
    known = tmp_path / "known" if keeps else None
    found = index_slides(
        [rows[0], *bad, rows[-1]], GEOMETRY, skip_bad=True, reporter=reporter, threads=2, known=known
    )
    assert [item.row.slide_id for item in found] == [rows[0].slide_id, rows[-1].slide_id]
    assert "Skipped 3 of 5 slides:" in text.getvalue()
    assert "\n  deep: deep.zarr" in text.getvalue()


def test_nothing_usable_is_an_error_even_when_skipping(rows: list[SlideRow]) -> None:
    with pytest.raises(ConfigError, match="no slide of the table can be used"):
        index(rows[1:3], skip_bad=True)


def test_mpp_comes_from_the_table_then_the_file_then_the_config(tmp_path: Path) -> None:
    without = tiff(tmp_path / "without.tif", 240, mpp=None, stain=True)
    with_mpp = tiff(tmp_path / "with.tif", 240, mpp=0.5, stain=True)
    default = TileGeometry(32, 2.0, 4, 0.25, default_mpp=0.25)
    for path, in_table, expected in (
        (without, None, 0.25),
        (with_mpp, None, 0.5),
        (with_mpp, 0.4, 0.4),
        (without, 0.4, 0.4),
    ):
        with default.open(SlideRow("a", path, "p", "x", mpp=in_table)) as slide:
            assert slide.mpp_xy == pytest.approx((expected, expected))
    assert index([SlideRow("a", without, "p", "x")], default)[0].lr_shape_yx == (2, 2)


def test_grids_nest_and_hold_the_tissue(cohort: Path) -> None:
    for item in index(read_table(cohort)[:3]):
        assert item.lr_shape_yx == (4, 4)
        assert item.hr_places.max() < 16
        hr = {tuple(place) for place in item.hr_places.tolist()}
        assert len(hr) == len(item.hr_places)
        # An LR tile with a quarter of tissue has a child with a quarter of tissue.
        for children in children_of(item.lr_places[:, 0], item.lr_places[:, 1], 4):
            assert any(tuple(child) in hr for child in children.tolist())
        for places in (item.lr_places, item.hr_places):  # row by row
            assert places.tolist() == sorted(places.tolist())


def test_threads_keep_the_order(cohort: Path) -> None:
    rows = read_table(cohort)
    found = index_slides(rows, GEOMETRY, skip_bad=False, reporter=quiet()[0], threads=4)
    assert [item.row for item in found] == rows

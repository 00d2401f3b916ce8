"""µm/px that was typed once: found again by window and command line, under any name, until something else is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from seen_slides import load_results
from tiny_models import tiny_spec, write_bundle
from typer.testing import CliRunner

from napari_lrmil.batch import Kind, classify
from napari_lrmil.cache import ResultCache, ResultKeys, keep_typed_mpp, open_slide, typed_mpp
from napari_lrmil.cli.main import app
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.device import resolve_device
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import ListedSlide, Worklist
from napari_lrmil.worklist.reviews import ReviewFile


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny", tiny_spec(), tile_px=32)


def fingerprint_of(path: Path) -> str:
    with Slide(path) as slide:
        return slide.fingerprint()


def test_it_is_found_by_what_the_slide_holds(generated_slide: Path, tmp_path: Path) -> None:
    keep_typed_mpp(fingerprint_of(generated_slide), 0.4)
    renamed = tmp_path / "renamed.tif"
    renamed.write_bytes(generated_slide.read_bytes())
    with open_slide(renamed) as slide:
        assert slide.mpp_xy == (0.4, 0.4)
        assert slide.pixel_size.text.startswith("0.4 from what was typed in the window; ")
    with open_slide(renamed, mpp=0.25) as slide:
        assert slide.mpp_xy == (0.25, 0.25)


def test_it_can_be_corrected_and_forgotten(generated_slide: Path) -> None:
    fingerprint = fingerprint_of(generated_slide)
    keep_typed_mpp(fingerprint, 0.4)
    keep_typed_mpp(fingerprint, 0.45)
    assert typed_mpp(fingerprint) == 0.45
    keep_typed_mpp(fingerprint, None)
    keep_typed_mpp(fingerprint, None)
    assert typed_mpp(fingerprint) is None
    with open_slide(generated_slide) as slide:
        assert slide.mpp_xy == (0.5, 0.5)


def test_what_was_typed_before_values_were_sealed_is_not_asked_for_again(
    generated_slide: Path, own_data: Path
) -> None:
    fingerprint = fingerprint_of(generated_slide)
    keep_typed_mpp(fingerprint, 0.4)
    (file,) = (own_data / "pixel-sizes").iterdir()
    file.write_text('{"mpp": 0.25}\n')
    with open_slide(generated_slide) as slide:
        assert slide.mpp_xy == (0.25, 0.25)
    keep_typed_mpp(fingerprint, 0.4)
    assert typed_mpp(fingerprint) == 0.4


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"mpp": 900}',
        '{"mpp": 0.5, "sha256": "x"}',
        "{",
        "[]",
        "{}",
        '{"body": 0.4}',
        '{"body": NaN, "sha256": "x"}',
        "\xff",
        "[" * 100_000,
        "9" * 5000,
        "0.5",
    ],
)
def test_what_is_damaged_counts_as_absent(generated_slide: Path, own_data: Path, text: str) -> None:
    fingerprint = fingerprint_of(generated_slide)
    keep_typed_mpp(fingerprint, 0.4)
    (file,) = (own_data / "pixel-sizes").iterdir()
    written = file.read_text()
    assert typed_mpp(fingerprint) == 0.4
    file.write_bytes(written.replace("0.4", "0.5").encode() if text == "0.5" else text.encode("latin-1"))
    assert typed_mpp(fingerprint) is None
    with open_slide(generated_slide) as slide:
        assert slide.mpp_xy == (0.5, 0.5)


def test_the_command_line_uses_it_unless_told_otherwise(generated_slide: Path) -> None:
    keep_typed_mpp(fingerprint_of(generated_slide), 0.4)

    def told(*arguments: str) -> str:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["info", *arguments]).output

    assert "0.4 from what was typed in the window" in told(str(generated_slide))
    assert "0.25 from the value given" in told(str(generated_slide), "--mpp", "0.25")


def test_no_result_of_another_value_comes_back(
    generated_slide: Path, bundle_path: Path, tmp_path: Path
) -> None:
    device = resolve_device("cpu")
    bundle, cache = load_bundle(bundle_path, device=device), ResultCache(tmp_path / "cache")
    item = ListedSlide(generated_slide, "a")

    def run() -> tuple[tuple[float, float], bool]:
        events = [e for e in classify([item], bundle, cache=cache, device=device) if e.kind is Kind.FINISHED]
        assert len(events) == 1
        assert events[0].prediction is not None
        return events[0].prediction.mpp_xy, events[0].cached

    def row() -> str | None:
        worklist = Worklist([item], ReviewFile.of(tmp_path))
        load_results(worklist, cache, bundle.info.sha256, ResultKeys(bundle.info))
        return worklist[generated_slide].label

    assert run() == ((0.5, 0.5), False)
    assert row() is not None
    keep_typed_mpp(fingerprint_of(generated_slide), 0.4)
    assert row() is None
    assert run() == ((0.4, 0.4), False)
    assert row() is not None
    keep_typed_mpp(fingerprint_of(generated_slide), 0.45)
    assert row() is None
    assert run() == ((0.45, 0.45), False)
    keep_typed_mpp(fingerprint_of(generated_slide), None)
    assert run() == ((0.5, 0.5), True)

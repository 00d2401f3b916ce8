"""Regions labelled by a rule on their pixels, and what an encoder of them learns to say."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from napari_lrmil.slide import Slide
from training.data.table import SlideRow
from training.encoders import EncoderSection, teacher_encoder
from training.studies.atlas import (
    ATTRIBUTES,
    RegionMaps,
    app,
    cell_rich_share,
    label_by_thirds,
    measure_tiles,
    read_maps,
)


def rows_of(patients: list[str]) -> list[SlideRow]:
    return [SlideRow(f"s{n:02}", Path(f"s{n:02}.tif"), one, None) for n, one in enumerate(patients)]


def test_measures_of_a_tile_by_hand() -> None:
    """Two tiles of 16 px: one nucleus of 8 x 8 px and a speck in the first, nothing but pale glass in the second."""
    haematoxylin = np.zeros((16, 35), np.float32)
    haematoxylin[4:12, 4:12] = 1.0  # 64 px of 0.25 µm² each: 16 µm²
    haematoxylin[0, 0] = 1.0  # 0.25 µm²: no nucleus, but nuclear
    haematoxylin[4:12, 33:] = 1.0  # beyond the last whole tile
    pale = np.zeros((16, 35), np.bool_)
    pale[:, 16:] = True
    maps = RegionMaps(haematoxylin, np.full((16, 35), 0.5, np.float32), pale)
    found = measure_tiles(maps, 0.5, 16)
    assert found.shape == (1, 2, len(ATTRIBUTES))
    first, second = (dict(zip(ATTRIBUTES, one, strict=True)) for one in found[0])
    share = 65 / 256
    assert first["nuclear_share"] == first["haematoxylin_mean"] == share
    assert first["haematoxylin_std"] == pytest.approx((share * (1 - share)) ** 0.5)
    assert (first["eosin_mean"], first["eosin_std"], first["pale_share"]) == (0.5, 0, 0)
    assert first["nuclei_per_mm2"] == pytest.approx(1 / 0.008**2)
    assert first["nucleus_area_mean_um2"] == 16
    assert (second["pale_share"], second["nuclear_share"], second["nuclei_per_mm2"]) == (1, 0, 0)
    assert np.isnan(second["nucleus_area_mean_um2"])
    assert cell_rich_share(found) == 0.5
    # Where nothing is nuclear there are no nuclei, and no error.
    assert (measure_tiles(maps, 2.0, 16)[..., ATTRIBUTES.index("nuclei_per_mm2")] == 0).all()


def test_thirds_and_patients_of_the_middle() -> None:
    rows = rows_of(["a", "b", "c", "d", "b", "e"])
    assert (
        label_by_thirds(rows, [0.9, 0.8, 0.5, 0.4, 0.3, 0.1])
        == ["cell-rich"] * 2 + [None] * 2 + ["other"] * 2
    )
    # b has a region in the middle third: none of b's has a label.
    assert label_by_thirds(rows, [0.9, 0.5, 0.8, 0.4, 0.3, 0.1]) == [
        "cell-rich",
        None,
        "cell-rich",
        None,
        None,
        "other",
    ]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 1)), min_size=1, max_size=30))
def test_no_patient_has_regions_with_and_without_a_label(regions: list[tuple[str, float]]) -> None:
    rows = rows_of([patient for patient, _ in regions])
    shares = [share for _, share in regions]
    labels = label_by_thirds(rows, shares)
    unlabelled = {row.patient_id for row, label in zip(rows, labels, strict=True) if label is None}
    assert not unlabelled & {row.patient_id for row, label in zip(rows, labels, strict=True) if label}
    high = [share for share, label in zip(shares, labels, strict=True) if label == "cell-rich"]
    low = [share for share, label in zip(shares, labels, strict=True) if label == "other"]
    assert not high or not low or min(high) >= max(low)


def test_a_region_of_another_scale_is_refused(generated_slide: Path) -> None:
    with Slide(generated_slide, mpp=0.25) as slide, pytest.raises(ConfigError, match=r"isn't at 0\.5 µm/px"):
        read_maps(slide)


def test_the_command_labels_regions_and_makes_an_encoder(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    out = tmp_path / "atlas"
    done = CliRunner().invoke(app, [str(cohort), str(out), "--epochs", "1"])
    assert done.exit_code == 0, done.output
    with (out / "slides.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    assert (labels.count("cell-rich"), labels.count("other"), labels.count("")) == (5, 5, 5)
    assert all(Path(row["path"]).is_file() for row in rows)
    section = EncoderSection.model_validate(
        {
            "architecture": "convstem_vit",
            "options": {"image_px": 64},
            "weights": str(out / "encoder.safetensors"),
        }
    )
    encoder = teacher_encoder(section, seed=0, device=torch.device("cpu"))
    assert (
        encoder(encoder.preprocess(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))).embedding.isfinite().all()
    )
    assert len((out / "pretraining.csv").read_text().splitlines()) == 2

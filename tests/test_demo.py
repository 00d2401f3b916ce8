"""What a newcomer meets first: the packaged demonstration, and the path of `make demo` at a tiny size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from napari_lrmil.heatmap import attention_heatmap
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from training.cohort import MASK_DOWNSAMPLE, CohortConfig, generate_slide
from training.package_data import SAMPLE_SEED, SAMPLE_SIZE_PX

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ROOT / "napari_lrmil" / "demo"


@pytest.mark.parametrize("label", ["benign", "lesion"])
def test_the_packaged_student_labels_the_packaged_slides(label: str) -> None:
    bundle = load_bundle("demo")
    assert bundle.info.demonstration
    with Slide(PACKAGED / "slides" / f"{label}.tiff") as slide:
        prediction = run_to_end(predict_slide(slide, bundle, device=torch.device("cpu")))
        assert prediction.level_mpp == pytest.approx(2.0)
    assert prediction.label == label
    assert prediction.demonstration


def test_the_heatmap_of_the_packaged_slide_is_hot_on_its_lesion() -> None:
    width_px, height_px = SAMPLE_SIZE_PX
    drawn = generate_slide(
        CohortConfig(width_px=width_px, height_px=height_px),
        seed_sequence=np.random.SeedSequence(SAMPLE_SEED, spawn_key=(1,)),
        label="lesion",
    )
    with Slide(PACKAGED / "slides" / "lesion.tiff") as slide:
        # The file shows the slide that the seed draws, JPEG rounding apart.
        region = slide.read_region((0, 0), 0, (width_px, height_px)).astype(int)
        assert np.abs(region - drawn.rgb).mean() < 6
        prediction = run_to_end(predict_slide(slide, load_bundle("demo"), device=torch.device("cpu")))
    heatmap = attention_heatmap(prediction)
    tile_px = round(prediction.tiles.grid.tile_l0_xy[0] / MASK_DOWNSAMPLE)
    rows, cols = heatmap.values.shape
    padded = np.zeros((rows * tile_px, cols * tile_px))
    mask = drawn.lesion_mask
    padded[: mask.shape[0], : mask.shape[1]] = mask
    lesion = padded.reshape(rows, tile_px, cols, tile_px).mean(axis=(1, 3))
    # The pointing game: the hottest tile holds lesion, as chance would have it in few of the tiles.
    hottest = np.unravel_index(np.nanargmax(heatmap.values), heatmap.values.shape)
    assert lesion[hottest] > 0.2
    assert (lesion[prediction.tiles.rows, prediction.tiles.cols] > 0.2).mean() < 0.35
    in_lesion = lesion[prediction.tiles.rows, prediction.tiles.cols] > 0.5
    assert prediction.attention_scores[in_lesion].mean() > 3 * prediction.attention_scores[~in_lesion].mean()


@pytest.mark.slow
def test_the_whole_demo_at_a_tiny_size(tmp_path: Path) -> None:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    environment["PYTHONPATH"] = str(ROOT)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    cohort = ["demo/cohort", "--seed", "5", "--slides", "1/6/4/4", "--size", "1024x768"]
    assert "slides.csv" in run("-m", "training.cohort", *cohort)
    small = {
        "encoder.weights": str(ROOT / "training/assets/demo_encoder.safetensors"),
        "stage1.pairs_per_epoch": "200",
        "stage1.val_pairs": "32",
        "mil.epochs": "3",
        "evaluate.bootstrap": "100",
    }
    overrides = [word for key, value in small.items() for word in (f"--{key}", value)]
    printed = run("-m", "training.run", str(ROOT / "training/configs/demo.toml"), *overrides)
    for step in (
        "Embedding HR tiles",
        "Teacher MIL",
        "Stage 1: tiles",
        "Stage 2: slides",
        "LRMIL minus this",
    ):
        assert step in printed
    results = json.loads((tmp_path / "demo/run/results.json").read_text())
    methods = {"teacher_hr", "lr_scratch", "stage1_only", "stage2_only", "lrmil"}
    assert set(results) == {*methods, "tissue_fraction", "rgb", "random_init"}
    assert results["lrmil"]["n_test"] == 4

    shown = run(str(ROOT / "scripts/show_demo.py"))
    picture = Path(re.findall(r"off screen: (\S+)", shown)[0])
    with Image.open(tmp_path / picture) as image:
        assert image.width >= 1000
        assert len(image.convert("RGB").resize((200, 130)).getcolors(26000) or []) > 500
    predicted = [json.loads(path.read_text()) for path in (tmp_path / "demo/result").glob("*.json")]
    assert len(predicted) == 2
    for one in predicted:
        assert sum(one["class_probabilities"].values()) == pytest.approx(1)
        assert one["note"].startswith("Demonstration only")

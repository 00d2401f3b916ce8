"""``python -m training.package_data``: what ships inside the package.

Two sample slides, and the demo's student as the bundle "demo".

Run `make demo` first, for the student. The sample slides have a seed of their own: the student has not seen them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from napari_lrmil.atomic import replacing_folder
from training.cohort import CohortConfig, generate_slide
from training.cohort.writer import write_slide
from training.run.layout import RunDir

SAMPLE_SEED = 4242
SAMPLE_SIZE_PX = (2048, 1536)
TARGET = Path(__file__).resolve().parents[1] / "napari_lrmil" / "demo"
BUNDLE = RunDir(Path("demo/run")).fold(0).bundle


def main() -> None:
    """Write `napari_lrmil/demo`."""
    config = CohortConfig(width_px=SAMPLE_SIZE_PX[0], height_px=SAMPLE_SIZE_PX[1])
    (TARGET / "slides").mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(("benign", "lesion")):
        seed_sequence = np.random.SeedSequence(SAMPLE_SEED, spawn_key=(number,))
        slide = generate_slide(config, seed_sequence=seed_sequence, label=label)
        write_slide(TARGET / "slides" / f"{label}.tiff", slide.rgb, jpeg_quality=80)
    with replacing_folder(TARGET / "bundle") as scratch:
        shutil.copytree(BUNDLE, scratch, dirs_exist_ok=True)
    total = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{TARGET}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

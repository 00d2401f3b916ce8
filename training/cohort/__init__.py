"""Generated H&E-like slides: the demo's cohort, and real files for tests without patient data.

A slide (`slide`) is drawn from a layout of tissue and lesions (`layout`), nuclei (`nuclei`) at their places (`placement`),
fibres and noise (`texture`) and a stain (`stain`); `truth` keeps what it holds, `writer` makes files of it, `generate`
draws the whole cohort. What is measured on it: how hard it is (`reference`, which alone needs torch) and how well attention
finds known lesions (`localisation`).
"""

from training.cohort.config import (
    CLASS_NAMES,
    FOLDS,
    LEVEL_DOWNSAMPLES,
    MASK_DOWNSAMPLE,
    MPP_L0,
    CohortConfig,
)
from training.cohort.generate import generate_cohort
from training.cohort.nuclei import KIND_NAMES, Nuclei
from training.cohort.slide import GeneratedSlide, generate_slide
from training.cohort.truth import TILE_ATTRIBUTES, SlideTruth, read_truth, tile_truth, truth_of

__all__ = [
    "CLASS_NAMES",
    "FOLDS",
    "KIND_NAMES",
    "LEVEL_DOWNSAMPLES",
    "MASK_DOWNSAMPLE",
    "MPP_L0",
    "TILE_ATTRIBUTES",
    "CohortConfig",
    "GeneratedSlide",
    "Nuclei",
    "SlideTruth",
    "generate_cohort",
    "generate_slide",
    "read_truth",
    "tile_truth",
    "truth_of",
]

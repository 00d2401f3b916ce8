"""Predictions of the demonstration bundle on real slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide


@pytest.fixture(scope="session")
def demo_bundle() -> ModelBundle:
    """Without what it says of trust; tests that want that add numbers of their own."""
    bundle = load_bundle("demo", device=torch.device("cpu"))
    return replace(bundle, info=bundle.info.model_copy(update={"trust": None}), trust=None)


@pytest.fixture(scope="session")
def leica(shared_file: Callable[[str], Path]) -> Iterator[Slide]:
    """Bounds (2220, 1483, 2220, 2967) within 6660 x 5934 px."""
    with Slide(shared_file("slides_repacked/cmu_leica.scn")) as slide:
        yield slide


@pytest.fixture(scope="session")
def aperio(shared_file: Callable[[str], Path]) -> Iterator[Slide]:
    """The same tissue in a slide without bounds."""
    with Slide(shared_file("slides_repacked/cmu_aperio_pyramid.svs")) as slide:
        yield slide


@pytest.fixture(scope="session")
def leica_prediction(leica: Slide, demo_bundle: ModelBundle) -> SlidePrediction:
    return run_to_end(predict_slide(leica, demo_bundle, device=torch.device("cpu")))


@pytest.fixture(scope="session")
def aperio_prediction(aperio: Slide, demo_bundle: ModelBundle) -> SlidePrediction:
    return run_to_end(predict_slide(aperio, demo_bundle, device=torch.device("cpu")))

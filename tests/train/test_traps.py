"""The traps of earlier implementations that no other test sets: what is timed, and results read by name.

The others: weights that are logits, the attention KL's size and the loop over tiles in `test_losses`; students and stores of
several folds in `test_run`; position embeddings in `tests/model/test_encoder`; the choice of test slides in `test_run`; an
AUC without a class in `test_metrics`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import napari_lrmil.predict as predict
from benchmarks import slide_time
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import MILOutput, build_mil
from napari_lrmil.slide import Slide
from napari_lrmil.slide import tiles as slide_tiles
from training.objectives.base import Scale, Scales, Taps, TeacherTiles, TileShapes
from training.objectives.lrmil import LRMILTile
from training.runtime import Runtime
from training.stages.distill_tiles import Distiller, Stage1Section
from training.stages.heads import InTensors, MILSection

CPU = torch.device("cpu")
DELAY = 0.02


class Slowed:
    """A function that takes longer by a known amount, however many threads call it."""

    def __init__(self, function: Callable[..., Any], delay: float) -> None:
        self._function, self._delay, self._lock = function, delay, threading.Lock()
        self.added = 0.0

    def __call__(self, *values: Any, **options: Any) -> Any:
        with self._lock:
            time.sleep(self._delay)
            self.added += self._delay
        return self._function(*values, **options)

    def __get__(self, owner: Any, kind: type) -> Callable[..., Any]:
        return lambda *values, **options: self(owner, *values, **options)


PARTS: dict[str, tuple[Any, str]] = {
    "tissue": (slide_tiles, "find_tissue"),
    "reading": (Slide, "read_region"),
    "embedding": (Encoder, "forward"),
    "head": (predict, "explain"),
}


@pytest.mark.parametrize("part", PARTS)
def test_seconds_of_a_prediction_hold_every_part(
    generated_slide: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    bundle = load_bundle(tiny_bundle)
    owner, name = PARTS[part]
    slowed = Slowed(getattr(owner, name), DELAY if part in ("reading", "embedding") else 0.3)
    monkeypatch.setattr(owner, name, slowed)
    with Slide(generated_slide) as slide:
        result = predict.run_to_end(predict.predict_slide(slide, bundle, device=CPU, batch_size=4))
    assert slowed.added >= 0.1
    assert result.seconds >= 0.9 * slowed.added  # clocks and sleeps differ by a hair


@pytest.mark.parametrize("part", [*PARTS, "opening"])
def test_the_benchmark_times_a_slide_from_file_to_label(
    generated_slide: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    bundle = load_bundle(tiny_bundle)
    owner, name = PARTS.get(part, (slide_time, "Slide"))
    slowed = Slowed(getattr(owner, name), DELAY if part in ("reading", "embedding") else 0.3)
    monkeypatch.setattr(owner, name, slowed)
    turn = slide_time.classify(generated_slide, bundle, mpp=None, threads=2, batch_size=4)
    assert slowed.added >= 0.1
    assert turn.seconds >= 0.9 * slowed.added


def test_results_have_the_same_names_in_every_mode_and_wrapped_for_training() -> None:
    """What is unpacked by place, in whatever order, goes wrong in silence: both attentions have one shape."""
    torch.manual_seed(0)
    head = build_mil(MILSection(hidden_dim=4, dropout=0.0).spec(6, 2))
    wrapped = Runtime("cpu").head_fabric.setup_module(InTensors(head))
    bag = torch.randn(5, 6)
    for train in (True, False):
        head.train(train)
        plain, told = head(bag), MILOutput.of_tensors(wrapped(bag))
        assert type(plain) is MILOutput
        for field in fields(MILOutput):
            if field.name != "extras":
                torch.testing.assert_close(
                    getattr(told, field.name), getattr(plain, field.name), rtol=0, atol=0
                )
        assert plain.attention_logits is not None
        assert plain.attention_logits.shape == (1, 5)
        torch.testing.assert_close(told.attention_scores, torch.softmax(plain.attention_logits, 1))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_distillers_terms_keep_their_names(tiny_bundle: Path, precision: str) -> None:
    student = load_bundle(tiny_bundle).encoder
    dim = student.embed_dim
    objective = LRMILTile(Stage1Section(layers=(0,)), Taps((0,), (0,)), TileShapes(dim, dim, 2))
    model = Distiller(student, {"lrmil": objective})
    wrapped = Runtime("cpu", precision).fabric.setup_module(model)
    tiles = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    unit, children = Scale(torch.zeros(dim), torch.ones(dim)), torch.randn(3, 4, dim)
    said = TeacherTiles(
        children,
        {0: torch.randn(3, 4, dim)},
        torch.zeros(3, 4),
        torch.ones(3, 4, dtype=torch.bool),
        None,
        Scales(unit, {0: unit}, unit, unit, {}),
    )
    for train in (True, False):
        model.train(train)
        with torch.no_grad():
            told, plain = wrapped(tiles, said), model(tiles, said)
        assert list(told) == list(plain) == ["layer", "last", "attention"]
        for name, term in told.items():
            assert term.shape == (3,)
            assert term.dtype == torch.float32
            torch.testing.assert_close(term, plain[name], rtol=0.05, atol=0.05)

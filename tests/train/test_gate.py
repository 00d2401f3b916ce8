"""A teacher that isn't better than LR from scratch has nothing to give: its terms of stage 2 are left out, and that is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from run_helpers import rerun, weights, write_config

from training.intervals import FoldScores
from training.stages.gate import Gate, gate_note, judge

OPEN = Gate(teacher_auc=0.9, scratch_auc=0.6, low=0.1, high=0.5)
CLOSED = Gate(teacher_auc=0.61, scratch_auc=0.69, low=-0.21, high=0.04)


def said(*scores: NDArray[np.float64], labels: NDArray[np.int64]) -> FoldScores:
    """Trainings that give these probabilities of class 1; a patient a slide."""
    probabilities = np.stack([np.stack([1 - one, one], axis=-1) for one in scores])[None]
    return FoldScores(labels, tuple(f"P{place}" for place in range(len(labels))), probabilities)


def test_only_a_teacher_that_is_shown_to_be_better_is_listened_to() -> None:
    labels = np.arange(40) % 2
    rng = np.random.default_rng(0)
    sure, blind = labels * 0.8 + 0.1, rng.random(40)
    better = judge(said(sure, labels=labels), said(blind, labels=labels), n_resamples=500, seed=0)
    assert better.is_open
    assert better.teacher_auc == 1.0
    worse = judge(said(blind, labels=labels), said(sure, labels=labels), n_resamples=500, seed=0)
    assert not worse.is_open
    assert worse.high is not None
    assert worse.high < 0
    same = judge(said(sure, labels=labels), said(sure, labels=labels), n_resamples=500, seed=0)
    assert not same.is_open
    assert (same.low, same.high) == (0, 0)


def test_four_slides_show_nothing_by_chance_and_one_class_shows_nothing_at_all() -> None:
    labels = np.array([0, 1, 0, 1])
    near, nearly = np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.1, 0.9, 0.85, 0.8])
    assert not judge(said(near, labels=labels), said(nearly, labels=labels), n_resamples=500, seed=0).is_open
    one_class = np.zeros(4, np.int64)
    gate = judge(said(near, labels=one_class), said(nearly, labels=one_class), n_resamples=50, seed=0)
    assert not gate.is_open
    assert "no AUC is defined" in gate.text


def test_trainings_count_too() -> None:
    """One good teacher of four doesn't show that teachers are good: the interval draws trainings."""
    labels = np.arange(60) % 2
    rng = np.random.default_rng(1)
    chance = [rng.random(60) for _ in range(8)]
    lucky = said(labels * 0.8 + 0.1, *chance[:3], labels=labels)
    gate = judge(lucky, said(*chance[4:], labels=labels), n_resamples=500, seed=0)
    assert gate.teacher_auc is not None
    assert gate.scratch_auc is not None
    assert gate.teacher_auc > gate.scratch_auc
    assert not gate.is_open


def test_the_note_names_folds_and_numbers() -> None:
    assert gate_note({0: OPEN}) == ""
    assert "AUC 0.61 and 0.69, difference -0.08 [-0.21, +0.04]" in gate_note({0: CLOSED})
    assert "fold" not in gate_note({0: CLOSED})
    assert "fold 2: AUC 0.61" in gate_note({1: OPEN, 2: CLOSED})


@pytest.mark.slow
def test_a_run_leaves_a_blind_teacher_aside(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads are then those of the label alone, to the last byte; another answer of the gate, or none, trains them anew."""
    write_config(tmp_path, cohort)
    heads = {}
    for name, gate, words in (
        ("closed", CLOSED, ()),
        ("open", OPEN, ()),
        ("off", CLOSED, ("--stage2.gate", "off")),
    ):
        monkeypatch.setattr("training.run.pipeline.judge", lambda *_, gate=gate, **__: gate)
        for path in (tmp_path / "run").glob("done/*gate*"):
            path.unlink()
        _, printed = rerun(tmp_path, *words)
        heads[name] = weights(tmp_path)
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        notes = {key: one.get("left_out") for key, one in results.items() if one.get("left_out")}
        assert set(notes) == ({"stage2_only", "lrmil"} if name == "closed" else set())
        assert ("isn't shown to be better than LR from scratch" in printed) == (name == "closed")
    closed, opened = heads["closed"], heads["open"]
    assert closed["mil/stage2_only.safetensors"] == closed["mil/lr_scratch.safetensors"]
    assert closed["mil/lrmil.safetensors"] == closed["mil/stage1_only.safetensors"]
    assert opened["mil/lrmil.safetensors"] != opened["mil/stage1_only.safetensors"]
    assert opened == heads["off"]

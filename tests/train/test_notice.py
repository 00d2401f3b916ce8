"""A signal that asks a run to end: its training keeps its state after the step, and goes on to the same weights."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from napari_lrmil.model.encoder import Encoder, EncoderSpec
from training import notice
from training.checkpoint import Files
from training.data.bags import Bags, SlideBag
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.loop import Session
from training.progress import Reporter
from training.runtime import Runtime
from training.stages import heads
from training.stages.end_to_end import EndToEndSection, fit_end_to_end
from training.stages.heads import MILSection, fit_head

FABRIC = Runtime("cpu").head_fabric


def session(folder: Path, **options: Any) -> Session:
    files = Files(folder / "m.csv", checkpoint=folder / "c.safetensors", key="k", **options)
    return Session(FABRIC, files, Reporter(Console(file=io.StringIO())), "fit")


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_work_at_once_or_when_that_asks(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with notice.heard():
        with pytest.raises(notice.Noticed) as told:
            os.kill(os.getpid(), number)
        assert told.value.name == name
    seen = []

    def work() -> None:
        with notice.deferred():
            os.kill(os.getpid(), number)
            assert notice.came()
            seen.append("the step goes on")
            with notice.at_once():
                seen.append("too far")

    def work_that_does_not_ask() -> None:
        with notice.deferred():
            os.kill(os.getpid(), number)
            seen.append("to the end of the block")

    with notice.heard():
        with pytest.raises(notice.Noticed):
            work()
        assert notice.came()
    with notice.heard(), pytest.raises(notice.Noticed):
        work_that_does_not_ask()
    assert seen == ["the step goes on", "to the end of the block"]
    assert not notice.came()
    assert signal.getsignal(number) == before


def test_what_is_ignored_stays_so_and_other_threads_change_nothing() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with notice.heard():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert not notice.came()
    finally:
        signal.signal(signal.SIGUSR1, before)
    seen = []

    def hear() -> None:
        with notice.heard():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=hear)
    thread.start()
    thread.join()
    assert seen == [before]


# --- heads -----------------------------------------------------------------------------------------------------------


def bags_of(folder: Path, n: int, seed: int) -> Bags:
    rng = np.random.default_rng(seed)
    store = EmbeddingStore(folder / f"bags-{n}-{seed}")
    rows = [SlideRow(f"s{index}", Path(), f"p{index}", "ab"[index % 2]) for index in range(n)]
    for row in rows:
        if not store.has(row.slide_id):
            store.write(row.slide_id, embedding=rng.normal(size=(20, 8)))
    return Bags(store, rows, ("a", "b"))


class Interrupted:
    """Asks this process to end at a step, or in a validation."""

    def __init__(self, step: int) -> None:
        self.step, self.steps = step, 0

    def __call__(self, bag: SlideBag, output: Any) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "section", [{"name": "abmil", "hidden_dim": 8}, {"name": "dtfd"}, {"name": "clam_mb"}]
)
def test_a_head_that_is_asked_to_end_goes_on_to_the_last_bit(
    tmp_path: Path, one_thread: None, section: dict[str, Any], accumulate: int
) -> None:
    """With dropout and pseudo-bags drawn at random; the AUC of an epoch's steps is a column of its curve."""
    train, val = bags_of(tmp_path, 10, 0), bags_of(tmp_path, 6, 1)

    def fit(folder: str, extra: Any = None) -> dict[str, Tensor]:
        (tmp_path / folder).mkdir(exist_ok=True)
        found = fit_head(
            train,
            val,
            MILSection(epochs=4, min_epochs=2, accumulate=accumulate, restarts=1, fitted_auc=1.0, **section),
            session(tmp_path / folder),
            embed_dim=8,
            n_classes=2,
            seed=3,
            extra_loss=extra,
        )
        return dict(found.model.state_dict())

    whole = fit("whole")
    for step in (13, 6, 25):  # in the second epoch; in the one after; in a further training
        with notice.heard(), pytest.raises(notice.Noticed):
            fit("parts", Interrupted(step))
        assert list((tmp_path / "parts").glob("c*.safetensors"))
    counting = Interrupted(0)
    found = fit("parts", counting)
    assert found.keys() == whole.keys()
    assert all(torch.equal(value, found[name]) for name, value in whole.items())
    assert (tmp_path / "parts" / "m.csv").read_bytes() == (tmp_path / "whole" / "m.csv").read_bytes()


def test_a_signal_in_a_validation_keeps_the_epochs_steps(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = bags_of(tmp_path, 10, 0), bags_of(tmp_path, 6, 1)
    logits, calls = heads.bag_logits, [0]

    def stopping(*args: Any) -> NDArray[np.float64]:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return logits(*args)

    def fit(folder: str, extra: Any = None) -> dict[str, Tensor]:
        (tmp_path / folder).mkdir(exist_ok=True)
        section = MILSection(hidden_dim=8, epochs=3, restarts=0)
        where = session(tmp_path / folder)
        found = fit_head(train, val, section, where, embed_dim=8, n_classes=2, seed=3, extra_loss=extra)
        return dict(found.model.state_dict())

    whole = fit("whole")
    with monkeypatch.context() as patch:
        patch.setattr(heads, "bag_logits", stopping)
        with notice.heard(), pytest.raises(notice.Noticed):
            fit("parts")
    counting = Interrupted(0)
    found = fit("parts", counting)
    assert counting.steps == 10  # the third epoch's alone
    assert all(torch.equal(value, found[name]) for name, value in whole.items())
    assert (tmp_path / "parts" / "m.csv").read_bytes() == (tmp_path / "whole" / "m.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0),  # at most one in 30 s
        ({"checkpoint_seconds": 0.0}, 2),  # after each epoch
        ({"checkpoint_seconds": 0.0, "checkpoint_minutes": 1e-9}, 2 + 20),
        ({"checkpoint_seconds": 0.0, "checkpoint_steps": 4}, 2 + 2 * 2),
        ({"checkpoint_steps": 4}, 0),
    ],
)
def test_how_often_checkpoints_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    from training.checkpoint import FitState

    written: list[int] = []
    save = FitState.save

    def counting(self: FitState, *args: Any) -> None:
        written.append(self.step)
        save(self, *args)

    monkeypatch.setattr(FitState, "save", counting)
    fit_head(
        bags_of(tmp_path, 10, 0),
        bags_of(tmp_path, 6, 1),
        MILSection(hidden_dim=8, epochs=2, restarts=0),
        session(tmp_path, **options),
        embed_dim=8,
        n_classes=2,
        seed=3,
    )
    assert len(written) == expected


# --- end to end ------------------------------------------------------------------------------------------------------


class RandomPixels:
    names = tuple(f"s{number}" for number in range(6))
    labels = np.arange(6) % 2

    def __init__(self) -> None:
        self.read: list[int] = []

    def n_tiles(self, index: int) -> int:
        return 5

    def batches(self, index: int, chosen: NDArray[np.int64] | None, size: int) -> Iterator[NDArray[np.uint8]]:
        tiles = np.random.default_rng(index).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
        if chosen is not None:
            self.read.append(index)
        yield tiles if chosen is None else tiles[chosen]


def test_an_encoder_with_its_head_goes_on_to_the_last_bit(tmp_path: Path, one_thread: None) -> None:
    options = {"patch_size": 8, "img_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
    spec = EncoderSpec(architecture="vit_tiny_patch16_224", options=options)

    def fit(folder: str, stop: int = 0) -> tuple[dict[str, Tensor], list[int]]:
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        encoder, train = Encoder(spec), RandomPixels()
        head = MILSection(hidden_dim=8)
        section = EndToEndSection(epochs=2, max_tiles=3, chunk_tiles=8, train="all", learning_rate=1e-3)
        step, count = torch.optim.AdamW.step, [0]

        def stopping(self: Any, *args: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == stop:
                os.kill(os.getpid(), signal.SIGUSR1)
            return step(self, *args, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", stopping)
            found = fit_end_to_end(
                encoder, train, RandomPixels(), section, head, session(tmp_path / folder), n_classes=2, seed=3
            )
        return dict(encoder.state_dict()) | dict(found.model.state_dict()), train.read

    whole, read = fit("whole")
    assert len(read) == 12
    with notice.heard(), pytest.raises(notice.Noticed):
        fit("parts", 8)
    found, read = fit("parts")
    assert len(read) == 4  # what the second epoch had left
    assert all(torch.equal(value, found[name]) for name, value in whole.items())
    assert (tmp_path / "parts" / "m.csv").read_bytes() == (tmp_path / "whole" / "m.csv").read_bytes()

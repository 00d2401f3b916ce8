"""Stage 3: encoder and head together, from pixels to the slide's label."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.console import Console
from run_helpers import rerun, write_config
from torch import Tensor

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.mil import build_mil
from training.checkpoint import Files
from training.config import load_config
from training.loop import Session
from training.methods import BY_KEY
from training.progress import Reporter
from training.run.plan import plan
from training.run.prepare import Prepared, prepare
from training.stages.end_to_end import (
    EndToEnd,
    EndToEndSection,
    LowRank,
    SlidePixels,
    add_adapters,
    fit_end_to_end,
    merge_adapters,
    served_logits,
)
from training.stages.heads import FittedHead, MILSection

CPU = torch.device("cpu")
SPEC = EncoderSpec(
    architecture="vit_tiny_patch16_224",
    options={"patch_size": 8, "img_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2, "reg_tokens": 1},
)
MIL = MILSection(hidden_dim=8, projection=(8,), dropout=0.0)


def tiny(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(SPEC)


class Pictures:
    """Slides in memory: a third of the tiles has faint stripes under its noise, whose direction is the class."""

    def __init__(self, n: int, *, seed: int = 0, n_tiles: int = 6) -> None:
        rng = np.random.default_rng(seed)
        self.labels: NDArray[np.int64] = np.arange(n) % 2
        self.names = [f"s{index}" for index in range(n)]
        self.read: list[tuple[int, int]] = []
        stripes = np.where(np.arange(16) % 4 < 2, 5.0, -5.0)
        pattern = {0: stripes[:, None], 1: stripes[None, :]}
        self._tiles = []
        for label in self.labels:
            tiles = rng.normal(128, 30, (n_tiles, 16, 16, 3))
            tiles[: n_tiles // 3] += np.broadcast_to(pattern[int(label)], (16, 16))[..., None]
            self._tiles.append(np.clip(tiles, 0, 255).astype(np.uint8))

    def n_tiles(self, index: int) -> int:
        return len(self._tiles[index])

    def batches(self, index: int, chosen: NDArray[np.int64] | None, size: int) -> Iterator[NDArray[np.uint8]]:
        tiles = self._tiles[index] if chosen is None else self._tiles[index][chosen]
        self.read.append((index, len(tiles)))
        for start in range(0, len(tiles), size):
            yield tiles[start : start + size]


def session(folder: Path, *, key: str = "", checkpoint: bool = False) -> Session:
    files = Files(
        folder / "metrics.csv",
        checkpoint=folder / "checkpoint.safetensors" if checkpoint else None,
        key=key,
        checkpoint_seconds=0.0,
    )
    return Session(Fabric(accelerator="cpu", devices=1), files, Reporter(Console(quiet=True)), "end to end")


def gradients(encoder: Encoder, tiles: Tensor, **section: object) -> dict[str, Tensor | None]:
    torch.manual_seed(1)
    model = EndToEnd(
        encoder,
        build_mil(MIL.spec(16, 2)).to(encoder.vit.pos_embed.dtype),
        EndToEndSection.model_validate(section),
    )
    for part in model.modules():
        if isinstance(part, LowRank):  # with `up` at its start, 0, `down` has no gradient yet
            torch.nn.init.normal_(part.up.weight)
    model(tiles).bag_logits[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def some_tiles(n: int = 7) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    ("train", "blocks", "wanted"),
    [
        ("all", 1, lambda name: True),
        (
            "last_blocks",
            1,
            lambda name: name.startswith(("head.", "encoder.vit.blocks.2.", "encoder.vit.norm.")),
        ),
        (
            "last_blocks",
            9,
            lambda name: name.startswith(("head.", "encoder.vit.blocks.", "encoder.vit.norm.")),
        ),
        (
            "lora",
            2,
            lambda name: (
                name.startswith(("head.", "encoder.vit.blocks.1.", "encoder.vit.blocks.2."))
                and (name.startswith("head.") or ".down." in name or ".up." in name)
            ),
        ),
    ],
)
def test_the_gradient_reaches_what_is_trained_and_nothing_else(
    train: str, blocks: int, wanted: object, checkpointing: bool
) -> None:
    found = gradients(
        tiny(), some_tiles(), train=train, blocks=blocks, chunk_tiles=3, checkpointing=checkpointing
    )
    assert callable(wanted)
    for name, gradient in found.items():
        if name.startswith("head."):
            continue  # the score's bias, which softmax takes no notice of, has a zero gradient
        if wanted(name):
            assert gradient is not None, name
            assert gradient.abs().max() > 0, name
        else:
            assert gradient is None, name


@pytest.mark.parametrize("train", ["all", "last_blocks", "lora"])
def test_checkpointed_chunks_have_the_gradients_of_the_whole_bag(train: str) -> None:
    one, other = (
        gradients(
            tiny().double(),
            some_tiles(),
            train=train,
            blocks=2,
            chunk_tiles=chunk,
            checkpointing=checkpointing,
        )
        for chunk, checkpointing in ((3, True), (100, False))
    )
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        expected = other[name]
        assert (gradient is None) == (expected is None)
        if gradient is not None and expected is not None:
            assert gradient.dtype == torch.float64
            torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)


def test_the_frozen_part_and_the_trained_part_say_what_the_encoder_says() -> None:
    encoder = tiny().eval()
    expected = encoder(encoder.preprocess(some_tiles())).embedding
    for train in ("all", "last_blocks", "lora"):
        section = EndToEndSection.model_validate({"train": train, "blocks": 1, "chunk_tiles": 3})
        head = build_mil(MIL.spec(16, 2)).eval()
        model = EndToEnd(copy.deepcopy(encoder), head, section).eval()
        said_of, wanted_of = model(some_tiles()).tensors(), head(expected).tensors()
        assert set(said_of) == {"bag_logits", "attention_logits", "instance_logits", "bag_embedding"}
        for said, wanted in zip(said_of.values(), wanted_of.values(), strict=True):
            torch.testing.assert_close(said, wanted, atol=1e-5, rtol=1e-5)


def test_merged_adapters_say_what_adapters_said_and_leave_a_plain_encoder() -> None:
    plain, encoder = tiny().eval(), tiny().eval()
    add_adapters(encoder, blocks=2, rank=3)
    pixels = encoder.preprocess(some_tiles())
    assert torch.equal(encoder(pixels).embedding, plain(pixels).embedding)  # the change begins at 0
    torch.manual_seed(2)
    for part in encoder.modules():
        if isinstance(part, LowRank):
            torch.nn.init.normal_(part.up.weight, std=0.3)
    unmerged = encoder(pixels).embedding
    assert (unmerged - plain(pixels).embedding).abs().max() > 0.01
    merge_adapters(encoder)
    assert encoder.vit.state_dict().keys() == plain.vit.state_dict().keys()
    torch.testing.assert_close(encoder(pixels).embedding, unmerged, atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder.vit.blocks[0].attn.qkv.weight, plain.vit.blocks[0].attn.qkv.weight)


FAST = {
    "train": "all",
    "epochs": 25,
    "min_epochs": 25,
    "learning_rate": 2e-3,
    "head_learning_rate": 1e-2,
    "weight_decay": 0.0,
}


def fitted(encoder: Encoder, folder: Path, slides: Pictures, **section: object) -> FittedHead:
    return fit_end_to_end(
        encoder,
        slides,
        Pictures(8, seed=5),
        EndToEndSection.model_validate(FAST | section),
        MIL,
        session(folder, key="a", checkpoint=True),
        n_classes=2,
        seed=3,
    )


@pytest.mark.slow
def test_it_fits_slides_that_a_head_on_frozen_random_features_does_not(
    tmp_path: Path, one_thread: None
) -> None:
    whole = fitted(tiny(), tmp_path, Pictures(24))
    # The same, but for the encoder: its rate is next to nothing.
    (tmp_path / "checkpoint.safetensors").unlink()
    frozen = fitted(tiny(), tmp_path, Pictures(24), learning_rate=1e-30)
    assert whole.fit.train_auc is not None
    assert frozen.fit.train_auc is not None
    assert whole.fit.train_auc >= 0.99
    assert whole.fit.fitted
    assert frozen.fit.train_auc < 0.9
    assert not frozen.fit.fitted


def test_the_encoder_that_stays_is_plain_rounded_and_says_what_was_scored(
    tmp_path: Path, one_thread: None
) -> None:
    encoder, train = tiny(), Pictures(6)
    before = copy.deepcopy(encoder.vit.state_dict())
    head = fitted(encoder, tmp_path, train, train="lora", blocks=1, lora_rank=2, epochs=2)
    after = encoder.vit.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name].half().float())}
    assert changed == {"blocks.2.attn.qkv.weight", "blocks.2.attn.proj.weight"}
    for value in after.values():
        assert torch.equal(value, value.half().float())
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    logits = served_logits(encoder, head.model, train, CPU, 4)
    assert torch.equal(logits, served_logits(encoder, head.model, train, CPU, 4))


def test_a_step_draws_some_tiles_anew_and_validation_reads_all(tmp_path: Path, one_thread: None) -> None:
    train = Pictures(6, n_tiles=9)
    fitted(tiny(), tmp_path, train, max_tiles=4, epochs=2, min_epochs=2)
    steps, asked = train.read[:12], train.read[12:]
    assert sorted(index for index, _ in steps) == sorted([*range(6), *range(6)])
    assert {n for _, n in steps} == {4}
    assert asked == [(index, 9) for index in range(6)]  # the training AUC, of all tiles


class _Stopped(Exception):
    pass


class StoppedPictures(Pictures):
    """Can't be read any more from some read on."""

    last = 10**9

    def batches(self, index: int, chosen: NDArray[np.int64] | None, size: int) -> Iterator[NDArray[np.uint8]]:
        if len(self.read) >= self.last:
            raise _Stopped
        return super().batches(index, chosen, size)


@pytest.mark.parametrize("train", ["all", "last_blocks", "lora"])
def test_one_that_goes_on_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, one_thread: None, train: str
) -> None:
    made = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        options = {"train": train, "blocks": 1, "epochs": 4, "min_epochs": 4}
        if name == "killed":
            slides = StoppedPictures(6)
            slides.last = 6 * 2 + 3  # within the third epoch
            with pytest.raises(_Stopped):
                fitted(tiny(), folder, slides, **options)
            assert (folder / "checkpoint.safetensors").is_file()
        encoder, slides = tiny(), StoppedPictures(6)
        head = fitted(encoder, folder, slides, **options)
        assert len(slides.read) == (2 if name == "killed" else 4) * 6 + 6
        made[name] = encoder.vit.state_dict() | head.model.state_dict(), (folder / "metrics.csv").read_bytes()
    for key, value in made["whole"][0].items():
        assert torch.equal(made["killed"][0][key], value), key
    assert made["killed"][1] == made["whole"][1]


@pytest.mark.slow
def test_a_run_trains_scores_and_resumes_its_rows(cohort: Path, tmp_path: Path, one_thread: None) -> None:
    config = write_config(tmp_path, cohort)
    config.write_text(
        config.read_text()
        + '[end_to_end]\ntrain = "lora"\nblocks = 2\nlora_rank = 2\nepochs = 2\n'
        + '[[compare]]\nset = "end_to_end"\n'
        + '[[compare]]\nkey = "small"\nembedding = "student"\nstudent = { token_px = 4 }\n'
    )
    words = ("--evaluate.shortcuts", "[]")
    planned = plan(*prepared(tmp_path, *words))
    names = [step.name for step in planned]
    assert {"fold0/end_to_end", "fold0/end_to_end_scratch", "embed LR, fold0/end_to_end"} <= set(names)
    assert all(step.seconds > 0 for step in planned if "end_to_end" in step.name)
    rerun(tmp_path, *words)
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert list(results) == ["end_to_end", "end_to_end_scratch", "small", "lrmil"]
    for key in ("end_to_end", "end_to_end_scratch"):
        assert results[key]["train_auc"] is not None
        # What was scored is what the kept encoder and head say of the slides' pixels.
        context, splits, _ = prepared(tmp_path, *words)
        folder = context.run_dir.fold(0)
        encoder = context.student_encoder(folder.read_encoder(key))
        head = folder.read_head(key, context.head_spec(BY_KEY[key], encoder.embed_dim))
        pixels = SlidePixels(
            context.tiles_of(splits[0].test), context.geometry, context.class_names, threads=1
        )
        logits = served_logits(encoder, head, pixels, CPU, 16)
        expected = folder.read_calibration(key).probabilities(logits.numpy())
        np.testing.assert_allclose(folder.read_predictions(key).probabilities, expected, atol=1e-4)
    made = {path: path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}
    # Another number of epochs concerns these two rows alone; what is done is not done again.
    _, said = rerun(tmp_path, *words, "--end_to_end.epochs", "3")
    assert "fold0/lrmil: done before" in said
    assert "fold0/end_to_end: done before" not in said
    after = {path: path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}
    assert (
        after[run / "fold0" / "mil" / "lrmil.safetensors"]
        == made[run / "fold0" / "mil" / "lrmil.safetensors"]
    )
    _, said = rerun(tmp_path, *words, "--end_to_end.epochs", "3")
    assert "fold0/end_to_end: done before" in said
    assert all(step.seconds == 0 for step in plan(*prepared(tmp_path, *words, "--end_to_end.epochs", "3")))


def prepared(folder: Path, *words: str) -> Prepared:
    loaded = load_config(folder / "config.toml", ["--run.out_dir", str(folder / "run"), *words])
    return prepare(loaded, skip_bad=False, reporter=Reporter(Console(quiet=True)), writes=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('embedding = "end_to_end"\nlosses = ["ce", "bag"]', "learns from the label alone"),
        (
            'embedding = "student"\nend_to_end = { epochs = 2 }',
            "concerns end_to_end and end_to_end_scratch alone",
        ),
        ('embedding = "end_to_end"\nend_to_end = { epoch = 2 }', "did you mean 'epochs'"),
    ],
)
def test_rows_that_make_no_sense_are_refused(cohort: Path, tmp_path: Path, row: str, message: str) -> None:
    config = write_config(tmp_path, cohort)
    config.write_text(config.read_text() + f'[[compare]]\nkey = "mine"\n{row}\n')
    with pytest.raises(ConfigError, match=message):
        load_config(config, [])

"""Stage 1's targets: one scale for all dimensions and layers, turned where tiles are turned; and what a step reports."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import write_config
from tiny_models import tiny_spec
from torch import Tensor, nn

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import Encoder
from training.checkpoint import Files
from training.config import load_config
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles
from training.import_features.slides import check_config
from training.loop import Recipe, Session, Task, fit
from training.losses import last_layer_loss, standardised
from training.progress import Reporter
from training.run.prepare import prepare
from training.runtime import Runtime
from training.stages.distill_tiles import Stage1Section, pair_loader, spread_of_targets
from training.stages.embed_tiles import embed_slides, turned_means

# --- one scale -------------------------------------------------------------------------------------------------------


def tiles_of(names: str, n: int) -> list[SlideTiles]:
    places = np.stack([np.arange(n), np.zeros(n, int)], axis=1)
    return [SlideTiles(SlideRow(name, Path(), name, None), (n, 1), places, places) for name in names]


def test_spread_of_targets_by_hand(tmp_path: Path) -> None:
    """Over the tiles of all slides together, for each dimension and layer; a dimension that is constant isn't blown up."""
    store = EmbeddingStore(tmp_path / "store")
    for name, finals, tokens in (
        ("a", [[0, 3, 7], [4, 3, 7]], [[[1, 0, 0], [1, 0, 8]]]),
        ("b", [[0, 5, 7], [4, 5, 7]], [[[3, 0, 0], [3, 0, 8]]]),
    ):
        store.write(name, embedding=np.array(finals, float), layer_class_tokens=np.array(tokens, float))
    found = spread_of_targets(Stage1Section(layers=(0,)), tiles_of("ab", 2), store)
    # Of 0, 4, 0, 4 it is 2, of 3, 3, 5, 5 it is 1; the third is a hundredth of their mean of 1.
    assert found.embedding.tolist() == pytest.approx([2, 1, 0.01])
    assert found.layers.shape == (1, 1, 1, 3)
    assert found.layers.flatten().tolist() == pytest.approx([1, 5 / 3 * 0.01, 4])
    raw = spread_of_targets(Stage1Section(layers=(0,), standardise=False), tiles_of("ab", 2), store)
    assert raw.embedding.tolist() == raw.layers.flatten().tolist() == [1, 1, 1]
    none = spread_of_targets(Stage1Section(), tiles_of("ab", 2), store)
    assert none.layers.shape[0] == 0


def test_standardised_errors_weigh_dimensions_alike() -> None:
    """An error of one standard deviation counts as 1 in whichever dimension it is."""
    spread = torch.tensor([100.0, 0.01])
    for error in ([100.0, 0.0], [0.0, 0.01]):
        student, teacher = torch.tensor([[error]]) + 7, torch.full((1, 1, 2), 7.0)
        loss = last_layer_loss(
            standardised(student, spread), standardised(teacher, spread), torch.ones(1, 1, dtype=torch.bool)
        )
        assert loss.item() == pytest.approx(0.5, rel=1e-3)


def test_last_layer_loss_by_hand() -> None:
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]], requires_grad=True)  # (B=1, K=2, D=2)
    teacher = torch.tensor([[[0.0, 0.0], [0.0, 4.0]]])
    both, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert last_layer_loss(student, teacher, both).item() == pytest.approx((2.5 + 8) / 2)
    loss = last_layer_loss(student, teacher, first)
    assert loss.item() == pytest.approx(2.5)
    loss.backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[[1, 2], [0, 0]]]
    assert last_layer_loss(student, teacher, ~(both | first)).tolist() == [0]


def test_something_must_be_learned(tmp_path: Path) -> None:
    config = write_config(tmp_path, Path("slides.csv"))
    zero = ["--stage1.lambda_attn", "0", "--stage1.lambda_last", "0"]
    with pytest.raises(ConfigError, match="there is nothing to learn from"):
        load_config(config, [*zero, "--stage1.layers", "[]"])
    load_config(config, zero)  # layers are left
    load_config(config, ["--stage1.lambda_attn", "0", "--stage1.layers", "[]"])


# --- turned tiles ----------------------------------------------------------------------------------------------------


def test_targets_of_turned_tiles_are_means_over_all_turns() -> None:
    """So they are those of the tile however it is turned, which what an encoder says of it is not."""
    torch.manual_seed(0)
    encoder = Encoder(tiny_spec()).eval()
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        found = turned_means(encoder, pixels, (0, 2))
        turns = [torch.rot90(one, k, (2, 3)) for k in range(4) for one in (pixels, pixels.flip(3))]
        outputs = [encoder(one, (0, 2)) for one in turns]
        torch.testing.assert_close(
            found["turned_embedding"],
            torch.stack([one.embedding for one in outputs]).mean(0),
            atol=1e-5,
            rtol=1e-4,
        )
        torch.testing.assert_close(
            found["turned_layer_class_tokens"],
            torch.stack([one.layer_class_tokens for one in outputs]).mean(0),
            atol=1e-5,
            rtol=1e-4,
        )
        torch.testing.assert_close(found["embedding"], encoder(pixels).embedding)
        again = turned_means(encoder, turns[3], (0, 2))
    torch.testing.assert_close(again["turned_embedding"], found["turned_embedding"], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(again["embedding"], found["embedding"], atol=1e-3)


def test_tiles_are_not_turned_by_default_and_a_run_that_turns_them_stores_turned_targets(
    copied: Callable[..., Path], cohort: Path
) -> None:
    folder = copied()
    options = ["--run.out_dir", str(folder / "run")]
    config = load_config(write_config(folder, cohort), options)
    assert not config.stage1.turned
    quiet = Reporter(Console(file=io.StringIO()))
    plain = prepare(config, skip_bad=False, reporter=quiet)
    turning = prepare(
        load_config(folder / "config.toml", [*options, "--stage1.turned", "true"]),
        skip_bad=False,
        reporter=quiet,
    )
    context = turning.context
    assert context.hr_store().root != plain.context.hr_store().root
    assert plain.context.hr_store().has(
        context.rows[0].slide_id
    )  # of the finished run: its name is as it was
    # The teacher's head reads tiles as they are: it isn't trained again.
    assert turning.steps.teacher(turning.splits[0]).key == plain.steps.teacher(plain.splits[0]).key
    row = context.rows[0]
    embed_slides(
        context.jobs([row], context.hr_store(), hr=True),
        context.teacher_encoder(),
        context.runtime,
        quiet,
        "",
    )
    stored = context.hr_store().read(row.slide_id, "turned_embedding")
    np.testing.assert_array_equal(
        context.hr_store().read(row.slide_id), plain.context.hr_store().read(row.slide_id)
    )
    loader = pair_loader(
        context.tiles_of([row]),
        context.config.stage1,
        context.geometry,
        context.hr_store(),
        scores=None,
        threads=1,
    )
    batch = next(iter(loader.batches(np.random.default_rng(0), limit=4, turned=True)))
    known = {tuple(values) for values in stored.tolist()}
    valid = batch.child_embeddings[batch.valid]
    assert all(tuple(values) in known for values in valid.tolist())


def test_imported_features_have_no_turned_targets(tmp_path: Path) -> None:
    config = write_config(tmp_path, Path("slides.csv"))
    with pytest.raises(ConfigError, match=r"stage1\.turned = false"):
        check_config(load_config(config, ["--stage1.layers", "[]", "--stage1.turned", "true"]))


# --- what a step reports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "share", "first_step"), [(5.0, 0.5, 5.0), (float("inf"), 0.0, 6.0)])
def test_the_length_of_gradients_and_the_share_of_clipped_steps_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float, share: float, first_step: float
) -> None:
    model = nn.Linear(1, 1, bias=False)
    taken = []
    step = torch.optim.AdamW.step

    def looking(self: torch.optim.AdamW, *args: object, **options: object) -> object:
        assert model.weight.grad is not None
        taken.append(model.weight.grad.item())
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", looking)

    def losses(wrapped: nn.Module, slope: float) -> dict[str, Tensor]:
        return {"loss": slope * wrapped(torch.ones(1, 1)).sum()}

    task = Task(
        batches=lambda epoch: [6.0, 2.0],
        steps_per_epoch=2,
        losses=losses,
        validate=lambda: {"val_loss": 0.0},
        score=lambda metrics: (0.0,),
        names=lambda batch, losses: "",
    )
    recipe = Recipe(epochs=1, learning_rate=0.1, weight_decay=0.0, seed=0, clip=clip)
    session = Session(
        Runtime("cpu").head_fabric, Files(tmp_path / "m.csv"), Reporter(Console(file=io.StringIO())), ""
    )
    (row,) = fit(model, task, recipe, session).history
    assert (row["train_gradient"], row["train_clipped"]) == (pytest.approx(4.0), share)
    assert taken == pytest.approx([first_step, 2.0], rel=1e-4)

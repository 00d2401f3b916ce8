"""Papers' recipes as sets of config values: each head has one, it loads, and it trains the head."""

from __future__ import annotations

import io
import math
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil import HEADS, AnyBag, Bag, MILOutput, MILSpec
from napari_lrmil.model.mil.focus import FOCUS
from training.checkpoint import Files
from training.config import load_config
from training.config.load import CONFIGS, set_names
from training.loop import Session, Task, fit
from training.progress import Reporter
from training.runtime import Runtime
from training.stages.heads import InTensors, MILSection

MINIMAL = '[run]\nout_dir = "run"\n[data]\nslides = "slides.csv"\n'
SETS = [name for name in set_names() if name.startswith("heads/")]
every_set = pytest.mark.parametrize("name", SETS)
DIM = 8


def values(name: str) -> dict[str, Any]:
    raw = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    assert list(raw) == ["mil"]
    found: dict[str, Any] = raw["mil"]
    return found


def parts(name: str) -> tuple[MILSpec, MILSection]:
    """What is built and how it is trained, also of the head that needs texts."""
    raw = values(name)
    head, own = raw.pop("name"), raw.pop("head", {})
    section = MILSection.model_validate(raw)
    if head == "abmil":
        return section.spec(DIM, 2), section
    if head == "focus":
        own = own | {"text_dim": 16, "n_texts": 3}
    return HEADS[head].model_validate({"embed_dim": DIM, "n_classes": 2} | own), section


def slide(spec: MILSpec, seed: int) -> AnyBag:
    """Three coarse tiles with all of their children, or ten tiles."""
    generator = torch.Generator().manual_seed(seed)
    if len(spec.factors) == 1:
        return Bag(torch.randn(10, DIM, generator=generator))
    bags = [Bag(torch.randn(3, DIM, generator=generator))]
    for coarse, fine in pairwise(spec.factors):
        parents = torch.arange(len(bags[-1])).repeat_interleave((coarse // fine) ** 2)
        bags.append(Bag(torch.randn(len(parents), DIM, generator=generator), parents=parents))
    return tuple(bags)


def test_every_head_has_a_recipe() -> None:
    assert {values(name)["name"] for name in SETS} == set(HEADS)
    selections = {values(name)["head"]["selection"] for name in SETS if "dtfd" in name}
    assert selections == {"afs", "max", "maxmin"}


@every_set
def test_it_cites_its_source_and_says_what_differs(name: str) -> None:
    comment = [line for line in (CONFIGS / f"{name}.toml").read_text().splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in comment)
    assert "arXiv" in text or "no paper" in text
    assert "github.com/" in text or "code wasn't at hand" in text
    assert "Differs: " in text


@every_set
def test_two_steps_of_it_train_the_head(name: str, tmp_path: Path) -> None:
    spec, section = parts(name)
    torch.manual_seed(0)
    model = spec.build()
    if isinstance(model, FOCUS):
        model.set_text(torch.randn(3, 16))
    before = {key: value.clone() for key, value in model.named_parameters()}
    accumulate = section.accumulate
    bags = [(slide(spec, seed), seed % 2) for seed in range(2 * accumulate)]
    seen: list[float] = []

    def losses(wrapped: nn.Module, bag: tuple[AnyBag, int]) -> dict[str, Tensor]:
        terms = model.losses(MILOutput.of_tensors(wrapped(bag[0])), bag[1])
        loss = torch.stack(list(terms.values())).sum()
        seen.append(loss.item())
        return {"loss": loss}

    task: Task[tuple[AnyBag, int]] = Task(
        batches=lambda epoch: bags,
        steps_per_epoch=len(bags),
        losses=losses,
        validate=lambda: {"val": 0.0},
        score=lambda metrics: (0.0,),
        names=lambda bag, losses: "",
    )
    quiet = Reporter(Console(file=io.StringIO()))
    fit(
        model,
        task,
        section.model_copy(update={"epochs": 1}).recipe(0),
        Session(Runtime("cpu").head_fabric, Files(tmp_path / "m.csv", key="k"), quiet, name),
        called=InTensors(model),
    )
    assert len(seen) == 2 * accumulate
    assert all(map(math.isfinite, seen))
    moved = {key: (value - before[key]).abs().max().item() for key, value in model.named_parameters()}
    assert max(moved.values()) > 0
    # A step of Adam is as long as its rate where the gradient isn't tiny; two of them may go there and back in part.
    if section.optimizer == "adam":
        assert section.learning_rate < max(moved.values()) < 2.1 * section.learning_rate


@every_set
def test_set_on_the_command_line_is_the_file_over_the_config(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(MINIMAL + "[mil]\nhidden_dim = 7\nfitted_auc = 0.5\n")
    mil = load_config(tmp_path / "c.toml", ["--set", name]).mil
    wanted = {"fitted_auc": 0.5} | values(name)
    assert mil == MILSection.model_validate(wanted)  # what only another head has is gone


def test_values_of_the_command_line_come_last_and_sets_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(MINIMAL + "[mil.student]\nname = 'mean'\n")
    words = ["--mil.epochs", "3", "--set", "heads/clam_sb", "--set", "heads/dsmil", "--mil.head.query_dim=9"]
    config = load_config(tmp_path / "c.toml", words)
    assert (config.mil.name, config.mil.epochs, config.mil.balance) == ("dsmil", 3, "bags")
    assert config.mil.head["query_dim"] == 9
    assert "k" not in config.mil.head
    assert config.student_mil.name == "mean"  # of the config itself, as before
    (tmp_path / "own.toml").write_text("[mil]\nepochs = 4\n[tiles]\nratio = 2\n")
    own = load_config(tmp_path / "c.toml", [f"--set={tmp_path / 'own.toml'}"])
    assert (own.mil.epochs, own.tiles.ratio) == (4, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "heads/clam"], "no such set: heads/clam; did you mean heads/clam_sb"),
        (["--set", "absent.toml"], "no such config: absent.toml"),
        (["--set"], "--set needs a value"),
    ],
)
def test_a_set_that_cannot_be_had_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "c.toml", words)


def test_a_run_without_these_keys_is_the_run_of_before() -> None:
    """What a run keeps is found again by this text; the optimizer is in it where it is another."""
    assert not {"optimizer", "betas"} & set(MILSection().model_dump(mode="json"))
    assert MILSection(optimizer="adam").model_dump()["optimizer"] == "adam"
    again = MILSection(optimizer="adam", betas=(0.5, 0.9))
    assert MILSection.model_validate_json(again.model_dump_json()) == again

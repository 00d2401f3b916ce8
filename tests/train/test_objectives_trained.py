"""Both stages trained with each objective: by config, to a smaller loss, and from a checkpoint to the same bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import rerun, write_config

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil.mean import MeanMIL
from training.checkpoint import Files, FitState
from training.config import load_config
from training.data.bags import Bags
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles
from training.import_features.slides import check_config
from training.loop import Session
from training.methods import DISTILLATION
from training.objectives.base import TileShapes
from training.progress import Reporter
from training.run.pipeline import train_encoder
from training.run.prepare import prepare
from training.runtime import Runtime
from training.stages.distill_slides import SlideDistillation, Stage2Section, TeacherOutput
from training.stages.distill_tiles import Stage1Section, tile_objectives
from training.stages.embed_tiles import embed_slides
from training.stages.heads import MILSection, fit_head

CPU = torch.device("cpu")
QUIET = Reporter(Console(file=io.StringIO()))


# --- the config ------------------------------------------------------------------------------------------------------


def configured(folder: Path, toml: str, *words: str) -> object:
    path = write_config(folder, Path("slides.csv"))
    path.write_text(path.read_text().replace("layers = [0, 2]\n", "") + toml)
    return load_config(path, list(words))


def test_objectives_are_lists_of_the_config(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        """
[[stage1.objectives]]
name = "review_kd"
layers = [0, -1]

[[stage1.objectives]]
name = "class_and_tokens"
weight = 0.5

[[stage2.objectives]]
name = "kd"
temperature = 2.0
""",
    )
    assert [one.name for one in config.stage1.objectives] == ["review_kd", "class_and_tokens"]
    assert config.stage2.objectives[0].temperature == 2.0
    assert (
        config.target_layers == config.layers_of_rows == (0, 2)
    )  # of the three blocks; f reads LR for the other
    assert config.taps["class_and_tokens"].source == "lr"


def test_what_a_config_does_not_name_is_not_in_its_keys() -> None:
    """Runs made before there were objectives are found done: the text that their keys hash is as it was."""
    for section in (Stage1Section(), Stage2Section()):
        assert "objectives" not in section.model_dump_json()
        assert "objectives" not in section.model_dump()
    named = Stage2Section(objectives=({"name": "kd"},))
    assert json.loads(named.model_dump_json())["objectives"][0]["temperature"] == 4.0
    assert Stage2Section.model_validate_json(named.model_dump_json()) == named


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage1.objectives", '[{ name = "tat" }, { name = "tat" }]'], "'tat' is named twice"),
        (
            ["--stage1.objectives", '[{ name = "tat", wieght = 1 }]'],
            r"did you mean 'stage1\.objectives\.0\.tat\.weight'",
        ),
        (["--stage2.objectives", '[{ name = "kd", temprature = 1 }]'], r"kd\.temperature'"),
        (["--stage2.objectives", '[{ name = "tat" }]'], "'lrmil', 'kd', 'hints', 'nkd', 'uskd'"),
        (
            ["--stage2.objectives", '[{ name = "kd", temperature = 0 }]'],
            r"stage2\.objectives\.0\.kd\.temperature: ",
        ),
        (["--stage1.objectives", '[{ name = "tat", weight = 0 }]'], "nothing to learn from"),
        (["--stage1.objectives", '[{ name = "tat", layer = 3 }]'], r"0\.\.2"),
        (
            ["--stage1.objectives", '[{ name = "tat" }]', "--stage1.layers", "[0]"],
            "are those of the objective lrmil",
        ),
    ],
)
def test_objectives_that_cannot_be_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, "", *words)


def test_controls_of_other_targets_go_with_stored_targets_alone(tmp_path: Path) -> None:
    row = '\n[[compare]]\nkey = "own"\nembedding = "student_shuffled"\n'
    named = '[{ name = "tat", source = "%s" }]'
    configured(tmp_path, row, "--stage1.objectives", named % "children")
    with pytest.raises(ConfigError, match="controls of other targets"):
        configured(tmp_path, row, "--stage1.objectives", named % "lr")


def test_rows_swap_the_objective(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        """
[[compare]]
key = "by-kd"
embedding = "student"
stage2 = { objectives = [{ name = "kd" }] }

[[compare]]
key = "hr-nkd"
embedding = "hr"
stage2 = { objectives = [{ name = "nkd" }] }

[[compare]]
key = "by-tat"
embedding = "student"
stage1 = { objectives = [{ name = "tat" }] }
""",
    )
    rows = {row.key: row for row in config.rows}
    assert rows["by-kd"].name == "f' on LR, ce + kd"
    assert rows["by-tat"].name == "f' on LR, stage 1 by tat"
    assert rows["by-kd"].losses == rows["hr-nkd"].losses == DISTILLATION
    assert not rows["by-tat"].is_distilled
    assert [one.name for one in config.of_row(rows["by-kd"]).stage2.objectives] == ["kd"]
    assert config.of_row(rows["by-tat"]).target_layers == (2,)
    assert config.layers_of_rows == (2,)
    with pytest.raises(ConfigError, match="need instances that are LR tiles"):
        configured(
            tmp_path,
            '\n[[compare]]\nkey = "own"\nembedding = "hr"\nstage2 = { objectives = [{ name = "lrmil" }] }\n',
        )


def test_imported_features_have_no_layers_for_objectives(tmp_path: Path) -> None:
    def check(source: str) -> None:
        config = configured(
            tmp_path,
            "",
            *("--stage1.objectives", f'[{{ name = "tat", source = "{source}" }}]'),
            *("--encoder.weights", str(tmp_path / "f.safetensors")),
        )
        check_config(config)

    (tmp_path / "f.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"tat compares .* after blocks \[2\].*source = \"lr\""):
        check("children")
    check("lr")


# --- stage 1 ---------------------------------------------------------------------------------------------------------

TILES = [
    '{ name = "lrmil" }',
    *(
        f'{{ name = "{name}", source = "{source}" }}'
        for name in ("hints", "review_kd", "tat", "vitkd", "class_and_tokens")
        for source in ("children", "lr")
    ),
    '{ name = "lrmil" }, { name = "class_and_tokens", distance = "cosine" }',
]


class Killed(Exception):
    """As if the process had been."""


def killing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next fit end once it has written a checkpoint."""
    save = FitState.save

    def saving(self: FitState, files: Files) -> None:
        save(self, files)
        raise Killed

    monkeypatch.setattr(FitState, "save", saving)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", TILES)
def test_stage1_learns_by_each_objective_and_goes_on_from_a_checkpoint(
    copied: Callable[..., Path], cohort: Path, monkeypatch: pytest.MonkeyPatch, objectives: str
) -> None:
    folder = copied()
    layers = ["--stage1.layers", "[]"] if "lrmil" not in objectives else []
    config = load_config(
        write_config(folder, cohort),
        [
            *("--run.out_dir", str(folder / "run"), "--stage1.objectives", f"[{objectives}]", *layers),
            *("--stage1.epochs", "3", "--stage1.learning_rate", "2e-3", "--run.checkpoint_seconds", "0"),
        ],
    )
    found = prepare(config, skip_bad=False, reporter=QUIET)
    context, steps, teacher = found.context, found.steps, found.context.teacher_encoder()
    jobs = context.jobs(context.rows, context.hr_store(), hr=True)
    embed_slides(jobs, teacher, context.runtime, QUIET, "")
    plan = steps.stage1_plan(found.splits[0])
    step = steps.stage1(plan)

    train_encoder(context, plan, steps, teacher)
    whole = steps.student_file(plan).read_bytes()
    table = context.run_dir.folder(plan.folder).metrics("stage1")
    curve = table.read_bytes()
    weights = {}
    for one in tile_objectives(config.stage1, config.taps, TileShapes(24, 24, 4)).values():
        weights |= one.weights(None)  # else a warm-up would raise the loss
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [sum(weights[name] * float(row[f"train_{name}"]) for name in weights) for row in rows]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert all(float(row["val_loss"]) > 0 for row in rows)

    context.run_dir.markers.forget(step.name)
    steps.student_file(plan).unlink()
    with monkeypatch.context() as patched:
        killing(patched)
        with pytest.raises(Killed):
            train_encoder(context, plan, steps, teacher)
    assert not steps.student_file(plan).exists()
    epochs: list[int] = []
    finish = FitState.finish_epoch

    def finishing(self: FitState, *results: object) -> None:
        epochs.append(self.epoch)
        finish(self, *results)

    monkeypatch.setattr(FitState, "finish_epoch", finishing)
    train_encoder(context, plan, steps, teacher)
    assert epochs == [1, 2]
    assert steps.student_file(plan).read_bytes() == whole
    assert table.read_bytes() == curve


# --- stage 2 ---------------------------------------------------------------------------------------------------------

DIM, N_CLASSES = 6, 3


def bags(folder: Path, n: int, seed: int) -> Bags:
    """16 tiles, of which 4 to 7 say the class."""
    rng = np.random.default_rng(seed)
    store = EmbeddingStore(folder / f"bags-{seed}")
    rows = [SlideRow(f"s{index}", Path(), f"p{index}", "abc"[index % 3]) for index in range(n)]
    for index, row in enumerate(rows):
        instances = rng.normal(size=(16, DIM))
        instances[4:8, index % 3] += 3
        if not store.has(row.slide_id):
            store.write(row.slide_id, embedding=instances)
    return Bags(store, rows, ("a", "b", "c"))


def distillation(train: Bags, section: Stage2Section) -> SlideDistillation:
    """A teacher that is right, attends to the second row of tiles and has a bag embedding of 5 numbers."""
    places = np.argwhere(np.ones((4, 4), bool))
    children = np.argwhere(np.ones((8, 8), bool))
    inside = (children[:, 0] // 2 == 1).astype(np.float32) + 1e-3
    scores = torch.from_numpy(inside / inside.sum())
    rows = [SlideRow(bag.name, Path(), bag.name, "a") for bag in train]
    right = torch.eye(N_CLASSES)
    said = {bag.name: TeacherOutput(2 * right[bag.label], scores.log(), scores) for bag in train}
    with torch.inference_mode():  # as the teacher's head is asked
        embeddings = {bag.name: torch.cat([right[bag.label], -right[bag.label][:2]]) for bag in train}
    tiles = [SlideTiles(row, (4, 4), places, children) for row in rows]
    shares = (1 / 3,) * 3
    return SlideDistillation(
        section, tiles, said, ratio=2, device=CPU, embeddings=embeddings, class_shares=shares
    )


@pytest.mark.parametrize("objectives", ["", "lrmil", "kd", "hints", "nkd", "uskd", "kd hints uskd"])
def test_a_head_learns_by_each_objective_and_goes_on_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, objectives: str
) -> None:
    train, val = bags(tmp_path, 12, 0), bags(tmp_path, 6, 1)
    section = Stage2Section(objectives=tuple({"name": name} for name in objectives.split()))

    def fit(folder: str) -> dict[str, torch.Tensor]:
        (tmp_path / folder).mkdir(exist_ok=True)
        files = Files(
            tmp_path / folder / "m.csv",
            checkpoint=tmp_path / folder / "c.safetensors",
            key="k",
            checkpoint_seconds=0,
        )
        session = Session(Runtime("cpu").head_fabric, files, QUIET, "MIL")
        model, _ = fit_head(
            train,
            val,
            MILSection(hidden_dim=8, projection=(8,), epochs=6, min_epochs=6, learning_rate=5e-3, restarts=0),
            session,
            embed_dim=DIM,
            n_classes=N_CLASSES,
            seed=3,
            extra_loss=distillation(train, section),
        )
        return dict(model.state_dict())

    whole = fit("whole")
    with (tmp_path / "whole" / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    names = {name.removeprefix("train_") for name in rows[0]}
    for name in objectives.split() or ["lrmil"]:
        expected = {
            "lrmil": {"bag", "soft", "hard"},
            "kd": {"kd"},
            "hints": {"hints", "hints_soft", "hints_bounded"},
            "nkd": {"nkd_target", "nkd_non_target"},
            "uskd": {"uskd_target", "uskd_non_target", "uskd_weak"},
        }[name]
        assert expected <= names
    with monkeypatch.context() as patched:
        killing(patched)
        with pytest.raises(Killed):
            fit("killed")
    again = fit("killed")
    assert again.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(again[name], value), name
    assert (tmp_path / "killed" / "m.csv").read_bytes() == (tmp_path / "whole" / "m.csv").read_bytes()


def test_what_hints_train_is_fresh_at_each_start_and_in_the_optimizer(tmp_path: Path) -> None:
    train = bags(tmp_path, 6, 0)
    extra = distillation(train, Stage2Section(objectives=({"name": "hints"},)))
    head = MeanMIL(embed_dim=DIM, n_classes=N_CLASSES)
    first, second = (extra.begin(head, DIM, N_CLASSES) for _ in range(2))
    assert first is not None
    assert second is not None
    before = [value.clone() for value in first.parameters()]
    assert [tuple(value.shape) for value in before] == [(5, DIM), (5,)]
    assert not any(torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))


@pytest.mark.slow
def test_a_run_of_rows_that_swap_the_objective(copied: Callable[..., Path]) -> None:
    """Two rows of stage 2 and two of stage 1 beside the run's own, which stay as they were."""
    folder = copied()
    run = folder / "run"
    kept = {one: one.read_bytes() for one in sorted(run.rglob("mil/*.safetensors"))}
    kept[run / "fold0" / "student_encoder.safetensors"] = (
        run / "fold0" / "student_encoder.safetensors"
    ).read_bytes()
    path = folder / "config.toml"
    path.write_text(
        path.read_text()
        + """
[[compare]]
set = "decisive"

[[compare]]
key = "by-hints"
embedding = "lr"
stage2 = { objectives = [{ name = "hints" }] }

[[compare]]
key = "hr-uskd"
embedding = "hr"
stage2 = { objectives = [{ name = "uskd" }] }

[[compare]]
key = "by-tokens"
embedding = "student"
stage1 = { layers = [], objectives = [{ name = "class_and_tokens" }] }

[[compare]]
key = "by-tat"
embedding = "student"
stage1 = { layers = [], objectives = [{ name = "tat", layer = 0 }] }
stage2 = { objectives = [{ name = "nkd" }] }
"""
    )
    rerun(folder)
    results = json.loads((run / "results.json").read_text())
    assert {"by-hints", "hr-uskd", "by-tokens", "by-tat"} <= results.keys()
    assert results["by-tat"]["name"] == "f' on LR, stage 1 by tat, ce + nkd, stage1.layers = []"
    for place, content in kept.items():
        assert place.read_bytes() == content, place
    with (run / "fold0" / "metrics" / "by-hints.csv").open(newline="") as file:
        assert {"train_hints", "train_hints_soft", "train_hints_bounded"} <= next(csv.DictReader(file)).keys()

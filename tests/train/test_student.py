"""A student smaller than its teacher, one that starts elsewhere, and one f' for all folds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import absolute_rows, read_rows, rerun, weights, write_config, write_rows
from torch import nn

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.encoder import Encoder, EncoderSpec, child_means
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from training.config import load_config
from training.data.pairs import PairBatch
from training.data.table import SlideRow
from training.data.tile_index import TileGeometry
from training.loop import FitResult, Recipe, Session, Task, fit
from training.objectives.base import Scale, Scales, Taps, TeacherTiles, TileShapes
from training.objectives.lrmil import LRMILTile
from training.stages import distill_tiles
from training.stages.distill_tiles import Distiller, Stage1Section, student_layers

SMALL = EncoderSpec(
    architecture="vit_tiny_patch16_224",
    options={"patch_size": 8, "img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2},
)


def test_layers_are_matched_at_the_same_relative_depth() -> None:
    assert student_layers(None, (0, 1, 10), depth=12, teacher_depth=12) == (0, 1, 10)
    assert student_layers(None, (0, 11), depth=4, teacher_depth=12) == (0, 3)
    assert student_layers(None, (0, 6, 23), depth=12, teacher_depth=24) == (0, 3, 11)
    assert student_layers((1, 2), (0, 11), depth=4, teacher_depth=12) == (1, 2)
    with pytest.raises(ConfigError, match=r"would fall on \[0, 0, 3\].*student\.layers"):
        student_layers(None, (0, 1, 10), depth=4, teacher_depth=12)


def lrmil(*layers: int) -> Distiller:
    """A student of 16 dimensions with LRMIL's terms, of a teacher of 24."""
    objective = LRMILTile(Stage1Section(layers=layers), Taps(layers, layers), TileShapes(16, 24, 4))
    return Distiller(Encoder(SMALL), {"lrmil": objective})


def said(dim: int, *layers: int) -> TeacherTiles:
    """A teacher that says nothing but zeros of 3 tiles' children."""
    zeros, unit = torch.zeros(3, 16, dim), Scale(torch.zeros(dim), torch.ones(dim))
    scales = Scales(unit, dict.fromkeys(layers, unit), unit, unit, {})
    valid = torch.ones(3, 16, dtype=torch.bool)
    return TeacherTiles(zeros, dict.fromkeys(layers, zeros), zeros[..., 0], valid, None, scales)


def test_projections_bring_the_student_to_the_teachers_width_and_learn() -> None:
    torch.manual_seed(0)
    model = lrmil(0, 1)
    objective = model.objectives["lrmil"]
    tiles = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    terms = model(tiles, said(24, 0, 1))
    own = model.student(model.student.preprocess(tiles), (0, 1))
    by_hand = [
        torch.einsum("bkd,ed->bke", means, layer.weight) + layer.bias
        for means, layer in zip(
            child_means(own.layer_token_maps, 4), objective.layer_projections, strict=True
        )
    ]
    # Of a teacher that says 0 the error is what the student says, in the teacher's 24 dimensions.
    assert by_hand[0].shape == (3, 16, 24)
    torch.testing.assert_close(terms["layer"], torch.stack(by_hand).square().mean(dim=(0, 2, 3)))
    embedding = objective.projection(own.embedding)
    assert embedding.shape == (3, 24)
    torch.testing.assert_close(terms["attention"], embedding.square().mean(dim=1))
    torch.stack(list(terms.values())).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_student_as_wide_as_its_teacher_has_no_projection() -> None:
    objective = LRMILTile(Stage1Section(layers=(0,)), Taps((0,), (0,)), TileShapes(16, 16, 4))
    parts = (*objective.layer_projections, objective.last_projection, objective.projection)
    assert all(isinstance(part, nn.Identity) for part in parts)
    assert len(parts) == 3


def test_without_layers_the_final_token_is_all() -> None:
    model = lrmil()
    terms = model(torch.zeros(3, 32, 32, 3, dtype=torch.uint8), said(24))
    assert terms["layer"].tolist() == [0, 0, 0]
    assert bool((terms["last"] > 0).all())
    assert bool((terms["attention"] > 0).all())
    assert model.weights(0)["layer"] == 0


STUDENT = [
    *("--student.architecture", "vit_tiny_patch16_224"),
    *("--student.options", "{ patch_size = 8, img_size = 32, embed_dim = 16, depth = 2, num_heads = 2 }"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [STUDENT, [*STUDENT, "--stage1.layers", "[]"]], ids=["projected layers", "final token alone"]
)
def test_a_smaller_student_trains_and_serves(
    cohort: Path, tmp_path: Path, one_thread: None, options: list[str]
) -> None:
    write_config(tmp_path, cohort)
    path, _ = rerun(tmp_path, *options)
    bundle = load_bundle(path)
    assert (bundle.encoder.embed_dim, bundle.encoder.depth, bundle.info.mil.embed_dim) == (16, 2, 16)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"lrmil", "stage1_only", "lr_scratch", "teacher_hr"} <= results.keys()
    told = {
        row["slide_id"]: float(row["p_lesion"])
        for row in read_rows(tmp_path / "run" / "fold0" / "predictions" / "lrmil.csv")
    }
    for row in absolute_rows(cohort):
        if row["slide_id"] in told:
            with Slide(row["path"]) as slide:
                result = run_to_end(predict_slide(slide, bundle, device=torch.device("cpu")))
            assert result.class_probabilities[1] == pytest.approx(told[row["slide_id"]], abs=2e-3)


@pytest.mark.slow
def test_uniform_weights_share_one_student_over_folds_and_unlabelled_slides_can_be_all_it_sees(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    rows = [{key: value for key, value in row.items() if key != "fold"} for row in absolute_rows(cohort)]
    common = ["--data.n_folds", "3", "--evaluate.methods", '["lrmil"]', "--evaluate.shortcuts", "[]"]
    common += ["--stage2.gate", "off"]  # which trains LR from scratch to compare with
    made = {}
    for name, options in {
        "all": ["--stage1.slides", "all"],
        "one fold of them": ["--stage1.slides", "all", "--data.folds", "[1]"],
        "unlabelled": ["--stage1.slides", "unlabelled", "--data.folds", "[0]"],
        "per fold": ["--data.folds", "[0]"],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        write_config(folder, write_rows(folder / "slides.csv", rows))
        rerun(folder, *common, *options)
        made[name] = folder / "run"
    shared = {name: (run / "shared" / "student_encoder.safetensors") for name, run in made.items()}
    assert shared["all"].read_bytes() == shared["one fold of them"].read_bytes()
    assert shared["all"].read_bytes() != shared["unlabelled"].read_bytes()
    assert not shared["per fold"].exists()
    assert (made["per fold"] / "fold0" / "student_encoder.safetensors").exists()
    # Two unlabelled slides: one to learn from, one to choose the epoch by; no other slide's tiles were needed.
    labelled_changed = tmp_path / "relabelled"
    labelled_changed.mkdir()
    spare = [row["path"] for row in rows if row["label"]]
    for row in rows:
        if row["label"]:
            row["path"] = spare.pop()
    write_config(labelled_changed, write_rows(labelled_changed / "slides.csv", rows))
    rerun(labelled_changed, *common, "--stage1.slides", "unlabelled", "--data.folds", "[0]")
    other = labelled_changed / "run" / "shared" / "student_encoder.safetensors"
    assert other.read_bytes() == shared["unlabelled"].read_bytes()
    assert weights(made["per fold"].parent).keys() == {
        "mil/lrmil.safetensors",
        "mil/teacher_hr.safetensors",
        "student_encoder",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("scope shared weighting attention", "has seen the labels"),
        ("scope shared", "has read the pixels of another's test slides"),
        ("scope fold slides all", "the same for each fold"),
        ("slides all weighting attention", "known on the fold's training slides only"),
        ("slides unlabelled weighting attention", "known on the fold's training slides only"),
    ],
)
def test_an_encoder_that_serves_a_fold_from_which_it_has_seen_too_much_is_refused(
    cohort: Path, tmp_path: Path, options: str, message: str
) -> None:
    config = write_config(tmp_path, cohort)
    words = options.split()
    pairs = [part for at in range(0, len(words), 2) for part in (f"--stage1.{words[at]}", words[at + 1])]
    with pytest.raises(ConfigError, match=message):
        load_config(config, pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slides", "fixed"),
    [("train", False), ("unlabelled", False), ("all", False), ("train", True), ("all", True)],
)
def test_stage_1_reads_the_pixels_of_no_slide_but_those_that_it_may_learn_from(
    cohort: Path,
    tmp_path: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
    slides: str,
    fixed: bool,
) -> None:
    rows = absolute_rows(cohort)
    if not fixed:
        for row in rows:
            del row["fold"]
        one = next(
            row for row in rows if row["label"]
        )  # an unlabelled slide of a patient that some fold holds out
        rows.append(
            one
            | {"slide_id": "torn", "label": "", "path": str(shutil.copy(one["path"], tmp_path / "torn.tif"))}
        )
    write_config(tmp_path, write_rows(tmp_path / "slides.csv", rows))
    opened: list[str] = []
    read: dict[str, set[str]] = {}
    whole = TileGeometry.open

    def noting(geometry: TileGeometry, row: SlideRow) -> Slide:
        opened.append(row.slide_id)
        return whole(geometry, row)

    def looking(model: Distiller, task: Task[PairBatch], recipe: Recipe, session: Session) -> FitResult:
        monkeypatch.setattr(TileGeometry, "open", noting)
        for part, work in (("learned", lambda: list(task.batches(0))), ("validated", task.validate)):
            opened.clear()
            work()
            read[part] = set(opened)
        monkeypatch.setattr(TileGeometry, "open", whole)
        return fit(model, task, recipe, session)

    monkeypatch.setattr(distill_tiles, "fit", looking)
    _, said = rerun(
        tmp_path,
        *("--stage1.slides", slides, "--evaluate.methods", '["lrmil"]', "--evaluate.shortcuts", "[]"),
        *([] if fixed else ["--data.n_folds", "3", "--data.folds", "[0]"]),
        *("--stage1.pairs_per_epoch", "100000", "--stage1.val_pairs", "100000", "--stage1.epochs", "1"),
    )
    kept = json.loads((tmp_path / "run" / "splits.json").read_text())
    fold = kept["folds"][0]
    labelled = {*fold["train"], *fold["val"], *fold["test"]}
    held_out = {*fold["val"], *fold["test"]}
    everything = {row["slide_id"] for row in rows}
    if slides == "train":
        assert read == {"learned": {*fold["train"], *fold["extra"]}, "validated": set(fold["val"])}
    elif slides == "unlabelled":
        assert not (read["learned"] | read["validated"]) & labelled
        assert read["learned"] | read["validated"] == everything - labelled - {"torn"}
    else:
        assert read["learned"] | read["validated"] == everything
        assert read["learned"] & held_out
    for part in read.values():
        assert (slides == "all") or not part & set(fold["test"])
    # What has read them says so wherever a result stands; what hasn't, nowhere.
    card = (tmp_path / "run" / "fold0" / "bundle" / "README.md").read_text()
    report = (tmp_path / "run" / "report.html").read_text()
    told = [" ".join(text.split()).lower().count("transductive") for text in (said, card, report)]
    assert all(told) if slides == "all" else not any(told)
    assert ("LRMIL*" in said) == ("LRMIL, transductive" in report) == (slides == "all")

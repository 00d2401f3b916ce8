"""Teacher and student with heads of their own: what a config says, what is trained, and what is left out and said."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import rerun, write_config
from safetensors.torch import load_file as load_tensors

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.mil import ABMIL, MILOutput
from napari_lrmil.model.mil.mean import MeanMIL, MeanSpec
from training.config import RunConfig, load_config
from training.data.bags import SlideBag
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles
from training.hashing import content_hash
from training.methods import TEACHER
from training.stages.distill_slides import SlideDistillation, Stage2Section, TeacherOutput, left_out_note
from training.stages.heads import Lacks, MILSection, lacks

SMALL = '[run]\nout_dir = "run"\n[data]\nslides = "slides.csv"\n'


def config_of(folder: Path, text: str, *words: str) -> RunConfig:
    path = folder / "config.toml"
    path.write_text(SMALL + text)
    return load_config(path, words)


# --- the config


def test_a_section_of_before_has_the_hash_of_before() -> None:
    """What a run keeps is found again by this text."""
    section = MILSection()
    assert section.model_dump_json() == (
        '{"hidden_dim":128,"gated":true,"projection":[128],"dropout":0.1,"epochs":50,"min_epochs":10,"patience":10,'
        '"learning_rate":0.0002,"warmup_epochs":2.0,"weight_decay":0.001,"accumulate":1,"clip":5.0,"balance":"none",'
        '"fitted_auc":0.9,"restarts":2}'
    )
    assert MILSection.model_validate_json(section.model_dump_json()) == section
    other = MILSection.model_validate({"name": "mean", "head": {"dropout": 0.5}, "epochs": 3})
    assert MILSection.model_validate_json(other.model_dump_json(exclude_unset=True)) == other
    assert content_hash(other) != content_hash(MILSection(epochs=3))


def test_teacher_and_student_have_what_mil_says_and_then_their_own(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        "[mil]\nhidden_dim = 7\nepochs = 3\n[mil.teacher]\nepochs = 9\n"
        '[mil.student]\nname = "mean"\nhead = { dropout = 0.25 }\n',
    )
    teacher, student = config.teacher_mil, config.student_mil
    assert (teacher.name, teacher.hidden_dim, teacher.epochs) == ("abmil", 7, 9)
    assert (student.name, student.epochs) == ("mean", 3)
    assert student.spec(5, 2) == MeanSpec(embed_dim=5, n_classes=2, dropout=0.25)
    alike = config_of(tmp_path, "[mil]\nhidden_dim = 7\n")
    assert alike.teacher_mil == alike.student_mil == alike.mil
    spoken = config_of(tmp_path, "", "--mil.name", "mean", "--mil.head.dropout", "0.5")
    assert spoken.student_mil.spec(5, 2) == MeanSpec(embed_dim=5, n_classes=2, dropout=0.5)


def test_a_row_names_a_head_and_its_teacher_stays(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        "[mil]\nhidden_dim = 7\n"
        '[[compare]]\nset = "decisive"\n'
        '[[compare]]\nkey = "a"\nembedding = "lr"\nhead = "mean"\nmil = { epochs = 2, head = { dropout = 0.5 } }\n'
        '[[compare]]\nkey = "b"\nembedding = "lr"\nmil = { hidden_dim = 3 }\n'
        '[[compare]]\nkey = "c"\nembedding = "student"\nhead = "abmil"\nlosses = ["ce", "bag"]\n',
    )
    rows = {row.key: config.of_row(row) for row in config.rows}
    assert rows["a"].student_mil.spec(5, 2) == MeanSpec(embed_dim=5, n_classes=2, dropout=0.5)
    assert rows["a"].student_mil.epochs == 2
    assert (rows["b"].student_mil.name, rows["b"].student_mil.hidden_dim) == ("abmil", 3)
    for one in rows.values():
        assert one.teacher_mil.model_dump_json() == config.mil.model_dump_json()
    # A head that is named is the one that there is anyway: what was trained for it is found again.
    assert rows["c"].student_mil.model_dump_json() == config.mil.model_dump_json()
    assert [row.name for row in config.rows if row.key == "a"] == [
        "f on LR, mean, mil.epochs = 2, mil.head = {'dropout': 0.5}"
    ]


@pytest.mark.parametrize(("text", "message"), [
    ('[mil]\nname = "meen"\n', r"mil\.name: unknown head 'meen'; did you mean 'mean'\?"),
    ('[mil]\nname = "mean"\nhidden_dim = 3\n', r"mil\.hidden_dim is a key of abmil; mean has, in \[mil\.head\]: dropout"),
    ('[mil]\nname = "mean"\n[mil.head]\ndropuot = 0.1\n',
     r"unknown key 'mil\.head\.dropuot'; did you mean 'mil\.head\.dropout'\?"),
    ('[mil]\nname = "mean"\n[mil.head]\ndropout = 2\n', r"mil\.head: dropout: Input should be less than 1"),
    ('[mil]\nname = "mean"\n[mil.head]\nembed_dim = 2\n', r"unknown key 'mil\.head\.embed_dim'"),
    ("[mil.head]\ngated = true\n", r"mil\.head: the keys of abmil stand in \[mil\] itself: mil\.gated"),
    ("[mil.teacher]\nhiden_dim = 3\n", r"mil\.teacher: unknown key 'hiden_dim'; did you mean 'hidden_dim'\?"),
    ('[mil.student]\nname = "mix"\n', r"mil\.student: name: unknown head 'mix'; did you mean 'max'\?"),
    ("[mil.teacher.student]\nepochs = 3\n", r"mil\.teacher: leave out 'student'"),
    ('[[compare]]\nkey = "a"\nembedding = "lr"\nhead = "abmill"\n', r"unknown head 'abmill'; did you mean 'abmil'\?"),
    ('[[compare]]\nkey = "a"\nembedding = "lr"\nhead = "mean"\nmil = { name = "max" }\n', "head and mil.name say the same"),
    ('[[compare]]\nkey = "a"\nembedding = "lr"\nhead = "mean"\nmil = { gated = true }\n',
     r"compare row 'a', mil: .*mil\.gated is a key of abmil"),
    ('[stage1]\nweighting = "attention"\nscope = "fold"\nslides = "train"\n[mil.teacher]\nname = "mean"\n',
     r"needs a teacher whose head has attention; 'mean' has none"),
])  # fmt: skip
def test_what_a_head_is_not_is_refused_with_the_nearest_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, text)


def test_a_config_that_was_kept_when_there_was_one_head_is_read(tmp_path: Path) -> None:
    """It said of each row that its head is abmil, of sets too."""
    config = config_of(tmp_path, '[[compare]]\nset = "decisive"\n[[compare]]\nkey = "lr_enlarged_2"\n')
    kept = json.loads(config.model_dump_json())
    for row in kept["compare"]:
        row["head"] = "abmil"
    again = RunConfig.model_validate(kept)
    assert again.rows == config.rows


# --- terms without meaning


def test_what_heads_lack_leaves_out_terms_and_is_said() -> None:
    abmil, mean = MILSection(), MILSection(name="mean")
    assert lacks(abmil) == Lacks(attention=False, instances=False)
    assert lacks(mean) == Lacks(attention=True, instances=True)
    section = Stage2Section()
    assert left_out_note(section, abmil, abmil) == ""
    assert left_out_note(section, mean, abmil) == (
        "stage 2 without l_soft, l_hard: the teacher's head (mean) has no attention"
    )
    assert left_out_note(section, abmil, mean) == (
        "stage 2 without l_soft, l_hard: its own head (mean) has no attention; its own head (mean) doesn't classify tiles "
        "as deciding or not"
    )
    assert left_out_note(Stage2Section(l_soft=0, l_hard=0), abmil, mean) == ""


def test_looking_at_what_a_head_lacks_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    lacks(MILSection(name="max", head={"dropout": 0.125}))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("teacher", "student", "terms"), [
    (True, True, {"bag", "soft", "hard"}),
    (True, False, {"bag"}),
    (False, True, {"bag"}),
    (False, False, {"bag"}),
])  # fmt: skip
def test_the_terms_are_those_that_both_heads_have(teacher: bool, student: bool, terms: set[str]) -> None:
    n = 6
    places = torch.tensor([[row, col] for row in range(2) for col in range(3)]).numpy()
    tiles = SlideTiles(SlideRow("s", Path(), "p", "a"), (2, 3), places, places)
    scores = torch.softmax(torch.arange(float(n)), 0)
    said = TeacherOutput(torch.zeros(2), *((scores.log(), scores) if teacher else (None, None)))
    distil = SlideDistillation(Stage2Section(), [tiles], {"s": said}, ratio=1, device=torch.device("cpu"))
    output = MILOutput(
        torch.randn(2),
        attention_logits=torch.randn(1, n) if student else None,
        instance_logits=torch.randn(n, 2) if student else None,
    )
    found = distil(SlideBag("s", torch.randn(n, 4), 1), output)
    assert set(found) == terms
    assert all(bool(torch.isfinite(value)) for value in found.values())


def test_the_attention_of_the_slides_class_is_taught() -> None:
    """Of a head with one attention a class, on either side."""
    n = 4
    places = torch.tensor([[0, col] for col in range(n)]).numpy()
    tiles = SlideTiles(SlideRow("s", Path(), "p", "b"), (1, n), places, places)
    by_class = MILOutput(torch.zeros(3), attention_logits=torch.randn(3, n))
    said = TeacherOutput.of(by_class, 1)
    assert said.attention_scores is not None
    assert torch.equal(said.attention_scores, torch.softmax(by_class.attention_logits[1], 0))
    section = Stage2Section(l_bag=0, l_hard=0, l_soft=1)
    distil = SlideDistillation(section, [tiles], {"s": said}, ratio=1, device=torch.device("cpu"))
    found = distil(SlideBag("s", torch.randn(n, 4), 1), by_class)
    assert float(found["soft"]) == pytest.approx(0, abs=1e-6)
    assert float(distil(SlideBag("s", torch.randn(n, 4), 2), by_class)["soft"]) > 1e-3


# --- a whole run


@pytest.mark.slow
def test_a_run_with_other_heads_says_what_it_left_out_and_exports_the_students(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    write_config(tmp_path, cohort)
    with (tmp_path / "config.toml").open("a") as file:
        file.write(
            '[mil.student]\nname = "mean"\nhead = { dropout = 0.1 }\n'
            '[[compare]]\nset = "decisive"\n'
            '[[compare]]\nkey = "attended"\nembedding = "student"\nhead = "abmil"\nlosses = ["ce", "bag", "soft", "hard"]\n'
            '[[compare]]\nkey = "largest"\nembedding = "lr"\nhead = "max"\n'
        )
    bundle, printed = rerun(tmp_path, "--stage2.gate", "off")
    model = load_bundle(bundle)
    assert type(model.mil) is MeanMIL
    assert model.info.format_version == 3
    fold = tmp_path / "run" / "fold0"
    results: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
    files = {path.stem: set(load_tensors(path)) for path in (fold / "mil").glob("*.safetensors")}
    names = {key: files[key] for key in results if key in files}
    teacher = files[TEACHER.key]
    assert teacher == names["attended"] == set(ABMIL(embed_dim=3, n_classes=2, projection=(3,)).state_dict())
    for key in ("lrmil", "lr_scratch", "stage2_only", "largest"):
        assert names[key] == {"norm.weight", "norm.bias", "classifier.weight", "classifier.bias"}
    note = "stage 2 without l_soft, l_hard: its own head (mean) has no attention"
    assert f"° LRMIL: {note}" in printed
    assert f"° stage 2 only: {note}" in printed
    assert f"Note: LRMIL: {note}" in printed
    assert "° f' on LR" not in printed
    # The same words in the results and in the report.
    note += "; its own head (mean) doesn't classify tiles as deciding or not"
    assert {key: row["left_out"] for key, row in results.items() if "left_out" in row} == {
        "lrmil": note,
        "stage2_only": note,
    }
    report = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert f"<strong>°</strong> LRMIL: {note}." in report
    assert f"<strong>°</strong> stage 2 only: {note}." in report
    assert report.count("<strong>°</strong>") == 2
    terms = (fold / "metrics" / "lrmil.csv").read_text().partition("\n")[0].split(",")
    assert "train_bag" in terms
    assert not {"train_soft", "train_hard"} & set(terms)

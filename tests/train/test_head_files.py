"""Files that a head starts from: texts of FOCUS and published ABMIL heads, named in the config of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from run_helpers import rerun, write_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil.abmil import ABMIL, ABMILSpec
from napari_lrmil.model.mil.focus import FOCUS, FOCUSSpec
from training.config import load_config
from training.stages.heads import MILSection, lacks

CLASSES = ("benign", "lesion")
MINIMAL = '[run]\nout_dir = "run"\n[data]\nslides = "slides.csv"\n'


def texts_of(tmp_path: Path, **texts: Tensor) -> Path:
    """What a text tower would say of two texts of a class and one of another: a small random one here."""
    torch.manual_seed(0)
    tower = torch.nn.Sequential(torch.nn.EmbeddingBag(50, 12), torch.nn.Linear(12, 16))
    with torch.no_grad():
        made = {name: tower(torch.randint(50, (n, 5))) for name, n in (("lesion", 2), ("benign", 1))}
    save_file(made | texts, tmp_path / "texts.safetensors")
    return tmp_path / "texts.safetensors"


def published(path: Path, embed_dim: int, seed: int = 0) -> Path:
    """A gated head by MIL-Lab's names, as FEATHER's, without a classifier as these are."""
    torch.manual_seed(seed)
    shapes = {
        "patch_embed.0": (10, embed_dim),
        "global_attn.attention_a.0": (4, 10),
        "global_attn.attention_b.0": (4, 10),
        "global_attn.attention_c": (1, 4),
    }
    weights = {f"model.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights | {f"model.{name}.bias": torch.randn(n) for name, (n, _) in shapes.items()}, path)
    return path


LIKE_PUBLISHED = {"projection": (10,), "hidden_dim": 4, "normalise": False}


class TestTexts:
    def test_focus_reads_the_texts_of_each_class_in_the_order_of_the_classes(self, tmp_path: Path) -> None:
        path = texts_of(tmp_path)
        section = MILSection(name="focus", texts=path, head={"heads": 2})
        assert section.spec(8, 2) == FOCUSSpec(embed_dim=8, n_classes=2, n_texts=3, text_dim=16, heads=2)
        model = section.build(8, CLASSES).eval()
        assert isinstance(model, FOCUS)
        texts = load_file(path)
        assert torch.equal(model.text, torch.cat([texts["benign"], texts["lesion"]]))
        assert torch.isfinite(model(torch.randn(9, 8)).bag_logits).all()

    def test_without_texts_a_config_loads_and_training_says_what_it_needs(self, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text(MINIMAL + '[mil]\nname = "focus"\n')
        section = load_config(tmp_path / "c.toml").mil
        assert not lacks(section).attention
        with pytest.raises(ConfigError, match=r"reads texts of its classes.*mil.texts"):
            section.build(8, CLASSES)

    @pytest.mark.parametrize(
        ("classes", "said"),
        [
            (("benign", "tumour"), "has texts of benign, lesion; the classes are benign, tumour"),
            (
                ("benign", "lesion", "other"),
                "has texts of benign, lesion; the classes are benign, lesion, other",
            ),
        ],
    )
    def test_texts_of_other_classes_are_refused(
        self, tmp_path: Path, classes: tuple[str, ...], said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            MILSection(name="focus", texts=texts_of(tmp_path)).build(8, classes)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"lesion": torch.ones(2, 24)}, "all texts must have one width"),
            ({"lesion": torch.ones(2, 3, 16)}, "'lesion' isn't a matrix"),
            ({"lesion": torch.ones(2, 16, dtype=torch.int64)}, "'lesion' isn't a matrix"),
            ({"lesion": torch.zeros(2, 16)}, "zeros only"),
            ({"lesion": torch.full((2, 16), torch.nan)}, "aren't finite"),
        ],
    )
    def test_what_is_no_such_file_is_refused_when_the_config_is_read(
        self, tmp_path: Path, wrong: dict[str, Tensor], said: str
    ) -> None:
        path = texts_of(tmp_path, **wrong)
        (tmp_path / "c.toml").write_text(MINIMAL)
        with pytest.raises(ConfigError, match=f"mil.texts: .*{said}"):
            load_config(tmp_path / "c.toml", ["--mil.name", "focus", "--mil.texts", str(path)])

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--mil.texts", "absent.safetensors"], "absent.safetensors can't be read"),
            (["--mil.texts", "TEXTS", "--mil.head.n_texts", "4"], "mil.head.n_texts is 4, that of .* 3"),
            (
                ["--mil.texts", "TEXTS", "--mil.name", "mean"],
                "mil.texts are of head 'focus'; 'mean' reads none",
            ),
            (["--mil.name", "abmil", "--mil.init_classifier", "true"], "mil.init_classifier needs mil.init"),
            (["--mil.init", "x"], "mil.init is a key of abmil"),
        ],
    )
    def test_keys_that_do_not_go_together_are_refused(
        self, tmp_path: Path, words: list[str], said: str
    ) -> None:
        path = texts_of(tmp_path)
        (tmp_path / "c.toml").write_text(MINIMAL)
        given = [str(path) if word == "TEXTS" else word for word in words]
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / "c.toml", ["--mil.name", "focus", *given])


class TestInit:
    def test_the_head_has_the_published_weights(self, tmp_path: Path) -> None:
        path = published(tmp_path / "feather.safetensors", 8)
        model = MILSection(init=path, **LIKE_PUBLISHED).build(8, CLASSES)
        assert isinstance(model, ABMIL)
        given = load_file(path)
        assert torch.equal(model.value.weight, given["model.global_attn.attention_a.0.weight"])
        assert torch.equal(model.state_dict()["projection.0.0.weight"], given["model.patch_embed.0.weight"])
        assert model.classifier.weight.shape == (2, 10)  # fresh: there was none

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"hidden_dim": 5}, "value.weight is 4 x 10, here 5 x 10.*hidden_dim 4"),
            ({"normalise": True}, "norm.weight isn't in it.*normalise false"),
            ({"init_classifier": True}, "classifier.weight isn't in it"),
        ],
    )
    def test_what_does_not_fit_is_refused_in_words(
        self, tmp_path: Path, change: dict[str, object], said: str
    ) -> None:
        path = published(tmp_path / "feather.safetensors", 8)
        section = MILSection.model_validate(LIKE_PUBLISHED | {"init": path} | change)
        with pytest.raises(ConfigError, match=f"mil.init: .*{said}"):
            section.build(8, CLASSES)

    def test_a_missing_file_and_another_kind_of_file_are_refused(self, tmp_path: Path) -> None:
        section = MILSection(init=tmp_path / "no.safetensors")
        with pytest.raises(ConfigError, match=r"mil.init: .* can't be read"):
            section.build(8, CLASSES)
        with pytest.raises(ConfigError, match=r"mil.init: .* can't be read"):
            _ = section.file_hashes
        (tmp_path / "no.safetensors").write_text("no")
        with pytest.raises(ConfigError, match=r"mil.init: .* isn't a safetensors file"):
            section.build(8, CLASSES)


def test_the_hash_of_the_file_is_part_of_the_head_and_its_card_names_it(tmp_path: Path) -> None:
    path = published(tmp_path / "feather.safetensors", 8)
    section = MILSection(init=path, files_licence="CC-BY-NC-ND-4.0", **LIKE_PUBLISHED)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert section.file_hashes == {"mil.init": sha256}
    assert sha256 in section.files_note
    assert "licence: CC-BY-NC-ND-4.0" in section.files_note
    assert MILSection().file_hashes == {}
    assert MILSection().files_note == ""
    published(path, 8, seed=1)
    assert section.file_hashes["mil.init"] not in ("", sha256)


def test_a_run_that_goes_on_with_another_file_trains_its_heads_again(tmp_path: Path, cohort: Path) -> None:
    write_config(tmp_path, cohort)
    spec = ABMILSpec(embed_dim=1, n_classes=2)
    assert spec.normalise
    path = tmp_path / "feather.safetensors"
    words = [
        *("--mil.init", str(path), "--mil.normalise", "false", "--mil.projection", "[10]"),
        *("--mil.hidden_dim", "4", "--mil.files_licence", "CC-BY-NC-ND-4.0", "--mil.epochs", "1"),
        *("--mil.learning_rate", "1e-9", "--mil.restarts", "0"),
    ]
    embed_dim = 24
    published(path, embed_dim)
    bundle, _ = rerun(tmp_path, *words)
    heads = sorted((tmp_path / "run").rglob("mil/*.safetensors"))
    assert heads
    for head in heads:  # at such a rate a head stays where it started
        value = load_file(head)["value.weight"]
        given = load_file(path)["model.global_attn.attention_a.0.weight"]
        torch.testing.assert_close(value.float(), given, rtol=2e-3, atol=2e-3)
    said = json.loads((bundle / "bundle.json").read_text())["provenance"]["training_data"]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for text in (said, (bundle / "README.md").read_text()):
        assert f"SHA-256 {sha256}, licence: CC-BY-NC-ND-4.0" in text
    times = {head: head.stat().st_mtime_ns for head in heads}
    rerun(tmp_path, *words)
    assert times == {head: head.stat().st_mtime_ns for head in heads}  # nothing to do
    published(path, embed_dim, seed=1)
    rerun(tmp_path, *words)
    for head in heads:
        given = load_file(path)["model.global_attn.attention_a.0.weight"]
        torch.testing.assert_close(load_file(head)["value.weight"].float(), given, rtol=2e-3, atol=2e-3)

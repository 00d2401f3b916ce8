"""Configs: what is wrong is named, and what is right is what runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from napari_lrmil.errors import ConfigError
from training.config import RunConfig, load_config
from training.hashing import content_hash

ROOT = Path(__file__).resolve().parents[2]

MINIMAL = """
[run]
out_dir = "out"
[data]
slides = "slides.csv"
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL)
    return path


def with_text(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_methods(config_file: Path) -> None:
    config = load_config(config_file)
    assert (config.tiles.mpp_lr, config.tiles.ratio, config.tiles.tile_px) == (2.0, 4, 256)
    assert config.stage1.layers == ()  # early layers took away from what a pretrained f' learned
    assert (config.stage1.standardise, config.stage1.turned) == (True, False)
    assert (config.stage1.lambda_layer, config.stage1.lambda_last, config.stage1.lambda_attn) == (1, 1, 1)
    assert config.stage1.weighting == "uniform"
    assert config.stage2.k == 4
    assert config.data.n_folds == 5
    assert config.mil.hidden_dim == 128
    assert {row.key for row in config.rows if not row.is_shortcut} == {
        "teacher_hr",
        "lr_scratch",
        "stage1_only",
        "stage2_only",
        "lrmil",
    }


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_config_of_the_project_loads(path: Path) -> None:
    config = load_config(path)
    assert config.stage1.lambda_attn > 0


@pytest.mark.parametrize(("text", "message"), [
    (MINIMAL + "[stage1]\nlamda_layer = 2\n", r"unknown key 'stage1\.lamda_layer'; did you mean 'stage1\.lambda_layer'\?"),
    (MINIMAL + "[stage_1]\nepochs = 2\n", r"unknown key 'stage_1'; did you mean 'stage1'\?"),
    (MINIMAL + "[mil]\nlr = 2\n", r"unknown key 'mil\.lr'; did you mean 'mil\."),
    (MINIMAL.replace("slides =", "slide ="), r"Field required.*unknown key 'data\.slide'; did you mean 'data\.slides'"),
    ("[run]\nout_dir = 'x'\n", r"data: Field required"),
    (MINIMAL + "[tiles]\nratio = 1\n", r"tiles\.ratio: Input should be greater than or equal to 2"),
    (MINIMAL + "[tiles]\nmpp_lr = 'two'\n", r"tiles\.mpp_lr: Input should be a valid number"),
    (MINIMAL + "[stage1]\nlayers = [1, 0]\n", r"stage1\.layers must ascend"),
    (MINIMAL + "[stage1]\nlayers = [-1, 0]\n", r"stage1\.layers must ascend and not be negative"),
    (MINIMAL + "[stage1]\nweighting = 'logits'\n", r"stage1\.weighting: .*'uniform' or 'attention'"),
    (MINIMAL + "[evaluate]\nmethods = ['abmil']\n", r"evaluate\.methods\.0"),
    (MINIMAL + "[mil]\nepochs = 1.5\n", r"mil\.epochs"),
    (MINIMAL.replace("[run]", "[run]\nseed = -1"), r"run\.seed"),
    (MINIMAL + "mil = 3\n", r"data\.mil|unknown key"),
    ("run = 3\n", r"run: Input should be"),
    ("[run\n", r"is not valid TOML"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(with_text(tmp_path, text))


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    text = MINIMAL + "[tiles]\nratio = 0\n[mil]\nepoch = 3\n[stage2]\nk = 0\n"
    with pytest.raises(ConfigError) as caught:
        load_config(with_text(tmp_path, text))
    for part in ("tiles.ratio", "'mil.epoch'", "'mil.epochs'", "stage2.k"):
        assert part in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such config: .*nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "binary.toml")


def test_overrides(config_file: Path) -> None:
    words = ["--run.seed", "7", "--tiles.mpp_lr=1.0", "--stage1.layers", "[0, 3]", "--mil.gated", "false"]
    words += ["--run.device=cpu", "--encoder.options.image_px", "64", "--export.name", "A name with = in it"]
    config = load_config(config_file, words)
    assert (config.run.seed, config.tiles.mpp_lr, config.stage1.layers) == (7, 1.0, (0, 3))
    assert not config.mil.gated
    assert config.run.device == "cpu"
    assert config.encoder.options == {"image_px": 64}
    assert config.export.name == "A name with = in it"


@pytest.mark.parametrize(("words", "message"), [
    (["--run.sed", "1"], r"unknown key 'run\.sed'; did you mean 'run\.seed'"),
    (["--run.seed"], r"--run\.seed needs a value"),
    (["seed", "1"], r"expected --section\.key, got 'seed'"),
    (["--run.seed", "x"], r"run\.seed: Input should be a valid integer"),
    (["--run.seed.deep", "1"], r"run\.seed"),
    (["--tiles.ratio", "4", "--run.out_dir.x", "1"], r"'out_dir' is not a section"),
    (["--nothing", "1"], r"unknown key 'nothing'"),
])  # fmt: skip
def test_wrong_overrides_are_named(config_file: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, words)


def test_frozen(config_file: Path) -> None:
    config = load_config(config_file)
    with pytest.raises(ValidationError):
        config.run.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.run = config.run  # type: ignore[misc]


def test_a_resolved_config_is_the_same_config(config_file: Path) -> None:
    config = load_config(config_file, ["--run.seed", "3"])
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_every_field_says_what_it_is() -> None:
    for section in RunConfig.model_fields.values():
        assert section.annotation is not None
        assert section.annotation.__doc__


def test_hashes_tell_values_apart(config_file: Path) -> None:
    config = load_config(config_file)
    assert content_hash(config) == content_hash(load_config(config_file))
    assert content_hash(config) != content_hash(load_config(config_file, ["--run.seed", "1"]))
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash(None) != content_hash("None")


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000], ids=["deep", "long"])
def test_toml_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000], ids=["deep", "long"])
def test_a_value_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, value: str) -> None:
    (tmp_path / "run.toml").write_text("[run]\nout_dir = 'x'\n[data]\nslides = 'y'\n")
    with pytest.raises(ConfigError, match=r"run\.toml: run\.seed"):
        load_config(tmp_path / "run.toml", ["--run.seed", value])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage1.learning_rate=inf"], "finite number"),
        (["--export.name", "a\udcffb"], "characters that no file takes"),
        (["--evaluate.shortcuts", repr([0] * 100_000)], "and 99,990 more"),
    ],
)
def test_values_that_a_run_could_not_keep_are_refused_in_a_sentence(
    tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "config.toml").write_text('[data]\nslides = "slides.csv"\n[run]\nout_dir = "run"\n')
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "config.toml", words)
    assert len(str(caught.value)) < 5_000

"""The section [encoder]: a preset gives what isn't set, and what is set wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import IMAGENET_MEAN, PRESETS, Encoder, EncoderSpec
from training.config import RunConfig, load_config
from training.encoders import EncoderSection, encoder_depth, encoder_width

MINIMAL = '[run]\nout_dir = "out"\n[data]\nslides = "slides.csv"\n[encoder]\n'


def loaded(tmp_path: Path, text: str, *overrides: str) -> EncoderSection:
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL + text)
    return load_config(path, overrides).encoder


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_all_that_an_encoder_needs(tmp_path: Path, name: str) -> None:
    section = loaded(tmp_path, f'preset = "{name}"')
    assert section.spec == PRESETS[name].spec
    assert section.weights == PRESETS[name].source
    assert section.preset == name


def test_a_preset_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    section = loaded(tmp_path, "batch_size = 4", "--encoder.preset", "H-optimus-0")
    assert (section.preset, section.batch_size) == ("h-optimus-0", 4)
    assert section.architecture == "vit_giant_patch14_reg4_dinov2"


def test_what_is_set_wins(tmp_path: Path) -> None:
    text = (
        'preset = "virchow2"\noptions = { img_size = 392 }\nweights = "w.safetensors"\nmean = [0.1, 0.2, 0.3]'
    )
    section = loaded(tmp_path, text)
    preset = PRESETS["virchow2"]
    assert section.weights == "w.safetensors"
    assert (section.spec.mean, section.spec.std) == ((0.1, 0.2, 0.3), preset.std)
    assert section.spec.options == {**preset.options, "img_size": 392}
    other = loaded(tmp_path, 'preset = "virchow2"\narchitecture = "vit_tiny_patch16_224"')
    assert other.spec.options == {}  # they are none of another architecture's


def test_random_weights_of_a_presets_architecture(tmp_path: Path) -> None:
    assert loaded(tmp_path, 'preset = "uni"\nweights = ""').weights is None


def test_without_preset_all_is_as_before(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").spec == EncoderSpec()
    section = loaded(tmp_path, 'architecture = "vit_tiny_patch16_224"\nweights = "a/b.safetensors"')
    assert section.spec == EncoderSpec(architecture="vit_tiny_patch16_224", mean=IMAGENET_MEAN)
    assert section.weights == "a/b.safetensors"
    assert EncoderSection(weights=Path("a") / "b.safetensors").weights == str(Path("a") / "b.safetensors")


def test_the_resolved_config_of_a_run_says_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    for text in (
        'preset = "conch"',
        'preset = "conch"\nweights = ""',
        'preset = "h0-mini"\nweights = "w.bin"',
    ):
        path.write_text(MINIMAL + text)
        config = load_config(path)
        assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('preset = "uni2"', r"encoder: no preset 'uni2'; there are uni, uni2-h"),
        ("preset = 3", r"encoder\.preset: Input should be a valid string"),
        ("weights = 3", r"encoder\.weights: Input should be a valid string"),
        ('preset = "uni"\noptions = 3', r"encoder\.options: Input should be a valid dictionary"),
        ('preset = "uni"\nweight = "w"', r"unknown key 'encoder\.weight'; did you mean 'encoder\.weights'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, text)


def test_an_encoder_is_built_once_to_know_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run asks its config for the depth with each store and each key; of a large encoder that takes seconds each time."""
    built: list[EncoderSpec] = []

    def building(spec: EncoderSpec) -> Encoder:
        built.append(spec)
        return Encoder(spec)

    monkeypatch.setattr("training.encoders.Encoder", building)
    options = {"patch_size": 8, "img_size": 24, "embed_dim": 20, "depth": 3, "num_heads": 2}
    spec, deeper = (
        EncoderSpec(architecture="vit_tiny_patch16_224", options=options | {"depth": depth})
        for depth in (3, 4)
    )
    for _ in range(3):
        assert (encoder_depth(spec), encoder_width(spec)) == (3, 20)
        assert (encoder_depth(deeper), encoder_width(deeper)) == (4, 20)
    assert built == [spec, deeper]

"""``student.token_px``: f' reads the same LR tile with smaller tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_helpers import absolute_rows, read_rows, rerun, write_config
from torch import Tensor
from torch.nn import functional as F

from napari_lrmil.errors import ConfigError, EncoderError
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.encoder import CONVSTEM, Encoder, EncoderSpec, child_means, load_weights
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from training.config import load_config
from training.encoders import StudentSection, new_student
from training.files import save_tensors

CPU = torch.device("cpu")
NATIVE = EncoderSpec(
    architecture="vit_tiny_patch16_224",
    options={"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2},
)
"""Tokens of 16 px."""


def teacher(spec: EncoderSpec = NATIVE) -> Encoder:
    torch.manual_seed(0)
    return Encoder(spec).eval()


def student(of: Encoder, **section: object) -> Encoder:
    return new_student(StudentSection.model_validate(section), of, seed=1, device=CPU).eval()


def smooth_pixels(edge: int) -> Tensor:
    """(2, 3, edge, edge), the same picture at every edge."""
    torch.manual_seed(3)
    coarse = torch.randn(2, 3, 3, 3)
    return F.interpolate(coarse, (edge, edge), mode="bicubic", align_corners=False)


def patches(encoder: Encoder, pixels: Tensor) -> Tensor:
    return F.conv2d(pixels, encoder.vit.patch_embed.proj.weight, stride=encoder.token_px)


def test_at_the_native_size_it_is_the_plain_student() -> None:
    f = teacher()
    pixels = torch.randn(2, 3, 64, 64)
    same, plain = student(f, token_px=16), student(f)
    for one, other in zip(same(pixels, (0, 1)), plain(pixels, (0, 1)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("native", "token_px"), [(16, 8), (14, 7), (16, 4)])
def test_a_plain_colour_gives_the_same_tokens_and_a_smooth_picture_nearly(native: int, token_px: int) -> None:
    f = teacher(
        NATIVE.model_copy(
            update={"options": {**NATIVE.options, "patch_size": native, "img_size": 4 * native}}
        )
    )
    small = student(f, token_px=token_px)
    assert (small.token_px, small.tokens_per_edge(4 * native)) == (token_px, 4 * native // token_px)
    colour = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(
        patches(small, colour.expand(2, 3, token_px, token_px)),
        patches(f, colour.expand(2, 3, native, native)),
        atol=1e-5,
        rtol=0,
    )
    expected = patches(f, smooth_pixels(8 * native))
    error = patches(small, smooth_pixels(8 * token_px)) - expected
    assert error.norm() < 0.1 * expected.norm()
    # Weights cut to size, which is what is left where nothing is resampled, don't.
    small.vit.patch_embed.proj.weight.data = f.vit.patch_embed.proj.weight[..., :token_px, :token_px]
    error = patches(small, smooth_pixels(8 * token_px)) - expected
    assert error.norm() > 0.3 * expected.norm()


def test_a_tile_reads_as_the_enlarged_tile_does_to_native_tokens() -> None:
    f = teacher()
    small = student(f, token_px=8)
    assert small.vit.pos_embed.shape == (1, 1 + 8 * 8, 24)
    said, enlarged = small(smooth_pixels(64), (1,)), f(smooth_pixels(128), (1,))
    assert said.layer_token_maps.shape == enlarged.layer_token_maps.shape == (1, 2, 24, 8, 8)
    assert relative(said.embedding, enlarged.embedding) < 0.02
    assert relative(said.layer_token_maps, enlarged.layer_token_maps) < 0.1
    assert relative(f(smooth_pixels(64)).embedding, enlarged.embedding) > 3 * relative(
        said.embedding, enlarged.embedding
    )


def relative(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm() / other.norm()).detach())


def test_a_child_is_matched_with_its_own_block_of_the_larger_grid() -> None:
    maps = student(teacher(), token_px=8)(torch.randn(1, 3, 64, 64), (0,)).layer_token_maps
    means = child_means(maps, 4)
    for child in range(16):
        row, col = divmod(child, 4)
        block = maps[0, 0, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        torch.testing.assert_close(means[0, 0, child], block.mean(dim=(1, 2)))


def test_own_weights_of_the_student_are_resampled_too_and_only_then(tmp_path: Path) -> None:
    f = teacher()
    path = tmp_path / "f.safetensors"
    save_tensors(path, f.vit.state_dict())
    own = student(
        f,
        architecture=NATIVE.architecture,
        options=NATIVE.options,
        weights=str(path),
        token_px=8,
    )
    for name, value in student(f, token_px=8).vit.state_dict().items():
        assert torch.equal(own.vit.state_dict()[name], value), name
    with pytest.raises(EncoderError, match="doesn't fit"):
        load_weights(Encoder(NATIVE.with_token_px(8)), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student.token_px", "5"], "token_px 5 doesn't divide tiles.tile_px 32"),
        (["--student.token_px", "16"], "2 x 2 tokens a tile, which can't tell 4 x 4 children apart"),
        (
            ["--student.token_px", "4", "--encoder.architecture", CONVSTEM, "--encoder.options", "{}"],
            "convolutional stem of 16 px a token, which can't be resampled to 4 px",
        ),
    ],
)
def test_what_can_not_be_is_refused_before_a_slide_is_read(
    cohort: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    config = write_config(tmp_path, cohort)
    with pytest.raises(ConfigError, match=message):
        load_config(config, options)


def test_a_hybrid_of_timm_is_refused() -> None:
    small = EncoderSpec(architecture="vit_tiny_r_s16_p8_224", options={"img_size": 64})
    with pytest.raises(EncoderError, match="convolutional stem"):
        student(Encoder(small), token_px=4)


@pytest.mark.slow
def test_a_student_of_smaller_tokens_trains_and_serves(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    write_config(tmp_path, cohort)
    path, _ = rerun(tmp_path, "--student.token_px", "4", "--evaluate.shortcuts", "[]")
    bundle = load_bundle(path)
    assert bundle.info.token_px == bundle.encoder.token_px == 4
    assert bundle.info.format_version == 3  # programs of before read it: it is an option of the architecture
    assert bundle.info.encoder.options["patch_size"] == 4
    assert "tokens of 4 px" in (path / "README.md").read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"lrmil", "stage1_only", "lr_scratch", "teacher_hr"} <= results.keys()
    told = {
        row["slide_id"]: float(row["p_lesion"])
        for row in read_rows(tmp_path / "run" / "fold0" / "predictions" / "lrmil.csv")
    }
    asked = [row for row in absolute_rows(cohort) if row["slide_id"] in told]
    assert asked
    for row in asked:
        with Slide(row["path"]) as slide:
            result = run_to_end(predict_slide(slide, bundle, device=CPU))
        assert result.class_probabilities[1] == pytest.approx(told[row["slide_id"]], abs=2e-3)

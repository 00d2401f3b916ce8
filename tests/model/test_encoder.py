"""Encoders: the taps, the children's blocks, and position embeddings at other sizes than the pretraining's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked, resample_abs_pos_embed
from torch import nn

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    Encoder,
    EncoderOutput,
    EncoderSpec,
    child_means,
    load_weights,
)
from napari_lrmil.slide.geometry import children_of

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 2}

# One preset of each architecture: class token alone, registers with and without positions of their own, tokens of
# 8, 14 and 16 px, SwiGLU, LayerScale.
VARIANTS = (
    "conch", "uni", "uni2-h", "virchow2", "h-optimus-0", "h0-mini", "phikon-v2", "gpfm", "kaiko-vitb8", "kaiko-vitl14",
    "dinov2-vits14", "dinov2-vits14-reg", "dinov2-vitg14",
)  # fmt: skip
REGISTERS = {
    "registers14": 4, "uni2-h": 8, "virchow2": 4, "h-optimus-0": 4, "h0-mini": 4, "kaiko-vitl14": 4, "dinov2-vits14-reg": 4,
}  # fmt: skip


def tiny(preset: str) -> EncoderSpec:
    """A preset with 24 dimensions, three blocks and a pretraining grid of 4 x 4 tokens."""
    spec, token_px = PRESETS[preset].spec, PRESETS[preset].token_px
    return spec.model_copy(update={"options": {**spec.options, **TINY, "img_size": 4 * token_px}})


SPECS = {
    "patch16": EncoderSpec(architecture="vit_tiny_patch16_224", options={**TINY, "img_size": 64}),
    "patch8": EncoderSpec(
        architecture="vit_tiny_patch16_224", options={**TINY, "patch_size": 8, "img_size": 32}
    ),
    "registers14": EncoderSpec(
        architecture="vit_small_patch14_reg4_dinov2", options={**TINY, "img_size": 56}
    ),
    "convstem": EncoderSpec(options={"embed_dim": 24, "depth": 3, "heads": 2, "image_px": 64}),
    **{name: tiny(name) for name in VARIANTS},
}
TOKEN_PX = {
    "patch16": 16, "patch8": 8, "registers14": 14, "convstem": 16, **{name: PRESETS[name].token_px for name in VARIANTS}
}  # fmt: skip


def built(name: str, seed: int = 0) -> Encoder:
    """An encoder without any weight at its neutral start value, where a class token could not be told apart."""
    torch.manual_seed(seed)
    encoder = Encoder(SPECS[name])
    with torch.no_grad():
        for parameter in encoder.vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()


def by_hand(encoder: Encoder, pixels: torch.Tensor, positions: torch.Tensor) -> EncoderOutput:
    """Class token, registers and tokens through the blocks one by one, with these position embeddings."""
    vit = encoder.vit
    tokens = vit.patch_embed(pixels)  # (B, g, g, D)
    batch, grid = len(tokens), tokens.shape[1]
    tokens = tokens.reshape(batch, grid * grid, -1)
    prefix = [vit.cls_token.expand(batch, -1, -1)]
    if getattr(vit, "reg_token", None) is not None:
        prefix.append(vit.reg_token.expand(batch, -1, -1))
    if positions.shape[1] == grid * grid:  # only the grid has positions
        tokens = torch.cat([*prefix, tokens + positions], dim=1)
    else:
        tokens = torch.cat([*prefix, tokens], dim=1) + positions
    n_prefix, class_tokens, maps = sum(part.shape[1] for part in prefix), [], []
    for block in vit.blocks:
        tokens = block(tokens)
        class_tokens.append(tokens[:, 0])
        maps.append(tokens[:, n_prefix:].reshape(batch, grid, grid, -1).permute(0, 3, 1, 2))
    last = vit.norm(tokens)
    token_map = last[:, n_prefix:].reshape(batch, grid, grid, -1).permute(0, 3, 1, 2)
    return EncoderOutput(last[:, 0], torch.stack(class_tokens), torch.stack(maps), token_map)


def assert_same(ours: EncoderOutput, expected: EncoderOutput) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def pixels_of(tile_px: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, tile_px, tile_px, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SPECS)
def test_taps_have_the_shapes_that_they_say(name: str) -> None:
    encoder = built(name)
    assert encoder.token_px == TOKEN_PX[name]
    grid = 4
    output = encoder(pixels_of(grid * encoder.token_px), (0, 2))
    assert output.embedding.shape == (2, 24)
    assert output.layer_class_tokens.shape == (2, 2, 24)
    assert output.layer_token_maps.shape == (2, 2, 24, grid, grid)
    assert encoder.tokens_per_edge(grid * encoder.token_px) == grid
    assert (encoder.embed_dim, encoder.depth) == (24, 3)


@pytest.mark.parametrize("name", SPECS)
def test_taps_are_the_blocks_outputs(name: str) -> None:
    """Against hooks on the blocks themselves: the class token is the first of the prefix, registers are in no tap."""
    encoder = built(name)
    seen: list[torch.Tensor] = []
    for block in encoder.vit.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    pixels = pixels_of(4 * encoder.token_px)
    with torch.no_grad():
        output = encoder(pixels, (0, 1, 2))
    n_prefix = encoder.vit.num_prefix_tokens
    assert n_prefix == 1 + REGISTERS.get(name, 0)
    for layer in range(3):
        torch.testing.assert_close(output.layer_class_tokens[layer], seen[layer][:, 0])
        tokens = seen[layer][:, n_prefix:]  # (B, g * g, D), row by row
        for row, col in ((0, 0), (1, 3), (3, 2)):
            torch.testing.assert_close(
                output.layer_token_maps[layer][:, :, row, col], tokens[:, row * 4 + col]
            )
    torch.testing.assert_close(output.embedding, encoder.vit.norm(seen[2])[:, 0])


@pytest.mark.parametrize("name", SPECS)
def test_embedding_is_the_same_with_and_without_taps(name: str) -> None:
    encoder = built(name)
    pixels = pixels_of(4 * encoder.token_px)
    with torch.no_grad():
        plain, tapped = encoder(pixels), encoder(pixels, (1,))
    torch.testing.assert_close(plain.embedding, tapped.embedding)
    assert plain.layer_class_tokens.shape == (0, 2, 24)
    assert plain.layer_token_maps.shape == (0, 2, 24, 0, 0) or len(plain.layer_token_maps) == 0


@pytest.mark.parametrize("name", SPECS)
def test_output_is_that_of_the_blocks_one_by_one(name: str) -> None:
    encoder = built(name)
    pixels = pixels_of(4 * encoder.token_px)
    with torch.no_grad():
        assert_same(encoder(pixels, (0, 1, 2)), by_hand(encoder, pixels, encoder.vit.pos_embed))


@pytest.mark.parametrize("grid", [2, 7])
@pytest.mark.parametrize("name", SPECS)
def test_other_tile_sizes_interpolate_the_position_embeddings(name: str, grid: int) -> None:
    """The 4 x 4 positions of the pretraining, resampled as timm does; those of class token and registers stay."""
    encoder = built(name)
    own = encoder.vit.pos_embed
    n_prefix = own.shape[1] - 16
    assert n_prefix in (0, encoder.vit.num_prefix_tokens)
    pixels = pixels_of(grid * encoder.token_px)
    with torch.no_grad():
        positions = resample_abs_pos_embed(own, [grid, grid], old_size=[4, 4], num_prefix_tokens=n_prefix)
        ours = encoder(pixels, (0, 1, 2))
        assert_same(ours, by_hand(encoder, pixels, positions))
        if grid < 4:
            cut = by_hand(encoder, pixels, own[:, : n_prefix + grid * grid])
            assert (ours.embedding - cut.embedding).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in SPECS if name != "convstem"])
def test_moving_the_tokens_of_a_tile_moves_its_map(name: str) -> None:
    """Without positions a ViT sees a set of tokens: its map follows them, its class token doesn't change."""
    encoder = built(name)
    with torch.no_grad():
        encoder.vit.pos_embed.zero_()
        pixels, t = pixels_of(4 * encoder.token_px), encoder.token_px
        order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
        blocks = pixels.reshape(2, 3, 4, t, 4, t).permute(2, 4, 0, 1, 3, 5).reshape(16, 2, 3, t, t)[order]
        moved = blocks.reshape(4, 4, 2, 3, t, t).permute(2, 3, 0, 4, 1, 5).reshape(2, 3, 4 * t, 4 * t)
        before, after = encoder(pixels, (0, 2)), encoder(moved, (0, 2))
    torch.testing.assert_close(after.embedding, before.embedding)
    torch.testing.assert_close(after.layer_class_tokens, before.layer_class_tokens)
    torch.testing.assert_close(
        after.layer_token_maps.flatten(3), before.layer_token_maps.flatten(3)[..., order]
    )


@pytest.mark.parametrize("layers", [(), (0, 2)])
@pytest.mark.parametrize("name", ["convstem", "uni", "uni2-h", "virchow2"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(name: str, layers: tuple[int, ...]) -> None:
    pixels = pixels_of(4 * TOKEN_PX[name])
    found = {}
    for enable in (False, True):
        encoder = built(name).train()
        encoder.set_grad_checkpointing(enable)
        passes = [0]
        for block in encoder.vit.blocks:
            block.register_forward_pre_hook(
                lambda module, args, passes=passes: passes.__setitem__(0, passes[0] + 1)
            )
        output = encoder(pixels, layers)
        sum(part.square().sum() for part in output).backward()
        assert passes[0] == (6 if enable else 3)  # three blocks, and once more on the way back
        gradients = {name: value.grad for name, value in encoder.vit.named_parameters()}
        assert all(value is not None and value.abs().sum() > 0 for value in gradients.values())
        found[enable] = (tuple(part.detach() for part in output), gradients)
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    encoder.set_grad_checkpointing(False)
    encoder(pixels, layers).embedding.sum().backward()
    assert passes[0] == 9


def test_layer_classes_are_given_by_name() -> None:
    options = {**TINY, "img_size": 64, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 5.3375}
    spec = EncoderSpec(architecture="vit_tiny_patch16_224", options=options)
    spec = EncoderSpec.model_validate_json(spec.model_dump_json())  # as a bundle keeps it
    with_swiglu = Encoder(spec).vit.blocks[0].mlp
    explicit = timm.create_model(
        "vit_tiny_patch16_224", **{**options, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "num_classes": 0}
    ).blocks[0].mlp  # fmt: skip
    assert type(with_swiglu) is type(explicit)
    assert isinstance(with_swiglu.act, nn.SiLU)
    x = torch.randn(2, 24)
    with_swiglu.load_state_dict(explicit.state_dict())
    torch.testing.assert_close(with_swiglu(x), explicit(x))


@pytest.mark.parametrize("name", ["patch16", "convstem"])
def test_children_of_a_tile_meet_the_tokens_over_them(name: str) -> None:
    """Children that differ: where only child k is bright, the block of the first tap that changes most is k's."""
    encoder = built(name)
    ratio, tile_px = 2, 4 * encoder.token_px
    rows_cols = children_of(np.array([0]), np.array([0]), ratio)[0]
    base = torch.zeros(1, 3, tile_px, tile_px)
    with torch.no_grad():
        before = child_means(encoder(base, (0,)).layer_token_maps, ratio)[0, 0]
        for k, (row, col) in enumerate(rows_cols.tolist()):
            changed = base.clone()
            half = tile_px // ratio
            changed[:, :, row * half : (row + 1) * half, col * half : (col + 1) * half] = 3.0
            after = child_means(encoder(changed, (0,)).layer_token_maps, ratio)[0, 0]
            assert int((after - before).norm(dim=1).argmax()) == k


@pytest.mark.parametrize(("grid", "ratio"), [(4, 2), (8, 4), (16, 4), (9, 3), (4, 4)])
def test_child_means_are_exact_block_means(grid: int, ratio: int) -> None:
    maps = torch.randn(2, 3, 5, grid, grid, dtype=torch.float64)
    means = child_means(maps, ratio)
    assert means.shape == (2, 3, ratio * ratio, 5)
    block = grid // ratio
    children = children_of(np.array([0]), np.array([0]), ratio)[0].tolist()
    for k, (row, col) in enumerate(children):
        assert k == row * ratio + col  # y outer, x inner
        for layer in range(2):
            for tile in range(3):
                expected = torch.zeros(5, dtype=torch.float64)
                for y in range(row * block, (row + 1) * block):
                    for x in range(col * block, (col + 1) * block):
                        expected += maps[layer, tile, :, y, x]
                torch.testing.assert_close(means[layer, tile, k], expected / block**2)


def test_a_grid_too_coarse_for_the_children_is_an_error() -> None:
    with pytest.raises(EncoderError, match=r"3 x 3 tokens can't tell 4 x 4 children apart"):
        child_means(torch.zeros(1, 1, 2, 3, 3), 4)


def test_a_tile_of_broken_tokens_names_the_nearest_that_fits() -> None:
    with pytest.raises(EncoderError, match=r"tile of 100 px .* tokens of 14 px; 98 px would be"):
        built("registers14").tokens_per_edge(100)


@pytest.mark.parametrize("layers", [(1, 0), (0, 0), (3,), (-1,)])
def test_layers_out_of_order_or_range_are_an_error(layers: tuple[int, ...]) -> None:
    with pytest.raises(EncoderError, match=r"layers must ascend within 0\.\.2"):
        built("patch16")(pixels_of(64), layers)


def test_position_embeddings_are_interpolated_not_cut(tmp_path: Path) -> None:
    """A state dict of the pretraining size (8 x 8 tokens) at tiles of 4 x 4 and 6 x 6 tokens."""
    encoder = built("patch16")  # options say 64 px; the pretraining size below is 128
    torch.manual_seed(3)
    reference = timm.create_model(
        "vit_tiny_patch16_224", img_size=128, dynamic_img_size=True, num_classes=0, **TINY
    ).eval()
    with torch.no_grad():
        reference.pos_embed.copy_(torch.randn_like(reference.pos_embed))
    save_file(dict(reference.state_dict()), tmp_path / "w.safetensors")
    encoder = Encoder(
        EncoderSpec(architecture="vit_tiny_patch16_224", options={**TINY, "img_size": 128})
    ).eval()
    load_weights(encoder, tmp_path / "w.safetensors")
    assert encoder.vit.pos_embed.shape[1] == 1 + 8 * 8
    for grid in (4, 6, 8):
        pixels = pixels_of(16 * grid)
        with torch.no_grad():
            ours = encoder(pixels).embedding
            torch.testing.assert_close(ours, reference.forward_features(pixels)[:, 0])
            if grid == 8:
                continue
            # The trap: the first grid * grid of the pretraining's embeddings, rows wrapped at the wrong width.
            cut = timm.create_model("vit_tiny_patch16_224", img_size=16 * grid, num_classes=0, **TINY).eval()
            state = dict(reference.state_dict())
            state["pos_embed"] = state["pos_embed"][:, : 1 + grid * grid]
            cut.load_state_dict(state)
            assert (ours - cut.forward_features(pixels)[:, 0]).abs().max() > 1e-3


def test_preprocessing_is_imagenets_by_hand() -> None:
    tiles = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    pixels = built("patch16").preprocess(tiles)
    assert pixels.shape == (1, 3, 2, 2)
    for channel, value in enumerate((0.0, 128 / 255, 1.0)):
        expected = (value - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(pixels[0, channel], torch.full((2, 2), expected))


def test_half_precision_weights_load_into_float(tmp_path: Path) -> None:
    source, target = built("convstem", 0), built("convstem", 1)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in source.vit.state_dict().items()
    }
    save_file(state, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    loaded = target.vit.state_dict()
    assert all(loaded[name].dtype == source.vit.state_dict()[name].dtype for name in loaded)
    for name, value in source.vit.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=5e-4, atol=3e-8)


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(built("patch8").vit.state_dict(), path)
    with pytest.raises(EncoderError, match=r"doesn't fit 'vit_tiny_patch16_224'.*patch_embed\.proj\.weight"):
        load_weights(built("patch16"), path)
    state = built("patch16").vit.state_dict()
    del state["norm.weight"]
    save_file(state, path)
    with pytest.raises(EncoderError, match=r"1 missing \(norm\.weight\)"):
        load_weights(built("patch16"), path)
    path.write_bytes(b"not tensors")
    with pytest.raises(EncoderError, match="not a safetensors file"):
        load_weights(built("patch16"), path)
    with pytest.raises(EncoderError, match=r"no encoder weights at .*missing\.safetensors"):
        load_weights(built("patch16"), tmp_path / "missing.safetensors")


def test_weights_of_a_classifier_load_without_their_head(tmp_path: Path) -> None:
    state = dict(built("patch16").vit.state_dict())
    state |= {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(built("patch16", 1), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EncoderSpec(architecture="vit_tiny_patch16_225"), r"timm knows no model 'vit_tiny_patch16_225'; near to it are vit"),
        (EncoderSpec(architecture="resnet18"), r"resnet18"),
        (EncoderSpec(architecture="vit_small_patch16_rope_224"), r"vit_small_patch16_rope_224"),
        (
            EncoderSpec(architecture="vit_tiny_patch16_224", options={"class_token": False, "global_pool": "avg"}),
            r"not a vision transformer with a class token",
        ),
        (EncoderSpec(architecture="vit_tiny_patch16_224", options={"embed_dim": 10}), r"can't build"),
        *(
            (EncoderSpec(architecture="vit_tiny_patch16_224", options={**TINY, **option}), message)
            for option, message in (
                ({"mlp_layer": "os.system"}, r"no mlp_layer 'os\.system'; there are Mlp, GluMlp, SwiGLU, SwiGLUPacked"),
                ({"mlp_layer": 3}, r"no mlp_layer '3'"),
                ({"act_layer": "Eval"}, r"timm knows no act_layer 'Eval'"),
                ({"norm_layer": "NoSuchNorm"}, r"timm can't build"),
                ({"block_fn": "Block"}, r"timm can't build"),
                ({"embed_layer": "PatchEmbed"}, r"timm can't build"),
            )
        ),
        (EncoderSpec(options={"embed_dim": 10}), r"convstem_vit can't be built"),
        (EncoderSpec(options={"patch": 3}), r"convstem_vit can't be built.*patch"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_an_encoder_error(spec: EncoderSpec, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        Encoder(spec)


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_a_spec_cannot_point_to_weights_elsewhere(option: str) -> None:
    """A bundle from a stranger must not make timm unpickle a file or download one."""
    with pytest.raises(EncoderError, match=f"option '{option}' .*weights from elsewhere"):
        Encoder(EncoderSpec(architecture="vit_tiny_patch16_224", options={**TINY, option: "x.pth"}))


@pytest.mark.slow
def test_real_dinov2_embeds_as_timm_does(shared_file: Callable[[str], Path]) -> None:
    path = shared_file("encoder_dinov2_vits14/vit_small_patch14_dinov2_fp16.safetensors")
    encoder = Encoder(EncoderSpec(architecture="vit_small_patch14_dinov2", options={"img_size": 518})).eval()
    load_weights(encoder, path)
    reference = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, img_size=518
    ).eval()
    reference.load_state_dict(encoder.vit.state_dict())
    pixels = pixels_of(112, batch=1)
    with torch.no_grad():
        output = encoder(pixels, (0, 11))
        torch.testing.assert_close(output.embedding, reference.forward_features(pixels)[:, 0])
    assert output.layer_token_maps.shape == (2, 1, 384, 8, 8)
    assert child_means(output.layer_token_maps, 4).shape == (2, 1, 16, 384)

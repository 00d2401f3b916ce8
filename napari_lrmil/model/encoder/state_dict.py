"""Names of other libraries' state dicts -> timm's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from napari_lrmil.errors import EncoderError, shortened
from napari_lrmil.model.encoder.convstem import ConvStemViT
from napari_lrmil.model.tensors import as_float32

if TYPE_CHECKING:  # importing timm takes as long as torch
    from timm.models.vision_transformer import VisionTransformer

# What training checkpoints wrap the weights in; the teacher is the model that is published.
_WRAPPERS = ("teacher", "state_dict", "model_state_dict", "model")
_CLASS_TOKEN = re.compile(r"^(.*?)(?:embeddings\.)?cls_token$")
_USELESS = re.compile(r"^(?:(?:head|head_dist|dino_head|ibot_head|classifier)\.|mask_token$)")
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        # The library transformers, Dinov2Model and Dinov2WithRegistersModel.
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
        (r"^encoder\.layer\.", "blocks."),
        (r"(?<=\d)\.attention\.output\.dense\.", ".attn.proj."),
        (r"(?<=\d)\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.weights_in\.", ".mlp.fc1."),
        (r"\.mlp\.weights_out\.", ".mlp.fc2."),
        (r"^layernorm\.", "norm."),
        # The DINOv2 repository: blocks in chunks, SwiGLU, registers.
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"^register_tokens$", "reg_token"),
    )
)
_PATCHES = "patch_embed.proj.weight"
_QUERY = re.compile(r"^(blocks\.\d+)\.attention\.attention\.query\.(weight|bias)$")


def timm_state_dict(
    checkpoint: Mapping[str, object], vit: VisionTransformer | ConvStemViT, *, other_token_px: bool = False
) -> dict[str, Tensor]:
    """The tensors of one ViT under timm's names.

    Wrappers (``{"teacher": ...}``) and prefixes (``module.``, ``backbone.``, ``visual.trunk.``) are taken
    off, other towers, heads and mask tokens left out. Names of the DINOv2 repository and of Dinov2Model of
    the library transformers are translated. Position embeddings of another pretraining size than `vit`'s are
    resampled by timm, never cut.

    Parameters
    ----------
    checkpoint : mapping
    vit : ConvStemViT, or timm's VisionTransformer
        That the tensors are for; not changed.
    other_token_px : bool
        Whether tokens may be of another size than `vit`'s: the patch embedding is then resampled by the pseudo-inverse
        of the resizing (FlexiViT, Beyer et al. 2023), so that a patch gives nearly the token that the same patch gave at
        the other size, and one of a single colour exactly that.

    Raises
    ------
    EncoderError
        Where the file holds several ViTs, and none of them is a teacher; or tensors that aren't plain arrays, or that
        don't belong together; with `other_token_px` where `vit` has no patch embedding but a convolutional stem.
    """
    try:
        state = as_float32(_without_prefix(_unwrapped(checkpoint)))
    except ValueError as error:
        raise EncoderError(f"the file is no state dict of an encoder: {error}") from error
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if not _USELESS.match(name):
            renamed[name] = value
    try:
        fitted = _fitted_positions(_fused_attention(renamed), vit)
        return _fitted_patches(fitted, vit) if other_token_px else fitted
    except RuntimeError as error:  # torch's, of shapes
        raise EncoderError(
            f"the tensors of the file don't belong together: {shortened(str(error))}"
        ) from error


def _unwrapped(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    inner: Mapping[str, object] = checkpoint
    seen = {id(inner)}
    while wrapped := next((part for key in _WRAPPERS if isinstance(part := inner.get(key), Mapping)), None):
        if id(wrapped) in seen:
            raise ValueError("it holds itself")
        seen.add(id(wrapped))
        inner = wrapped
    return {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ViT is where a class token lies; what stands before its name stands before all of its tensors."""
    prefixes = {match[1] for name in state if (match := _CLASS_TOKEN.match(name))}
    if len(prefixes) > 1:
        prefixes = {prefix for prefix in prefixes if "teacher" in prefix} or prefixes
    if len(prefixes) > 1:
        raise EncoderError(
            f"the file holds several models: {', '.join(sorted(prefixes))}. Keep one of them in it"
        )
    prefix = next(iter(prefixes), "")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _fused_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as one matrix, in this order, as timm splits them."""
    fused = dict(state)
    for name in state:
        if match := _QUERY.match(name):
            parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in fused for part in parts):
                fused[f"{match[1]}.attn.qkv.{match[2]}"] = torch.cat([fused.pop(part) for part in parts])
    return fused


def _fitted_positions(state: dict[str, Tensor], vit: VisionTransformer | ConvStemViT) -> dict[str, Tensor]:
    positions, own = state.get("pos_embed"), vit.pos_embed
    if positions is None or own is None or positions.ndim != 3 or positions.shape[2] != own.shape[2]:
        return state
    n_prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
    if not _is_square(positions.shape[1] - n_prefix):
        if n_prefix or not _is_square(positions.shape[1] - 1) or "cls_token" not in state:
            return state
        # The class token's own position is always added to it: the sum is what timm keeps where only tokens of
        # the grid have positions.
        state = {**state, "cls_token": state["cls_token"] + positions[:, :1]}
        positions = positions[:, 1:]
    if positions.shape != own.shape:
        from timm.layers import resample_abs_pos_embed

        grid = list(vit.patch_embed.grid_size)
        positions = resample_abs_pos_embed(positions, new_size=grid, num_prefix_tokens=n_prefix)
    return {**state, "pos_embed": positions}


def _fitted_patches(state: dict[str, Tensor], vit: VisionTransformer | ConvStemViT) -> dict[str, Tensor]:
    from timm.layers import PatchEmbed, resample_patch_embed

    own, given = vit.patch_embed, state.get(_PATCHES)
    if not isinstance(own, PatchEmbed):
        raise EncoderError(
            "tokens of another size need a patch embedding, which can be resampled; this encoder's tokens come from a "
            "convolutional stem"
        )
    size = own.proj.weight.shape[2:]
    if given is None or given.ndim != 4 or given.shape[2:] == size:
        return state
    resampled = resample_patch_embed(given, list(size))
    # Near a patch's border the smoothing filter is cut off, and a plain colour would shift (by up to a quarter of a
    # token, 16 -> 8 px): what is missing is spread evenly.
    missing = given.sum(dim=(2, 3), keepdim=True) - resampled.sum(dim=(2, 3), keepdim=True)
    return {**state, _PATCHES: resampled + missing / (size[0] * size[1])}


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number

"""The architecture ``convstem_vit``: a small vision transformer whose tokens come from four convolutions. No timm.

With convolutions in front a ViT learns in minutes, and from few tiles, where a plain patch embedding doesn't (Xiao et al. 2021,
"Early convolutions help transformers see better"). Blocks are those of Dosovitskiy et al. 2021, the norms before attention and
MLP. Importing timm takes longer than importing torch, and this needs none of it. Weights have the names, outputs the values and
methods the words of timm's `VisionTransformer` on its `ConvStem`, so that `Encoder` treats both alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

TOKEN_PX = 16
"""Edge of a token in pixels: four convolutions of stride 2."""
_EPS, _STD = 1e-6, 0.02
"""Of norms; of fresh weights."""
_Taps = list[tuple[Tensor, Tensor]]


class ConvStemViT(nn.Module):
    """A vision transformer with a class token behind four 3x3 convolutions of stride 2.

    Parameters
    ----------
    embed_dim : int
        D; a multiple of 8 and of `heads`.
    depth : int
        Number of blocks.
    heads : int
    image_px : int
        Edge of the tiles that the position embeddings are for; for others they are interpolated.

    Raises
    ------
    ValueError
        Where the numbers don't go together.
    """

    num_prefix_tokens = 1
    no_embed_class = False

    def __init__(self, *, embed_dim: int = 192, depth: int = 4, heads: int = 3, image_px: int = 128) -> None:
        super().__init__()
        if min(embed_dim, heads) < 1 or embed_dim % 8 or embed_dim % heads:
            raise ValueError(f"embed_dim {embed_dim} isn't a multiple of 8 and of {heads} heads")
        if image_px < TOKEN_PX or image_px % TOKEN_PX:
            raise ValueError(f"image_px {image_px} isn't a multiple of {TOKEN_PX}")
        self.embed_dim = embed_dim
        self.grad_checkpointing = False
        self.patch_embed = _Tokens(embed_dim, image_px)
        rows, columns = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, embed_dim))
        self.blocks = nn.Sequential(*(_Block(embed_dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=_EPS)
        # In timm's order and by its way to draw: a seed gives the same weights.
        _draw(self.pos_embed)
        nn.init.normal_(self.cls_token, std=1e-6)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                _draw(part.weight)
                nn.init.zeros_(part.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.grad_checkpointing = enable

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the tokens after the final norm, (B, 1 + g * g, D), the class token first, of (B, 3, T, T) pixels."""
        tokens = self._embedded(pixels)
        for block in self.blocks:
            tokens = self._after(block, tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int],
        *,
        return_prefix_tokens: Literal[True] = ...,
        norm: Literal[False] = ...,
        output_fmt: Literal["NCHW", "NLC"] = ...,
        stop_early: bool = ...,
        intermediates_only: Literal[False] = ...,
    ) -> tuple[Tensor, _Taps]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int],
        *,
        return_prefix_tokens: Literal[True] = ...,
        norm: Literal[False] = ...,
        output_fmt: Literal["NCHW", "NLC"] = ...,
        stop_early: bool = ...,
        intermediates_only: Literal[True],
    ) -> _Taps: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int],
        *,
        return_prefix_tokens: Literal[True] = True,
        norm: Literal[False] = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> tuple[Tensor, _Taps] | _Taps:
        """Return what `forward_features` does and, after each block of `indices`, the tokens and the class token.

        Parameters
        ----------
        x : (B, 3, T, T) tensor
        indices : sequence of int
            Blocks, ascending.
        return_prefix_tokens, norm
            As they are.
        output_fmt : str
            NCHW: tokens as (B, D, g, g); NLC: (B, g * g, D). The class token is (B, 1, D).
        stop_early : bool
            Compute no block after the last of `indices`.
        intermediates_only : bool
            Return no final tokens.
        """
        tokens = self._embedded(x)
        taps: _Taps = []
        for number, block in enumerate(self.blocks):
            if stop_early and number > max(indices):
                break
            tokens = self._after(block, tokens)
            if number in indices:
                taps.append((self._shaped(tokens[:, 1:], x, output_fmt), tokens[:, :1]))
        return taps if intermediates_only else (self.norm(tokens), taps)

    def _embedded(self, pixels: Tensor) -> Tensor:
        grid: Tensor = self.patch_embed(pixels)
        tokens = torch.cat([self.cls_token.expand(len(grid), -1, -1), grid.flatten(1, 2)], dim=1)
        return tokens + self._positions(grid.shape[1], grid.shape[2])

    def _positions(self, rows: int, columns: int) -> Tensor:
        own = self.patch_embed.grid_size
        if (rows, columns) == own:
            return self.pos_embed
        of_class, of_grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        picture = of_grid.float().reshape(1, *own, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(picture, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([of_class, resized.flatten(2).transpose(1, 2).to(of_grid.dtype)], dim=1)

    def _after(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, tokens, use_reentrant=False)
            return again
        done: Tensor = block(tokens)
        return done

    @staticmethod
    def _shaped(tokens: Tensor, pixels: Tensor, output_fmt: str) -> Tensor:
        if output_fmt == "NLC":
            return tokens
        grid = (pixels.shape[-2] // TOKEN_PX, pixels.shape[-1] // TOKEN_PX)
        return tokens.reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2).contiguous()


def _draw(weights: Tensor) -> None:
    """Normal numbers, by the inverse of their distribution function."""
    if weights.is_meta:  # see `napari_lrmil.model.tensors.shapes_alone`
        return
    with torch.no_grad():
        weights.uniform_(-1, 1).erfinv_().mul_(_STD * math.sqrt(2)).clamp_(-2, 2)


class _Tokens(nn.Module):
    """(B, 3, T, T) pixels -> (B, g, g, D) tokens."""

    def __init__(self, embed_dim: int, image_px: int) -> None:
        super().__init__()
        self.grid_size = (image_px // TOKEN_PX, image_px // TOKEN_PX)
        widths = (3, embed_dim // 8, embed_dim // 4, embed_dim // 2)
        steps: list[nn.Module] = [_Convolution(*pair) for pair in pairwise(widths)]
        last = nn.Sequential()
        last.add_module("conv", nn.Conv2d(widths[-1], embed_dim, 3, stride=2, padding=1))
        self.backbone = nn.Sequential(*steps, last)

    def feat_ratio(self, as_scalar: Literal[True] = True) -> int:
        """Return the edge of a token in pixels."""
        return TOKEN_PX

    def forward(self, pixels: Tensor) -> Tensor:
        grid: Tensor = self.backbone(pixels)
        return grid.permute(0, 2, 3, 1)


class _Convolution(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(n_out)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(pixels)), inplace=True)


class _Block(nn.Module):
    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=_EPS)
        self.attn = _Attention(embed_dim, heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=_EPS)
        self.mlp = _MLP(embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class _Attention(nn.Module):
    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        # (B, N, 3 D) -> three of (B, heads, N, D / heads)
        query, key, value = (
            self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return mixed


class _MLP(nn.Module):
    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, 4 * embed_dim)
        self.fc2 = nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return mixed

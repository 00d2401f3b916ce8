"""Vision transformers that turn tiles into embeddings, with taps on class token and token map per block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.errors import EncoderError, shortened
from napari_lrmil.model.encoder.convstem import ConvStemViT
from napari_lrmil.model.encoder.spec import CONVSTEM, EncoderSpec
from napari_lrmil.model.encoder.state_dict import timm_state_dict

if TYPE_CHECKING:  # importing timm takes as long as torch: where an architecture is timm's, it is
    from timm.models.vision_transformer import VisionTransformer


class EncoderOutput(NamedTuple):
    """What an encoder says of a batch of B tiles, D dimensions, L tapped blocks, g x g tokens."""

    embedding: Tensor
    """(B, D) class token after the final norm."""
    layer_class_tokens: Tensor
    """(L, B, D) class token after each tapped block, before the final norm."""
    layer_token_maps: Tensor
    """(L, B, D, g, g) tokens after each tapped block, prefix tokens left out."""
    token_map: Tensor
    """(B, D, g, g) tokens after the final norm, prefix tokens left out."""


class Encoder(nn.Module):
    """A vision transformer, timm's or our own, behind one interface.

    Parameters
    ----------
    spec : EncoderSpec

    Raises
    ------
    EncoderError
        Where the architecture is unknown, is no ViT, or has no class token.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vit = _build(spec)
        self.register_buffer("_mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.vit.blocks)

    @property
    def token_px(self) -> int:
        """Edge of a token in pixels."""
        return int(self.vit.patch_embed.feat_ratio(as_scalar=True))

    def tokens_per_edge(self, tile_px: int) -> int:
        """g, the tokens along the edge of a tile.

        Raises
        ------
        EncoderError
            Where the tile isn't a whole number of tokens.
        """
        if tile_px % self.token_px:
            raise EncoderError(
                f"a tile of {tile_px} px isn't a whole number of this encoder's tokens of {self.token_px} px; "
                f"{round(tile_px / self.token_px) * self.token_px} px would be"
            )
        return tile_px // self.token_px

    def load_resampled(self, other: Encoder) -> None:
        """Take the weights of the same architecture with tokens of any size; see `timm_state_dict`."""
        self.vit.load_state_dict(timm_state_dict(other.vit.state_dict(), self.vit, other_token_px=True))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, slower, the same gradients."""
        self.vit.set_grad_checkpointing(enable)

    def preprocess(self, tiles: Tensor) -> Tensor:
        """uint8 tiles (B, T, T, 3) in RGB -> normalised float pixels (B, 3, T, T)."""
        pixels = tiles.permute(0, 3, 1, 2).to(self._mean.dtype) / 255.0
        return (pixels - self._mean) / self._std

    def forward(self, pixels: Tensor, layers: Sequence[int] = ()) -> EncoderOutput:
        """Embed normalised pixels.

        Parameters
        ----------
        pixels : (B, 3, T, T) float tensor
        layers : sequence of int
            Blocks to tap, ascending.

        Returns
        -------
        EncoderOutput
        """
        if list(layers) != sorted(set(layers)) or any(not 0 <= layer < self.depth for layer in layers):
            raise EncoderError(
                f"layers must ascend within 0..{self.depth - 1}, as the encoder has {self.depth} blocks; "
                f"got {tuple(layers)}"
            )
        if not layers:
            tokens = self.vit.forward_features(pixels)
            empty = pixels.new_empty((0, len(pixels), self.embed_dim))
            return EncoderOutput(tokens[:, 0], empty, empty[..., None, None], self._as_map(tokens, pixels))
        tokens, taps = self.vit.forward_intermediates(
            pixels, indices=list(layers), return_prefix_tokens=True, norm=False, output_fmt="NCHW"
        )
        return EncoderOutput(
            embedding=tokens[:, 0],
            # The class token comes first; registers follow it.
            layer_class_tokens=torch.stack([prefix[:, 0] for _, prefix in taps]),
            layer_token_maps=torch.stack([token_map for token_map, _ in taps]),
            token_map=self._as_map(tokens, pixels),
        )

    def _as_map(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        rows, cols = (edge // self.token_px for edge in pixels.shape[-2:])
        patches = tokens[:, self.vit.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(tokens), -1, rows, cols)


def child_means(token_maps: Tensor, ratio: int) -> Tensor:
    """Mean of each child's block of tokens.

    Parameters
    ----------
    token_maps : (L, B, D, g, g) tensor
    ratio : int
        Children along the edge of a tile.

    Returns
    -------
    (L, B, ratio * ratio, D) tensor
        Children row by row.

    Raises
    ------
    EncoderError
        Where g < ratio: a child would have no token of its own.
    """
    n_layers, batch, dim, grid, _ = token_maps.shape
    if grid < ratio:
        raise EncoderError(
            f"{grid} x {grid} tokens can't tell {ratio} x {ratio} children apart: take larger tiles, smaller "
            "tokens or a smaller ratio"
        )
    means = F.adaptive_avg_pool2d(token_maps.reshape(n_layers * batch, dim, grid, grid), ratio)
    return means.reshape(n_layers, batch, dim, ratio * ratio).transpose(2, 3)


def _build(spec: EncoderSpec) -> VisionTransformer | ConvStemViT:
    if spec.architecture != CONVSTEM:
        from napari_lrmil.model.encoder.timm_vit import build_timm_vit

        return build_timm_vit(spec)
    try:
        return ConvStemViT(**spec.options)  # type: ignore[arg-type]  # of a file: what is wrong raises
    except Exception as error:  # a description from outside makes libraries raise anything
        raise EncoderError(
            f"{CONVSTEM} can't be built with {spec.options} ({shortened(str(error))})"
        ) from error

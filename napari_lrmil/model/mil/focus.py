"""FOCUS, knowledge-enhanced adaptive visual compression (Guo et al., CVPR 2025, arXiv 2411.14743), for few slides.

Tiles are encoded to the width of text embeddings, then compressed twice. In windows of 8 consecutive tiles one is
redundant whose mean cosine similarity to the window is above the window's own mean plus one standard deviation. Of the
rest those stay that are nearest to the classes' texts (at most `max_tiles`), in their order; in chunks of 8 of these a
tile that is more similar than 0.8 to the one before it goes too. The texts attend to what is left (8 heads); the mean
of what they gather is classified. The loss is the cross-entropy.

The texts come from outside: embeddings (T, W) of any text tower, given by `set_text` or by `read_text`; they are kept
with the weights. What the paper learns inside its tower, 16 context vectors, needs that tower and isn't here.

Choices: similarities are those of the encoded tiles, as in the authors' code; 1,024 tiles at most, which the code leaves
open; a tile that was found redundant never comes back (there a redundant tile, with relevance 0, precedes one of
negative relevance). What is called attention is the texts' mean over texts and heads, 0 on tiles that were left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.errors import LRMILError
from napari_lrmil.model.mil.attention import NormalisedSpec, input_norm, scores_as_logits
from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, logits_of_parts, one_bag
from napari_lrmil.model.tensors import not_finite, read_tensors


class FOCUSSpec(NormalisedSpec):
    """Everything needed to build a `FOCUS`, weights apart; the text embeddings are weights."""

    name: Literal["focus"] = "focus"
    text_dim: int = Field(default=512, gt=0, le=8192, description="W, width of the text embeddings")
    n_texts: int = Field(default=2, ge=1, le=4096, description="T, how many there are: one or more a class")
    heads: int = Field(default=8, ge=1, le=128)
    window: int = Field(default=8, ge=2, le=4096, description="tiles that are compared with each other")
    similarity: float = Field(default=0.8, ge=-1, le=1, description="above it a tile repeats the one before")
    max_tiles: int = Field(default=1024, ge=1, le=2**20, description="that the texts may attend to")
    dropout: float = Field(default=0.25, ge=0, lt=1, description="on encoded tiles, in training only")

    @model_validator(mode="after")
    def _heads_share(self) -> FOCUSSpec:
        if self.text_dim % self.heads:
            raise ValueError(f"text_dim {self.text_dim} isn't a multiple of heads {self.heads}")
        return self

    def build(self) -> FOCUS:
        """Return the head with fresh weights and no texts."""
        return FOCUS(self)


class TextError(LRMILError):
    """Text embeddings are missing or don't fit."""


class FOCUS(MILModel):
    """Texts attend to the tiles that compression leaves; see the module."""

    order_matters = True

    def __init__(self, spec: FOCUSSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.text_dim
        self.norm = input_norm(spec.embed_dim, spec.normalise)
        self.encoder = nn.Sequential(
            nn.Linear(spec.embed_dim, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(spec.dropout)
        )
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.classifier = nn.Linear(width, spec.n_classes)
        self.text: Tensor
        self.register_buffer("text", torch.zeros(spec.n_texts, width))  # zeros: none yet

    def set_text(self, embeddings: Tensor) -> None:
        """Keep the text embeddings (T, W) with the weights.

        Raises
        ------
        TextError
            Where they are of another shape, not finite, or one is zero.
        """
        expected = (self.spec.n_texts, self.spec.text_dim)
        if tuple(embeddings.shape) != expected:
            raise TextError(
                f"text embeddings are {' x '.join(map(str, embeddings.shape))}, here {expected[0]} x {expected[1]}: "
                "set n_texts and text_dim to theirs"
            )
        if not bool(torch.isfinite(embeddings).all()) or bool((embeddings == 0).all(dim=1).any()):
            raise TextError("text embeddings hold numbers that aren't finite, or a text of zeros only")
        self.text.copy_(embeddings)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        MILOutput
            Attention (1, N): logarithms of the texts' attention. ``extras["kept"]``: indices of the tiles they saw.

        Raises
        ------
        TextError
            Before `set_text`.
        """
        return self._read(self._encoded(bag))

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """As in `MILModel`, the tiles encoded once."""
        tiles = self._encoded(bag)
        return logits_of_parts(kept, lambda part: self._read(tiles[part]).bag_logits)

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: a tile alone is kept, and all that the texts attend to."""
        logits: Tensor = self.classifier(self.out(self.value(self._encoded(bag))))
        return logits

    def _encoded(self, bag: AnyBag) -> Tensor:
        """(N, W)."""
        if not bool(self.text.any()):
            raise TextError("FOCUS has no text embeddings yet: give them with set_text")
        tiles: Tensor = self.encoder(self.norm(one_bag(bag).embeddings))
        return tiles

    def _read(self, tiles: Tensor) -> MILOutput:
        with torch.no_grad():
            kept = compressed(
                tiles,
                self.text,
                window=self.spec.window,
                similarity=self.spec.similarity,
                max_tiles=self.spec.max_tiles,
            )  # (K,)
        seen = tiles[kept]
        # (T or K, W) -> (T or K, heads, d) -> (heads, T or K, d)
        query, key, value = (
            layer(part).view(len(part), self.spec.heads, -1).transpose(0, 1)
            for layer, part in ((self.query, self.text), (self.key, seen), (self.value, seen))
        )
        scores = torch.softmax(query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, dim=-1)  # (heads, T, K)
        gathered = self.out((scores @ value).transpose(0, 1).flatten(1))  # (heads, T, d) -> (T, W)
        bag_embedding = gathered.mean(dim=0)  # (W,)
        attention = torch.zeros_like(tiles[:, 0]).index_put((kept,), scores.mean(dim=(0, 1)))  # (N,)
        return MILOutput(
            bag_logits=self.classifier(bag_embedding),
            attention_logits=scores_as_logits(attention)[None],
            bag_embedding=bag_embedding,
            extras={"kept": kept},
        )


def compressed(tiles: Tensor, text: Tensor, *, window: int, similarity: float, max_tiles: int) -> Tensor:
    """Return the indices of the tiles that both compressions leave, in order.

    Parameters
    ----------
    tiles : (N, W) tensor
    text : (T, W) tensor
    window : int
    similarity : float
    max_tiles : int
    """
    unique = not_redundant(tiles, window)  # (U,)
    relevance = (tiles[unique] @ text.T).mean(dim=1)  # (U,)
    nearest = relevance.topk(min(max_tiles, len(unique))).indices
    chosen = unique[nearest].sort().values  # (K,)
    directions = F.normalize(tiles[chosen], dim=1)
    before = (directions[1:] * directions[:-1]).sum(dim=1)  # (K - 1,)
    first_of_chunk = torch.arange(1, len(chosen), device=tiles.device) % window == 0
    stays = torch.ones(len(chosen), dtype=torch.bool, device=tiles.device)
    stays[1:] = first_of_chunk | (before < similarity)
    return chosen[stays]


def not_redundant(tiles: Tensor, window: int) -> Tensor:
    """Return the indices of the tiles that aren't redundant in their window; at least the first of each.

    Parameters
    ----------
    tiles : (N, W) tensor
    window : int
    """
    n = len(tiles)
    directions = F.normalize(tiles, dim=1)
    whole = n - n % window
    stays = torch.ones(n, dtype=torch.bool, device=tiles.device)
    # (whole, W) -> (whole / window, window, W): all full windows at once, then the last, shorter one
    for start, stop, length in ((0, whole, window), (whole, n, n - whole)):
        if length < 2 or stop == start:
            continue
        parts = directions[start:stop].view(-1, length, tiles.shape[1])
        alike = parts @ parts.transpose(1, 2)  # (windows, length, length)
        limit = alike.mean(dim=(1, 2)) + alike.flatten(1).std(dim=1, correction=0)  # (windows,)
        kept = alike.mean(dim=2) <= limit[:, None]  # (windows, length)
        kept[:, 0] |= ~kept.any(dim=1)
        stays[start:stop] = kept.flatten()
    return stays.nonzero()[:, 0]


def read_text(path: Path) -> Tensor:
    """Return the text embeddings (T, W) of a safetensors file that holds one matrix.

    Raises
    ------
    TextError
        Where it isn't such a file.
    OSError
        Where it can't be read.
    """
    try:
        tensors = read_tensors(path)
    except ValueError as error:
        raise TextError(f"{path} isn't a safetensors file of text embeddings: {error}") from error
    matrices = {name: value for name, value in tensors.items() if value.ndim == 2}
    if len(matrices) != 1 or not_finite(matrices):
        raise TextError(
            f"{path} must hold one matrix of finite numbers, a row a text; it holds {sorted(tensors)[:6]}"
        )
    return next(iter(matrices.values()))

"""TransMIL, transformer-based correlated MIL (Shao et al., NeurIPS 2021, arXiv 2106.00908).

Instances are projected and laid row by row on the smallest square that holds them, its last places filled with the
first instances again; a class token goes in front. A transformer layer with Nystrom attention, the pyramid position
encoding (PPEG: depthwise convolutions of 7, 5 and 3 over the square), a second layer; the class token says the class.
The places of tiles on the slide play no part, their order in the bag does: it decides which tiles are neighbours on
the square and which share a landmark. The loss is the cross-entropy.

Nystrom attention is that of Xiong et al. (AAAI 2021, arXiv 2102.03902) as TransMIL uses it: 256 landmarks are means
over equal stretches of the sequence, zeros in front make it divisible, the pseudo-inverse takes six iterations, and a
depthwise convolution of 33 over the values is added. Softmax products go through scaled_dot_product_attention, so
that nothing of N x 256 is kept.

Beside the paper: embeddings may be normalised first, as in all heads here. What is called attention is the class
token's row in the second layer, mean over heads; that approximation isn't a distribution, so what is below 1e-12 counts
as that much.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from napari_lrmil.model.mil.attention import NormalisedSpec, input_norm, scores_as_logits
from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, one_bag

_NUMBERS_AT_ONCE = 2**24


class TransMILSpec(NormalisedSpec):
    """Everything needed to build a `TransMIL`, weights apart."""

    name: Literal["transmil"] = "transmil"
    dim: int = Field(default=512, gt=0, le=8192, description="width of the transformer")
    heads: int = Field(default=8, ge=1, le=128)
    landmarks: int = Field(default=256, ge=1, le=4096, description="of Nystrom attention")
    inverse_iterations: int = Field(default=6, ge=1, le=64, description="of the pseudo-inverse")
    value_residual: bool = Field(
        default=True, description="add a convolution over the values to the attention"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="after each attention, in training only")

    @model_validator(mode="after")
    def _heads_share(self) -> TransMILSpec:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} isn't a multiple of heads {self.heads}")
        return self

    def build(self) -> TransMIL:
        """Return the head with fresh weights."""
        return TransMIL(self)


class TransMIL(MILModel):
    """Two Nystrom layers around a position encoding; see the module."""

    order_matters = True

    def __init__(self, spec: TransMILSpec) -> None:
        super().__init__()
        self.norm = input_norm(spec.embed_dim, spec.normalise)
        self.projection = nn.Sequential(nn.Linear(spec.embed_dim, spec.dim), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, spec.dim))
        self.first, self.second = _Layer(spec), _Layer(spec)
        self.positions = PyramidPositions(spec.dim)
        self.last_norm = nn.LayerNorm(spec.dim)
        self.classifier = nn.Linear(spec.dim, spec.n_classes)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        MILOutput
            Attention (1, N): logarithms of the class token's attention; `bag_embedding` is the class token.
        """
        instances = self.projection(self.norm(one_bag(bag).embeddings))  # (N, P)
        n = len(instances)
        side = math.ceil(math.sqrt(n))
        again = side**2 - n
        tokens = torch.cat([self.class_token, instances, instances[:again]])  # (1 + side^2, P)
        tokens = self.first(tokens)
        tokens = torch.cat([tokens[:1], self.positions(tokens[1:], side)])
        tokens, attention = self.second.with_row(tokens)  # attention: (1 + side^2,) of the class token
        bag_embedding = self.last_norm(tokens[0])  # (P,)
        own = attention[1 : n + 1]
        if again:  # an instance that fills a place has the attention of both
            own = torch.cat([own[:again] + attention[n + 1 :], own[again:]])
        return MILOutput(
            bag_logits=self.classifier(bag_embedding),
            attention_logits=scores_as_logits(own)[None],
            bag_embedding=bag_embedding,
        )


class _Layer(nn.Module):
    """x + Nystrom attention of its norm."""

    def __init__(self, spec: TransMILSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.dim)
        self.attention = NystromAttention(
            spec.dim,
            heads=spec.heads,
            landmarks=spec.landmarks,
            inverse_iterations=spec.inverse_iterations,
            value_residual=spec.value_residual,
        )
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the (L, P) tokens after the layer."""
        after: Tensor = tokens + self.dropout(self.attention(self.norm(tokens)))
        return after

    def with_row(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, and the (L,) attention of the first token, mean over heads."""
        found, row = self.attention.with_row(self.norm(tokens))
        return tokens + self.dropout(found), row


class NystromAttention(nn.Module):
    """Self-attention through landmarks: softmax(Q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ K^T) V; see the module.

    Parameters
    ----------
    dim : int
    heads : int
    landmarks : int
        M.
    inverse_iterations : int
    value_residual : bool
        Whether to add a depthwise convolution of 33 tokens over the values.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        landmarks: int = 256,
        inverse_iterations: int = 6,
        value_residual: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.inverse_iterations = heads, landmarks, inverse_iterations
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.convolution = (
            nn.Conv2d(heads, heads, (33, 1), padding=(16, 0), groups=heads, bias=False)
            if value_residual
            else None
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what (L, P) tokens become, (L, P)."""
        return self._attend(tokens)[0]

    def with_row(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, and the (L,) attention of the first token, mean over heads."""
        found, query, key, key_marks, query_marks, inverse = self._attend(tokens)
        in_front = key.shape[1] - len(tokens)
        # (heads, 1, P / heads) @ (heads, P / heads, M) @ (heads, M, M) -> (heads, 1, M)
        weights = torch.softmax(self._scaled(query[:, in_front, None], key_marks), dim=-1) @ inverse
        # M x L of all heads is 400 MB at 50,000 tiles: then one after the other, made again in the backward pass.
        if query_marks.shape[1] * key.numel() > _NUMBERS_AT_ONCE * key.shape[2]:
            heads = zip(*(torch.split(part, 1) for part in (weights, query_marks, key)), strict=True)
            row = torch.stack([checkpoint(self._row, *one, use_reentrant=False) for one in heads]).sum(dim=0)
        else:
            row = self._row(weights, query_marks, key)
        return found, row[in_front:] / self.heads

    def _row(self, weights: Tensor, query_marks: Tensor, key: Tensor) -> Tensor:
        """(heads, 1, M) @ softmax((heads, M, d) @ (heads, L, d)^T), sum over heads: (L,)."""
        return (weights @ torch.softmax(self._scaled(query_marks, key), dim=-1)).sum(dim=(0, 1))

    def _scaled(self, query: Tensor, key: Tensor) -> Tensor:
        scale: float = query.shape[-1] ** -0.5
        return scale * query @ key.transpose(-1, -2)

    def _attend(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the new tokens; queries, keys, landmarks of keys and of queries; the pseudo-inverse."""
        length, dim = tokens.shape
        stretch = math.ceil(length / self.landmarks)
        in_front = stretch * self.landmarks - length
        padded = F.pad(tokens, (0, 0, in_front, 0))  # (M stretch, P)
        # (M stretch, 3 P) -> (M stretch, 3, heads, d) -> (3, heads, M stretch, d)
        parts = self.query_key_value(padded).unflatten(1, (3, self.heads, dim // self.heads))
        query, key, value = parts.permute(1, 2, 0, 3)
        # (heads, M stretch, d) -> (heads, M, stretch, d) -> (heads, M, d)
        query_marks = query.unflatten(1, (self.landmarks, stretch)).mean(dim=2)
        key_marks = key.unflatten(1, (self.landmarks, stretch)).mean(dim=2)
        inverse = iterated_inverse(
            torch.softmax(self._scaled(query_marks, key_marks), dim=-1), self.inverse_iterations
        )  # (heads, M, M)
        gathered = inverse @ _softmax_product(query_marks, key, value)  # (heads, M, d)
        found = _softmax_product(query, key_marks, gathered)  # (heads, M stretch, d)
        if self.convolution is not None:
            found = found + self.convolution(value)
        # (heads, M stretch, d) -> (M stretch, heads, d) -> (L, P), without what was put in front
        merged = self.out(found.transpose(0, 1).flatten(1)[in_front:])
        return merged, query, key, key_marks, query_marks, inverse


def _softmax_product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, all (heads, *, d); a batch of one lets the fast kernels take it."""
    return F.scaled_dot_product_attention(query[None], key[None], value[None])[0]


def iterated_inverse(matrix: Tensor, iterations: int = 6) -> Tensor:
    """Return the pseudo-inverse of (heads, M, M) by the iteration of Razavi et al. that Nystromformer uses.

    It starts from the transpose over the largest row and column sum of all heads, as the published code does.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    found = matrix.transpose(1, 2) / (matrix.abs().sum(dim=-1).max() * matrix.abs().sum(dim=-2).max())
    for _ in range(iterations):
        product = matrix @ found
        found = (
            0.25 * found @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
        )
    return found


class PyramidPositions(nn.Module):
    """PPEG: x + depthwise convolutions of 7, 5 and 3 over the square on which the tokens lie."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(dim, dim, edge, padding=edge // 2, groups=dim) for edge in (7, 5, 3)
        )

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """Return (side^2, P) tokens with their neighbourhood, the class token not among them."""
        square = tokens.T.reshape(1, -1, side, side)  # (side^2, P) -> (1, P, side, side)
        total = square
        for convolution in self.convolutions:
            total = total + convolution(square)
        flat: Tensor = total[0].flatten(1).T
        return flat  # (1, P, side, side) -> (side^2, P)

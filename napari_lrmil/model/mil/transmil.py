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
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from napari_lrmil.model.mil.attention import NormalisedSpec, input_norm, scores_as_logits
from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, one_bag

_NUMBERS_AT_ONCE = 2**24
_REACH = 16
"""Tokens to each side that the convolution over the values sees."""


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
        instances = self._projected(bag)  # (N, P)
        n = len(instances)
        class_token, attention = self.second.with_row(
            self._tokens(instances[None])
        )  # attention: (1 + side^2,)
        bag_embedding = self.last_norm(class_token[0])  # (P,)
        own, again = attention[1 : n + 1], attention[n + 1 :]
        if len(again):  # an instance that fills a place has the attention of both
            own = torch.cat([own[: len(again)] + again, own[len(again) :]])
        return MILOutput(
            bag_logits=self.classifier(bag_embedding),
            attention_logits=scores_as_logits(own)[None],
            bag_embedding=bag_embedding,
        )

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """As in `MILModel`, parts of equal size at once; what comes before the class token is worked out once."""
        instances = self._projected(bag)  # (N, P)
        sizes = kept.sum(dim=1)
        found = instances.new_zeros((len(kept), self.classifier.out_features))
        for size in torch.unique(sizes).tolist():
            of_size = (sizes == size).nonzero()[:, 0]
            if size:
                for some in torch.split(of_size, self._parts_at_once(size)):
                    indices = kept[some].nonzero()[:, 1].view(len(some), size)
                    found[some] = self._logits(instances[indices])
        return found

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, many at once."""
        parts = torch.split(self._projected(bag)[:, None], self._parts_at_once(1))  # (B, 1, P) each
        return torch.cat([self._logits(some) for some in parts])

    def _projected(self, bag: AnyBag) -> Tensor:
        """(N, P)."""
        instances: Tensor = self.projection(self.norm(one_bag(bag).embeddings))
        return instances

    def _parts_at_once(self, n: int) -> int:
        """How many bags of n instances may be classified together."""
        attention = self.first.attention
        dim, marks = self.classifier.in_features, min(n + 2, attention.landmarks)
        return max(1, _NUMBERS_AT_ONCE // (8 * (n + 2) * dim + attention.heads * marks * (n + 2 + 6 * marks)))

    def _tokens(self, instances: Tensor) -> Tensor:
        """What the second layer reads of bags of n instances each: (B, n, P) -> (B, 1 + side^2, P)."""
        side = math.ceil(math.sqrt(instances.shape[1]))
        again = side**2 - instances.shape[1]
        class_tokens = self.class_token.expand(len(instances), 1, -1)  # (B, 1, P)
        tokens = self.first(torch.cat([class_tokens, instances, instances[:, :again]], dim=1))
        return torch.cat([tokens[:, :1], self.positions(tokens[:, 1:], side)], dim=1)

    def _logits(self, instances: Tensor) -> Tensor:
        """(B, n, P) -> (B, C)."""
        class_tokens = self.second(self._tokens(instances), n_first=1)[:, 0]  # (B, P)
        logits: Tensor = self.classifier(self.last_norm(class_tokens))
        return logits


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

    def forward(self, tokens: Tensor, n_first: int | None = None) -> Tensor:
        """Return the (B, L, P) tokens after the layer, or only the first few of each bag."""
        after: Tensor = tokens[:, :n_first] + self.dropout(self.attention(self.norm(tokens), n_first))
        return after

    def with_row(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token (1, P) of one bag (1, L, P) after the layer, and its (L,) attention, mean over heads."""
        found, row = self.attention.with_row(self.norm(tokens))
        return tokens[:, 0] + self.dropout(found), row


class _Landmarks(NamedTuple):
    """What queries meet in Nystrom attention: m <= M landmarks, L' tokens with the zeros in front of them."""

    key: Tensor
    """(B, heads, L', d)"""
    value: Tensor
    """(B, heads, L', d)"""
    query_marks: Tensor
    """(B, heads, m, d)"""
    key_marks: Tensor
    """(B, heads, m, d)"""
    inverse: Tensor
    """(B, heads, m, m) pseudo-inverse, between square roots of `counts`"""
    counts: Tensor
    """(m,) landmarks that each stands for"""
    mark_bias: Tensor | None
    """(m,) logarithm of `counts`; None where all are 1"""
    token_bias: Tensor | None
    """(L',) logarithm of the tokens that each stands for; None where all are 1"""
    in_front: int
    """Zeros in front of the tokens"""


class NystromAttention(nn.Module):
    """Self-attention through landmarks: softmax(Q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ K^T) V; see the module.

    Landmarks that are means of nothing but the zeros in front are all the same: one stands for all of them, with the
    logarithm of their number added to its logits, and the iterated pseudo-inverse is taken in the space that is left,
    which it never leaves. That changes nothing but the time: 43 tiles have 51 landmarks then instead of 256.

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
            nn.Conv2d(heads, heads, (_REACH * 2 + 1, 1), padding=(_REACH, 0), groups=heads, bias=False)
            if value_residual
            else None
        )

    def forward(self, tokens: Tensor, n_first: int | None = None) -> Tensor:
        """Return what tokens become: (B, L, P), or only the first few of each bag."""
        return self._asked(tokens[:, :n_first], self._landmarks(tokens))[0]

    def with_row(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token (1, P) of one bag (1, L, P), and its (L,) attention, mean over heads."""
        marks = self._landmarks(tokens)
        found, query = self._asked(tokens[:, :1], marks)
        # (heads, 1, d) @ (heads, d, m) @ (heads, m, m) -> (heads, 1, m)
        roots = marks.counts.sqrt()
        weights = torch.softmax(_with(self._scaled(query[0], marks.key_marks[0]), marks.mark_bias), dim=-1)
        weights = (weights / roots) @ marks.inverse[0] * roots
        query_marks, key, bias = marks.query_marks[0], marks.key[0], marks.token_bias
        # M x L of all heads is 400 MB at 50,000 tiles: then one after the other, made again in the backward pass.
        if query_marks.shape[1] * key.numel() > _NUMBERS_AT_ONCE * key.shape[2]:
            heads = zip(*(torch.split(part, 1) for part in (weights, query_marks, key)), strict=True)
            row = torch.stack([checkpoint(self._row, *one, bias, use_reentrant=False) for one in heads]).sum(
                dim=0
            )
        else:
            row = self._row(weights, query_marks, key, bias)
        return found[:, 0], row[marks.in_front :] / self.heads

    def _row(self, weights: Tensor, query_marks: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """(heads, 1, m) @ softmax((heads, m, d) @ (heads, L', d)^T), sum over heads: (L',)."""
        scores = torch.softmax(_with(self._scaled(query_marks, key), bias), dim=-1)
        return (weights @ scores).sum(dim=(0, 1))

    def _scaled(self, query: Tensor, key: Tensor) -> Tensor:
        scale: float = query.shape[-1] ** -0.5
        return scale * query @ key.transpose(-1, -2)

    def _by_head(self, tokens: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """(B, L, P) through rows of the common weights, as many (B, heads, L, d) as these hold P."""
        dim = tokens.shape[-1]
        # (B, L, k P) -> (B, L, k, heads, d) -> (k, B, heads, L, d)
        parts = F.linear(tokens, weight).view(*tokens.shape[:2], -1, self.heads, dim // self.heads)
        return tuple(parts.permute(2, 0, 3, 1, 4).unbind())

    def _landmarks(self, tokens: Tensor) -> _Landmarks:
        length, dim = tokens.shape[1:]
        stretch = math.ceil(length / self.landmarks)
        in_front = stretch * self.landmarks - length
        alike = max(1, in_front // stretch)
        in_front -= (alike - 1) * stretch
        padded = F.pad(tokens, (0, 0, in_front, 0))  # (B, m stretch, P)
        means = padded.view(len(padded), -1, stretch, dim).mean(
            dim=2
        )  # (B, m stretch, P) -> (B, m, stretch, P) -> (B, m, P)
        weight = self.query_key_value.weight
        query_marks, key_marks = self._by_head(means, weight[: 2 * dim])
        key, value = self._by_head(padded, weight[dim:])
        counts = tokens.new_ones(means.shape[1])
        mark_bias = token_bias = None
        if alike > 1:
            counts[0] = alike
            mark_bias = counts.log()
            token_bias = tokens.new_zeros(padded.shape[1])
            token_bias[:stretch] = math.log(alike)
        scores = torch.softmax(_with(self._scaled(query_marks, key_marks), mark_bias), dim=-1)
        inverse = iterated_inverse(scores, self.inverse_iterations, counts)  # (B, heads, m, m)
        return _Landmarks(
            key, value, query_marks, key_marks, inverse, counts, mark_bias, token_bias, in_front
        )

    def _asked(self, tokens: Tensor, marks: _Landmarks) -> tuple[Tensor, Tensor]:
        """What the first n tokens (B, n, P) become, and their queries (B, heads, n, d)."""
        n, dim = tokens.shape[1:]
        (query,) = self._by_head(tokens, self.query_key_value.weight[:dim])
        roots = marks.counts.sqrt()[:, None]
        gathered = F.scaled_dot_product_attention(
            marks.query_marks, marks.key, marks.value, attn_mask=_as_mask(marks.token_bias)
        )  # (B, heads, m, d)
        gathered = marks.inverse @ (roots * gathered) / roots
        found = F.scaled_dot_product_attention(
            query, marks.key_marks, gathered, attn_mask=_as_mask(marks.mark_bias)
        )  # (B, heads, n, d)
        if self.convolution is not None:
            start = max(0, marks.in_front - _REACH)
            near = self.convolution(marks.value[:, :, start : marks.in_front + n + _REACH])
            found = found + near[:, :, marks.in_front - start :][:, :, :n]
        # (B, heads, n, d) -> (B, n, heads, d) -> (B, n, P)
        return self.out(found.transpose(1, 2).flatten(2)), query


def _with(logits: Tensor, bias: Tensor | None) -> Tensor:
    return logits if bias is None else logits + bias


def _as_mask(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias[None, None, None]


def iterated_inverse(matrix: Tensor, iterations: int = 6, counts: Tensor | None = None) -> Tensor:
    """Return the pseudo-inverse of (..., heads, M, M) by the iteration of Razavi et al. that Nystromformer uses.

    It starts from the transpose over the largest row and column sum of all heads, as the published code does.

    Parameters
    ----------
    matrix : (..., heads, M, M) tensor
    iterations : int
    counts : (M,) tensor, optional
        Row and column j stand for so many that are the same: `matrix` has one row of these and the sum of their columns.
        Row and column j of what is returned are each to be divided by the square root of the count to have one of them.
    """
    if counts is None:
        counts = matrix.new_ones(matrix.shape[-1])
    rows = matrix.abs().sum(dim=-1).amax(dim=(-2, -1))
    columns = ((counts[:, None] * matrix.abs()).sum(dim=-2) / counts).amax(dim=(-2, -1))
    roots = counts.sqrt()
    matrix = matrix * roots[:, None] / roots
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    found = matrix.transpose(-1, -2) / (rows * columns)[..., None, None, None]
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
        """Return (B, side^2, P) tokens with their neighbourhood, the class tokens not among them."""
        # Sums of convolutions are convolutions: one of the largest edge, whose middle holds the tokens themselves.
        edges = [one for one in self.convolutions if isinstance(one, nn.Conv2d)]
        largest = max(one.weight.shape[-1] for one in edges)
        kernels = [F.pad(one.weight, [(largest - one.weight.shape[-1]) // 2] * 4) for one in edges]
        itself = F.pad(tokens.new_ones(1, 1, 1, 1), [largest // 2] * 4)
        kernel = torch.stack(kernels).sum(dim=0) + itself  # (P, 1, 7, 7)
        bias = torch.stack([one.bias for one in edges if one.bias is not None]).sum(dim=0)
        if tokens.dtype == torch.float64 and not tokens.requires_grad:
            return self._by_shifts(tokens, side, kernel[:, 0], bias)
        square = tokens.transpose(1, 2).reshape(
            len(tokens), -1, side, side
        )  # (B, side^2, P) -> (B, P, side, side)
        total = F.conv2d(square, kernel, bias, padding=largest // 2, groups=len(kernel))
        flat: Tensor = total.flatten(2).transpose(1, 2)
        return flat  # (B, P, side, side) -> (B, side^2, P)

    def _by_shifts(self, tokens: Tensor, side: int, kernel: Tensor, bias: Tensor) -> Tensor:
        """The same as a sum of shifted squares, which takes a fraction of the time: libraries have no fast depthwise
        convolution in float64."""
        square = tokens.reshape(len(tokens), side, side, -1)  # (B, side^2, P) -> (B, side, side, P)
        reach = kernel.shape[-1] // 2
        around = F.pad(square, (0, 0, reach, reach, reach, reach))
        total = bias.expand_as(square).clone()
        near = range(
            max(0, reach - side + 1), min(2 * reach, reach + side - 1) + 1
        )  # further away are zeros only
        for down in near:
            for right in near:
                total.addcmul_(around[:, down : down + side, right : right + side], kernel[:, down, right])
        return total.flatten(1, 2)

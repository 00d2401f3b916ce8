"""ZoomMIL (Thandiackal et al., ECCV 2022, arXiv 2204.12454): which tiles are worth a look at the next magnification.

Each magnification has a projection and gated attention that pools its tiles; a second, auxiliary attention picks the k
tiles whose children are read at the next one. The sum of the pooled embeddings is classified, with cross-entropy. In
training the choice is differentiable: the mean top k of 100 perturbed copies of the auxiliary attention (Berthet et
al. 2020; Cordonnier et al., CVPR 2021), so that a chosen tile is a mixture and its children are the mixtures of theirs.
At prediction it is the top k, and `children_to_read` says which, so that nothing else need be read: k = 12 and sigma
0.002, at 1.25x, 2.5x and 10x in the paper.

Choices: tiles without tissue have no children; a mixture counts as far as its children are there, and the auxiliary
attention's gradient is the diagonal estimate of the authors' code. Embeddings may be normalised first, as in all
heads here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.attention import (
    GatedAttention,
    NormalisedSpec,
    input_norm,
    pooled_without_each,
    scores_as_logits,
)
from napari_lrmil.model.mil.base import AnyBag, Bag, MILModel, MILOutput, finest_bag


class ZoomMILSpec(NormalisedSpec):
    """Everything needed to build a `ZoomMIL`, weights apart."""

    name: Literal["zoommil"] = "zoommil"
    zoom: tuple[Annotated[int, Field(ge=2, le=64)], ...] = Field(
        default=(2, 4),
        min_length=1,
        max_length=5,
        description="from each magnification to the next: the tiles along an edge of one; [2, 4] for 1.25x, 2.5x, 10x",
    )
    k: int = Field(
        default=12, ge=1, le=4096, description="tiles whose children are read at the next magnification"
    )
    sigma: float = Field(default=0.002, gt=0, description="of the noise on the choice, in training only")
    samples: int = Field(default=100, ge=1, le=10_000, description="perturbed copies, in training only")
    projection_dim: int = Field(
        default=512, gt=0, le=8192, description="width of the layers before the attention"
    )
    hidden_dim: int = Field(default=256, gt=0, le=8192, description="width of the attentions' hidden layers")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after each hidden layer, in training only")

    @property
    def factors(self) -> tuple[int, ...]:
        """As in `MILSpec`: (8, 4, 1) for a zoom of (2, 4)."""
        return tuple(math.prod(self.zoom[level:]) for level in range(len(self.zoom) + 1))

    def build(self) -> ZoomMIL:
        """Return the head with fresh weights."""
        return ZoomMIL(self)


class _Magnification(nn.Module):
    """What is trained for one of them; the finest has no choice to make."""

    def __init__(self, spec: ZoomMILSpec, *, finest: bool) -> None:
        super().__init__()
        self.norm = input_norm(spec.embed_dim, spec.normalise)
        self.projection = nn.Sequential(
            nn.Linear(spec.embed_dim, spec.projection_dim), nn.ReLU(), nn.Dropout(spec.dropout)
        )
        self.attention = GatedAttention(spec.projection_dim, spec.hidden_dim, dropout=spec.dropout)
        self.choice = (
            None if finest else GatedAttention(spec.projection_dim, spec.hidden_dim, dropout=spec.dropout)
        )


class _Mixtures(NamedTuple):
    """V tiles of one magnification, each a weighted sum of U tiles of its bag."""

    embeddings: Tensor
    """(V, D)"""
    present: Tensor
    """(V,) how much of each is there, 0 to 1"""
    weights: Tensor | None
    """(V, U); None: each is a tile of its own"""
    tiles: Tensor
    """(U,) indices in the bag"""


class ZoomMIL(MILModel):
    """One bag a magnification, the coarsest first; see the module."""

    def __init__(self, spec: ZoomMILSpec) -> None:
        super().__init__()
        self.spec = spec
        self.magnifications = len(spec.factors)
        self.levels = nn.ModuleList(
            _Magnification(spec, finest=level == len(spec.zoom)) for level in range(len(spec.factors))
        )
        self.classifier = nn.Linear(spec.projection_dim, spec.n_classes)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one slide.

        Parameters
        ----------
        bag : tuple of Bag
            One a magnification; all but the first with `parents`. At prediction the finer ones need no more than the
            children of the tiles that `children_to_read` names.

        Returns
        -------
        MILOutput
            Attention (1, N) of the finest bag, 0 on what wasn't chosen. ``extras``: "attention_logits_0" (N_0,) ... of
            the coarser bags, and at prediction "chosen_0" ... indices of the tiles whose children were looked at.
        """
        pooled, extras, attention, _ = self._zoom(several_bags(bag, self.magnifications))
        bag_embedding = torch.stack(pooled).sum(dim=0)
        return MILOutput(
            bag_logits=self.classifier(bag_embedding),
            attention_logits=attention[None],
            bag_embedding=bag_embedding,
            extras=extras,
        )

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """As in `MILModel`: of the finest bag, whose tiles choose nothing, only the pooling changes."""
        base, tiles, logits, values = self._of_finest(bag)
        there = kept[:, tiles]  # (S, U)
        scores = torch.softmax(
            logits.masked_fill(~there, -torch.inf), dim=1
        ).nan_to_num()  # rows of nothing: zeros
        found = base + scores @ values  # (S, C)
        return found * kept.any(dim=1, keepdim=True)

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form."""
        base, tiles, logits, values = self._of_finest(bag)
        n = len(finest_bag(bag))
        if n == 1:
            return torch.zeros_like(base)[None]
        found = (base + torch.softmax(logits, dim=0) @ values).repeat(n, 1)
        if len(tiles):
            found[tiles] = base + pooled_without_each(logits[None], values)
        return found

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: a tile that was chosen has all of the finest attention."""
        base, tiles, _, values = self._of_finest(bag)
        found = base.repeat(len(finest_bag(bag)), 1)
        found[tiles] += values
        return found

    def _of_finest(self, bag: AnyBag) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """At prediction: logits (C,) of the coarser bags; indices (U,) of the finest tiles that count, their attention
        logits (U,) and what each would add to the logits (U, C)."""
        bags = several_bags(bag, self.magnifications)
        pooled, _, _, tiles = self._zoom(bags)
        module = self.levels[-1]
        assert isinstance(module, _Magnification)
        instances = module.projection(module.norm(bags[-1].embeddings[tiles]))  # (U, P)
        base: Tensor = self.classifier(torch.stack(pooled[:-1]).sum(dim=0))
        return base, tiles, module.attention(instances)[0], instances @ self.classifier.weight.T

    def _zoom(self, bags: tuple[Bag, ...]) -> tuple[list[Tensor], dict[str, Tensor], Tensor, Tensor]:
        """What each magnification pools (P,), the extras, the finest attention (N,), and which tiles (U,) have some of it."""
        first = bags[0].embeddings
        mixtures = _Mixtures(
            first, first.new_ones(len(first)), None, torch.arange(len(first), device=first.device)
        )
        pooled: list[Tensor] = []
        extras: dict[str, Tensor] = {}
        for level, (module, one) in enumerate(zip(self.levels, bags, strict=True)):
            assert isinstance(module, _Magnification)
            instances = module.projection(module.norm(mixtures.embeddings))  # (V, P)
            logits = module.attention(instances)[0]  # (V,)
            scores = _present_softmax(logits, mixtures.present)
            pooled.append(scores @ instances)  # (P,)
            of_tiles = scores if mixtures.weights is None else scores @ mixtures.weights  # (U,)
            attention = scores_as_logits(first.new_zeros(len(one)).index_add(0, mixtures.tiles, of_tiles))
            if module.choice is None:
                break
            extras[f"attention_logits_{level}"] = attention
            chosen = self._choose(module.choice(instances)[0], mixtures.present)  # (k, V)
            weights = chosen if mixtures.weights is None else chosen @ mixtures.weights  # (k, U)
            if not self.training:
                extras[f"chosen_{level}"] = mixtures.tiles[weights.sum(dim=0) > 0]
            mixtures = _children(weights, mixtures.tiles, one, bags[level + 1])
        return pooled, extras, attention, mixtures.tiles

    def children_to_read(self, read: Sequence[Bag]) -> Tensor:
        """Return whose children the next magnification needs.

        Parameters
        ----------
        read : sequence of Bag
            What has been read, the coarsest first: fewer than `magnifications`.

        Returns
        -------
        (k,) int64 tensor
            Indices of tiles in the last of them, in order.

        Raises
        ------
        ValueError
            Where nothing is left to read.
        """
        if not 0 < len(read) < self.magnifications:
            raise ValueError(f"{len(read)} of {self.magnifications} magnifications are read")
        here = torch.arange(len(read[0]), device=read[0].embeddings.device)
        for level, one in enumerate(read):
            module = self.levels[level]
            assert isinstance(module, _Magnification)
            assert module.choice is not None
            if level:
                assert one.parents is not None
                here = torch.isin(one.parents, here).nonzero()[:, 0]
            if len(here):
                logits = module.choice(module.projection(module.norm(one.embeddings[here])))[0]
                here = here[logits.topk(min(self.spec.k, len(here))).indices].sort().values
        return here

    def _choose(self, logits: Tensor, present: Tensor) -> Tensor:
        """Return (k, V): which tile each place of the choice holds, in training a mean over perturbed choices."""
        there = int((present > 0).sum())
        k = min(self.spec.k, there)
        if self.training:
            scores = _present_softmax(logits, present)
            found: Tensor = _PerturbedTopK.apply(scores, k, self.spec.samples, self.spec.sigma)
            return found
        masked = logits.masked_fill(present <= 0, -torch.inf)
        indices = masked.topk(k).indices.sort().values
        return torch.zeros(k, len(logits), dtype=logits.dtype, device=logits.device).scatter(
            1, indices[:, None], 1.0
        )


class _PerturbedTopK(torch.autograd.Function):
    """Mean over noise of the top k as indicators, each sample's in order of the tiles; see the module."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, samples: int, sigma: float) -> Tensor:
        """Return (k, V) of (V,) scores."""
        noise = torch.randn(samples, len(scores), dtype=scores.dtype, device=scores.device)
        indices = (scores + sigma * noise).topk(k, dim=1).indices.sort(dim=1).values  # (samples, k)
        ctx.save_for_backward(indices, noise.gather(1, indices))
        ctx.shape, ctx.sigma = (k, len(scores)), sigma
        ones = torch.ones(k, samples, dtype=scores.dtype, device=scores.device)
        return scores.new_zeros(k, len(scores)).scatter_add(1, indices.T, ones) / samples

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Sum over places of gradient times E[indicator noise] / sigma."""
        indices, noise = ctx.saved_tensors  # (samples, k) both
        expected = grads[0].new_zeros(ctx.shape).scatter_add(1, indices.T, noise.T) / (len(noise) * ctx.sigma)
        return (grads[0] * expected).sum(dim=0), None, None, None


def _present_softmax(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax of (V,) logits, each counted as far as it is present; zeros where nothing is."""
    there = present > 1e-6
    if not bool(there.any()):
        return torch.zeros_like(logits)
    weighed = logits + present.clamp_min(1e-6).log()
    return torch.softmax(weighed.masked_fill(~there, -torch.inf), dim=0)


def _children(weights: Tensor, tiles: Tensor, coarse: Bag, fine: Bag) -> _Mixtures:
    """Return the children of k mixtures (k, U) of tiles (U,) of the coarser bag: as many for each as any tile has."""
    used = (weights.detach() > 0).any(dim=0)
    weights, tiles = weights[:, used], tiles[used]  # (k, U)
    table = child_table(coarse, fine)[tiles]  # (U, c) indices in the finer bag, -1 for none
    there = (table >= 0).to(weights.dtype)
    embeddings = fine.embeddings[table.clamp_min(0)] * there[..., None] if len(fine) else None  # (U, c, D)
    n, c = len(weights), table.shape[1]
    if embeddings is None or c == 0:
        return _Mixtures(
            fine.embeddings[:0], weights.new_zeros(0), weights.new_zeros(0, 0), tiles.new_zeros(0)
        )
    present = (weights @ there).flatten()  # (k, c) -> (k c,)
    # A mixture without some of its tiles' children is the mean of those that are there.
    mixed = (weights @ embeddings.flatten(1)).view(n * c, -1) / present.clamp_min(1e-6)[:, None]  # (k c, D)
    # (k, U) -> (k, c, U, c): child place of a mixture is made of the same place of its tiles only
    places = torch.eye(c, dtype=weights.dtype, device=weights.device)
    of_tiles = weights[:, None, :, None] * places[None, :, None, :] * there[None, None]
    of_tiles = of_tiles.reshape(n * c, -1) / present.clamp_min(1e-6)[:, None]  # (k c, U c)
    known = table.flatten() >= 0
    return _Mixtures(mixed, present, of_tiles[:, known], table.flatten()[known])


def child_table(coarse: Bag, fine: Bag) -> Tensor:
    """Return (N, c): indices in the finer bag of the children of each tile, -1 for none.

    A child stands at its place within the tile, row by row, where both bags have places and pixel sizes; else
    children stand in the order of the bag.

    Parameters
    ----------
    coarse, fine : Bag
        `fine` with `parents`.
    """
    if fine.parents is None:
        raise ValueError("a finer bag needs the index of each tile's parent")
    known = (fine.parents >= 0).nonzero()[:, 0]
    parents = fine.parents[known]
    if coarse.mpp is not None and fine.mpp is not None and fine.places is not None:
        ratio = round(coarse.mpp / fine.mpp)
        x, y = (fine.places[known] % ratio).unbind(dim=1)
        slot, width = y * ratio + x, ratio**2
    else:
        order = parents.argsort(stable=True)
        counts = torch.bincount(parents, minlength=len(coarse))
        starts = counts.cumsum(0) - counts
        slot = torch.empty_like(parents)
        slot[order] = torch.arange(len(parents), device=parents.device) - starts[parents[order]]
        width = int(counts.max()) if len(parents) else 0
    table = parents.new_full((len(coarse), width), -1)
    table[parents, slot] = known
    return table


def several_bags(bag: AnyBag, magnifications: int) -> tuple[Bag, ...]:
    """Return the bags of a head that reads several magnifications.

    Raises
    ------
    ValueError
        Where they are fewer or more, the coarsest is empty, or a finer one has no parents.
    """
    if not isinstance(bag, tuple) or len(bag) != magnifications:
        given = len(bag) if isinstance(bag, tuple) else 1
        raise ValueError(f"bags of {given} magnifications for a head that reads {magnifications}")
    if not len(bag[0]):
        raise ValueError("the coarsest bag is empty")
    if any(finer.parents is None for finer in bag[1:]):
        raise ValueError("a finer bag needs the index of each tile's parent")
    return bag

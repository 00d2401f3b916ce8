"""HDMIL, hierarchical distillation MIL (Dong et al., CVPR 2025, arXiv 2502.21130): tiles that are skipped unread.

Two networks. The MIL of the finer bag is CLAM-MB with classifiers of Chebyshev polynomials (degree 12) and a keep mask
beside it: a tile is kept for a class where the sigmoid of its attention logit is above 0.5, in training with Gumbel noise
and temperature 0.7. It learns to say the same from the kept tiles as from all: 0.7 cross-entropy + 0.3 instance loss +
0.5 KL of the kept bag's classes to the whole bag's + 0.5 MSE of their embeddings + 2 MSE of the rate of kept tiles to
`keep_rate`. The light network reads the coarser bag and learns that mask (L1, and MSE of the rate), so that at
prediction the finer tiles that it doesn't keep are never read: `children_to_read` says whose children are.

Choices. The paper's light network is a MobileNet on the pixels of each tile's counterpart at 1.25x; here it is a small
perceptron on the embeddings of the coarser bag, and a coarse tile is kept where any of its children is. The paper
trains it after the MIL; here at once, as nothing of its loss reaches the MIL. The kept bag's attention is normalised a
class in training too (the authors' code there divides by the sum over classes), the union of masks is that of all
classes (there of the first two). Where a class keeps nothing, its best tile stays. Embeddings may be normalised first,
as in all heads here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.model.mil.attention import (
    GatedAttention,
    input_norm,
    pooled_without_each,
    scores_as_logits,
    xavier_init,
)
from napari_lrmil.model.mil.base import AnyBag, Bag, MILModel, MILOutput, bag_cross_entropy
from napari_lrmil.model.mil.clam import InstanceLossSpec, attention_ends, clam_instance_loss
from napari_lrmil.model.mil.zoommil import several_bags


class HDMILSpec(InstanceLossSpec):
    """Everything needed to build an `HDMIL`, weights apart."""

    name: Literal["hdmil"] = "hdmil"
    zoom: int = Field(
        default=8, ge=2, le=64, description="tiles of the finer bag along an edge of one of the coarser"
    )
    keep_rate: float = Field(
        default=0.6, gt=0, le=1, description="share of finer tiles to keep; the paper: 0.6 to 0.7"
    )
    temperature: float = Field(default=0.7, gt=0, description="of the mask, in training")
    degree: int = Field(default=12, ge=1, le=64, description="of the classifiers' polynomials")
    light_dim: int = Field(default=256, gt=0, le=8192, description="width of the light network")

    @property
    def factors(self) -> tuple[int, ...]:
        """As in `MILSpec`."""
        return (self.zoom, 1)

    def build(self) -> HDMIL:
        """Return the head with fresh weights."""
        return HDMIL(self)


class HDMIL(MILModel):
    """A MIL of the finer bag and a light network on the coarser one; see the module."""

    magnifications = 2

    def __init__(self, spec: HDMILSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm = input_norm(spec.embed_dim, spec.normalise)
        self.projection = nn.Sequential(
            nn.Linear(spec.embed_dim, spec.projection_dim), nn.ReLU(), nn.Dropout(spec.dropout)
        )
        self.attention = GatedAttention(
            spec.projection_dim, spec.hidden_dim, n_branches=spec.n_classes, dropout=spec.dropout
        )
        self.classifiers = nn.ModuleList(
            Chebyshev(spec.projection_dim, 1, spec.degree) for _ in range(spec.n_classes)
        )
        self.instance_classifiers = nn.ModuleList(
            Chebyshev(spec.projection_dim, 2, spec.degree) for _ in range(spec.n_classes)
        )
        self.light = nn.Sequential(
            input_norm(spec.embed_dim, spec.normalise),
            nn.Linear(spec.embed_dim, spec.light_dim),
            nn.ReLU(),
            nn.Linear(spec.light_dim, spec.n_classes),
        )
        xavier_init(self)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one slide.

        Parameters
        ----------
        bag : tuple of two Bags
            Coarser and finer, the finer with `parents`. At prediction the finer one needs no more than the children
            of the tiles that `children_to_read` names.

        Returns
        -------
        MILOutput
            Attention (C, N) of the finer bag. In training of the whole bag, with what `losses` needs in ``extras``; at
            prediction of the kept tiles, with ``extras["kept"]`` (C, N) 1 where a tile was.
        """
        coarse, fine = several_bags(bag, 2)
        instances, logits = self._attended(fine)
        if self.training:
            assert fine.parents is not None
            return self._train(coarse, fine.parents, instances, logits)
        mask = _at_least_one(self._inside(coarse, fine), logits).to(logits.dtype)  # (C, N)
        scores = masked_scores(logits, mask)
        embeddings = scores @ instances  # (C, P)
        return MILOutput(
            bag_logits=self._classify(embeddings),
            attention_logits=scores_as_logits(scores),
            bag_embedding=embeddings,
            extras={"kept": mask},
        )

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """As in `MILModel`, in one masked pass: which tiles the light network keeps doesn't depend on the finer bag."""
        coarse, fine = several_bags(bag, 2)
        instances, logits = self._attended(fine)
        inside = self._inside(coarse, fine)
        found = logits.new_zeros((len(kept), self.spec.n_classes))
        for place, (classify, row, of_class) in enumerate(zip(self.classifiers, logits, inside, strict=True)):
            there = row.masked_fill(~kept, -torch.inf)  # (S, N)
            # Where a class keeps nothing of a part, the part's best tile stays.
            best = F.one_hot(there.argmax(dim=1), len(row)).bool()
            mask = of_class & kept
            mask = mask | (best & ~mask.any(dim=1, keepdim=True))
            scores = torch.softmax(there.masked_fill(~mask, -torch.inf), dim=1).nan_to_num()
            found[:, place] = classify(scores @ instances)[:, 0]
        return found * kept.any(dim=1, keepdim=True)

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form where a class keeps other tiles beside the one that is left out."""
        coarse, fine = several_bags(bag, 2)
        instances, logits = self._attended(fine)
        n = len(instances)
        if n == 1:
            return logits.new_zeros((1, self.spec.n_classes))
        inside = self._inside(coarse, fine)
        found = torch.empty_like(logits)  # (C, N)
        for place, (classify, row, of_class) in enumerate(zip(self.classifiers, logits, inside, strict=True)):
            indices = of_class.nonzero()[:, 0]
            if len(indices) > 1:
                some = instances[indices]
                of_each = (torch.softmax(row[indices], dim=0) @ some).repeat(n, 1)  # (N, P)
                of_each[indices] = pooled_without_each(row[None, indices], some)
                found[place] = classify(of_each)[:, 0]
            else:  # one tile has it all: without it the best of the others
                best, second = row.topk(2).indices.tolist()
                only = int(indices[0]) if len(indices) else best
                found[place] = classify(instances[only][None])[0, 0]
                found[place, only] = classify(instances[second if only == best else best][None])[0, 0]
        return found.T

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: a tile alone has all of the attention of each class."""
        instances, _ = self._attended(several_bags(bag, 2)[1])
        return torch.cat([classify(instances) for classify in self.classifiers], dim=1)

    def _attended(self, fine: Bag) -> tuple[Tensor, Tensor]:
        """Instances (N, P) and attention logits (C, N)."""
        instances: Tensor = self.projection(self.norm(fine.embeddings))
        return instances, self.attention(instances)

    def _inside(self, coarse: Bag, fine: Bag) -> Tensor:
        """Which finer tiles lie in coarse ones that the light network keeps, (C, N) bool."""
        parents = fine.parents
        assert parents is not None
        return (self._keeps(coarse)[parents.clamp_min(0)] & (parents >= 0)[:, None]).T

    def losses(
        self, output: MILOutput, label: int, *, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the terms of both networks, weighted as in the paper.

        Of the MIL "ce", "instance", "kept_classes", "kept_embeddings" and "rate"; of the light network "light_mask"
        and "light_rate".
        """
        extras = output.extras
        assert output.bag_embedding is not None
        instance = clam_instance_loss(
            extras["end_logits"], label, kind=self.spec.instance_loss, subtyping=self.spec.subtyping
        )
        kept_classes = F.kl_div(
            torch.log_softmax(extras["kept_logits"], dim=0),
            torch.log_softmax(output.bag_logits, dim=0),
            reduction="sum",
            log_target=True,
        )
        return {
            "ce": 0.7 * bag_cross_entropy(output.bag_logits, label, class_weights),
            "instance": 0.3 * instance,
            "kept_classes": 0.5 * kept_classes,
            "kept_embeddings": 0.5 * F.mse_loss(extras["kept_embeddings"], output.bag_embedding),
            "rate": 2 * (extras["kept_rate"] - self.spec.keep_rate) ** 2,
            "light_mask": extras["light_mask"],
            "light_rate": extras["light_rate"],
        }

    def children_to_read(self, read: Sequence[Bag]) -> Tensor:
        """Return the indices of coarse tiles whose children any class keeps, in order.

        Parameters
        ----------
        read : sequence of one Bag
            The coarser.

        Returns
        -------
        (k,) int64 tensor
        """
        if len(read) != 1:
            raise ValueError(f"{len(read)} of 2 magnifications are read")
        return self._keeps(read[0]).any(dim=1).nonzero()[:, 0]

    def _train(self, coarse: Bag, parents: Tensor, instances: Tensor, logits: Tensor) -> MILOutput:
        scores = torch.softmax(logits, dim=1)
        embeddings = scores @ instances  # (C, P)
        mask = binary_mask(logits, temperature=self.spec.temperature, noise=True)  # (C, N)
        kept = masked_scores(logits, mask) @ instances  # (C, P)
        ends = attention_ends(logits, self.spec.k)  # (C, 2 k)
        end_logits = torch.stack(
            [classify(instances[end]) for classify, end in zip(self.instance_classifiers, ends, strict=True)]
        )  # (C, 2 k, 2)
        target, has_children = self._target(logits.detach(), parents, len(coarse))
        light = binary_mask(self.light(coarse.embeddings)[has_children].T, noise=False)  # (C, n)
        return MILOutput(
            bag_logits=self._classify(embeddings),
            attention_logits=logits,
            bag_embedding=embeddings,
            extras={
                "end_logits": end_logits,
                "kept_logits": self._classify(kept),
                "kept_embeddings": kept,
                "kept_rate": union(mask).sum() / max(1, len(instances)),
                "light_mask": (light - target).abs().mean() if light.numel() else light.sum(),
                "light_rate": (union(light).mean() - union(target).mean()) ** 2
                if light.numel()
                else light.sum(),
            },
        )

    def _target(self, logits: Tensor, parents: Tensor, n_coarse: int) -> tuple[Tensor, Tensor]:
        """The MIL's mask without noise, gathered onto coarse tiles with children: (C, n), and which these are (n,)."""
        known = parents >= 0
        kept = (logits[:, known] > 0).to(logits.dtype)  # (C, N)
        gathered = logits.new_zeros(len(logits), n_coarse).scatter_reduce(
            1, parents[known].expand(len(logits), -1), kept, reduce="amax", include_self=True
        )
        has_children = torch.bincount(parents[known], minlength=n_coarse) > 0
        return gathered[:, has_children], has_children.nonzero()[:, 0]

    def _keeps(self, coarse: Bag) -> Tensor:
        """Which coarse tiles the light network keeps, (N, C) bool; at least one for each class."""
        logits = self.light(coarse.embeddings).T
        return _at_least_one(logits > 0, logits).T

    def _classify(self, embeddings: Tensor) -> Tensor:
        """Each class's classifier on its own embedding: (C, P) -> (C,)."""
        return torch.cat(
            [classify(one[None])[0] for classify, one in zip(self.classifiers, embeddings, strict=True)]
        )


class Chebyshev(nn.Module):
    """Sum over inputs i and degrees d of w[i, o, d] T_d(tanh(x_i)), T_d the Chebyshev polynomials of the first kind."""

    def __init__(self, n_in: int, n_out: int, degree: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out, degree + 1))
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (M, n_out) of (M, n_in)."""
        x = torch.tanh(x)
        powers = [torch.ones_like(x), x]
        while len(powers) < self.weight.shape[2]:
            powers.append(2 * x * powers[-1] - powers[-2])
        return torch.einsum("mid,iod->mo", torch.stack(powers, dim=2), self.weight)


def binary_mask(logits: Tensor, *, temperature: float = 1.0, noise: bool) -> Tensor:
    """Return 1 where the sigmoid of `logits` is above 0.5, else 0, with the gradient of the sigmoid.

    Parameters
    ----------
    logits : tensor
    temperature : float
    noise : bool
        Whether to add the difference of two Gumbel variables, a logistic one, before it is divided by the temperature.
    """
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = (logits + uniform.logit()) / temperature
    soft = torch.sigmoid(logits)
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def union(mask: Tensor) -> Tensor:
    """Return (N,): 1 where any of (C, N) is, with the gradient of their sum."""
    total = mask.sum(dim=0)
    return (total.detach() > 0.5).to(mask.dtype) - total.detach() + total


def masked_scores(logits: Tensor, mask: Tensor) -> Tensor:
    """Return (C, N): exp(logits) times mask over its sum; zeros where nothing is kept."""
    if not logits.shape[1]:
        return logits
    # Highest of the kept ones: relative to one that isn't kept, all of them could vanish.
    highest = logits.detach().masked_fill(mask.detach() <= 0, -torch.inf).amax(dim=1, keepdim=True)
    highest = torch.where(highest.isfinite(), highest, logits.detach().amax(dim=1, keepdim=True))
    weights = torch.exp((logits - highest).clamp_max(0)) * mask
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-16)


def _at_least_one(kept: Tensor, logits: Tensor) -> Tensor:
    """(C, N) bool, in rows that keep nothing the place of the highest logit."""
    if not kept.shape[1]:
        return kept
    best = torch.zeros_like(kept).scatter(1, logits.argmax(dim=1, keepdim=True), True)
    return kept | (best & ~kept.any(dim=1, keepdim=True))

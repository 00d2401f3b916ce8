"""DTFD-MIL, double-tier feature distillation (Zhang et al., CVPR 2022, arXiv 2203.12081).

A bag is split into pseudo-bags, each with the slide's label. The first tier, a gated ABMIL, classifies every pseudo-bag
and distils it: "afs" keeps its attention-weighted embedding, "max" the instance that its class activation map gives
the highest probability, "maxmin" the highest and the lowest. The second tier, another gated ABMIL, classifies the
distilled instances. Both are trained with the cross-entropy: the mean over pseudo-bags, and the slide's.

In training pseudo-bags are drawn at random; at prediction they are always the same: tiles are taken in the order of
the fractional part of n times the golden ratio, which spreads each pseudo-bag over the whole bag, so the same bag gives
the same answer, but the order of its tiles counts.

Choices: 4 pseudo-bags and one instance of each, the defaults of the authors' code. They rank instances by the
probability of the last class, of two; of more classes it is the one that the first tier sees in the pseudo-bag.
Embeddings may be normalised first, as in all heads here.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.attention import GatedAttention, NormalisedSpec, input_norm
from napari_lrmil.model.mil.base import (
    AnyBag,
    MILModel,
    MILOutput,
    bag_cross_entropy,
    logits_of_parts,
    one_bag,
)

_GOLDEN = (5**0.5 - 1) / 2


class DTFDSpec(NormalisedSpec):
    """Everything needed to build a `DTFD`, weights apart."""

    name: Literal["dtfd"] = "dtfd"
    selection: Literal["afs", "max", "maxmin"] = Field(
        default="afs",
        description="what a pseudo-bag is distilled to: its embedding, its top instance, top and bottom",
    )
    pseudo_bags: int = Field(default=4, ge=1, le=1024)
    per_end: int = Field(
        default=1, ge=1, le=1024, description="instances of a pseudo-bag at each end; not for afs"
    )
    projection_dim: int = Field(
        default=512, gt=0, le=8192, description="width of the layer before the attention"
    )
    hidden_dim: int = Field(default=128, gt=0, le=8192, description="width of the attentions' hidden layers")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before both classifiers, in training only")

    def build(self) -> DTFD:
        """Return the head with fresh weights."""
        return DTFD(self)


class DTFD(MILModel):
    """Two tiers of gated attention over pseudo-bags; see the module."""

    order_matters = True

    def __init__(self, spec: DTFDSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm = input_norm(spec.embed_dim, spec.normalise)
        self.projection = nn.Sequential(nn.Linear(spec.embed_dim, spec.projection_dim, bias=False), nn.ReLU())
        self.dropout = nn.Dropout(spec.dropout)
        self.first_attention = GatedAttention(spec.projection_dim, spec.hidden_dim)
        self.first_classifier = nn.Linear(spec.projection_dim, spec.n_classes)
        self.second_attention = GatedAttention(spec.projection_dim, spec.hidden_dim)
        self.second_classifier = nn.Linear(spec.projection_dim, spec.n_classes)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        MILOutput
            Attention (1, N): with "afs" the weight of a tile in the result, the attention of its pseudo-bag times its
            own within, else that of the first tier. ``extras``: "pseudo_bag_logits" (M, C) and
            "class_instance_logits" (N, C), both of the first tier's classifier.
        """
        return self._tiers(*self._first(bag))

    def _first(self, bag: AnyBag) -> tuple[Tensor, Tensor]:
        """Projected instances (N, P), and the first tier's attention logits (N,)."""
        instances: Tensor = self.projection(self.norm(one_bag(bag).embeddings))
        return instances, self.first_attention(instances)[0]

    def _tiers(self, instances: Tensor, logits: Tensor) -> MILOutput:
        pseudo_bags = self._split(len(instances), instances.device)
        embeddings, distilled, within = [], [], torch.zeros_like(logits)
        for indices in pseudo_bags:
            members = instances[indices]  # (n, P)
            log_scores = torch.log_softmax(logits[indices], dim=0)  # (n,)
            embedding = log_scores.exp() @ members  # (P,)
            embeddings.append(embedding)
            if self.spec.selection == "afs":
                distilled.append(embedding[None])
                within = within.index_put((indices,), log_scores)
            else:
                distilled.append(members[self._ends(members, log_scores.detach().exp(), embedding)])
        chosen = torch.cat(distilled)  # (M,) or (M k, P)
        second = self.second_attention(chosen)[0]  # (M k,)
        bag_embedding = torch.softmax(second, dim=0) @ chosen  # (P,)
        if self.spec.selection == "afs":
            of_bag = torch.log_softmax(second, dim=0)  # (M,)
            logits = within + torch.zeros_like(logits).index_put(
                (torch.cat(pseudo_bags),),
                torch.cat([of_bag[m].expand(len(indices)) for m, indices in enumerate(pseudo_bags)]),
            )
        return MILOutput(
            bag_logits=self.second_classifier(self.dropout(bag_embedding)),
            attention_logits=logits[None],
            bag_embedding=bag_embedding,
            extras={
                "class_instance_logits": self.first_classifier(instances),
                "pseudo_bag_logits": self.first_classifier(self.dropout(torch.stack(embeddings))),
            },
        )

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """As in `MILModel`, what the first tier says of each tile worked out once."""
        instances, logits = self._first(bag)
        return logits_of_parts(kept, lambda part: self._tiers(instances[part], logits[part]).bag_logits)

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: a tile alone is all that both tiers have."""
        logits: Tensor = self.second_classifier(self._first(bag)[0])
        return logits

    def losses(
        self, output: MILOutput, label: int, *, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the slide's cross-entropy as "ce" and the mean over its pseudo-bags as "pseudo_bags"."""
        of_each = [
            bag_cross_entropy(logits, label, class_weights) for logits in output.extras["pseudo_bag_logits"]
        ]
        return {
            "ce": bag_cross_entropy(output.bag_logits, label, class_weights),
            "pseudo_bags": torch.stack(of_each).mean(),
        }

    def _split(self, n: int, device: torch.device) -> tuple[Tensor, ...]:
        """Indices of each pseudo-bag, as many in each but for one; fewer pseudo-bags where there are fewer tiles."""
        if self.training:
            order = torch.randperm(n, device=device)
        else:
            order = (torch.arange(n, dtype=torch.float64) * _GOLDEN).frac().argsort(stable=True).to(device)
        return order.tensor_split(min(self.spec.pseudo_bags, n))

    def _ends(self, members: Tensor, scores: Tensor, embedding: Tensor) -> Tensor:
        """Indices of the instances of a pseudo-bag that are kept, (k,) or (2 k,), by its class activation map."""
        with torch.no_grad():
            weighed = (scores[:, None] * members) @ self.first_classifier.weight.T  # (n, C)
            column = -1
            if self.spec.n_classes > 2:
                column = int(self.first_classifier(embedding).argmax())
            order = torch.softmax(weighed, dim=1)[:, column].argsort(descending=True, stable=True)
        k = min(self.spec.per_end, len(order))
        return order[:k] if self.spec.selection == "max" else torch.cat([order[:k], order[len(order) - k :]])

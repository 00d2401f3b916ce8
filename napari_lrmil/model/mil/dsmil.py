"""DSMIL, dual-stream MIL (Li, Li & Eliceiri, CVPR 2021, arXiv 2011.08939).

The first stream classifies each instance; a class's score is that of its highest instance, the critical one. In the
second a query is made of each instance, attention is the softmax over the bag of <q_n, q_critical> / sqrt(Q), and the
values pooled by it give one bag embedding a class, from which one linear layer over all of them says the classes
(the authors' convolution over the whole width). The bag's score is the mean of both streams; the loss is
0.5 cross-entropy of the one and 0.5 of the other.

Choices: queries and values are linear, as in the paper's equations (the authors' later code adds a tanh and a ReLU by
option); the division by sqrt(Q) is the code's; both losses are cross-entropies over the classes instead of one
sigmoid a class, as for all heads here; embeddings may be normalised first.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.attention import NormalisedSpec, input_norm, pooled_without_each
from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, bag_cross_entropy, one_bag


class DSMILSpec(NormalisedSpec):
    """Everything needed to build a `DSMIL`, weights apart."""

    name: Literal["dsmil"] = "dsmil"
    query_dim: int = Field(default=128, gt=0, le=8192, description="width of the queries")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="on what the values are made of, in training only"
    )
    bag_weight: float = Field(
        default=0.5, ge=0, le=1, description="of the bag stream's loss; the max stream has the rest"
    )

    def build(self) -> DSMIL:
        """Return the head with fresh weights."""
        return DSMIL(self)


class DSMIL(MILModel):
    """Two streams, critical instance and similarity to it; see the module."""

    def __init__(self, spec: DSMILSpec) -> None:
        super().__init__()
        self.spec = spec
        dim, n_classes = spec.embed_dim, spec.n_classes
        self.norm = input_norm(dim, spec.normalise)
        self.instance_classifier = nn.Linear(dim, n_classes)
        self.query = nn.Linear(dim, spec.query_dim)
        self.dropout = nn.Dropout(spec.dropout)
        self.value = nn.Linear(dim, dim)
        self.classifier = nn.Linear(n_classes * dim, n_classes)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        MILOutput
            Attention (C, N). ``extras``: "class_instance_logits" (N, C) of the first stream; "max_logits" and
            "stream_logits", both (C,), of which `bag_logits` is the mean.
        """
        instances: Tensor = self.norm(one_bag(bag).embeddings)  # (N, D)
        instance_logits = self.instance_classifier(instances)  # (N, C)
        max_logits, critical = instance_logits.max(dim=0)  # (C,) each
        attention_logits = self._similarity(instances, critical)  # (C, N)
        # Values are linear and attention sums to 1: pool first, so that D x D is multiplied for C rows, not for N.
        pooled = torch.softmax(attention_logits, dim=1) @ self.dropout(instances)  # (C, D)
        embeddings = self.value(pooled)  # (C, D)
        stream_logits = self.classifier(embeddings.flatten())  # (C D,) -> (C,)
        return MILOutput(
            bag_logits=(max_logits + stream_logits) / 2,
            attention_logits=attention_logits,
            bag_embedding=embeddings,
            extras={
                "class_instance_logits": instance_logits,
                "max_logits": max_logits,
                "stream_logits": stream_logits,
            },
        )

    def losses(
        self, output: MILOutput, label: int, *, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return 0.5 cross-entropy of the bag stream as "ce" and 0.5 of the critical instances as "max"."""
        weight = self.spec.bag_weight
        return {
            "ce": weight * bag_cross_entropy(output.extras["stream_logits"], label, class_weights),
            "max": (1 - weight) * bag_cross_entropy(output.extras["max_logits"], label, class_weights),
        }

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`: in closed form where a class's critical instance stays, anew where it is the one left out."""
        instances: Tensor = self.norm(one_bag(bag).embeddings)  # (N, D)
        n, n_classes = len(instances), self.spec.n_classes
        if n == 1:
            return instances.new_zeros((1, n_classes))
        instance_logits = self.instance_classifier(instances)  # (N, C)
        (top, second), (critical, next_critical) = instance_logits.topk(2, dim=0)  # (C,) each
        max_logits = top.expand(n, -1).clone()  # (N, C)
        max_logits[critical, torch.arange(n_classes)] = second
        attention_logits = self._similarity(instances, critical)  # (C, N)
        after = self._similarity(instances, next_critical)  # (C, N)
        stream_logits = self.classifier.bias.expand(n, -1).clone()
        # (C, C D) -> a (C, D) block for the embedding of each class
        blocks = self.classifier.weight.view(n_classes, n_classes, -1).unbind(dim=1)
        for c, block in enumerate(blocks):
            values = instances @ (block @ self.value.weight).T  # (N, C) what each instance adds to the logits
            without = pooled_without_each(attention_logits[c : c + 1], values)
            others = after[c].clone()
            others[critical[c]] = -torch.inf
            without[critical[c]] = torch.softmax(others, dim=0) @ values
            stream_logits += without + block @ self.value.bias
        both: Tensor = (max_logits + stream_logits) / 2
        return both

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: an instance alone is critical and has all of the attention."""
        instances: Tensor = self.norm(one_bag(bag).embeddings)
        embeddings = self.value(instances).repeat(1, self.spec.n_classes)  # (N, C D)
        logits: Tensor = (self.instance_classifier(instances) + self.classifier(embeddings)) / 2
        return logits

    def _similarity(self, instances: Tensor, critical: Tensor) -> Tensor:
        """Return (C, N): <q_n, q_critical> / sqrt(Q), without making the queries of all N."""
        queries = self.query(instances[critical])  # (C, Q)
        towards = queries @ self.query.weight  # (C, D)
        similarity = towards @ instances.T + (queries @ self.query.bias)[:, None]  # (C, N)
        scaled: Tensor = similarity / self.spec.query_dim**0.5
        return scaled

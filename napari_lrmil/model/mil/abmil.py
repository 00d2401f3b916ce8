"""Attention-based MIL (Ilse, Tomczak & Welling, ICML 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.attention import input_norm, pooled_without_each
from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, MILSpec, one_bag

_NUMBERS_AT_ONCE = 2**20


class ABMILSpec(MILSpec):
    """Everything needed to build an `ABMIL`, weights apart."""

    tells_deciding_tiles: ClassVar[bool] = True

    name: Literal["abmil"] = "abmil"
    hidden_dim: int = Field(default=128, gt=0, le=8192)
    gated: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)
    projection: tuple[Annotated[int, Field(gt=0, le=8192)], ...] = Field(
        default=(),
        max_length=8,
        description="widths of the layers before the attention; none in older bundles",
    )
    normalise: bool = Field(
        default=True, description="layer norm of the embeddings first; heads published elsewhere have none"
    )

    def build(self) -> ABMIL:
        """Return the head with fresh weights."""
        return ABMIL(
            embed_dim=self.embed_dim,
            n_classes=self.n_classes,
            hidden_dim=self.hidden_dim,
            gated=self.gated,
            dropout=self.dropout,
            projection=self.projection,
            normalise=self.normalise,
        )


class ABMIL(MILModel):
    """a = softmax over the bag of w^T (tanh(V h) [* sigmoid(U h)]); the bag is sum a h (equations 7 to 9).

    Embeddings are normalised first (LayerNorm) since their scale differs between encoders, and a small
    head that is trained for seconds should not depend on it. Layers of a projection, each followed by ReLU and
    dropout, may come before the attention: attention, classifier and instance classifier then read the same trained
    instances, and what trains one of them moves the others. Without them the instances are the frozen embeddings.

    Parameters
    ----------
    embed_dim : int
        D of the instances.
    n_classes : int
    hidden_dim : int
        Width of the attention's hidden layer.
    gated : bool
        Whether to multiply with the sigmoid gate.
    dropout : float
        On the instances and after each layer of the projection, in training only.
    projection : tuple of int
        Widths of its layers; the last is that of the bag. Empty for none.
    normalise : bool
        Whether the layer norm is there; a head that was published without one starts from its weights without it.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        n_classes: int,
        hidden_dim: int = 128,
        gated: bool = True,
        dropout: float = 0.0,
        projection: Sequence[int] = (),
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.norm = input_norm(embed_dim, normalise)
        self.dropout = nn.Dropout(dropout)
        widths = (embed_dim, *projection)
        self.projection = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(wide, narrow), nn.ReLU(), nn.Dropout(dropout))
                for wide, narrow in pairwise(widths)
            )
        )
        dim = widths[-1]
        self.value = nn.Linear(dim, hidden_dim)
        self.gate = nn.Linear(dim, hidden_dim) if gated else None
        self.score = nn.Linear(hidden_dim, 1)
        self.classifier = nn.Linear(dim, n_classes)
        self.instance_classifier = nn.Linear(dim, 2)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        MILOutput
            One row of attention for all classes; `instance_logits` (N, 2), trained by the term l_hard of stage 2.
        """
        instances, attention_logits = self._attend(bag)
        bag_embedding = torch.softmax(attention_logits, dim=0) @ instances  # (P,)
        return MILOutput(
            bag_logits=self.classifier(bag_embedding),
            attention_logits=attention_logits[None],  # (1, N)
            instance_logits=self.instance_classifier(instances),
            bag_embedding=bag_embedding,
        )

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """As in `MILModel`, from one pass: a part's attention is the softmax over its own attention logits.

        The classifier is linear, so the attention weighs (N, C) class values instead of (N, P) instances.
        """
        instances, attention_logits = self._attend(bag)
        class_values = instances @ self.classifier.weight.T  # (N, C)
        logits = []
        # Some parts at a time: of a bag of 60,000 instances, a number for each of them in 231 parts is 100 MB.
        for parts in torch.split(kept, max(1, _NUMBERS_AT_ONCE // len(instances))):
            holds_any = parts.any(dim=1, keepdim=True)
            # An empty part gets a softmax over everything, which is overwritten below: over nothing it would be NaN.
            masked = attention_logits.masked_fill(~(parts | ~holds_any), -torch.inf)  # (S, N)
            found = torch.softmax(masked, dim=1) @ class_values + self.classifier.bias
            logits.append(found.masked_fill(~holds_any, 0.0))
        return torch.cat(logits)

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: the classifier is linear, so class values are pooled without each."""
        instances, attention_logits = self._attend(bag)
        if len(instances) == 1:
            return instances.new_zeros((1, self.classifier.out_features))
        values = instances @ self.classifier.weight.T  # (N, C)
        return pooled_without_each(attention_logits[None], values) + self.classifier.bias

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: an instance alone has all of the attention."""
        logits: Tensor = self.classifier(self._instances(bag))
        return logits

    def _instances(self, bag: AnyBag) -> Tensor:
        """Normalised and, where there is a projection, projected: (N, P), or (N, D) without one."""
        instances: Tensor = self.projection(self.dropout(self.norm(one_bag(bag).embeddings)))
        return instances

    def _attend(self, bag: AnyBag) -> tuple[Tensor, Tensor]:
        """Instances (N, P) and their attention logits (N,)."""
        instances = self._instances(bag)
        hidden = torch.tanh(self.value(instances))  # (N, hidden)
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(instances))
        return instances, self.score(hidden).squeeze(-1)

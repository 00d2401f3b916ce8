"""Mean pooling: a linear classifier on the mean of the instances, the floor of any comparison."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, MILSpec, one_bag


class MeanSpec(MILSpec):
    """Everything needed to build a `MeanMIL`, weights apart."""

    name: Literal["mean"] = "mean"
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the instances, in training only")

    def build(self) -> MeanMIL:
        """Return the head with fresh weights."""
        return MeanMIL(embed_dim=self.embed_dim, n_classes=self.n_classes, dropout=self.dropout)


class MeanMIL(MILModel):
    """Classify the mean of the normalised instances; there is no attention and no instance classifier.

    Parameters
    ----------
    embed_dim : int
        D of the instances.
    n_classes : int
    dropout : float
    """

    def __init__(self, *, embed_dim: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embed_dim, n_classes)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag of (N, D) instances."""
        bag_embedding = self._instances(bag).mean(dim=0)  # (D,)
        return MILOutput(bag_logits=self.classifier(bag_embedding), bag_embedding=bag_embedding)

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """As in `MILModel`, from one pass: the classifier is linear, so each part is a mean of class values."""
        values = self.classifier(self._instances(bag))  # (N, C)
        counts = kept.sum(dim=1, keepdim=True)  # (S, 1)
        sums = torch.stack([values[part].sum(dim=0) for part in kept])  # (S, C)
        return torch.where(counts > 0, sums / counts.clamp_min(1), torch.zeros_like(sums))

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: the sum without n, divided by N - 1."""
        values = self.classifier(self._instances(bag))  # (N, C)
        if len(values) == 1:
            return torch.zeros_like(values)
        logits: Tensor = (values.sum(dim=0) - values) / (len(values) - 1)
        return logits

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: the mean of one instance is that instance."""
        logits: Tensor = self.classifier(self._instances(bag))
        return logits

    def _instances(self, bag: AnyBag) -> Tensor:
        """Normalised: (N, D)."""
        instances: Tensor = self.dropout(self.norm(one_bag(bag).embeddings))
        return instances

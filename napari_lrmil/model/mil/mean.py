"""Mean pooling: a linear classifier on the mean of the instances, the floor of any comparison."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from napari_lrmil.model.mil.base import AnyBag, MILOutput
from napari_lrmil.model.mil.pooling import PoolingMIL, PoolingSpec


class MeanSpec(PoolingSpec):
    """Everything needed to build a `MeanMIL`, weights apart."""

    name: Literal["mean"] = "mean"

    def build(self) -> MeanMIL:
        """Return the head with fresh weights."""
        return MeanMIL(embed_dim=self.embed_dim, n_classes=self.n_classes, dropout=self.dropout)


class MeanMIL(PoolingMIL):
    """Classify the mean of the normalised instances."""

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

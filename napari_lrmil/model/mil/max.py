"""Max pooling: a linear classifier on the largest value of each dimension over the bag."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from napari_lrmil.model.mil.base import AnyBag, MILOutput
from napari_lrmil.model.mil.pooling import PoolingMIL, PoolingSpec


class MaxSpec(PoolingSpec):
    """Everything needed to build a `MaxMIL`, weights apart."""

    name: Literal["max"] = "max"

    def build(self) -> MaxMIL:
        """Return the head with fresh weights."""
        return MaxMIL(embed_dim=self.embed_dim, n_classes=self.n_classes, dropout=self.dropout)


class MaxMIL(PoolingMIL):
    """Classify the maximum over the normalised instances, dimension by dimension."""

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag of (N, D) instances."""
        bag_embedding = self._instances(bag).amax(dim=0)  # (D,)
        return MILOutput(bag_logits=self.classifier(bag_embedding), bag_embedding=bag_embedding)

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, from one pass: where n has the largest value of a dimension, the second largest is left."""
        instances = self._instances(bag)  # (N, D)
        n = len(instances)
        if n == 1:
            return instances.new_zeros((1, self.classifier.out_features))
        top, index = instances.topk(2, dim=0)  # (2, D) each
        owner = index[0]  # (D,) whose value is the largest
        # A tile changes the pooled vector only in the dimensions that it owns: their change of the logits is gathered.
        change = (top[1] - top[0])[:, None] * self.classifier.weight.T  # (D, C)
        logits: Tensor = self.classifier(top[0]).repeat(n, 1)  # (N, C)
        return logits.index_add(0, owner, change)

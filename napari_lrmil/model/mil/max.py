"""Max pooling: a linear classifier on the largest value of each dimension over the bag."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, MILSpec, one_bag


class MaxSpec(MILSpec):
    """Everything needed to build a `MaxMIL`, weights apart."""

    name: Literal["max"] = "max"
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the instances, in training only")

    def build(self) -> MaxMIL:
        """Return the head with fresh weights."""
        return MaxMIL(embed_dim=self.embed_dim, n_classes=self.n_classes, dropout=self.dropout)


class MaxMIL(MILModel):
    """Classify the maximum over the normalised instances, dimension by dimension; there is no attention.

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

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`: the maximum of one instance is that instance."""
        logits: Tensor = self.classifier(self._instances(bag))
        return logits

    def _instances(self, bag: AnyBag) -> Tensor:
        """Normalised: (N, D)."""
        instances: Tensor = self.dropout(self.norm(one_bag(bag).embeddings))
        return instances

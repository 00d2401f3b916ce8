"""What mean and max pooling share: a linear classifier on normalised instances."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.base import AnyBag, MILModel, MILSpec, one_bag


class PoolingSpec(MILSpec):
    """Everything needed to build a `PoolingMIL`, weights apart."""

    has_attention: ClassVar[bool] = False

    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the instances, in training only")


class PoolingMIL(MILModel):
    """Classify one vector that is pooled from the normalised instances; there is no attention and no instance classifier.

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

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: what is pooled of one instance is that instance."""
        logits: Tensor = self.classifier(self._instances(bag))
        return logits

    def _instances(self, bag: AnyBag) -> Tensor:
        """Normalised: (N, D)."""
        instances: Tensor = self.dropout(self.norm(one_bag(bag).embeddings))
        return instances

"""Attention-based MIL (Ilse, Tomczak & Welling, ICML 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from napari_lrmil.model.mil.base import MILModel, MILOutput


class ABMIL(MILModel):
    """a = softmax over the bag of w^T (tanh(V h) [* sigmoid(U h)]); the bag is sum a h (equations 7 to 9).

    Embeddings are normalised first (LayerNorm) since their scale differs between encoders, and a small
    head that is trained for seconds should not depend on it.

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
        On the instances, in training only.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        n_classes: int,
        hidden_dim: int = 128,
        gated: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.value = nn.Linear(embed_dim, hidden_dim)
        self.gate = nn.Linear(embed_dim, hidden_dim) if gated else None
        self.score = nn.Linear(hidden_dim, 1)
        self.classifier = nn.Linear(embed_dim, n_classes)
        self.instance_classifier = nn.Linear(embed_dim, 2)

    def forward(self, instance_embeddings: Tensor) -> MILOutput:
        """Classify one bag.

        Parameters
        ----------
        instance_embeddings : (N, D) tensor

        Returns
        -------
        MILOutput
        """
        instances = self.dropout(self.norm(instance_embeddings))  # (N, D)
        hidden = torch.tanh(self.value(instances))  # (N, hidden)
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(instances))
        attention_logits = self.score(hidden).squeeze(-1)  # (N,)
        attention_scores = torch.softmax(attention_logits, dim=0)
        bag_embedding = attention_scores @ instances  # (D,)
        return MILOutput(
            bag_logits=self.classifier(bag_embedding),
            attention_logits=attention_logits,
            attention_scores=attention_scores,
            bag_embedding=bag_embedding,
            instance_logits=self.instance_classifier(instances),
        )

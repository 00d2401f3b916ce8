"""What several heads share: gated attention of one or more branches, and pooling by it without each instance in turn."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil.base import MILSpec


class GatedAttention(nn.Module):
    """w^T (tanh(V h) * sigmoid(U h)), the gated attention of Ilse, Tomczak & Welling (ICML 2018), A branches at once.

    Parameters
    ----------
    dim : int
        P of the instances.
    hidden_dim : int
    n_branches : int
        A: rows of attention.
    dropout : float
        After tanh and after the sigmoid, in training only.
    """

    def __init__(self, dim: int, hidden_dim: int, *, n_branches: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden_dim)
        self.gate = nn.Linear(dim, hidden_dim)
        self.score = nn.Linear(hidden_dim, n_branches)
        self.dropout = nn.Dropout(dropout)

    def forward(self, instances: Tensor) -> Tensor:
        """Return the (A, N) attention logits of (N, P) instances."""
        value = self.dropout(torch.tanh(self.value(instances)))  # (N, hidden)
        gate = self.dropout(torch.sigmoid(self.gate(instances)))  # (N, hidden)
        logits: Tensor = self.score(value * gate).T  # (N, A) -> (A, N)
        return logits


class NormalisedSpec(MILSpec):
    """Spec of a head whose paper has no layer norm of the embeddings, as heads of this package start with; see `input_norm`."""

    normalise: bool = Field(
        default=True, description="layer norm of the embeddings first; the paper has none"
    )


def input_norm(embed_dim: int, normalise: bool) -> nn.Module:
    """Return the layer norm that a head of this package starts with, or nothing, as the papers have it."""
    return nn.LayerNorm(embed_dim) if normalise else nn.Identity()


def xavier_init(module: nn.Module) -> None:
    """Start the linear layers of `module` from Xavier's normal weights and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def scores_as_logits(scores: Tensor) -> Tensor:
    """Return logits whose softmax is `scores` over their sum, for heads whose attention is no softmax over the bag.

    What is below 1e-12 counts as that much: the logarithm and its gradient stay finite.
    """
    return scores.clamp_min(1e-12).log()


def pooled_without_each(attention_logits: Tensor, values: Tensor) -> Tensor:
    """Return the attention-weighted mean of `values` without each instance, in closed form.

    Without n the mean is (m - a_n v_n) / (1 - a_n). Where a_n is above one half, which it is for one instance of a
    row at most, the difference would cancel: there the softmax over the others is taken anew.

    Parameters
    ----------
    attention_logits : (1, N) or (C, N) tensor
    values : (N, C) tensor
        Column c is weighted with row c of the attention, or with its only row.

    Returns
    -------
    (N, C) tensor
        Zeros for N = 1.
    """
    n = len(values)
    if n == 1:
        return torch.zeros_like(values)
    scores = torch.softmax(attention_logits, dim=1).T  # (N, 1) or (N, C)
    weighed = scores * values  # (N, C)
    found = (weighed.sum(dim=0) - weighed) / (1 - scores).clamp_min(0.5)
    for index, row in (scores > 0.5).nonzero().tolist():
        others = attention_logits[row].clone()
        others[index] = -torch.inf
        columns = slice(None) if scores.shape[1] == 1 else slice(row, row + 1)
        found[index, columns] = torch.softmax(others, dim=0) @ values[:, columns]
    return found

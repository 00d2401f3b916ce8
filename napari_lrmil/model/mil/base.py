"""What every aggregator takes and returns."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class MILOutput(NamedTuple):
    """What an aggregator says of one bag of N instances, C classes; read it by name."""

    bag_logits: Tensor
    """(C,)"""
    attention_logits: Tensor
    """(N,) before the softmax over the bag; any sign."""
    attention_scores: Tensor
    """(N,) after it; they sum to 1."""
    bag_embedding: Tensor
    """(H,)"""
    instance_logits: Tensor
    """(N, 2): is this one of the tiles that decide? Column 1 says yes; trained by the term l_hard of stage 2."""


class MILModel(nn.Module):
    """Base of the aggregators: maps instance embeddings (N, D) to `MILOutput`."""

    def forward(self, instance_embeddings: Tensor) -> MILOutput:
        """See the subclass."""
        raise NotImplementedError

    def __call__(self, instance_embeddings: Tensor) -> MILOutput:  # the type of forward, kept
        output: MILOutput = super().__call__(instance_embeddings)
        return output

    def subset_logits(self, instance_embeddings: Tensor, kept: Tensor) -> Tensor:
        """Bag logits of parts of one bag, each as if it were the whole bag.

        This one reruns the head on every part, which is exact for any head; a subclass may have a shorter way to
        the same numbers.

        Parameters
        ----------
        instance_embeddings : (N, D) tensor
        kept : (S, N) bool tensor
            The instances of each part.

        Returns
        -------
        (S, C) tensor
            Zeros for an empty part: every class is equally likely.
        """
        logits = [self(instance_embeddings[part]).bag_logits for part in kept if bool(part.any())]
        n_classes = (logits[0] if logits else self(instance_embeddings).bag_logits).shape[0]
        found = instance_embeddings.new_zeros((len(kept), n_classes))
        if logits:
            found[kept.any(dim=1)] = torch.stack(logits)
        return found

    def leave_one_out_logits(self, instance_embeddings: Tensor) -> Tensor:
        """Bag logits of the bag without each of its instances.

        Parameters
        ----------
        instance_embeddings : (N, D) tensor

        Returns
        -------
        (N, C) tensor
            Row n: without instance n. Zeros for N = 1, as in `subset_logits`.
        """
        n = len(instance_embeddings)
        places = torch.arange(n, device=instance_embeddings.device)
        # One part at a time: all of them as masks would be N x N.
        parts = [self.subset_logits(instance_embeddings, (places != place)[None]) for place in range(n)]
        return torch.cat(parts)

    def alone_logits(self, instance_embeddings: Tensor) -> Tensor:
        """Bag logits of the bags that hold one instance each.

        Parameters
        ----------
        instance_embeddings : (N, D) tensor

        Returns
        -------
        (N, C) tensor
            Row n: of instance n alone.
        """
        return torch.stack([self(instance[None]).bag_logits for instance in instance_embeddings])


class MILSpec(BaseModel):
    """Everything needed to build an aggregator, weights apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["abmil"] = "abmil"
    embed_dim: int = Field(gt=0, le=65_536)
    n_classes: int = Field(ge=2, le=1000)
    hidden_dim: int = Field(default=128, gt=0, le=8192)
    gated: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)
    projection: tuple[Annotated[int, Field(gt=0, le=8192)], ...] = Field(
        default=(),
        max_length=8,
        description="widths of the layers before the attention; none in older bundles",
    )

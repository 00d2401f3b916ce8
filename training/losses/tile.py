"""Stage 1: an LR tile against its HR children (step 3 of `training.stages`)."""

from __future__ import annotations

import torch
from torch import Tensor


def standardised(values: Tensor, spread: Tensor) -> Tensor:
    """Return values in units of the targets' standard deviation, dimension by dimension.

    A difference of two such values is one of standardised values: the targets' mean falls out.

    Parameters
    ----------
    values : (..., D) tensor
    spread : (D,) tensor, or one that fits ``values``
        Above 0.
    """
    return values / spread


def layer_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return L_layer of each tile: mean over layers and children of the MSE between block mean and class token.

    Parameters
    ----------
    student : (L, B, K, D) tensor
        Means of the student's token blocks, see `encoder.child_means`.
    teacher : (L, B, K, D) tensor
        The teacher's class token of each child at the same layer.
    valid : (B, K) bool tensor
        Children with tissue; the others are left out, not counted as 0.

    Returns
    -------
    (B,) tensor
        0 where no child is valid, and everywhere without layers.
    """
    squared = (student - teacher).square().mean(dim=-1).sum(dim=0)  # (B, K)
    mask = valid.to(squared.dtype)
    return (squared * mask).sum(dim=1) / (mask.sum(dim=1) * len(student)).clamp_min(1)


def last_layer_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return L_last of each tile: mean over children of the MSE between last block mean and final class token.

    Parameters
    ----------
    student : (B, K, D) tensor
        Means of the student's tokens after the final norm over each child's block.
    teacher : (B, K, D) tensor
        The teacher's final class token of each child.
    valid : (B, K) bool tensor
        Children with tissue.

    Returns
    -------
    (B,) tensor
        0 where no child is valid.
    """
    return layer_loss(student[None], teacher[None], valid)


def renormalised_weights(attention_scores: Tensor, valid: Tensor) -> Tensor:
    """Return w_k: attention scores of the children, made to sum to 1 over those with tissue.

    Uniform over them where all scores are 0 (or none are wanted: pass zeros).

    Parameters
    ----------
    attention_scores : (B, K) tensor
        After the softmax, so never negative; logits are refused.
    valid : (B, K) bool tensor

    Returns
    -------
    (B, K) tensor
        Rows sum to 1, or to 0 where no child is valid.
    """
    if bool((attention_scores < 0).any()):
        raise ValueError("weights must be attention scores, not logits: some are negative")
    mask = valid.to(attention_scores.dtype)
    masked = attention_scores * mask
    total = masked.sum(dim=1, keepdim=True)
    uniform = mask / mask.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(total > 0, masked / total.clamp_min(torch.finfo(masked.dtype).tiny), uniform)


def child_attention_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Return L_attn of each tile: sum_k w_k MSE(student's class token, teacher's of child k).

    Parameters
    ----------
    student : (B, D) tensor
        The student's final class token of each LR tile.
    teacher : (B, K, D) tensor
        The teacher's final class token of each child.
    weights : (B, K) tensor
        See `renormalised_weights`.

    Returns
    -------
    (B,) tensor
    """
    squared = (student[:, None] - teacher).square().mean(dim=-1)  # (B, K)
    return (weights * squared).sum(dim=1)
